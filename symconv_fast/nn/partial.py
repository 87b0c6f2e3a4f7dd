"""PartialConv1d/2d/3d: convolutions, tied or not, that see only the valid part of each window and are scaled for it.

G. Liu et al., "Image Inpainting for Irregular Holes Using Partial Convolutions", ECCV 2018 (masks), and "Partial
Convolution based Padding", arXiv:1811.11718 (zero padding as a hole).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import DtypeError, ShapeError, check_bool, check_is_tensor
from ..functional import run
from ..modules import SymmetricConv1d, SymmetricConv2d, SymmetricConv3d, _Symmetric
from ..tracing import is_traced, record_layer


class _Partial(_Symmetric[Any]):
    """What the three layers share; the class after it in each of them is the tied convolution that it masks."""

    return_mask: bool

    def __init__(self, *args: Any, return_mask: bool = False, **options: Any) -> None:
        check_bool(return_mask, "return_mask")
        super().__init__(*args, **options)
        self.return_mask = return_mask

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Any:
        """The output, or with `return_mask` (output, updated mask).

        Args:
            input: (N, C, *S) or (C, *S).
            mask: bool, or numbers of which those above 0 are valid; (N, 1, *S), or (N, C, *S) with a value for each
                channel; a batch of 1 serves all images; without N where the input has none. None: all is valid.

        Raises:
            ShapeError, a ValueError: the mask does not fit the input. TypeError: it is no tensor of real numbers.
            RuntimeError: it is on another device. And whatever the convolution raises.
        """
        if is_traced(input):
            node = record_layer(self, input, *([] if mask is None else [mask]))
            if node is not None:
                return node
        check_is_tensor(input, "input")
        if input.dim() - len(self.kernel_size) not in (1, 2):
            self.problem(input)  # raises what the convolution would
        if mask is None:
            return self._pad_partially(input)
        self._check_mask(input, mask)
        unbatched = input.dim() == len(self.kernel_size) + 1
        if unbatched:
            input, mask = input.unsqueeze(0), mask.unsqueeze(0)
        valid = mask if mask.dtype is torch.bool else mask > 0
        # A product with the mask would let NaN and infinity out of the holes.
        raw = self._convolve(torch.where(valid, input, input.new_zeros(())))
        count, window = self._count(valid, raw.dtype)
        output, updated = self._scale(raw, count, window), (count > 0).to(mask.dtype)
        if unbatched:
            output, updated = output.squeeze(0), updated.squeeze(0)
        return (output, updated) if self.return_mask else output

    def to_conv(self) -> Any:
        """The same layer without ties: a partial convolution with the expanded filters."""
        layer = type(self).from_conv(super().to_conv(), None)
        layer.return_mask = self.return_mask
        return layer

    def _has_plain_forward(self) -> bool:
        """Is what the layer computes that of this class? Then torch.fx records it as one node."""
        own = "forward" in self.__dict__ or "_conv_forward" in self.__dict__
        return not own and type(self).forward is _Partial.forward

    def _check_mask(self, input: Tensor, mask: Any) -> None:
        check_is_tensor(mask, "mask")
        if mask.is_complex():
            raise DtypeError(
                f"mask is {str(mask.dtype)[6:]}; give real numbers or bool, such as torch.isfinite(input)"
            )
        if mask.device != input.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, "
                f"but input is on {input.device} and mask is on {mask.device}"
            )
        channels = -1 - len(self.kernel_size)
        batch, spatial = tuple(input.shape[:channels]), tuple(input.shape[channels + 1 :])
        given = tuple(mask.shape)
        if (
            mask.dim() != input.dim()
            or given[channels + 1 :] != spatial
            or given[channels] not in (1, input.shape[channels])
            or given[:channels] not in (batch, (1,) * len(batch))
        ):
            raise ShapeError(
                f"mask of shape {given} does not fit input of shape {tuple(input.shape)}; give one of shape "
                f"{(*batch, 1, *spatial)}, or {(*batch, input.shape[channels], *spatial)} for a mask of each channel"
            )

    def _convolve(self, input: Tensor) -> Tensor:
        """Without bias, which is not scaled."""
        return run(*self._arguments(input, self._own("weight"), None))

    def _count(self, valid: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
        """Valid values in each window, (N, 1 or out_channels, *out), and how many a window has.

        A mask for each channel is counted over the channels of a group, all of which its filters see.
        """
        # Whole numbers are exact in float32, but not in 16 bits.
        counts = valid.to(torch.promote_types(dtype, torch.float32))
        window, channels = math.prod(self.kernel_size), valid.shape[1]
        if channels > 1:
            window *= channels // self.groups
            counts = counts.unflatten(1, (self.groups, channels // self.groups)).sum(2)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        counts = F.pad(counts, self._reversed_padding_repeated_twice, mode=mode)
        for axis in range(len(self.kernel_size)):
            counts = self._sum_windows(counts, 2 + axis, axis)
        if channels > 1:
            counts = counts.repeat_interleave(self.out_channels // self.groups, 1)
        return counts, window

    def _sum_windows(self, padded: Tensor, dim: int, axis: int) -> Tensor:
        """Sums along `dim` over the taps of each window. No convolution: with TF32 it would round large sums."""
        taps, dilation = self.kernel_size[axis], self.dilation[axis]
        windows = padded.unfold(dim, dilation * (taps - 1) + 1, self.stride[axis])
        return windows[..., ::dilation].sum(-1)

    def _scale(self, raw: Tensor, count: Tensor, window: int) -> Tensor:
        """raw * window / count + bias, and 0 where the count is 0, without bias; a count of one or all channels."""
        valid, bias = count > 0, self.expanded_bias()
        # The factor 0 also removes what a fast convolution may leave in an empty window, a rounding error of the values
        # around it.
        ratio = torch.where(valid, window / count.clamp(min=1), 0.0)
        output, marks = raw.to(count.dtype), valid.to(count.dtype)
        if bias is not None:
            bias = bias.to(count.dtype).view(-1, *[1] * len(self.kernel_size))
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            output = output * ratio
            output = output if bias is None else output + bias * marks
        else:  # in place, since fresh memory costs more than the products
            output.mul_(ratio)
            if bias is not None:
                output.addcmul_(bias, marks)
        return output.to(raw.dtype)

    def _pad_partially(self, input: Tensor) -> Any:
        """No mask: only zero padding is a hole, and how much of a window it fills follows from the sizes."""
        padded = self.padding_mode == "zeros" and any(self._reversed_padding_repeated_twice)
        if padded:
            raw = self._convolve(input)
            count = self._count_inside(input, raw.dtype)
            output = self._scale(raw, count, math.prod(self.kernel_size))
        else:
            output = self._conv_forward(input, self._own("weight"), self._own("bias"))
            count = output.new_ones([1] * len(self.kernel_size))
        if not self.return_mask:
            return output
        shape = list(output.shape)
        shape[-1 - len(self.kernel_size)] = 1
        return output, (count > 0).to(output.dtype).expand(shape)

    def _count_inside(self, input: Tensor, dtype: torch.dtype) -> Tensor:
        """Taps of each window that lie in the input, (*out): the product of those along each axis."""
        ndim, count = (
            len(self.kernel_size),
            input.new_ones([], dtype=torch.promote_types(dtype, torch.float32)),
        )
        for axis in range(ndim):
            behind = 2 * (ndim - 1 - axis)
            inside = F.pad(
                count.new_ones(input.shape[axis - ndim]),
                self._reversed_padding_repeated_twice[behind : behind + 2],
            )
            count = count.unsqueeze(-1) * self._sum_windows(inside, 0, axis)
        return count

    def extra_repr(self) -> str:
        """Those of the convolution, and `return_mask` where it is set."""
        return super().extra_repr() + (", return_mask=True" if self.return_mask else "")


class PartialConv1d(_Partial, SymmetricConv1d):
    """`PartialConv2d` in one dimension: input (N, C, L), mask (N, 1, L) or (N, C, L), key h."""


class PartialConv2d(_Partial, SymmetricConv2d):
    """A convolution over the valid part of its input, scaled by what part of each window that is.

    With the filter w, bias b and M = 1 where the input x is valid and 0 in holes, a window of which a part is valid
    gives `sum(w * x * M) * sum(1) / sum(M) + b`, and one without a valid value 0, bias or not. A mask of one channel
    is counted over the K taps of the window; one with a value for each channel over taps and channels of the group.
    Padding with zeros counts as a hole. So, without any mask, it does not darken the border of the image as it does
    in `nn.Conv2d`: that is partial convolution based padding. Padding of the other modes repeats values with their
    mask. What is in a hole has no influence, be it NaN, and no gradient.

    The updated mask is 1 where the window has a valid value: (N, 1, *out), or (N, out_channels, *out) of a mask with
    a value for each channel; dtype and batch size are those of the mask. Without a mask it is of the output's dtype.

    Arguments as for `SymmetricConv2d` (symmetry=None is an ordinary convolution), and:
        return_mask: return (output, updated mask), for the next partial convolution. An attribute, to be set later too.

    `weight` and `bias` are those of the convolution: checkpoints of `nn.Conv2d` load where nothing is tied, and
    `PartialConv2d.from_conv(conv, symmetry)` ties an ordinary one. Mirror input and mask, and output and mask come
    mirrored with the members of each orbit exchanged, where the layer would do so without a mask (`is_exact`).

    Raises:
        ValueError, TypeError: as for `SymmetricConv2d`; `return_mask` is no bool.
    """


class PartialConv3d(_Partial, SymmetricConv3d):
    """`PartialConv2d` in three dimensions: input (N, C, D, H, W), mask (N, 1 or C, D, H, W), keys h to hvz."""
