"""Ties on both sides as the kernels take them: what the mirror along each letter does to channels and to rows.

A letter may move the channels that a pass reads, each to its partner in another block, or leave them in place. And it
may make members of rows, or make rows their own images, up to a sign. One family of kernels has all four: a lift leaves
channels in place and makes members; a layer between orbits moves them and makes members; self-symmetric filters make
none. The adjoint of a layer has the two sides exchanged, so it is of the family too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ...problem import Problem
from ...sides import BITS, Sides, permutation
from ...ties import members


class Letters(NamedTuple):
    """Masks of letters: `moved` move the channels that are read, `fixed` make rows their own images, odd by `parity`.

    `order` says where the input channels of a group are that the kernels take for the first, second, ...: all channels
    of one member after those of another. It is empty where they lie so.
    """

    moved: int = 0
    fixed: int = 0
    parity: int = 0
    order: tuple[int, ...] = ()


def refusal(problem: Problem, algorithm: str = "fold") -> str | None:
    """Why the kernels do not take the ties of a problem, as a clause, or None."""
    found = _letters(problem.sides, problem.ties)
    if isinstance(found, str):
        return found
    if problem.sides and algorithm != "fold":
        return f"{problem.sides.why_not}, which is for the fold alone"
    if found.fixed and problem.groups > 1 and problem.in_channels == problem.groups:
        return "a depthwise layer has no kernels for filters that are their own images"
    return None


def letters(problem: Problem) -> Letters:
    """What the letters of a problem do that `refusal` has nothing against."""
    found = _letters(problem.sides, problem.ties)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=1024)
def _letters(sides: Sides | None, ties: tuple[tuple[int, int], ...]) -> Letters | str:
    """The letters, or why the kernels do not take them."""
    if sides is None:
        return Letters()
    kinds = {(own, mask) for own, (mask, rows) in zip(sides.own, ties) if rows}
    if len(kinds) != 1:
        return "its filters have several ties, and mirrors move its input or make filters their own images"
    if sides.across:
        return "its mirrors exchange groups of channels"
    ((own, mask),) = kinds
    tie = own.mask if own else mask
    moved = sum(bit for bit in BITS if tie & bit and permutation(sides.inputs, bit) is not None)
    order = _order(sides, moved)
    if order is None:
        return "some of its mirrors leave an input channel in its place and move others"
    return Letters(moved, tie if own else 0, own.parity if own else 0, order)


def _order(sides: Sides, moved: int) -> tuple[int, ...] | None:
    """`Letters.order`; None where orbits of channels have fewer channels than there are mirrors."""
    if not moved or sides.inputs is None:
        return ()
    own = tuple(range(sides.inputs.out_channels // sides.groups))
    images = [sides.take(member) or own for member in members(moved)]
    firsts = [c for c in own if c == min(image[c] for image in images)]
    order = tuple(image[c] for image in images for c in firsts)
    if sorted(order) != list(own):
        return None
    return () if order == own else order
