"""Agreement of predictions under mirrors and shifts: models whose answer is known, and outputs at every position."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from symconv_fast import SymmetricConv2d
from symconv_fast.analysis import flip_consistency, shift_consistency

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
