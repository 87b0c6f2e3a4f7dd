"""What the passes of the composed backend share: its segments, and the ordinary convolution that does the products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..problem import Problem, as_result
from ..ties import COPIES, mirror
from .composed_axes import Phase, phases

# Z and D hold at most this much at a time, unless one image needs more: the batch is done in parts.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Segment:
    """One segment of a layer, folded along `axes` (of 0 .. ndim - 1).

    `rest` are the mirrors along the tied axes that are not folded: each is a block of rows of its own.
    `offsets[member]` is the first channel of a member in the output of a group.
    """

    axes: tuple[int, ...]
    bits: tuple[int, ...]
    rest: tuple[int, ...]
    start: int
    rows: int
    offsets: dict[int, int]

    def members(self) -> Iterator[tuple[tuple[int, ...], int, int]]:
        """(for each folded axis whether it is mirrored, index into `rest`, first output channel)."""
        for states in itertools.product((0, 1), repeat=len(self.axes)):
            folded = sum(bit for bit, state in zip(self.bits, states) if state)
            for index, other in enumerate(self.rest):
                yield states, index, self.offsets[folded | other]


@lru_cache(maxsize=4096)
def segments(problem: Problem, algorithm: str) -> tuple[Segment, ...]:
    """The segments of a layer and the axes along which they are folded."""
    rows = [count // problem.groups for _, count in problem.ties]
    offsets: list[dict[int, int]] = []
    start = 0
    for count in rows:
        offsets.append({0: start})
        start += count
    for i, (mask, _) in enumerate(problem.ties):
        for member in COPIES[mask]:
            offsets[i][member] = start
            start += rows[i]
    found = []
    for i, (mask, _) in enumerate(problem.ties):
        axes = [axis for axis in range(problem.ndim) if mask >> (problem.ndim - 1 - axis) & 1]
        if algorithm == "partial" and len(axes) > 1:
            axes = [min(axes, key=lambda axis: (problem.kernel[axis], -axis))]
        bits = tuple(1 << (problem.ndim - 1 - axis) for axis in axes)
        rest = tuple(member for member in (0, *COPIES[mask]) if not member & sum(bits))
        found.append(Segment(tuple(axes), bits, rest, offsets[i][0], rows[i], offsets[i]))
    return tuple(found)


def phase_products(problem: Problem, segment: Segment) -> Iterator[tuple[Phase, ...]]:
    """One phase for each folded axis, in all combinations."""
    yield from itertools.product(*(phases(problem, axis) for axis in segment.axes))


def member_blocks(problem: Problem, segment: Segment, output: Tensor) -> list[Tensor]:
    """Views (N, groups, rows, *spatial) of the members' channels in the layer's output or its gradient."""
    grouped = output.unflatten(1, (problem.groups, problem.out_channels // problem.groups))
    return [grouped.narrow(2, channel, segment.rows) for _, _, channel in segment.members()]


def chunks(problem: Problem, segment: Segment) -> list[slice]:
    """Runs of images whose Z or D is not too large."""
    images = max(1, CHUNK_BYTES * problem.batch // max(1, inner_bytes(problem, segment)))
    return [
        slice(at, min(at + images, problem.batch))
        for at in range(0, problem.batch, min(images, problem.batch))
    ]


def inner_bytes(problem: Problem, segment: Segment) -> int:
    """About the size of Z or D for the whole batch."""
    taps = math.prod(problem.kernel[axis] for axis in segment.axes) * len(segment.rest)
    pixels = max(math.prod(problem.spatial), math.prod(problem.out_spatial))
    return problem.batch * problem.groups * segment.rows * taps * pixels * problem.dtype.itemsize


def steps(segment: Segment, part: tuple[Phase, ...], tensor: Tensor) -> Tensor:
    """The inputs of a phase: a strided view of a tensor of the input's shape."""
    for axis, phase in zip(segment.axes, part):
        if phase.step > 1:
            tensor = tensor[(slice(None),) * (2 + axis) + (slice(phase.start, None, phase.step),)]
    return tensor


def inner_problem(
    problem: Problem,
    segment: Segment,
    part: tuple[Phase, ...],
    spatial: tuple[int, ...] | None = None,
    padding: list[int] | None = None,
) -> Problem:
    """The ordinary convolution with kernel 1 along the folded axes whose output channels are taps times rows."""
    sizes = {
        "spatial": list(problem.spatial),
        "kernel": list(problem.kernel),
        "stride": list(problem.stride),
        "padding": list(problem.padding),
        "dilation": list(problem.dilation),
        "output_padding": list(problem.output_padding),
    }
    for axis, phase in zip(segment.axes, part):
        own = (phase.count if spatial is None else spatial[axis], 1, 1, padding[axis] if padding else 0, 1, 0)
        for values, value in zip(sizes.values(), own):
            values[axis] = value
    taps = math.prod(len(phase.taps) for phase in part)
    filters = problem.groups * taps * len(segment.rest) * segment.rows
    geometry = {name: tuple(values) for name, values in sizes.items()}
    return replace(problem, unique=filters, out_channels=filters, ties=((0, filters),), **geometry)  # type: ignore[arg-type]


def tap_filters(problem: Problem, segment: Segment, part: tuple[Phase, ...], weight: Tensor) -> Tensor:
    """Filters of the inner convolution: the rows of a segment with the taps of the folded axes as rows."""
    if problem.transposed:
        rows = weight.narrow(1, segment.start, segment.rows)
    else:
        rows = weight.unflatten(0, (problem.groups, -1)).narrow(1, segment.start, segment.rows)
    rows = torch.stack([mirror(rows, member) for member in segment.rest], 1)
    for i, (axis, phase) in enumerate(zip(segment.axes, part)):
        dim = axis - problem.ndim
        if phase.taps != tuple(range(problem.kernel[axis])):
            rows = torch.cat([rows.narrow(dim, k, 1) for k in phase.taps], dim)
        rows = rows.movedim(dim, 1 + i).unsqueeze(dim)
    flat = rows.flatten(1 if problem.transposed else 0, 2 + len(part))
    return as_result(flat, last_inside(problem))


def add_tap_filters(
    problem: Problem, segment: Segment, part: tuple[Phase, ...], grad: Tensor, total: Tensor
) -> None:
    """The transpose of `tap_filters`, added to `total`."""
    shape = (*(len(phase.taps) for phase in part), len(segment.rest), segment.rows)
    grad = grad.unflatten(1, shape) if problem.transposed else grad.unflatten(0, (problem.groups, *shape))
    for i, (axis, phase) in reversed(list(enumerate(zip(segment.axes, part)))):
        dim = axis - problem.ndim
        grad = grad.squeeze(dim).movedim(1 + i, dim)
        if phase.taps != tuple(range(problem.kernel[axis])):
            absent = torch.zeros_like(grad.narrow(dim, 0, 1))
            places = {k: grad.narrow(dim, i, 1) for i, k in enumerate(phase.taps)}
            grad = torch.cat([places.get(k, absent) for k in range(problem.kernel[axis])], dim)
    if problem.transposed:
        rows = total.narrow(1, segment.start, segment.rows)
    else:
        rows = total.unflatten(0, (problem.groups, -1)).narrow(1, segment.start, segment.rows)
    for i, member in enumerate(segment.rest):
        rows += mirror(grad.select(1, i), member)


def last_inside(problem: Problem) -> bool:
    """One memory format for all tensors of the inner convolutions.

    torch 2.13's oneDNN kernels get some mixtures of formats, and channels last with one channel in 3-D, wrong: on a
    CPU, where speed is no matter for this backend, everything that they may run is contiguous.
    """
    if problem.device == "cpu" and problem.dtype != torch.float64:
        return False
    return problem.channels_last or problem.input_channels_last
