# Models without ties: weights that are computed or shared, and what else is on a layer.

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import symconv_fast as sf

# --- computed weights -------------------------------------------------------------------------------------------------


class Dropped(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(weight, 0.5, self.training)


def spectral_norm(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


def dropped(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Dropped())


@pytest.mark.parametrize("how", [spectral_norm, dropped, nn.utils.spectral_norm])
@pytest.mark.parametrize("convert", [sf.to_torch, lambda layer: layer.to_conv()])
def test_a_conversion_in_training_mode_neither_changes_the_model_nor_draws(how: Any, convert: Any) -> None:
    layer, x = sf.SymmetricConv2d(3, 8, 3, symmetry="hv"), torch.randn(1, 3, 6, 6)
    how(layer)
    layer(x)
    before, drawn = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    first, second = convert(layer), convert(layer)
    assert first.training
    assert layer.training
    assert all(module.training for module in layer.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(first.weight, second.weight)
    torch.testing.assert_close(first(x), layer.eval()(x))


def test_computed_weights_still_train_when_converted_without_gradients() -> None:
    layer, x = sf.SymmetricConv2d(3, 8, 3, symmetry="hv"), torch.randn(1, 3, 6, 6)
    pruned = sf.SymmetricConv2d(3, 8, 3, symmetry="hv")
    parametrizations.weight_norm(layer)
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    with torch.no_grad():
        plain = sf.to_torch(nn.ModuleList([layer, pruned]))
    assert all(conv.weight.requires_grad for conv in plain)
    torch.testing.assert_close(plain[0](x), layer(x))


# --- what is shared, and what else is on a layer ----------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_a_parameter_that_means_the_same_without_ties_stays_shared_with_everything(inplace: bool) -> None:
    tied_h, tied_v = (sf.SymmetricConv2d(8, 8, 3, symmetry=s) for s in ("h", "v"))
    untied, conv = sf.SymmetricConv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    untied.weight = conv.weight
    tied_h.bias = tied_v.bias = untied.bias = conv.bias
    net = nn.Sequential(tied_h, tied_v, untied, conv)
    plain = sf.to_torch(net, inplace=inplace)
    assert len({id(layer.bias) for layer in plain}) == 1
    assert plain[2].weight is plain[3].weight
    assert (plain[3].weight is conv.weight) == inplace
    assert len(list(plain.parameters())) == 4


@pytest.mark.parametrize("how", [parametrizations.weight_norm, nn.utils.weight_norm, dropped])
def test_shared_originals_become_a_shared_weight_where_they_compute_the_same(how: Any) -> None:
    a, b, c = (sf.SymmetricConv2d(8, 8, 3, symmetry="h") for _ in range(3))
    for layer in (a, b, c):
        how(layer)
    for name, parameter in list(a.named_parameters()):
        if name != "bias":
            owner, _, last = name.rpartition(".")
            b.get_submodule(owner)._parameters[last] = parameter
    plain = sf.to_torch(nn.Sequential(a, b, c))
    assert plain[0].weight is plain[1].weight
    assert plain[2].weight is not plain[0].weight


def test_shared_originals_that_compute_different_weights_stay_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return self.factor * weight

    a, b = (sf.SymmetricConv2d(8, 8, 3, symmetry="h") for _ in range(2))
    b.weight = a.weight
    for layer, factor in ((a, 2.0), (b, 3.0)):
        parametrize.register_parametrization(layer, "weight", Scaled(factor))
    plain = sf.to_torch(nn.Sequential(a, b))
    assert torch.equal(plain[0].weight, a.expanded_weight())
    assert torch.equal(plain[1].weight, b.expanded_weight())


def test_layers_on_the_meta_device_share_too() -> None:
    a, b = (sf.SymmetricConv2d(8, 8, 3, symmetry="h", device="meta") for _ in range(2))
    b.weight = a.weight
    for layer in (a, b):
        parametrize.register_parametrization(layer, "weight", Dropped())
    plain = sf.to_torch(nn.Sequential(a, b))
    assert plain[0].weight is plain[1].weight


def test_to_conv_of_a_subclass_shares_with_no_other_class() -> None:
    class Doubled(sf.SymmetricConv2d):
        def to_conv(self) -> nn.Conv2d:
            conv = super().to_conv()
            conv.weight.data.mul_(2)
            return conv

    class Twice(sf.SymmetricConv2d):
        def expanded_weight(self) -> torch.Tensor:
            return 2 * super().expanded_weight()

    for symmetry in ("h", None):
        layers = [cls(8, 8, 3, symmetry=symmetry) for cls in (sf.SymmetricConv2d, Twice, Doubled)]
        layers[1].weight = layers[2].weight = layers[0].weight
        plain = sf.to_torch(nn.Sequential(*layers))
        assert torch.equal(plain[1].weight, 2 * plain[0].weight)
        assert torch.equal(plain[2].weight, 2 * plain[0].weight)


@pytest.mark.parametrize("inplace", [False, True])
def test_what_users_and_tools_set_on_a_layer_goes_along(inplace: bool) -> None:
    layer = sf.SymmetricConv2d(3, 8, 3, symmetry="h")
    layer.qconfig = torch.ao.quantization.default_qconfig
    layer.label = ["stem"]
    layer.observer = nn.BatchNorm2d(8)
    layer.register_buffer("weight_scale", torch.ones(3), persistent=False)
    layer.register_forward_hook(lambda module, args, output: module.observer(output))
    net, x = nn.Sequential(layer), torch.randn(2, 3, 6, 6)
    expected = net(x)
    plain = sf.to_torch(net, inplace=inplace)
    assert plain[0].qconfig is not None
    assert plain[0].label == ["stem"]
    assert (plain[0].observer is layer.observer) == inplace
    assert torch.equal(plain[0].weight_scale, torch.ones(3))
    assert "0.weight_scale" not in plain.state_dict()
    assert not {"symmetry", "ties", "share_bias"} & set(vars(plain[0]))
    torch.testing.assert_close(plain(x), expected)


def test_handles_of_hooks_still_remove_them_after_a_replacement_in_place() -> None:
    net, calls = nn.Sequential(sf.SymmetricConv2d(3, 8, 3, symmetry="h")), []
    handles = [
        net[0].register_forward_hook(lambda *_: calls.append("after")),
        net[0].register_forward_pre_hook(lambda *_: calls.append("before"), with_kwargs=True),
    ]
    sf.to_torch(net, inplace=True)(torch.randn(1, 3, 5, 5))
    assert calls == ["before", "after"]
    for handle in handles:
        handle.remove()
    net(torch.randn(1, 3, 5, 5))
    assert calls == ["before", "after"]
