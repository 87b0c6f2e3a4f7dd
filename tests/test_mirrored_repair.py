# Networks made equal to their mirror image, and arguments that are refused.

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import zoo
from test_mirrored import batches, closed, three_convs
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import symconv_fast as sf
from symconv_fast.analysis import match_mirrored
from symconv_fast.analysis.merging import average, repair, repairable, reset_batch_norm
from symconv_fast.analysis.moments import compare
from symconv_fast.channels import find_spaces

# --- repair --------------------------------------------------------------------------------------------------------


def goals_of(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (torch.randn(m.out_features if isinstance(m, nn.Linear) else m.out_channels).double(), 0.5 + torch.rand(
            m.out_features if isinstance(m, nn.Linear) else m.out_channels).double())
        for name, m in model.named_modules()
        if name in repairable(model, find_spaces(model))
    }  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_repaired_layers_have_the_moments_that_were_asked_for(bias: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, groups=6, bias=bias),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 4, 3, bias=bias, groups=2),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 3, bias=bias),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(5, 3, bias=bias),
    ).double()
    x = torch.randn(16, 2, 8, 8, dtype=torch.float64)
    spaces, goals = find_spaces(model), goals_of(model, x)
    assert list(goals) == ["0", "2", "4", "6", "9"]
    last = model[11].weight.detach().clone()
    repair(model, goals, spaces, lambda: iter([x]))
    pairs = compare(model, model, goals, lambda: iter([x]))
    for name, (mean, std) in goals.items():
        assert torch.allclose(pairs[name].moments[0].mean, mean, atol=1e-9)
        assert torch.allclose(pairs[name].moments[0].std, std, rtol=1e-9)
    assert torch.equal(model[11].weight, last)


def test_repair_leaves_tied_shared_and_computed_layers_alone() -> None:
    model = nn.Sequential(
        sf.SymmetricConv2d(2, 4, 3, symmetry="h"), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1),
        nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    model[2].weight = model[1].weight
    parametrizations.weight_norm(model[3])
    assert repairable(model, find_spaces(model)) == ["5"]


def test_repair_gives_no_bias_where_batch_norm_follows() -> None:
    model = three_convs(4, norm=True, bias=False)
    report = match_mirrored(model, batches(), progress=False, keep_models=True)
    assert report.models["repaired"].state_dict().keys() == model.state_dict().keys()
    reset, repaired = report.models["reset"], report.models["repaired"]
    x = batches(1)[0][0]
    # Batch norm takes out whatever scale its input has, but for eps.
    assert torch.allclose(reset(x), repaired(x), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(reset[0].weight, repaired[0].weight)


def test_reset_statistics_are_the_mean_over_batches() -> None:
    model = zoo.randomise_norms(three_convs(4, norm=True))
    momenta = [m.momentum for m in model if isinstance(m, nn.BatchNorm2d)]
    data = [x for x, _ in batches()]
    reset_batch_norm(model, lambda: iter(data))
    outputs = [model[0](x) for x in data]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    var = torch.stack([y.transpose(0, 1).flatten(1).var(1) for y in outputs]).mean(0)
    assert torch.allclose(model[1].running_mean, mean)
    assert torch.allclose(model[1].running_var, var)
    assert [m.momentum for m in model if isinstance(m, nn.BatchNorm2d)] == momenta
    assert not model.training


def test_average() -> None:
    a, b = three_convs(4, norm=True), three_convs(4, norm=True)
    a[1].num_batches_tracked += 3
    zoo.randomise_norms(a)
    merged = average(a, b).state_dict()
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        expected = (x + y) / 2 if x.is_floating_point() else x
        assert torch.allclose(merged[name], expected), name


# --- arguments -----------------------------------------------------------------------------------------------------


def test_evaluate_is_for_other_tasks() -> None:
    model = zoo.unet(2, 2).double()
    data = [torch.randn(2, 1, 8, 8, dtype=torch.float64) for _ in range(2)]
    seen = []

    def evaluate(net: nn.Module, loader: object) -> tuple[float, Tensor]:
        assert loader is data
        assert not net.training
        seen.append(net)
        return float(sum(net(x).square().mean() for x in data)), torch.tensor(0.25)

    report = match_mirrored(model, data, evaluate=evaluate, progress=False)
    assert len(seen) == len(report.rows) == 6
    assert {row.accuracy for row in report.rows} == {0.25}
    with pytest.raises(TypeError, match=r"evaluate must return \(loss, accuracy\), got 0\.5"):
        match_mirrored(model, data, evaluate=lambda net, loader: 0.5, progress=False)
    with pytest.raises(TypeError, match=r"loader must give \(input, target\) for accuracy"):
        match_mirrored(model, data, progress=False)


def test_dense_targets() -> None:
    model = zoo.unet(2, 2).double()
    data = [(torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.randint(2, (2, 8, 8)))]
    row = match_mirrored(model, data, progress=False).rows[0]
    output = model.eval()(data[0][0]).detach()
    assert row.loss == pytest.approx(float(F.cross_entropy(output, data[0][1])))
    assert row.accuracy == pytest.approx(float((output.argmax(1) == data[0][1]).double().mean()))


def test_random_numbers_that_a_loader_draws_are_put_back() -> None:
    data = TensorDataset(torch.randn(8, 2, 5, 5, dtype=torch.float64), torch.randint(4, (8,)))
    loader = DataLoader(data, 4, shuffle=True)
    model, before = three_convs(), torch.get_rng_state()
    match_mirrored(model, loader, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    next(iter(loader))
    assert not torch.equal(before, torch.get_rng_state())  # it does draw


def test_report_prints() -> None:
    report = match_mirrored(three_convs(4), batches(1), progress=True)
    text = str(report)
    assert text.startswith("merged with its mirror image along h")
    assert [row.network in text for row in report.rows] == [True] * 5
    assert "no batch norm: nothing to reset" in text
    assert "REPAIR rescaled the channels of 3 layers" in text
    assert report.models == {}
    assert "model output" in str(report.matches_table())


def test_float32_and_tensors_as_batches() -> None:
    model, _ = closed(True)
    report = match_mirrored(model.float(), [(x.float(), t) for x, t in batches()], progress=False)
    rows = {row.network: row for row in report.rows}
    assert rows["merged, aligned"].loss == pytest.approx(rows["original"].loss, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": "model"}, TypeError, "match_mirrored needs a torch.nn.Module, got str"),
        ({"model": nn.Linear(2, 2)}, ValueError, "Linear has no convolution"),
        ({"model": zoo.control_flow().double()}, ValueError, "cannot permute channels of this model: torch.fx cannot"),
        ({"axis": "x"}, ValueError, "axis='x' is not valid with 2 spatial dims; valid letters: h, v"),
        ({"axis": "z"}, ValueError, "axis='z' is not valid"),
        ({"axis": ""}, ValueError, "axis='' is not valid"),
        ({"axis": 1}, TypeError, "axis must be letters, such as 'h', got 1"),
        ({"loader": []}, ValueError, "loader is empty; give at least one batch"),
        ({"loader": [(torch.zeros(0, 2, 9, 9), torch.zeros(0))]}, ValueError, "the first batch of loader is empty"),
        ({"loader": iter(batches(1))}, TypeError, "loader is gone through several times, which a list_iterator"),
        ({"loader": 3}, TypeError, "loader is gone through several times, which a int does not allow"),
        ({"loader": [{"x": 1}]}, TypeError, r"loader must give a Tensor or \(input, target\), got dict"),
        ({"loader": [(torch.full((2, 2, 9, 9), math.nan).double(), torch.zeros(2).long())]}, ValueError, "not finite"),
        ({"loader": [(torch.full((2, 2, 9, 9), math.inf).double(), torch.zeros(2).long())]}, ValueError, "not finite"),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, object], error: type[Exception], match: str) -> None:
    arguments = {"model": three_convs(4), "loader": batches(1), "axis": "h"} | change
    with pytest.raises(error, match=match):
        match_mirrored(arguments["model"], arguments["loader"], axis=arguments["axis"], progress=False)


def test_computed_weights_are_refused() -> None:
    model = three_convs(4)
    parametrizations.weight_norm(model[3])
    with pytest.raises(ValueError, match="the weight of 3 is computed, by a parametrization or pruning"):
        match_mirrored(model, batches(1), progress=False)
