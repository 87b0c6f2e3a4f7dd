"""The layers that are measured, as data: a few for each row of the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..both_sides import resolve_both
from ..problem import OPS, Problem
from ..symmetry import Symmetry


class Layer(NamedTuple):
    """A convolution with padding `kernel // 2`, of groups of so many channels (0: all are one group).

    `inputs` is the tie whose orbits its input channels are, if any.
    """

    batch: int
    channels: int
    filters: int
    spatial: tuple[int, ...]
    kernel: int
    tie: str
    stride: int = 1
    group_width: int = 0
    inputs: str = ""


LAYERS = (
    # Ordinary layers: the most common kinds, of several sizes.
    Layer(4, 64, 64, (56, 56), 3, "h"),
    Layer(4, 64, 64, (56, 56), 3, "hv"),
    Layer(4, 128, 128, (28, 28), 3, "hv"),
    Layer(4, 256, 256, (14, 14), 3, "h"),
    Layer(1, 512, 512, (7, 7), 3, "hv"),
    Layer(1, 64, 64, (112, 112), 3, "v"),
    Layer(1, 64, 64, (28, 28), 5, "hv"),
    # Strided ones, and few channels.
    Layer(4, 128, 128, (56, 56), 3, "h", stride=2),
    Layer(1, 64, 128, (56, 56), 3, "hv", stride=2),
    Layer(1, 3, 64, (112, 112), 7, "h", stride=2),
    Layer(1, 3, 64, (112, 112), 3, "hv"),
    Layer(4, 1, 32, (28, 28), 5, "h"),
    Layer(4, 8, 16, (32, 32), 3, "h"),
    Layer(4, 16, 16, (32, 32), 3, "hv"),
    Layer(2, 16, 32, (56, 56), 3, "h"),
    Layer(1, 16, 16, (8, 8), 3, "h"),
    # One and three dims.
    Layer(4, 128, 384, (202,), 3, "h"),
    Layer(2, 64, 64, (1000,), 5, "h"),
    Layer(4, 4, 64, (1000,), 15, "h"),
    Layer(2, 32, 32, (16, 16, 16), 3, "hvz"),
    Layer(1, 64, 64, (16, 16, 16), 3, "hv"),
    Layer(1, 16, 16, (12, 12, 12), 3, "h"),
    Layer(1, 4, 16, (16, 16, 16), 3, "hvz"),
    # Depthwise ones: several filters of each channel, and one; filters that are their own images; orbits across
    # groups.
    Layer(1, 96, 192, (56, 56), 7, "h", group_width=1),
    Layer(1, 192, 768, (28, 28), 7, "hv", group_width=1),
    Layer(1, 384, 768, (14, 14), 3, "h", group_width=1),
    Layer(1, 128, 128, (28, 28), 3, "", group_width=1),
    Layer(1, 384, 384, (14, 14), 7, "h+v+", group_width=1),
    Layer(1, 128, 128, (28, 28), 5, "h-", group_width=1),
    Layer(1, 128, 128, (28, 28), 7, "hv", group_width=1, inputs="hv"),
    # Groups of a few channels, which the depthwise kernels take too.
    Layer(1, 128, 128, (28, 28), 3, "h", group_width=4),
    Layer(1, 128, 128, (28, 28), 3, "hv", group_width=8),
)


def problems(dtype: torch.dtype) -> Iterator[tuple[Problem, str]]:
    """(problem, pass) of everything that is measured in a type, in both layouts."""
    for layer in LAYERS:
        for last in (True, False) if len(layer.spatial) > 1 else (False,):
            for op in OPS:
                yield problem(layer, dtype, last), op


def problem(layer: Layer, dtype: torch.dtype, last: bool) -> Problem:
    """A layer as a problem; `last`: in channels_last."""
    ndim = len(layer.spatial)
    groups = layer.channels // (layer.group_width or layer.channels)
    kernel, symmetry = (layer.kernel,) * ndim, Symmetry(layer.tie or None)
    inputs = Symmetry(layer.inputs).resolve(ndim, layer.channels) if layer.inputs else None
    ties = resolve_both(
        symmetry.counts,
        inputs,
        groups,
        kernel,
        False,
        lambda order: symmetry.resolve(ndim, layer.filters, order),
    )
    shapes = (
        (layer.batch, layer.channels, *layer.spatial),
        ties.weight_shape(layer.channels // groups, kernel),
    )
    stride, padding, one, zero = ([n] * ndim for n in (layer.stride, layer.kernel // 2, 1, 0))
    static = (ties.flat, stride, padding, one, zero, False, groups, last)
    return Problem.create(shapes, static, last, dtype, "cpu")
