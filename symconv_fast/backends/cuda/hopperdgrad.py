"""Plans the gradient of the input on Hopper: 3 x 3, stride 1, padding 1, one tie along one axis or two.

The times of the tiles are counted, not fitted: NOT MEASURED. A stage takes what its products or its shared memory take
(clocks of csrc/cuda/hopperdgrad/gather.h), over the share of it that the forward kernels reach on an H200.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from ...problem import Problem
from ..triton.geometry import geometry
from . import families, hopper, patch
from .limits import DTYPES, Limits
from .patch import MOST, Tile

LAYOUT = families.CHANNELS_LAST

CLOCKS = 1.8e3  # a microsecond, of an H200
REACHED = 0.7  # of the clocks of products or of shared memory, whichever are more, by the forward kernels


class Gather(Tile):
    """A tile whose orbits are channels of the gradient, and whose channels are rows of the weight."""

    def blocks(self, problem: Problem) -> int:
        """Blocks of channels, of all groups."""
        g = geometry(problem)
        return g.groups * -(-g.channels // self.orbits)

    def stages(self, problem: Problem) -> int:
        """Of the rows of a group."""
        return -(-geometry(problem).rows // self.channels)


def _tile(
    name: str, axes: int, height: int, width: int, patches: int, channels: int, shared_bytes: int
) -> Gather:
    """A tile of two groups of 128 pixels and stages of 16 rows, with its times."""
    products = 2 * 9 * 2 * channels // 2  # m64nNk16 takes N / 2 clocks: groups x taps x fragments of them
    windows = 2 * 3 * 4 * 2**axes * 4 * 512  # bytes: groups x tap columns x windows x members x warps
    memory = (windows + 2 * 9 * 2 * channels * 32) / 128
    step, fixed = max(products, memory) / (CLOCKS * REACHED), 0.5 + channels / 80
    return Gather(name, axes, height, width, patches, channels, 16, shared_bytes, 1, fixed, step)


# In the order of csrc/cuda/hopperdgrad/tiles.h.
TILES: tuple[Gather, ...] = (
    _tile("gh128p", 1, 8, 8, 4, 128, 191536),
    _tile("gh128q", 1, 4, 32, 2, 128, 191536),
    _tile("gh64p", 1, 8, 8, 4, 64, 181312),
    _tile("ghv128p", 2, 8, 8, 4, 128, 181280),
    _tile("ghv128q", 2, 4, 32, 2, 128, 181280),
    _tile("ghv64p", 2, 8, 8, 4, 64, 216112),
)
STAGE = 16
"""Rows of the weight in a stage: members lie that far apart, or a multiple."""


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    if op != "dgrad":
        return "it has the gradient of the input alone"
    why = hopper.not_for_warp_groups(problem, limits)
    if why is not None:
        return why
    g = geometry(problem)
    if g.rows % STAGE:
        return f"{STAGE} does not divide the {g.rows} rows of a group"
    return _without_room(problem, limits)


def _fitting(problem: Problem, limits: Limits) -> list[int]:
    axes = geometry(problem).segments[0].order
    return [i for i, tile in enumerate(TILES) if tile.axes == axes and tile.fits(limits)]


def _without_room(problem: Problem, limits: Limits) -> str | None:
    fitting = _fitting(problem, limits)
    if not fitting:
        return f"no tile fits the {limits.shared_bytes >> 10} KB of shared memory of {limits.arch}"
    pixels, members = problem.batch * math.prod(problem.spatial), 2 ** geometry(problem).segments[0].order
    row = max(problem.spatial) * problem.in_channels
    if (
        pixels * problem.out_channels >= 8 * MOST
        or row > MOST // 16
        or pixels * problem.in_channels > 1 << 40
    ):
        return "a tensor is too large for offsets of 32 bits"
    if problem.in_channels * members > MOST // 16 or any(_too_large(problem, TILES[i]) for i in fitting):
        return "there are too many tiles, or weights, to be counted in 32 bits"
    return None


def _too_large(problem: Problem, tile: Gather) -> bool:
    blocks = tile.blocks(problem)
    weights = blocks * tile.orbits * tile.stages(problem) * tile.channels
    return weights > MOST or (tile.pixels(problem) + 1) * tile.patches * blocks > MOST


@lru_cache(maxsize=4096)
def choose(problem: Problem, limits: Limits) -> int:
    """The quickest tile by the model, as its place in the table."""
    return min(_fitting(problem, limits), key=lambda i: TILES[i].seconds(problem, limits, {}))


def fields(problem: Problem, strides: Mapping[str, tuple[int, ...]], tile: int) -> dict[str, int]:
    """The fields of HopperdgradParams, for a tile by its number."""
    g = geometry(problem)
    values = {"dtype": DTYPES[problem.dtype], "batch": g.batch, "groups": g.groups, "channels": g.channels}
    values |= {"rows": g.rows, "mask": g.segments[0].mask, "tile": tile, "height": g.x[1], "width": g.x[2]}
    for name in ("x", "y"):
        n, _, _, y, x = strides[name]
        values |= {f"{name}_n": n, f"{name}_y": y, f"{name}_x": x}
    group, row, channel, _, y, x = strides["w"]
    return values | {"w_group": group, "w_row": row, "w_channel": channel, "w_y": y, "w_x": x}


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of HopperdgradParams."""
    return fields(call.problem, call.strides, choose(call.problem, call.limits))


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """The tile's name."""
    return (TILES[choose(problem, limits)].name,)


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    tile = TILES[choose(problem, limits)]
    return patch.fold_seconds(problem, tile) + tile.seconds(problem, limits, {})
