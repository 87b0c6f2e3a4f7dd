"""Gradients: the members of an orbit are summed at their mirrored taps, and the raw weight or input does the rest."""

from __future__ import annotations

import triton
import triton.language as tl

from .fprop import columns, contraction, tile_positions
from .index import (
    BLOCK,
    MASK,
    ROW,
    ROWS,
    count,
    field,
    first_of,
    member,
    mirrored,
    mixed_phases,
    orbit,
    phases,
    positions,
    sum_members,
    tap_ranges,
    wide,
    window,
)


@triton.jit
def dgrad_segment(
    acc, gy, g_base, g_sc, g_strides, origins, extents, residues, exists, w, w_group, w_su, w_sc, w_strides, cs, real_c,
    AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SCATTER: tl.constexpr, BK: tl.constexpr,
    PACKED: tl.constexpr, SUMMED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the orbits of segment S contribute to a tile of the input's gradient."""
    TIE: tl.constexpr = field(SEGS, S, MASK)
    N: tl.constexpr = field(SEGS, S, ROWS)
    starts, counts = tap_ranges(residues, AXES, TIE, 0, 0, SCATTER)
    taps = counts[0] * counts[1] * counts[2]
    if PACKED:
        steps = tl.cdiv(taps * N, BK)
    else:
        steps = taps * ((N + BK - 1) // BK)
    for i in range(steps):
        ks, m, real = contraction(i, taps, starts, counts, AXES, TIE, SCATTER, N, BK, PACKED)
        if PACKED:
            across = (ks[0][None, :], ks[1][None, :], ks[2][None, :])
            down = (wide(ks[0])[:, None], wide(ks[1])[:, None], wide(ks[2])[:, None])
        else:
            across = ks
            down = (wide(ks[0]), wide(ks[1]), wide(ks[2]))
        valid = exists[:, None]
        inside = real_c[None, :]
        if PACKED or N % BK != 0:
            valid = valid & real[None, :]
            inside = inside & real[:, None]
        place = (w_group + wide(m + field(SEGS, S, ROW)) * w_su)[:, None] + (wide(cs) * w_sc)[None, :]
        place += down[0] * w_strides[0] + down[1] * w_strides[1] + down[2] * w_strides[2]
        b = tl.load(w + place, mask=inside, other=0.0)
        loaded = ()
        for j in tl.static_range(orbit(TIE)):
            base = g_base[:, None] + (wide(m + first_of(SEGS, S, j)) * g_sc)[None, :]
            a = window(
                gy, base, origins, extents, g_strides, across, residues, AXES, member(TIE, j), SCATTER, valid
            )
            if SUMMED:
                loaded = loaded + (a,)
            else:
                acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        if SUMMED:
            total = sum_members(loaded, orbit(TIE), HALVE)
            acc = tl.dot(total, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def dgrad(
    gy, w, gx, total, tiles, TD, TH, TW, ID, IH, IW, OD, OH, OW,
    g_sn, g_sc, g_sd, g_sh, g_sw, w_sg, w_su, w_sc, w_sd, w_sh, w_sw, x_sn, x_sc, x_sd, x_sh, x_sw,
    AXES: tl.constexpr, SEGS: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr,
    F: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PACKED: tl.constexpr,
    SUMMED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the input from the raw reduced weight, one accumulator for all segments.

    SUMMED: the members of an orbit are summed before the product (MACs of the reduced weight, one more rounding of
    16-bit types); otherwise each is multiplied by itself. I and O are the extents of the input and the output.
    """
    BLOCKS: tl.constexpr = (C + BN - 1) // BN
    ACC: tl.constexpr = tl.float64 if gy.dtype.element_ty == tl.float64 else tl.float32
    pid = tl.program_id(0)
    cs = pid % BLOCKS * BN + tl.arange(0, BN)
    pid = pid // BLOCKS
    tile = pid % tiles
    pid = pid // tiles
    phase = pid % phases(AXES, SCATTER)
    group = wide(pid // phases(AXES, SCATTER))
    n, at, residues, to, exists = tile_positions(
        tile, phase, total, (TD, TH, TW), (ID, IH, IW), AXES, SCATTER, WIDE, BM
    )
    g_base = wide(n) * g_sn + group * F * g_sc
    g_base += wide(at[0]) * g_sd + wide(at[1]) * g_sh + wide(at[2]) * g_sw
    real_c = cs < C
    acc = tl.zeros((BM, BN), ACC)
    for s in tl.static_range(count(SEGS)):
        if HALVE and SUMMED and s > 0:
            # Sums of the last segment are halved once for each of its axes: bring them to the scale of this one.
            acc = acc * (orbit(field(SEGS, s - 1, MASK)) / orbit(field(SEGS, s, MASK)))
        acc = dgrad_segment(
            acc, gy, g_base, g_sc, (g_sd, g_sh, g_sw), columns(at), (OD, OH, OW), residues, exists,
            w, group * w_sg, w_su, w_sc, (w_sd, w_sh, w_sw), cs, real_c,
            AXES, SEGS, s, SCATTER, BK, PACKED, SUMMED, HALVE, PRECISION,
        )  # fmt: skip
    if HALVE and SUMMED:
        acc = acc * orbit(field(SEGS, count(SEGS) - 1, MASK))
    place = (wide(n) * x_sn + wide(to[0]) * x_sd + wide(to[1]) * x_sh + wide(to[2]) * x_sw)[:, None]
    place += ((group * C + cs) * x_sc)[None, :]
    tl.store(gx + place, acc.to(gx.dtype.element_ty), mask=exists[:, None] & real_c[None, :])


# --- wgrad ---------------------------------------------------------------------------------------------------------


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
def reach(size, AXES: tl.constexpr, A: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr):
    """How many positions of the input on axis A must be looked at for one tap."""
    if SCATTER and not mixed_phases(AXES, A, TIE):
        return (size + field(AXES, A, 1) - 1) // field(AXES, A, 1)
    else:
        return size


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
def wgrad_segment(
    block, column, tap, split, group, gy, x, out, images, sizes, outputs, g_sn, g_sc, g_strides, x_sn, x_sc, x_strides,
    o_ss, o_sg, o_st, o_su, o_sc, AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SCATTER: tl.constexpr,
    WIDE: tl.constexpr, C: tl.constexpr, F: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SUMMED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tap of BM orbits of segment S and BN channels, over one of the SPLITS of the positions."""
    TIE: tl.constexpr = field(SEGS, S, MASK)
    KH: tl.constexpr = field(AXES, 1, 0)
    KW: tl.constexpr = field(AXES, 2, 0)
    ACC: tl.constexpr = tl.float64 if gy.dtype.element_ty == tl.float64 else tl.float32
    kd, kh, kw = tap // (KH * KW), tap // KW % KH, tap % KW
    us = block * BM + tl.arange(0, BM)
    cs = column * BN + tl.arange(0, BN)
    real_u = us < field(SEGS, S, ROWS)
    real_c = cs < C
    TD = reach(sizes[0], AXES, 0, TIE, SCATTER)
    TH = reach(sizes[1], AXES, 1, TIE, SCATTER)
    TW = reach(sizes[2], AXES, 2, TIE, SCATTER)
    if WIDE:
        total = (wide(split) * 0 + images) * TD * TH * TW
    else:
        total = images * TD * TH * TW
    steps = tl.cdiv(total, BK)
    each = tl.cdiv(steps, SPLITS)
    acc = tl.zeros((BM, BN), ACC)
    for i in range(split * each, tl.minimum(split * each + each, steps)):
        p = i * BK + tl.arange(0, BK)
        n, td, th, tw = positions(p, TD, TH, TW)
        qd = along(kd, td, AXES, 0, TIE, SCATTER)
        qh = along(kh, th, AXES, 1, TIE, SCATTER)
        qw = along(kw, tw, AXES, 2, TIE, SCATTER)
        exists = (p < total) & (qd < sizes[0]) & (qh < sizes[1]) & (qw < sizes[2])
        place = wide(n) * x_sn + wide(qd) * x_strides[0] + wide(qh) * x_strides[1] + wide(qw) * x_strides[2]
        b = tl.load(
            x + (place[:, None] + ((group * C + cs) * x_sc)[None, :]),
            mask=exists[:, None] & real_c[None, :],
            other=0.0,
        )
        loaded = ()
        for j in tl.static_range(orbit(TIE)):
            od = partner(kd, qd, AXES, 0, member(TIE, j), SCATTER)
            oh = partner(kh, qh, AXES, 1, member(TIE, j), SCATTER)
            ow = partner(kw, qw, AXES, 2, member(TIE, j), SCATTER)
            inside = exists & (od >= 0) & (od < outputs[0]) & (oh >= 0) & (oh < outputs[1])
            inside = inside & (ow >= 0) & (ow < outputs[2])
            there = (
                wide(n) * g_sn + wide(od) * g_strides[0] + wide(oh) * g_strides[1] + wide(ow) * g_strides[2]
            )
            channel = (group * F + us + first_of(SEGS, S, j)) * g_sc
            # Loaded as [orbit, position], the way the product wants it: a transposition would go through shared memory.
            a = tl.load(
                gy + (channel[:, None] + there[None, :]), mask=real_u[:, None] & inside[None, :], other=0.0
            )
            if SUMMED:
                loaded = loaded + (a,)
            else:
                acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
        if SUMMED:
            total_a = sum_members(loaded, orbit(TIE), HALVE)
            acc = tl.dot(total_a, b, acc, input_precision=PRECISION, out_dtype=ACC)
    if HALVE and SUMMED:
        acc = acc * orbit(TIE)
    row = us + field(SEGS, S, ROW)
    base = wide(split) * o_ss + group * o_sg + wide(tap) * o_st
    place = base + (wide(row) * o_su)[:, None] + (wide(cs) * o_sc)[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=real_u[:, None] & real_c[None, :])


@triton.jit
def wgrad(
    gy, x, out, images, ID, IH, IW, OD, OH, OW, g_sn, g_sc, g_sd, g_sh, g_sw, x_sn, x_sc, x_sd, x_sh, x_sw,
    o_ss, o_sg, o_st, o_su, o_sc,
    AXES: tl.constexpr, SEGS: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr,
    F: tl.constexpr, BLOCKS: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SUMMED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the reduced weight, or SPLITS partial ones that `reduce_splits` adds in fixed order.

    One program makes one tap of a tile of orbits and channels. Programs that share positions run together.
    """
    TAPS: tl.constexpr = field(AXES, 0, 0) * field(AXES, 1, 0) * field(AXES, 2, 0)
    COLUMNS: tl.constexpr = (C + BN - 1) // BN
    pid = tl.program_id(0)
    tap = pid % TAPS
    pid = pid // TAPS
    column = pid % COLUMNS
    pid = pid // COLUMNS
    block = pid % BLOCKS
    pid = pid // BLOCKS
    split = pid % SPLITS
    group = wide(pid // SPLITS)
    for s in tl.static_range(count(SEGS)):
        first = field(SEGS, s, BLOCK)
        if (block >= first) & (block < first + tl.cdiv(field(SEGS, s, ROWS), BM)):
            wgrad_segment(
                block - first, column, tap, split, group, gy, x, out, images, (ID, IH, IW), (OD, OH, OW),
                g_sn, g_sc, (g_sd, g_sh, g_sw), x_sn, x_sc, (x_sd, x_sh, x_sw), o_ss, o_sg, o_st, o_su, o_sc,
                AXES, SEGS, s, SCATTER, WIDE, C, F, SPLITS, BM, BN, BK, SUMMED, HALVE, PRECISION,
            )  # fmt: skip
