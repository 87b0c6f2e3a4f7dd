"""Depthwise layers: one input channel in each group, so nothing to contract but the taps.

Tiles are positions × groups; whichever is contiguous in memory is the last dimension of a tile (`ACROSS` is the
dimension of the groups). There is nothing to save by folding, since an addition costs what a multiplication does: what
these kernels save is memory traffic, by reading an input once for all members of all orbits of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fprop import tile_positions
from .index import (
    MASK,
    ROW,
    ROWS,
    activate,
    count,
    field,
    first_of,
    member,
    mirrored,
    mixed_phases,
    orbit,
    positions,
    tap_at,
    tap_ranges,
    wide,
    window,
)
from .wgrad import reach


@triton.jit
def along(k, t, AXES: tl.constexpr, A: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr):
    """Position of the input on axis A that is number t of those that tap k can use."""
    if SCATTER and not mixed_phases(AXES, A, TIE):
        S: tl.constexpr = field(AXES, A, 1)
        residue = (k * field(AXES, A, 2) + field(AXES, A, 3) * (S - 1)) % S
        return t * S + residue
    else:
        return t


@triton.jit
def partner(k, q, AXES: tl.constexpr, A: tl.constexpr, FLIP: tl.constexpr, SCATTER: tl.constexpr):
    """Position of the output that tap k (mirrored along FLIP) joins with position q of the input, negative if none."""
    S: tl.constexpr = field(AXES, A, 1)
    D: tl.constexpr = field(AXES, A, 2)
    P: tl.constexpr = field(AXES, A, 3)
    k = mirrored(k, AXES, A, FLIP)
    if SCATTER:
        LIFT: tl.constexpr = D * field(AXES, A, 0)
        lifted = q + (P - k * D + LIFT * S)
        quotient = lifted // S
        return tl.where(quotient * S == lifted, quotient - LIFT, -1)
    else:
        return q * S + (k * D - P)


@triton.jit
def outer(values, ACROSS: tl.constexpr):
    """A vector over positions as a tile that is broadcast over the groups."""
    return tl.expand_dims(values, ACROSS)


@triton.jit
def tap_offset(ks, w_strides, AXES: tl.constexpr, FLIP: tl.constexpr):
    """Offset of taps, mirrored along FLIP, in the weight of one group."""
    kd = mirrored(ks[0], AXES, 0, FLIP)
    kh = mirrored(ks[1], AXES, 1, FLIP)
    kw = mirrored(ks[2], AXES, 2, FLIP)
    return wide(kd) * w_strides[0] + wide(kh) * w_strides[1] + wide(kw) * w_strides[2]


@triton.jit
def fprop_row(
    u, cs, tile, phase, x, w, bias, y, total, extents, sizes, sources, x_sn, x_sc, x_strides, w_sg, w_su, w_strides,
    y_sn, y_sc, y_strides, AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SCATTER: tl.constexpr,
    WIDE: tl.constexpr, G: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACROSS: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """All members of row u of segment S, for a tile of positions and groups."""
    TIE: tl.constexpr = field(SEGS, S, MASK)
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    SHAPE: tl.constexpr = (BM, BN) if ACROSS == 1 else (BN, BM)
    n, at, residues, to, exists = tile_positions(tile, phase, total, extents, sizes, AXES, SCATTER, WIDE, BM)
    origins = (outer(at[0], ACROSS), outer(at[1], ACROSS), outer(at[2], ACROSS))
    real_c = tl.expand_dims(cs < G, 1 - ACROSS)
    inside = outer(exists, ACROSS) & real_c
    base = (
        wide(n) * x_sn + wide(at[0]) * x_strides[0] + wide(at[1]) * x_strides[1] + wide(at[2]) * x_strides[2]
    )
    x_base = outer(base, ACROSS) + tl.expand_dims(wide(cs) * x_sc, 1 - ACROSS)
    w_base = wide(cs) * w_sg + wide(u + field(SEGS, S, ROW)) * w_su
    acc = ()
    for _ in tl.static_range(orbit(TIE)):
        acc = acc + (tl.zeros(SHAPE, ACC),)
    starts, counts = tap_ranges(residues, AXES, 0, 0, 0, SCATTER)
    for i in range(counts[0] * counts[1] * counts[2]):
        ks = tap_at(i, starts, counts, AXES, 0, SCATTER)
        value = window(x, x_base, origins, sources, x_strides, ks, residues, AXES, 0, SCATTER, inside).to(ACC)
        sums = ()
        for j in tl.static_range(orbit(TIE)):
            weight = tl.load(
                w + (w_base + tap_offset(ks, w_strides, AXES, member(TIE, j))), mask=cs < G, other=0.0
            )
            sums = sums + (acc[j] + value * tl.expand_dims(weight.to(ACC), 1 - ACROSS),)
        acc = sums
    there = (
        wide(n) * y_sn + wide(to[0]) * y_strides[0] + wide(to[1]) * y_strides[1] + wide(to[2]) * y_strides[2]
    )
    for j in tl.static_range(orbit(TIE)):
        channel = wide(cs) * F + u + first_of(SEGS, S, j)
        result = acc[j]
        if BIAS:
            result += tl.expand_dims(tl.load(bias + channel, mask=cs < G, other=0.0).to(ACC), 1 - ACROSS)
        result = activate(result, ACT)
        place = outer(there, ACROSS) + tl.expand_dims(channel * y_sc, 1 - ACROSS)
        tl.store(y + place, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def fprop_depthwise(
    x, w, bias, y, total, tiles, TD, TH, TW, ID, IH, IW, OD, OH, OW,
    x_sn, x_sc, x_sd, x_sh, x_sw, w_sg, w_su, w_sd, w_sh, w_sw, y_sn, y_sc, y_sd, y_sh, y_sw,
    AXES: tl.constexpr, SEGS: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr, G: tl.constexpr,
    F: tl.constexpr, U: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACROSS: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """Output of a depthwise layer: one row of each group in a program, all members of its orbit."""
    BLOCKS: tl.constexpr = (G + BN - 1) // BN
    pid = tl.program_id(0)
    row = pid % U
    pid = pid // U
    cs = pid % BLOCKS * BN + tl.arange(0, BN)
    pid = pid // BLOCKS
    tile = pid % tiles
    phase = pid // tiles
    for s in tl.static_range(count(SEGS)):
        u = row - field(SEGS, s, ROW)
        if (u >= 0) & (u < field(SEGS, s, ROWS)):
            fprop_row(
                u, cs, tile, phase, x, w, bias, y, total, (TD, TH, TW), (OD, OH, OW), (ID, IH, IW),
                x_sn, x_sc, (x_sd, x_sh, x_sw), w_sg, w_su, (w_sd, w_sh, w_sw), y_sn, y_sc, (y_sd, y_sh, y_sw),
                AXES, SEGS, s, SCATTER, WIDE, G, F, BM, BN, ACROSS, BIAS, ACT,
            )  # fmt: skip


@triton.jit
def dgrad_depthwise(
    gy, w, gx, total, tiles, TD, TH, TW, ID, IH, IW, OD, OH, OW,
    g_sn, g_sc, g_sd, g_sh, g_sw, w_sg, w_su, w_sd, w_sh, w_sw, x_sn, x_sc, x_sd, x_sh, x_sw,
    AXES: tl.constexpr, SEGS: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr, G: tl.constexpr,
    F: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Gradient of the input of a depthwise layer: the members of an orbit are summed in float32 at each tap."""
    BLOCKS: tl.constexpr = (G + BN - 1) // BN
    ACC: tl.constexpr = tl.float64 if gy.dtype.element_ty == tl.float64 else tl.float32
    SHAPE: tl.constexpr = (BM, BN) if ACROSS == 1 else (BN, BM)
    pid = tl.program_id(0)
    cs = pid % BLOCKS * BN + tl.arange(0, BN)
    pid = pid // BLOCKS
    tile = pid % tiles
    phase = pid // tiles
    n, at, residues, to, exists = tile_positions(
        tile, phase, total, (TD, TH, TW), (ID, IH, IW), AXES, SCATTER, WIDE, BM
    )
    origins = (outer(at[0], ACROSS), outer(at[1], ACROSS), outer(at[2], ACROSS))
    inside = outer(exists, ACROSS) & tl.expand_dims(cs < G, 1 - ACROSS)
    base = wide(n) * g_sn + wide(at[0]) * g_sd + wide(at[1]) * g_sh + wide(at[2]) * g_sw
    acc = tl.zeros(SHAPE, ACC)
    for s in tl.static_range(count(SEGS)):
        starts, counts = tap_ranges(residues, AXES, field(SEGS, s, MASK), 0, 0, SCATTER)
        taps = counts[0] * counts[1] * counts[2]
        for i in range(taps * field(SEGS, s, ROWS)):
            u = i // taps
            ks = tap_at(i % taps, starts, counts, AXES, field(SEGS, s, MASK), SCATTER)
            value = tl.zeros(SHAPE, ACC)
            for j in tl.static_range(orbit(field(SEGS, s, MASK))):
                channel = wide(cs) * F + u + first_of(SEGS, s, j)
                g_base = outer(base, ACROSS) + tl.expand_dims(channel * g_sc, 1 - ACROSS)
                value += window(
                    gy, g_base, origins, (OD, OH, OW), (g_sd, g_sh, g_sw), ks, residues, AXES,
                    member(field(SEGS, s, MASK), j), SCATTER, inside,
                ).to(ACC)  # fmt: skip
            place = (
                wide(cs) * w_sg
                + wide(u + field(SEGS, s, ROW)) * w_su
                + tap_offset(ks, (w_sd, w_sh, w_sw), AXES, 0)
            )
            weight = tl.load(w + place, mask=cs < G, other=0.0).to(ACC)
            acc += value * tl.expand_dims(weight, 1 - ACROSS)
    there = wide(n) * x_sn + wide(to[0]) * x_sd + wide(to[1]) * x_sh + wide(to[2]) * x_sw
    place = outer(there, ACROSS) + tl.expand_dims(wide(cs) * x_sc, 1 - ACROSS)
    tl.store(gx + place, acc.to(gx.dtype.element_ty), mask=inside)


@triton.jit
def wgrad_row(
    u, cs, part, split, gy, x, out, images, sizes, outputs, g_sn, g_sc, g_strides, x_sn, x_sc, x_strides,
    o_ss, o_sg, o_st, o_su, AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SCATTER: tl.constexpr,
    WIDE: tl.constexpr, G: tl.constexpr, F: tl.constexpr, SPLITS: tl.constexpr, TAPS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """TAPS taps of row u of segment S, for a block of groups and one of the SPLITS of the positions."""
    TIE: tl.constexpr = field(SEGS, S, MASK)
    KD: tl.constexpr = field(AXES, 0, 0)
    KH: tl.constexpr = field(AXES, 1, 0)
    KW: tl.constexpr = field(AXES, 2, 0)
    ACC: tl.constexpr = tl.float64 if gy.dtype.element_ty == tl.float64 else tl.float32
    SHAPE: tl.constexpr = (BM, BN) if ACROSS == 1 else (BN, BM)
    TD = reach(sizes[0], AXES, 0, TIE, SCATTER)
    TH = reach(sizes[1], AXES, 1, TIE, SCATTER)
    TW = reach(sizes[2], AXES, 2, TIE, SCATTER)
    if WIDE:
        total = (wide(split) * 0 + images) * TD * TH * TW
    else:
        total = images * TD * TH * TW
    steps = tl.cdiv(total, BM)
    each = tl.cdiv(steps, SPLITS)
    real_c = tl.expand_dims(cs < G, 1 - ACROSS)
    acc = ()
    for _ in tl.static_range(TAPS):
        acc = acc + (tl.zeros(SHAPE, ACC),)
    for i in range(split * each, tl.minimum(split * each + each, steps)):
        p = i * BM + tl.arange(0, BM)
        n, td, th, tw = positions(p, TD, TH, TW)
        sums = ()
        for t in tl.static_range(TAPS):
            tap = tl.minimum(part * TAPS + t, KD * KH * KW - 1)
            kd, kh, kw = tap // (KH * KW), tap // KW % KH, tap % KW
            qd = along(kd, td, AXES, 0, TIE, SCATTER)
            qh = along(kh, th, AXES, 1, TIE, SCATTER)
            qw = along(kw, tw, AXES, 2, TIE, SCATTER)
            exists = (p < total) & (qd < sizes[0]) & (qh < sizes[1]) & (qw < sizes[2])
            place = (
                wide(n) * x_sn + wide(qd) * x_strides[0] + wide(qh) * x_strides[1] + wide(qw) * x_strides[2]
            )
            where = outer(place, ACROSS) + tl.expand_dims(wide(cs) * x_sc, 1 - ACROSS)
            source = tl.load(x + where, mask=outer(exists, ACROSS) & real_c, other=0.0).to(ACC)
            value = tl.zeros(SHAPE, ACC)
            for j in tl.static_range(orbit(TIE)):
                od = partner(kd, qd, AXES, 0, member(TIE, j), SCATTER)
                oh = partner(kh, qh, AXES, 1, member(TIE, j), SCATTER)
                ow = partner(kw, qw, AXES, 2, member(TIE, j), SCATTER)
                inside = exists & (od >= 0) & (od < outputs[0]) & (oh >= 0) & (oh < outputs[1])
                inside = inside & (ow >= 0) & (ow < outputs[2])
                there = (
                    wide(n) * g_sn
                    + wide(od) * g_strides[0]
                    + wide(oh) * g_strides[1]
                    + wide(ow) * g_strides[2]
                )
                channel = (wide(cs) * F + u + first_of(SEGS, S, j)) * g_sc
                at = outer(there, ACROSS) + tl.expand_dims(channel, 1 - ACROSS)
                value += tl.load(gy + at, mask=outer(inside, ACROSS) & real_c, other=0.0).to(ACC)
            sums = sums + (acc[t] + value * source,)
        acc = sums
    base = wide(split) * o_ss + wide(cs) * o_sg + wide(u + field(SEGS, S, ROW)) * o_su
    for t in tl.static_range(TAPS):
        tap = part * TAPS + t
        result = tl.sum(acc[t], axis=1 - ACROSS)
        tl.store(
            out + (base + wide(tap) * o_st),
            result.to(out.dtype.element_ty),
            mask=cs < tl.where(tap < KD * KH * KW, G, 0),
        )


@triton.jit
def wgrad_depthwise(
    gy, x, out, images, ID, IH, IW, OD, OH, OW, g_sn, g_sc, g_sd, g_sh, g_sw, x_sn, x_sc, x_sd, x_sh, x_sw,
    o_ss, o_sg, o_st, o_su,
    AXES: tl.constexpr, SEGS: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr, G: tl.constexpr,
    F: tl.constexpr, U: tl.constexpr, SPLITS: tl.constexpr, TAPS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Gradient of the weight of a depthwise layer, or SPLITS partial ones that `reduce_splits` adds."""
    PARTS: tl.constexpr = (field(AXES, 0, 0) * field(AXES, 1, 0) * field(AXES, 2, 0) + TAPS - 1) // TAPS
    BLOCKS: tl.constexpr = (G + BN - 1) // BN
    pid = tl.program_id(0)
    part = pid % PARTS
    pid = pid // PARTS
    row = pid % U
    pid = pid // U
    cs = pid % BLOCKS * BN + tl.arange(0, BN)
    split = pid // BLOCKS
    for s in tl.static_range(count(SEGS)):
        u = row - field(SEGS, s, ROW)
        if (u >= 0) & (u < field(SEGS, s, ROWS)):
            wgrad_row(
                u, cs, part, split, gy, x, out, images, (ID, IH, IW), (OD, OH, OW),
                g_sn, g_sc, (g_sd, g_sh, g_sw), x_sn, x_sc, (x_sd, x_sh, x_sw), o_ss, o_sg, o_st, o_su,
                AXES, SEGS, s, SCATTER, WIDE, G, F, SPLITS, TAPS, BM, BN, ACROSS,
            )  # fmt: skip
