# Matching of filters into orbits, against brute force, planted orbits and networkx; the time that it takes.
"""Tests of symconv_fast.conversion.matching."""

from __future__ import annotations

import itertools
import statistics
import time
from functools import cache

import pytest
import torch

from symconv_fast import Symmetry
from symconv_fast.conversion.matching import (
    Distances,
    match_filters,
    mirror_distances,
    reorder_filters,
)
from symconv_fast.ties import Ties, mirror

pytest.importorskip("rustworkx")
pytest.importorskip("scipy")


def ties_of(symmetry, ndim, out_channels, groups=1) -> Ties:
    return Symmetry(symmetry, ndim=ndim).resolve(ndim, out_channels, groups)


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def matched(filters, ties, dim=0):
    """The loss after matching, and the order, checked to be one that keeps groups."""
    order = match_filters(mirror_distances(filters, ties.ndim, dim, ties.groups), ties)
    assert order.dtype == torch.int64
    assert order.device.type == "cpu"
    each = ties.out_channels // ties.groups
    for group, part in enumerate(order.view(ties.groups, each).tolist()):
        assert sorted(part) == list(range(group * each, (group + 1) * each))
    return ties.lost_energy(reorder_filters(filters, order, dim, ties.groups), dim), order


def orbits_of(order, ties):
    """The filters of each orbit, as sets."""
    rows: dict[int, set[int]] = {}
    for filter_, (row, _) in zip(order.tolist(), ties.channel_map):
        rows.setdefault(row, set()).add(filter_)
    return {frozenset(found) for found in rows.values() if len(found) > 1}


# --- brute force ----------------------------------------------------------------------------------------------------


@cache
def arrangements(ties):
    """Every order of one group's filters, of those that differ in nothing but names one."""
    rows: dict[int, list[int]] = {}
    for place, (row, _) in enumerate(ties.channel_map):
        rows.setdefault(row, []).append(place)
    masks = [mask for mask, count in ties.segments for _ in range(count)]
    order = [0] * ties.out_channels

    def fill(row, left, leader):
        if row == len(masks) or masks[row] == 0:
            for place, filter_ in zip((rows[r][0] for r in range(row, len(masks))), sorted(left)):
                order[place] = filter_
            yield list(order)
            return
        for lead in sorted(left):
            if lead > leader or row == 0 or masks[row] != masks[row - 1]:
                higher = [f for f in left if f > lead]
                for others in itertools.permutations(higher, len(rows[row]) - 1):
                    for place, filter_ in zip(rows[row], (lead, *others)):
                        order[place] = filter_
                    yield from fill(row + 1, left - {lead, *others}, lead)

    return list(fill(0, frozenset(range(ties.out_channels)), -1))


def least_loss(filters, ties):
    """By projection of all arrangements at once: written out here from the definition, not from inner products."""
    orders = torch.tensor(arrangements(ties))
    kept = torch.zeros(len(orders), dtype=torch.float64)
    rows: dict[int, list[torch.Tensor]] = {}
    for place, (row, member) in enumerate(ties.channel_map):
        rows.setdefault(row, []).append(mirror(filters, member)[orders[:, place]])
    for members in rows.values():
        kept += torch.stack(members).mean(0).square().flatten(1).sum(1) * len(members)
    return 1 - float(kept.max() / filters.square().sum())


def test_brute_force_is_what_lost_energy_says():
    ties, filters = ties_of({"hv": 4, "h": 2}, 2, 7), draw(7, 2, 3, 3)
    expected = min(ties.lost_energy(filters[list(p)]) for p in itertools.permutations(range(7)))
    assert least_loss(filters, ties) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("symmetry", "ndim", "count"),
    [("h", 1, 8), ("v", 2, 7), ("z", 3, 6), ({"h": 2}, 2, 6), ({"h": 4}, 2, 8), ({"v": 6}, 2, 9)],
)
def test_pairs_are_exact(symmetry, ndim, count):
    for _ in range(5):
        ties, filters = ties_of(symmetry, ndim, count), draw(count, 2, *[3] * ndim)
        assert matched(filters, ties)[0] == pytest.approx(least_loss(filters, ties), abs=1e-12)


HEURISTIC = [
    ("hv", 2, 8), ("hz", 3, 8), ("hvz", 3, 8), ({"hv": 4}, 2, 7), ({"h": 4, "v": 4}, 2, 8), ({"h": 2, "v": 2}, 2, 7),
    ({"hv": 4, "h": 2}, 2, 8), ({"hv": 4, "vz": 4}, 3, 8),
]  # fmt: skip


@pytest.mark.parametrize(("symmetry", "ndim", "count"), HEURISTIC)
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 12), marks=pytest.mark.full)])
def test_the_gap_of_the_heuristic_to_brute_force(symmetry, ndim, count, seeds):
    """docs/conversion.md has these bounds."""
    ties, gaps = ties_of(symmetry, ndim, count), []
    for seed in seeds:
        torch.manual_seed(seed)
        filters = draw(count, 1 + seed % 4, *[3] * ndim)
        gaps.append(matched(filters, ties)[0] - least_loss(filters, ties))
    assert min(gaps) > -1e-12
    assert statistics.fmean(gaps) <= 1e-4
    assert max(gaps) <= 1e-3


@pytest.mark.parametrize(("count", "tied"), [(16, 16), (17, 16), (20, 8), (24, 20)])
def test_pairs_as_networkx_matches_them(count, tied):
    networkx = pytest.importorskip("networkx")
    filters, ties = draw(count, 3, 3, 3), ties_of({"h": tied}, 2, count)
    graph, free = networkx.Graph(), count - tied
    for i, j in itertools.combinations(range(count), 2):
        apart = float((filters[i] - filters[j].flip(-1)).square().sum()) / 2
        graph.add_edge(i, j, weight=-apart)
    graph.add_weighted_edges_from((i, count + k, 0.0) for i in range(count) for k in range(free))
    pairs = networkx.max_weight_matching(graph, maxcardinality=True)
    expected = -sum(graph.edges[pair]["weight"] for pair in pairs) / float(filters.square().sum())
    assert matched(filters, ties)[0] == pytest.approx(expected, abs=1e-12)


def test_layers_that_share_an_order_are_matched_together():
    ties = ties_of("h", 2, 8)
    first, second = draw(8, 2, 3, 3), 100 * draw(8, 5, 5, 3)
    one, two = mirror_distances(first, 2), mirror_distances(second, 2)
    order = match_filters(one + two, ties)
    assert torch.equal(order, match_filters(sum([two, one]), ties))

    def loss(order):
        return ties.lost_energy(first[order]) + ties.lost_energy(second[order])

    best = min(arrangements(ties), key=loss)
    assert loss(order) == pytest.approx(loss(best), abs=1e-12)
    alone = match_filters(one, ties), match_filters(two, ties)
    assert loss(order) < min(map(loss, alone)) - 1e-3  # else the test would say nothing


def test_a_sum_of_layers_counts_each_alike_in_any_sequence():
    a, b, c = (mirror_distances(draw(4, 2, 3, 3) * scale, 2) for scale in (1, 7, 50))
    for left, right in ((a + b + c, a + (b + c)), (a + b + c, sum([c, b, a]))):
        torch.testing.assert_close(left.products, right.products)
        torch.testing.assert_close(left.energies, right.energies)
    assert (a + b + c).energies.sum() == pytest.approx(3)
    zero = mirror_distances(torch.zeros(4, 2, 3, 3), 2)
    assert torch.equal((a + zero).products, a.products)


# --- planted orbits -------------------------------------------------------------------------------------------------

PLANTED = [
    ("h", 1, 12, 1), ({"h": 8}, 1, 13, 1), ("v", 2, 64, 1), ({"h": 32}, 2, 96, 1), ("hv", 2, 64, 1),
    ({"hv": 16}, 2, 48, 1), ("hv", 2, 32, 2), ("hvz", 3, 64, 1), ({"hvz": 16}, 3, 40, 1),
    ({"h": 8, "v": 8, "hv": 16}, 2, 48, 1),
    ({"hv": 8, "h": 8}, 2, 32, 2), ({"hz": 8, "z": 4, "hvz": 8}, 3, 24, 1),
]  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("symmetry", "ndim", "count", "groups"), PLANTED)
def test_planted_orbits_are_found_among_noise(symmetry, ndim, count, groups, dim):
    ties = ties_of(symmetry, ndim, count, groups)
    rows = (ties.unique, 2) if dim == 0 else (2 * groups, ties.unique // groups)
    tied = ties.expand(draw(*rows, *[3] * ndim), dim)
    each = count // groups
    shuffle = torch.cat([torch.randperm(each) + group * each for group in range(groups)])
    filters = reorder_filters(tied, shuffle, dim, groups)
    assert ties.lost_energy(filters, dim) > 0.05
    lost, order = matched(filters, ties, dim)
    assert lost <= 1e-15
    planted = {
        frozenset(torch.argsort(shuffle)[list(orbit)].tolist())
        for orbit in orbits_of(torch.arange(count), ties)
    }
    assert orbits_of(order, ties) == planted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("symmetry", ["h", "hv", {"hv": 8, "v": 4}])
def test_tied_filters_stay_where_they_are(symmetry, dtype):
    ties = ties_of(symmetry, 2, 16)
    filters = ties.expand(draw(ties.unique, 3, 3, 3, dtype=dtype))
    lost, order = matched(filters, ties)
    assert torch.equal(order, torch.arange(16))
    assert lost == 0


@pytest.mark.parametrize("symmetry", ["h", "hv", {"hv": 16}, {"h": 16, "hv": 16}])
def test_noise_on_tied_filters_does_not_hide_them(symmetry):
    ties = ties_of(symmetry, 2, 48)
    tied = ties.expand(draw(ties.unique, 8, 3, 3))
    filters = (tied + 0.1 * torch.randn_like(tied))[torch.randperm(48)]
    assert matched(filters, ties)[0] < 0.011


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("symmetry", "ndim", "limit"),
    [("h", 2, 10), ({"h": 64}, 2, 10), ("hvz", 3, 60)],
)
def test_512_filters_take_seconds(symmetry, ndim, limit):
    ties, filters = ties_of(symmetry, ndim, 512), draw(512, 16, *[3] * ndim)
    start = time.process_time()
    lost, _ = matched(filters, ties)
    assert time.process_time() - start < limit
    assert lost < ties.lost_energy(filters)


def test_distances_are_a_value():
    found = mirror_distances(draw(4, 2, 3, 3), 2)
    assert isinstance(found, Distances)
    with pytest.raises(AttributeError):
        found.energies = None
