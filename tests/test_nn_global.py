# GlobalConv1d against the dense convolution and its formula, TopKPool1d against sorting; gradients, dtypes, errors.
from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from symconv_fast.nn import GlobalConv1d, TopKPool1d

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def layer_with_values(*sizes, **options) -> GlobalConv1d:
    layer = GlobalConv1d(*sizes, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 17])
def test_it_is_the_dense_convolution(length, bias) -> None:
    layer, x = layer_with_values(3, 5, bias), torch.randn(2, 3, length, dtype=torch.float64)
    kernel = layer.dense_kernel(length)
    assert kernel.shape == (5, 3, 2 * length - 1)
    assert torch.equal(kernel[..., length - 1], layer.center.t())
    for tap in [*range(length - 1), *range(length, 2 * length - 1)]:
        assert torch.equal(kernel[..., tap], layer.surround.t())
    dense = F.conv1d(x, kernel, layer.bias, padding=length - 1)
    torch.testing.assert_close(layer(x), dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x[1]), dense[1], rtol=0, atol=1e-12)


def test_it_is_the_formula_a_sum_and_no_mean() -> None:
    layer, x = layer_with_values(2, 3), torch.randn(2, 2, 6, dtype=torch.float64)
    c, s, b = (p.detach().numpy() for p in (layer.center, layer.surround, layer.bias))
    expected = np.empty((2, 3, 6))
    for n in range(2):
        for i in range(6):
            others = sum(x[n, :, j].numpy() for j in range(6) if j != i)
            expected[n, :, i] = c.T @ x[n, :, i].numpy() + s.T @ others + b
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=0, atol=1e-12)
    ones = GlobalConv1d(1, 1, dtype=torch.float64)
    nn.init.ones_(ones.center)
    nn.init.ones_(ones.surround)
    for length in (1, 5, 50):
        assert torch.equal(
            ones(torch.ones(1, length, dtype=torch.float64)), torch.full((1, length), float(length)).double()
        )


def test_permutations_of_the_input_permute_the_output() -> None:
    layer, x, order = layer_with_values(3, 4), torch.randn(2, 3, 9, dtype=torch.float64), torch.randperm(9)
    torch.testing.assert_close(layer(x[..., order]), layer(x)[..., order], rtol=0, atol=1e-12)
    pooled = TopKPool1d(4)
    assert torch.equal(pooled(layer(x)[..., order]), pooled(layer(x)))


def test_gradients() -> None:
    layer, x = layer_with_values(3, 2), torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    assert names == ["center", "surround", "bias"]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *layer.parameters()))
    kernel = layer.dense_kernel(3)
    (center, surround) = torch.autograd.grad(kernel.sum(), (layer.center, layer.surround))
    assert torch.equal(center, torch.ones_like(center))
    assert torch.equal(surround, torch.full_like(surround, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype) -> None:
    layer, x = GlobalConv1d(8, 4, dtype=dtype), torch.randn(2, 8, 32, dtype=dtype)
    y = layer(x)
    wide = copy.deepcopy(layer).double()(x.double())
    assert y.dtype == dtype
    assert (y.double() - wide).abs().max() <= 4 * torch.finfo(dtype).eps * wide.abs().max()


def test_long_sums_of_half_precision_neither_overflow_nor_stall() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        layer = GlobalConv1d(1, 1, dtype=dtype)
        nn.init.zeros_(layer.center)
        nn.init.constant_(layer.surround, 2.0**-10)
        y = layer(torch.full((1, 1, 1 << 17), 1.0, dtype=dtype))
        assert torch.equal(y, torch.full_like(y, 128.0))


def test_autocast_keeps_its_dtype() -> None:
    layer, x = GlobalConv1d(8, 4), torch.randn(2, 8, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        again = layer(x.bfloat16())
    assert y.dtype == again.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.sum().backward()
    assert layer.center.grad.dtype == torch.float32


def test_empty_and_strided_inputs() -> None:
    layer = layer_with_values(3, 4)
    assert layer(torch.empty(0, 3, 5, dtype=torch.float64)).shape == (0, 4, 5)
    assert layer(torch.empty(2, 3, 0, dtype=torch.float64)).shape == (2, 4, 0)
    x = torch.randn(2, 6, 10, dtype=torch.float64)[:, ::2, ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    torch.testing.assert_close(layer(x.mT.contiguous().mT), layer(x))
    torch.testing.assert_close(layer(x[:, :, :1].expand(2, 3, 5)), layer(x[:, :, :1].repeat(1, 1, 5)))


def test_parameters_as_published() -> None:
    layer = GlobalConv1d(300, 200)
    bound = (6 / 500) ** 0.5
    for matrix in (layer.center, layer.surround):
        assert matrix.shape == (300, 200)
        assert 0.99 * bound < matrix.abs().max() <= bound
    assert not layer.bias.any()
    assert GlobalConv1d(2, 3, bias=False).bias is None
    assert list(GlobalConv1d(2, 3, bias=False).state_dict()) == ["center", "surround"]
    other = GlobalConv1d(300, 200)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.surround, layer.surround)


def test_repr_device_and_pickling() -> None:
    assert repr(GlobalConv1d(2, 3)) == "GlobalConv1d(2, 3)"
    assert repr(GlobalConv1d(2, 3, bias=False)) == "GlobalConv1d(2, 3, bias=False)"
    assert repr(TopKPool1d(4)) == "TopKPool1d(k=4)"
    meta = GlobalConv1d(2, 3, device="meta")
    assert meta(torch.empty(4, 2, 5, device="meta")).shape == (4, 3, 5)
    assert meta.dense_kernel(3).device.type == "meta"
    assert TopKPool1d(2)(torch.empty(4, 2, 5, device="meta")).shape == (4, 2, 2)


def test_compiled_whole_and_exported() -> None:
    model = nn.Sequential(GlobalConv1d(3, 4), nn.ReLU(), TopKPool1d(2))
    x = torch.randn(2, 3, 7)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (7, 9, 12):
        x = torch.randn(2, 3, length)
        torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))


# --- TopKPool1d -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_the_largest_in_descending_order(k, dtype) -> None:
    x = torch.randn(2, 3, 9).to(dtype)
    y = TopKPool1d(k)(x)
    assert y.dtype == dtype
    expected = np.sort(x.double().numpy(), -1)[..., ::-1][..., :k]
    assert np.array_equal(y.double().numpy(), expected)
    assert torch.equal(TopKPool1d(k)(x[0]), y[0])
    if k == 1:
        assert torch.equal(y, F.adaptive_max_pool1d(x.float(), 1).to(dtype))


def test_gradients_go_to_the_values_taken() -> None:
    x = torch.randperm(24).double().view(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(TopKPool1d(2), (x,))
    TopKPool1d(2)(x).sum().backward()
    assert torch.equal(x.grad, (x >= x.sort(-1).values[..., 2:3]).double())
    equal = torch.zeros(1, 5, requires_grad=True)
    TopKPool1d(2)(equal).sum().backward()
    assert equal.grad.sum() == 2
    assert equal.grad.max() == 1


def test_nan_shows() -> None:
    x = torch.tensor([[1.0, float("nan"), 3.0]])
    assert TopKPool1d(1)(x).isnan().all()


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: GlobalConv1d(0, 2), ValueError, "in_channels=0 must be one int of 1 or more"),
        (lambda: GlobalConv1d(2, -1), ValueError, "out_channels=-1 must be one int of 1 or more"),
        (lambda: GlobalConv1d(2.0, 2), TypeError, r"in_channels=2\.0 must be an int"),
        (lambda: GlobalConv1d(True, 2), TypeError, "in_channels=True must be an int"),
        (lambda: GlobalConv1d((2, 2), 2), ValueError, r"in_channels=\(2, 2\) must be one int"),
        (lambda: GlobalConv1d((), 2), ValueError, r"in_channels=\(\) must be one int"),
        (lambda: GlobalConv1d(2, 2, dtype=torch.complex64), TypeError, "supported dtypes: float16, bfloat16"),
        (lambda: GlobalConv1d(2, 2, dtype=torch.int32), TypeError, "supported dtypes"),
        (lambda: GlobalConv1d(2, 2).dense_kernel(0), ValueError, "length=0 must be one int"),
        (lambda: TopKPool1d(0), ValueError, "k=0 must be one int of 1 or more"),
        (lambda: TopKPool1d(1.0), TypeError, r"k=1\.0 must be an int"),
        (lambda: TopKPool1d("3"), TypeError, "k='3' must be an int"),
        (
            lambda: TopKPool1d(4)(torch.zeros(1, 2, 3)),
            ValueError,
            "k=4 is more than the length of the input, 3",
        ),
        (lambda: TopKPool1d(4)(torch.zeros(1, 2, 3)), RuntimeError, "give k=3 or less"),
        (lambda: TopKPool1d(1)(torch.zeros(3)), ValueError, r"expected input \(N, C, L\) or \(C, L\)"),
        (lambda: TopKPool1d(1)(np.zeros((2, 3))), TypeError, "input must be a Tensor, got ndarray"),
        (lambda: GlobalConv1d(2, 2)(torch.zeros(1, 1, 2, 3)), ValueError, r"got shape \(1, 1, 2, 3\)"),
        (lambda: GlobalConv1d(2, 2)(torch.zeros(2)), ValueError, r"got shape \(2,\)"),
        (
            lambda: GlobalConv1d(2, 2)(torch.zeros(1, 3, 4)),
            ValueError,
            r"with 2 channels.*got shape \(1, 3, 4\)",
        ),
        (lambda: GlobalConv1d(2, 2)(torch.zeros(3, 4)), RuntimeError, r"with 2 channels.*got shape \(3, 4\)"),
        (lambda: GlobalConv1d(2, 2)(None), TypeError, "input must be a Tensor, got NoneType"),
        (lambda: GlobalConv1d(2, 2, bias=None), TypeError, "bias=None must be True or False"),
        (
            lambda: GlobalConv1d(2, 2)(torch.zeros(2, 3).double()),
            RuntimeError,
            r"Input type \(float64\) and weight type \(float32\) should be the same",
        ),
        (
            lambda: GlobalConv1d(2, 2)(torch.zeros(2, 3).long()),
            TypeError,
            "int64 is not supported; supported dtypes",
        ),
        (lambda: GlobalConv1d(2, 2)(torch.zeros(2, 3).cfloat()), TypeError, "complex64 is not supported"),
        (lambda: TopKPool1d(1)(torch.zeros(2, 3).cfloat()), TypeError, "complex64 has no order to pool by"),
        (lambda: TopKPool1d(1)(torch.zeros(2, 3).bool()), TypeError, "bool has no order to pool by"),
        (lambda: GlobalConv1d(2, 2)(torch.zeros(2, 3, device="meta")), RuntimeError, "device"),
        (
            lambda: GlobalConv1d(2, 2, device="meta")(torch.zeros(2, 3, device="meta").double()),
            RuntimeError,
            "Input type",
        ),
    ],
)
def test_bad_input(make, error, match) -> None:
    with pytest.raises(error, match=match):
        make()
