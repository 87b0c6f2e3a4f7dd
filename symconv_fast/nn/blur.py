"""BlurPool1d/2d/3d: down-sampling after a binomial blur, and at which sizes it commutes with a mirror.

R. Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import ShapeError, check_bool
from ..functional import IntOrInts
from .arguments import check_images, per_axis

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MODES = ("reflect", "replicate", "circular", "zeros")
_Axis = tuple[int, int, int]
"""Taps, padding on the left, padding on the right (below 0: positions that are left out)."""


class _BlurPool(nn.Module):
    """What the three layers share."""

    ndim: int

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: IntOrInts = 4,
        stride: IntOrInts = 2,
        *,
        exact: bool = False,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__()
        self.exact = check_bool(exact, "exact")
        self.channels = None if channels is None else per_axis(channels, "channels", 1)[0]
        name = "with exact=True, kernel_size" if exact else "kernel_size"
        self.kernel_size = per_axis(kernel_size, name, self.ndim, least=3 if exact else 1)
        self.stride = per_axis(stride, "stride", self.ndim)
        if padding_mode not in _MODES:
            raise ValueError(f"padding_mode={padding_mode!r} must be one of {', '.join(map(repr, _MODES))}")
        self.padding_mode = padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *S) or (C, *S) to the same with sizes ceil(S / stride); float16, bfloat16, float32 or float64.

        Raises:
            ShapeError, a ValueError: too few or too many dims, other channels, or a size too small for its padding.
            TypeError: no tensor, or another dtype.
        """
        return _blur(input, self.channels, self.kernel_size, self.stride, self.exact, self.padding_mode)

    def is_exact(self, size: IntOrInts) -> bool:
        """Does the layer commute with the mirrors of all axes at this spatial size of the input?"""
        plans = zip(per_axis(size, "size", self.ndim), self.kernel_size, self.stride)
        return all(left == right for _, left, right in (_plan(*plan, self.exact) for plan in plans))

    def extra_repr(self) -> str:
        """The arguments; `channels`, `exact` and `padding_mode` where they are not the default."""
        text = "" if self.channels is None else f"{self.channels}, "
        text += f"kernel_size={self.kernel_size}, stride={self.stride}"
        text += ", exact=True" if self.exact else ""
        return text + ("" if self.padding_mode == "reflect" else f", padding_mode={self.padding_mode!r}")


class BlurPool1d(_BlurPool):
    """`BlurPool2d` in one dimension: (N, C, L) to (N, C, ceil(L / stride))."""

    ndim = 1


class BlurPool2d(_BlurPool):
    """Blur each channel with a binomial filter and keep every `stride`-th value: (N, C, H, W) to ceil(H / stride), ...

    The filter of K taps is row K-1 of Pascal's triangle over its sum, such as (1, 3, 3, 1) / 8, along every axis. It
    is built for each call, in dtype and on the device of the input: the layer has no parameters and an empty
    state_dict.

    Padding fits the window to the input: (ceil(n / s) - 1) * s + K - n values in all, a half on each side. Where that
    is an even number, the layer commutes with a mirror of this axis exactly. Where it is odd, one side has one more,
    the side that the paper's layers would have at stride 2, and the layer does not. At stride 2 it commutes just where
    K and n are both even or both odd:

    | stride 2 | K = 2, 4, 6 | K = 3, 5, 7 | exact=True |
    | --- | --- | --- | --- |
    | even n | exact | not exact | exact with the even one of K and K-1 |
    | odd n | not exact | exact | exact with the odd one of K and K-1 |

    Args:
        channels: C, to be checked, or None for whatever the input has.
        kernel_size: K, at least 1; 4 by default, which is exact for even sizes at stride 2.
        stride: s, at least 1.
        exact: take K - 1 taps instead of K wherever K is not exact; K is then at least 3.
        padding_mode: "reflect", "replicate", "circular" or "zeros".

    Each of `kernel_size` and `stride` is an int, or one for every axis.

    Raises:
        ValueError, TypeError: an argument is out of range or of another type.
    """

    ndim = 2


class BlurPool3d(_BlurPool):
    """`BlurPool2d` in three dimensions: (N, C, D, H, W)."""

    ndim = 3


def _plan(size: int, taps: int, stride: int, exact: bool) -> _Axis:
    total = (size - 1) // stride * stride + taps - size
    if exact and total % 2:
        taps, total = taps - 1, total - 1
    # An odd rest goes to the right of an even window and to the left of an odd one, as in the paper's layers.
    left = min(max((taps - 1) // 2, total // 2), total - total // 2)
    return taps, left, total - left


@torch.fx.wrap
def _blur(
    input: Tensor,
    channels: int | None,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    exact: bool,
    padding_mode: str,
) -> Tensor:
    ndim = len(kernel_size)
    check_images(input, ndim, f"BlurPool{ndim}d")
    if channels not in (None, input.shape[-ndim - 1]):
        raise ShapeError(f"expected input of {channels} channels, got shape {tuple(input.shape)}")
    batched = input if input.dim() == ndim + 2 else input.unsqueeze(0)
    plans = [_plan(*axis, exact) for axis in zip(batched.shape[2:], kernel_size, stride)]
    for place in zip(batched.shape[2:], plans, kernel_size, stride):
        _check_size(*place, exact, padding_mode)
    for dim, (_, left, right) in enumerate(plans, 2):
        size = batched.shape[dim]
        batched = batched.narrow(dim, max(-left, 0), size + min(left, 0) + min(right, 0))
    batched = _pad(batched, plans, padding_mode)
    rows = [_binomial(taps, batched) for taps, _, _ in plans]
    window = reduce(lambda outer, row: outer.unsqueeze(-1) * row, rows)
    weight = window.expand(batched.shape[1], 1, *window.shape)
    output = _CONV[ndim](batched, weight, None, stride, groups=batched.shape[1])
    return output if input.dim() == ndim + 2 else output.squeeze(0)


_LEAST = {"reflect": 1, "circular": 0}
"""How much larger than its padding an axis has to be; the other modes pad any size."""


def _fits(size: int, axis: _Axis, padding_mode: str) -> bool:
    return padding_mode not in _LEAST or size >= max(axis[1:]) + _LEAST[padding_mode]


def _check_size(size: int, axis: _Axis, kernel: int, stride: int, exact: bool, padding_mode: str) -> None:
    """Raises ShapeError, with the next size that is large enough, where an axis has too few values to pad with."""
    if not _fits(size, axis, padding_mode):
        larger = (
            n for n in itertools.count(size + 1) if _fits(n, _plan(n, kernel, stride, exact), padding_mode)
        )
        raise ShapeError(
            f"a size of {size} is too small for padding_mode={padding_mode!r}: {axis[0]} taps need {max(axis[1:])} "
            f"values of padding; give a size of at least {next(larger)}, or padding_mode='replicate'"
        )


def _pad(input: Tensor, plans: Sequence[_Axis], padding_mode: str) -> Tensor:
    pairs = [max(p, 0) for _, left, right in reversed(plans) for p in (left, right)]
    if not any(pairs):
        return input
    return F.pad(input, pairs, mode="constant" if padding_mode == "zeros" else padding_mode)


def _binomial(taps: int, like: Tensor) -> Tensor:
    """Row taps-1 of Pascal's triangle over its sum. Each value is a fill on the device: nothing is copied to it."""
    values = [math.comb(taps - 1, k) / 2 ** (taps - 1) for k in range(taps)]
    return torch.stack([like.new_full((), value) for value in values])
