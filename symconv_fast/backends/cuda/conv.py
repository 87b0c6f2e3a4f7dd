"""Plans the general matrix kernels: forward pass and gradient of the input, any ties, kernel, stride and dilation.

What is here of tiles and shared memory is what csrc/cuda/conv/layout.h counts. The estimates are a model: rates of
matrix units are an H200's (measured) and data sheets', how parts overlap is guessed from bench/micro's kernels there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

from ...problem import Problem
from ..gpu_cost import LAUNCH_SECONDS
from ..triton.geometry import Geometry, Segment, geometry
from . import families
from .limits import DTYPES, Limits

LAYOUT = families.CHANNELS_LAST

PITCH, CHUNK = 80, 64
"""Bytes of a pixel in shared memory, and those of them that are channels."""

MOST = 1 << 30
"""Of what the kernels count in 32 bits."""

MOST_TAPS, MOST_CLASSES, MOST_PARTS, MOST_PLACES, MOST_STEP, MOST_PADDING = (
    4095,
    64,
    16,
    1 << 14,
    1 << 10,
    1 << 20,
)

FRAGMENTS = (4, 4, 2, 1)
COLUMNS = (64, 32, 32, 32)
"""Of a warp in the forward pass, by the number of tied axes: fragments of 16 pixels, orbits."""

GRADIENT_FRAGMENTS = {128: 2, 64: 4}
"""Fragments of a warp by its columns, for the gradient of the input."""


class Part(NamedTuple):
    """Rows that share a tie, with the axes along which they are folded or along which their members are added.

    `products` are those of each entry of the table of taps, class by class.
    """

    segment: Segment
    mask: int
    products: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> int:
        """Number of folded axes."""
        return self.mask.bit_count()

    @property
    def total(self) -> int:
        """Products of a column and chunk, over all classes."""
        return sum(map(sum, self.products))

    def block(self, most: int) -> tuple[int, int]:
        """(entries of a stage, most products that they make) of stages of `most` products; (0, 0) if none fits."""
        return next((block for block in _blocks(self.products) if block[1] <= most), (0, 0))


@lru_cache(maxsize=1024)
def _blocks(products: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """(entries, products) of stages, from one for all entries of a class down to one for each entry."""
    longest, found = max(map(len, products)), []
    for entries in dict.fromkeys(-(-longest // blocks) for blocks in range(1, longest + 1)):
        ends = (sum(group[i : i + entries]) for group in products for i in range(0, len(group), entries))
        found.append((entries, max(ends)))
    return tuple(found)


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


class Pass(NamedTuple):
    """One pass of a problem, with members added (or not) along the axes of `unfolded`."""

    problem: Problem
    gradient: bool
    unfolded: int

    @property
    def g(self) -> Geometry:
        """Sizes of a group."""
        return geometry(self.problem)

    @property
    def vector(self) -> int:
        """Elements of 16 bytes."""
        return 16 // self.problem.dtype.itemsize

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Depth, height, width."""
        return _axes(self.problem, self.gradient)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is contracted separately, in the order of the kernels."""
        return _parts(self.problem, self.gradient, self.unfolded)


@lru_cache(maxsize=4096)
def _axes(problem: Problem, gradient: bool) -> tuple[Axis, ...]:
    g, axes = geometry(problem), []
    for x, y, (kernel, stride, dilation, _) in zip(g.x, g.y, g.axes):
        if gradient:
            axes.append(Axis(y, x, stride, 1, dilation * (kernel - 1) // stride, 1))
        else:
            sample = stride if kernel == 1 else math.gcd(stride, dilation)
            axes.append(Axis(x, y, 1, stride // sample, dilation * (kernel - 1) // sample, sample))
    return tuple(axes)


@lru_cache(maxsize=4096)
def _parts(problem: Problem, gradient: bool, unfolded: int) -> tuple[Part, ...]:
    g, parts = geometry(problem), []
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
        self.work, self.tile, self.limits = work, tile, limits
        self.stages, self.weight_bytes, self.shared_bytes, self.resident = 0, 0, 0, 0
        for resident in (2, 1) if tile.warps <= 4 else (1,):
            for stages in (3, 2):
                if not self.resident:
                    self._fit(stages, resident)

    def _fit(self, stages: int, resident: int) -> None:
        """Take so many stages and CTAs if shared memory has room for them."""
        room = (self.limits.shared_bytes + 1024) // resident - 1024
        slices = max(1 << part.order if self.work.gradient else 1 for part in self.work.parts)
        halo = -(-slices * self.places * PITCH // 128) * 128
        entries = sum(len(group) + 1 for part in self.work.parts for group in part.products) + math.prod(
            axis.classes for axis in self.work.axes
        )
        left = room - entries * 16 - self.tile.pixels * 8 - self.tile.warps * 80 - self.places * 4
        for slots in range(2, stages + 1):
            most = (left - slots * halo) // stages
            blocks = [part.block(most // (self.columns(part) * CHUNK)) for part in self.work.parts]
            if most <= 0 or not all(entries for entries, _ in blocks):
                return
            fewest = min(
                -(-len(group) // entries)
                for part, (entries, _) in zip(self.work.parts, blocks)
                for group in part.products
                if group
            )
            if 1 + -(-(stages - 1) // fewest) > slots:
                continue
            if stages == 3 and max(largest for _, largest in blocks) > SHORT_STAGE:
                return
            largest = max(
                products * self.columns(part) * CHUNK for part, (_, products) in zip(self.work.parts, blocks)
            )
            self.stages, self.resident, self.weight_bytes = stages, resident, largest
            self.shared_bytes = room
            return

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
            tiles *= -(-(-(-axis.target // axis.classes)) // size) * axis.classes
        return tiles

    def blocks(self, part: Part) -> int:
        """Blocks of columns of a group."""
        wanted = self.work.g.channels if self.work.gradient else part.segment.rows
        return -(-wanted // self.columns(part))

    @cached_property
    def tiles(self) -> int:
        """Of the whole pass."""
        blocks = [self.blocks(part) for part in self.work.parts]
        return self.pixel_tiles * self.work.g.groups * (blocks[0] if self.work.gradient else sum(blocks))

    @cached_property
    def weight_pieces(self) -> int:
        """Packed weights, in 16 bytes."""
        return sum(
            self.work.g.groups * self.blocks(part) * self._chunks(part) * part.total * self.columns(part) * 4
            for part in self.work.parts
        )

    def _depth(self, part: Part) -> int:
        return part.segment.rows if self.work.gradient else self.work.g.channels

    def _chunks(self, part: Part) -> int:
        return -(-self._depth(part) * self.work.problem.dtype.itemsize // CHUNK)

    def _cycles(self, part: Part) -> float:
        """Of a CTA's tile of a part, on a multiprocessor of its own, averaged over the classes of pixels."""
        work, limits = self.work, self.limits
        steps = -(-self._depth(part) * work.problem.dtype.itemsize // 32)
        products = part.total / len(part.products) * steps
        fragments = GRADIENT_FRAGMENTS[self.tile.columns] if work.gradient else FRAGMENTS[part.order]
        pairs = (self.tile.columns if work.gradient else COLUMNS[part.order]) / 16
        loads = fragments * ((1 << part.order) if work.gradient else 1) + pairs
        multiplied = products * self.tile.warps * fragments * 2 * pairs * 8 / _instructions(limits)
        shared = products * self.tile.warps * loads * 4
        chunks = self._chunks(part)
        slices = 1 << part.order if work.gradient else 1
        fetched = chunks * (
            slices * self.places * CHUNK + part.total / len(part.products) * self.columns(part) * CHUNK
        )
        return max(multiplied, shared) * BUSY + fetched * COPY_CYCLES

    @cached_property
    def seconds(self) -> float:
        """Of the kernels: packing the weights, and the fullest multiprocessor's tiles."""
        parts = self.work.parts
        share = [1.0] * len(parts) if self.work.gradient else [float(self.blocks(part)) for part in parts]
        cycles = sum(n * self._cycles(part) for n, part in zip(share, parts))
        written = self.tile.pixels * self.work.problem.dtype.itemsize * STORE_CYCLES
        if self.work.gradient:
            cycles += self.columns(parts[0]) * written
        else:
            cycles += sum(n * self.columns(p) * (1 << p.order) * written for n, p in zip(share, parts))
            cycles /= sum(share)
        sharing = min(self.resident, -(-self.tiles // self.limits.multiprocessors))
        rounds = -(-self.tiles // (self.limits.multiprocessors * sharing)) * sharing
        packing = LAUNCH_SECONDS + self.weight_pieces * 16 / PACK_BYTES
        return LAUNCH_SECONDS + packing + rounds * cycles / CLOCK.get(self.limits.capability[0], 1.7e9)


SHORT_STAGE = 8  # products of a stage that take less time than a copy
BUSY = 1.35  # share of the bound that the main loop of bench/micro's kernels reached, the other way round
COPY_CYCLES, STORE_CYCLES = 0.016, 0.03  # a byte of copies and of results, of which a part is hidden
PACK_BYTES = 1e12
CLOCK = {8: 1.41e9, 9: 1.785e9, 10: 1.85e9}


def _instructions(limits: Limits) -> float:
    """16 x 8 products of 32 bytes in 8 cycles of a multiprocessor: 1,365 multiply-adds a cycle on an H200."""
    rate = 1024 if limits.capability in ((8, 0), (8, 7)) else 512 if limits.capability[0] in (8, 12) else 1365
    return rate * 8 / 2048


@lru_cache(maxsize=4096)
def choose(problem: Problem, op: str, limits: Limits) -> Plan | None:
    """The quickest plan by the model, or None if none fits."""
    best: Plan | None = None
    masks = 0
    for segment in geometry(problem).segments:
        masks |= segment.mask
    for unfolded in sorted({0, 4 & masks, 6 & masks, 7 & masks} if op == "dgrad" else {0}):
        work = Pass(problem, op == "dgrad", unfolded)
        if len(work.parts) > MOST_PARTS:
            continue
        for tile in _tiles(work):
            plan = Plan(work, tile, limits)
            if plan.resident and _counted(plan) and (best is None or plan.seconds < best.seconds):
                best = plan
    return best


def _counted(plan: Plan) -> bool:
    """Is everything small enough to be counted in 32 bits?"""
    return plan.tiles <= MOST and plan.weight_pieces + 1024 <= MOST and plan.places <= MOST_PLACES


def _tiles(work: Pass) -> Iterator[Tile]:
    """Tiles of 128 to 512 pixels that cut the map into equal parts, as nearly as may be."""
    extents = [-(-axis.target // axis.classes) for axis in work.axes]
    for warps, pixels in ((8, 256), (8, 512), (8, 128), (4, 128), (4, 256)):
        for columns in GRADIENT_FRAGMENTS if work.gradient else (0,):
            fragments = (
                [GRADIENT_FRAGMENTS[columns]] if columns else [FRAGMENTS[part.order] for part in work.parts]
            )
            if any(warps * n * 16 % pixels for n in fragments):
                continue
            for size in _sizes(work.g.batch, extents, pixels):
                yield Tile(size, pixels, warps, columns)


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


# --- the planner ---------------------------------------------------------------------------------------------------


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    if op not in ("fprop", "dgrad"):
        return "it has the forward pass and the gradient of the input alone"
    g, vector = geometry(problem), 16 // problem.dtype.itemsize
    if op == "fprop" and g.channels % vector:
        return f"{vector} does not divide the {g.channels} input channels of a group"
    if op == "dgrad" and any(
        n % vector for s in g.segments for n in (s.row, s.rows, s.copy if s.mask else 0)
    ):
        return f"{vector} does not divide the rows of each tie in a group"
    if g.taps > MOST_TAPS:
        return f"a filter has more than {MOST_TAPS} taps"
    if (
        max(problem.stride) > MOST_STEP
        or max(problem.dilation) > MOST_STEP
        or max(problem.padding) > MOST_PADDING
    ):
        return "its stride, dilation or padding is too large"
    if op == "dgrad" and math.prod(problem.stride) > MOST_CLASSES:
        return f"its strides make more than {MOST_CLASSES} classes of pixels"
    pieces = [math.prod(shape) // vector for shape in (problem.input_shape, problem.output_shape)]
    if max(pieces) >= MOST or g.groups * (g.channels + 8 * g.rows) * g.taps >= MOST:
        return "a tensor is too large for offsets of 32 bits"
    if choose(problem, op, limits) is None:
        return f"no tile fits the {limits.shared_bytes >> 10} KB of shared memory of {limits.arch}"
    return None


def parameters(
    problem: Problem,
    op: str,
    strides: Mapping[str, tuple[int, ...]],
    limits: Limits,
    activation: int,
    bias: bool,
) -> dict[str, int]:
    """The fields of ConvParams."""
    plan, g = choose(problem, op, limits), geometry(problem)
    assert plan is not None
    values = {"op": int(op == "dgrad"), "dtype": DTYPES[problem.dtype], "batch": g.batch, "groups": g.groups}
    values |= {"channels": g.channels, "rows": g.rows, "filters": g.filters, "activation": activation}
    names = ("kernel", "stride", "dilation", "padding")
    for i, axis in enumerate("zyx"):
        values |= {f"x_{axis}": g.x[i], f"y_{axis}": g.y[i]}
        values |= {f"{name}_{axis}": g.axes[i][k] for k, name in enumerate(names)}
    for tensor in "xy":
        n, _, *rest = strides[tensor]
        values |= {f"{tensor}s_n": n} | {f"{tensor}s_{axis}": s for axis, s in zip("zyx", rest)}
    keys = ("group", "row", "channel", "z", "y", "x")
    values |= {f"ws_{key}": s for key, s in zip(keys, strides["w"])}
    values["segments"] = len(g.segments)
    for i in range(families.MOST_SEGMENTS):
        s = g.segments[i] if i < len(g.segments) else Segment(0, 0, 0, 0)
        values |= {f"mask{i}": s.mask, f"row{i}": s.row, f"rows{i}": s.rows, f"copy{i}": s.copy}
    values |= {f"tile_{axis}": n for axis, n in zip("nzyx", plan.tile.size)}
    values |= {"pixels": plan.tile.pixels, "warps": plan.tile.warps, "columns": plan.tile.columns}
    values |= {"stages": plan.stages, "weight_bytes": plan.weight_bytes, "unfolded": plan.work.unfolded}
    return values | {"shared_bytes": plan.shared_bytes, "resident": plan.resident}


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    plan = choose(problem, op, limits)
    return plan.seconds if plan is not None else math.inf
