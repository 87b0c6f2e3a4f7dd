"""Ties as numbers, the form in which the operators take them: `Ties.flat`.

[mask, rows, ...] for each segment. Where mirrors do more than exchange members a head comes before that, whose first
number is negative; a self-symmetric segment then has its code for a mask. csrc/cpu/orbits.h reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .checks import ShapeError
from .sides import BITS, Involutions, Sides

_NOTHING, _ORBITS, _TABLES = range(3)


def encode_head(sides: Sides) -> tuple[int, ...]:
    """What stands before the segments, where there is anything to say: minus its length, and

    1 where mirrors exchange groups, else 0; the number of dims of the kernel, and its sizes, or 0; then 0 where no
    input channel moves, or 1, groups and number of segments of the input, and mask and rows of each, or 2, the number
    of channels, the letters, and an involution for each of them.
    """
    inputs = sides.inputs
    moves: tuple[int, ...] = (_NOTHING,)
    if isinstance(inputs, Involutions):
        letters = sum(bit for bit, _ in inputs.tables)
        moves = (_TABLES, inputs.out_channels, letters, *(c for _, table in inputs.tables for c in table))
    elif inputs is not None:
        moves = (_ORBITS, inputs.groups, len(inputs.segments), *inputs.flat)
    head = (int(sides.across), len(sides.kernel), *sides.kernel, *moves)
    return (-1 - len(head), *head)


class Head(NamedTuple):
    """What `encode_head` wrote; `inputs` as (groups, [mask, rows, ...]) or as `Involutions`."""

    across: bool
    kernel: tuple[int, ...]
    orbits: tuple[int, tuple[int, ...]] | None
    tables: Involutions | None


def decode_head(flat: Sequence[int]) -> tuple[Head, tuple[int, ...]]:
    """The head of flat ties that begin with a negative number, and what follows it: [code, rows, ...].

    Raises:
        ShapeError: it is not well formed.
    """
    length, rest = -flat[0], list(flat[1 : max(1, -flat[0])])

    def take(count: int) -> tuple[int, ...]:
        if not 0 <= count <= len(rest):
            raise ShapeError(f"ties {list(flat)} end inside their head")
        taken = tuple(rest[:count])
        del rest[:count]
        return taken

    across, dims = take(2)
    kernel, (kind,) = take(dims), take(1)
    orbits = tables = None
    if kind == _ORBITS:
        own, count = take(2)
        orbits = own, take(2 * count)
    elif kind == _TABLES:
        channels, letters = take(2)
        tables = Involutions(tuple((bit, take(channels)) for bit in BITS if letters & bit))
    if kind not in (_NOTHING, _ORBITS, _TABLES) or rest or across not in (0, 1) or length > len(flat):
        raise ShapeError(f"ties {list(flat)} have a head that is not well formed")
    return Head(bool(across), kernel, orbits, tables), tuple(flat[length:])


def is_sided(flat: Sequence[int]) -> bool:
    """Do flat ties begin with a head? Then `decode` reads them."""
    return len(flat) > 0 and flat[0] < 0
