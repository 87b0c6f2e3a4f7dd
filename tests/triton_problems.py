# Problems of a GPU that the tests of the Triton backend plan for: of every kind one.
"""`problem` makes one, `PROBLEMS` has them by name. Nothing here needs Triton, or a GPU."""

from __future__ import annotations

import torch

from symconv_fast.problem import Problem
from symconv_fast.sides import Own, Sides
from symconv_fast.ties import Segment, Ties


def problem(
    ties: tuple[tuple[int, int], ...] = ((1, 128),),
    channels: int = 128,
    spatial: tuple[int, ...] = (28, 28),
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 32,
    groups: int = 1,
    transposed: bool = False,
    sides: Sides | None = None,
) -> Problem:
    ndim = len(spatial)
    made = Ties(ndim, groups, tuple(Segment(*tie) for tie in ties), sides)
    weight = made.weight_shape(channels // groups, (3,) * ndim, transposed)
    one = (1,) * ndim
    static = (made.flat, one, one, one, (0,) * ndim, transposed, groups, True)
    return Problem.create(((batch, channels, *spatial), weight), static, True, dtype, "cuda")


def orbits(mask: int, channels: int, ndim: int = 2, own: Own | None = None) -> Sides:
    """Of a layer whose input channels are orbits."""
    inputs = Ties(ndim, 1, (Segment(mask, channels >> mask.bit_count()),))
    return Sides(1, inputs, (own,), (3,) * ndim if own else ())


PROBLEMS = {
    "h": problem(),
    "mixed": problem(((1, 32), (2, 32), (3, 16), (0, 32))),
    "few channels": problem(((3, 12),), channels=3, dtype=torch.float32),
    "octuple": problem(((7, 16),), spatial=(8, 8, 8), dtype=torch.float16),
    "1-D": problem(((1, 32), (0, 5)), spatial=(100,), dtype=torch.float64),
    "transposed": problem(((3, 32),), transposed=True),
    "depthwise": problem(((1, 128),), groups=128),
    "orbits": problem(((3, 64),), channels=256, sides=orbits(3, 256)),
    "orbits of another tie": problem(((3, 32),), sides=orbits(1, 128), dtype=torch.float32),
    "odd filters": problem(((0, 96),), sides=Sides(1, None, (Own(3, 1),), (3, 3))),
    "odd filters of orbits": problem(((0, 96),), sides=orbits(2, 128, own=Own(3, 2)), dtype=torch.float16),
}
