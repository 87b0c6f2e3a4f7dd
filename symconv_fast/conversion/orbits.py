"""Orbits of little loss among the filters of one group: built from exact matchings, then improved by exchanges.

A *place* is an output channel of the tied layer within its group; `order[place]` is the filter that stands there. All
that is needed of the filters are their squared norms and inner products with mirrored copies. An orbit whose member k
is filter f_k, mirrored along g_k, loses

    (1 - 1/n) sum_k |f_k|^2 - 2/n sum_{k<l} <f_k, J_{g_k ^ g_l} f_l>

of the energy of its n filters when all are replaced by copies of their mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..extras import need
from ..ties import COPIES, Ties, parity_sign
from .pairing import Array, cheapest_pairs

_SMALL = 1e-12
"""Of the group's energy: what is less is rounding, and no reason to exchange filters."""

_IMPROVED = 3
"""How many of the best starts are improved by exchanges."""


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
            members, rows = (0, *COPIES[mask]), rows // ties.groups
            table = [[where[start + row, g] for g in members] for row in range(rows)]
            start += rows
            if rows:
                self.segments.append(_Segment(mask, members, np.array(table).reshape(rows, len(members))))
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
        """(N, N): what filter i in place p has part in the loss of the orbit there, all others staying in place."""
        costs = np.zeros((self.count, self.count))
        for segment in self.tied:
            n, filters = len(segment.members), order[segment.places]
            for a, g in enumerate(segment.members):
                near = sum(
                    self.products[(g ^ h) - 1][:, filters[:, b]]
                    for b, h in enumerate(segment.members)
                    if b != a
                )
                costs[:, segment.places[:, a]] = (1 - 1 / n) * self.energies[:, None] - 2 / n * near
        return costs


# --- building ----------------------------------------------------------------------------------------------------------


def _flags(mask: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Chains of subgroups of the mirrors in `mask`, each twice as large as the one before: 1, 3 or 21 of them."""
    members = (0, *COPIES[mask])

    def grow(chain: tuple[tuple[int, ...], ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
        last = chain[-1]
        if len(last) == len(members):
            yield chain
            return
        wider = {tuple(sorted({*last, *(g ^ h for h in last)})) for g in members if g not in last}
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
                between += bank.products[(g ^ h ^ shift) - 1][np.ix_(blocks[:, a], blocks[:, b])]
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


def _build(
    bank: Bank, pool: Array, segment: _Segment, chain: tuple[tuple[int, ...], ...], late: bool
) -> Array:
    """Orbits (rows, members) of a segment from the filters in `pool`, doubled along a chain of subgroups.

    Where filters are left over, `late` leaves them out of the last joining instead of the first.
    """
    blocks, rows = pool[:, None], len(segment.places)
    for group, wider in zip(chain, chain[1:]):
        needed = rows * (len(segment.members) // len(wider))
        count = len(blocks) // 2 if late and len(wider) < len(segment.members) else needed
        blocks = _pair_up(bank, blocks, group, wider, count)
    columns = [chain[-1].index(g) for g in segment.members]
    return blocks[:, columns]


def starts(bank: Bank) -> Iterator[Array]:
    """Orders to begin with: segments of the largest orbits first, each along every chain of subgroups."""
    segments = sorted(bank.tied, key=lambda s: -len(s.members))
    loose = len(bank.free) > 0 or len(segments) > 1
    for late in (False, True) if loose and len(segments[0].members) > 2 else (False,):
        for chain in _flags(segments[0].mask):
            yield _fill(bank, segments, chain, late)


def _fill(bank: Bank, segments: list[_Segment], chain: tuple[tuple[int, ...], ...], late: bool) -> Array:
    order, pool = np.empty(bank.count, np.int64), np.arange(bank.count)
    for segment in segments:
        chains = [chain] if segment is segments[0] else list(_flags(segment.mask))
        built = [_build(bank, pool, segment, c, late) for c in chains]
        best = min(built, key=lambda filters: float(bank.orbit_losses(segment, filters).sum()))
        order[segment.places] = best
        pool = np.setdiff1d(pool, best)
    order[bank.free] = pool
    return order


# --- improving ---------------------------------------------------------------------------------------------------------


def improve(bank: Bank, order: Array) -> Array:
    """Apply exchanges, assignments and new joinings until none lowers the loss."""
    order, loss = order.copy(), bank.loss(order)
    while True:
        for step in (_swap, _assign, _rejoin):
            order = step(bank, order)
        reached = bank.loss(order)
        if reached >= loss - bank.small:
            return order
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
    costs = bank.costs(order)[order]  # of the filter now in place p, in place q
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
        places = [segment.places[:, turn % len(segment.members)] for segment in bank.tied]
        chosen = np.concatenate([*places, bank.free])
        costs = bank.costs(order)[np.ix_(order[chosen], chosen)]
        before = costs.trace()
        taken, given = solve(costs)
        if costs[taken, given].sum() < before - bank.small:
            filters = order[chosen]
            order[chosen[given]] = filters[taken]
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
    members = (0, *COPIES[mask])
    for parity in members[1:]:
        yield tuple(g for g in members if parity_sign(parity, g) == 1), members


# --- the whole ---------------------------------------------------------------------------------------------------------


def arrange(bank: Bank) -> Array:
    """The order of least loss that is found; the given one where nothing found is better."""
    given = np.arange(bank.count)
    loss = bank.loss(given)
    if not bank.tied or loss <= bank.small:
        return given
    if len(bank.tied) == 1 and len(bank.tied[0].members) == 2:
        found = next(starts(bank))  # one exact matching
    else:
        built = sorted(starts(bank), key=bank.loss)[:_IMPROVED]
        found = min((improve(bank, order) for order in [*built, given]), key=bank.loss)
    return _canonical(bank, found) if bank.loss(found) < loss - bank.small else given


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
