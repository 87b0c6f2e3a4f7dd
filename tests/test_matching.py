# Matching of filters into orbits, against brute force, planted orbits and networkx; bad input.
"""Tests of symconv_fast.conversion.matching."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from functools import cache

import numpy as np
import pytest
import torch

from symconv_fast import Symmetry
from symconv_fast.conversion.matching import (
    Distances,
    RandomLoss,
    match_filters,
    mirror_distances,
    random_loss,
    reorder_filters,
)
from symconv_fast.conversion.orbits import Bank, _flags, _gains_of_swaps, _join, _pair_up
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


# --- orders that are no better, and special filters -----------------------------------------------------------------


@pytest.mark.parametrize("symmetry", ["h", "hv", {"h": 4}, {"hv": 4, "h": 2, "v": 2}])
def test_filters_of_zeros_and_untied_layers_keep_their_order(symmetry):
    ties = ties_of(symmetry, 2, 12)
    assert torch.equal(matched(torch.zeros(12, 3, 3, 3), ties)[1], torch.arange(12))
    free = ties_of(None, 2, 12)
    assert torch.equal(matched(draw(12, 3, 3, 3), free)[1], torch.arange(12))


def test_filters_that_are_all_alike_keep_their_order():
    filters = draw(1, 3, 3, 3).expand(12, -1, -1, -1)
    for symmetry in ("h", "hv", {"hv": 4, "h": 4}):
        assert torch.equal(matched(filters, ties_of(symmetry, 2, 12))[1], torch.arange(12))


def test_some_filters_of_zeros():
    filters = draw(12, 3, 3, 3)
    filters[::3] = 0
    lost, order = matched(filters, ties_of({"h": 4}, 2, 12))
    assert lost == 0
    assert orbits_of(order, ties_of({"h": 4}, 2, 12)) <= {
        frozenset(pair) for pair in itertools.combinations([0, 3, 6, 9], 2)
    }


def test_no_order_is_worse_than_the_given_one():
    for symmetry in ("hv", {"h": 8, "v": 8}, {"hv": 8, "h": 4, "v": 4}):
        ties = ties_of(symmetry, 2, 24)
        tied = ties.expand(draw(ties.unique, 4, 3, 3))
        for noise in (0.01, 1):
            filters = tied + noise * torch.randn_like(tied)
            assert matched(filters, ties)[0] <= ties.lost_energy(filters) + 1e-12


def test_leaders_are_the_lowest_and_everything_is_in_their_order():
    ties = ties_of({"h": 8, "hv": 16}, 2, 32)
    filters = draw(32, 4, 3, 3)
    order = matched(filters, ties)[1]
    rows: dict[int, list[int]] = {}
    for filter_, (row, _) in zip(order.tolist(), ties.channel_map):
        rows.setdefault(row, []).append(filter_)
    assert all(members[0] == min(members) for members in rows.values())
    start = 0
    for _, count in ties.segments:
        leaders = [rows[row][0] for row in range(start, start + count)]
        assert leaders == sorted(leaders)
        start += count
    assert torch.equal(order, matched(filters, ties)[1])
    assert torch.equal(order, matched(filters * 4, ties)[1])


def test_pairs_lose_the_same_in_whatever_sequence_the_filters_come():
    ties, filters = ties_of({"h": 20}, 2, 30), draw(30, 4, 3, 3)
    lost = matched(filters, ties)[0]
    assert matched(filters[torch.randperm(30)], ties)[0] == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize(
    ("kernel", "symmetry"), [((1, 3), "v"), ((1, 1), "h"), ((1, 3), "hv"), ((1, 1), "hv")]
)
def test_axes_of_one_tap(kernel, symmetry):
    """Mirroring does nothing there, so that like filters are matched."""
    ties = ties_of(symmetry, 2, 24)
    tied = ties.expand(draw(ties.unique, 3, *kernel))
    assert matched(tied[torch.randperm(24)], ties)[0] <= 1e-15
    random = draw(8, 3, *kernel)
    small = ties_of(symmetry, 2, 8)
    assert matched(random, small)[0] == pytest.approx(least_loss(random, small), abs=1e-4)


def test_depthwise_layers_with_several_filters_a_channel():
    ties, filters = ties_of("h", 2, 24, 6), draw(24, 1, 3, 3)
    lost, _ = matched(filters, ties)
    energy = filters.square().flatten(1).sum(1)
    expected, one = 0.0, ties_of("h", 2, 4)
    for group in range(6):
        part = slice(4 * group, 4 * group + 4)
        expected += least_loss(filters[part], one) * float(energy[part].sum())
    assert lost == pytest.approx(expected / float(energy.sum()), abs=1e-12)
    single = ties_of("h", 2, 6, 6)  # nothing can be tied
    assert torch.equal(matched(draw(6, 1, 3, 3), single)[1], torch.arange(6))


def test_a_layer_without_filters():
    assert matched(torch.empty(0, 3, 3, 3), ties_of("h", 2, 0))[1].shape == (0,)


@pytest.mark.parametrize("scale", [2.0**-600, 2.0**-60, 2.0**60, 2.0**600])
def test_the_scale_of_the_filters_does_not_matter(scale):
    ties, filters = ties_of("hv", 2, 16), draw(16, 2, 3, 3)
    assert torch.equal(matched(filters * scale, ties)[1], matched(filters, ties)[1])


def test_distances_are_those_of_the_filters():
    for dim, groups in ((0, 1), (0, 2), (1, 1), (1, 2)):
        filters = draw(4, 6, 3, 2) if dim == 0 else draw(2 * groups, 4 // groups, 3, 2)
        found = mirror_distances(filters, 2, dim, groups)
        parts = filters.chunk(groups)
        whole = filters.square().sum()
        for group, part in enumerate(parts):
            rows = part if dim == 0 else part.transpose(0, 1)
            for mask in (1, 2, 3):
                apart = (rows[:, None] - mirror(rows, mask)[None]).square().flatten(2).sum(2) / whole
                energies = found.energies[group]
                products = found.products[mask - 1, group]
                torch.testing.assert_close(energies[:, None] + energies[None] - 2 * products, apart)
                assert torch.equal(products, products.T)
    assert repr(found) == "Distances(ndim=2, groups=2, filters=4)"
    assert found.out_channels == 4


def bank_of(filters, ties):
    found = mirror_distances(filters, ties.ndim)
    return Bank(found.products[:, 0].numpy(), found.energies[0].numpy(), ties)


def test_chains_of_subgroups():
    assert [len(list(_flags(mask))) for mask in (1, 4, 3, 5, 7)] == [1, 1, 3, 3, 21]
    for chain in _flags(7):
        assert [len(group) for group in chain] == [1, 2, 4, 8]
        for group in chain:
            assert {g ^ h for g in group for h in group} == set(group)


@pytest.mark.parametrize("chain", list(_flags(7)))
def test_blocks_are_joined_in_their_best_orientation(chain):
    """Two halves of an octuple, each as it is: the four ways to put the second beside the first."""
    ties, filters = ties_of("hvz", 3, 8), draw(8, 1, 3, 3, 3)
    bank = bank_of(filters, ties)
    half, whole = chain[-2], bank.tied[0].members
    blocks = np.arange(8).reshape(2, 4)
    losses = []
    for shift in sorted(set(range(8)) - set(half)):
        at = dict(zip(half, range(4))) | {g ^ shift: 4 + i for i, g in enumerate(half)}
        losses.append(ties.lost_energy(filters[[at[g] for g in whole]]))
    joined = _pair_up(bank, blocks, half, whole, 1)
    assert ties.lost_energy(filters[joined[0].tolist()]) == pytest.approx(min(losses), abs=1e-12)
    assert _join(bank, blocks, half, whole).losses[0, 1] == pytest.approx(min(losses), abs=1e-12)
    assert max(losses) > min(losses) + 1e-3


@pytest.mark.parametrize("symmetry", ["hv", {"h": 4, "hv": 8, "v": 2}])
def test_gains_of_exchanges_are_differences_of_losses(symmetry):
    ties, filters = ties_of(symmetry, 2, 16), draw(16, 2, 3, 3)
    bank = bank_of(filters, ties)
    order = np.random.default_rng(0).permutation(16)
    assert bank.loss(order) == pytest.approx(ties.lost_energy(filters[order.tolist()]), abs=1e-12)
    gains = _gains_of_swaps(bank, order)
    for i, j in itertools.product(range(16), repeat=2):
        other = order.copy()
        other[[i, j]] = order[[j, i]]
        assert gains[i, j] == pytest.approx(bank.loss(order) - bank.loss(other), abs=1e-12)


# --- random filters -------------------------------------------------------------------------------------------------


def test_what_matching_alone_buys():
    state = torch.random.get_rng_state()
    found = random_loss((64, 64, 3, 3), ties_of("h", 2, 64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(found, RandomLoss)
    assert found.draws == 5
    assert 0.44 < found.mean < 0.47
    assert 0 < found.spread < 0.01
    assert 0.29 < random_loss((32, 3, 3, 3), ties_of("h", 2, 32)).mean < 0.36
    assert 0.43 < random_loss((32, 64, 3, 3), ties_of("h", 2, 64), dim=1).mean < 0.47
    assert random_loss([64, 64, 3, 3], ties_of("h", 2, 64)) is found
    assert random_loss((64, 64, 3, 3), ties_of("h", 2, 64), seed=1).mean != found.mean
    assert str(found).endswith("(5 draws)")


def test_random_layers_of_many_groups_stand_for_all():
    whole, part = ties_of("h", 2, 512, 256), ties_of("h", 2, 256, 128)
    found, half = random_loss((512, 1, 3, 3), whole), random_loss((256, 1, 3, 3), part)
    assert found.mean == half.mean  # in pairs there is no choice: a half, but for chance
    assert found.mean == pytest.approx(0.5, abs=0.03)
    assert found.spread == pytest.approx(half.spread / 2**0.5)
    assert random_loss((8, 2, 3, 3), ties_of(None, 2, 8)).mean == 0


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_filters_that_are_not_finite(value):
    filters = torch.randn(4, 2, 3, 3)
    filters[1, 0, 2, 1] = value
    with pytest.raises(ValueError, match="filters hold NaN or infinity"):
        mirror_distances(filters, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((None, 2), TypeError, "filters must be a Tensor"),
        ((np.zeros((4, 2, 3, 3)), 2), TypeError, "filters must be a Tensor"),
        ((torch.zeros(4, 2, 3, 3, dtype=torch.int32), 2), TypeError, "filters of dtype int32"),
        ((torch.zeros(4, 2, 3, 3, dtype=torch.complex64), 2), TypeError, "supported: float16"),
        ((torch.zeros(4, 2, 3), 2), ValueError, r"filters must have 4 dims .* got shape \(4, 2, 3\)"),
        ((torch.zeros(4, 2, 3, 3), 4), ValueError, "ndim=4 is not supported"),
        ((torch.zeros(4, 2, 3, 3), 2, 2), ValueError, "dim=2 must be 0, or 1"),
        ((torch.zeros(4, 2, 3, 3), 2, 0, 3), ValueError, "groups=3 must divide"),
        ((torch.zeros(4, 2, 3, 3), 2, 0, 0), ValueError, "groups=0 must divide"),
        ((torch.zeros(4, 2, 3, 3, device="meta"), 2), ValueError, "filters are on the meta device"),
    ],
)
def test_filters_that_cannot_be_matched(arguments, error, match):
    with pytest.raises(error, match=match):
        mirror_distances(*arguments)


def test_distances_of_another_layer():
    found = mirror_distances(draw(8, 2, 3, 3), 2)
    for ties in (ties_of("h", 2, 12), ties_of("h", 2, 8, 2), ties_of("h", 1, 8)):
        with pytest.raises(ValueError, match="distances are of another layer than ties"):
            match_filters(found, ties)
    with pytest.raises(TypeError, match="distances must be of mirror_distances"):
        match_filters(draw(8, 2, 3, 3), ties_of("h", 2, 8))
    with pytest.raises(TypeError, match="ties must be the Ties"):
        match_filters(found, "h")
    with pytest.raises(ValueError, match="layers that share an order"):
        found + mirror_distances(draw(6, 2, 3, 3), 2)
    with pytest.raises(TypeError):
        found + 1
    with pytest.raises(ValueError, match=r"order must be \(8,\)"):
        reorder_filters(draw(8, 2, 3, 3), torch.arange(6))


def test_shapes_of_random_filters_that_do_not_fit():
    for shape, arguments in (
        ((8, 2, 3), {}),
        ((6, 2, 3, 3), {}),
        ((2, 6, 3, 3), {"dim": 1}),
        ((8, 2, 3, 3), {"dim": 2}),
    ):
        with pytest.raises(ValueError, match="is not of filters for ties"):
            random_loss(shape, ties_of("h", 2, 8), **arguments)
    with pytest.raises(TypeError, match="shape="):
        random_loss("8", ties_of("h", 2, 8))
    with pytest.raises(TypeError, match="ties must be the Ties"):
        random_loss((8, 2, 3, 3), "h")


def test_without_rustworkx_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rustworkx", None)
    found, ties = mirror_distances(draw(8, 2, 3, 3), 2), ties_of("h", 2, 8)
    with pytest.raises(ModuleNotFoundError, match="matching filters into orbits needs the package rustworkx"):
        match_filters(found, ties)


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
