# convert and revert: what becomes of each layer, and that only the ties change what the model computes.

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from symconv_fast import SymmetricConv1d, SymmetricConv2d, Symmetry, convert, revert
from symconv_fast.channels import find_spaces
from symconv_fast.conversion import plan
from symconv_fast.conversion.matching import RandomLoss, reorder_filters
from symconv_fast.conversion.plan import Matcher, arrange, convolution
from symconv_fast.conversion.reordered import Reordered
from symconv_fast.conversion.sites import find_sites
from symconv_fast.conversion.wishes import wanted
from symconv_fast.modules import _Symmetric

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (zoo.resnet18, (2, 3, 33, 33)),
    "se_resnet18": (zoo.se_resnet18, (2, 3, 33, 33)),
    "vgg16_bn": (zoo.vgg16_bn, (2, 3, 32, 32)),
    "mobilenet_v2": (zoo.mobilenet_v2, (2, 3, 32, 32)),
    "densenet121": (zoo.densenet121, (2, 3, 32, 32)),
    "unet": (zoo.unet, (2, 1, 32, 32)),
    "unet3d": (zoo.unet3d, (1, 1, 16, 16, 16)),
    "control_flow": (zoo.control_flow, (2, 3, 16, 16)),
}
TIES = {"unet3d": "hvz", "densenet121": "h"}


@pytest.fixture
def no_random_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the column "random" of reports out, which takes as long as all matching together."""
    unknown = RandomLoss(math.nan, math.nan, 1)
    monkeypatch.setattr(plan, "random_loss", lambda *_, **__: unknown)


def ready(name: str) -> tuple[nn.Module, Tensor]:
    """A model of the zoo in float64, in eval mode with statistics of its own, and an input."""
    make, shape = MODELS[name]
    model = zoo.randomise_norms(make().double()).eval()
    return model, torch.randn(shape, dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def stack() -> nn.Sequential:
    """Two layers that can be tied, and what is between."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False)
    )


@pytest.mark.usefixtures("no_random_filters")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_hidden_orbits_is_found_and_keeps_its_function(name: str) -> None:
    model, x = ready(name)
    tie = TIES.get(name, "hv")
    hidden: Any = revert(convert(model, tie, match=False, min_channels=1)[0])
    expected = hidden(x)
    spaces = find_spaces(hidden)
    free = [space for space in spaces.spaces if space.fixed is None] if spaces.error is None else []
    spaces.permute(hidden, {space: torch.randperm(space.size) for space in free})
    assert distance(hidden(x), expected) < 1e-12
    if free:  # in this order the layers are not tied any more
        assert convert(hidden, tie, match=False, min_channels=1)[1].lost > 0.1
    tied, report = convert(hidden, tie, min_channels=1)
    assert report.tied
    assert max(layer.lost for layer in report.tied) < 1e-24
    assert distance(tied(x), expected) < 1e-12
    assert distance(revert(tied)(x), expected) < 1e-12
    assert not any(isinstance(module, (_Symmetric, Reordered)) for module in revert(tied).modules())


@pytest.mark.usefixtures("no_random_filters")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pairs", [True, pytest.param(False, marks=pytest.mark.full)])
def test_converted_outputs_are_those_of_the_projected_filters_where_they_were(name: str, pairs: bool) -> None:
    model, x = ready(name)
    tie, keep_norm = ("h", True) if pairs else (TIES.get(name, "hv"), False)
    sites = [site for site in find_sites(model, 1, ()) if site.reason is None]
    found = {site: wanted(tie, site) for site in sites}
    ties = {site: each for site, each in found.items() if not isinstance(each, str)}
    expected = copy.deepcopy(model)
    for decision in arrange(Matcher(find_spaces(model)), ties):
        conv = convolution(decision.site)
        assert decision.tie is not None
        own, dim = decision.tie[1], 1 if conv.transposed else 0
        order = torch.arange(conv.out_channels) if decision.order is None else decision.order
        moved = reorder_filters(conv.weight.detach(), order, dim, conv.groups)
        near = own.expand(own.project(moved, dim, keep_norm=keep_norm), dim)
        target: Any = expected.get_submodule(decision.site.name)
        target.weight.data = reorder_filters(near, order.argsort(), dim, conv.groups)
    tied, report = convert(model, tie, min_channels=1, keep_norm=keep_norm)
    assert len(report.tied) == len(ties) > 0
    assert distance(tied(x), expected(x)) < 1e-12
    assert distance(revert(tied)(x), tied(x)) < 1e-12
    assert report.lost > 0.1  # random filters


@pytest.mark.parametrize("match", [True, False, "followed"])
def test_training_goes_on_with_the_same_gradients_of_the_input(match: Any) -> None:
    model, x = ready("resnet18")
    tied, _ = convert(model.train(), "h", match=match)
    x.requires_grad_()
    both = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (tied, revert(tied))]
    assert distance(*both) < 1e-10
    assert all(p.requires_grad for p in tied.parameters())


def test_matching_loses_less_and_never_more() -> None:
    model, _ = ready("vgg16_bn")
    matched, plain = (convert(model, "h", match=match)[1] for match in (True, False))
    assert matched.lost < plain.lost
    for a, b in zip(matched.layers, plain.layers):
        assert a.lost <= b.lost + 1e-15


def test_the_original_is_left_alone_unless_in_place() -> None:
    model = stack()
    before = copy.deepcopy(model.state_dict())
    tied, _ = convert(model, "h", min_channels=1)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert tied is not model
    again, _ = convert(model, "h", min_channels=1, inplace=True)
    assert again is model
    assert isinstance(model[0], SymmetricConv2d)
    x = torch.randn(2, 2, 9, 9)
    torch.testing.assert_close(again.eval()(x), tied.eval()(x))


def test_what_a_layer_has_carries_over() -> None:
    model = stack().to(torch.float64).to(memory_format=torch.channels_last).eval()
    model[3].train()
    model[0].weight.requires_grad_(False)
    model[0].note = "kept"
    seen: list[Any] = []
    handle = model[3].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    tied, _ = convert(model, "h", min_channels=1)
    assert [layer.training for layer in (tied[0], tied[3])] == [False, True]
    first, last = (layer.convolution for layer in (tied[0], tied[3]))
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert first.weight.dtype == torch.float64
    assert tied[0].note == "kept"
    assert [first.training, last.training] == [False, True]
    assert [first.weight.requires_grad, first.bias.requires_grad] == [False, True]
    tied(torch.randn(1, 2, 9, 9, dtype=torch.float64))
    assert seen == [(1, 6, 7, 7)]
    convert(model, "h", min_channels=1, inplace=True)
    handle.remove()
    model(torch.randn(1, 2, 9, 9, dtype=torch.float64))
    assert len(seen) == 1


@pytest.mark.parametrize("cls", [nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_the_way_back_keeps_the_memory_format(cls: Any) -> None:
    last = torch.channels_last_3d if cls is nn.Conv3d else torch.channels_last
    model = nn.Sequential(cls(6, 8, 3)).to(memory_format=last)
    tied, report = convert(model, "h", min_channels=1)
    assert report.layers[0].order == "matched, index"
    weight = revert(tied)[0].weight
    assert weight.stride() == model[0].weight.stride()
    assert weight.is_contiguous(memory_format=last)


def test_a_hook_sees_the_channels_that_it_saw() -> None:
    model = stack().double().eval()
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    seen: list[Tensor] = []
    hidden: Any = revert(convert(model, "h", match=False, min_channels=1)[0])
    order = torch.randperm(8)
    spaces = find_spaces(hidden)
    spaces.permute(hidden, {spaces.of("0"): order})
    for layer in (hidden[0], hidden[2]):
        layer.register_forward_hook(lambda module, args, out: seen.append(out))
    hidden(x)
    tied, report = convert(hidden, "h", min_channels=1)
    assert report.layers[0].order == "matched, index"
    assert report.layers[0].lost < 1e-24
    tied(x)
    assert distance(seen[2], seen[0]) < 1e-12
    assert distance(seen[3], seen[1]) < 1e-12


def test_a_layer_in_two_places_becomes_one_layer() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    tied, report = convert(nn.Sequential(conv, nn.ReLU(), conv), "h", min_channels=1)
    assert tied[0] is tied[2]
    assert isinstance(tied[0], (SymmetricConv2d, Reordered))
    assert len(report.layers) == 1


class Odd(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def shared() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight = model[0].weight
    return model


def held() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    model.layers = [model[0]]
    return model


def fused() -> nn.Module:
    return nn.Sequential(torch.ao.nn.intrinsic.ConvReLU2d(nn.Conv2d(4, 4, 3), nn.ReLU()))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(Odd(4, 4, 3)), "Odd has a forward"),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 3))), "parametrized"),
        (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))), "parametrized"),
        (pruned, "computed by a hook"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "lazy"),
        (fused, "fused into ConvReLU2d"),
        (lambda: nn.Sequential(torch.ao.nn.quantized.Conv2d(4, 4, 3)), "quantised"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1)), "one tap"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, (1, 1))), "one tap"),
        (lambda: nn.Sequential(SymmetricConv2d(4, 4, 3, symmetry="v")), "a layer of this package already"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "each of its 4 groups has 1 filters"),
        (lambda: nn.Sequential(nn.Conv2d(4, 1, 3)), "it has 1 filters"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, (3, 1))), "no axis of 'h'"),
        (lambda: nn.Sequential(torch.compile(nn.Conv2d(4, 4, 3))), "torch.compile"),
        (lambda: nn.Sequential(torch.jit.script(nn.Conv2d(4, 4, 3))), "TorchScript"),
        (shared, "parameter of another module"),
        (held, "layers[0] holds it"),
    ],
)  # fmt: skip
def test_what_cannot_be_tied_is_left_alone_with_the_reason(
    make: Callable[[], nn.Module], reason: str
) -> None:
    model = make()
    tied, report = convert(model, "h", min_channels=1, inplace=True)
    assert not report.tied
    assert reason in str(report.layers[0].reason)
    assert reason in str(report)
    assert tied is model


def test_min_channels_and_skip_leave_layers_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    _, report = convert(model, "h", skip=["2"])
    assert [layer.symmetry for layer in report.layers] == [None, Symmetry("h"), None]
    assert report.layers[0].reason == "fewer channels than min_channels=16"
    assert report.layers[2].reason == "skip names it"
    _, report = convert(model, "h", skip=lambda name, conv: conv.in_channels == 32)
    assert not report.tied


def test_a_key_takes_the_letters_that_a_layer_has_axes_for() -> None:
    model = nn.ModuleList(
        [nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, (1, 3)), nn.Conv2d(4, 8, 3), nn.ConvTranspose3d(4, 8, 3)]
    )
    tied, report = convert(model, "hvz", min_channels=1, match=False)
    assert [str(layer.symmetry) for layer in report.layers] == ["'h'", "'h'", "'hv'", "'hvz'"]
    assert isinstance(tied[0], SymmetricConv1d)


def test_dicts_and_functions_of_name_and_layer() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 3))
    _, report = convert(model, {"hv": "50%"}, min_channels=1)
    assert [layer.symmetry is None for layer in report.layers] == [False, True, False]
    _, report = convert(model, {"h": 8}, min_channels=1)
    assert "more than out_channels=6" in str(report.layers[1].reason)
    ties = {"0": {"h": 2, "v": 4}, "1": None, "2": "v"}
    _, report = convert(model, lambda name, conv: ties[name], min_channels=1)
    assert [layer.symmetry for layer in report.layers] == [Symmetry({"h": 2, "v": 4}), None, Symmetry("v")]
    assert report.layers[1].reason == "symmetry(name, conv) gave None"
    with pytest.raises(
        ValueError, match=r"symmetry\(name='1', conv\) gave {'h': 5}: .*nearest valid: 4 and 6"
    ):
        convert(model, lambda name, conv: {"h": 5} if name == "1" else None, min_channels=1)


def test_layers_of_one_space_with_other_ties_keep_the_function() -> None:
    torch.manual_seed(1)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 8, 3, padding=1) for _ in range(3))
            self.last = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.a(x) + self.b(x) + self.c(x)).relu())

    ties = {"a": "h", "b": "v", "c": "h", "last": None}
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    for match in (True, "followed"):
        model = Sum().double()
        tied, report = convert(
            model, lambda name, conv: ties[name], min_channels=1, match=match, keep_norm=False
        )
        orders = [layer.order for layer in report.layers[:3]]
        assert orders == ["matched", "matched, index" if match is True else "matched", "matched"]
        expected = copy.deepcopy(model)
        sites = [s for s in find_sites(model, 1, ()) if ties[s.name]]
        found = {site: wanted(lambda name, conv: ties[name], site) for site in sites}
        for decision in arrange(Matcher(find_spaces(model), match == "followed"), found):
            conv, own, order = convolution(decision.site), decision.tie[1], decision.order
            near = own.expand(own.project(conv.weight.detach()[order]))
            expected.get_submodule(decision.site.name).weight.data = near[order.argsort()]
        assert distance(tied(x), expected(x)) < 1e-12
        assert distance(revert(tied)(x), tied(x)) < 1e-12


def test_report_as_data_and_as_a_table() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, bias=False), nn.Conv2d(64, 8, 1)
    )
    x = torch.randn(2, 16, 20, 20)
    tied, report = convert(model, "hv", example_input=x)
    first, second, last = report.layers
    assert (first.parameters_before, first.parameters) == (32 * 16 * 9 + 32, 8 * 16 * 9 + 32)
    assert second.cost is not None
    assert second.cost.macs == 2 * 16 * 16 * 16 * 32 * 9
    assert second.cost.ordinary_macs == 4 * second.cost.macs
    assert last.cost is not None
    assert last.cost.forward_ratio == 1.0
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    assert report.parameters == sum(p.numel() for p in tied.parameters())
    assert math.isclose(report.lost, (first.lost + second.lost) / 2)
    text = str(report)
    assert text.startswith("2 of 3 convolutions tied: ")
    for words in ("left alone: one tap", "train it further", "all convolutions", "matched"):
        assert words in text
    assert 0.6 < first.lost < 0.7 < first.lost_random + 0.05 < 0.75  # the filters are random
