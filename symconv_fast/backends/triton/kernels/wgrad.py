"""Gradient of the weight: members summed at their mirrored taps, one product for each tap that a program makes.

Positions are taken in blocks of images, rows and columns. What depends on the place inside a block is the same in
every block, so that a block costs no division for each of its positions.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .index import (
    BLOCK,
    ROW,
    ROWS,
    count,
    field,
    hadamard,
    item,
    mirrored,
    mixed_phases,
    orbit,
    sum_members,
    wide,
    within,
    without,
)
from .sides import FIXED, KEPT, both_of, first_by, image, is_negated, place_of, subset, tie_of


@triton.jit
def reach(size, AXES: tl.constexpr, A: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr):
    """How many positions of the input on axis A must be looked at for one tap."""
    if SCATTER and not mixed_phases(AXES, A, TIE):
        return (size + field(AXES, A, 1) - 1) // field(AXES, A, 1)
    else:
        return size


@triton.constexpr_function
def volume(sizes, first):
    """Elements of a block on its dimensions from `first` on."""
    return math.prod(sizes[first:])


@triton.jit
def inside_block(r, SIZES: tl.constexpr, D: tl.constexpr):
    """Place on dimension D (image, depth, height, width) of element r of a block."""
    return r // volume(SIZES, D + 1) % item(SIZES, D)


@triton.jit
def advance(b, after, extent, STEP: tl.constexpr, AFTER_STEP: tl.constexpr):
    """A place STEP further on a dimension, or at its beginning and AFTER_STEP further on the one around it."""
    b = b + STEP
    over = b >= extent
    return tl.where(over, 0, b), tl.where(over, after + AFTER_STEP, after)


@triton.jit
def input_place(
    b, inner, k, AXES: tl.constexpr, A: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr
):  # fmt: skip
    """Position of the input on axis A, number b + inner of those that tap k can use: what b and inner each add."""
    if SCATTER and not mixed_phases(AXES, A, TIE):
        S: tl.constexpr = field(AXES, A, 1)
        return b * S + (k * field(AXES, A, 2) + field(AXES, A, 3) * (S - 1)) % S, inner * S
    else:
        return b, inner


@triton.jit
def output_place(
    b, inner, k, AXES: tl.constexpr, A: tl.constexpr, FLIP: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr
):  # fmt: skip
    """Position of the output that tap k, mirrored along FLIP, joins with that of `input_place`: two parts again.

    Their sum is negative or past the end where there is none.
    """
    S: tl.constexpr = field(AXES, A, 1)
    D: tl.constexpr = field(AXES, A, 2)
    P: tl.constexpr = field(AXES, A, 3)
    k = mirrored(k, AXES, A, FLIP)
    if SCATTER:
        LIFT: tl.constexpr = D * field(AXES, A, 0)  # keeps dividends positive
        if mixed_phases(AXES, A, TIE):
            lifted = b + inner + (P - k * D + LIFT * S)
            quotient = lifted // S
            return b * 0, tl.where(quotient * S == lifted, quotient - LIFT, -1)
        else:
            residue = (k * D + P * (S - 1)) % S
            return b + ((residue + P - k * D + LIFT * S) // S - LIFT), inner
    else:
        return b * S + (k * D - P), inner * S


@triton.constexpr_function
def scale_of(segs, s, sides, halved):
    """What sums of products are multiplied by: halving of both factors is undone, and parities are averaged."""
    parities = orbit(both_of(segs, s, sides))
    return (orbit(tie_of(segs, s, sides)) * parities if halved else 1) / parities


@triton.jit
def once(value, k, AXES: tl.constexpr, A: tl.constexpr, SIDES: tl.constexpr):
    """Half of the value in the middle of axis A where rows are their own images along it: it was added twice."""
    K: tl.constexpr = field(AXES, A, 0)
    if item(SIDES, FIXED) & (4 >> A) and K % 2 == 1:
        return tl.where(2 * k == K - 1, value * 0.5, value)
    else:
        return value


@triton.jit
def wgrad_segment(
    block, column, row, split, group, gy, x, out, images, sizes, outputs, g_sn, g_sc, g_strides, x_sn, x_sc, x_strides,
    o_ss, o_sg, o_st, o_su, o_sc, AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SIDES: tl.constexpr,
    SCATTER: tl.constexpr, C: tl.constexpr, F: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SIZES: tl.constexpr, TAPS: tl.constexpr, SUMMED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """TAPS taps of BM orbits of segment S and BN channels, over one of the SPLITS of the positions.

    By letters that also move channels both factors are taken to their parities, and the channels are the first of each
    orbit: there is one product for each parity, and all members of the channels come out of their sums.
    """
    TIE: tl.constexpr = tie_of(SEGS, S, SIDES)
    BOTH: tl.constexpr = both_of(SEGS, S, SIDES)
    ADDED: tl.constexpr = without(TIE, BOTH)
    NB: tl.constexpr = orbit(BOTH)
    KH: tl.constexpr = item(SIDES, KEPT + 1)
    KW: tl.constexpr = item(SIDES, KEPT + 2)
    BK: tl.constexpr = volume(SIZES, 0)
    ACC: tl.constexpr = tl.float64 if gy.dtype.element_ty == tl.float64 else tl.float32
    ROWS_OF_TAPS: tl.constexpr = (KW + TAPS - 1) // TAPS
    first_kw = row % ROWS_OF_TAPS * TAPS
    kd, kh = row // ROWS_OF_TAPS // KH, row // ROWS_OF_TAPS % KH
    us = block * BM + tl.arange(0, BM)
    cs = column * BN + tl.arange(0, BN)
    real_u = us < field(SEGS, S, ROWS)
    real_c = cs < C
    r = tl.arange(0, BK)
    rn, rd, rh, rw = (
        inside_block(r, SIZES, 0), inside_block(r, SIZES, 1), inside_block(r, SIZES, 2), inside_block(r, SIZES, 3)
    )  # fmt: skip
    width = reach(sizes[2], AXES, 2, TIE, SCATTER)
    height = reach(sizes[1], AXES, 1, TIE, SCATTER)
    depth = reach(sizes[0], AXES, 0, TIE, SCATTER)
    across, down, deep = (
        tl.cdiv(width, item(SIZES, 3)),
        tl.cdiv(height, item(SIZES, 2)),
        tl.cdiv(depth, item(SIZES, 1)),
    )
    steps = tl.cdiv(images, item(SIZES, 0)) * deep * down * across
    each = tl.cdiv(steps, SPLITS)
    first = split * each
    bw = first % across * item(SIZES, 3)
    bh = first // across % down * item(SIZES, 2)
    bd = first // across // down % deep * item(SIZES, 1)
    n = first // across // down // deep * item(SIZES, 0)
    acc = ()
    for _ in tl.static_range(TAPS * NB):
        acc = acc + (tl.zeros((BM, BN), ACC),)
    for _ in range(first, tl.minimum(first + each, steps)):
        xd, ld = input_place(bd, rd, kd, AXES, 0, TIE, SCATTER)
        xh, lh = input_place(bh, rh, kh, AXES, 1, TIE, SCATTER)
        xw, lw = input_place(bw, rw, first_kw, AXES, 2, TIE, SCATTER)
        exists = (xd + ld < sizes[0]) & (xh + lh < sizes[1]) & (xw + lw < sizes[2])
        if item(SIZES, 0) > 1:
            exists = exists & (n + rn < images)
        there = wide(n) * x_sn + wide(xd) * x_strides[0] + wide(xh) * x_strides[1] + wide(xw) * x_strides[2]
        place = wide(rn) * x_sn + wide(ld) * x_strides[0] + wide(lh) * x_strides[1] + wide(lw) * x_strides[2]
        sources = ()
        for i in tl.static_range(NB):
            channels = group * (C * NB) + (cs + place_of(BOTH, subset(BOTH, i)) * C)
            b = tl.load(
                x + there + (place[:, None] + (channels * x_sc)[None, :]),
                mask=exists[:, None] & real_c[None, :],
                other=0.0,
            )
            sources = sources + (b,)
        sources = hadamard(sources, NB, HALVE)
        sums = ()
        for t in tl.static_range(TAPS):
            kw = first_kw + t
            if KW % TAPS != 0:
                kw = tl.minimum(kw, KW - 1)
            totals = ()
            product = acc[t * NB]
            for i in tl.static_range(NB):
                loaded = ()
                for j in tl.static_range(orbit(ADDED)):
                    od, ld = output_place(bd, rd, kd, AXES, 0, image(BOTH, i, ADDED, j), TIE, SCATTER)
                    oh, lh = output_place(bh, rh, kh, AXES, 1, image(BOTH, i, ADDED, j), TIE, SCATTER)
                    ow, lw = output_place(bw, rw, kw, AXES, 2, image(BOTH, i, ADDED, j), TIE, SCATTER)
                    inside = exists & within(od + ld, outputs[0], AXES, 0, SCATTER)
                    inside = inside & within(oh + lh, outputs[1], AXES, 1, SCATTER)
                    inside = inside & within(ow + lw, outputs[2], AXES, 2, SCATTER)
                    there = wide(n) * g_sn + (group * F + first_by(SEGS, S, image(BOTH, i, ADDED, j))) * g_sc
                    there += wide(od) * g_strides[0] + wide(oh) * g_strides[1] + wide(ow) * g_strides[2]
                    place = wide(rn) * g_sn
                    place += wide(ld) * g_strides[0] + wide(lh) * g_strides[1] + wide(lw) * g_strides[2]
                    # Loaded as [orbit, position], the way the product wants it: a transposition would go through
                    # shared memory.
                    offsets = (wide(us) * g_sc)[:, None] + place[None, :]
                    a = tl.load(gy + there + offsets, mask=real_u[:, None] & inside[None, :], other=0.0)
                    if is_negated(SIDES, image(BOTH, i, ADDED, j)):
                        a = -a
                    if SUMMED:
                        loaded = loaded + (a,)
                    else:
                        product = tl.dot(a, sources[0], product, input_precision=PRECISION, out_dtype=ACC)
                if SUMMED:
                    totals = totals + (sum_members(loaded, orbit(ADDED), HALVE),)
            if SUMMED:
                totals = hadamard(totals, NB, HALVE)
                for i in tl.static_range(NB):
                    product = tl.dot(
                        totals[i],
                        sources[i],
                        acc[t * NB + i],
                        input_precision=PRECISION,
                        out_dtype=ACC,
                    )
                    sums = sums + (product,)
            else:
                sums = sums + (product,)
        acc = sums
        # The next block, without a division.
        bw, bh = advance(bw, bh, width, item(SIZES, 3), item(SIZES, 2))
        bh, bd = advance(bh, bd, height, 0, item(SIZES, 1))
        bd, n = advance(bd, n, depth, 0, item(SIZES, 0))
    u = us + field(SEGS, S, ROW)
    base = wide(split) * o_ss + group * o_sg + (wide(u) * o_su)[:, None]
    for t in tl.static_range(TAPS):
        kw = first_kw + t
        stored = real_u[:, None] & real_c[None, :]
        if KW % TAPS != 0:
            stored = stored & (kw < KW)
        tap = wide((kd * KH + kh) * KW + kw) * o_st
        parities = ()
        for i in tl.static_range(NB):
            parities = parities + (acc[t * NB + i],)
        results = hadamard(parities, NB, False)
        for i in tl.static_range(NB):
            result = results[i]
            if scale_of(SEGS, S, SIDES, HALVE and SUMMED) != 1:
                result = result * scale_of(SEGS, S, SIDES, HALVE and SUMMED)
            result = once(once(once(result, kd, AXES, 0, SIDES), kh, AXES, 1, SIDES), kw, AXES, 2, SIDES)
            channels = cs + place_of(BOTH, subset(BOTH, i)) * C
            place = base + (wide(channels) * o_sc)[None, :] + tap
            tl.store(out + place, result.to(out.dtype.element_ty), mask=stored)


@triton.jit
def wgrad(
    gy, x, out, images, ID, IH, IW, OD, OH, OW, g_sn, g_sc, g_sd, g_sh, g_sw, x_sn, x_sc, x_sd, x_sh, x_sw,
    o_ss, o_sg, o_st, o_su, o_sc,
    AXES: tl.constexpr, SEGS: tl.constexpr, SIDES: tl.constexpr, SCATTER: tl.constexpr, C: tl.constexpr,
    F: tl.constexpr, BLOCKS: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SIZES: tl.constexpr, TAPS: tl.constexpr, SUMMED: tl.constexpr, HALVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the reduced weight, or SPLITS partial ones that `reduce_splits` adds in fixed order.

    One program makes TAPS neighbours along the width of a tile of orbits and channels, from blocks of SIZES (images,
    depth, height, width) positions. Programs that share positions run together.
    """
    ROWS_OF_TAPS: tl.constexpr = (
        item(SIDES, KEPT) * item(SIDES, KEPT + 1) * ((item(SIDES, KEPT + 2) + TAPS - 1) // TAPS)
    )
    COLUMNS: tl.constexpr = (C + BN - 1) // BN
    pid = tl.program_id(0)
    row = pid % ROWS_OF_TAPS
    pid = pid // ROWS_OF_TAPS
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
                block - first, column, row, split, group, gy, x, out, images, (ID, IH, IW), (OD, OH, OW),
                g_sn, g_sc, (g_sd, g_sh, g_sw), x_sn, x_sc, (x_sd, x_sh, x_sw), o_ss, o_sg, o_st, o_su, o_sc,
                AXES, SEGS, s, SIDES, SCATTER, C, F, SPLITS, BM, BN, SIZES, TAPS, SUMMED, HALVE, PRECISION,
            )  # fmt: skip
