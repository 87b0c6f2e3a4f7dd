"""Forward: the parity fold in registers, and the direct product over all filters."""

from __future__ import annotations

import triton
import triton.language as tl

from .index import (
    BLOCK,
    MASK,
    PADDED,
    ROW,
    ROWS,
    activate,
    count,
    destination,
    field,
    first_of,
    flat_tap,
    fold_loops,
    hadamard,
    item,
    member,
    orbit,
    origin,
    phase_of,
    phases,
    positions,
    rank,
    tap_at,
    tap_ranges,
    wide,
    window,
    without,
)
from .sides import MOVED, both_of, is_negated, parity_of, place_of, subset, tie_of


@triton.jit
def tile_positions(
    tile, phase, total, extents, sizes, AXES: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """The BM positions of a tile: image, positions on the axes, residues, destinations, and which of them exist."""
    if WIDE:
        tile = wide(tile)
    p = tile * BM + tl.arange(0, BM)
    n, td, th, tw = positions(p, extents[0], extents[1], extents[2])
    rd, rh, rw = phase_of(phase, AXES, SCATTER)
    od = destination(td, rd, AXES, 0, SCATTER)
    oh = destination(th, rh, AXES, 1, SCATTER)
    ow = destination(tw, rw, AXES, 2, SCATTER)
    exists = p < total
    if SCATTER:
        exists = exists & (od < sizes[0]) & (oh < sizes[1]) & (ow < sizes[2])
    origins = (origin(td, AXES, 0, SCATTER), origin(th, AXES, 1, SCATTER), origin(tw, AXES, 2, SCATTER))
    return n, origins, (rd, rh, rw), (od, oh, ow), exists


@triton.jit
def columns(origins):
    """The positions on the axes as columns of a tile."""
    return origins[0][:, None], origins[1][:, None], origins[2][:, None]


@triton.jit
def contraction(
    i, taps, starts, counts, AXES: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """(taps, channels, which exist) of the i-th block of the contraction.

    A block is BK channels of one tap; with PACKED, for few channels, BK consecutive (tap, channel) pairs.
    """
    if PACKED:
        at = i * BK + tl.arange(0, BK)
        c = at % C
        ks = tap_at(at // C, starts, counts, AXES, TIE, SCATTER)
        return ks, c, at // C < taps
    else:
        BLOCKS: tl.constexpr = (C + BK - 1) // BK
        c = i % BLOCKS * BK + tl.arange(0, BK)
        return tap_at(i // BLOCKS, starts, counts, AXES, TIE, SCATTER), c, c < C


@triton.jit
def fold_step(
    i, acc, x, x_base, x_sc, x_strides, origins, extents, residues, exists, w, w_st, w_sc, w_us,
    AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SIDES: tl.constexpr, CENTRE: tl.constexpr,
    SCATTER: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BK: tl.constexpr, PACKED: tl.constexpr,
    HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add block i of the taps in the middle of exactly the tied axes CENTRE to the parity results `acc`.

    Mirrored inputs are loaded, from the channels to which the mirrors move them, summed and subtracted in registers,
    and each parity is multiplied once.
    """
    TIE: tl.constexpr = tie_of(SEGS, S, SIDES)
    MOVES: tl.constexpr = item(SIDES, MOVED)
    BOTH: tl.constexpr = both_of(SEGS, S, SIDES)
    TURNED: tl.constexpr = without(field(SEGS, S, MASK), BOTH)
    PAIRED: tl.constexpr = without(TIE, CENTRE)
    NB: tl.constexpr = orbit(PAIRED)
    starts, counts = tap_ranges(residues, AXES, TIE, without(PAIRED, MOVES), CENTRE, SCATTER)
    taps = counts[0] * counts[1] * counts[2]
    ks, c, real = contraction(i, taps, starts, counts, AXES, TIE, SCATTER, C, BK, PACKED)
    base = x_base[:, None] + (wide(c) * x_sc)[None, :]
    valid = exists[:, None]
    if PACKED:
        valid = valid & real[None, :]
        across = (ks[0][None, :], ks[1][None, :], ks[2][None, :])
    else:
        if C % BK != 0:
            valid = valid & real[None, :]
        across = ks
    sources = ()
    for j in tl.static_range(NB):
        start = base
        if place_of(MOVES, subset(PAIRED, j)) > 0:
            start = x_base[:, None] + (wide(c + place_of(MOVES, subset(PAIRED, j)) * C) * x_sc)[None, :]
        value = window(
            x, start, origins, extents, x_strides, across, residues, AXES, subset(PAIRED, j), SCATTER, valid
        )
        sources = sources + (value,)
    folded = hadamard(sources, NB, HALVE)
    result = ()
    for j in tl.static_range(orbit(field(SEGS, S, MASK))):
        if parity_of(SEGS, S, SIDES, j) & CENTRE == 0:
            tap = flat_tap(ks, AXES, SIDES, parity_of(SEGS, S, SIDES, j) & TURNED)
            place = wide(tap) * w_st + wide(c + rank(BOTH, parity_of(SEGS, S, SIDES, j)) * CP) * w_sc
            if PACKED:
                part = tl.load(w + (place[:, None] + w_us[None, :]), mask=real[:, None], other=0.0)
            else:
                part = tl.load(w + (place[:, None] + w_us[None, :]))
            value = folded[rank(PAIRED, parity_of(SEGS, S, SIDES, j))]
            result = result + (
                tl.dot(value, part, acc[j], input_precision=PRECISION, out_dtype=acc[j].dtype),
            )
        else:
            result = result + (acc[j],)
    return result


@triton.jit
def fold_loop(
    acc, x, x_base, x_sc, x_strides, origins, extents, residues, exists, w, w_st, w_sc, w_us,
    AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SIDES: tl.constexpr, CENTRES: tl.constexpr,
    SCATTER: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BK: tl.constexpr, PACKED: tl.constexpr,
    HALVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the classes of taps CENTRES, which have the same number of blocks, to the parity results."""
    TIE: tl.constexpr = tie_of(SEGS, S, SIDES)
    HALF: tl.constexpr = without(without(TIE, item(CENTRES, 0)), item(SIDES, MOVED))
    _, counts = tap_ranges(residues, AXES, TIE, HALF, item(CENTRES, 0), SCATTER)
    taps = counts[0] * counts[1] * counts[2]
    if PACKED:
        steps = tl.cdiv(taps * C, BK)
    else:
        steps = taps * ((C + BK - 1) // BK)
    for i in range(steps):
        for j in tl.static_range(count(CENTRES)):
            acc = fold_step(
                i, acc, x, x_base, x_sc, x_strides, origins, extents, residues, exists, w, w_st, w_sc, w_us,
                AXES, SEGS, S, SIDES, item(CENTRES, j), SCATTER, C, CP, BK, PACKED, HALVE, PRECISION,
            )  # fmt: skip
    return acc


@triton.jit
def fold_tile(
    block, tile, phase, group, x, w, bias, y, total, extents, sizes, sources, x_sn, x_sc, x_strides, w_st, w_sg, w_sc,
    w_su, y_sn, y_sc, y_strides, AXES: tl.constexpr, SEGS: tl.constexpr, S: tl.constexpr, SIDES: tl.constexpr,
    SCATTER: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PACKED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """One tile of positions and orbits of segment S: all its members."""
    SPREAD: tl.constexpr = field(SEGS, S, MASK)
    LOOPS: tl.constexpr = fold_loops(AXES, tie_of(SEGS, S, SIDES), SIDES, SCATTER)
    ROWS_: tl.constexpr = field(SEGS, S, ROWS)
    INSIDE: tl.constexpr = C * orbit(item(SIDES, MOVED))
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    n, at, residues, to, exists = tile_positions(tile, phase, total, extents, sizes, AXES, SCATTER, WIDE, BM)
    x_base = wide(n) * x_sn + group * INSIDE * x_sc
    x_base += wide(at[0]) * x_strides[0] + wide(at[1]) * x_strides[1] + wide(at[2]) * x_strides[2]
    us = block * BN + tl.arange(0, BN)
    w_us = wide(us + field(SEGS, S, PADDED)) * w_su + group * w_sg

    acc = ()
    for _ in tl.static_range(orbit(SPREAD)):
        acc = acc + (tl.zeros((BM, BN), ACC),)
    for i in tl.static_range(count(LOOPS)):
        acc = fold_loop(
            acc, x, x_base, x_sc, x_strides, columns(at), sources, residues, exists, w, w_st, w_sc, w_us,
            AXES, SEGS, S, SIDES, item(LOOPS, i), SCATTER, C, CP, BK, PACKED, HALVE, PRECISION,
        )  # fmt: skip

    results = hadamard(acc, orbit(SPREAD), False)
    y_base = (
        wide(n) * y_sn + wide(to[0]) * y_strides[0] + wide(to[1]) * y_strides[1] + wide(to[2]) * y_strides[2]
    )
    real = us < ROWS_
    for j in tl.static_range(orbit(SPREAD)):
        channel = group * F + first_of(SEGS, S, j) + us
        value = results[rank(SPREAD, member(SPREAD, j))]
        if is_negated(SIDES, member(SPREAD, j)):
            value = -value
        if BIAS:
            value += tl.load(bias + channel, mask=real, other=0.0).to(ACC)[None, :]
        value = activate(value, ACT)
        place = y_base[:, None] + (channel * y_sc)[None, :]
        tl.store(y + place, value.to(y.dtype.element_ty), mask=exists[:, None] & real[None, :])


@triton.jit
def fprop_fold(
    x, w, bias, y, total, tiles, TD, TH, TW, ID, IH, IW, OD, OH, OW,
    x_sn, x_sc, x_sd, x_sh, x_sw, w_st, w_sg, w_sc, w_su, y_sn, y_sc, y_sd, y_sh, y_sw,
    AXES: tl.constexpr, SEGS: tl.constexpr, SIDES: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PACKED: tl.constexpr, HALVE: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    """Output of the segments in SEGS from folded weights: MACs of the reduced weight.

    C channels are contracted, where mirrors move them the first of each orbit; with what fills the last block they are
    CP. One program makes all members of BN orbits at BM positions. Programs that share positions run together.
    """
    pid = tl.program_id(0)
    block = pid % BLOCKS
    pid = pid // BLOCKS
    tile = pid % tiles
    pid = pid // tiles
    phase = pid % phases(AXES, SCATTER)
    group = wide(pid // phases(AXES, SCATTER))
    for s in tl.static_range(count(SEGS)):
        first = field(SEGS, s, BLOCK)
        if (block >= first) & (block < first + tl.cdiv(field(SEGS, s, ROWS), BN)):
            fold_tile(
                block - first, tile, phase, group, x, w, bias, y, total, (TD, TH, TW), (OD, OH, OW), (ID, IH, IW),
                x_sn, x_sc, (x_sd, x_sh, x_sw), w_st, w_sg, w_sc, w_su, y_sn, y_sc, (y_sd, y_sh, y_sw),
                AXES, SEGS, s, SIDES, SCATTER, WIDE, C, CP, F, BM, BN, BK, PACKED, HALVE, PRECISION, BIAS, ACT,
            )  # fmt: skip


@triton.jit
def filter_of(f, SEGS: tl.constexpr):
    """(row, mirrored axes) of the output channels f of a group."""
    row = f * 0
    mirror = f * 0
    for s in tl.static_range(count(SEGS)):
        for j in tl.static_range(orbit(field(SEGS, s, MASK))):
            at = f - first_of(SEGS, s, j)
            row = tl.where((at >= 0) & (at < field(SEGS, s, ROWS)), at + field(SEGS, s, ROW), row)
            mirror = tl.where(
                (at >= 0) & (at < field(SEGS, s, ROWS)), member(field(SEGS, s, MASK), j), mirror
            )
    return row, mirror


@triton.jit
def fprop_direct(
    x, w, bias, y, total, tiles, TD, TH, TW, ID, IH, IW, OD, OH, OW,
    x_sn, x_sc, x_sd, x_sh, x_sw, w_sg, w_su, w_sc, w_sd, w_sh, w_sw, y_sn, y_sc, y_sd, y_sh, y_sw,
    AXES: tl.constexpr, SEGS: tl.constexpr, SCATTER: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr,
    F: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PACKED: tl.constexpr,
    PRECISION: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """Output of all segments from the raw reduced weight: the MACs and the rounding of the ordinary convolution.

    One implicit matrix product whose columns are the output channels of a group; a column reads its row of the
    weight at mirrored taps.
    """
    KD: tl.constexpr = field(AXES, 0, 0)
    KH: tl.constexpr = field(AXES, 1, 0)
    KW: tl.constexpr = field(AXES, 2, 0)
    BLOCKS: tl.constexpr = (F + BN - 1) // BN
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    pid = tl.program_id(0)
    fs = pid % BLOCKS * BN + tl.arange(0, BN)
    pid = pid // BLOCKS
    tile = pid % tiles
    pid = pid // tiles
    phase = pid % phases(AXES, SCATTER)
    group = wide(pid // phases(AXES, SCATTER))
    n, at, residues, to, exists = tile_positions(
        tile, phase, total, (TD, TH, TW), (OD, OH, OW), AXES, SCATTER, WIDE, BM
    )
    x_base = wide(n) * x_sn + group * C * x_sc
    x_base += wide(at[0]) * x_sd + wide(at[1]) * x_sh + wide(at[2]) * x_sw
    origins = columns(at)
    real_f = fs < F
    row, mirror = filter_of(fs, SEGS)
    w_row = group * w_sg + wide(row) * w_su

    starts, counts = tap_ranges(residues, AXES, 0, 0, 0, SCATTER)
    taps = counts[0] * counts[1] * counts[2]
    if PACKED:
        steps = tl.cdiv(taps * C, BK)
    else:
        steps = taps * ((C + BK - 1) // BK)
    acc = tl.zeros((BM, BN), ACC)
    for i in range(steps):
        ks, c, real = contraction(i, taps, starts, counts, AXES, 0, SCATTER, C, BK, PACKED)
        if PACKED:
            across = (ks[0][None, :], ks[1][None, :], ks[2][None, :])
            down = (ks[0][:, None], ks[1][:, None], ks[2][:, None])
        else:
            across = ks
            down = ks
        valid = exists[:, None] & real[None, :]
        base = x_base[:, None] + (wide(c) * x_sc)[None, :]
        a = window(
            x, base, origins, (ID, IH, IW), (x_sd, x_sh, x_sw), across, residues, AXES, 0, SCATTER, valid
        )
        kd = tl.where((mirror & 4)[None, :] != 0, KD - 1 - down[0], down[0])
        kh = tl.where((mirror & 2)[None, :] != 0, KH - 1 - down[1], down[1])
        kw = tl.where((mirror & 1)[None, :] != 0, KW - 1 - down[2], down[2])
        place = (
            w_row[None, :] + (wide(c) * w_sc)[:, None] + wide(kd) * w_sd + wide(kh) * w_sh + wide(kw) * w_sw
        )
        b = tl.load(w + place, mask=real[:, None] & real_f[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)

    channel = group * F + fs
    if BIAS:
        acc += tl.load(bias + channel, mask=real_f, other=0.0).to(ACC)[None, :]
    acc = activate(acc, ACT)
    place = (wide(n) * y_sn + wide(to[0]) * y_sd + wide(to[1]) * y_sh + wide(to[2]) * y_sw)[:, None]
    tl.store(
        y + (place + (channel * y_sc)[None, :]),
        acc.to(y.dtype.element_ty),
        mask=exists[:, None] & real_f[None, :],
    )
