"""Runs of output channels, and where their filters have their channels where mirrors move those of the input."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, NamedTuple

from .checks import ShapeError
from .sides import BITS, Sides, check_inputs, moves_groups

if TYPE_CHECKING:
    from .ties import Ties


class Block(NamedTuple):
    """A run of output channels inside a group: `rows` rows from `start`, mirrored along `member`.

    Channel c of these filters is channel `take[c]` of their rows, where a mirror moves input channels.
    """

    segment: int
    start: int
    rows: int
    member: int
    take: tuple[int, ...] | None = None


def _name(member: int) -> str:
    return "".join(c for c, bit in zip("hvz", BITS) if member & bit)


def moved_blocks(ties: Ties, sides: Sides) -> tuple[Block, ...]:
    """The blocks with where their filters have their channels; raises ShapeError for ties that no filters have."""
    check_inputs(sides.inputs, sides.groups)
    if len(sides.own) != len(ties.segments) or ties.groups != (1 if sides.across else sides.groups):
        raise ShapeError(f"{sides} do not fit {ties.segments} of groups={ties.groups}")
    if sides.is_packed and sides.across:
        raise ShapeError(
            "self-symmetric filters read the channels of their own group, but the mirrors exchange the groups of "
            f"groups={sides.groups}; use groups=1, or no input_symmetry"
        )
    for (mask, _), own in zip(ties.segments, sides.own):
        if own and (mask or own.parity & ~own.mask or not own.mask):
            raise ShapeError(f"{own} is no kind of self-symmetric filters")
        if own:
            sides.kept_of(own, 1, sides.kernel or (1,) * ties.ndim)  # says what cannot be kept
    if sides.inputs is None and not sides.across:
        return ties._blocks
    letters = functools.reduce(operator.or_, (mask for mask, _ in ties.segments), 0)
    for own in filter(None, sides.own):
        letters |= own.mask
    if moves_groups(sides.inputs, letters, sides.groups) != sides.across:
        raise ShapeError(
            f"across={sides.across} is not what the mirrors of {sides.inputs} do to {sides.groups} groups"
        )
    return _across(ties, sides) if sides.across else _inside(ties._blocks, sides)


def _inside(blocks: tuple[Block, ...], sides: Sides) -> tuple[Block, ...]:
    """Mirrors move channels inside of groups, in each group alike."""
    members = {block.member for block in blocks} | {
        own.mask & bit for own in sides.own if own for bit in (1, 2, 4)
    }
    takes = {member: {sides.take(member, group) for group in range(sides.groups)} for member in members}
    for member, found in takes.items():
        if len(found) > 1:
            raise ShapeError(
                f"the mirror along {_name(member)!r} moves the input channels of one group otherwise than those of "
                f"another; with groups={sides.groups} give an involution that is the same in each group, or groups=1"
            )
    return tuple(block._replace(take=takes[block.member].copy().pop()) for block in blocks)


def _across(ties: Ties, sides: Sides) -> tuple[Block, ...]:
    """Mirrors exchange groups: a filter and its image read the channels of groups that change places."""
    filters, moved, channel = ties.out_channels // sides.groups, [], 0
    for block in ties._blocks:
        takes = set()
        for i in range(block.rows if block.member else 0):
            group = (channel + i) // filters
            source, own = sides.source(block.member, group), (block.start + i) // filters
            if source != own:
                raise ShapeError(
                    f"output channel {block.start + i}, of group {own}, has its image along "
                    f"{_name(block.member)!r} in channel {channel + i}, of group {group}, but the input channels "
                    f"of that group are images of those of group {source}; give a symmetry whose orbits lie in the "
                    "groups as those of the input do, such as the same one, or groups=1"
                )
            takes.add(sides.take(block.member, group))
        if len(takes) > 1:
            raise ShapeError(
                f"the mirror along {_name(block.member)!r} moves channels of one group otherwise than those of "
                f"another; give other groups than groups={sides.groups}, such as 1"
            )
        moved.append(block._replace(take=takes.pop() if takes else None))
        channel += block.rows
    return tuple(moved)
