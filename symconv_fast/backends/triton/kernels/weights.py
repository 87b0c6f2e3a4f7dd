"""The weight fold before fprop, and the sum over splits after wgrad."""

from __future__ import annotations

import triton
import triton.language as tl

from .index import (
    MASK,
    PADDED,
    ROW,
    ROWS,
    count,
    field,
    item,
    orbit,
    wide,
    without,
)
from .sides import FIXED, KEPT, MOVED, both_of, place_of, subset


@triton.constexpr_function
def mirrors_taps(g, both, adjoint):
    """Axes along which the taps of member g are mirrored: in the adjoint, channels change places and taps stay."""
    return g & ~both if adjoint else g


@triton.jit
def fold_weights(
    w, folded, w_sg, w_su, w_sc, w_sd, w_sh, w_sw, f_st, f_sg, f_sc, f_su,
    AXES: tl.constexpr, SEGS: tl.constexpr, SIDES: tl.constexpr, ADJOINT: tl.constexpr, C: tl.constexpr,
    CP: tl.constexpr, UP: tl.constexpr, HALVE: tl.constexpr, BC: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    """Parity parts of the rows: (G, U, C, taps) -> [taps][G][CP, UP], padded with zeros.

    The part that is odd on the axes x stands, for each tap of the first half with the centre, at that tap mirrored
    along x: even parts fill the first half of an axis and odd parts the second. HALVE doubles the part once for each
    axis on which the sums of its inputs are halved.

    By letters that also move channels, each parity has CP channels of its own in place of those of each member. Rows
    that are their own images are kept as such. ADJOINT: rows and channels are exchanged in what is given for them.
    """
    KD: tl.constexpr = field(AXES, 0, 0)
    KH: tl.constexpr = field(AXES, 1, 0)
    KW: tl.constexpr = field(AXES, 2, 0)
    BOTH: tl.constexpr = both_of(SEGS, 0, SIDES)
    pid = tl.program_id(0)
    tap = pid % (item(SIDES, KEPT) * item(SIDES, KEPT + 1) * item(SIDES, KEPT + 2))
    pid = pid // (item(SIDES, KEPT) * item(SIDES, KEPT + 1) * item(SIDES, KEPT + 2))
    us = pid % tl.cdiv(UP, BU) * BU + tl.arange(0, BU)
    pid = pid // tl.cdiv(UP, BU)
    cs = pid % tl.cdiv(CP, BC) * BC + tl.arange(0, BC)
    pid = pid // tl.cdiv(CP, BC)
    block = pid % orbit(BOTH)
    group = wide(pid // orbit(BOTH))

    row = us * 0 - 1
    tie = us * 0
    for s in tl.static_range(count(SEGS)):
        at = us - field(SEGS, s, PADDED)
        here = (at >= 0) & (at < field(SEGS, s, ROWS))
        row = tl.where(here, at + field(SEGS, s, ROW), row)
        tie = tl.where(here, field(SEGS, s, MASK), tie)
    moved_odd = block * 0
    for i in tl.static_range(orbit(BOTH)):
        moved_odd = tl.where(block == i, subset(BOTH, i), moved_odd)

    kd, kh, kw = (
        tap // (item(SIDES, KEPT + 1) * item(SIDES, KEPT + 2)),
        tap // item(SIDES, KEPT + 2) % item(SIDES, KEPT + 1),
        tap % item(SIDES, KEPT + 2),
    )
    far = 4 * (2 * kd >= KD + KD % 2).to(tl.int32) + 2 * (2 * kh >= KH + KH % 2).to(tl.int32)
    turned = tie & without(7, BOTH) & (far + (2 * kw >= KW + KW % 2).to(tl.int32))
    odd = turned | moved_odd
    off_centre = 4 * (2 * kd != KD - 1).to(tl.int32) + 2 * (2 * kh != KH - 1).to(tl.int32)
    off_centre = off_centre + (2 * kw != KW - 1).to(tl.int32)
    halved = (tie | item(SIDES, FIXED)) & (off_centre | item(SIDES, MOVED))

    ACC: tl.constexpr = tl.float64 if w.dtype.element_ty == tl.float64 else tl.float32
    inside = (cs < C)[:, None] & (row >= 0)[None, :]
    total = tl.zeros((BC, BU), ACC)
    members = us * 0
    for g in tl.static_range(8):
        # Even parts are taken at the tap itself, odd ones at its mirror image: the sum is the same but for a sign,
        # which is that of the members that undo the mirroring.
        belongs = (g & ~tie) == 0
        members += belongs.to(tl.int32)
        odds = odd & g
        crossings = (odds & 1) + (odds >> 1 & 1) + (odds >> 2 & 1)
        sign = tl.where(crossings % 2 == 1, -1.0, 1.0)
        md = KD - 1 - kd if mirrors_taps(g, BOTH, ADJOINT) & 4 else kd
        mh = KH - 1 - kh if mirrors_taps(g, BOTH, ADJOINT) & 2 else kh
        mw = KW - 1 - kw if mirrors_taps(g, BOTH, ADJOINT) & 1 else kw
        if ADJOINT:
            rows, channels = row + place_of(BOTH, g) * field(SEGS, 0, ROWS), cs
        else:
            rows, channels = row, cs + place_of(BOTH, g) * C
        base = w + group * w_sg + wide(channels)[:, None] * w_sc + wide(rows)[None, :] * w_su
        offset = wide(md) * w_sd + wide(mh) * w_sh + wide(mw) * w_sw
        value = tl.load(base + offset, mask=inside & belongs[None, :], other=0.0).to(ACC)
        total += value * sign[None, :].to(ACC)
    flips = (turned & 1) + (turned >> 1 & 1) + (turned >> 2 & 1)
    scale = tl.where(flips % 2 == 1, -1.0, 1.0) / members.to(tl.float32)
    if HALVE:
        times = (halved & 1) + (halved >> 1 & 1) + (halved >> 2 & 1)
        scale = scale * (1 << times).to(tl.float32)
    total = total * scale[None, :].to(ACC)
    place = wide(tap) * f_st + group * f_sg + wide(block * CP + cs)[:, None] * f_sc + wide(us)[None, :] * f_su
    tl.store(folded + place, total.to(folded.dtype.element_ty), mask=(cs < CP)[:, None] & (us < UP)[None, :])


@triton.jit
def reduce_splits(
    partial, out, total, p_ss, o_sg, o_st, o_su, o_sc,
    U: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the partial results [SPLITS][G][TAPS][U][C] in fixed order, in the strides and dtype of the gradient."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # `configs.splits` keeps `total` far below 2^31
    inside = at < total
    here = wide(at)
    acc = tl.load(partial + here, mask=inside, other=0.0)
    for _ in range(1, SPLITS):
        here += p_ss
        acc += tl.load(partial + here, mask=inside, other=0.0)
    c = at % C
    at = at // C
    u = at % U
    at = at // U
    place = wide(at // TAPS) * o_sg + wide(at % TAPS) * o_st + wide(u) * o_su + wide(c) * o_sc
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside)
