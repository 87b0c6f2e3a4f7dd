# convert within limits, of a layer by itself, in half precision, and with arguments that it refuses.

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
import zoo
from test_conversion import ready, stack
from torch import nn

import symconv_fast
from symconv_fast import SymmetricConv2d, SymmetricConv3d, convert, revert
from symconv_fast.channels import find_spaces
from symconv_fast.conversion.plan import Matcher, arrange, convolution
from symconv_fast.conversion.reordered import Reordered
from symconv_fast.conversion.sites import find_sites
from symconv_fast.conversion.wishes import wanted


def test_a_tied_model_loses_nothing_and_is_told_so() -> None:
    layers = (SymmetricConv2d(16, 32, 3, symmetry="hv"), SymmetricConv2d(32, 32, 3, symmetry="h"))
    model = nn.Sequential(*(layer.to_conv() for layer in layers)).double()
    tied, report = convert(model, lambda name, conv: ("hv", "h")[int(name)])
    assert report.lost == 0.0
    assert [layer.order for layer in report.layers] == ["as given", "as given"]
    for layer, original in zip(tied, layers):
        torch.testing.assert_close(layer.weight, original.weight.double(), rtol=1e-15, atol=0)
    assert "train it further" not in str(report)


def brute_force(model: nn.Module, limit: float) -> float:
    """The least sum of lost energies with at most that share of the parameters, by trying every combination."""
    sites = find_sites(model, 1, ())
    matcher = Matcher(find_spaces(model))
    every = []
    for site in sites:
        options = [(0.0, 0)]
        for key in ("h", "v", "hv"):
            tie: Any = wanted(key, site)
            conv = convolution(site)
            rows = conv.weight[0].numel()
            lost = arrange(matcher, {site: tie})[0].lost
            options.append((lost, (tie[1].out_channels - tie[1].unique) * rows))
        every.append(options)
    whole = sum(p.numel() for p in model.parameters())
    able = [
        sum(lost for lost, _ in choice)
        for choice in product(*every)
        if whole - sum(saved for _, saved in choice) <= limit * whole
    ]
    return min(able)


@pytest.mark.parametrize("limit", [0.9, 0.6, 0.45, 0.3])
def test_auto_finds_the_ties_of_least_loss_within_the_parameters(limit: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, 5))
    _, report = convert(model, "auto", budget={"parameters": limit}, min_channels=1)
    assert report.parameters <= limit * report.parameters_before
    assert math.isclose(sum(layer.lost for layer in report.tied), brute_force(model, limit), rel_tol=1e-9)


def test_auto_within_lost_energy_and_within_time() -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 64, 3))
    _, report = convert(model, "auto", budget={"lost_energy": 0.3})
    assert report.tied
    assert sum(layer.lost for layer in report.tied) / 3 <= 0.3
    x = torch.zeros(4, 16, 40, 40)
    _, report = convert(model, "auto", budget={"time": 0.6}, example_input=x)
    assert report.cost is not None
    assert report.cost.step <= 0.6 * report.cost.ordinary_step
    with pytest.raises(ValueError, match="cannot be met: with the most ties there are, 0"):
        convert(model, "auto", budget={"time": 0.001}, example_input=x)


def test_auto_leaves_a_layer_alone_where_the_estimate_sees_no_gain() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 128, 3), nn.Conv2d(128, 128, 3))

    def slow(name: str, algorithm: str) -> Any:
        return symconv_fast.backend(name, algorithm)

    with slow("reference", "expand"):  # nothing gains where filters are expanded
        _, report = convert(
            model, "auto", budget={"lost_energy": 0.9}, example_input=torch.zeros(1, 16, 20, 20)
        )
    assert not report.tied
    assert "no gain to expect" in str(report.layers[1].reason)


def test_models_on_the_meta_device_and_in_half_precision() -> None:
    tied, report = convert(stack().to("meta"), "h", min_channels=1)
    assert tied[0].weight.is_meta
    assert math.isnan(report.layers[0].lost)
    tied, report = convert(stack().to(torch.bfloat16), "h", min_channels=1)
    assert tied[0].weight.dtype == torch.bfloat16


def test_a_convolution_by_itself() -> None:
    conv = nn.Conv3d(4, 8, 3)
    x = torch.randn(1, 4, 5, 5, 5)
    tied, report = convert(conv, "hvz", min_channels=1)
    assert isinstance(tied, (SymmetricConv3d, Reordered))
    plain = revert(tied)
    assert type(plain) is nn.Conv3d
    torch.testing.assert_close(plain(x), tied(x))
    assert "(the model)" in str(report)
    with pytest.raises(TypeError, match="inplace=True cannot make another object of Conv3d"):
        convert(conv, "h", min_channels=1, inplace=True)


def test_an_index_survives_saving_and_loading() -> None:
    model, x = ready("control_flow")
    tied, report = convert(model, "hv", min_channels=1)
    assert any(layer.order == "matched, index" for layer in report.tied)
    other, _ = convert(zoo.control_flow().double().eval(), "hv", min_channels=1)
    other.load_state_dict(tied.state_dict())
    torch.testing.assert_close(other(x), tied(x))
    torch.testing.assert_close(copy.deepcopy(tied)(x), tied(x))


def nan() -> nn.Module:
    model = stack()
    model[3].weight.data[0, 0, 0, 0] = math.nan
    return model


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (lambda: "resnet", {}, TypeError, "model=str must be a torch.nn.Module"),
        (lambda: nn.Linear(3, 3), {}, ValueError, "model=Linear has no convolutions"),
        (nan, {}, ValueError, "the weight of 3 has values that are not finite"),
        (stack, {"symmetry": "x"}, ValueError, "symmetry key 'x' is not valid; valid keys"),
        (stack, {"symmetry": None}, TypeError, "symmetry=None ties nothing"),
        (stack, {"symmetry": {}}, ValueError, "ties nothing"),
        (stack, {"symmetry": 3}, TypeError, "symmetry must be a dict"),
        (stack, {"match": "all"}, ValueError, "match='all' must be True, False or 'followed'"),
        (stack, {"min_channels": 1.5}, TypeError, "min_channels=1.5 must be an int"),
        (stack, {"skip": ["4"]}, ValueError, "skip has '4', which no convolution is called; there are 0, 3"),
        (stack, {"skip": [4]}, TypeError, r"skip=\[4\] must be names"),
        (stack, {"budget": {"parameters": 0.5}}, ValueError, "is for symmetry='auto'"),
        (stack, {"symmetry": "auto", "budget": {"watts": 1}}, ValueError, "limits 'watts'; valid: "),
        (stack, {"symmetry": "auto", "budget": 0.5}, TypeError, "budget=0.5 must limit one quantity"),
        (stack, {"symmetry": "auto", "budget": {"parameters": 2}}, ValueError, "above 0 and at most 1"),
        (stack, {"symmetry": "auto", "budget": {"time": 0.5}}, ValueError, "needs example_input"),
        (
            stack,
            {"symmetry": "auto", "budget": {"parameters": 0.1}},
            ValueError,
            "with the most ties there are, 0",
        ),
        (stack, {"example_input": 3}, TypeError, "example_input=int must be a tensor"),
        (stack, {"example_input": torch.zeros(1, 5, 9, 9)}, RuntimeError, "5 channels"),
    ],
)
def test_bad_input(make: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(make(), **{"min_channels": 1, "symmetry": "h", **arguments})


def test_skip_takes_modules_and_explain_takes_what_convert_made() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3))
    tied, report = convert(model, "h", min_channels=1, skip="0")
    assert [layer.reason for layer in report.layers] == ["skip names it"] * 2 + [None]
    assert isinstance(tied[1], Reordered)
    verdict = symconv_fast.explain(tied[1], torch.zeros(1, 8, 9, 9)).verdict
    assert verdict == symconv_fast.explain(tied[1].convolution, torch.zeros(1, 8, 9, 9)).verdict
    with pytest.raises(TypeError, match=r"of a whole model convert\(model, "):
        symconv_fast.explain(tied, torch.zeros(1, 4, 9, 9))


def test_a_shape_is_no_example_input() -> None:
    with pytest.raises(TypeError, match=r"example_input=\(1, 2, 9, 9\) must be a tensor"):
        convert(stack(), "h", example_input=(1, 2, 9, 9))
