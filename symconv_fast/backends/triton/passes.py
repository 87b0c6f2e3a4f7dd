"""The plans of the passes: which kernels, over which grid, with which arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...ties import orbit_size
from . import configs
from .configs import Config
from .geometry import Segment
from .plans import LIMIT, Buffer, Context, Launch, Plan

# --- shared pieces -------------------------------------------------------------------------------------------------


def _segments(
    segments: list[Segment], width: int, padded: Mapping[int, int]
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The table SEGS for blocks of `width` orbits, and the number of blocks."""
    table, block = [], 0
    for s in segments:
        table.append((s.mask, s.row, s.rows, s.copy, block, padded.get(s.row, 0)))
        block += -(-s.rows // width)
    return tuple(table), block


def _destination(c: Context, sizes: tuple[int, int, int], scatter: bool) -> tuple[dict[str, int], int]:
    """Arguments that count the positions of a destination, and the number of phases."""
    (d, h, w), phases = c.g.phased(sizes, scatter)
    return {"total": c.g.batch * d * h * w, "TD": d, "TH": h, "TW": w}, phases


def _extents(prefix: str, sizes: tuple[int, int, int]) -> dict[str, int]:
    return {f"{prefix}{axis}": n for axis, n in zip("DHW", sizes)}


# --- fprop ---------------------------------------------------------------------------------------------------------


def _fprop_arguments(
    c: Context, config: Config, contraction: int
) -> tuple[dict[str, int], dict[str, Any], int]:
    """(integers, constants, programs of one block) that the fold and the direct kernel share."""
    g, scatter = c.g, c.g.transposed
    at, phases = _destination(c, g.y, scatter)
    tiles = -(-at["total"] // config.m)
    scalars = at | {"tiles": tiles} | _extents("I", g.x) | _extents("O", g.y)
    scalars |= c.strides("x", "x", "ncdhw") | c.strides("y", "y", "ncdhw")
    constants = {
        "AXES": g.axes, "SCATTER": scatter, "WIDE": at["total"] + config.m >= LIMIT, "C": g.depth, "F": g.filters,
        "BM": config.m, "BN": config.n, "BK": config.k, "PACKED": contraction < configs.PACK_BELOW,
        "PRECISION": c.options.precision, "BIAS": c.options.bias, "ACT": c.options.activation,
    }  # fmt: skip
    return scalars, constants, tiles * phases * g.groups


def fprop_direct(c: Context) -> Plan:
    """One launch for all segments, straight from the raw weight."""
    g = c.g
    at, phases = _destination(c, g.y, g.transposed)
    depth = g.channels if g.channels >= configs.PACK_BELOW else g.channels * g.taps
    config = c.config("fprop_direct", (), (at["total"], (g.filters,), depth), phases * g.groups)
    scalars, constants, programs = _fprop_arguments(c, config, g.channels)
    table, _ = _segments(list(g.segments), config.n, {})
    launch = Launch(
        "fprop_direct",
        programs * -(-g.filters // config.n),
        _fprop_pointers(c, "w"),
        scalars | c.strides("w", "w", "gucdhw"),
        constants | {"SEGS": table},
        config.warps,
        config.stages,
        config,
    )
    return Plan((launch,))


def _fprop_pointers(c: Context, weight: str) -> dict[str, tuple[str, torch.dtype]]:
    bias = "bias" if c.options.bias else weight  # without a bias the kernel reads none
    tensors = {"x": c.tensor("x"), "w": weight, "bias": bias, "y": c.tensor("y")}
    return {name: (tensor, c.dtype) for name, tensor in tensors.items()}


def _sides(c: Context) -> tuple[int, ...]:
    """The table SIDES."""
    return (c.g.moved, c.g.fixed, c.g.parity, *c.g.kept)


def fprop_fold(c: Context) -> Plan:
    """The weight fold, then one launch for each number of tied axes, or one for all if that fills the device."""
    g = c.g
    at, phases = _destination(c, g.y, g.transposed)
    packed = g.depth < configs.PACK_BELOW
    depth = g.depth * g.taps if packed else g.depth
    parts = []
    for segments in _partition(c, at["total"] * phases * g.groups):
        columns = tuple(s.rows for s in segments)
        config = c.config("fprop_fold", segments, (at["total"], columns, depth), phases * g.groups)
        parts.append((segments, config))

    deepest = 1 if packed else max(config.k for _, config in parts)
    cp, up, padded = -(-g.depth // deepest) * deepest, 0, {}
    for segments, config in parts:
        for s in segments:
            padded[s.row] = up
            up += -(-s.rows // config.n) * config.n
    launches = [_fold_weights(c, cp, up, padded)]
    for segments, config in parts:
        scalars, constants, programs = _fprop_arguments(c, config, g.depth)
        table, blocks = _segments(segments, config.n, padded)
        folded = {f"w_{key[2:]}": value for key, value in _folded_strides(c, cp, up).items()}
        launches.append(
            Launch(
                "fprop_fold",
                programs * blocks,
                _fprop_pointers(c, "folded"),
                scalars | folded,
                constants | {"SEGS": table, "SIDES": _sides(c), "CP": cp, "BLOCKS": blocks, "HALVE": c.half},
                config.warps,
                config.stages,
                config,
            )
        )
    elements = g.kept_taps * g.groups * orbit_size(g.both) * cp * up
    return Plan(tuple(launches), (Buffer("folded", elements, c.dtype),))


def _partition(c: Context, positions: int) -> list[list[Segment]]:
    """Segments by number of tied axes; all together if the device is not filled."""
    by_order: dict[int, list[Segment]] = {}
    for s in c.g.segments:
        by_order.setdefault(s.order, []).append(s)
    if c.options.tiles or len(by_order) == 1:
        return list(by_order.values())
    tiles = configs.tiles("fprop_fold", max(by_order), c.dtype.itemsize, c.options.arch, c.product)
    tile = next(iter(tiles), c.options.config)
    assert tile is not None, "refused without a tile"
    programs = -(-positions // tile.m) * sum(-(-s.rows // tile.n) for s in c.g.segments)
    if programs <= configs.MERGE_WAVES * configs.MULTIPROCESSORS[c.options.arch]:
        return [list(c.g.segments)]
    return list(by_order.values())


def _folded_strides(c: Context, cp: int, up: int) -> dict[str, int]:
    """Folded weights are [taps][groups][C][U]; 4-byte matrix units want the contraction innermost."""
    depth = orbit_size(c.g.both) * cp
    ends = {"f_sc": up, "f_su": 1} if c.dtype.itemsize == 2 else {"f_sc": 1, "f_su": depth}
    return {"f_st": c.g.groups * depth * up, "f_sg": depth * up, **ends}


def _fold_weights(c: Context, cp: int, up: int, padded: Mapping[int, int]) -> Launch:
    g = c.g
    bc, bu = min(32, configs.power_of_two(cp)), min(64, configs.power_of_two(up))
    table, _ = _segments(list(g.segments), 1, padded)
    return Launch(
        "fold_weights",
        g.kept_taps * g.groups * orbit_size(g.both) * -(-cp // bc) * -(-up // bu),
        {"w": ("w", c.dtype), "folded": ("folded", c.dtype)},
        c.strides("w", "w", "gucdhw") | _folded_strides(c, cp, up),
        {
            "AXES": g.axes,
            "SEGS": table,
            "SIDES": _sides(c),
            "ADJOINT": c.adjoint,
            "C": g.depth,
            "CP": cp,
            "UP": up,
            "HALVE": c.half,
            "BC": bc,
            "BU": bu,
        },
    )


# --- gradients -----------------------------------------------------------------------------------------------------


def _gradient_constants(c: Context, algorithm: str, config: Config) -> dict[str, Any]:
    """Constants that dgrad and wgrad share; "direct" multiplies each member of an orbit by itself."""
    g = c.g
    return {
        "AXES": g.axes, "SCATTER": not g.transposed, "C": g.depth, "F": g.filters, "BM": config.m, "BN": config.n,
        "SUMMED": algorithm == "fold", "HALVE": c.half, "PRECISION": c.options.precision,
    }  # fmt: skip


def dgrad(c: Context, algorithm: str) -> Plan:
    """One launch for all segments."""
    g = c.g
    at, phases = _destination(c, g.x, not g.transposed)
    packed = max(s.rows for s in g.segments) < configs.PACK_BELOW
    depth = sum(s.rows for s in g.segments) * (g.taps if packed else 1)
    config = c.config("dgrad", g.segments, (at["total"], (g.channels,), depth), phases * g.groups, algorithm)
    table, _ = _segments(list(g.segments), config.n, {})
    tiles = -(-at["total"] // config.m)
    launch = Launch(
        "dgrad",
        tiles * phases * g.groups * -(-g.channels // config.n),
        {name: (tensor, c.dtype) for name, tensor in (("gy", "y"), ("w", "w"), ("gx", "x"))},
        at | {"tiles": tiles} | _extents("I", g.x) | _extents("O", g.y)
        | c.strides("y", "g", "ncdhw") | c.strides("w", "w", "gucdhw") | c.strides("x", "x", "ncdhw"),
        _gradient_constants(c, algorithm, config)
        | {"SEGS": table, "WIDE": at["total"] + config.m >= LIMIT, "PACKED": packed, "BK": config.k},
        config.warps,
        config.stages,
        config,
    )  # fmt: skip
    return Plan((launch,))


def wgrad(c: Context, algorithm: str) -> Plan:
    """One launch for all segments; where the positions are split, a second one adds the parts in fixed order."""
    g = c.g
    positions, elements = g.batch * math.prod(g.x), math.prod(c.problem.weight_shape)
    widest = max(s.rows for s in g.segments)
    repeats = g.kept_taps * g.groups * configs.splits(1, positions // 32, elements, c.options.arch)
    config = c.config("wgrad", g.segments, (widest, (g.depth,), positions), repeats, algorithm)
    table, blocks = _segments(list(g.segments), config.m, {})
    taps = _taps_together(c, config)
    kd, kh, kw = g.kept
    programs = kd * kh * -(-kw // taps) * g.groups * blocks * -(-g.depth // config.n)
    extents, _ = g.phased(g.x, not g.transposed)
    block = configs.position_block(config.k, (g.batch, *extents))
    steps = math.prod(-(-n // size) for n, size in zip((g.batch, *extents), block))
    splits = configs.splits(programs, steps, elements, c.options.arch)
    out, strides, reduction = _wgrad_output(c, splits)
    launch = Launch(
        "wgrad",
        programs * splits,
        {"gy": (c.tensor("y"), c.dtype), "x": (c.tensor("x"), c.dtype), "out": out},
        {"images": g.batch} | _extents("I", g.x) | _extents("O", g.y)
        | c.strides("y", "g", "ncdhw") | c.strides("x", "x", "ncdhw") | strides,
        _gradient_constants(c, algorithm, config)
        | {"SEGS": table, "SIDES": _sides(c), "BLOCKS": blocks, "SPLITS": splits, "SIZES": block, "TAPS": taps},
        config.warps,
        config.stages,
        config,
    )  # fmt: skip
    if reduction is None:
        return Plan((launch,))
    return Plan((launch, reduction), (Buffer("partial", splits * elements, c.accumulator),))


def _taps_together(c: Context, config: Config) -> int:
    """Taps of a program of wgrad: neighbours along the width that join the same positions of the input."""
    kept, stride = c.g.kept[2], c.g.axes[2][1]
    if not c.g.transposed and stride > 1:
        return 1
    together = range(min(config.taps, kept), 0, -1)
    return min(together, key=lambda taps: -(-kept // taps) * (taps + 1))


def _wgrad_output(c: Context, splits: int) -> tuple[tuple[str, torch.dtype], dict[str, int], Launch | None]:
    """Where wgrad writes, with its strides, and the launch that adds the parts if there are several."""
    g = c.g
    sg, su, sc, *_, st = dict(c.layout)["w"]
    if splits == 1:
        return ("w", c.dtype), {"o_ss": 0, "o_sg": sg, "o_st": st, "o_su": su, "o_sc": sc}, None
    size = g.rows * g.channels
    total = g.groups * g.kept_taps * size
    strides = {"o_ss": total, "o_sg": g.kept_taps * size, "o_st": size, "o_su": g.channels, "o_sc": 1}
    reduction = Launch(
        "reduce_splits",
        -(-total // configs.REDUCE_BLOCK),
        {"partial": ("partial", c.accumulator), "out": ("w", c.dtype)},
        {"total": total, "p_ss": total, "o_sg": sg, "o_st": st, "o_su": su, "o_sc": sc},
        {"U": g.rows, "C": g.channels, "TAPS": g.kept_taps, "SPLITS": splits, "BLOCK": configs.REDUCE_BLOCK},
    )
    return ("partial", c.accumulator), strides, reduction


# --- depthwise -----------------------------------------------------------------------------------------------------


def depthwise(c: Context, op: str) -> Plan:
    """Depthwise layers: groups are the columns of a tile, each program has one row of every group."""
    g = c.g
    read = dict(c.layout)["y" if op == "dgrad" else "x"]
    across = 1 if read[1] == 1 else 0
    positions = g.batch * math.prod(g.y if op == "fprop" else g.x)
    order = max(s.order for s in g.segments)
    config = configs.depthwise(op, order, across == 1, positions, g.groups, c.options.config, c.options.arch)
    table, _ = _segments(list(g.segments), 1, {})
    constants = {
        "AXES": g.axes, "SEGS": table, "SCATTER": g.transposed == (op == "fprop"), "G": g.groups, "F": g.filters,
        "BM": config.m, "BN": config.n, "ACROSS": across,
    }  # fmt: skip
    blocks = -(-g.groups // config.n)
    if op == "wgrad":
        return _depthwise_wgrad(c, config, constants, blocks, positions)
    weight = {key: value for key, value in c.strides("w", "w", "gucdhw").items() if key != "w_sc"}
    at, phases = _destination(c, g.y if op == "fprop" else g.x, g.transposed == (op == "fprop"))
    tiles = -(-at["total"] // config.m)
    scalars = at | {"tiles": tiles} | _extents("I", g.x) | _extents("O", g.y) | weight
    constants |= {"WIDE": at["total"] + config.m >= LIMIT}
    if op == "fprop":
        pointers = _fprop_pointers(c, "w")
        scalars |= c.strides("x", "x", "ncdhw") | c.strides("y", "y", "ncdhw")
        constants |= {"U": g.rows, "BIAS": c.options.bias, "ACT": c.options.activation}
        rows = g.rows
    else:
        pointers = {name: (tensor, c.dtype) for name, tensor in (("gy", "y"), ("w", "w"), ("gx", "x"))}
        scalars |= c.strides("y", "g", "ncdhw") | c.strides("x", "x", "ncdhw")
        rows = 1
    grid = tiles * phases * blocks * rows
    return Plan(
        (Launch(f"{op}_depthwise", grid, pointers, scalars, constants, config.warps, config.stages, config),)
    )


def _depthwise_wgrad(
    c: Context, config: Config, constants: dict[str, Any], blocks: int, positions: int
) -> Plan:
    g = c.g
    taps = min(configs.DEPTHWISE_TAPS, g.taps)
    programs = -(-g.taps // taps) * g.rows * blocks
    splits = configs.splits(
        programs, -(-positions // config.m), math.prod(c.problem.weight_shape), c.options.arch
    )
    out, strides, reduction = _wgrad_output(c, splits)
    del strides["o_sc"]
    launch = Launch(
        "wgrad_depthwise",
        programs * splits,
        {"gy": ("y", c.dtype), "x": ("x", c.dtype), "out": out},
        {"images": g.batch} | _extents("I", g.x) | _extents("O", g.y)
        | c.strides("y", "g", "ncdhw") | c.strides("x", "x", "ncdhw") | strides,
        constants
        | {"U": g.rows, "SPLITS": splits, "TAPS": taps, "WIDE": positions + config.m * splits >= LIMIT},
        config.warps,
        config.stages,
        config,
    )  # fmt: skip
    if reduction is None:
        return Plan((launch,))
    elements = splits * math.prod(c.problem.weight_shape)
    return Plan((launch, reduction), (Buffer("partial", elements, c.accumulator),))
