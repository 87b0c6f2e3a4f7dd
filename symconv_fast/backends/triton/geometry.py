"""A problem as the kernels see it: three axes, the weight by groups, each segment with its place. Knows no Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from ...problem import Problem
from ...ties import orbit_size, rank
from .letters import letters

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
        """Number of axes along which it has members."""
        return rank(self.mask)


@dataclass(frozen=True)
class Geometry:
    """Sizes of one group: `channels` of input, `rows` of weight, `filters` of output; axes are depth, height, width.

    `axes` is (kernel, stride, dilation, padding) for each. `x` and `y` are the spatial sizes of the layer's input and
    output; a layer that is `transposed` scatters forward and gathers backward. `moved`, `fixed` and `parity` are those
    of `Letters`; where there are any the layer has one segment. `kept` are the taps on each axis that the weight has.
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
    kept: Triple
    moved: int = 0
    fixed: int = 0
    parity: int = 0

    @property
    def taps(self) -> int:
        """Taps of a filter."""
        return math.prod(axis[0] for axis in self.axes)

    @property
    def kept_taps(self) -> int:
        """Those of them that the weight has."""
        return math.prod(self.kept)

    @property
    def read_taps(self) -> int:
        """Those of them at which a channel is read: in the middle where no mirror that moves none negates rows."""
        zero = self.fixed & self.parity & ~self.moved
        return math.prod(k - (k % 2 if zero & (4 >> axis) else 0) for axis, (k, *_) in enumerate(self.axes))

    @property
    def sided(self) -> bool:
        """Do mirrors move channels, or make rows their own images?"""
        return bool(self.moved | self.fixed)

    @property
    def depth(self) -> int:
        """Channels of a group that are contracted: of those that mirrors exchange the first."""
        return self.channels // orbit_size(self.moved)

    @property
    def both(self) -> int:
        """Letters that move channels and make members: for each parity by them the weight has channels of its own."""
        return self.moved & self.segments[0].mask

    def order(self, segments: Sequence[Segment]) -> int:
        """Number of axes along which positions are folded."""
        return max((rank(s.mask | self.fixed) for s in segments), default=0)

    def name_of(self, kernel: str) -> str:
        """Under which the tables have the tiles of a kernel: `both` adds up parities of both sides, `own` one."""
        if self.both and kernel in ("fprop_fold", "wgrad"):
            return kernel + "_both"
        return (
            "fprop_fold_own"
            if kernel == "fprop_fold" and self.fixed and not self.segments[0].mask
            else kernel
        )

    def adjoint(self) -> Geometry:
        """The layer that makes the gradient of this one's input, by the same weight with rows and channels exchanged.

        What a letter does to channels it does to rows there, and the other way round.
        """
        (segment,) = self.segments
        return replace(
            self,
            channels=self.filters,
            rows=self.depth,
            filters=self.channels,
            x=self.y,
            y=self.x,
            transposed=not self.transposed,
            segments=(Segment(self.moved, 0, self.depth, self.depth),),
            moved=segment.mask,
            fixed=(segment.mask | self.fixed) & ~self.moved,
        )

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
    own = letters(p)
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
        kept=_triple(p.weight_shape[2:], 1),
        moved=own.moved,
        fixed=own.fixed,
        parity=own.parity,
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
