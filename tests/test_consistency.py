"""Agreement of predictions under mirrors and shifts: models whose answer is known, and statistics against scipy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from symconv_fast import SymmetricConv2d
from symconv_fast.analysis import Consistency, flip_consistency, shift_consistency
from symconv_fast.analysis.consistency import wilson_interval

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Function(nn.Module):
    """A model without parameters, which keeps its inputs and the modes in which it was called."""

    def __init__(self, function):
        super().__init__()
        self.function, self.inputs, self.modes = function, [], set()

    def forward(self, x):
        self.inputs.append(x)
        self.modes |= {self.training, torch.is_grad_enabled()}
        return self.function(x)

    def views(self):
        """All inputs that came first of a pair, and all that came second."""
        return torch.cat(self.inputs[::2]), torch.cat(self.inputs[1::2])


def batches(*sizes, shape=(2, 6, 8), dtype=torch.float64):
    return [torch.randn(size, *shape, dtype=dtype) for size in sizes]


def flip(model, loader, axis="h", **options):
    return flip_consistency(model, loader, axis, progress=False, **options)


def shift(model, loader, max_shift, **options):
    return shift_consistency(model, loader, max_shift, progress=False, **options)


def one_hot(classes, count):
    return torch.nn.functional.one_hot(classes, count).double()


def columns(x):
    """The class of each position is its column, whatever the input: (N, W, H, W)."""
    n, _, height, width = x.shape
    return one_hot(torch.arange(width).expand(n, height, width), width).movedim(-1, 1)


# --- models that are exactly consistent, and models that are not -----------------------------------------------------


def even_net():
    """A convolution with even filters, a nonlinearity, the mean over all positions, and a linear layer."""
    conv = nn.Conv2d(2, 16, 3, padding=1, dtype=torch.float64)
    kernel = conv.weight.data
    for dim in (2, 3):
        kernel = (kernel + kernel.flip(dim)) / 2
    conv.weight.data = kernel
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10).double())


@pytest.mark.parametrize("axis", ["h", "v", "hv"])
def test_a_net_of_even_filters_is_flip_consistent(axis):
    found = flip(even_net(), batches(40, 24), axis)
    assert (found.agreement, found.samples, found.standard_error) == (1, 64, 0)
    assert found.interval[1] == 1
    assert found.positions is None


def test_an_orbit_summed_over_is_flip_consistent_and_its_members_are_not():
    conv = SymmetricConv2d(2, 8, 3, padding=1, bias=False, symmetry="h", dtype=torch.float64)
    head = nn.Linear(4, 10).double()

    def features(x):
        return conv(x).relu().mean((2, 3))

    loader = batches(50)
    assert flip(Function(lambda x: head(features(x)[:, :4] + features(x)[:, 4:])), loader).agreement == 1
    # A filter and its mirror image change places, so that their contest has the other winner.
    assert flip(Function(lambda x: features(x)[:, [0, 4]]), loader).agreement == 0


def left_or_right(x):
    half = x.shape[-1] // 2
    return torch.stack([x[..., :half].sum((1, 2, 3)), x[..., half:].sum((1, 2, 3))], 1)


def test_a_model_that_tells_left_from_right_never_agrees_until_its_classes_are_exchanged():
    loader = batches(30)
    assert flip(Function(left_or_right), loader).agreement == 0
    assert flip(Function(left_or_right), loader, "v").agreement == 1
    assert flip(Function(left_or_right), loader, map_output=lambda y: y.flip(1)).agreement == 1


def circular_net(ndim, stride=1):
    conv = CONV[ndim](2, 16, 3, stride, padding=1, padding_mode="circular", dtype=torch.float64)
    return nn.Sequential(
        conv, nn.ReLU(), Function(lambda x: x.flatten(2).mean(2)), nn.Linear(16, 10).double()
    )


@pytest.mark.parametrize(("ndim", "size"), [(1, (12,)), (2, (6, 8)), (3, (4, 5, 6))])
def test_a_circular_net_is_exactly_shift_consistent(ndim, size):
    found = shift(circular_net(ndim), batches(32, shape=(2, *size)), 3)
    assert (found.agreement, found.samples) == (1, 32)


def test_a_net_that_sees_every_other_column_is_not():
    """Columns of zeros and ones: where a shift is odd, the columns that are seen change from one to the other."""
    stripes = (torch.arange(8) % 2).double().expand(400, 1, 6, 8)
    model = Function(lambda x: torch.stack([x[..., ::2].mean((1, 2, 3)), x[..., 1::2].mean((1, 2, 3))], 1))
    found = shift(model, [stripes], 5)
    first, second = (views[:, 0, 0, 0] for views in model.views())
    assert found.agreement == float((first == second).double().mean())
    assert found.agreement == pytest.approx(0.5, abs=4 * found.standard_error)
    assert shift(model, [stripes], (5, 0)).agreement == 1  # along the columns nothing changes


@pytest.mark.parametrize("axis", ["h", "v", "z", "hz", "vhz"])
def test_flips_mirror_the_axes_that_are_named(axis):
    (x,) = batches(3, shape=(2, 3, 4, 5))
    model = Function(lambda x: x.sum((2, 3, 4)))
    flip(model, [x], axis)
    dims = ["zvh".index(letter) + 2 for letter in axis]
    assert torch.equal(model.inputs[0], x)
    assert torch.equal(model.inputs[1], x.flip(dims))


# --- offsets ---------------------------------------------------------------------------------------------------------


def offsets_of(views, shape):
    """The offset of each sample, from images whose pixels are numbered: position 0 has what was at the offset."""
    return np.stack(np.unravel_index(views.flatten(1)[:, 0].long().numpy(), shape), 1)


def numbered(count, *size):
    return torch.arange(math.prod(size)).double().reshape(1, 1, *size).expand(count, 1, *size)


@pytest.mark.parametrize(
    ("mode", "size"), [("circular", (9, 7)), ("crop", (9, 7)), ("circular", (12,)), ("crop", (5, 6, 7))]
)
def test_shifted_views_are_what_the_docstring_says(mode, size):
    model, most = Function(lambda x: x.flatten(2).mean(2)), 3
    shift(model, [numbered(50, *size)], most, mode=mode, compare=lambda a, b: a == b)
    for views in model.views():
        for view, offset in zip(views, offsets_of(views, size)):
            if mode == "circular":
                expected = np.roll(numbered(1, *size)[0, 0].numpy(), -offset, range(len(size)))
            else:
                expected = numbered(1, *size)[0, 0].numpy()
                for axis, by in enumerate(offset):
                    expected = expected.take(range(by, by + size[axis] - most), axis)
            np.testing.assert_array_equal(view[0].numpy(), expected)


def test_offsets_are_uniform_and_independent():
    size, most = (9, 7), (3, 2)
    model = Function(lambda x: x.mean((2, 3)).expand(-1, 2))
    found = shift(model, [numbered(2000, *size)] * 2, most)
    first, second = (offsets_of(views, size) for views in model.views())
    cells = np.ravel_multi_index((*first.T, *second.T), (4, 3, 4, 3))
    assert stats.chisquare(np.bincount(cells, minlength=144)).pvalue > 0.01
    assert found.equal_offsets == (first == second).all(1).sum()
    assert "had two equal offsets" in str(found)


def test_offsets_depend_on_the_seed_and_not_on_the_batch_size_or_on_torchs_numbers():
    size = (9, 7)

    def offsets(seed, *sizes):
        model = Function(lambda x: x.mean((2, 3)).expand(-1, 2))
        shift(model, [numbered(n, *size) for n in sizes], 4, seed=seed)
        return np.stack([offsets_of(views, size) for views in model.views()])

    state = torch.get_rng_state()
    whole = offsets(0, 60)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(whole, offsets(0, 7, 33, 20))
    assert not np.array_equal(whole, offsets(1, 60))


# --- outputs at every position ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_net_that_sees_one_pixel_agrees_everywhere(ndim):
    size = (7, 9, 5)[:ndim]
    model, loader = CONV[ndim](2, 4, 1).double(), batches(6, 3, shape=(2, *size))
    for found in (flip(model, loader), shift(model, loader, 2), shift(model, loader, 2, mode="crop")):
        assert found.agreement == 1
        assert found.samples == 9
    assert flip(model, loader).positions == math.prod(size)
    assert shift(model, loader, 2).positions == math.prod(size)


def test_classes_that_are_columns_agree_in_the_middle_alone():
    found = flip(Function(columns), batches(4, shape=(1, 5, 7)))
    assert found.agreement == pytest.approx(1 / 7)
    assert found.positions == 35
    assert flip(Function(columns), batches(4, shape=(1, 5, 8))).agreement == 0
    assert flip(Function(columns), batches(4, shape=(1, 5, 7)), "v").agreement == 1


@pytest.mark.parametrize("mode", ["circular", "crop"])
def test_classes_that_are_columns_agree_where_offsets_do(mode):
    model = Function(lambda x: columns(x).argmax(1))  # classes as integers
    found = shift(model, [numbered(80, 9, 11)], 3, mode=mode)
    first, second = (offsets_of(views, (9, 11)) for views in model.views())
    assert found.agreement == pytest.approx((first[:, 1] == second[:, 1]).mean())
    assert 0 < found.agreement < 1


def test_crops_are_compared_where_both_are():
    """The model returns the image: what is compared must be the same pixels, all that both crops have."""
    seen = []

    def compare(a, b):
        seen.append((a, b))
        return a == b

    model, size, most = Function(lambda x: x), (9, 11), (3, 4)
    found = shift(model, [numbered(40, *size)], most, mode="crop", compare=compare)
    first, second = (offsets_of(views, size) for views in model.views())
    assert found.agreement == 1
    shared = np.array(size) - most - abs(first - second)
    assert [tuple(a.shape) for a, _ in seen] == [(1, 1, *pair) for pair in shared]
    assert found.positions == pytest.approx(shared.prod(1).mean())
    for (a, _), one, two in zip(seen, first, second):
        assert a[0, 0, 0, 0] == np.ravel_multi_index(np.maximum(one, two), size)


def test_map_output_brings_outputs_of_other_sizes_together():
    half = nn.AvgPool2d(2)
    loader = batches(8, shape=(3, 8, 8))
    assert flip(half, loader).agreement == 1  # the mirror of a grid of half the size is its own
    with pytest.raises(ValueError, match=r"outputs of size \(4, 4\) for inputs of size \(8, 8\)"):
        shift(half, loader, 2)
    given = []

    def back(y, offsets):
        given.append(offsets)
        up = nn.functional.interpolate(y, scale_factor=2)
        return torch.stack([one.roll(by.tolist(), (1, 2)) for one, by in zip(up, offsets)])

    found = shift(half, loader, 2, map_output=back)
    assert [tuple(offsets.shape) for offsets in given] == [(8, 2), (8, 2)]
    even = (given[0] - given[1]).abs().remainder(2).eq(0).all(1)  # the same pixels were averaged
    assert found.agreement < 1
    assert even.double().mean() <= found.agreement


def test_map_output_of_flips_takes_the_place_of_mirroring():
    loader = batches(5, shape=(1, 5, 7))
    assert flip(Function(columns), loader, map_output=lambda y: y.flip((1, 3))).agreement == 1
    tokens = Function(lambda x: x.flatten(2))  # (N, C, H W)
    with pytest.raises(
        ValueError, match=r"\(5, 1, 35\) are neither \(N, K\) nor \(N, K, \*S\) with 2 .* give map_output"
    ):
        flip(tokens, loader)


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
