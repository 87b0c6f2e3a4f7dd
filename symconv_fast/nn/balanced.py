"""Strided pooling and convolutions that leave padding unread now on one side, now on the other.

Where the windows of a strided layer do not fill the padded input, the rest is read by none. It lies at the right and at
the bottom, in every layer, and that makes trained weights asymmetric: B. Alsallakh et al., "Mind the Pad: CNNs Can
Develop Blind Spots", ICLR 2021, and "Mind the Pool: Convolutional Neural Networks Can Overfit Input Size", ICLR 2023,
whose remedy, spatially-balanced pooling, these layers are built after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.compiler import is_compiling
from torch.fx import Proxy

from ..checks import ShapeError, check_bool
from ..functional import IntOrInts, run
from ..modules import SymmetricConv2d
from ..tracing import _path as module_path
from ..tracing import is_traced, record_layer
from .arguments import check_images, per_axis
from .exact import unread

_MODES = ("max", "avg")
_KEY = "balanced_index"
"""Of the entry in a checkpoint's metadata; it is no key of the state_dict, as the tie of a layer is none."""

Sides = Union[Sequence[int], Tensor]
"""For each axis, last one last: 0 where windows start at the left or top, 1 where they end at the right or bottom."""


class _Balanced(nn.Module):
    """Which side windows are laid from, and what is saved of it."""

    index: int

    def _sides(self, input: Tensor, rests: Sequence[int]) -> Sides | None:
        """None where it makes no difference or all are 0: the ordinary layer. A tensor where it is compiled."""
        if not any(rests):
            return None
        if not self.training:
            return [1] * len(rests) if self.index % 2 else None
        if is_compiling() or detect_fake_mode([input]) is not None:
            return torch.randint(2, (len(rests),), device=input.device)
        # Drawn on the host, for any device, so that nobody waits for an accelerator to know the sizes.
        drawn = torch.randint(2, (len(rests),)).tolist()
        sides = [side if rest else 0 for side, rest in zip(drawn, rests)]
        return sides if any(sides) else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[_KEY] = self.index

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        self.index = local_metadata.get(_KEY, self.index)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class SpatiallyBalancedPool2d(_Balanced):
    """Max or average pooling whose unread padding changes sides: (N, C, H, W) to the sizes of `nn.MaxPool2d`.

    Along an axis of n positions r = (n + 2p - d(K-1) - 1) mod s of the padded input are in no window; in torch's layers
    they lie at the right and at the bottom. Here in training they lie on a side that is drawn anew in each call, for
    each axis (from torch's generator of the host, so that a seed repeats it). In evaluation they lie right and bottom
    if `index` is even, left and top if it is odd: `alternate_sides(model)` numbers the layers of a model. Where r is
    0 the layer is torch's to the last bit and draws nothing; `exact_padding` finds such padding.

    Windows laid from the right give the mirror image of what windows laid from the left give of the mirrored input.
    So training sees both sides alike: the mean of the output over the draws commutes with mirrors.

    Args:
        kernel_size: K, as for `nn.MaxPool2d`, as are
        stride: s, by default K, and
        padding: p, at most K // 2.
        dilation: d; 1 for averages.
        mode: "max", or "avg" for averages.
        count_include_pad: averages divide by all values of a window, zeros of the padding included (True, as in
            `nn.AvgPool2d`), or by those that lie in the input (False).
        index: 0, 1, ...: the place of the layer among those of its model. Saved in the metadata of a state_dict.

    Each of the first four is an int or (rows, columns). There is no `ceil_mode`, which leaves nothing unread but has
    smaller windows on one side.

    Raises:
        ValueError, TypeError: an argument is out of range or of another type.
    """

    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        *,
        mode: str = "max",
        count_include_pad: bool = True,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = per_axis(kernel_size, "kernel_size", 2)
        self.stride = self.kernel_size if stride is None else per_axis(stride, "stride", 2)
        self.padding = per_axis(padding, "padding", 2, least=0)
        self.dilation = per_axis(dilation, "dilation", 2)
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r} must be 'max' or 'avg'")
        if mode == "avg" and self.dilation != (1, 1):
            raise ValueError(f"dilation={dilation!r} is for mode='max' alone; averages need dilation=1")
        most = tuple(k // 2 for k in self.kernel_size)
        if any(p > m for p, m in zip(self.padding, most)):
            raise ShapeError(f"padding={padding!r} must be at most half of kernel_size; give at most {most}")
        self.mode = mode
        self.count_include_pad = check_bool(count_include_pad, "count_include_pad")
        self.index = per_axis(index, "index", 1, least=0)[0]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W), floating point.

        Raises:
            ShapeError, a ValueError: other dims, or no window fits. TypeError: no tensor, or another dtype.
        """
        if isinstance(input, Proxy):
            node = self._record(input)
            if node is not None:
                return node
        check_images(input, 2, type(self).__name__)
        sizes = self.kernel_size, self.stride, self.padding, self.dilation
        if _has_no_window(input.shape[-2:], self.kernel_size, self.padding, self.dilation):
            axes = zip(self.kernel_size, self.padding, self.dilation)
            least = tuple(max(d * (k - 1) + 1 - 2 * p, 1) for k, p, d in axes)
            raise ShapeError(
                f"input of shape {tuple(input.shape)} is too small for a window; give (H, W) of at least {least}"
            )
        rests = _rests(input.shape[-2:], *sizes)
        sides = self._sides(input, rests)
        if sides is None:
            return self._pool(input, self.padding)

        def lay(values: Tensor, fill: float) -> Tensor:
            return _lay(values, self.padding, rests, sides, lambda x, pad: F.pad(x, pad, value=fill))

        if self.mode == "max":
            return self._pool(lay(input, float("-inf")), (0, 0))
        output = self._pool(lay(input, 0.0), (0, 0))
        if self.count_include_pad or not any(self.padding):
            return output
        wide = torch.promote_types(input.dtype, torch.float32)
        ones = input.new_ones((1, *input.shape[-2:]), dtype=wide)
        return (output / self._pool(lay(ones, 0.0), (0, 0))).to(input.dtype)

    def _record(self, input: Any) -> Any:
        """The node of torch.fx that calls the layer, since a trace knows no sizes; None where more has to be traced."""
        if self._forward_hooks or self._forward_pre_hooks or not module_path(self, input):
            return None
        return input.tracer.create_proxy("call_module", module_path(self, input), (input,), {})

    def _pool(self, input: Tensor, padding: tuple[int, ...]) -> Tensor:
        if self.mode == "max":
            return F.max_pool2d(input, self.kernel_size, self.stride, padding, self.dilation)
        return F.avg_pool2d(
            input, self.kernel_size, self.stride, padding, count_include_pad=self.count_include_pad
        )

    def extra_repr(self) -> str:
        """The arguments."""
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        text += "" if self.dilation == (1, 1) else f", dilation={self.dilation}"
        text += "" if self.mode == "max" else f", mode='avg', count_include_pad={self.count_include_pad}"
        return f"{text}, index={self.index}"


class SpatiallyBalancedConv2d(_Balanced, SymmetricConv2d):
    """A strided convolution, tied or not, whose unread padding changes sides as that of `SpatiallyBalancedPool2d`.

    Arguments as for `SymmetricConv2d` (symmetry=None is an ordinary convolution), and:
        index: 0, 1, ...: the place of the layer among the balanced ones of its model; see there.

    `weight` and `bias` are those of the convolution and the only keys of its state_dict: checkpoints of `nn.Conv2d`,
    or of `SymmetricConv2d` with the same tie, load as they are, and `from_conv(conv, symmetry)` takes an ordinary
    layer. Any `padding_mode` works. Mirror the input, exchange left and right, and the output comes mirrored with the
    members of each orbit exchanged.

    Raises:
        ValueError, TypeError: as for `SymmetricConv2d`; `index` is no int of at least 0.
    """

    def __init__(self, *args: Any, index: int = 0, **options: Any) -> None:
        number = per_axis(index, "index", 1, least=0)[0]
        super().__init__(*args, **options)
        self.index = number

    def forward(self, input: Tensor) -> Tensor:
        """As `SymmetricConv2d`: (N, C, H, W) or (C, H, W)."""
        if is_traced(input):
            node = record_layer(self, input)
            if node is not None:
                return node
        weight, bias = self._own("weight"), self._own("bias")
        pads = self._reversed_padding_repeated_twice
        padding = pads[2], pads[0]
        # What is no image is left to the convolution to refuse; padding="same" has stride 1, which leaves no rest.
        if not isinstance(input, Tensor) or input.dim() not in (3, 4) or max(self.stride) == 1:
            return self._conv_forward(input, weight, bias)
        if _has_no_window(input.shape[-2:], self.kernel_size, padding, self.dilation):
            return self._conv_forward(input, weight, bias)
        rests = _rests(input.shape[-2:], self.kernel_size, self.stride, padding, self.dilation)
        sides = self._sides(input, rests)
        if sides is None:
            return self._conv_forward(input, weight, bias)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        laid = _lay(input, padding, rests, sides, lambda x, pad: F.pad(x, pad, mode=mode))
        return run(2, laid, weight, bias, self.stride, (0, 0), self.dilation, self.groups, self.ties)

    def _has_plain_forward(self) -> bool:
        """Is what the layer computes that of this class? Then torch.fx records it as one node."""
        own = "forward" in self.__dict__ or "_conv_forward" in self.__dict__
        return not own and type(self).forward is SpatiallyBalancedConv2d.forward

    def to_conv(self) -> Any:
        """The same layer without ties: a balanced convolution with the expanded filters."""
        layer = type(self).from_conv(super().to_conv(), None)
        layer.index = self.index
        return layer

    def extra_repr(self) -> str:
        """Those of the convolution, and the index."""
        return f"{super().extra_repr()}, index={self.index}"


def alternate_sides(model: nn.Module) -> int:
    """Number the balanced layers of a model 0, 1, ... in the order of `model.modules()`: left, right, left, ...

    In evaluation, the sides on which neighbours leave padding unread then cancel as far as they can.

    Returns:
        How many there are.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; for example a whole model"
        )
    layers = [module for module in model.modules() if isinstance(module, _Balanced)]
    for index, layer in enumerate(layers):
        layer.index = index
    return len(layers)


def _has_no_window(size: Sequence[int], kernel: Any, padding: Any, dilation: Any) -> bool:
    """Is the input empty, or smaller with its padding than a window, along any axis?"""
    return any(n < 1 or n + 2 * p < d * (k - 1) + 1 for n, k, p, d in zip(size, kernel, padding, dilation))


def _rests(size: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """What no window reads, along each axis."""
    return [unread(*axis) for axis in zip(size, kernel, stride, padding, dilation)]


def _lay(
    input: Tensor,
    padding: Sequence[int],
    rests: Sequence[int],
    sides: Sides,
    pad: Callable[[Tensor, list[int]], Tensor],
) -> Tensor:
    """The padded input without what is not read: that lies right of the windows of side 0, left of those of side 1."""
    both = [p for size in reversed(padding) for p in (size, size)]
    padded = pad(input, both) if any(both) else input
    for axis, rest in enumerate(rests):
        if not rest:
            continue
        dim, side = axis - len(rests), sides[axis]
        length = padded.shape[dim] - rest
        if isinstance(side, Tensor):
            places = torch.arange(length, device=input.device) + side * rest
            padded = padded.index_select(dim, places)
        else:
            padded = padded.narrow(dim, side * rest, length)
    return padded
