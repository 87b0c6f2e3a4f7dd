# Reports of consistency: comparisons, batches and modes, statistics against scipy, and bad input.

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from test_consistency import Function, batches, circular_net, even_net, flip, shift
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from symconv_fast.analysis import Consistency, flip_consistency
from symconv_fast.analysis.consistency import wilson_interval

# --- comparisons -----------------------------------------------------------------------------------------------------


def test_compare_is_given_both_outputs_and_its_mean_taken():
    (x,) = batches(4, shape=(1, 3, 6))
    model = Function(lambda x: x[:, 0, 0, :2])

    def compare(a, b):
        assert torch.equal(a, x[:, 0, 0, :2])
        assert torch.equal(b, x[:, 0, 0, [5, 4]])
        return torch.tensor([[1.0, 0], [1, 1], [0, 0], [0.5, 0]])

    found = flip(model, [x], compare=compare)
    assert found.agreement == pytest.approx((0.5 + 1 + 0 + 0.25) / 4)
    assert found.standard_error == pytest.approx(np.std([0.5, 1, 0, 0.25]) / 2)


@pytest.mark.parametrize(
    "out", [lambda x: x.mean((1, 2, 3)), lambda x: x.mean((2, 3))[:, :1], lambda x: x[:, :1]]
)
def test_single_numbers_need_a_comparison(out):
    loader = batches(6)
    with pytest.raises(ValueError, match="are single numbers, not scores of classes; give compare"):
        flip(Function(out), loader)
    assert flip(Function(out), loader, compare=lambda a, b: (a - b).abs() < 1e9).agreement == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_classes_as_integers(dtype):
    model = Function(lambda x: (x[:, 0, 0, 0] > 0).to(dtype))
    (x,) = batches(50)
    expected = ((x[:, 0, 0, 0] > 0) == (x[:, 0, 0, -1] > 0)).double().mean()
    assert flip(model, [x]).agreement == pytest.approx(float(expected))


def test_low_precision_and_infinite_scores():
    model = Function(
        lambda x: torch.stack([x[:, 0, 0, 0], torch.full_like(x[:, 0, 0, 0], -math.inf)], 1).bfloat16()
    )
    assert flip(model, batches(5)).agreement == 1


# --- batches, modes, progress ----------------------------------------------------------------------------------------


def test_kinds_of_batches():
    (x,) = batches(10)
    model = even_net()
    expected = flip(model, [x])
    labels = torch.zeros(10)
    for loader in (
        [(x, labels)],
        [[x, labels]],
        [x[:4], x[4:]],
        [x[:0], x],
        DataLoader(TensorDataset(x, labels), 3),
    ):
        assert flip(model, loader) == expected
    assert flip(model, [{"image": x}], select_input=lambda batch: batch["image"]) == expected
    wrapped = Function(lambda x: {"logits": model(x)})
    assert flip(wrapped, [x], select_output=lambda out: out["logits"]) == expected
    assert flip(model, (batch for batch in [x]), device="cpu") == expected


@pytest.mark.parametrize("broken", [False, True])
def test_eval_mode_without_gradients_and_back(broken):
    probe = Function(lambda x: x.mean((2, 3)))
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(2).double(), probe).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if broken:
        with pytest.raises(ValueError, match="must be below the size"):
            shift(model, batches(4), 6)
    else:
        shift(model, batches(4), 2)
        assert probe.modes == {False}
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Stuck(nn.Module):
    """It cannot be put in eval mode."""

    def train(self, mode=True):
        if not mode:
            raise KeyError("always")
        return super().train(mode)


def test_modes_come_back_where_eval_mode_cannot_be_set():
    model = nn.Sequential(nn.Dropout(0.5), Stuck())
    with pytest.raises(KeyError):
        flip(model, batches(2))
    assert [module.training for module in model.modules()] == [True, True, True]


@pytest.mark.parametrize("broken", [False, True])
def test_torchs_random_numbers_are_as_they_were(broken):
    (images,) = batches(4)
    loader = DataLoader(TensorDataset(images), 2, shuffle=True)
    before = torch.get_rng_state()
    next(iter(loader))
    assert not torch.equal(before, torch.get_rng_state())  # a loader draws by itself
    torch.set_rng_state(before)
    if broken:
        with pytest.raises(TypeError, match="must return a Tensor"):
            flip(Function(lambda x: [x]), loader)
    else:
        flip(Function(lambda x: torch.rand(len(x), 3)), loader)
    assert torch.equal(before, torch.get_rng_state())


def test_progress_is_shown_unless_it_is_off(capfd):
    flip_consistency(even_net(), batches(2))
    assert "agreement under the mirror h" in capfd.readouterr().err
    flip_consistency(even_net(), batches(2), progress=False)
    assert capfd.readouterr() == ("", "")


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agreeing", "samples"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (950, 1000)])
def test_wilson_interval_is_scipys(agreeing, samples):
    expected = stats.binomtest(agreeing, samples).proportion_ci(method="wilson")
    assert wilson_interval(agreeing / samples, samples) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_uncertainty_of_a_result():
    (x,) = batches(200)
    model = Function(lambda x: (x[:, 0, 0, 0] > 0).long())
    found = flip(model, [x])
    share = found.agreement
    assert found.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 200))
    assert found.interval == wilson_interval(share, 200)


def test_text_and_table():
    found = Consistency("the mirror h", 0.925, 40, 0.0416, (0.801, 0.974), positions=12.5, equal_offsets=3)
    text = str(found)
    assert text.startswith(
        "92.50% of predictions agree under the mirror h (95 %: 80.10% to 97.40%, 40 samples; 12.5 p"
    )
    assert "3 of 40 samples had two equal offsets" in text
    table = found.table()
    assert table.rows == [["92.50%", "4.16%", "80.10% to 97.40%", "40"]]
    assert len(table.notes) == 2
    assert (
        shift(circular_net(1), batches(4, shape=(2, 12)), 3).transformation
        == "circular shifts of up to 3 pixels"
    )


# --- bad input -------------------------------------------------------------------------------------------------------

LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(96, 3)).double()


@pytest.mark.parametrize(
    ("model", "loader", "options", "error", "message"),
    [
        (LINEAR, [], {}, ValueError, "the loader gives no sample"),
        (LINEAR, batches(0), {}, ValueError, "the loader gives no sample"),
        (lambda x: x, batches(2), {}, TypeError, "model must be a torch.nn.Module, got function"),
        (LINEAR, torch.zeros(2, 2, 6, 8), {}, TypeError, "got Tensor; give [x] for a single batch x"),
        (LINEAR, 3, {}, TypeError, "got int; give a DataLoader or a list of batches"),
        (LINEAR, {"x": 1}, {}, TypeError, "got dict; give a DataLoader"),
        (LINEAR, TensorDataset(*batches(2)), {}, TypeError, "TensorDataset gives samples; give DataLoader(dataset)"),
        (LINEAR, [np.zeros((2, 2, 6, 8))], {}, TypeError, "the input of a batch must be a Tensor, got ndarray"),
        (LINEAR, [{"image": 1}], {}, TypeError, "a dict with the keys 'image'; say which is the input"),
        (LINEAR, [torch.zeros(2, 96)], {}, ValueError, "expected inputs (N, C, *S) of 3 to 5 dims, got shape (2, 96)"),
        (LINEAR, batches(2), {"compare": 1}, TypeError, "compare must be a function, got int"),
        (LINEAR, batches(2), {"select_input": 1}, TypeError, "select_input must be a function"),
        (LINEAR, batches(2), {"select_output": 1}, TypeError, "select_output must be a function"),
        (LINEAR, batches(2), {"map_output": 1}, TypeError, "map_output must be a function"),
        (Function(lambda x: [x]), batches(2), {}, TypeError, "must return a Tensor, got list; select_output takes"),
        (Function(lambda x: x.sum()), batches(2), {}, ValueError, "expected outputs for 2 samples"),
        (Function(lambda x: x[:1]), batches(2), {}, ValueError, "expected outputs for 2 samples"),
        (Function(lambda x: x + math.nan), batches(2), {}, ValueError, "the model's output holds NaN"),
        (Function(lambda x: x.cfloat()), batches(2), {}, TypeError, "outputs must be real, got complex64"),
        (LINEAR, batches(2), {"compare": lambda a, b: True}, TypeError, "what compare returns must be a Tensor"),
        (LINEAR, batches(2), {"compare": lambda a, b: a.sum()}, ValueError, "must return a value for each of 2"),
        (LINEAR, batches(2), {"compare": lambda a, b: a * 9 - 99}, ValueError, "bools, or agreement from 0 to 1"),
        (LINEAR, batches(2), {"compare": lambda a, b: a * math.nan}, ValueError, "got nan to nan"),
        (LINEAR, batches(2), {"compare": lambda a, b: a.cfloat()}, ValueError, "got complex64 of shape (2,"),
        (LINEAR, batches(2), {"compare": lambda a, b: a[:, :0]}, ValueError, "of shape (2, 0)"),
        (Function(lambda x: x[:, :0, 0, 0]), batches(2), {}, ValueError, "output of shape (2, 0) is empty"),
        (Function(lambda x: x.mean((2, 3)).to("meta")), batches(2), {}, ValueError, "on the meta device"),
        (LINEAR, batches(2), {"device": "gpu"}, ValueError, "device='gpu' is not valid, give one such as 'cpu'"),
        (LINEAR, batches(2), {"device": 1.5}, TypeError, "device=1.5 must be a torch.device or its name"),
    ],
)  # fmt: skip
def test_bad_input(model, loader, options, error, message):
    for measure in (flip, lambda *given, **more: shift(*given, 2, **more)):
        with pytest.raises(error, match=re.escape(message)):
            measure(model, loader, **options)


def test_progress_is_a_bool():
    with pytest.raises(TypeError, match="progress='no' must be True or False"):
        flip_consistency(LINEAR, batches(2), progress="no")


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [("x", ValueError, "axis='x'"), ("", ValueError, "axis=''"), ("hh", ValueError, "axis='hh'"),
     ("z", ValueError, "axis='z' is not valid with 2 spatial dims; valid letters: h, v"), (1, TypeError, "got 1")],
)  # fmt: skip
def test_bad_axes(axis, error, message):
    with pytest.raises(error, match=re.escape(message)):
        flip(LINEAR, batches(2), axis)


@pytest.mark.parametrize(
    ("max_shift", "options", "error", "message"),
    [
        (0, {}, ValueError, "max_shift=0 must be at least 1 pixel"),
        ((0, 0), {}, ValueError, "must be at least 1 pixel"),
        (-1, {}, ValueError, "must be at least 1 pixel"),
        ((), {}, ValueError, "must be at least 1 pixel"),
        (1.5, {}, TypeError, "max_shift=1.5"),
        (True, {}, TypeError, "max_shift=True"),
        ((1, 2, 3), {}, ValueError, "has 3 values for inputs of 2 spatial dims: (6, 8)"),
        (6, {}, ValueError, "max_shift=6 must be below the size of the inputs, (6, 8)"),
        (2, {"mode": "zero"}, ValueError, "mode='zero' is not valid; valid: 'circular' and 'crop'"),
        (2, {"seed": -1}, ValueError, "seed=-1"),
        (2, {"seed": 1.0}, TypeError, "seed=1.0"),
    ],
)
def test_bad_shifts(max_shift, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        shift(LINEAR, batches(2), max_shift, **options)


def test_crops_without_a_common_position():
    with pytest.raises(ValueError, match="max_shift must be below half"):
        shift(nn.Conv2d(2, 3, 1).double(), batches(2), 3, mode="crop")


@pytest.mark.parametrize(
    ("mapped", "error", "message"),
    [(lambda *_: 1, TypeError, "map_output must return a Tensor"),
     (lambda y, *_: y[:1], ValueError, "return 2 samples"),
     (lambda y, *o: y if o else y[:, :1], ValueError, "have shapes (2, 3) and (2, 1)")],
)  # fmt: skip
def test_bad_results_of_map_output(mapped, error, message):
    with pytest.raises(error, match=re.escape(message)):
        flip(LINEAR, batches(2), map_output=mapped)
