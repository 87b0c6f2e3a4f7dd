"""Index maps shared by all kernels: ties, taps, phases, and where a tap reads.

`AXES` is ((K, S, D, P), ...) for depth, height, width: kernel, stride, dilation, padding. Axis a of it is bit `4 >> a`
of a mask, so that bit 0 is the width. `SEGS` is ((mask, first row, rows, first copy, first block, first padded row),
...): the orbits of one group that share a tie, where their mirrored copies begin among the channels, and where the
blocks of the grid and the folded weights begin that belong to them. What `SIDES` is stands in `sides`.

A source position on an axis is `a * t + shift(tap)`, t counting the positions of the destination. Gathering (a forward
convolution) a is the stride; scattering (its adjoint) the destination is split into as many phases as the stride, in
each only some taps are present, and a is 1.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ....ties import COPIES
from .sides import KEPT, subset

MASK = tl.constexpr(0)
ROW = tl.constexpr(1)
ROWS = tl.constexpr(2)
COPY = tl.constexpr(3)
BLOCK = tl.constexpr(4)
PADDED = tl.constexpr(5)
OUTSIDE = tl.constexpr(-(1 << 30))  # moves any origin out of the source

# --- compile-time arithmetic ---------------------------------------------------------------------------------------


@triton.constexpr_function
def count(items):
    """Length of a tuple."""
    return len(items)


@triton.constexpr_function
def field(table, row, column):
    """One number of a table: `SEGS` or `AXES`."""
    return table[row][column]


@triton.constexpr_function
def orbit(mask):
    """Members of an orbit, which is also the number of its parities."""
    return 1 << bin(mask).count("1")


@triton.constexpr_function
def rank(mask, part):
    """Which subset of `mask` a mask `part` is: the inverse of `subset`."""
    bits = [b for b in (1, 2, 4) if mask & b]
    return sum(1 << j for j, b in enumerate(bits) if part & b)


@triton.constexpr_function
def member(mask, j):
    """Mirrored axes of the j-th member of an orbit, in the order of the output channels."""
    return (0, *COPIES[mask])[j]


@triton.constexpr_function
def first_of(segs, s, j):
    """First output channel of the j-th member of the orbits of a segment, inside a group."""
    _, row, rows, copy, *_ = segs[s]
    return row if j == 0 else copy + (j - 1) * rows


@triton.constexpr_function
def without(mask, part):
    """The axes of `mask` that are not in `part`."""
    return mask & ~part


@triton.constexpr_function
def has_class(axes, tie, centre):
    """Are there taps in the middle of exactly the tied axes `centre`?"""
    odd = all(axes[a][0] % 2 for a in range(3) if centre & (4 >> a))
    return odd and all(axes[a][0] > 1 for a in range(3) if tie & ~centre & (4 >> a))


@triton.constexpr_function
def fold_loops(axes, tie, sides, scatter):
    """The loops of the fold: classes of taps, each given by the tied axes on which its taps are in the middle.

    Full pairs come first, middles last. Classes with as many taps share a loop, which saves registers: with a loop for
    each, or in another order, ptxas spills or serialises `hv` for some numbers of channels. With several phases
    the numbers of taps depend on the phase. Where a mirror moves the channels, no tap of a channel is its own image.
    """
    loops, tie = {}, tie & ~sides[0]
    for i in range(orbit(tie)):
        centre = subset(tie, i)
        if has_class(axes, tie, centre):
            free = [axes[a][0] // 2 for a in range(3) if tie & ~centre & (4 >> a)]
            key = centre if phases(axes, scatter) > 1 else (len(free), math.prod(free))
            loops.setdefault(key, []).append(centre)
    return tuple(tuple(loop) for loop in sorted(loops.values(), key=lambda loop: bin(loop[0]).count("1")))


@triton.constexpr_function
def item(table, i):
    """One entry of a tuple."""
    return table[i]


@triton.constexpr_function
def mixed_phases(axes, a, tie):
    """Scattering along tied axis `a`: is some tap in another phase than its mirror image?"""
    k, s, d, _ = axes[a]
    return bool(tie & (4 >> a)) and any(d * (k - 1 - 2 * tap) % s for tap in range(k))


@triton.constexpr_function
def tap_step(axes, a, tie, scatter):
    """Distance of the taps on axis `a` that belong to one phase; 1 where every tap must be looked at."""
    _, s, d, _ = axes[a]
    return s // math.gcd(s, d) if scatter and not mixed_phases(axes, a, tie) else 1


@triton.constexpr_function
def phases(axes, scatter):
    """Number of phases of the destination."""
    return math.prod(s for _, s, _, _ in axes) if scatter else 1


# --- positions -----------------------------------------------------------------------------------------------------


@triton.jit
def phase_of(index, AXES: tl.constexpr, SCATTER: tl.constexpr):
    """Residues of the destination (depth, height, width) of a phase."""
    if SCATTER:
        rw = index % field(AXES, 2, 1)
        rest = index // field(AXES, 2, 1)
        return rest // field(AXES, 1, 1), rest % field(AXES, 1, 1), rw
    else:
        return index * 0, index * 0, index * 0


@triton.jit
def positions(p, TD, TH, TW):
    """Image and position on every axis of flat positions."""
    tw = p % TW
    p = p // TW
    th = p % TH
    p = p // TH
    return p // TD, p % TD, th, tw


@triton.jit
def destination(t, r, AXES: tl.constexpr, A: tl.constexpr, SCATTER: tl.constexpr):
    """Position on axis A of the t-th destination of phase r."""
    if SCATTER:
        return r + t * field(AXES, A, 1)
    else:
        return t


@triton.jit
def origin(t, AXES: tl.constexpr, A: tl.constexpr, SCATTER: tl.constexpr):
    """The part of a source position that does not depend on the tap."""
    if SCATTER:
        return t
    else:
        return t * field(AXES, A, 1)


@triton.jit
def mirrored(k, AXES: tl.constexpr, A: tl.constexpr, MASK: tl.constexpr):
    """Tap k, or its mirror image where axis A is in MASK."""
    if MASK & (4 >> A):
        return field(AXES, A, 0) - 1 - k
    else:
        return k


@triton.jit
def shift(k, r, AXES: tl.constexpr, A: tl.constexpr, SCATTER: tl.constexpr):
    """What tap k adds to the origin: OUTSIDE, before every origin, where phase r does not have the tap.

    One number, not a number and a truth value: the mask is then made by the comparisons with the ends alone.
    """
    S: tl.constexpr = field(AXES, A, 1)
    D: tl.constexpr = field(AXES, A, 2)
    P: tl.constexpr = field(AXES, A, 3)
    if SCATTER:
        LIFT: tl.constexpr = D * field(AXES, A, 0)  # keeps the dividend positive
        lifted = r + P - k * D + LIFT * S
        quotient = lifted // S
        return tl.where(quotient * S == lifted, quotient - LIFT, OUTSIDE)
    else:
        return k * D - P


# --- taps ----------------------------------------------------------------------------------------------------------


@triton.jit
def first_tap(r, AXES: tl.constexpr, A: tl.constexpr, STEP: tl.constexpr):
    """The first tap that is present in phase r; K if there is none."""
    S: tl.constexpr = field(AXES, A, 1)
    D: tl.constexpr = field(AXES, A, 2)
    found = r * 0 + field(AXES, A, 0)
    for tap in tl.static_range(STEP):
        here = (r + field(AXES, A, 3) + tap * D * (S - 1)) % S == 0
        found = tl.where(here, tap, found)
    return found


@triton.jit
def tap_range(
    r, AXES: tl.constexpr, A: tl.constexpr, TIE: tl.constexpr, HALF: tl.constexpr, CENTRE: tl.constexpr,
    SCATTER: tl.constexpr,
):  # fmt: skip
    """(first tap, number of taps) on axis A in phase r.

    Axes in HALF give the first of each pair of mirrored taps, axes in CENTRE the middle tap, others all of them.
    """
    K: tl.constexpr = field(AXES, A, 0)
    STEP: tl.constexpr = tap_step(AXES, A, TIE, SCATTER)
    start = r * 0
    if STEP > 1:
        start = first_tap(r, AXES, A, STEP)
    if CENTRE & (4 >> A):
        MIDDLE: tl.constexpr = (K - 1) // 2
        present = (start <= MIDDLE) & ((MIDDLE - start) % STEP == 0)
        return r * 0 + MIDDLE, present.to(tl.int32)
    else:
        END: tl.constexpr = K // 2 if HALF & (4 >> A) else K
        return start, tl.maximum((END - start + STEP - 1) // STEP, 0)


@triton.jit
def tap_ranges(
    residues,
    AXES: tl.constexpr,
    TIE: tl.constexpr,
    HALF: tl.constexpr,
    CENTRE: tl.constexpr,
    SCATTER: tl.constexpr,
):
    """(first taps, numbers of taps) on the three axes."""
    d, nd = tap_range(residues[0], AXES, 0, TIE, HALF, CENTRE, SCATTER)
    h, nh = tap_range(residues[1], AXES, 1, TIE, HALF, CENTRE, SCATTER)
    w, nw = tap_range(residues[2], AXES, 2, TIE, HALF, CENTRE, SCATTER)
    return (d, h, w), (nd, nh, nw)


@triton.jit
def tap_at(
    i, starts, counts, AXES: tl.constexpr, TIE: tl.constexpr, SCATTER: tl.constexpr
):  # fmt: skip
    """Taps (depth, height, width) number i of the ranges on the three axes."""
    kw = starts[2] + i % tl.maximum(counts[2], 1) * tap_step(AXES, 2, TIE, SCATTER)
    i = i // tl.maximum(counts[2], 1)
    kh = starts[1] + i % tl.maximum(counts[1], 1) * tap_step(AXES, 1, TIE, SCATTER)
    kd = starts[0] + i // tl.maximum(counts[1], 1) * tap_step(AXES, 0, TIE, SCATTER)
    return kd, kh, kw


@triton.jit
def window(
    source, base, origins, extents, strides, taps, residues, AXES: tl.constexpr, FLIP: tl.constexpr,
    SCATTER: tl.constexpr, valid,
):  # fmt: skip
    """What the taps, mirrored along FLIP, read: zero where the source ends or `valid` is False.

    `base` holds the offsets of the origins (with the channels), `origins` the positions on the three axes; the taps
    are scalars, or broadcast against them.
    """
    bd = shift(mirrored(taps[0], AXES, 0, FLIP), residues[0], AXES, 0, SCATTER)
    bh = shift(mirrored(taps[1], AXES, 1, FLIP), residues[1], AXES, 1, SCATTER)
    bw = shift(mirrored(taps[2], AXES, 2, FLIP), residues[2], AXES, 2, SCATTER)
    zd, zh, zw = origins[0] + bd, origins[1] + bh, origins[2] + bw
    inside = within(zd, extents[0], AXES, 0, SCATTER) & within(zh, extents[1], AXES, 1, SCATTER)
    inside = inside & within(zw, extents[2], AXES, 2, SCATTER)
    moved = wide(bd) * strides[0] + wide(bh) * strides[1] + wide(bw) * strides[2]
    return tl.load(source + (base + moved), mask=inside & valid, other=0.0)


@triton.constexpr_function
def never_leaves(axes, a, scatter):
    """Has axis `a` one tap, which reads inside the source at every destination?"""
    k, s, d, p = axes[a]
    return k == 1 and p == 0 and (not scatter or (s == 1 and d == 1))


@triton.jit
def within(z, extent, AXES: tl.constexpr, A: tl.constexpr, SCATTER: tl.constexpr):
    """Is position z on axis A inside the source? One comparison: as unsigned numbers negative ones are the largest."""
    if never_leaves(AXES, A, SCATTER):
        return z == z
    else:
        UNSIGNED: tl.constexpr = tl.uint64 if z.dtype.scalar == tl.int64 else tl.uint32
        return z.to(UNSIGNED) < extent


@triton.jit
def wide(value):
    """As int64: offsets into tensors of more than 2^31 elements."""
    return value.to(tl.int64)


@triton.jit
def flat_tap(taps, AXES: tl.constexpr, SIDES: tl.constexpr, FLIP: tl.constexpr):
    """Number of the tap, mirrored along FLIP, among those that are kept."""
    kd = mirrored(taps[0], AXES, 0, FLIP)
    kh = mirrored(taps[1], AXES, 1, FLIP)
    return (kd * item(SIDES, KEPT + 1) + kh) * item(SIDES, KEPT + 2) + mirrored(taps[2], AXES, 2, FLIP)


# --- sums ----------------------------------------------------------------------------------------------------------


@triton.jit
def sum_level(values, COUNT: tl.constexpr, APART: tl.constexpr, HALVE: tl.constexpr):
    """Sums and differences of the values whose numbers differ in the bit APART.

    HALVE makes them halves of sums, which keeps float16 from overflowing; halving is exact.
    """
    out = ()
    for i in tl.static_range(COUNT):
        a = values[i & ~APART]
        b = values[i | APART]
        if HALVE:
            a = a * 0.5
            b = b * 0.5
        if i & APART:
            out = out + (a - b,)
        else:
            out = out + (a + b,)
    return out


@triton.jit
def hadamard(values, COUNT: tl.constexpr, HALVE: tl.constexpr):
    """Walsh-Hadamard transform of a tuple of 1, 2, 4 or 8: entry i becomes the sum of (-1)^|i & j| values[j]."""
    for level in tl.static_range(3):
        if (1 << level) < COUNT:
            values = sum_level(values, COUNT, 1 << level, HALVE)
    return values


@triton.jit
def sum_members(values, COUNT: tl.constexpr, HALVE: tl.constexpr):
    """Sum of 1, 2, 4 or 8 values, pair by pair; with HALVE their mean, which cannot overflow."""
    for level in tl.static_range(3):
        if (1 << level) < COUNT:
            sums = ()
            for i in tl.static_range(COUNT >> level + 1):
                a = values[2 * i]
                b = values[2 * i + 1]
                if HALVE:
                    sums = sums + (a * 0.5 + b * 0.5,)
                else:
                    sums = sums + (a + b,)
            values = sums
    return values[0]


@triton.jit
def activate(y, ACT: tl.constexpr):
    """The activation that is applied to an output tile: 0 none, 1 ReLU, 2 SiLU, 3 GELU (with erf)."""
    if ACT == 1:
        y = tl.maximum(y, 0.0)
    if ACT == 2:
        y = y / (1.0 + tl.exp(-y))
    if ACT == 3:
        y = y * 0.5 * (1.0 + tl.erf(y * 0.7071067811865476))
    return y
