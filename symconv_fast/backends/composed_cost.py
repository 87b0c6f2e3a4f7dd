"""Work of the composed backend, counted from the same phases that it runs: multiply-accumulates, bytes, launches."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from ..problem import Problem
from . import gpu_cost
from .composed_axes import Phase, input_range, lines, phases
from .gpu_cost import Work

if TYPE_CHECKING:
    from .composed_plan import Segment

# The model is not measured, and losing against torch is worse than leaving a gain.
_MARGIN = 1.25
# A bias, which most layers have, is added to sums in float32 that are written and read once more.
_BIAS_BYTES = 8
# Rearranging the filters and calling a dozen operators, a segment and phase; the reference has as much for expanding.
_PREPARATION_SECONDS = 60e-6


def seconds(problem: Problem, op: str, segments: tuple[Segment, ...], arch: str | None = None) -> float:
    """Estimate for one pass; on anything but a CUDA device twice the reference's, so that it is never chosen there."""
    if problem.device != "cuda":
        from . import reference

        return 2 * reference.estimate(problem, op, "expand")
    parts = sum(math.prod(len(phases(problem, axis)) for axis in segment.axes) for segment in segments)
    return _PREPARATION_SECONDS * parts + _MARGIN * gpu_cost.seconds(
        work(problem, op, segments), problem.dtype, arch
    )


def work(problem: Problem, op: str, segments: tuple[Segment, ...]) -> Work:
    """What one pass does. Batches that are done in parts count as one."""
    found = []
    for segment in segments:
        if op != "fprop" and segment.axes:
            # Zeros are put around the output's gradient.
            found.append(Work(0, 2 * problem.dtype.itemsize * math.prod(problem.output_shape), 1))
        for part in itertools.product(*(phases(problem, axis) for axis in segment.axes)):
            found.append(
                _fprop(problem, segment, part) if op == "fprop" else _gradient(problem, op, segment, part)
            )
    return Work.total(found)


def _fprop(problem: Problem, segment: Segment, part: tuple[Phase, ...]) -> Work:
    """A convolution, and for each member one sum over the taps."""
    out = problem.out_spatial
    reaches = [input_range(phase, out[axis]) for axis, phase in zip(segment.axes, part)]
    if any(reach is None for reach in reaches):
        return Work()
    sizes = [reach[1] - reach[0] for reach in reaches if reach is not None]
    channels = _channels(segment, part)
    products = _elements(problem, segment, sizes, problem.out_spatial, channels)
    inputs = _elements(problem, segment, sizes, problem.spatial, problem.in_channels // problem.groups)
    reads = sums = 0.0
    for states, _, _ in segment.members():
        for chosen in itertools.product(*(lines(p, out[axis]) for axis, p in zip(segment.axes, part))):
            counts = [run.length if (run := line.runs[state]) else 0 for line, state in zip(chosen, states)]
            pixels = _elements(problem, segment, [line.length for line in chosen], out, segment.rows)
            reads += pixels * math.prod(counts)
            sums += 1
    written = _elements(problem, segment, [out[a] for a in segment.axes], out, segment.rows) * _members(
        segment
    )
    return Work(
        _macs(problem, segment, sizes, part, "fprop"),
        problem.dtype.itemsize * (2 * inputs + products + reads + written) + _BIAS_BYTES * written,
        2 + int(sums),
    )


def _gradient(problem: Problem, op: str, segment: Segment, part: tuple[Phase, ...]) -> Work:
    """Sums of the members' gradients axis by axis, and a convolution."""
    sizes = [phase.count for phase in part]
    moved, launches, taps = 0.0, 1, 1
    for done in range(1, len(part) + 1):
        taps *= len(part[done - 1].taps)
        blocks = 2 ** (len(part) - done) * len(segment.rest)
        # Axes that are not done yet have the size of the output.
        own = [*sizes[:done], *(problem.out_spatial[axis] for axis in segment.axes[done:])]
        level = _elements(problem, segment, own, problem.out_spatial, taps * blocks * segment.rows)
        moved += 3 * level
        launches += len(part[done - 1].taps) * blocks
    sums = _elements(problem, segment, sizes, problem.out_spatial, _channels(segment, part))
    inputs = _elements(problem, segment, sizes, problem.spatial, problem.in_channels // problem.groups)
    return Work(
        _macs(problem, segment, sizes, part, op),
        problem.dtype.itemsize * (moved + sums + inputs),
        launches,
    )


def _members(segment: Segment) -> int:
    return 2 ** len(segment.axes) * len(segment.rest)


def _channels(segment: Segment, part: tuple[Phase, ...]) -> int:
    """Output channels of a group of the inner convolution."""
    return math.prod(len(phase.taps) for phase in part) * len(segment.rest) * segment.rows


def _elements(
    problem: Problem, segment: Segment, sizes: list[int], spatial: tuple[int, ...], channels: int
) -> float:
    """Elements of a tensor with `channels` a group and, along the folded axes, `sizes` instead of `spatial`."""
    extent = list(spatial)
    for axis, size in zip(segment.axes, sizes):
        extent[axis] = size
    return problem.batch * problem.groups * channels * math.prod(extent)


def _macs(problem: Problem, segment: Segment, sizes: list[int], part: tuple[Phase, ...], op: str) -> float:
    """Multiply-accumulates of the inner convolution, tiles filled up."""
    rows, channels = _channels(segment, part), problem.in_channels // problem.groups
    columns = (channels, rows) if op == "dgrad" else (rows, channels)
    spatial = problem.spatial if problem.transposed else problem.out_spatial
    positions = _elements(problem, segment, sizes, spatial, 1)
    kernel = math.prod(k for axis, k in enumerate(problem.kernel) if axis not in segment.axes)
    return positions * kernel * gpu_cost.filled(*columns)
