"""The symmetry of mean kernels against groups made another way, closed forms, and published values."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn.utils import prune

import symconv_fast as sf
from symconv_fast.analysis import kernel_symmetry, symmetry_null
from symconv_fast.analysis.kernels import percent
from symconv_fast.analysis.null import transformations

SHAPES = [
    (3,),
    (4,),
    (3, 3),
    (2, 2),
    (4, 4),
    (5, 5),
    (2, 3),
    (3, 5),
    (1, 3),
    (3, 1),
    (3, 3, 3),
    (2, 2, 2),
    (4, 4, 4),
]
SHAPES += [(3, 3, 5), (5, 3, 3), (3, 5, 3), (2, 3, 4), (3, 3, 1), (1, 3, 3), (1, 1, 4)]
ids = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def group(shape):
    """Every image of the numbered taps that has the same shape: closure of quarter turns, exchanges and flips."""
    start = np.arange(math.prod(shape)).reshape(shape)
    planes = [(a, b) for a in range(len(shape)) for b in range(a)]
    steps = [lambda k, a=a: np.flip(k, a) for a in range(len(shape))]
    steps += [lambda k, p=p: np.rot90(k, axes=p) for p in planes]
    found, waiting = {}, [start]
    while waiting:
        taps = waiting.pop()
        key = taps.shape, taps.tobytes()
        if key not in found:
            found[key] = taps
            waiting += [step(taps) for step in steps]
    images = [taps.ravel() for taps in found.values() if taps.shape == shape]
    return [taps for taps in images if not (taps == start.ravel()).all()]


def by_hand(kernel, identity=False):
    flat = kernel.ravel() / np.linalg.norm(kernel)
    moved = group(kernel.shape)
    total = sum(math.dist(flat[taps], flat) for taps in moved)
    return 1 - total / (2 * (len(moved) + identity))


@ids
def test_symmetry_is_that_of_a_group_made_by_turning_and_flipping(shape):
    kernel = torch.randn(*shape, dtype=torch.float64)
    for identity in (False, True):
        found = kernel_symmetry(kernel, spatial_dims=len(shape), include_identity=identity, samples=10)
        assert found.value == pytest.approx(by_hand(kernel.numpy(), identity), abs=1e-14)
        assert found.null.transformations == len(group(shape)) + identity


@pytest.mark.parametrize(
    ("shape", "count"),
    [((3,), 1), ((3, 3), 7), ((2, 2), 7), ((2, 3), 3), ((1, 3), 1), ((3, 3, 3), 47), ((2, 2, 2), 47), ((3, 3, 5), 15),
     ((2, 3, 4), 7), ((3, 1, 3), 7), ((1, 1, 4), 1)],
)  # fmt: skip
def test_how_many_transformations_keep_the_shape(shape, count):
    assert len(transformations(shape)) == count
    assert len({taps.tobytes() for taps in transformations(shape)}) == count


def test_d4_by_the_book():
    """The formula of the paper, written out with numpy's own turns and flips."""
    kernel = np.random.default_rng(1).normal(size=(5, 5))
    unit = kernel / np.sqrt((kernel**2).sum())
    turned = [np.rot90(unit, k) for k in range(4)]
    eight = turned + [np.fliplr(k) for k in turned]
    distances = [np.linalg.norm(t - unit, "fro") for t in eight]
    found = kernel_symmetry(torch.from_numpy(kernel), spatial_dims=2)
    assert found.value == pytest.approx(1 - sum(distances[1:]) / 14, abs=1e-14)
    assert found.h == pytest.approx(1 - np.linalg.norm(np.fliplr(unit) - unit) / 2, abs=1e-14)
    assert found.v == pytest.approx(1 - np.linalg.norm(np.flipud(unit) - unit) / 2, abs=1e-14)
    assert found.z is None
    eighth = kernel_symmetry(torch.from_numpy(kernel), spatial_dims=2, include_identity=True)
    assert eighth.value == pytest.approx(1 - sum(distances) / 16, abs=1e-14)
    assert eighth.h == found.h
    assert eighth.percentile == found.percentile


def test_known_kernels():
    def s(*rows):
        return kernel_symmetry(torch.tensor(rows, dtype=torch.float64), spatial_dims=2, samples=10)

    even = s((1, 2, 1), (2, 5, 2), (1, 2, 1))
    assert (even.value, even.h, even.v) == (1, 1, 1)
    sobel = s((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
    assert sobel.h == pytest.approx(0)
    assert sobel.v == 1
    # h and the half turn negate it, v keeps it, and the four others make its transpose, which is at right angles to it.
    assert sobel.value == pytest.approx(1 - (2 + 2 + 0 + 4 * math.sqrt(2)) / 14)
    # A corner is kept by one diagonal, and moved to one of the other three corners by six.
    assert s((1, 0), (0, 0)).value == pytest.approx(1 - 6 * math.sqrt(2) / 14)


def test_mirrors_alone_in_three_dimensions():
    kernel = torch.randn(3, 5, 4, dtype=torch.float64)
    found = kernel_symmetry(kernel, spatial_dims=3, samples=10)
    unit = kernel / kernel.norm()
    for letter, dim in (("h", 2), ("v", 1), ("z", 0)):
        expected = 1 - float((unit.flip(dim) - unit).norm()) / 2
        assert getattr(found, letter) == pytest.approx(expected, abs=1e-14)
    flat = kernel_symmetry(kernel[:, :1], spatial_dims=3, samples=10)
    assert flat.v is None
    assert set(flat.axes) == {"h", "z"}


def test_symmetry_ignores_scale_sign_and_the_transformations_themselves():
    kernel = torch.randn(3, 3, dtype=torch.float64)
    value = kernel_symmetry(kernel, spatial_dims=2).value
    for other in (1e-200 * kernel, 1e200 * kernel, -kernel, kernel.T, kernel.flip(0), kernel.rot90()):
        assert kernel_symmetry(other, spatial_dims=2).value == pytest.approx(value, abs=1e-14)


# --- what chance gives -----------------------------------------------------------------------------------------------


def expected_distance(taps):
    """E ||K[taps] - K|| for a uniform direction K, exactly, up to one quadrature.

    The squared distance is a quadratic form whose eigenvalues are 2 - 2 cos(2 pi j / L) for each cycle of length L;
    E sqrt(q) = 1 / (2 sqrt(pi)) * integral of (1 - E exp(-t q)) t^-3/2 dt; norm and direction are independent.
    """
    lengths, seen = [], set()
    for start in range(len(taps)):
        length, at = 0, start
        while at not in seen:
            seen.add(at)
            at, length = taps[at], length + 1
        lengths += [length] * (length > 0)
    values = np.array([2 - 2 * math.cos(2 * math.pi * j / n) for n in lengths for j in range(1, n)])

    def integrand(u):  # t = u^2
        return 2 * -math.expm1(-np.log1p(2 * values * u * u).sum() / 2) / (u * u)

    whole = integrate.quad(integrand, 0, 1)[0] + integrate.quad(integrand, 1, np.inf)[0]
    chi = math.sqrt(2) * math.exp(math.lgamma((len(taps) + 1) / 2) - math.lgamma(len(taps) / 2))
    return whole / (2 * math.sqrt(math.pi)) / chi


@ids
def test_the_mean_by_chance_is_the_exact_one(shape):
    null = symmetry_null(shape)
    exact = 1 - np.mean([expected_distance(taps) for taps in group(shape)]) / 2
    assert abs(null.mean - exact) < 4 * null.std / math.sqrt(len(null.samples))


@pytest.mark.parametrize(("size", "published"), [(3, 0.409), (5, 0.349), (7, 0.329)])
def test_the_mean_by_chance_is_the_published_one(size, published):
    null = symmetry_null((size, size))
    assert null.mean == pytest.approx(published, abs=1.5e-3)
    assert null.lower_bound == pytest.approx(1 - math.sqrt(16 / 7) / 2)


@pytest.mark.parametrize(
    ("shape", "axis", "odd"),
    [((3,), "h", 1), ((3, 3), "h", 3), ((5, 4), "v", 8), ((3, 3, 3), "z", 9), ((3, 3), "hv", 4)],
)
def test_one_mirror_by_chance_has_a_beta_distribution(shape, axis, odd):
    """1 - S is the norm of the odd part of a uniform direction; its square is Beta(odd / 2, even / 2)."""
    null = symmetry_null(shape, axis=axis)
    squares = stats.beta(odd / 2, (math.prod(shape) - odd) / 2)
    assert stats.kstest((1 - null.samples) ** 2, squares.cdf).pvalue > 0.01
    # The quantiles of S are those of the squares from the other end.
    assert null.low == pytest.approx(1 - math.sqrt(squares.ppf(0.95)), abs=0.01)
    assert null.high == pytest.approx(1 - math.sqrt(squares.ppf(0.05)), abs=0.01)
    assert null.percentile(0.3) == pytest.approx(100 * squares.sf(0.7**2), abs=1.5)


def test_three_taps_by_chance_are_uniform():
    """By Archimedes: a coordinate of a uniform direction in 3-D is uniform."""
    null = symmetry_null(3)
    assert (null.mean, null.std) == pytest.approx((0.5, 1 / math.sqrt(12)), abs=0.01)
    assert null.percentile(0.25) == pytest.approx(25, abs=1.5)


def test_percentiles_of_fresh_layers_are_uniform():
    """The mean over many filters of any distribution, here torch's uniform one, is nearly Gaussian."""
    found = [kernel_symmetry(nn.Conv2d(16, 16, 3)) for _ in range(300)]
    for values in ([f.percentile for f in found], [f.axes["h"].percentile for f in found]):
        assert stats.kstest(np.array(values) / 100, "uniform").pvalue > 0.01


def test_percentile_counts_equal_ones_half():
    null = symmetry_null((3, 3), samples=4)
    assert [null.percentile(x) for x in (-1, *null.samples, 2)] == [0, 12.5, 37.5, 62.5, 87.5, 100]


def test_no_kernel_is_below_the_bound_and_one_reaches_it():
    for shape in ((3, 3), (4, 4), (2, 3), (3, 3, 3), (2, 2, 2)):
        for identity in (False, True):
            null = symmetry_null(shape, include_identity=identity)
            assert null.lower_bound < null.samples[0]
    # One tap and its 7 images: what the group makes of it are the corners of a regular simplex.
    kernel = torch.full((4, 4), 0.0, dtype=torch.float64)
    for place in ((0, 1), (0, 2), (1, 0), (2, 0), (3, 1), (3, 2), (1, 3), (2, 3)):
        kernel[place] = -1
    kernel[0, 1] = 7
    for identity in (False, True):
        found = kernel_symmetry(kernel, spatial_dims=2, include_identity=identity)
        assert found.value == pytest.approx(found.null.lower_bound)
    odd = kernel_symmetry(torch.tensor([1.0, 0, -1]), spatial_dims=1)
    assert odd.value == pytest.approx(odd.null.lower_bound) == 0


def test_the_null_is_seeded_remembered_and_draws_none_of_torchs_numbers():
    state = torch.get_rng_state()
    first = symmetry_null((3, 4), samples=100)
    assert symmetry_null([3, 4], samples=100) is first
    again = symmetry_null((3, 4), samples=100, seed=1)
    assert not np.array_equal(again.samples, first.samples)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="read-only"):
        first.samples[0] = 0
    assert symmetry_null((3, 3)).samples.shape == (20_000,)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_a_layer_is_the_mean_over_its_filters_and_channels(cls):
    conv = cls(4, 6, 3, groups=2)
    found = kernel_symmetry(conv)
    mean = np.mean(conv.weight.detach().double().numpy(), axis=(0, 1))
    np.testing.assert_allclose(found.mean_kernel, mean, rtol=0, atol=1e-15)
    assert found.value == pytest.approx(by_hand(mean), abs=1e-13)
    assert found == kernel_symmetry(conv.weight) == kernel_symmetry(conv.weight[None], spatial_dims=mean.ndim)


@pytest.mark.parametrize(
    ("layer", "even"),
    [
        (sf.SymmetricConv1d(3, 8, 5, symmetry="h"), "h"),
        (sf.SymmetricConv2d(3, 8, 3, symmetry="h"), "h"),
        (sf.SymmetricConv2d(4, 16, (3, 4), groups=2, symmetry={"v": 16}), "v"),
        (sf.SymmetricConv2d(3, 8, 3, symmetry="hv", dtype=torch.float64), "hv"),
        (sf.SymmetricConv3d(3, 8, 3, symmetry="hz"), "hz"),
        (sf.SymmetricConvTranspose2d(3, 8, 3, symmetry="hv"), "hv"),
        (sf.SymmetricConv2d(3, 8, 3), ""),
    ],
    ids=str,
)
def test_tied_layers_count_with_their_expanded_filters(layer, even):
    found = kernel_symmetry(layer)
    assert found == kernel_symmetry(layer.to_conv())
    for letter, score in found.axes.items():
        assert (score.value > 1 - 1e-6) == (letter in even)


def test_computed_weights():
    """Parametrizations, pruning and the older normalisations, whose weight is out of date until the next call."""
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    assert kernel_symmetry(conv) == kernel_symmetry(conv.weight)
    tied = nn.utils.parametrizations.spectral_norm(sf.SymmetricConv2d(2, 4, 3, symmetry="h"))
    before = {name: value.clone() for name, value in tied.state_dict().items()}
    assert kernel_symmetry(tied).h == pytest.approx(1)
    assert all(torch.equal(value, before[name]) for name, value in tied.state_dict().items())
    assert tied.parametrizations.weight.training
    pruned = prune.l1_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.5)
    pruned.weight_orig.data.copy_(torch.randn(3, 2, 3, 3))
    expected = pruned.weight_orig * pruned.weight_mask
    assert kernel_symmetry(pruned) == kernel_symmetry(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_layouts(dtype):
    weight = torch.randn(8, 4, 3, 3).to(dtype)
    found = kernel_symmetry(weight)
    assert found == kernel_symmetry(weight.double())
    assert found == kernel_symmetry(weight.to(memory_format=torch.channels_last))
    assert found == kernel_symmetry(weight.requires_grad_())
    assert found.mean_kernel.dtype == np.float64


def test_a_small_mean_is_not_taken_for_zero():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert kernel_symmetry(torch.randn(512, 512, 3, 3).to(dtype)).value < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mean_of_zero_up_to_rounding_is_refused(dtype):
    weight = torch.randn(64, 32, 3, 3, dtype=torch.float64)
    centred = (weight - weight.mean((0, 1))).to(dtype)
    cancelling = torch.cat([weight, -weight])
    for filters in (centred, cancelling, torch.zeros(2, 2, 3, 3, dtype=dtype)):
        with pytest.raises(ValueError, match="mean kernel of the filters is 0"):
            kernel_symmetry(filters)


def test_the_table_and_its_text():
    found = kernel_symmetry(nn.Conv2d(3, 8, (3, 1)))
    table = found.table()
    assert [row[0] for row in table.rows] == ["all 1", "v"]
    assert table.title == "symmetry of the mean kernel, 3 × 1"
    assert f"{found.value:.3f}" in str(found)
    assert kernel_symmetry(sf.SymmetricConv2d(3, 8, 3, symmetry="hv")).table().rows[1][-1] == "> 99.9"
    assert str(symmetry_null((3, 3))).startswith("Gaussian 3 × 3 kernels: 0.4")


# --- bad input -------------------------------------------------------------------------------------------------------


def with_value(value):
    weight = torch.randn(2, 2, 3, 3)
    weight[1, 0, 2, 1] = value
    return weight


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (nn.Linear(3, 3), TypeError, "got Linear; symmetry_profile takes whole models"),
        (nn.Sequential(nn.Conv2d(3, 3, 3)), TypeError, "got Sequential; symmetry_profile takes"),
        ("conv", TypeError, "needs a convolution or a tensor (out, in, *K), got str"),
        (np.zeros((2, 2, 3, 3)), TypeError, "got ndarray; torch.as_tensor makes one"),
        (torch.randn(2, 2, 3, 3).to_sparse(), ValueError, "give filters.to_dense()"),
        (torch.randn(3, 3), ValueError, "shape (3, 3); spatial_dims=2 says"),
        (torch.randn(1, 1, 1, 1, 1, 3), ValueError, "of 3 to 5 dims"),
        (torch.randn(0, 2, 3, 3), ValueError, "at least one value, got shape (0, 2, 3, 3)"),
        (torch.randn(2, 2, 0, 3), ValueError, "at least one value"),
        (nn.Conv2d(2, 2, 1), ValueError, "one tap, (1, 1), is always symmetric"),
        (with_value(math.nan), ValueError, "must be finite"),
        (with_value(math.inf), ValueError, "must be finite"),
        (torch.randn(2, 2, 3, 3, dtype=torch.cfloat), TypeError, "such as filters.real"),
        (nn.Conv2d(2, 2, 3, dtype=torch.cfloat), TypeError, "complex filters are not supported"),
        (torch.ones(2, 2, 3, 3, dtype=torch.int8), TypeError, "got int8; give filters.float()"),
        (nn.LazyConv2d(2, 3), ValueError, "its layer is lazy; run a batch first"),
        (nn.Conv2d(2, 2, 3, device="meta"), ValueError, "on the meta device"),
    ],
)  # fmt: skip
def test_what_has_no_symmetry_is_refused(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        kernel_symmetry(given)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_filters_are_refused():
    with pytest.raises(TypeError, match=r"give filters.dequantize\(\)"):
        kernel_symmetry(torch.quantize_per_tensor(torch.randn(2, 2, 3, 3), 0.1, 0, torch.qint8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spatial_dims": 0}, ValueError, "spatial_dims=0 must be 1 to 3"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims=4 must be 1 to 3"),
        ({"spatial_dims": 2.0}, TypeError, "spatial_dims=2.0 must be an int, such as spatial_dims=1"),
        ({"include_identity": "no"}, TypeError, "include_identity='no' must be True or False"),
        ({"spatial_dims": True}, TypeError, "must be an int"),
        ({"samples": 1}, ValueError, "samples=1 must be at least 2"),
        ({"samples": 1.5}, TypeError, "samples=1.5 must be an int"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
        ({"seed": None}, TypeError, "seed=None must be an int"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        kernel_symmetry(torch.randn(2, 2, 3, 3), **options)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, torch.nn.utils.weight_norm])
def test_a_layer_whose_weight_a_hook_computes_can_still_be_copied(norm):
    conv = norm(nn.Conv2d(2, 2, 3))
    conv(torch.randn(1, 2, 3, 3))
    kernel_symmetry(conv)
    copy.deepcopy(conv)


def test_spatial_dims_are_for_tensors():
    with pytest.raises(ValueError, match="spatial_dims=2 is for tensors alone"):
        kernel_symmetry(nn.Conv2d(2, 2, 3), spatial_dims=2)


@pytest.mark.parametrize(
    ("size", "axis", "error", "message"),
    [
        ((), None, ValueError, "must be 1 to 3 positive ints"),
        ((3, 3, 3, 3), None, ValueError, "must be 1 to 3 positive ints"),
        ((3, 0), None, ValueError, "must be 1 to 3 positive ints"),
        (2.5, None, TypeError, "kernel_size=2.5"),
        ((1, 1), None, ValueError, "one tap"),
        ((3, 1), "h", ValueError, "one tap along this axis"),
        ((3, 3), "z", ValueError, "axis='z' is not valid with 2 spatial dims; valid letters: h, v"),
        ((3, 3), "", ValueError, "axis='' is not valid"),
        ((3, 3), "hh", ValueError, "axis='hh' is not valid"),
        ((3, 3), 0, TypeError, "axis must be letters, such as 'h', got 0"),
    ],
)
def test_bad_arguments_of_the_null(size, axis, error, message):
    with pytest.raises(error, match=re.escape(message)):
        symmetry_null(size, axis=axis)


def test_percentiles_beyond_what_sampling_tells():
    shown = {100.0: "> 99.9", 99.92: "> 99.9", 99.9: "99.9", 50.0: "50.0", 0.1: "0.1", 0.05: "< 0.1"}
    assert {value: percent(value) for value in shown} == shown
