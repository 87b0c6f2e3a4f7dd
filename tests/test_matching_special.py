# The order of filters: where none is better, special filters, and bad input.

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from test_matching import draw, least_loss, matched, orbits_of, ties_of

from symconv_fast.conversion.matching import (
    RandomLoss,
    match_filters,
    mirror_distances,
    random_loss,
    reorder_filters,
)
from symconv_fast.conversion.orbits import Bank, _flags, _gains_of_swaps, _join, _pair_up
from symconv_fast.ties import mirror

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
