"""Tables: tile sizes by kernel, tie, type and architecture, thresholds and nominal rates. Data and its lookup only.

All tiles were compiled for sm_80, sm_90, sm_100 and gfx942 with Triton 3.6, those of NEWER_TILES with the Triton that
they are for: none spills. Those of sm_90 in 16 bits were chosen on an H200 (2026-11-29); none of the others was
measured. Rates are the vendors' data sheets.
"""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from ..gpu_cost import CACHE_BYTES
from .tuned import TUNED

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Config:
    """A tile: `m` positions (wgrad: orbits) × `n` columns, `k` elements of the contraction at a time.

    `taps` of one row of the kernel are made by one program of wgrad.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    taps: int = 1


_Table = dict[tuple[str, int], tuple[Config, ...]]


def _table(**rows: tuple[tuple[tuple[int, int, int, int, int], ...], ...]) -> _Table:
    """From a row for each kernel: its tiles for 0, 1, 2, 3 tied axes, the largest first."""
    return {
        (kernel, order): tuple(Config(*tile) for tile in tiles)
        for kernel, orders in rows.items()
        for order, tiles in enumerate(orders)
    }


def _rows(**rows: dict[int, tuple[tuple[int, ...], ...]]) -> _Table:
    """The same of some numbers of tied axes only."""
    return {
        (kernel, order): tuple(Config(*tile) for tile in tiles)
        for kernel, orders in rows.items()
        for order, tiles in orders.items()
    }


_WIDE = ((128, 128, 64, 8, 3), (64, 64, 64, 4, 3), (32, 32, 64, 4, 3))
_MIDDLE = ((128, 128, 32, 8, 3), (64, 64, 32, 4, 3), (32, 32, 32, 4, 3))
_NARROW = ((64, 64, 32, 4, 3), (32, 32, 32, 4, 3))
_QUADRUPLE = ((128, 64, 32, 8, 2), (64, 32, 32, 4, 2), (32, 16, 32, 4, 2))
_SMALL = ((64, 128, 32, 4, 2), (64, 64, 32, 8, 2), (32, 32, 32, 4, 2))
_FOUR_WAVES = ((64, 64, 32, 4, 2), (64, 16, 32, 4, 2))
_FOUR_WAVES_SHORT = ((64, 64, 16, 4, 2), (64, 16, 16, 4, 2))

# Weight gradients between orbits have sums for each parity: so tiles are smaller. By bytes of an element.
_BOTH: dict[int, _Table] = {
    2: _rows(
        wgrad_both={
            1: ((128, 64, 32, 8, 2), (64, 64, 32, 4, 2), (32, 32, 32, 4, 2)),
            2: ((64, 64, 32, 8, 2), (64, 32, 32, 4, 2), (32, 16, 32, 4, 2)),
            3: ((64, 32, 16, 8, 2), (32, 16, 16, 4, 2)),
        }
    ),
    4: _rows(
        wgrad_both={
            1: ((64, 32, 32, 4, 2), (32, 32, 32, 4, 2)),
            2: ((32, 32, 32, 4, 2),),
            3: ((32, 16, 16, 4, 2),),
        }
    ),
    8: _rows(wgrad_both={1: ((32, 32, 16, 4, 2),), 2: ((32, 16, 16, 4, 2),), 3: ((16, 8, 16, 4, 2),)}),
}
# Bytes of an element -> kernel and number of tied axes -> tiles, for every architecture that has none of its own below.
TILES: dict[int, _Table] = {
    2: _BOTH[2] | _table(
        fprop_fold=(_WIDE, _MIDDLE, _QUADRUPLE, ((64, 32, 32, 8, 2), (32, 16, 32, 8, 2))),
        fprop_direct=(_WIDE,),
        dgrad=(_WIDE, _MIDDLE, _MIDDLE, _SMALL),
        # 128 columns of free rows are serialised (C7515).
        wgrad=(((128, 64, 64, 8, 3), *_WIDE[1:]), _MIDDLE, _MIDDLE, _SMALL),
    ),
    4: _BOTH[4] | _table(
        fprop_fold=(_NARROW, ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2)), ((64, 32, 16, 8, 2), (32, 16, 32, 4, 2)),
                    ((64, 16, 16, 8, 2),)),
        fprop_direct=(_NARROW,),
        dgrad=(_NARROW, ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2)), ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2)),
               ((32, 32, 32, 4, 2),)),
        wgrad=(_NARROW, ((64, 32, 32, 4, 2), (32, 32, 32, 4, 2)), ((64, 32, 32, 4, 2), (32, 32, 32, 4, 2)),
               ((32, 32, 32, 4, 2),)),
    ),
    8: _BOTH[8] | _table(
        fprop_fold=(((32, 32, 16, 4, 2),), ((32, 32, 16, 4, 2),), ((32, 16, 16, 8, 2),), ((32, 16, 16, 8, 2),)),
        fprop_direct=(((32, 32, 16, 4, 2),),),
        dgrad=(((32, 32, 16, 4, 2),),) * 4,
        wgrad=(((32, 32, 16, 4, 2),),) * 4,
    ),
}  # fmt: skip
OWN_TILES: dict[str, dict[int, _Table]] = {
    # Without products that run beside the other instructions, the registers of 128 × 128 and 128 × 64 spill.
    "sm_80": {
        2: _table(
            fprop_fold=(_WIDE, ((128, 64, 32, 8, 3), *_MIDDLE[1:]),
                        ((128, 32, 16, 8, 2), (64, 32, 16, 4, 2), (32, 16, 32, 4, 2)), ((64, 16, 16, 8, 2),)),
            dgrad=(((128, 128, 64, 8, 3), (64, 64, 32, 4, 3), (32, 32, 64, 4, 3)),),
        )
        | _rows(
            wgrad_both={
                2: ((64, 32, 32, 4, 2), (32, 16, 32, 4, 2)),
                3: ((64, 16, 16, 8, 2), (32, 16, 16, 4, 2)),
            },
            fprop_fold_own={3: ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2))},
        ),
        4: _table(
            fprop_fold=(_NARROW, ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2)), ((32, 16, 32, 4, 2),),
                        ((64, 16, 16, 8, 2),)),
        ),
        8: _rows(fprop_fold={2: ((32, 32, 16, 8, 2),)}),
    },
    # The quickest on an H200 (docs/gpu.md). The second-level cache binds, so gradients of the input are as wide as
    # registers allow, and a program of wgrad makes the taps of a row, which share what is loaded of the input.
    "sm_90": {
        2: _rows(
            dgrad={
                1: ((128, 256, 64, 8, 3), (64, 128, 64, 4, 3), (64, 64, 32, 4, 3)),
                2: ((64, 256, 32, 4, 3), (64, 128, 64, 4, 2), (64, 64, 32, 4, 3)),
            },
            wgrad={
                1: ((64, 128, 64, 8, 3, 3), (128, 128, 32, 8, 3), (32, 64, 32, 4, 3, 3)),
                2: ((64, 128, 32, 4, 3), (16, 64, 64, 4, 2, 3)),
            },
            fprop_fold={3: ((64, 32, 16, 8, 2), (64, 16, 16, 4, 2))},
            fprop_fold_own={2: ((128, 128, 32, 8, 3), (64, 64, 32, 4, 3))},
            dgrad_direct=dict.fromkeys((1, 2), _MIDDLE),
            wgrad_direct=dict.fromkeys((1, 2), _MIDDLE),
        ),
    },
    # Each member's product of a step has columns of tensor memory of its own: with 128 there are more than 512.
    "sm_100": {
        2: _rows(
            dgrad_direct={2: ((128, 64, 32, 8, 2), (64, 64, 32, 8, 2)), 3: ((64, 64, 32, 8, 2),)},
            wgrad_direct={2: ((128, 64, 32, 8, 2), (64, 64, 32, 8, 2)), 3: ((64, 64, 32, 8, 2),)},
            wgrad={3: ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2))},
            fprop_fold_own={3: ((64, 128, 32, 4, 2), (32, 32, 32, 4, 2))},
        ),
    },
    # 64 KB of shared memory. A wave multiplies 32 × 32 elements, or 16 × 16 where a side is 16: in a tile with fewer
    # such blocks than waves, waves repeat each other's products. In 16-bit types loads take longer than that (model);
    # in wider types the products bind. Four waves have up to 512 registers a lane, eight 256.
    "gfx942": {
        2: _table(
            fprop_fold=(_WIDE, _MIDDLE, _QUADRUPLE, ((128, 32, 16, 4, 2), (64, 16, 32, 4, 2))),
            dgrad=(_WIDE, _MIDDLE, ((128, 128, 32, 8, 2), *_MIDDLE[1:]), _SMALL),
            wgrad=(((128, 64, 64, 8, 3), *_WIDE[1:]), _MIDDLE, ((128, 128, 32, 8, 2), *_MIDDLE[1:]), _SMALL),
        )
        | _rows(wgrad_both={3: ((32, 16, 16, 4, 2),)}, fprop_fold_own={3: ((64, 64, 32, 8, 2), (32, 32, 32, 4, 2))}),
        4: _table(
            fprop_fold=(_FOUR_WAVES, _FOUR_WAVES, ((64, 64, 16, 4, 2), (64, 16, 32, 4, 2)), ((64, 16, 16, 4, 2),)),
            fprop_direct=(_FOUR_WAVES,),
            dgrad=(_FOUR_WAVES, _FOUR_WAVES, _FOUR_WAVES, _FOUR_WAVES_SHORT),
            wgrad=(_FOUR_WAVES, _FOUR_WAVES, _FOUR_WAVES, _FOUR_WAVES_SHORT),
        ),
        8: _table(
            fprop_fold=(((32, 32, 16, 4, 2),), ((32, 32, 16, 4, 2),), ((32, 32, 16, 4, 2),), ((64, 16, 16, 4, 1),)),
        ),
    },
}  # fmt: skip

# What spills in one way of multiplying alone, by architecture and `product_of`. Without a tile the launch is refused:
# eight operands of 16 × 16 in registers, in float64 or as the parts of "tf32x3", spill with every tile.
PRODUCT_TILES: dict[tuple[str, str], _Table] = {
    ("sm_80", "tf32"): _rows(
        fprop_fold={3: ((128, 8, 16, 8, 2),)},
        fprop_fold_own={2: ((64, 64, 32, 8, 2),)},
        wgrad_direct={3: ((32, 32, 32, 8, 2),)},
    ),
    ("sm_80", "tf32x3"): _rows(
        fprop_fold={1: ((64, 64, 16, 8, 2), (32, 32, 16, 4, 2)), 2: ((64, 16, 16, 8, 2),), 3: ()},
        dgrad={3: ((32, 32, 32, 8, 2),)},
        wgrad={2: ((64, 32, 32, 4, 2), (32, 32, 16, 4, 2))},
        wgrad_both={2: ((32, 32, 16, 4, 2),)},
    ),
    ("sm_80", "float64"): _rows(fprop_fold={3: ()}),
    ("sm_90", "tf32"): _rows(wgrad_direct={3: ((32, 32, 32, 8, 2),)}),
    ("sm_90", "tf32x3"): _rows(
        fprop_fold={
            1: ((64, 64, 32, 8, 2), (32, 32, 16, 4, 2)),
            2: ((64, 32, 16, 8, 2), (64, 16, 16, 8, 2)),
            3: (),
        },
        dgrad={3: ((32, 32, 32, 8, 2),)},
        wgrad_both={2: ((32, 32, 16, 4, 2),)},
    ),
    ("sm_90", "float64"): _rows(fprop_fold={2: ((16, 32, 16, 4, 2),), 3: ()}, wgrad_both={3: ()}),
    ("sm_100", "tf32"): _rows(fprop_fold_own={2: ((64, 64, 32, 8, 2),), 3: ((32, 32, 16, 4, 2),)}),
    ("sm_100", "float16"): _rows(fprop_fold={3: ((64, 32, 32, 8, 3), (32, 16, 32, 8, 2))}),
    ("sm_100", "tf32x3"): _rows(
        fprop_fold={
            1: ((64, 64, 32, 8, 2), (32, 32, 16, 4, 2)),
            2: ((64, 32, 16, 8, 2), (64, 16, 16, 8, 2)),
        },
        dgrad={3: ((32, 32, 32, 8, 2),)},
        wgrad={0: ((64, 64, 32, 8, 3), (32, 32, 32, 4, 3))},
        wgrad_both={2: ((32, 32, 16, 4, 2),)},
    ),
    ("sm_100", "float64"): _rows(fprop_fold={3: ((16, 16, 16, 8, 2),)}),
}
# What spills where several ties share a launch, by architecture and bytes of an element: each has loops of its own, and
# what is computed ahead of one lives through the others.
MIXED_TILES: dict[tuple[str, int], _Table] = {
    ("sm_80", 2): _rows(
        fprop_fold={2: ((128, 32, 16, 8, 2), (64, 32, 16, 4, 2))},
        dgrad_direct=dict.fromkeys((1, 2, 3), ((64, 64, 32, 8, 3), (64, 64, 16, 4, 3))),
    ),
    ("sm_80", 4): _rows(dgrad={1: ((64, 32, 32, 4, 2),), 2: ((64, 32, 32, 4, 2),), 3: ((32, 32, 16, 4, 2),)}),
    ("sm_90", 2): _rows(
        fprop_fold={2: ((64, 64, 32, 8, 2), (32, 16, 16, 4, 2))},
        dgrad=dict.fromkeys((1, 2), ((128, 64, 32, 8, 3), *_MIDDLE[1:])),
        dgrad_direct=dict.fromkeys((1, 2), ((128, 64, 32, 8, 3), *_MIDDLE[1:])),
        wgrad=dict.fromkeys((1, 2), _MIDDLE),
    ),
    ("sm_90", 4): _rows(dgrad_direct={2: ((64, 64, 32, 8, 2), (64, 32, 32, 4, 2))}),
    ("sm_100", 2): _rows(
        fprop_fold={2: ((64, 64, 32, 8, 2), (32, 16, 16, 4, 2))},
        dgrad_direct={1: ((128, 64, 32, 8, 2), (64, 64, 32, 8, 2))},
        wgrad_direct=dict.fromkeys((1, 2), ((64, 64, 16, 4, 2), (32, 32, 16, 4, 2))),
    ),
}
# Float32 in full has no matrix instructions on NVIDIA: all operands of a step are in registers, and whatever is larger
# than PLAIN spills somewhere. PLAIN itself does in these, by architecture, kernel, number of tied axes, and whether
# several ties share the launch.
PLAIN = Config(64, 32, 16, 8, 2)
PLAIN_TILES: dict[tuple[str, str, int, bool], Config] = {
    ("sm_80", "fprop_fold", 1, False): Config(128, 16, 16, 8, 2),
    ("sm_90", "fprop_fold_both", 1, False): Config(32, 32, 16, 8, 2),
    ("sm_80", "dgrad_direct", 2, False): Config(32, 32, 16, 8, 2),
    ("sm_100", "fprop_fold", 1, True): Config(32, 32, 16, 8, 2),
    ("sm_100", "fprop_fold", 3, False): Config(32, 16, 16, 8, 2),
    ("sm_100", "fprop_fold", 3, True): Config(32, 16, 16, 8, 2),
}
# What spills with some numbers of channels alone, by architecture and `product_of`.
_AT_128 = {128: _rows(fprop_fold={2: ((128, 64, 16, 8, 3), (64, 32, 16, 4, 2))})}
CHANNEL_TILES: dict[tuple[str, str], dict[int, _Table]] = {
    ("sm_90", "bfloat16"): _AT_128,
    ("sm_90", "float16"): _AT_128,
    ("sm_100", "tf32"): {
        128: _rows(fprop_fold={2: ((64, 32, 16, 8, 2), (32, 16, 16, 4, 2))}),
        192: _rows(fprop_fold={2: ((64, 16, 16, 8, 2), (32, 16, 32, 4, 2))}),
    },
}

# What spills from some version of Triton on, by that version, architecture and `product_of`.
NEWER_TILES: dict[tuple[int, int], dict[tuple[str, str], _Table]] = {
    (3, 7): {
        (arch, product): _rows(fprop_fold={3: own})
        for arch, own in {
            "sm_90": ((64, 32, 32, 8, 2), (32, 16, 16, 8, 2)),
            "sm_100": ((64, 32, 32, 8, 3), (32, 16, 16, 8, 2)),
        }.items()
        for product in ("bfloat16", "float16")
    },
}

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304, "interpreter": 32}
# A multiprocessor: multiply-adds a clock by bytes of an element (model).
PRODUCTS_PER_CLOCK = {2: 2048, 4: 1024, 8: 128}

# Below this many input channels (dgrad: rows) the contraction runs over (tap, channel) pairs.
PACK_BELOW = 16
# From this many channels on, a tensor whose channels are not innermost is copied first: its tiles would be read or
# written one element a sector.
COPY_FROM = 8
# A layer of several ties whose tiles would not fill the device this many times is one launch.
MERGE_WAVES = 2

# (kernel, bytes of an element) that spill on channels without 16-byte loads unless the contraction is cut to 16 at a
# time, which halves the addresses. AMD's compiler needs none of that.
_SHORT = {("wgrad", 2), ("dgrad", 4)}
SHORT_UNALIGNED = {
    "sm_80": _SHORT | {("fprop_fold", 2), ("fprop_fold", 4), ("fprop_direct", 4), ("dgrad_direct", 2)},
    "sm_90": _SHORT,
    "sm_100": _SHORT,
}

# A product over many positions is split until it fills the device this often, while each part keeps this many steps.
SPLIT_WAVES, SPLIT_STEPS, SPLIT_LIMIT, SPLIT_ELEMENTS = 2, 8, 64, 2**26
REDUCE_BLOCK = 1024


def splits(programs: int, steps: int, elements: int, arch: str) -> int:
    """Parts into which the positions of wgrad are split: `elements` of partial gradient each."""
    wanted = -(-SPLIT_WAVES * MULTIPROCESSORS[arch] // programs)
    return max(1, min(wanted, steps // SPLIT_STEPS, SPLIT_LIMIT, SPLIT_ELEMENTS // elements))


@lru_cache(maxsize=4096)
def position_block(k: int, extents: tuple[int, ...]) -> tuple[int, ...]:
    """`k` positions as (images, depth, height, width), powers of two: those that cover the extents with the fewest."""

    def covered(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return math.prod(-(-n // size) * size for n, size in zip(extents, sizes)), *(
            -size for size in sizes[::-1]
        )

    powers = [1 << i for i in range(k.bit_length())]
    candidates = itertools.product(powers, powers, powers)
    return min(((k // (d * h * w), d, h, w) for d, h, w in candidates if k % (d * h * w) == 0), key=covered)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def product_of(dtype: str, precision: str) -> str:
    """How a type is multiplied, as in PRODUCT_TILES: its name, in float32 the precision."""
    return precision if dtype == "float32" else dtype


@cache
def triton_version() -> tuple[int, ...]:
    """Of the Triton that compiles here; without one, the oldest that the tables are for."""
    try:
        return tuple(map(int, importlib.import_module("triton").__version__.split(".")[:2]))
    except ImportError:
        return 3, 6


def newer_tiles(arch: str, product: str) -> _Table:
    """What NEWER_TILES has for the Triton that is here, the newest first."""
    known = sorted(version for version in NEWER_TILES if version <= triton_version())
    return {key: row for v in known for key, row in NEWER_TILES[v].get((arch, product), {}).items()}


def tiles(
    kernel: str,
    order: int,
    itemsize: int,
    arch: str,
    product: str = "",
    mixed: bool = False,
    channels: int = 0,
) -> tuple[Config, ...]:
    """Candidates for a kernel, the largest first; none where all spill. Under the interpreter large ones, since
    operations count there.

    A gradient by "direct" is `kernel` with that appended, as in "dgrad_direct"; with "_both" it multiplies by
    the parities of both sides, with "_own" by one parity. Arguments as in `select`, `channels` is the length of the
    contraction.
    """
    if arch == "interpreter":
        return (Config(32, 32, 256, 4, 1) if kernel.startswith("wgrad") else Config(512, 32, 64, 4, 1),)
    tables = (
        {} if mixed else newer_tiles(arch, product),
        MIXED_TILES.get((arch, itemsize), {}) if mixed else {},
        CHANNEL_TILES.get((arch, product), {}).get(channels, {}),
        PRODUCT_TILES.get((arch, product), {}),
        OWN_TILES.get(arch, {}).get(itemsize, {}),
        TILES[itemsize],
    )
    names = kernel, _base(kernel)
    places = [(table, name) for table in tables for name in names]
    if kernel.endswith(("_both", "_own")):  # which any tile of its own fits better than that of its base
        places.sort(key=lambda place: names.index(place[1]))
    found = next(table[name, order] for table, name in places if (name, order) in table)
    if product == "ieee" and arch.startswith("sm_"):
        cut = (replace(PLAIN, m=min(PLAIN.m, c.m), n=min(PLAIN.n, c.n)) for c in found[:1])
        keys = ((arch, name, order, mixed) for name in names)
        own = next((PLAIN_TILES[key] for key in keys if key in PLAIN_TILES), None)
        return tuple(cut) if own is None else (own,)
    return found


def _base(kernel: str) -> str:
    """The kernel whose tiles one has that has none of its own. A fold of one parity adds up positions as dgrad does."""
    return "dgrad" if kernel == "fprop_fold_own" else kernel.removesuffix("_direct").removesuffix("_both")


def fit(config: Config, positions: int, columns: int, contraction: int, arch: str = "") -> Config:
    """The tile cut to the problem, never below 16, which is the least that matrix units take in most types."""

    def cut(size: int, needed: int) -> int:
        return max(min(16, size), min(size, power_of_two(needed)))

    m = cut(config.m, positions)
    n = cut(config.n, columns)
    # A group of four warps multiplies 64 rows; two groups on the same rows are serialised (C7515). On an H200 two are
    # slower on 64 x 16, and hv forward with 64 channels, 64 at a time, read outside of its tensors (docs/gpu.md).
    alone = m <= 64 and (m < config.m or (n <= 16 and arch == "sm_90"))
    warps = min(4, config.warps) if alone else config.warps
    return replace(config, m=m, n=n, k=cut(config.k, contraction), warps=warps)


def select(
    kernel: str,
    order: int,
    itemsize: int,
    arch: str,
    sizes: tuple[int, tuple[int, ...], int],
    repeats: int = 1,
    aligned: bool = True,
    several_sums: bool = False,
    product: str = "",
    mixed: bool = False,
) -> Config:
    """The tile with the lowest modelled time.

    Args:
        kernel: its name, with "_direct" for a gradient by that algorithm, with "_both" for one by the parities of both
            sides, with "_own" by one; `order` is the number of tied axes.
        order: number of tied axes.
        itemsize: bytes of an element.
        arch: one of ARCHITECTURES, or "interpreter".
        sizes: extent along `m` of a tile, extents along `n` that are blocked one by one, length of the contraction.
        repeats: how often all that is there: phases, groups, taps, splits.
        aligned: do 16-byte loads fit the channels? Without them addresses take the registers of the largest tiles.
        several_sums: does dgrad sum members in several loops, one for each kind of tie?
        product: how values are multiplied, as `product_of` names it.
        mixed: do several ties share the launch?
    """
    positions, columns, contraction = sizes

    def seconds(c: Config) -> float:
        programs = repeats * -(-positions // c.m) * sum(-(-n // c.n) for n in columns)
        rounds = -(-programs // MULTIPROCESSORS[arch])
        step = max(c.m * c.n / PRODUCTS_PER_CLOCK[itemsize], (c.m + c.n) * itemsize / CACHE_BYTES)
        return rounds * -(-contraction // c.k) * c.k * step

    candidates = tiles(kernel, order, itemsize, arch, product, mixed, contraction)
    if kernel in ("wgrad", "wgrad_both") and positions <= 64:
        # Two groups of warps on the rows of one block are serialised (C7515) where it is known that all of them exist.
        candidates = tuple(c for c in candidates if c.m > 64 or c.warps < 8) or candidates
    if not aligned and (itemsize == 2 or kernel.startswith(("dgrad", "wgrad"))) and arch != "interpreter":
        # Several accumulators leave registers for the addresses of the smallest tile alone.
        kept = (
            candidates[-1:]
            if (kernel.startswith("fprop_fold") and order > 1)
            else candidates[1:] or candidates
        )
        kept = tuple(c for c in kept if c.m * c.n <= 64 * 64) or kept
        candidates = tuple(replace(c, k=min(c.k, 32)) for c in kept)
    names = {kernel, _base(kernel)}
    if not aligned and any((name, itemsize) in SHORT_UNALIGNED.get(arch, ()) for name in names):
        candidates = tuple(replace(c, k=16) for c in candidates)
    elif several_sums and itemsize == 4 and arch == "sm_90":
        # The sums are operands in registers: with four products a step ptxas serialises them as soon as there are
        # several loops (C7513), whatever the tile; with two it does not. A third stage keeps as many loads under way.
        candidates = tuple(replace(c, k=16, stages=3) for c in candidates)
    return min((fit(c, positions, max(columns), contraction, arch) for c in candidates), key=seconds)


def measured(device: str, dtype: str, kernel: str, order: int, sizes: tuple[int, int, int]) -> Config | None:
    """The tile that was the quickest on a device, on the layer nearest in size that was tried; None if none was.

    Args:
        device: its name, as torch gives it.
        dtype: of the tensors, as in "bfloat16".
        kernel: its name; `order` is the number of tied axes.
        order: number of tied axes.
        sizes: extents along `m` and `n` of a tile, length of the contraction.
    """
    key = (device, dtype, kernel, order)
    rows = [r for r in TUNED if (r["device"], r["dtype"], r["kernel"], r["order"]) == key]
    if not rows:
        return None

    def distance(row: dict[str, Any]) -> float:
        return sum(abs(math.log2(size / tried)) for size, tried in zip(sizes, row["sizes"]))

    return Config(**min(rows, key=distance)["config"])


# Depthwise: elements of a tile by number of tied axes, so that the results of all members stay in registers; columns
# (groups) where they are contiguous and where positions are; taps of a program of wgrad.
DEPTHWISE_ELEMENTS = (2048, 2048, 1024, 512)
DEPTHWISE_WGRAD_ELEMENTS = 512
DEPTHWISE_COLUMNS = {True: 64, False: 4}
DEPTHWISE_TAPS = 8


def depthwise(
    op: str, order: int, groups_innermost: bool, positions: int, groups: int, config: Config | None, arch: str
) -> Config:
    """The tile of the depthwise kernels: `m` positions × `n` groups."""
    if config is not None:
        return config
    n = min(power_of_two(groups), DEPTHWISE_COLUMNS[groups_innermost])
    elements = DEPTHWISE_WGRAD_ELEMENTS if op == "wgrad" else DEPTHWISE_ELEMENTS[order]
    if arch == "interpreter":
        n, elements = power_of_two(groups), 16384
    return Config(min(power_of_two(positions), elements // n), n, 1, 4, 2)
