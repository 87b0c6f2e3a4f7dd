"""Index arithmetic of the composed backend: which tap of a mirrored axis joins which input and output position.

Along one tied axis a layer of stride s, dilation d and padding p joins input q and output r by the tap k of member g:

    s r = q + p - d J_g k   (ordinary)        r = s q - p + d J_g k   (transposed)

Within the inputs q = start + step i of one `Phase` this is r = scale i + c for every tap that reaches an output at all.
An ordinary layer has s phases (scale 1), a transposed layer one (scale s). Nothing here knows torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..problem import Problem


class Reach(NamedTuple):
    """A tap of one member: its `position` in `Phase.taps`, and its shift c in r = scale i + c."""

    position: int
    shift: int


class Run(NamedTuple):
    """Positions first, first + step, ... and, beside them, offsets in the same way; `length` of each."""

    position: int
    position_step: int
    offset: int
    offset_step: int
    length: int


@dataclass(frozen=True)
class Phase:
    """Inputs start, start + step, ... (`count` of them) of one tied axis, and the taps that multiply them.

    `taps` are indices into the reduced weight, in the order in which they become channels; `reach[b]` lists those of
    the members that are not (b = 0) or are (b = 1) mirrored along this axis.
    """

    start: int
    step: int
    count: int
    scale: int
    taps: tuple[int, ...]
    reach: tuple[tuple[Reach, ...], tuple[Reach, ...]]


class Lines(NamedTuple):
    """Outputs start, start + step, ... (`length`): each is the sum over `runs[b]` of the product at (position, q).

    Output j of them takes the product of input j + offset of the phase; both are arithmetic progressions.
    """

    start: int
    step: int
    length: int
    runs: tuple[Run | None, Run | None]


@lru_cache(maxsize=4096)
def phases(problem: Problem, axis: int) -> tuple[Phase, ...]:
    """The phases of a tied axis that have inputs and taps; together they hold every product of the convolution."""
    size, kernel, stride = problem.spatial[axis], problem.kernel[axis], problem.stride[axis]
    padding, dilation = problem.padding[axis], problem.dilation[axis]
    if problem.transposed:
        inside = tuple((k, dilation * k - padding) for k in range(kernel))
        return (_phase(0, 1, size, stride, kernel, inside),)
    found = []
    for start in range(min(stride, size)):
        shifts = [(k, start + padding - dilation * k) for k in range(kernel)]
        inside = tuple((k, c // stride) for k, c in shifts if c % stride == 0)
        if inside:
            count = -(-(size - start) // stride)
            found.append(_phase(start, stride, count, 1, kernel, inside))
    return tuple(found)


def _phase(
    start: int, step: int, count: int, scale: int, kernel: int, inside: tuple[tuple[int, int], ...]
) -> Phase:
    """`inside`: (k, shift) of the taps of an unmirrored member that reach an output from these inputs."""
    own = tuple(k for k, _ in inside)
    mirrored = tuple(kernel - 1 - k for k in own)
    # Both are residue classes, so they are the same taps or have none in common. In the first case one product
    # serves both members; in the second no tap is shared in this phase, and each member has its own.
    shared = set(own) == set(mirrored)
    taps = own if shared else own + mirrored
    plain = tuple(Reach(i, c) for i, (_, c) in enumerate(inside))
    last = len(own) - 1
    other = tuple(Reach(last - i if shared else len(own) + i, c) for i, (_, c) in enumerate(inside))
    return Phase(start, step, count, scale, taps, (plain, other))


def lines(phase: Phase, size: int) -> tuple[Lines, ...]:
    """The outputs of an axis with `size` of them, by residue modulo `phase.scale`."""
    found = []
    for start in range(min(phase.scale, size)):
        count = -(-(size - start) // phase.scale)
        runs = (_run(phase, 0, start), _run(phase, 1, start))
        found.append(Lines(start, phase.scale, count, runs))
    return tuple(found)


def _run(phase: Phase, bit: int, residue: int) -> Run | None:
    """Taps of a member whose shift has this residue, as a progression; None where there is none."""
    scale = phase.scale
    pairs = [(p, (residue - c) // scale) for p, c in phase.reach[bit] if (residue - c) % scale == 0]
    if not pairs:
        return None
    if len(pairs) == 1:
        return Run(pairs[0][0], 0, pairs[0][1], 0, 1)
    (p0, e0), (p1, e1) = pairs[:2]
    run = Run(p0, p1 - p0, e0, e1 - e0, len(pairs))
    assert all(pair == (p0 + i * run[1], e0 + i * run[3]) for i, pair in enumerate(pairs))
    return run


def input_range(phase: Phase, size: int) -> tuple[int, int] | None:
    """First and one past the last input of the phase, beyond its ends too, that `lines` of `size` outputs read.

    None where not one of them is an input that exists: the phase adds nothing.
    """
    first, past = phase.count, 0
    for line in lines(phase, size):
        for run in line.runs:
            if run is not None:
                ends = (run.offset, run.offset + run.offset_step * (run.length - 1))
                first, past = min(first, *ends), max(past, max(ends) + line.length)
    return (first, past) if first < phase.count and past > 0 else None


def output_margin(problem: Problem, axis: int) -> tuple[int, int]:
    """Zeros before and after the outputs of a tied axis that the taps of all phases reach, at least 0 each."""
    before = after = 0
    size = problem.out_spatial[axis]
    for phase in phases(problem, axis):
        shifts = [c for reach in phase.reach for _, c in reach]
        before = max(before, -min(shifts))
        after = max(after, phase.scale * (phase.count - 1) + max(shifts) - (size - 1))
    return before, after
