"""Compile-time arithmetic of ties on both sides: which letters do what, and whose channels and signs images have.

`SIDES` is (moved, fixed, parity, kept taps along depth, height, width), as `letters.Letters` and `geometry.Geometry`
say: letters that move the channels that are read, letters by which rows are their own images, and by which of these
they are negated. The letters of the mask in `SEGS` make members of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....ties import COPIES

MOVED = tl.constexpr(0)
FIXED = tl.constexpr(1)
KEPT = tl.constexpr(3)


@triton.constexpr_function
def subset(mask, i):
    """The i-th subset of a mask: bit j of i stands for the j-th bit that is set in the mask."""
    bits = [b for b in (1, 2, 4) if mask & b]
    return sum(b for j, b in enumerate(bits) if i >> j & 1)


@triton.constexpr_function
def place_of(mask, part):
    """The number of a member among those of an orbit: that of its channels, where mirrors move channels."""
    return sum(i for i, member in enumerate((0, *COPIES[mask])) if member == part & mask)


@triton.constexpr_function
def tie_of(segs, s, sides):
    """The letters of a segment: those that make members, and those by which rows are their own images."""
    return segs[s][0] | sides[1]


@triton.constexpr_function
def both_of(segs, s, sides):
    """The letters that move channels and make members."""
    return segs[s][0] & sides[0]


@triton.constexpr_function
def parity_of(segs, s, sides, j):
    """The letters in which the j-th parity of a segment is odd; there is one for each member."""
    return subset(segs[s][0], j) | (sides[2] & sides[1])


@triton.constexpr_function
def image(both, i, added, j):
    """The j-th member by the letters `added` of the i-th by the letters `both`."""
    return subset(both, i) | (0, *COPIES[added])[j]


@triton.constexpr_function
def is_negated(sides, part):
    """Does the image along the mirrors `part` have the other sign?"""
    return bin(sides[2] & part).count("1") % 2 == 1


@triton.constexpr_function
def first_by(segs, s, part):
    """The same of the member that the mirrors `part` make; letters that make none are left out."""
    mask, row, rows, copy, *_ = segs[s]
    j = place_of(mask, part)
    return row if j == 0 else copy + (j - 1) * rows
