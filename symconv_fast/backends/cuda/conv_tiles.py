"""Tiles of the general matrix kernels: what a pass contracts, shared memory, stages, time by a model.

What is counted here is what csrc/cuda/conv/layout.h counts. The rates of matrix units are an H200's (measured) and data
sheets'; how copies, products and stores overlap is guessed from the kernels of bench/micro there. NOT MEASURED here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from ...problem import Problem
from ...ties import rank
from ..gpu_cost import LAUNCH_SECONDS
from ..triton.geometry import Geometry, Segment, geometry
from .limits import Limits

PITCH, CHUNK = 80, 64
"""Bytes of a pixel in shared memory, and those of them that are channels."""

MOST_PLACES = 1 << 14

FRAGMENTS = (4, 4, 2, 1)
COLUMNS = (64, 32, 32, 32)
"""Of a warp in the forward pass, by the number of tied axes: fragments of 16 pixels, orbits."""

GRADIENT_FRAGMENTS = {128: 2, 64: 4}
"""Fragments of a warp by its columns, for the gradient of the input."""


LONG_STAGE = 6
"""Products of a stage that take longer than a copy: two such stages are enough, of shorter ones there are three."""

BUSY = 1.35
"""By which the main loop takes longer than the matrix units or shared memory alone."""

COPY_CYCLES, STORE_CYCLES, STAGE_CYCLES = 0.025, 0.03, 150
"""Of a multiprocessor for a byte copied, for one stored, and for a stage; a part of them is hidden."""

IDLE = 0.02
"""Of the time of all work, spread over the multiprocessors, that is added."""

PACK_BYTES = 1e12
"""Of packed weights a second."""

CLOCK = {8: 1.41e9, 9: 1.785e9, 10: 1.85e9}
"""By major compute capability."""

CTAS = ((8, 256), (8, 512), (8, 128), (8, 64), (4, 128), (4, 256), (4, 64))
"""Warps and pixels that are tried."""


class Part:
    """Rows that share a tie, with the axes along which they are folded or along which their members are added.

    `products` are those of each entry of the table of taps, class by class.
    """

    def __init__(self, segment: Segment, mask: int, products: tuple[tuple[int, ...], ...]) -> None:
        self.segment, self.mask, self.products = segment, mask, products
        self.order = rank(mask)
        self.entries = sum(map(len, products))
        self.total = sum(map(sum, products))
        self.mean = self.total / len(products)
        self.longest = max(map(len, products))
        self.fewest = min((len(group) for group in products if group), default=1)
        self.blocks: dict[int, tuple[int, int]] = {}

    def block(self, most: int) -> tuple[int, int]:
        """(entries of a stage, most products that they make) of stages of `most` products; (0, 0) if none fits."""
        if most not in self.blocks:
            self.blocks[most] = self._block(most)
        return self.blocks[most]

    def _block(self, most: int) -> tuple[int, int]:
        if self.entries == self.total:
            entries = -(-self.longest // -(-self.longest // most)) if most else 0
            return entries, entries
        for blocks in range(1, self.longest + 1):
            entries = -(-self.longest // blocks)
            largest = max(
                sum(group[i : i + entries]) for group in self.products for i in range(0, len(group), entries)
            )
            if largest <= most:
                return entries, largest
        return 0, 0


class Axis(NamedTuple):
    """One axis of the pass: what is read and written, classes of pixels, and how pixels lie in the halo tile."""

    source: int
    target: int
    classes: int
    step: int
    reach: int
    sample: int

    def places(self, tile: int) -> int:
        """Places of the halo tile under so many pixels."""
        extent = (tile - 1) * self.step + self.reach + 1
        return self.step * -(-extent // self.step)


class Pass:
    """One pass of a problem, where members are not added along the axes of `unfolded`.

    `axes` are depth, height, width; `parts` what is contracted separately, in the order of the kernels.
    """

    def __init__(self, problem: Problem, gradient: bool, unfolded: int) -> None:
        self.problem, self.gradient, self.unfolded = problem, gradient, unfolded
        self.g = geometry(problem)
        self.bytes = problem.dtype.itemsize
        self.axes = _axes(self.g, gradient)
        self.parts = _parts(self.g, gradient, unfolded)

    @cached_property
    def table(self) -> int:
        """Lines of the table of taps: a range for each part and class, a line for each class, entries."""
        classes = math.prod(axis.classes for axis in self.axes)
        return classes + sum(classes + part.entries for part in self.parts)


def _axes(g: Geometry, gradient: bool) -> tuple[Axis, ...]:
    axes = []
    for x, y, (kernel, stride, dilation, _) in zip(g.x, g.y, g.axes):
        if gradient:
            axes.append(Axis(y, x, stride, 1, dilation * (kernel - 1) // stride, 1))
        else:
            sample = stride if kernel == 1 else math.gcd(stride, dilation)
            axes.append(Axis(x, y, 1, stride // sample, dilation * (kernel - 1) // sample, sample))
    return tuple(axes)


def _parts(g: Geometry, gradient: bool, unfolded: int) -> tuple[Part, ...]:
    parts = []
    for segment in g.segments:
        kept = unfolded & segment.mask if gradient else 0
        fixed = kept
        while True:
            mask = segment.mask & ~kept
            count = _gradient_products if gradient else _forward_products
            parts.append(Part(segment, mask, count(g, mask, fixed)))
            if not fixed:
                break
            fixed = (fixed - 1) & kept
    return tuple(parts)


def _forward_products(g: Geometry, mask: int, fixed: int) -> tuple[tuple[int, ...], ...]:
    """Pairs of taps along each folded axis make two products, other taps one."""
    along = []
    for bit, (kernel, *_) in zip((4, 2, 1), g.axes):
        along.append([2] * (kernel // 2) + [1] * (kernel % 2) if mask & bit else [1] * kernel)
    return (tuple(math.prod(each) for each in itertools.product(*along)),)


def _gradient_products(g: Geometry, mask: int, fixed: int) -> tuple[tuple[int, ...], ...]:
    """One for each tap that some member reads for the pixels of a class."""
    counts = []
    for bit, (kernel, stride, dilation, padding) in zip((4, 2, 1), g.axes):
        along = []
        for c in range(stride):
            plain = [(c + padding - dilation * tap) % stride == 0 for tap in range(kernel)]
            mirrored = plain[::-1]
            taken = (
                [a or b for a, b in zip(plain, mirrored)]
                if mask & bit
                else mirrored
                if fixed & bit
                else plain
            )
            along.append(sum(taken))
        counts.append(along)
    return tuple((1,) * (x * y * z) for z in counts[0] for y in counts[1] for x in counts[2])


# --- tiles ---------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Pixels of a tile (images, planes, rows, columns), of a CTA, warps, columns of a warp (backward)."""

    size: tuple[int, int, int, int]
    pixels: int
    warps: int
    columns: int


class Plan:
    """A tile with everything that follows from it: shared memory, stages, tiles, time."""

    def __init__(self, work: Pass, tile: Tile, limits: Limits) -> None:
        self.work, self.tile, self.limits, self.parts = work, tile, limits, work.parts
        self.stages, self.weight_bytes, self.shared_bytes, self.resident = 0, 0, 0, 0
        for resident in (2, 1) if tile.warps <= 4 else (1,):
            for stages, least in ((2, LONG_STAGE), (3, 1), (2, 1)):
                if not self.resident:
                    self._fit(stages, resident, least)

    def _fit(self, stages: int, resident: int, least: int) -> None:
        """Take so many stages and CTAs if shared memory has room for them, with `least` products in the longest."""
        room = (self.limits.shared_bytes + 1024) // resident - 1024
        halo = -(-self.slices * self.places * PITCH // 128) * 128
        left = room - self.work.table * 16 - self.tile.pixels * 8 - self.tile.warps * 80 - self.places * 4
        for slots in range(2, stages + 1):
            most = left // stages - slots * halo // stages
            if most < 2 * CHUNK:
                return
            blocks = [part.block(most // (self.columns(part) * CHUNK)) for part in self.parts]
            if not all(entries for entries, _ in blocks) or max(largest for _, largest in blocks) < least:
                return
            fewest = min(-(-part.fewest // entries) for part, (entries, _) in zip(self.parts, blocks))
            if 1 + -(-(stages - 1) // fewest) <= slots:
                sizes = [n * self.columns(part) * CHUNK for part, (_, n) in zip(self.parts, blocks)]
                self.stages, self.resident, self.weight_bytes = stages, resident, max(sizes)
                self.shared_bytes = room
                return

    @cached_property
    def slices(self) -> int:
        """Halo tiles of a stage."""
        return max(1 << part.order for part in self.parts) if self.work.gradient else 1

    def columns(self, part: Part) -> int:
        """Of a CTA."""
        if self.work.gradient:
            columns, fragments = self.tile.columns, GRADIENT_FRAGMENTS[self.tile.columns]
        else:
            columns, fragments = COLUMNS[part.order], FRAGMENTS[part.order]
        return columns * (self.tile.warps * fragments * 16 // self.tile.pixels)

    @cached_property
    def places(self) -> int:
        """Pixels of a halo tile, with what keeps windows off each other's banks."""
        pitch, pixels = 1, 1
        for axis, size in zip(reversed(self.work.axes), reversed(self.tile.size[1:])):
            pixels *= size
            pitch *= axis.places(size)
            if pixels % 8:
                pitch += (pixels - pitch) % 8
        return pitch * self.tile.size[0]

    @cached_property
    def pixel_tiles(self) -> int:
        """Of all images and classes."""
        tiles = -(-self.work.g.batch // self.tile.size[0])
        for axis, size in zip(self.work.axes, self.tile.size[1:]):
            of_class = -(-axis.target // axis.classes)
            tiles *= -(-of_class // size) * axis.classes
        return tiles

    def blocks(self, part: Part) -> int:
        """Blocks of columns of a group."""
        wanted = self.work.g.channels if self.work.gradient else part.segment.rows
        return -(-wanted // self.columns(part))

    @cached_property
    def tiles(self) -> int:
        """Of the whole pass."""
        blocks = [self.blocks(part) for part in self.parts]
        return self.pixel_tiles * self.work.g.groups * (blocks[0] if self.work.gradient else sum(blocks))

    @cached_property
    def weight_pieces(self) -> int:
        """Packed weights, in 16 bytes."""
        return sum(
            self.work.g.groups * self.blocks(part) * self._chunks(part) * part.total * self.columns(part) * 4
            for part in self.parts
        )

    def _working(self, part: Part) -> float:
        """Share of the warps that have columns."""
        wanted = self.work.g.channels if self.work.gradient else part.segment.rows
        width = self.tile.columns or COLUMNS[part.order]
        return -(-wanted // width) * width / (self.blocks(part) * self.columns(part))

    def _depth(self, part: Part) -> int:
        return part.segment.rows if self.work.gradient else self.work.g.channels

    def _chunks(self, part: Part) -> int:
        return -(-self._depth(part) * self.work.bytes // CHUNK)

    def _cycles(self, part: Part) -> float:
        """Of a CTA's tile of a part, on a multiprocessor of its own, averaged over the classes of pixels."""
        gradient, order = self.work.gradient, part.order
        products = part.mean * -(-self._depth(part) * self.work.bytes // 32) * self.tile.warps
        fragments = GRADIENT_FRAGMENTS[self.tile.columns] if gradient else FRAGMENTS[order]
        pairs = (self.tile.columns if gradient else COLUMNS[order]) / 16
        multiplied = products * fragments * 2 * pairs / _instructions(self.limits)
        shared = products * (fragments * ((1 << order) if gradient else 1) + pairs) * 4
        slices = 1 << order if gradient else 1
        copied = self._chunks(part) * CHUNK * (slices * self.places + part.mean * self.columns(part))
        weights = part.mean * self.columns(part) * CHUNK
        stages = self._chunks(part) * max(1.0, weights / self.weight_bytes)
        return max(multiplied, shared) * BUSY + copied * COPY_CYCLES + stages * STAGE_CYCLES

    @cached_property
    def seconds(self) -> float:
        """Of the kernels: packing the weights, and the fullest multiprocessor's tiles."""
        parts = self.parts
        share = [1.0] * len(parts) if self.work.gradient else [float(self.blocks(part)) for part in parts]
        cycles = sum(n * self._cycles(part) for n, part in zip(share, parts))
        written = self.tile.pixels * self.work.bytes * STORE_CYCLES
        if self.work.gradient:
            cycles += self.columns(parts[0]) * written
        else:
            cycles += sum(n * self.columns(p) * (1 << p.order) * written for n, p in zip(share, parts))
            cycles /= sum(share)
        sharing = min(self.resident, -(-self.tiles // self.limits.multiprocessors))
        rounds = 1.0 * -(-self.tiles // (self.limits.multiprocessors * sharing)) * sharing
        # Of plans that take the same time, the one that does less: warps without columns rest.
        rounds += IDLE * self.tiles * max(map(self._working, parts)) / self.limits.multiprocessors
        packing = LAUNCH_SECONDS + self.weight_pieces * 16 / PACK_BYTES
        return LAUNCH_SECONDS + packing + rounds * cycles / CLOCK.get(self.limits.capability[0], 1.7e9)


def _instructions(limits: Limits) -> float:
    """Products of 16 x 8 by 32 bytes that a multiprocessor makes in a cycle: on an H200 1,365 multiply-adds."""
    if limits.capability[0] >= 9 and limits.capability[0] != 12:
        return 1365 / 2048
    return (1024 if limits.capability in ((8, 0), (8, 7)) else 512) / 2048


def tiles_for(work: Pass) -> Iterator[Tile]:
    """Tiles that cut the map into equal parts, as nearly as may be."""
    extents = [-(-axis.target // axis.classes) for axis in work.axes]
    for warps, pixels in CTAS:
        sizes = tuple(_sizes(work.g.batch, extents, pixels))
        for columns in GRADIENT_FRAGMENTS if work.gradient else (0,):
            if columns:
                fragments = {GRADIENT_FRAGMENTS[columns]}
            else:
                fragments = {FRAGMENTS[part.order] for part in work.parts}
            if not any(warps * n * 16 % pixels for n in fragments):
                yield from (Tile(size, pixels, warps, columns) for size in sizes)


def _sizes(batch: int, extents: list[int], pixels: int) -> Iterator[tuple[int, int, int, int]]:
    depth, height, width = extents
    for x in _cuts(width, pixels):
        for y in _cuts(height, pixels // x):
            for z in _cuts(depth, min(pixels // (x * y), 64)):
                yield min(batch, pixels // (x * y * z), 64), z, y, x


def _cuts(size: int, most: int) -> list[int]:
    """Sizes of equal parts: the largest that are allowed, and some smaller ones."""
    fewest = -(-size // most)
    return sorted(
        {-(-size // n) for n in (fewest, fewest + 1, 2 * fewest, 4 * fewest, 8 * fewest)}, reverse=True
    )
