"""Plans the Hopper kernels: what the patch kernels run, with products of warp groups, for compute capability 9.0.

The times of the tiles are fitted to an H200 (bench/results/reference-halo-h200.jsonl), each within 5 %.
"""

from __future__ import annotations

from ...problem import Problem
from ..triton.geometry import geometry
from . import families, patch
from .limits import Limits
from .patch import Tile

LAYOUT = families.CHANNELS_LAST

# In the order of csrc/cuda/hopper/tiles.h. whv32q was measured in clusters of two, which change nothing.
TILES = (
    Tile("wh64", 1, 16, 16, 1, 64, 32, 176176, 1, 2.16, 1.56),
    Tile("wh64p", 1, 8, 8, 4, 64, 32, 197680, 1, 1.79, 1.69),
    Tile("wh64q", 1, 4, 32, 2, 64, 32, 191536, 1, 2.14, 1.60),
    Tile("wh128", 1, 8, 16, 1, 128, 32, 173088, 1, 2.51, 1.46),
    Tile("wh32p", 1, 8, 8, 8, 32, 32, 152608, 1, 2.31, 1.89),
    Tile("whv64k", 2, 8, 16, 1, 64, 64, 195616, 1, 2.85, 1.84),
    Tile("whv64p", 2, 8, 8, 2, 64, 32, 205888, 1, 2.32, 1.07),
    Tile("whv64q", 2, 4, 32, 1, 64, 32, 201792, 1, 1.79, 1.01),
    Tile("whv32", 2, 16, 16, 1, 32, 32, 200784, 1, 2.52, 1.12),
    Tile("whv32p", 2, 8, 8, 4, 32, 32, 189504, 1, 2.11, 1.24),
    Tile("whv32q", 2, 4, 32, 2, 32, 32, 181312, 1, 2.36, 1.17),
)
SLOWER: dict[int, float] = {}


def not_for_warp_groups(problem: Problem, limits: Limits) -> str | None:
    """Why none of the kernels with products of warp groups can run a problem, whatever the pass, or None."""
    if limits.capability != (9, 0):
        return f"its instructions are those of compute capability 9.0, not of {limits.arch}"
    why = patch.not_three_by_three(problem)
    if why is None and geometry(problem).x[0] > 1:
        return "its maps have no planes"
    return why


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    if op != "fprop":
        return "it has the forward pass alone"
    why = not_for_warp_groups(problem, limits)
    if why is not None:
        return why
    g = geometry(problem)
    if g.groups > 1 and g.channels % STAGE:
        return f"{STAGE} does not divide the {g.channels} input channels of a group, and there are several"
    return patch.without_room(problem, TILES, limits)


STAGE = max(tile.channels for tile in TILES)
"""Channels that fill whole stages of every tile."""


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of HopperParams."""
    tile = patch.choose(call.problem, TILES, call.limits, tuple(SLOWER.items()))
    return patch.fields(call.problem, call.strides, tile, call.activation)


def choose(problem: Problem, limits: Limits) -> Tile:
    """The quickest tile by the model."""
    return TILES[patch.choose(problem, TILES, limits, tuple(SLOWER.items()))]


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """The tile's name."""
    return (choose(problem, limits).name,)


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    tile = choose(problem, limits)
    return patch.fold_seconds(problem, tile) + tile.seconds(problem, limits, SLOWER)
