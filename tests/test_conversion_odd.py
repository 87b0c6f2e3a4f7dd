# convert and revert on what honest users have: code that looks at layers, odd weights, failures, narrow terminals.

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_conversion import Odd, distance, no_random_filters, stack  # noqa: F401
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from symconv_fast import SymmetricConv2d, Symmetry, convert, revert

H = Symmetry("h")


class Reading(nn.Module):
    """Two convolutions, the second of which is read, called or looked at as `use` says."""

    def __init__(
        self, use: Callable[[nn.Module, nn.Module, Tensor], Tensor], last: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1) if last is None else last
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.first, self.last, x)


def transposed() -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)


READINGS: list[tuple[Callable[..., Tensor], Callable[[], nn.Module] | None, list[str | None]]] = [
    (lambda a, b, x: b(a(x.to(b.weight.dtype))) * b.out_channels, None, [H, H]),
    (lambda a, b, x: b(a(x)) - b.bias.view(1, -1, 1, 1), None, [H, H]),
    (lambda a, b, x: b(input=a(input=x)), None, [H, H]),
    (lambda a, b, x: b(a(x), output_size=[18, 18]), transposed, [H, H]),
    (lambda a, b, x: F.conv2d(a(x), 2 * b.weight, padding=1), None, [H, None]),
    (lambda a, b, x: b(a(x)) * a.weight.square().sum((1, 2, 3)).view(1, -1, 1, 1), None, [None, H]),
    (lambda a, b, x: b(a(x)) if bool(x.sum() > -1e9) else x, None, [H, H]),
]


@pytest.mark.usefixtures("no_random_filters")
@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize(("use", "last", "ties"), READINGS)
def test_code_that_reads_a_layer_or_calls_it_by_names(use: Any, last: Any, ties: Any, match: bool) -> None:
    model = Reading(use, None if last is None else last()).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    tied, report = convert(model, "h", min_channels=1, match=match, example_input=x)
    assert [layer.symmetry for layer in report.layers] == ties
    assert distance(revert(tied)(x), tied(x)) < 1e-12
    called = [layer for layer in report.layers if layer.calls]
    assert [layer.cost is not None for layer in report.layers] == [layer in called for layer in report.layers]
    for layer in report.layers:
        if layer.symmetry is None:
            assert layer.reason == "the model computes with its weight, apart from calling it"


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_an_index_leaves_a_layer_that_looks_like_the_ordinary_one(make: Any) -> None:
    tied, report = convert(nn.Sequential(make(4, 24, 3, groups=2)), "h", min_channels=1)
    layer, plain = tied[0], revert(tied)[0]
    assert report.layers[0].order == "matched, index"
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    assert layer.weight.grad_fn is not None
    names = ("out_channels", "kernel_size", "groups", "transposed", "padding_mode")
    assert all(getattr(layer, name) == getattr(plain, name) for name in names)
    own = {id(parameter) for parameter in layer.parameters()}
    assert own == {id(parameter) for parameter in layer.convolution.parameters()}


def test_what_revert_returns_is_an_ordinary_model() -> None:
    model = stack().eval()
    tied, report = convert(model, "h", min_channels=1)
    assert report.layers[1].order == "matched, index"
    plain = revert(tied)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert str(plain) == str(model)
    assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(torch.jit.trace(plain, x)(x), tied(x))


def expanded() -> nn.Sequential:
    """One value of the weight stands for all input channels, in the same place of memory."""
    model = stack()
    model[3].weight = nn.Parameter(torch.randn(6, 1, 3, 3).expand(6, 8, 3, 3))
    return model


def of_inference_mode() -> nn.Sequential:
    model = stack()
    with torch.inference_mode():
        model[3].weight = nn.Parameter(model[3].weight.clone(), False)
    return model


@pytest.mark.parametrize("make", [expanded, of_inference_mode])
def test_weights_that_cannot_be_written_to(make: Callable[[], nn.Module]) -> None:
    model, x = make().eval(), torch.randn(1, 2, 9, 9)
    tied, report = convert(model, "h", min_channels=1, inplace=True)
    assert len(report.tied) == 2
    torch.testing.assert_close(revert(tied)(x), tied(x))


def test_in_place_conversion_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)))
    before, layers = copy.deepcopy(model.state_dict()), list(model)
    made: list[Any] = []

    def fail(conv: Any, *arguments: Any, **options: Any) -> Any:
        made.append(conv)
        if len(made) == 3:
            raise MemoryError
        return original(conv, *arguments, **options)

    original = SymmetricConv2d.from_conv
    monkeypatch.setattr(SymmetricConv2d, "from_conv", fail)
    with pytest.raises(MemoryError):
        convert(model, "h", min_channels=1, inplace=True)
    assert list(model) == layers
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    model[0].weight.register_hook(lambda gradient: None)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "a hook on its weight sees gradients"),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3, dtype=torch.complex64)),
            "complex64 filters cannot be tied",
        ),
    ],
)
def test_more_that_is_left_alone(make: Callable[[], nn.Module], reason: str) -> None:
    model = make()
    kept = model[0]
    _, report = convert(model, "h", min_channels=1, inplace=True)
    assert reason in str(report.layers[0].reason)
    assert model[0] is kept


def test_inputs_without_a_batch() -> None:
    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).flatten(1))  # of positions: dim 0 are channels

    x = torch.randn(4, 8, 8, dtype=torch.float64)
    model = Unbatched().double()
    hidden: Any = revert(convert(model, "h", min_channels=1, match=False)[0])
    order = torch.randperm(8)
    hidden.conv.weight.data, hidden.conv.bias.data = hidden.conv.weight[order], hidden.conv.bias[order]
    tied, report = convert(hidden, "h", min_channels=1, example_input=x)
    assert report.layers[0].order == "matched, index"
    assert "without a batch" in report.notes[0]
    assert distance(tied(x), hidden(x)) < 1e-12


def test_the_report_tells_layers_of_unknown_cost_from_those_not_called() -> None:
    layers = [
        Odd(8, 8, 3),
        SymmetricConv2d(8, 8, 3, symmetry="h"),
        parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    ]
    model = nn.Sequential(*layers, nn.ModuleDict({"idle": nn.Conv2d(8, 8, 3)}))
    model[3].forward = lambda x: x
    _, report = convert(model, "h", min_channels=1, example_input=torch.zeros(1, 8, 12, 12))
    assert [layer.calls for layer in report.layers] == [1, 1, 1, 0]
    assert [layer.cost and layer.cost.ordinary_macs for layer in report.layers] == [
        None,
        8 * 8 * 8 * 8 * 9,
        6 * 6 * 8 * 8 * 9,
        None,
    ]
    assert report.layers[1].cost is not None
    assert report.layers[1].cost.macs * 2 == report.layers[1].cost.ordinary_macs
    assert str(report).count("not called") == 1


def test_auto_counts_the_time_of_layers_that_it_leaves_alone() -> None:
    model = nn.Sequential(nn.Conv2d(64, 512, 1), nn.Conv2d(512, 64, 3, padding=1), nn.Conv2d(64, 512, 1))
    x = torch.zeros(2, 64, 24, 24)
    _, every = convert(model, "hv", example_input=x, match=False)
    assert every.cost is not None
    least = every.cost.step / every.cost.ordinary_step
    limit = 0.2 + 0.8 * least
    _, report = convert(model, "auto", budget={"time": limit}, example_input=x, match=False)
    assert report.cost is not None
    assert report.cost.step <= limit * report.cost.ordinary_step
    with pytest.raises(ValueError, match="is left; give at least that"):
        convert(model, "auto", budget={"time": 0.9 * least}, example_input=x, match=False)


def test_auto_where_nothing_can_be_tied() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.LazyConv2d(4, 3))
    _, report = convert(model, "auto", budget={"lost_energy": 0.3})
    assert not report.tied
    with pytest.raises(ValueError, match=r"1\.000 of the parameters of the model is left"):
        convert(model, "auto")
    with pytest.raises(ValueError, match="those of 0 are on the meta device: load the weights first"):
        convert(stack().to("meta"), "auto", min_channels=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"skip": 3}, TypeError, "skip=3 must be names such as"),
        ({"skip": None}, TypeError, "skip=None must be names such as"),
        ({"min_channels": -1}, ValueError, "min_channels=-1 must be 0 or more"),
        ({"match": 1}, ValueError, "match=1 must be True, False or 'followed'"),
        ({"keep_norm": "no"}, TypeError, "keep_norm='no' must be True or False"),
        ({"inplace": "no"}, TypeError, "inplace='no' must be True or False"),
        ({"progress": 3}, TypeError, "progress=3 must be True or False"),
        (
            {"symmetry": lambda name, conv: {}},
            ValueError,
            "'0', conv.* gave {}: it ties nothing; return None",
        ),
    ],
)
def test_more_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(stack(), **{"min_channels": 1, "symmetry": "h", **arguments})


@pytest.mark.usefixtures("no_random_filters")
def test_code_that_asks_for_the_types_of_its_layers() -> None:
    class Asking(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self:
                x = layer(x) * (2 if isinstance(layer, nn.Conv2d) else 1)
            return x

    model = Asking(*stack()).double().eval()
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    before = list(model)
    tied, report = convert(model, "h", min_channels=1)
    assert [layer.order for layer in report.layers] == ["matched", "as given"]
    assert "asks for the types" in report.notes[0]
    assert distance(revert(tied)(x), tied(x)) < 1e-12
    assert list(model) == before
    assert not convert(stack(), "h", min_channels=1)[1].notes


@pytest.mark.usefixtures("no_random_filters")
@pytest.mark.parametrize("timed", [False, True])
def test_the_report_is_legible_on_a_narrow_terminal(timed: bool) -> None:
    from rich.console import Console

    names = {"features_of_the_image": nn.Conv2d(64, 1024, 3), "head": nn.Conv2d(1024, 64, 3)}
    model = nn.Sequential()
    for name, layer in names.items():
        model.add_module(name, layer)
    x = torch.zeros(8, 64, 60, 60) if timed else None
    _, report = convert(model, "h", match=False, skip="head", example_input=x)
    console = Console(width=80, record=True, color_system=None, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    cells = [cell for layer in report.layers for cell in (layer.parameters, layer.parameters_before)]
    cells += [cost.ordinary_macs for layer in report.layers if (cost := layer.cost) is not None]
    assert len(cells) == (6 if timed else 4)
    assert all(f"{cell:,}" in text for cell in cells)
    for word in ("skip", "'h'", "all", "random ones"):
        assert word in text


def kept_weight() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    model.regularised = {"conv": [model[0].weight]}
    return model


@pytest.mark.parametrize("inplace", [True, False])
def test_a_parameter_in_a_list_leaves_its_layer_alone(inplace: bool) -> None:
    tied, report = convert(kept_weight(), "h", min_channels=1, inplace=inplace)
    assert "regularised holds it" in str(report.layers[0].reason)
    assert tied.regularised["conv"][0] is tied[0].weight


def test_lazy_layers_get_their_sizes_from_the_example() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8), nn.LazyConv2d(8, 3))
    tied, report = convert(model, "h", min_channels=1, example_input=torch.randn(2, 4, 9, 9))
    assert [type(module).__name__ for module in revert(tied)] == ["Conv2d", "BatchNorm2d", "Conv2d"]
    assert [layer.symmetry for layer in report.layers] == [H, H]
    assert report.cost is not None
    assert report.cost.ordinary_macs == 2 * report.cost.macs


def test_a_model_that_cannot_be_copied() -> None:
    model = stack()
    model.output = model(torch.zeros(1, 2, 9, 9))  # a tensor with a graph
    with pytest.raises(
        TypeError, match=r"model=Sequential cannot be copied \(RuntimeError.*; use inplace=True"
    ):
        convert(model, "h", min_channels=1)
    assert convert(model, "h", min_channels=1, inplace=True)[1].tied


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
@pytest.mark.parametrize("keep_norm", [True, False])
def test_filters_whose_squares_overflow_or_vanish(scale: float, keep_norm: bool) -> None:
    conv = nn.Conv2d(4, 8, 3, bias=False)
    big = copy.deepcopy(conv)
    big.weight.data *= scale
    results = [convert(c, "h", min_channels=1, match=False, keep_norm=keep_norm) for c in (conv, big)]
    (tied, report), (tied_big, report_big) = results
    torch.testing.assert_close(tied_big.weight / scale, tied.weight)
    assert math.isclose(report.lost, report_big.lost, rel_tol=1e-5)
