"""What a mirror does beside mirroring the taps and exchanging the members of orbits: it moves input channels, or it
leaves a filter what it is, up to its sign.

The filter of member g of an orbit is `w_g[c, k] = w[pi_g c, J_g k]`. J_g mirrors taps, pi_g moves input channels: those
of a layer whose own input are orbits, which a mirror exchanges. A self-symmetric filter is its own image,
`w[pi_g c, J_g k] = chi(g) w[c, k]` with a sign chi for each letter; of its numbers only the independent ones are kept.

This is the index map behind `Ties.expand`; `flat_ties` has it in the form in which the operators take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Union

import torch
from torch import Tensor

from .checks import ShapeError

if TYPE_CHECKING:
    from .ties import Ties

BITS = (1, 2, 4)
_OWN, _PARITY = 8, 4  # a flag, and by how much a parity is shifted, in the code of a self-symmetric kind


class Own(NamedTuple):
    """The kind of self-symmetric filters: images of themselves by the letters of `mask`, odd by those of `parity`."""

    mask: int
    parity: int

    @property
    def code(self) -> int:
        """One number for it, which no mask is."""
        return self.mask | _OWN | self.parity << _PARITY


def own_kind(code: int) -> Own | None:
    """The self-symmetric kind of a code; None where it is the mask of orbits."""
    return Own(code & 7, code >> _PARITY & 7) if code & _OWN else None


@dataclass(frozen=True, slots=True)
class Involutions:
    """For letters, by their bits, the involution of the input channels that the mirror goes with."""

    tables: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def out_channels(self) -> int:
        """How many channels they move: the name that `Ties` have for it."""
        return len(self.tables[0][1])

    def partners(self, bit: int) -> tuple[int, ...] | None:
        """The channel that each channel changes places with; None where none moves."""
        table = dict(self.tables).get(bit)
        return None if table is None or table == tuple(range(len(table))) else table

    def __str__(self) -> str:
        return repr({"hvz"[bit.bit_length() - 1]: table for bit, table in self.tables})


Inputs = Union["Ties", Involutions, None]
"""What a mirror does to the input channels: exchanges the members of orbits, applies an involution, or nothing."""


@lru_cache(maxsize=1024)
def permutation(inputs: Inputs, member: int) -> tuple[int, ...] | None:
    """pi_g: the channel whose weights each input channel has in the filter of a member; None where none moves."""
    result: tuple[int, ...] | None = None
    for bit in BITS:
        partners = inputs.partners(bit) if inputs is not None and member & bit else None
        if partners is not None:
            result = partners if result is None else tuple(partners[c] for c in result)
    return None if result is None or result == tuple(range(len(result))) else result


def check_inputs(inputs: Inputs, groups: int) -> None:
    """Raises ShapeError for what is no involution of the channels of whole groups, and for letters that disagree."""
    if inputs is None:
        return
    channels = inputs.out_channels
    if channels % groups:
        raise ShapeError(
            f"input_symmetry is of {channels} channels, which must be divisible by groups={groups}"
        )
    if not isinstance(inputs, Involutions):
        return
    for bit, table in inputs.tables:
        name = "hvz"[bit.bit_length() - 1]
        if len(table) != channels or sorted(table) != list(range(channels)):
            raise ShapeError(
                f"input_symmetry[{name!r}] = {table} must have each of 0 to {channels - 1}, the input channels, once"
            )
        twice = next((c for c in range(channels) if table[table[c]] != c), None)
        if twice is not None:
            raise ShapeError(
                f"input_symmetry[{name!r}] = {table} takes channel {twice} to {table[twice]}, and that to "
                f"{table[table[twice]]}: two mirrors must lead back, so give an involution, such as "
                f"{tuple(reversed(range(channels)))}"
            )
    for bit, table in inputs.tables:
        for other, against in inputs.tables:
            apart = next((c for c in range(channels) if table[against[c]] != against[table[c]]), None)
            if apart is not None:
                names = "hvz"[bit.bit_length() - 1], "hvz"[other.bit_length() - 1]
                raise ShapeError(
                    f"input_symmetry: the involutions of {names[0]!r} and {names[1]!r} take channel {apart} to "
                    f"{table[against[apart]]} in one order and to {against[table[apart]]} in the other, but mirrors "
                    "commute; give involutions that do"
                )


def moves_groups(inputs: Inputs, letters: int, groups: int) -> bool:
    """Does the mirror along one of the letters exchange groups of input channels?

    Raises:
        ShapeError: it breaks them.
    """
    across = False
    for bit in BITS if groups > 1 else ():
        moved = permutation(inputs, letters & bit)
        if moved is None:
            continue
        size = len(moved) // groups
        for group in range(groups):
            images = {c // size for c in moved[group * size : (group + 1) * size]}
            if len(images) > 1:
                raise ShapeError(
                    f"the mirror along {'hvz'[bit.bit_length() - 1]!r} takes the input channels of group {group} of "
                    f"groups={groups} to several groups; give an input_symmetry whose mirrors take groups to "
                    "groups, or groups=1"
                )
            across = across or images != {group}
    return across


class _Channels(NamedTuple):
    """How self-symmetric filters have their channels, from those that are kept: one of each orbit of them."""

    still: tuple[int, ...]  # letters that move no channel: along their axes a part of the taps is kept
    members: tuple[int, ...]  # mirrors by the other letters; each makes a block of channels of those kept
    order: tuple[int, ...]  # where each channel is in these blocks


@dataclass(frozen=True, slots=True)
class Sides:
    """Of the ties of a layer: what mirrors do to its input, and which segments are self-symmetric.

    `groups` are those of the convolution. Where mirrors exchange them, `across`, rows and output channels are ordered
    over the whole layer, and `Ties.groups` is 1. `own` has an entry for each segment, None for orbits and free filters.
    `kernel` is empty where the weight has all taps.
    """

    groups: int
    inputs: Inputs
    own: tuple[Own | None, ...]
    kernel: tuple[int, ...] = ()
    across: bool = False

    @property
    def is_packed(self) -> bool:
        """Does the weight keep the independent numbers of filters, not their taps?"""
        return any(self.own)

    @property
    def odd(self) -> bool:
        """Are there filters that a mirror turns into their negatives?"""
        return any(own is not None and own.parity for own in self.own)

    @property
    def why_not(self) -> str:
        """Why kernels that know nothing of ties on both sides do not run it, as a clause."""
        still = self.is_packed and not any(
            permutation(self.inputs, own.mask & bit) for own in self.own if own for bit in BITS
        )
        return "its filters are of one parity" if still else "its mirrors move input channels"

    def in_group(self, channels: int) -> int:
        """Input channels of a group, of the `channels` that a group of the weight keeps."""
        return channels * len(self._channels(self._kind).members) if self.is_packed else channels

    def kept(self, channels: int, kernel: Sequence[int]) -> tuple[int, ...]:
        """Of filters (C/groups, *K) what is kept of a row: their sizes, or fewer channels and taps."""
        return self.kept_of(self._kind, channels, kernel) if self.is_packed else (channels, *kernel)

    def kept_of(self, own: Own | None, channels: int, kernel: Sequence[int]) -> tuple[int, ...]:
        """The same for one kind."""
        if own is None:
            return (channels, *kernel)
        how = self._channels(own)
        taps = list(kernel)
        for bit in how.still:
            axis = -bit.bit_length()
            taps[axis] = (taps[axis] + (0 if own.parity & bit else 1)) // 2
        return (channels // len(how.members), *taps)

    @property
    def _kind(self) -> Own:
        return next(own for own in self.own if own is not None)

    def _channels(self, own: Own) -> _Channels:
        return _channels(self.inputs, self.groups, own.mask)

    def take(self, member: int, group: int = 0) -> tuple[int, ...] | None:
        """Where a filter of a member, in a group, has its channels in the row; None where in their own places."""
        moved = permutation(self.inputs, member)
        if moved is None or self.inputs is None:
            return None
        size = self.inputs.out_channels // self.groups
        places = tuple(moved[group * size + c] % size for c in range(size))
        return None if places == tuple(range(size)) else places

    def source(self, member: int, group: int) -> int:
        """The group whose channels a mirror puts in the place of those of `group`."""
        moved = permutation(self.inputs, member)
        if moved is None or self.inputs is None:
            return group
        size = self.inputs.out_channels // self.groups
        return moved[group * size] // size

    def unpack(self, rows: Tensor, own: Own) -> Tensor:
        """The filters (..., C/groups, *K) of self-symmetric rows."""
        if not self.kernel:
            raise ValueError(
                "self-symmetric filters need the kernel size of their layer: use the ties of a layer, layer.ties"
            )
        how = self._channels(own)
        for bit in how.still:
            rows = _unfold(rows, -bit.bit_length(), self.kernel[-bit.bit_length()], bool(own.parity & bit))
        if len(how.members) == 1:
            return rows
        dim = -1 - len(self.kernel)
        blocks = [_signed(_mirror(rows, g), own, g) for g in how.members]
        return select(torch.cat(blocks, dim), dim, how.order)

    def pack(self, filters: Tensor, own: Own) -> Tensor:
        """The transpose of `unpack`."""
        how = self._channels(own)
        if len(how.members) > 1:
            dim = -1 - len(self.kernel)
            blocks = select(filters, dim, inverse(how.order)).chunk(len(how.members), dim)
            total = blocks[0]
            for g, block in zip(how.members[1:], blocks[1:]):
                total = total + _signed(_mirror(block, g), own, g)
            filters = total
        for bit in how.still:
            filters = _fold(filters, -bit.bit_length(), bool(own.parity & bit))
        return filters


@lru_cache(maxsize=1024)
def _channels(inputs: Inputs, groups: int, mask: int) -> _Channels:
    """Raises ShapeError where some mirrors leave a channel in its place and others do not."""
    moving = sum(bit for bit in BITS if mask & bit and permutation(inputs, bit) is not None)
    still = tuple(bit for bit in BITS if mask & ~moving & bit)
    members = tuple(g for g in range(8) if g & ~moving == 0)
    if not moving or inputs is None:
        return _Channels(still, members, ())
    size = inputs.out_channels // groups
    images = [permutation(inputs, g) or tuple(range(size * groups)) for g in members]
    orbits = [[image[c] % size for image in images] for c in range(size)]
    for orbit in orbits:
        if len(set(orbit)) < len(members):
            raise ShapeError(
                f"self-symmetric filters keep one channel of each orbit of the input, but some mirror leaves channel "
                f"{orbit[0]} in its place and moves others; use two layers, one for the channels that move and one for "
                "the others, and add their outputs"
            )
    kept = {c: i for i, c in enumerate(c for c, orbit in enumerate(orbits) if c == min(orbit))}
    order = tuple(
        orbit.index(first) * len(kept) + kept[first] for orbit, first in zip(orbits, map(min, orbits))
    )
    return _Channels(still, members, order)


_MOST_RUNS = 16


def select(tensor: Tensor, dim: int, places: tuple[int, ...]) -> Tensor:
    """`tensor` with what is at `places` along a dim, in that order.

    By slices where there are few, and wherever torch traces, which takes no tensor that is made of numbers.
    """
    if places == tuple(range(tensor.shape[dim])):
        return tensor
    runs = _runs(places)
    if len(runs) > _MOST_RUNS and type(tensor) in (Tensor, torch.nn.Parameter):
        return tensor.index_select(dim, torch.tensor(places, device=tensor.device))
    slices = [(tensor.narrow(dim, start, length), step) for start, length, step in runs]
    return torch.cat([part.flip(dim) if step < 0 else part for part, step in slices], dim)


@lru_cache(maxsize=1024)
def _runs(places: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """(first place, length, 1 or -1): ascending and descending runs; a descending one is named by its last place."""
    runs: list[list[int]] = []
    for place in places:
        if runs:
            first, length, step = runs[-1]
            ahead = place - first if step == 1 else first - place
            if step == 1 and ahead == length:
                runs[-1][1] += 1
                continue
            if (step == -1 and ahead == 1) or (length == 1 and ahead == -1):
                runs[-1] = [place, length + 1, -1]
                continue
        runs.append([place, 1, 1])
    return tuple((first, length, step) for first, length, step in runs)


def inverse(places: Sequence[int]) -> tuple[int, ...]:
    """The permutation that takes the other way."""
    return tuple(sorted(range(len(places)), key=places.__getitem__))


def _mirror(filters: Tensor, member: int) -> Tensor:
    dims = [-bit.bit_length() for bit in BITS if member & bit]
    return filters.flip(dims) if dims else filters


def _signed(filters: Tensor, own: Own, member: int) -> Tensor:
    return -filters if (own.parity & member).bit_count() & 1 else filters


def _unfold(half: Tensor, dim: int, taps: int, odd: bool) -> Tensor:
    """All taps along an axis, of the first half; of an even filter that has the centre, of an odd one it is 0."""
    outer = half.narrow(dim, 0, taps // 2)
    if not odd:
        return torch.cat([half, outer.flip(dim)], dim)
    shape = list(half.shape)
    shape[dim] = taps % 2
    return torch.cat([half, half.new_zeros(shape), -outer.flip(dim)], dim)


def _fold(filters: Tensor, dim: int, odd: bool) -> Tensor:
    """The transpose of `_unfold`."""
    taps = filters.shape[dim]
    first, last = filters.narrow(dim, 0, taps // 2), filters.narrow(dim, taps - taps // 2, taps // 2)
    if odd:
        return first - last.flip(dim)
    return torch.cat([first + last.flip(dim), filters.narrow(dim, taps // 2, taps % 2)], dim)
