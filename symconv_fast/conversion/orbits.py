"""Orbits of little loss among the filters of one group: built from exact matchings, then improved by exchanges.

A *place* is an output channel of the tied layer within its group; `order[place]` is the filter that stands there. All
that is needed of the filters are their squared norms and inner products with mirrored copies. An orbit whose member k
is filter f_k, mirrored along g_k, loses

    (1 - 1/n) sum_k |f_k|^2 - 2/n sum_{k<l} <f_k, J_{g_k ^ g_l} f_l>

of the energy of its n filters when all are replaced by copies of their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from ..extras import need
from ..ties import Ties, members, orbit_size, parity_sign
from .pairing import Array, cheapest_pairs

_SMALL = 1e-12
"""Of the group's energy: what is less is rounding, and no reason to exchange filters."""

_IMPROVED = 3
"""How many of the best starts are improved by exchanges."""

_LARGE, _WORTH_A_ROUND = 128, 1e-3
"""Above so many filters a round of improvement takes seconds: one that gained no such part of the loss is the last."""


class _Segment(NamedTuple):
    """Orbits of one tie: its members, and the places (rows, members) of their filters."""

    mask: int
    members: tuple[int, ...]
    places: Array


class Bank:
    """The filters of a group as the search sees them, and the places that they are to fill.

    Args:
        products: (masks, N, N) float64, [g - 1] the inner products <f_i, J_g f_j>.
        energies: (N,) float64, squared norms.
        ties: of the layer; all its groups are alike.
    """

    def __init__(self, products: Array, energies: Array, ties: Ties) -> None:
        self.products, self.energies = products, energies
        self.count = len(energies)
        self.total = float(energies.sum())
        self.small = _SMALL * self.total
        places = ties.channel_map[: self.count]
        where = {key: place for place, key in enumerate(places)}
        self.segments, self.row, start = [], np.array([row for row, _ in places]), 0
        self.member = np.array([member for _, member in places])
        for mask, rows in ties.segments:
            rows //= ties.groups
            table = [[where[start + row, g] for g in members(mask)] for row in range(rows)]
            start += rows
            if rows:
                self.segments.append(_Segment(mask, members(mask), np.array(table)))
        self.tied = [segment for segment in self.segments if segment.mask]
        self.free = np.concatenate([s.places[:, 0] for s in self.segments if not s.mask] or [np.arange(0)])

    def loss(self, order: Array) -> float:
        """The energy that tying loses in this order."""
        return sum(float(self.orbit_losses(s, order[s.places]).sum()) for s in self.tied)

    def orbit_losses(self, segment: _Segment, filters: Array) -> Array:
        """(rows,) of orbits (rows, members)."""
        n = len(segment.members)
        inner = self.inner(filters, segment.members)
        return (1 - 1 / n) * self.energies[filters].sum(1) - 2 / n * inner

    def inner(self, blocks: Array, members: tuple[int, ...]) -> Array:
        """Inner products summed over the pairs of filters within each block (blocks, members)."""
        total = np.zeros(len(blocks))
        for b, h in enumerate(members):
            for a, g in enumerate(members[:b]):
                total += self.products[(g ^ h) - 1][blocks[:, a], blocks[:, b]]
        return total

    def costs(self, order: Array) -> Array:
        """(places, filters): what a filter has part in the loss of the orbit there, if all others stay in place."""
        costs = np.zeros((self.count, self.count))
        for segment in self.tied:
            n, filters = len(segment.members), order[segment.places]
            alone = (1 - 1 / n) * self.energies
            for a, g in enumerate(segment.members):
                near = np.zeros((len(filters), self.count))
                for b, h in enumerate(segment.members):
                    if a != b:
                        near += self.products[(g ^ h) - 1][filters[:, b]]
                costs[segment.places[:, a]] = alone - 2 / n * near
        return costs


# --- building -------------------------------------------------------------------------------------------------------


def _flags(mask: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Chains of subgroups of the mirrors in `mask`, each twice as large as the one before: 1, 3 or 21 of them."""

    def grow(chain: tuple[tuple[int, ...], ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
        last = chain[-1]
        if len(last) == orbit_size(mask):
            yield chain
            return
        wider = {tuple(sorted({*last, *(g ^ h for h in last)})) for g in members(mask) if g not in last}
        for group in sorted(wider):
            yield from grow((*chain, group))

    return grow(((0,),))


class _Joined(NamedTuple):
    """How blocks can be joined two by two: the loss, and the mirror that the second then stands under."""

    losses: Array
    mirrors: Array


def _join(bank: Bank, blocks: Array, group: tuple[int, ...], wider: tuple[int, ...]) -> _Joined:
    """Of blocks (B, members of `group`) joined into blocks of `wider`, in the best of the orientations."""
    shifts = [g for g in wider if g not in group]
    best = np.full((len(blocks), len(blocks)), -np.inf)
    mirrors = np.zeros(best.shape, np.int64)
    for shift in shifts:
        between = np.zeros(best.shape)
        for a, g in enumerate(group):
            for b, h in enumerate(group):
                between += bank.products[(g ^ h ^ shift) - 1][blocks[:, a, None], blocks[None, :, b]]
        between = (between + between.T) / 2
        better = between > best
        best[better], mirrors[better] = between[better], shift
    n = len(wider)
    own = (1 - 1 / n) * bank.energies[blocks].sum(1) - 2 / n * bank.inner(blocks, group)
    return _Joined(own[:, None] + own[None] - 2 / n * best, mirrors)


def _pair_up(bank: Bank, blocks: Array, group: tuple[int, ...], wider: tuple[int, ...], count: int) -> Array:
    """The `count` cheapest blocks of `wider`, (count, members), that can be made of disjoint blocks of `group`."""
    joined = _join(bank, blocks, group, wider)
    pairs = cheapest_pairs(joined.losses, count)
    result = np.empty((count, len(wider)), np.int64)
    for row, (p, q) in enumerate(pairs):
        at = {g: blocks[p, a] for a, g in enumerate(group)}
        at |= {g ^ int(joined.mirrors[p, q]): blocks[q, a] for a, g in enumerate(group)}
        result[row] = [at[g] for g in wider]
    return result


def _build(bank: Bank, pool: Array, segment: _Segment, late: bool) -> Iterator[Array]:
    """Orbits (rows, members) of a segment from the filters in `pool`, doubled along each chain of subgroups.

    Where filters are left over, `late` leaves them out of the last joining instead of the first.
    """
    size, rows = len(segment.members), len(segment.places)
    made: dict[tuple[tuple[int, ...], ...], Array] = {((0,),): pool[:, None]}
    for chain in _flags(segment.mask):
        for length in range(2, len(chain) + 1):
            if chain[:length] not in made:  # chains have their beginnings in common
                blocks, (group, wider) = made[chain[: length - 1]], chain[length - 2 : length]
                kept = late and len(wider) < size
                count = len(blocks) // 2 if kept else rows * (size // len(wider))
                made[chain[:length]] = _pair_up(bank, blocks, group, wider, count)
        yield made[chain][:, [chain[-1].index(g) for g in segment.members]]


def starts(bank: Bank) -> Iterator[Array]:
    """Orders to begin with: the segments one after another, the first along every chain of subgroups.

    The largest orbits come first, and up to three segments of a small layer in every other sequence too.
    """
    small = bank.count <= _LARGE
    segments = sorted(bank.tied, key=lambda segment: -len(segment.members))
    sequences = permutations(segments) if small and len(segments) <= 3 else iter([tuple(segments)])
    for sequence in sequences:
        loose = small and (len(bank.free) > 0 or len(sequence) > 1)
        for late in (False, True) if loose and len(sequence[0].members) > 2 else (False,):
            for filters in _build(bank, np.arange(bank.count), sequence[0], late):
                yield _fill(bank, sequence, filters, late)


def _fill(bank: Bank, sequence: Sequence[_Segment], filters: Array, late: bool) -> Array:
    """An order whose first segment has these filters, and the others the best that are built of what is left."""
    order, pool = np.empty(bank.count, np.int64), np.arange(bank.count)
    for segment in sequence:
        if segment is not sequence[0]:
            built = _build(bank, pool, segment, late)
            filters = min(built, key=lambda found: float(bank.orbit_losses(segment, found).sum()))
        order[segment.places] = filters
        pool = np.setdiff1d(pool, filters)
    order[bank.free] = pool
    return order


# --- improving ------------------------------------------------------------------------------------------------------


def improve(bank: Bank, order: Array) -> Array:
    """Apply exchanges, assignments and new joinings until none lowers the loss; the result is canonical."""
    order, loss = order.copy(), bank.loss(order)
    while True:
        order = _rejoin(bank, _assign(bank, _swap(bank, order)))
        reached = bank.loss(order)
        if loss - reached <= max(bank.small, _WORTH_A_ROUND * loss if bank.count > _LARGE else 0.0):
            return _canonical(bank, order)
        loss = reached


def _swap(bank: Bank, order: Array) -> Array:
    """Exchange two filters, as long as that lowers the loss; at a time in all orbits that have no filter in common."""
    while True:
        gains = _gains_of_swaps(bank, order)
        partner = gains.argmax(1)
        gain = gains[np.arange(bank.count), partner]
        touched = np.zeros(bank.row.max() + 1, bool)
        swapped = False
        for place in np.argsort(-gain, kind="stable"):
            if gain[place] <= bank.small:
                break
            other = partner[place]
            rows = bank.row[[place, other]]
            if not touched[rows].any():
                touched[rows] = swapped = True
                order[[place, other]] = order[[other, place]]
        if not swapped:
            return order


def _gains_of_swaps(bank: Bank, order: Array) -> Array:
    """(N, N): by how much the loss falls if the filters in two places are exchanged."""
    costs = bank.costs(order)[:, order]  # in place p, of the filter that is now in place q
    now = costs.diagonal()
    gains = now[:, None] + now[None] - costs - costs.T
    for segment in bank.tied:
        n, filters = len(segment.members), order[segment.places]
        for a, g in enumerate(segment.members):
            for b, h in enumerate(segment.members):
                if a != b:  # both in one orbit: `costs` counted each against itself
                    f, e, products = filters[:, a], filters[:, b], bank.products[(g ^ h) - 1]
                    own = products[f, f] + products[e, e] - 2 * products[f, e]
                    gains[segment.places[:, a], segment.places[:, b]] -= 2 / n * own
    return gains


def _assign(bank: Bank, order: Array) -> Array:
    """Take one filter from each orbit, and all free ones, and put them back where the sum of losses is least."""
    solve = need("scipy.optimize", "matching filters into orbits").linear_sum_assignment
    for turn in range(max(len(segment.members) for segment in bank.tied)):
        one_each = [segment.places[:, turn % len(segment.members)] for segment in bank.tied]
        chosen = np.concatenate([*one_each, bank.free])
        costs = bank.costs(order)[chosen[:, None], order[chosen]]
        before = costs.trace()
        places, filters = solve(costs)
        if costs[places, filters].sum() < before - bank.small:
            order[chosen[places]] = order[chosen][filters]
    return order


def _rejoin(bank: Bank, order: Array) -> Array:
    """Cut the orbits of a segment into halves, in every way, and match the halves anew; pairs with the free filters."""
    for segment in bank.tied:
        for chain in _halves(segment.mask):
            group, wider = chain
            rows, filters = len(segment.places), order[segment.places]
            if len(group) == 1:
                pool = np.sort(np.concatenate([filters.flatten(), order[bank.free]]))
                blocks = pool[:, None]
            else:
                first = [segment.members.index(g) for g in group]
                shift = next(g for g in wider if g not in group)
                second = [segment.members.index(g ^ shift) for g in group]
                blocks = np.concatenate([filters[:, first], filters[:, second]])
            joined = _pair_up(bank, blocks, group, wider, rows)[:, [wider.index(g) for g in segment.members]]
            fallen = bank.orbit_losses(segment, filters).sum() - bank.orbit_losses(segment, joined).sum()
            if fallen > bank.small:
                order[segment.places] = joined
                if len(group) == 1:
                    order[bank.free] = np.setdiff1d(pool, joined)
    return order


def _halves(mask: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each subgroup of half of the mirrors in `mask`, with the whole group."""
    whole = members(mask)
    for parity in whole[1:]:
        yield tuple(g for g in whole if parity_sign(parity, g) == 1), whole


# --- the whole -------------------------------------------------------------------------------------------------------


def arrange(bank: Bank, kicks: int) -> Array:
    """The order of least loss that is found; the given one where nothing found is better.

    Args:
        bank: the filters.
        kicks: how many times what was found is disturbed at random, and improved again.
    """
    given = np.arange(bank.count)
    loss = bank.loss(given)
    if not bank.tied or loss <= bank.small:
        return given
    if len(bank.tied) == 1 and len(bank.tied[0].members) == 2:
        found = next(starts(bank))  # one exact matching
    else:
        built = sorted([*starts(bank), given], key=bank.loss)[:_IMPROVED]
        found = min((improve(bank, order) for order in built), key=bank.loss)
        random = np.random.default_rng(0)
        for _ in range(kicks):
            if bank.loss(found) <= bank.small:
                break
            found = min(found, improve(bank, _kick(bank, found, random)), key=bank.loss)
    return _canonical(bank, found) if bank.loss(found) < loss - bank.small else given


def _kick(bank: Bank, order: Array, random: np.random.Generator) -> Array:
    """The filters of a few orbits, and as many free ones, in random places among themselves."""
    rows = np.unique(bank.row[np.concatenate([segment.places[:, 0] for segment in bank.tied])])
    rows = random.permutation(rows)[: random.integers(2, max(4, len(rows) // 8) + 1)]
    free = random.permutation(bank.free)[: len(rows)]
    places = np.concatenate([np.flatnonzero(np.isin(bank.row, rows)), free])
    kicked = order.copy()
    kicked[places] = order[random.permutation(places)]
    return kicked


def _canonical(bank: Bank, order: Array) -> Array:
    """The same orbits, each led by its lowest filter, in each segment by their leaders; free filters as they came."""
    result = order.copy()
    for segment in bank.tied:
        rows = []
        for filters in order[segment.places]:
            leader = segment.members[int(filters.argmin())]
            rows.append([int(filters[segment.members.index(g ^ leader)]) for g in segment.members])
        result[segment.places] = sorted(rows)
    result[bank.free] = np.sort(order[bank.free])
    return result
