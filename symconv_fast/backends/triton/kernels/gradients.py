"""Gradient of the input: the members of an orbit are summed at their mirrored taps and meet the raw weight."""

from __future__ import annotations

import triton
import triton.language as tl

from .fprop import columns, contraction, tile_positions
from .index import (
    MASK,
    ROW,
    ROWS,
    count,
    field,
    first_of,
    member,
    orbit,
    phases,
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
