"""A problem as the kernels see it: three axes, the weight by groups, each segment with its place. Knows no Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ...problem import Problem
from ...ties import orbit_size

Strides = tuple[int, ...]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Segment:
    """Orbits of one group that share a tie: rows from `row`, mirrored copies among the channels from `copy`."""

    mask: int
    row: int
    rows: int
    copy: int

    @property
    def order(self) -> int:
        """Number of tied axes."""
        return self.mask.bit_count()


@dataclass(frozen=True)
class Geometry:
    """Sizes of one group: `channels` of input, `rows` of weight, `filters` of output; axes are depth, height, width.

    `axes` is (kernel, stride, dilation, padding) for each. `x` and `y` are the spatial sizes of the layer's input and
    output; a layer that is `transposed` scatters forward and gathers backward.
    """

    batch: int
    groups: int
    channels: int
    rows: int
    filters: int
    x: Triple
    y: Triple
    axes: tuple[tuple[int, int, int, int], ...]
    transposed: bool
    segments: tuple[Segment, ...]

    @property
    def taps(self) -> int:
        """Taps of a filter."""
        return math.prod(axis[0] for axis in self.axes)

    @property
    def depthwise(self) -> bool:
        """One input channel in each of several groups."""
        return self.channels == 1 and self.groups > 1

    def phased(self, sizes: Triple, scatter: bool) -> tuple[Triple, int]:
        """(positions on each axis of one phase of a destination with these sizes, number of phases)."""
        if not scatter:
            return sizes, 1
        strides = [axis[1] for axis in self.axes]
        d, h, w = (-(-n // s) for n, s in zip(sizes, strides))
        return (d, h, w), math.prod(strides)


def _triple(values: tuple[int, ...], fill: int) -> Triple:
    d, h, w = (*(fill,) * (3 - len(values)), *values)
    return d, h, w


@lru_cache(maxsize=4096)
def geometry(problem: Problem) -> Geometry:
    """The `Geometry` of a problem."""
    p, groups = problem, problem.groups
    segments, row, copy = [], 0, p.unique // groups
    for mask, rows in p.ties:
        if rows:
            segments.append(Segment(mask, row, rows // groups, copy))
        row += rows // groups
        copy += rows // groups * (orbit_size(mask) - 1)
    columns = ((p.kernel, 1), (p.stride, 1), (p.dilation, 1), (p.padding, 0))
    return Geometry(
        batch=p.batch,
        groups=groups,
        channels=p.in_channels // groups,
        rows=p.unique // groups,
        filters=p.out_channels // groups,
        x=_triple(p.spatial, 1),
        y=_triple(p.out_spatial, 1),
        axes=tuple(zip(*(_triple(values, fill) for values, fill in columns))),
        transposed=p.transposed,
        segments=tuple(segments),
    )


# --- views: strides of tensors with three axes ---------------------------------------------------------------------


def pixels_view(tensor: Tensor) -> Tensor:
    """(N, channels, *spatial) with three spatial dims."""
    while tensor.dim() < 5:
        tensor = tensor.unsqueeze(2)
    return tensor


def weight_view(tensor: Tensor, problem: Problem) -> Tensor:
    """A reduced weight as (groups, rows of a group, channels of a group, depth, height, width)."""
    while tensor.dim() < 5:
        tensor = tensor.unsqueeze(2)
    if problem.transposed:
        return tensor.unflatten(0, (problem.groups, -1)).transpose(1, 2)
    return tensor.unflatten(0, (problem.groups, -1))


def pixel_strides(shape: tuple[int, ...], channels_last: bool) -> Strides:
    """Strides (N, C, D, H, W) of a dense tensor (N, C, *spatial), channels innermost or not."""
    c, (d, h, w) = shape[1], _triple(shape[2:], 1)
    if channels_last:
        return (c * d * h * w, 1, c * h * w, c * w, c)
    return (c * d * h * w, d * h * w, h * w, w, 1)


def packed_weight_strides(g: Geometry, rows_innermost: bool) -> Strides:
    """Strides (G, U, C, D, H, W) of a copy of the weight, [G][U][taps][C] or [G][C][taps][U]."""
    d, h, w = (axis[0] for axis in g.axes)
    inner, outer = (g.rows, g.channels) if rows_innermost else (g.channels, g.rows)
    taps = (h * w * inner, w * inner, inner)
    ends = (1, d * h * w * inner) if rows_innermost else (d * h * w * inner, 1)
    return (outer * d * h * w * inner, *ends, *taps)
