# symconv_fast.init: what torch's initialisers make of an ordinary layer, for the expanded filters of a tied one.
"""Statistics against torch's own on ordinary layers of the same sizes, and activations through eight layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import symconv_fast as sf

LAYERS = {
    "hv": lambda: sf.SymmetricConv2d(48, 64, 3, symmetry="hv"),
    "mixed, groups": lambda: sf.SymmetricConv2d(96, 128, 3, groups=2, symmetry={"h": 32, "hv": 64}),
    "hvz": lambda: sf.SymmetricConv3d(32, 64, (3, 2, 3), symmetry="hvz"),
    "1-D": lambda: sf.SymmetricConv1d(128, 256, 5, symmetry="h"),
    "transposed": lambda: sf.SymmetricConvTranspose2d(64, 96, 3, groups=2, symmetry="hv"),
    "untied": lambda: sf.SymmetricConv2d(48, 64, 3),
    "torch's": lambda: nn.Conv2d(48, 64, 3),
    "linear": lambda: nn.Linear(300, 200),
}
CALLS = [
    ("kaiming_uniform_", {}),
    ("kaiming_uniform_", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("kaiming_normal_", {"a": 0.5}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "tanh"}),
    ("xavier_uniform_", {}),
    ("xavier_normal_", {"gain": 3.0}),
]


def ordinary(layer: nn.Module) -> nn.Module:
    return layer.to_conv() if hasattr(layer, "to_conv") else layer


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_expanded_weights_have_the_distribution_of_torchs(name, function, arguments):
    """Same spread within 3 %, and the same bounds where the distribution is uniform."""
    layer, bias = LAYERS[name](), LAYERS[name]().bias
    layer.bias = bias
    assert getattr(sf.init, function)(layer, **arguments) is layer.weight
    ours, theirs = ordinary(layer).weight.detach(), torch.empty_like(ordinary(layer).weight)
    getattr(nn.init, function)(theirs, **arguments)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.03)
    assert abs(float(ours.mean())) < 0.05 * float(ours.std())
    if "uniform" in function:
        assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.01)
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize("name", LAYERS)
def test_fans_are_those_of_the_expanded_weight(name):
    layer = LAYERS[name]()
    expected = nn.init._calculate_fan_in_and_fan_out(ordinary(layer).weight)
    assert sf.init.calculate_fans(layer) == expected


@pytest.mark.parametrize("function", ["kaiming_normal_", "kaiming_uniform_"])
def test_activations_keep_their_size_through_eight_layers(function):
    """Where torch's own initialiser on the reduced weight of "hv" doubles them at each layer."""

    @torch.no_grad()
    def spread(initialise, seed: int) -> float:
        torch.manual_seed(seed)
        x = torch.randn(4, 64, 16, 16)
        for _ in range(8):
            layer = sf.SymmetricConv2d(
                64, 64, 3, padding=1, padding_mode="circular", symmetry="hv", bias=False
            )
            initialise(layer)
            x = layer(x).relu()
        return float(x.square().mean().sqrt())

    arguments = {"mode": "fan_out", "nonlinearity": "relu"}
    right = [spread(lambda layer: getattr(sf.init, function)(layer, **arguments), seed) for seed in range(6)]
    wrong = spread(lambda layer: getattr(nn.init, function)(layer.weight, **arguments), 0)
    assert 0.5 < math.exp(sum(map(math.log, right)) / len(right)) < 2
    assert wrong == pytest.approx(2**8 * right[0], rel=1e-3)


ORTHOGONAL = {
    "h": (sf.SymmetricConv2d, (16, 32, 3), {"symmetry": "h"}, 32),
    "hv": (sf.SymmetricConv2d, (16, 64, 3), {"symmetry": "hv"}, 64),
    "hvz": (sf.SymmetricConv3d, (8, 64, 3), {"symmetry": "hvz"}, 64),
    "transposed": (sf.SymmetricConvTranspose2d, (200, 8, (2, 3)), {"symmetry": "hv"}, None),
    "one tap along h": (sf.SymmetricConv2d, (16, 32, (3, 1)), {"symmetry": "hv"}, 16),
    "untied": (sf.SymmetricConv2d, (16, 32, 3), {}, 32),
    "ordinary": (nn.Conv2d, (16, 32, 3), {}, 32),
}


@pytest.mark.filterwarnings("ignore::symconv_fast.SymmetryWarning")
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal_filters(name):
    """Orthonormal, times the gain; those that a one-tap axis repeats are orthonormal without their copies."""
    cls, sizes, more, rank = ORTHOGONAL[name]
    layer = cls(*sizes, **more, dtype=torch.float64)
    assert sf.init.orthogonal_(layer, gain=3.0) is layer.weight
    filters = ordinary(layer).weight.detach()
    if rank is None:  # a transposed layer's filters are along dim 1
        filters = filters.transpose(0, 1)
        rank = len(filters)
    distinct = filters.flatten(1).unique(dim=0)
    assert len(distinct) == rank
    torch.testing.assert_close(distinct @ distinct.T, 9 * torch.eye(rank, dtype=torch.float64))


def test_more_filters_than_a_parity_has_taps():
    """Columns are orthonormal within each parity, so that no direction is amplified beyond the gain."""
    layer = sf.SymmetricConv2d(2, 64, 3, symmetry="hv", dtype=torch.float64)
    sf.init.orthogonal_(layer)
    sizes = torch.linalg.svdvals(layer.expanded_weight().detach().flatten(1))
    torch.testing.assert_close(sizes, torch.ones(18, dtype=torch.float64))


@pytest.mark.parametrize("symmetry", [{"h": 4, "hv": 4}, {"h": 4}, {"h": 4, "v": 4}])
def test_orthogonal_is_for_one_tie(symmetry):
    with pytest.raises(ValueError, match=r"orthogonal_ needs one tie for all filters.*kaiming_normal_"):
        sf.init.orthogonal_(sf.SymmetricConv2d(16, 8, 3, symmetry=symmetry))


def test_what_is_no_layer():
    for function in (
        "kaiming_normal_",
        "kaiming_uniform_",
        "xavier_normal_",
        "xavier_uniform_",
        "orthogonal_",
    ):
        for bad in (torch.randn(8, 4, 3, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(1, 1, 1)), None):
            with pytest.raises(
                TypeError, match=r"symconv_fast\.init takes the layer .*a weight alone does not say"
            ):
                getattr(sf.init, function)(bad)
    with pytest.raises(ValueError, match="2 dims or more"):
        sf.init.calculate_fans(nn.LayerNorm(4))
    with pytest.raises(ValueError, match="mode='fan_on' is not valid; give 'fan_in' or 'fan_out'"):
        sf.init.kaiming_normal_(nn.Conv2d(2, 2, 3), mode="fan_on")
    with pytest.raises(ValueError, match="onlinearity"):
        sf.init.kaiming_normal_(nn.Conv2d(2, 2, 3), nonlinearity="nothing")


def test_a_generator_repeats_the_draw():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="hv")
    for function in (
        "kaiming_normal_",
        "kaiming_uniform_",
        "xavier_normal_",
        "xavier_uniform_",
        "orthogonal_",
    ):
        first, second = (
            getattr(sf.init, function)(layer, generator=torch.Generator().manual_seed(3)).detach().clone()
            for _ in range(2)
        )
        assert torch.equal(first, second)
        assert math.isfinite(float(first.sum()))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_weights_are_left_alone():
    for function in ("kaiming_normal_", "xavier_uniform_", "orthogonal_"):
        layer = sf.SymmetricConv2d(0, 8, 3, symmetry="hv")
        assert getattr(sf.init, function)(layer).numel() == 0
