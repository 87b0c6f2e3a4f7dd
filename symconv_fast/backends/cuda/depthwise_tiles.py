"""Tiles of the depthwise kernels: what fits the shared memory and the threads of a CTA, and which is quickest by count.

The counts are of instructions and bytes; what share of a device's rates they reach is a guess and NOT MEASURED.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ...problem import Problem
from ...ties import orbit_size
from ..gpu_cost import CACHE_BYTES, RATES
from ..triton.geometry import Geometry, geometry
from .limits import Limits

# As csrc/cuda/depthwise/layer.h has them.
RUN = 7
THREADS = {"fprop": 224, "dgrad": 448, "wgrad": 256}
RESIDENT = {"fprop": 3, "dgrad": 2, "wgrad": 3}

_CLOCK = 1.7e9
_LANES = 128  # instructions a clock and multiprocessor, by threads
_ISSUE_SHARE = 0.6
_FILL_SLOTS = 16.0  # for an element that is copied to shared memory
_WARPS = 16  # that hide the latencies of a multiprocessor
_BANDWIDTH_SHARE = 0.7
_SWAP_FROM = 121  # taps from which folding ties of the height is worth scattered stores
_CHUNKS = 4  # CTAs of wgrad for each that can be resident
_MOST_INT = (1 << 31) - 1
_MOST = 1 << 20


@dataclass(frozen=True)
class Axis:
    """One axis: taps, stride, dilation, padding, sizes of the layer's input and output, as DepthwiseAxis has them."""

    taps: int
    stride: int
    dilation: int
    padding: int
    x: int
    y: int

    @property
    def output_step(self) -> int:
        """Outputs that meet the same positions with other taps are so far apart."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    @property
    def tap_step(self) -> int:
        """Those taps are so far apart."""
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def row_step(self) -> int:
        """And those positions."""
        return self.stride * self.output_step

    @property
    def tap_blocks(self) -> int:
        """Blocks of RUN taps, by phases of the stride."""
        of_phase = -(-self.taps // self.tap_step)
        return self.tap_step * -(-of_phase // RUN)

    def window(self, op: str, tile: int, along: bool) -> int:
        """Positions of the map that is read that a tile of the other needs; wgrad has whole blocks of taps along."""
        taps = RUN * self.tap_blocks if along and op == "wgrad" else self.taps
        reach = self.dilation * (taps - 1)
        if op == "dgrad":
            return (tile - 1 + reach) // self.stride + 1 + (self.stride > 1)
        return (tile - 1) * self.stride + reach + 1


@dataclass(frozen=True)
class Layer:
    """A depthwise problem in two dims. One-dimensional layers have their images in the place of rows."""

    op: str
    batch: int
    height: Axis
    width: Axis
    last: bool
    channels: int
    rows: int
    masks: tuple[tuple[int, int], ...]
    """(mask, rows) of each segment."""
    itemsize: int
    bytes: int

    @property
    def swap(self) -> bool:
        """Is it folded along its height? Where threads are neighbours along the rows, they then store in others."""
        if {mask for mask, _ in self.masks} - {0} != {2}:
            return False
        return self.last or self.op == "wgrad" or self.height.taps * self.width.taps >= _SWAP_FROM

    @property
    def across(self) -> Axis:
        """The axis that is folded where it is tied."""
        return self.height if self.swap else self.width

    @property
    def along(self) -> Axis:
        """The other one: a thread has RUN neighbours of it."""
        return self.width if self.swap else self.height

    def ties(self, mask: int) -> tuple[bool, bool]:
        """Is a segment tied across, along?"""
        bits = (bool(mask & 1), bool(mask & 2))
        return bits[::-1] if self.swap else bits


@dataclass(frozen=True)
class Tile:
    """What a CTA does: channels, images, rows and columns of the map that is written; wgrad: columns of taps."""

    block: int
    images: int
    height: int
    width: int
    pairs: int = 1
    chunks: int = 1


@lru_cache(maxsize=4096)
def layer(problem: Problem, op: str) -> Layer:
    """The `Layer` of a depthwise problem of one or two dims."""
    g = geometry(problem)
    images, rows = (1, Axis(1, 1, 1, 0, g.batch, g.batch)) if problem.ndim == 1 else (g.batch, _axis(g, 1))
    return Layer(
        op=op,
        batch=images,
        height=rows,
        width=_axis(g, 2),
        last=problem.input_channels_last and problem.ndim > 1,
        channels=g.groups,
        rows=g.rows,
        masks=tuple((s.mask, s.rows) for s in g.segments),
        itemsize=problem.dtype.itemsize,
        bytes=problem.bytes,
    )


def _axis(g: Geometry, i: int) -> Axis:
    kernel, stride, dilation, padding = g.axes[i]
    return Axis(kernel, stride, dilation, padding, g.x[i], g.y[i])


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


# --- what fits -----------------------------------------------------------------------------------------------------


def _columns(a: Layer, mask: int) -> int:
    """Columns of taps of a segment, or pairs of mirrored ones."""
    return (a.across.taps + 1) // 2 if a.ties(mask)[0] else a.across.taps


def _sizes(a: Layer, t: Tile) -> tuple[int, int]:
    """A tile across and along."""
    return (t.height, t.width) if a.swap else (t.width, t.height)


def _floats(a: Layer, t: Tile, across: int, along: int) -> int:
    """Of a window in shared memory, as plan.h lays it out."""
    pitch = along | 1
    tight, lanes = across * pitch, 32 // t.block if t.block > 1 else _sizes(a, t)[0]
    return t.images * t.block * (tight + (lanes * pitch - tight) % 32)


def _window(a: Layer, t: Tile) -> tuple[int, int]:
    """A window across and along, without what loads of pairs may add."""
    across, along = _sizes(a, t)
    return a.across.window(a.op, across, False), a.along.window(a.op, along, True)


def shared_bytes(a: Layer, t: Tile) -> int:
    """The most shared memory that a CTA may need: as plan.h counts it, with room for loads of pairs of columns."""
    across, along = _window(a, t)
    extra = (0, 0) if a.last and t.block > 1 else (0, 1) if a.swap else (1, 0)
    window = max(_floats(a, t, across, along), _floats(a, t, across + extra[0], along + extra[1]))
    if a.op == "wgrad":
        members = max(orbit_size(mask) for mask, _ in a.masks)
        items = t.pairs * a.along.tap_blocks * t.block
        tiles = members * _floats(a, t, *_sizes(a, t))
        return 4 * max(window + tiles, RUN * (THREADS["wgrad"] + 1 + members * items))
    folds = a.op == "fprop" and any(a.ties(mask)[0] for mask, _ in a.masks)
    taps = _up(a.across.taps, 2 if folds else 1) * a.along.taps
    return 4 * (window * (2 if a.op == "dgrad" else 1) + t.block * (taps | 1))


def _fits(a: Layer, t: Tile, limits: Limits) -> bool:
    if a.op == "dgrad" and t.images * t.block * t.height * t.width // RUN > THREADS["dgrad"]:
        return False
    across, along = _window(a, t)
    if max(t.height, t.width) > 1 << 12 or (across + 33) * (along + 33) * t.block * t.images >= 1 << 25:
        return False
    grid = ctas(a, t) * max(1, a.rows * a.across.taps if a.op == "wgrad" else 1)
    return shared_bytes(a, t) <= limits.shared_bytes and grid <= _MOST_INT


def _tiles(a: Layer, t: Tile) -> int:
    height, width = (a.height.x, a.width.x) if a.op == "dgrad" else (a.height.y, a.width.y)
    return -(-a.batch // t.images) * -(-height // t.height) * -(-width // t.width)


def ctas(a: Layer, t: Tile) -> int:
    """CTAs of the largest grid."""
    blocks = -(-a.channels // t.block)
    if a.op != "wgrad":
        return blocks * _tiles(a, t)
    return blocks * t.chunks * max(-(-_columns(a, mask) // t.pairs) for mask, _ in a.masks)


def _units(a: Layer) -> tuple[int, int]:
    """What divides the height and the width of a tile."""
    run = {"fprop": RUN * a.along.output_step, "dgrad": RUN * a.along.row_step, "wgrad": 1}[a.op]
    return (1, run) if a.swap else (run, 1)


def _splits(size: int, unit: int) -> list[int]:
    """Sizes of tiles that cut an axis in about equal parts."""
    found = {_up(-(-size // n), unit) for n in (1, 2, 3, 4, 8, 16)} | {unit}
    return sorted(n for n in found if n <= _up(size, unit))


def candidates(a: Layer, limits: Limits) -> Iterator[Tile]:
    """Tiles that fit."""
    height, width = (a.height.x, a.width.x) if a.op == "dgrad" else (a.height.y, a.width.y)
    heights, widths = _splits(height, _units(a)[0]), _splits(width, _units(a)[1])
    blocks = [n for n in (32, 16, 8, 4, 2, 1) if n < 2 * a.channels] if a.last else [1]
    for block in blocks:
        for h in heights:
            for w in widths:
                whole = h >= height and w >= width
                for images in (1, *((2, 4, 8, 32) if whole else ())):
                    if images <= a.batch:
                        tile = _with_shares(a, Tile(block, images, h, w), limits)
                        if tile is not None and _fits(a, tile, limits):
                            yield tile


def _with_shares(a: Layer, t: Tile, limits: Limits) -> Tile | None:
    """Of wgrad: how many columns of taps a CTA has, and into how many chunks the tiles are divided."""
    if a.op != "wgrad":
        return t
    blocks = t.block * a.along.tap_blocks
    most = THREADS["wgrad"] // blocks
    if most < 1:
        return None
    columns = max(_columns(a, mask) for mask, _ in a.masks)
    pairs = -(-columns // -(-columns // most))
    alone = replace(t, pairs=pairs)
    wanted = _CHUNKS * RESIDENT["wgrad"] * limits.multiprocessors
    chunks = min(_tiles(a, t), max(1, wanted // (ctas(a, alone) * a.rows)), 1 << 12)
    each = -(-_tiles(a, t) // chunks)
    return replace(alone, chunks=-(-_tiles(a, t) // each))


# --- which is quickest ---------------------------------------------------------------------------------------------


def _column_slots(a: Layer, mask: int) -> float:
    """Instructions of a thread for a column of taps: fprop and dgrad for RUN outputs, wgrad for a column of positions
    and for each of these; read from the compiled kernels.
    """
    s, (fold, two) = a.along, a.ties(mask)
    reads = 2 if fold else 1
    start = 2 * (RUN - 1) * reads + 30
    if a.op == "dgrad":
        terms = orbit_size(mask) // reads
        return terms * (s.taps / s.tap_step * (RUN + 2 * reads + 1) + start)
    sets = reads * (2 if two else 1)
    one = RUN * sets + sets + 2 * reads + 1
    return one if a.op == "wgrad" else s.taps * one + start * s.tap_step


def _cta_slots(a: Layer, t: Tile) -> float:
    """Instructions of all threads of a CTA."""
    window = math.prod(_window(a, t)) * t.images * t.block
    filling = (
        _FILL_SLOTS * window * (sum(n * orbit_size(mask) for mask, n in a.masks) if a.op == "dgrad" else 1)
    )
    if a.op == "wgrad":
        return _wgrad_slots(a, t, filling)
    units = t.images * t.block * t.height * t.width // RUN
    threads = min(THREADS[a.op], _up(units, 32))
    multiplying = sum(
        rows * (a.across.taps / (2 if a.op == "fprop" and a.ties(mask)[0] else 1)) * _column_slots(a, mask)
        for mask, rows in a.masks
    )
    stores = 12 * RUN * (sum(rows * orbit_size(mask) for mask, rows in a.masks) if a.op == "fprop" else 1)
    if a.op == "dgrad":
        multiplying /= a.across.tap_step
    return filling + _up(units, threads) * (multiplying + stores + 150)


def _wgrad_slots(a: Layer, t: Tile, filling: float) -> float:
    """The same of wgrad, for the segment that takes longest: all tiles of a chunk, and its sums."""
    slowest = 0.0
    across, along = _sizes(a, t)
    for mask, _ in a.masks:
        fold, two = a.ties(mask)
        items = min(t.pairs, _columns(a, mask)) * a.along.tap_blocks
        parts = max(1, THREADS["wgrad"] // (t.block * items))
        columns = -(-t.images * across // parts)
        members = (2 if fold else 1) * (2 if two else 1)
        thread = columns * (along * _column_slots(a, mask) + 50 * a.along.output_step)
        tile = filling + _FILL_SLOTS * members * t.images * t.block * t.height * t.width
        slowest = max(slowest, tile + THREADS["wgrad"] * thread)
    return slowest * -(-_tiles(a, t) // t.chunks) + THREADS["wgrad"] * 600


def kernel_seconds(a: Layer, t: Tile, limits: Limits) -> float:
    """Of the products and the caches, without the memory: whole rounds of CTAs over the multiprocessors."""
    shared = shared_bytes(a, t) + 1024
    units = t.images * t.block * t.height * t.width // RUN
    threads = THREADS[a.op] if a.op == "wgrad" else min(THREADS[a.op], _up(units, 32))
    resident = max(
        1, min(RESIDENT[a.op] * THREADS[a.op] // threads, (limits.shared_bytes + 1024) // shared, 32)
    )
    grid = ctas(a, t) * (a.rows if a.op == "wgrad" else 1)
    rounds = grid / (limits.multiprocessors * resident)
    rounds = math.ceil(rounds) if rounds < 4 else rounds
    hidden = min(1.0, resident * threads / 32 / _WARPS)
    slots = resident * _cta_slots(a, t) / (_LANES * _ISSUE_SHARE * hidden)
    window = math.prod(_window(a, t)) * t.images * t.block
    fetched = window * a.itemsize * (-(-_tiles(a, t) // t.chunks) if a.op == "wgrad" else 1)
    # Fewer channels than fill a sector of the cache fetch all of it, and store to it more often.
    sector = max(1.0, 32 / (t.block * a.itemsize)) if a.last else 1.0
    return rounds * (slots + resident * fetched * sector / CACHE_BYTES) / _CLOCK


@lru_cache(maxsize=4096)
def choose(problem: Problem, op: str, limits: Limits) -> Tile | None:
    """The quickest tile by the model; None if none fits."""
    a = layer(problem, op)
    return min(candidates(a, limits), key=lambda t: kernel_seconds(a, t, limits), default=None)


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """Of the kernels of a pass, that of the memory included but without launches."""
    a, tile = layer(problem, op), choose(problem, op, limits)
    assert tile is not None, "refused without a tile"
    arch = "sm_100" if limits.capability[0] >= 10 else "sm_90" if limits.capability[0] == 9 else "sm_80"
    moved = a.bytes / (_BANDWIDTH_SHARE * RATES[arch].bandwidth)
    if op == "wgrad":
        moved += 8 * tile.chunks * a.rows * a.height.taps * a.width.taps * a.channels / RATES[arch].bandwidth
    return max(kernel_seconds(a, tile, limits), moved)
