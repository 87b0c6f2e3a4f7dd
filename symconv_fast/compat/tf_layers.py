"""What a network that comes from TensorFlow needs beside its layers: "SAME" padding, and its order of channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import ShapeError, check_is_tensor, ints, is_several
from ..functional import IntOrInts
from ..modules import SymmetricConv2d
from ..ties import Ties

_MEMBERS = {0: (0,), 1: (0, 1), 2: (0, 2), 3: (0, 1, 2, 3)}
"""Theirs: the copies of a kernel, by the mask of its tie, in the order in which they were put together."""


def tf_same_padding(size: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """(before, after): the zeros that TensorFlow's padding="SAME" adds along one axis of `size` values.

    It makes ceil(size / stride) outputs: in all max((ceil(size / stride) - 1) stride + dilation (kernel_size - 1) + 1
    - size, 0) zeros, half of them before, rounded down (TensorFlow's guide to `tf.nn`, "Padding"). With stride 1 that
    is torch's padding="same". With stride 2, 3 taps and an even size it is (0, 1), where padding=1 in torch is (1, 1):
    other windows, not only another edge.

    Raises:
        ValueError: an argument below 1. TypeError: one that is no int.
    """
    values = {"size": size, "kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    for name, value in values.items():
        if len(ints(value, name)) != 1 or is_several(value) or value < 1:
            raise ValueError(f"{name}={value!r} must be an int of 1 or more, such as {name}=1")
    return _same(size, kernel_size, stride, dilation)


def _same(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel_size - 1) + 1 - size, 0)
    return total // 2, total - total // 2


class TFSamePad2d(nn.Module):
    """Zeros around an image as TensorFlow's padding="SAME" adds them, by its size; for a layer with padding 0.

    (N, C, H, W) or (C, H, W) to the same with H and W padded by `tf_same_padding`. Put it in front of what
    `from_tf(..., stride=2, padding="valid")` returns.

    Args:
        kernel_size, stride, dilation: those of the layer, an int or (along H, along W).

    Raises:
        ValueError, TypeError: an argument that is no int of 1 or more, or no two of them; an input of other dims.
    """

    def __init__(self, kernel_size: IntOrInts, stride: IntOrInts = 1, dilation: IntOrInts = 1) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")

    def forward(self, input: Tensor) -> Tensor:
        """Pads the last two dims."""
        check_is_tensor(input, "input")
        if input.dim() not in (3, 4):
            raise ShapeError(f"expected input (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}")
        sizes = zip(input.shape[-2:], self.kernel_size, self.stride, self.dilation)
        (top, bottom), (left, right) = (_same(*axis) for axis in sizes)
        return F.pad(input, (left, right, top, bottom))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def tf_channel_order(ties: Ties) -> Tensor:
    """The place that each output channel of a tied layer has in the TensorFlow layer: (out_channels,), int64.

    `y = y_tf[..., order]` and `y_tf = y[:, order.argsort()]`, with channels last there and in dim 1 here; likewise for
    anything that has a value for each channel, and for the input channels of what follows.

    Raises:
        TypeError: no `Ties` (a layer has them in `layer.ties`). ValueError: ties of another dimension, or of groups.
    """
    if not isinstance(ties, Ties):
        raise TypeError(f"tf_channel_order needs the ties of a layer, layer.ties, got {type(ties).__name__}")
    if ties.ndim != 2 or ties.groups != 1:
        raise ValueError(
            f"the published TensorFlow layer has 2 dims and no groups, got ndim={ties.ndim}, groups={ties.groups}; "
            "give the ties of a SymmetricConv2d with groups=1"
        )
    places: dict[tuple[int, int], int] = {}
    row = channel = 0
    for mask, rows in ties.segments:
        for member in _MEMBERS[mask]:
            places.update(((row + i, member), channel + i) for i in range(rows))
            channel += rows
        row += rows
    return torch.tensor([places[row_and_member] for row_and_member in ties.channel_map], dtype=torch.int64)


class TFOrdered(nn.Module):
    """A tied layer whose output channels are in the order of the TensorFlow layer, at the cost of one copy of them.

    For places where what follows cannot be permuted instead: sums of branches, or tools that compare activations.
    Elsewhere permute the layers that follow (see `from_tf`), which costs nothing.

    Args:
        layer: the tied layer, from `from_tf` or not; it stays in `layer`, and the order in the buffer `index`.

    Raises:
        TypeError: it is no SymmetricConv2d. ValueError: it has groups.
    """

    index: Tensor

    def __init__(self, layer: SymmetricConv2d) -> None:
        check_layer(layer, "TFOrdered")
        super().__init__()
        self.layer = layer
        self.register_buffer("index", tf_channel_order(layer.ties).argsort().to(layer.weight.device))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W), as the layer takes it."""
        return self.layer(input).index_select(-3, self.index)


def pair(value: IntOrInts, name: str) -> tuple[int, int]:
    """An argument of two axes, 1 or more along each."""
    values = ints(value, name)
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or min(values) < 1:
        raise ValueError(f"{name}={value!r} must be an int of 1 or more, or two of them, such as {name}=1")
    return values[0], values[1]


def check_layer(layer: Any, caller: str) -> None:
    """Raises TypeError or ValueError for what the published TensorFlow layer cannot be."""
    if not isinstance(layer, SymmetricConv2d):
        raise TypeError(f"{caller} needs a SymmetricConv2d, got {type(layer).__name__}")
    if layer.groups != 1:
        raise ValueError(
            f"{caller} needs a layer with groups=1, as the published one, got groups={layer.groups}"
        )
