"""Tiles of the depthwise kernels: what fits the shared memory and the threads of a CTA, and which is quickest by count.

The counts are of instructions and bytes; what share of a device's rates they reach is a guess and NOT MEASURED.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ...problem import Problem
from ..gpu_cost import RATES
from ..triton.geometry import Geometry, geometry
from .limits import Limits

# As csrc/cuda/depthwise/layer.h has them.
RUN = 7
THREADS = {"fprop": 256, "dgrad": 512, "wgrad": 256}
RESIDENT = {"fprop": 3, "dgrad": 2, "wgrad": 3}

_CLOCK = 1.7e9
_LANES = 128  # instructions a clock and multiprocessor, by threads
_ISSUE_SHARE = 0.6
_WARPS = 16  # that hide the latencies of a multiprocessor
_CACHE_BYTES = 28  # a clock and multiprocessor from the second-level cache
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

    def window(self, op: str, tile: int) -> int:
        """Positions of the map that is read that a tile of the other needs."""
        reach = self.dilation * (self.taps - 1)
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
    bytes: int

    @property
    def swap(self) -> bool:
        """Are ties of the height alone folded along it? Where lanes are columns, neighbours then store in other rows."""
        masks = {mask for mask, _ in self.masks}
        if 2 not in masks or (self.op == "dgrad" and masks & {1, 3}):
            return False
        return self.last or self.op == "wgrad" or self.height.taps * self.width.taps >= _SWAP_FROM

    def axes(self, mask: int) -> tuple[Axis, Axis, bool, bool]:
        """(the folded axis, the other one, tied along the first, along the second) for a segment."""
        if self.swap and (mask == 2 or self.op == "dgrad"):
            return self.height, self.width, bool(mask & 2), bool(mask & 1)
        return self.width, self.height, bool(mask & 1), bool(mask & 2)


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
        bytes=problem.bytes,
    )


def _axis(g: Geometry, i: int) -> Axis:
    kernel, stride, dilation, padding = g.axes[i]
    return Axis(kernel, stride, dilation, padding, g.x[i], g.y[i])


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


# --- what fits -----------------------------------------------------------------------------------------------------


def tap_blocks(axis: Axis) -> int:
    """Blocks of RUN taps of an axis, by phases of the stride."""
    return axis.tap_step * -(-(-(-axis.taps // axis.tap_step)) // RUN)


def _columns(a: Layer, mask: int) -> int:
    """Columns of taps of a segment, or pairs of mirrored ones."""
    f, _, fold, _ = a.axes(mask)
    return (f.taps + 1) // 2 if fold else f.taps


def shared_bytes(a: Layer, t: Tile) -> int:
    """Shared memory of a CTA, as plan.h counts it."""
    pixel = 4 * t.block
    window = a.height.window(a.op, t.height) * ((a.width.window(a.op, t.width) + 1) | 1) * pixel * t.images
    if a.op == "wgrad":
        members = max(1 << mask.bit_count() for mask, _ in a.masks)
        items = max(t.pairs * tap_blocks(a.axes(mask)[1]) * t.block for mask, _ in a.masks)
        sums = 4 * RUN * (THREADS["wgrad"] + members * items)
        return max(window + members * t.images * t.height * (t.width | 1) * pixel, sums)
    taps = a.height.taps * a.width.taps
    if a.op == "fprop":
        for mask, _ in a.masks:
            f, s, fold, _ = a.axes(mask)
            taps = max(taps, _up(f.taps, 2) * s.taps if fold else 0)
    return window * (2 if a.op == "dgrad" else 1) + 4 * (t.block | 1) * taps


def _fits(a: Layer, t: Tile, limits: Limits) -> bool:
    if a.op == "dgrad" and t.images * t.block * t.height * t.width // RUN > THREADS["dgrad"]:
        return False
    rows, columns = a.height.window(a.op, t.height), a.width.window(a.op, t.width)
    if max(t.height, t.width) > 1 << 12 or rows * columns * t.block * t.images >= 1 << 25:
        return False
    grid = ctas(a, t) * max(1, a.rows * max(a.height.taps, a.width.taps) if a.op == "wgrad" else 1)
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
    if a.op == "wgrad":
        return 1, 1
    height = RUN * (a.height.row_step if a.op == "dgrad" else a.height.output_step)
    width = RUN * (a.width.row_step if a.op == "dgrad" else a.width.output_step)
    if a.op == "dgrad":
        return (1, width) if a.swap else (height, 1)
    return height, width if a.swap else 1


def _splits(size: int, unit: int) -> list[int]:
    """Sizes of tiles that cut an axis in about equal parts."""
    parts = (1, 2, 3, 4, 6, 8, 12, 16, 32)
    found = {_up(-(-size // n), unit) for n in parts} | {unit, 4 * unit}
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
                for images in (1, *((2, 4, 8, 16, 32) if whole else ())):
                    if images <= a.batch:
                        tile = _with_shares(a, Tile(block, images, h, w), limits)
                        if tile is not None and _fits(a, tile, limits):
                            yield tile


def _with_shares(a: Layer, t: Tile, limits: Limits) -> Tile | None:
    """Of wgrad: how many columns of taps a CTA has, and into how many chunks the tiles are divided."""
    if a.op != "wgrad":
        return t
    blocks = t.block * max(tap_blocks(a.axes(mask)[1]) for mask, _ in a.masks)
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
    """Instructions of a thread for one column of taps: fprop and dgrad for RUN outputs, wgrad for one position."""
    _, s, fold, two = a.axes(mask)
    if a.op == "wgrad":
        sets = (2 if fold else 1) * (2 if two else 1)
        return RUN * sets + 1.5 * (sets + 1 + fold) + 4
    reads = 2 if fold else 1
    if a.op == "fprop":
        sets = reads * (2 if two else 1)
        return s.taps * (RUN * sets + 1.5 * (reads + sets) + 4) + (RUN - 1) * 3 * reads * s.tap_step
    taps = s.taps / s.tap_step
    terms = 1 << (mask.bit_count() - (1 if fold else 0))
    return terms * (taps * (RUN + 1.5 * (reads + 1) + 4) + (RUN - 1) * 3 * reads)


def _cta_slots(a: Layer, t: Tile) -> float:
    """Instructions of all threads of a CTA."""
    window = a.height.window(a.op, t.height) * a.width.window(a.op, t.width) * t.images * t.block
    filling = 10.0 * window * (sum(n << mask.bit_count() for mask, n in a.masks) if a.op == "dgrad" else 1)
    if a.op == "wgrad":
        return _wgrad_slots(a, t, filling)
    units = t.images * t.block * t.height * t.width // RUN
    threads = min(THREADS[a.op], _up(units, 32))
    multiplying = sum(
        rows * (a.axes(mask)[0].taps / (2 if a.op == "fprop" and a.axes(mask)[2] else 1)) * _column_slots(a, mask)
        for mask, rows in a.masks
    )
    stores = 12 * RUN * (sum(rows << mask.bit_count() for mask, rows in a.masks) if a.op == "fprop" else 1)
    if a.op == "dgrad":
        multiplying /= a.axes(0)[0].tap_step
    return filling + _up(units, threads) * (multiplying + stores + 150)


def _wgrad_slots(a: Layer, t: Tile, filling: float) -> float:
    """The same of wgrad, for the segment that takes longest: all tiles of a chunk, and its sums."""
    slowest = 0.0
    for mask, _ in a.masks:
        f, s, fold, two = a.axes(mask)
        along, across = (t.height, t.width) if f is a.width else (t.width, t.height)
        items = min(t.pairs, _columns(a, mask)) * tap_blocks(s)
        parts = max(1, THREADS["wgrad"] // (t.block * items))
        columns = -(-t.images * across // parts)
        members = (2 if fold else 1) * (2 if two else 1)
        thread = columns * (along * _column_slots(a, mask) + (RUN - 1) * 6 * s.output_step + 40)
        tile = filling + 10 * members * t.images * t.block * t.height * t.width
        slowest = max(slowest, tile + THREADS["wgrad"] * thread)
    return slowest * -(-_tiles(a, t) // t.chunks) + THREADS["wgrad"] * 600


def kernel_seconds(a: Layer, t: Tile, limits: Limits) -> float:
    """Of the products and the caches, without the memory: whole rounds of CTAs over the multiprocessors."""
    shared = shared_bytes(a, t) + 1024
    units = t.images * t.block * t.height * t.width // RUN
    threads = THREADS[a.op] if a.op == "wgrad" else min(THREADS[a.op], _up(units, 32))
    resident = max(1, min(RESIDENT[a.op] * THREADS[a.op] // threads, (limits.shared_bytes + 1024) // shared, 32))
    grid = ctas(a, t) * (a.rows if a.op == "wgrad" else 1)
    rounds = grid / (limits.multiprocessors * resident)
    rounds = math.ceil(rounds) if rounds < 4 else rounds
    hidden = min(1.0, resident * threads / 32 / _WARPS)
    slots = resident * _cta_slots(a, t) / (_LANES * _ISSUE_SHARE * hidden)
    window = a.height.window(a.op, t.height) * a.width.window(a.op, t.width) * t.images * t.block
    fetched = window * 4 * (-(-_tiles(a, t) // t.chunks) if a.op == "wgrad" else 1)
    # Fewer channels than fill a sector of the cache fetch all of it.
    sector = max(1.0, 8 / t.block) if a.last else 1.0
    return rounds * max(slots, resident * fetched * sector / _CACHE_BYTES) / _CLOCK


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
