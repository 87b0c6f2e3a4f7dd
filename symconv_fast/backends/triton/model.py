"""What a pass would cost on a GPU, by arithmetic: bytes through the second-level cache, products, memory, launches.

Rates of the cache are measured on an H200 with torch 2.11 and Triton 3.6 (2026-11-29, bfloat16, channels innermost,
64 to 512 channels): what the tiles of these kernels ask of it decides their time. Those of other architectures follow
from their number of multiprocessors and clock and are NOT MEASURED. A layer goes to these kernels only where they win
by a margin.
"""

from __future__ import annotations

import math

from ...problem import Problem
from ...ties import orbit_size
from .. import gpu_cost
from ..gpu_cost import RATES
from . import configs, launch
from .geometry import Geometry, Segment, geometry
from .launch import Launch, Options
from .letters import letters

INTERPRETED_SECONDS = 1e6

# Bytes a second of the second-level cache, and how many of them the quickest tile asks for, by kernel and number of
# tied axes: measured on 32 x 256@56 and 32 x 256@15^3. Above 1 a part comes from nearer by.
CACHE = {"sm_80": 3.5e12, "sm_90": 6.0e12, "sm_100": 8.0e12, "gfx942": 6.0e12}
CACHE_SHARE = {
    "fprop_fold": (1.0, 1.0, 0.87, 1.0),
    "fprop_direct": (1.0,) * 4,
    "dgrad": (1.0, 1.0, 1.27, 1.2),
    "wgrad": (1.0, 0.96, 1.47, 0.69),
}
# Shares of the nominal rate that the products reach where the cache does not bind; float32 and float64 without tensor
# cores are far from theirs. Depthwise layers: of the memory bandwidth, and of the scalar units, which have an address
# and a mask to compute for every tap of every pixel.
SHARE, SCALAR_SHARE, DEPTHWISE_SHARES = 0.60, 0.3, (0.4, 0.08)
MARGIN = 1.1


def seconds(problem: Problem, op: str, algorithm: str, arch: str, precision: str) -> float:
    """Estimate of one pass, beside those of `gpu_cost`; `precision` as there."""
    return MARGIN * _seconds(problem, op, algorithm, arch, precision)


def _seconds(problem: Problem, op: str, algorithm: str, arch: str, precision: str) -> float:
    g = geometry(problem)
    if launch.is_adjoint(problem, op):
        g = g.adjoint()
    moved = problem.bytes / RATES[arch].bandwidth
    if g.depthwise:
        return gpu_cost.LAUNCH_SECONDS + gpu_cost.depthwise_seconds(problem, arch, DEPTHWISE_SHARES)
    rate, units = gpu_cost.products(problem.dtype, arch, precision)
    launches = launch.plan(problem, op, algorithm, options=Options(arch=arch, precision=precision)).launches
    products = problem.macs_folded if algorithm == "fold" else problem.macs_dense
    total = products * _padded_share(g) / (rate * (SHARE if units else SCALAR_SHARE))
    if units:
        total = max(total, sum(_cache_seconds(problem, g, step, arch) for step in launches))
    copies = sum(2 * n for n in _copied(problem)) * problem.dtype.itemsize / RATES[arch].bandwidth
    return len(launches) * gpu_cost.LAUNCH_SECONDS + max(total, moved) + copies


def _cache_seconds(problem: Problem, g: Geometry, step: Launch, arch: str) -> float:
    """Time of a launch if the second-level cache binds: whole rounds of programs over the multiprocessors."""
    segments = [s for s in g.segments if any(entry[1] == s.row for entry in step.constants.get("SEGS", ()))]
    if step.kernel not in _TILE or not segments:
        return 0.0
    order = g.order(segments)
    fetched = _TILE[step.kernel](g, step, segments) * problem.dtype.itemsize
    multiprocessors = configs.MULTIPROCESSORS[arch]
    rounds = max(1.0, step.grid / multiprocessors)
    rounds = math.ceil(rounds) if rounds < WHOLE_ROUNDS else rounds
    return rounds * fetched * multiprocessors / (CACHE[arch] * CACHE_SHARE[step.kernel][order])


WHOLE_ROUNDS = 4  # with more of them, programs that end early make room for the next ones


def _blocks(size: int, width: int) -> int:
    """`size` filled up to whole blocks."""
    return -(-size // width) * width


def _phases(g: Geometry) -> int:
    """Phases of a map that is scattered to."""
    return math.prod(axis[1] for axis in g.axes)


def _fprop_tile(g: Geometry, step: Launch, segments: list[Segment]) -> float:
    """Elements that a program of fprop fetches: inputs of every tap, and the weights that are kept of it."""
    c = step.constants
    depth = g.depth if c["PACKED"] else _blocks(g.depth, c["BK"])
    inputs = g.read_taps * orbit_size(g.moved) * c["BM"]
    total = depth * (inputs + g.kept_taps * orbit_size(g.both) * c["BN"])
    # Taps of a phase alone, as in `_dgrad_tile`; of other transposed layers nothing was measured that speaks for it.
    return total / (_phases(g) if c["SCATTER"] and g.sided else 1)


def _dgrad_tile(g: Geometry, step: Launch, segments: list[Segment]) -> float:
    """The same of dgrad: every member of an orbit for each tap of a phase."""
    c, total = step.constants, 0
    for s in segments:
        depth = s.rows if c["PACKED"] else _blocks(s.rows, c["BK"])
        total += depth * ((1 << s.order) * c["BM"] + c["BN"])
    return g.taps * total / (_phases(g) if c["SCATTER"] else 1)


def _wgrad_tile(g: Geometry, step: Launch, segments: list[Segment]) -> float:
    """The same of wgrad, over its part of the positions; of the tie with the largest orbits."""
    c = step.constants
    extents, _ = g.phased(g.x, c["SCATTER"])
    positions = math.prod(_blocks(n, size) for n, size in zip((g.batch, *extents), c["SIZES"])) / c["SPLITS"]
    members = 1 << g.order(segments)
    return positions * (c["TAPS"] * members * c["BM"] + orbit_size(g.both) * c["BN"])


_TILE = {"fprop_fold": _fprop_tile, "fprop_direct": _fprop_tile, "dgrad": _dgrad_tile, "wgrad": _wgrad_tile}


def _padded_share(g: Geometry) -> float:
    """Multiply-adds on zeros that fill matrix tiles, as a factor: at least 16 orbits and 16 channels."""

    def fill(n: int) -> float:
        return _blocks(n, 16) / n

    channels = 1.3 if g.depth < configs.PACK_BELOW else fill(g.depth)  # integer work of packed taps
    return channels * sum(fill(s.rows) * s.rows for s in g.segments) / g.rows


def _copied(problem: Problem) -> list[int]:
    """Elements of the tensors that are copied, to have their channels innermost or in the order of the kernels."""
    sizes = []
    if not problem.input_channels_last or letters(problem).order:
        sizes.append(problem.batch * problem.in_channels * math.prod(problem.spatial))
    if not problem.channels_last:
        sizes.append(problem.batch * problem.out_channels * math.prod(problem.out_spatial))
    return sizes
