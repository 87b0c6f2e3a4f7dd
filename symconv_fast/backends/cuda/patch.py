"""Plans the patch kernels: 3 x 3, stride 1, padding 1, forward, one tie along one axis or two, on matrix units.

The times of the tiles are fitted to an H200 (bench/results/reference-halo-h200.jsonl), each within 7 %; those of other
devices follow from their matrix units and are NOT MEASURED.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ...problem import Problem
from ..gpu_cost import LAUNCH_SECONDS
from ..triton.geometry import geometry
from . import families
from .limits import DTYPES, Limits

LAYOUT = families.CHANNELS_LAST

MOST = 1 << 30
"""Of what the kernels count in 32 bits."""


class Tile(NamedTuple):
    """A kernel's tile as csrc/cuda names it: patches of pixels, orbits, channels of a stage, CTAs resident.

    A CTA takes `fixed` + stages x `step` microseconds on an H200 when as many as may be share its multiprocessor; that
    one alone of two takes three quarters is a guess.
    """

    name: str
    axes: int
    height: int
    width: int
    patches: int
    orbits: int
    channels: int
    shared_bytes: int
    resident: int
    fixed: float
    step: float

    def images(self, problem: Problem) -> tuple[int, int, int]:
        """Planes of the batch, and rows and columns as the tile has them: exchanged for a tie along rows alone."""
        g = geometry(problem)
        height, width = g.x[1:]
        return g.batch * g.x[0], *((width, height) if g.segments[0].mask == 2 else (height, width))

    def pixels(self, problem: Problem) -> int:
        """Groups of patches of a problem."""
        images, height, width = self.images(problem)
        return -(-images * -(-height // self.height) * -(-width // self.width) // self.patches)

    def blocks(self, problem: Problem) -> int:
        """Blocks of orbits, of all groups."""
        g = geometry(problem)
        return g.groups * -(-g.rows // self.orbits)

    def stages(self, problem: Problem) -> int:
        """Of the channels of a group."""
        return -(-geometry(problem).channels // self.channels)

    def fits(self, limits: Limits) -> int:
        """How many CTAs a multiprocessor has room for."""
        whole = limits.shared_bytes + 1024  # a multiprocessor has 1 KB for each CTA besides
        return (
            min(self.resident, whole // (self.shared_bytes + 1024))
            if self.shared_bytes <= limits.shared_bytes
            else 0
        )

    def seconds(self, problem: Problem, limits: Limits, slower: Mapping[int, float]) -> float:
        """Of the product: the fullest CTA's tiles, one after the other."""
        tiles = self.pixels(problem) * self.blocks(problem)
        sharing = min(self.fits(limits), -(-tiles // limits.multiprocessors))
        rounds = -(-tiles // (limits.multiprocessors * sharing))
        one = 1e-6 * (self.fixed + self.stages(problem) * self.step)
        return (
            rounds
            * one
            * (self.resident + sharing)
            / (2 * self.resident)
            * slower.get(limits.capability[0], 1.0)
        )


# In the order of csrc/cuda/patch/tiles.h.
TILES = (
    Tile("h64", 1, 16, 16, 1, 64, 32, 185088, 1, 3.28, 2.84),
    Tile("h64p", 1, 8, 8, 4, 64, 32, 201728, 1, 3.15, 2.96),
    Tile("h32", 1, 16, 16, 1, 32, 32, 89600, 2, 3.37, 2.94),
    Tile("h32p", 1, 8, 8, 4, 32, 32, 101376, 2, 4.39, 2.91),
    Tile("h32s", 1, 8, 16, 1, 32, 32, 66048, 3, 2.94, 2.20),
    Tile("hv32", 2, 16, 16, 1, 32, 32, 129792, 1, 3.59, 1.94),
    Tile("hv32p", 2, 8, 8, 4, 32, 32, 146432, 1, 3.62, 2.00),
    Tile("hv16", 2, 16, 16, 1, 16, 32, 101120, 2, 4.59, 2.26),
    Tile("hv16p", 2, 8, 8, 4, 16, 32, 82944, 2, 5.24, 2.31),
)
SLOWER = {8: 1.7}
"""mma.sync against that of an H200, a multiprocessor and major compute capability: A100, by its data sheet."""

FOLD_BYTES = 1e12  # of folded weights a second, beside what a launch takes


def not_three_by_three(problem: Problem) -> str | None:
    """What in the geometry is not for patches of pixels, as a clause, or None."""
    g = geometry(problem)
    if g.axes[1:] != ((3, 1, 1, 1),) * 2 or g.axes[0] != (1, 1, 1, 0):
        return "its patches are for kernels of 3 x 3 with stride 1, dilation 1 and padding 1"
    if len(g.segments) != 1 or g.segments[0].mask not in (1, 2, 3):
        return "it is for layers with one tie, h, v or hv, and no free rows"
    if problem.dtype not in (torch.bfloat16, torch.float16):
        return "its patches are of bfloat16 or float16"
    if g.channels % 8:
        return f"8 does not divide the {g.channels} input channels of a group"
    return None


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    if op != "fprop":
        return "it has the forward pass alone"
    return not_three_by_three(problem) or without_room(problem, TILES, limits)


def without_room(problem: Problem, tiles: Sequence[Tile], limits: Limits) -> str | None:
    """Whether no tile fits the device, or offsets do not fit 32 bits: a clause, or None."""
    fitting = _fitting(problem, tiles, limits)
    if not fitting:
        return f"no tile fits the {limits.shared_bytes >> 10} KB of shared memory of {limits.arch}"
    pixels = problem.batch * math.prod(problem.spatial)
    row = max(problem.spatial) * problem.out_channels
    if (
        pixels * problem.in_channels >= 8 * MOST
        or row > MOST // 16
        or pixels * problem.out_channels > 1 << 40
    ):
        return "a tensor is too large for offsets of 32 bits"
    if any(_too_large(problem, tiles[i]) for i in fitting):
        return "there are too many tiles, or weights, to be counted in 32 bits"
    return None


def _fitting(problem: Problem, tiles: Sequence[Tile], limits: Limits) -> list[int]:
    axes = geometry(problem).segments[0].order
    return [i for i, tile in enumerate(tiles) if tile.axes == axes and tile.fits(limits)]


def _too_large(problem: Problem, tile: Tile) -> bool:
    blocks = tile.blocks(problem)
    weights = blocks * tile.orbits * tile.stages(problem) * tile.channels
    patches = tile.pixels(problem) * tile.patches
    return weights > MOST or (patches + tile.patches) * blocks > MOST or problem.out_channels > MOST // 16


@lru_cache(maxsize=4096)
def choose(
    problem: Problem, tiles: tuple[Tile, ...], limits: Limits, slower: tuple[tuple[int, float], ...]
) -> int:
    """The quickest tile by the model, as its place in the table."""
    fitting = _fitting(problem, tiles, limits)
    return min(fitting, key=lambda i: tiles[i].seconds(problem, limits, dict(slower)))


def fields(
    problem: Problem, strides: Mapping[str, tuple[int, ...]], tile: int, activation: int
) -> dict[str, int]:
    """The fields of PatchParams, for a tile by its number."""
    g = geometry(problem)
    values = {"dtype": DTYPES[problem.dtype], "batch": g.batch, "groups": g.groups, "channels": g.channels}
    values |= {"orbits": g.rows, "mask": g.segments[0].mask, "tile": tile, "activation": activation}
    values |= dict(zip(("depth", "height", "width"), g.x))
    for name in ("x", "y"):
        n, _, z, y, x = strides[name]
        values |= {f"{name}_n": n, f"{name}_z": z, f"{name}_y": y, f"{name}_x": x}
    group, row, channel, _, y, x = strides["w"]
    return values | {"w_group": group, "w_row": row, "w_channel": channel, "w_y": y, "w_x": x}


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of PatchParams."""
    tile = choose(call.problem, TILES, call.limits, tuple(SLOWER.items()))
    return fields(call.problem, call.strides, tile, call.activation)


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """The tile's name."""
    return (TILES[choose(problem, TILES, limits, tuple(SLOWER.items()))].name,)


def fold_seconds(problem: Problem, tile: Tile) -> float:
    """Of the kernel that folds and packs the weights."""
    weights = 9 * tile.blocks(problem) * tile.orbits * tile.stages(problem) * tile.channels
    return LAUNCH_SECONDS + weights * problem.dtype.itemsize / FOLD_BYTES


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    tile = TILES[choose(problem, TILES, limits, tuple(SLOWER.items()))]
    return fold_seconds(problem, tile) + tile.seconds(problem, limits, SLOWER)
