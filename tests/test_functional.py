"""symmetric_conv*d and symmetric_conv_transpose*d against torch's functions on expanded filters, over a grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from symconv_fast import Symmetry
from symconv_fast import functional as SF
from symconv_fast.symmetry import KEYS

SYMMETRIES = {
    1: [None, "h", {"h": 4}],
    2: ["h", "v", "hv", {"h": 4, "hv": 8}],
    3: ["z", {"hz": 8, "v": 4}, "hvz"],
}
OUT = 16


def tensors(ndim, spec, groups, kernel, spatial, dtype=torch.float64, transposed=False, channels=4, out=OUT):
    ties = Symmetry(spec).resolve(ndim, out, groups)
    shape = (channels, ties.unique // groups) if transposed else (ties.unique, channels // groups)
    x = torch.randn(2, channels, *spatial, dtype=dtype, requires_grad=True)
    w = torch.randn(*shape, *kernel, dtype=dtype, requires_grad=True)
    b = torch.randn(out, dtype=dtype, requires_grad=True)
    return ties, x, w, b


def assert_same_with_gradients(y, expected, leaves):
    """Values and the gradients of every leaf."""
    torch.testing.assert_close(y, expected)
    gy = torch.randn_like(expected)
    for a, e in zip(torch.autograd.grad(y, leaves, gy), torch.autograd.grad(expected, leaves, gy)):
        torch.testing.assert_close(a, e)


GRID = [
    {},
    {"padding": 1},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"stride": 2},
    {"stride": 3, "padding": 2},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "padding": 1},
    {"groups": 2, "stride": 2, "padding": 1, "dilation": 2},
]


@pytest.mark.parametrize("kwargs", GRID, ids=str)
@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize(
    ("ndim", "spec"), [(n, s) for n, specs in SYMMETRIES.items() for s in specs], ids=str
)
def test_convolution_with_gradients(ndim, spec, even, kwargs):
    kernel = (2, 4, 2)[:ndim] if even else (3, 1, 5)[:ndim]
    ties, x, w, b = tensors(ndim, spec, kwargs.get("groups", 1), kernel, (9, 8, 11)[:ndim])
    y = getattr(SF, f"symmetric_conv{ndim}d")(x, w, b, **kwargs, symmetry=ties)
    expected = getattr(F, f"conv{ndim}d")(x, ties.expand(w), b, **kwargs)
    assert_same_with_gradients(y, expected, [x, w, b])


TRANSPOSED_GRID = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3, "output_padding": 2, "dilation": 2},
    {"groups": 2, "stride": 2},
    {"dilation": 3, "padding": 2},
]


@pytest.mark.parametrize("kwargs", TRANSPOSED_GRID, ids=str)
@pytest.mark.parametrize(
    ("ndim", "spec"), [(n, s) for n, specs in SYMMETRIES.items() for s in specs], ids=str
)
def test_transposed_convolution_with_gradients(ndim, spec, kwargs):
    groups = kwargs.get("groups", 1)
    ties, x, w, b = tensors(ndim, spec, groups, (3, 2, 3)[:ndim], (4, 3, 5)[:ndim], transposed=True)
    y = getattr(SF, f"symmetric_conv_transpose{ndim}d")(x, w, b, **kwargs, symmetry=ties)
    expected = getattr(F, f"conv_transpose{ndim}d")(x, ties.expand(w, 1), b, **kwargs)
    assert_same_with_gradients(y, expected, [x, w, b])


def test_argument_order_is_that_of_torch():
    ties, x, w, b = tensors(2, "hv", 2, (3, 3), (9, 9))
    y = SF.symmetric_conv2d(x, w, b, 2, 1, 2, 2, symmetry=ties)
    torch.testing.assert_close(y, F.conv2d(x, ties.expand(w), b, 2, 1, 2, 2))
    ties, x, w, b = tensors(2, "hv", 2, (3, 3), (4, 4), transposed=True)
    y = SF.symmetric_conv_transpose2d(x, w, b, 2, 1, 1, 2, 3, symmetry=ties)
    torch.testing.assert_close(y, F.conv_transpose2d(x, ties.expand(w, 1), b, 2, 1, 1, 2, 3))


def test_ints_lists_and_tuples():
    ties, x, w, b = tensors(2, "hv", 1, (3, 3), (9, 9))
    expected = F.conv2d(x, ties.expand(w), b, (2, 1), (1, 0), (1, 2))
    torch.testing.assert_close(SF.symmetric_conv2d(x, w, b, [2, 1], [1, 0], (1, 2), symmetry=ties), expected)
    torch.testing.assert_close(
        SF.symmetric_conv2d(x, w, b, [2], (1,), torch.Size([1]), symmetry=ties),
        F.conv2d(x, ties.expand(w), b, 2, 1),
    )


@pytest.mark.parametrize(
    "name", ["depthwise", "multiplier", "one pixel", "kernel = input", "C = 1", "C = 3", "empty"]
)
def test_special_shapes(name):
    channels, groups, out, spatial, kernel, batch = {
        "depthwise": (8, 4, 16, (7, 6), (3, 3), 2),
        "multiplier": (4, 4, 32, (7, 6), (5, 3), 2),
        "one pixel": (4, 1, 16, (1, 1), (1, 1), 2),
        "kernel = input": (4, 1, 16, (5, 4), (5, 4), 2),
        "C = 1": (1, 1, 16, (7, 6), (3, 3), 2),
        "C = 3": (3, 1, 16, (7, 6), (3, 3), 2),
        "empty": (4, 1, 16, (7, 6), (3, 3), 0),
    }[name]
    ties, x, w, b = tensors(
        2, {"hv": 8 * max(1, groups // 2)}, groups, kernel, spatial, channels=channels, out=out
    )
    x = x.detach()[:batch].requires_grad_()
    for last in (False, True):
        z = x.contiguous(memory_format=torch.channels_last) if last else x
        y = SF.symmetric_conv2d(z, w, b, groups=groups, symmetry=ties)
        assert_same_with_gradients(y, F.conv2d(z, ties.expand(w), b, groups=groups), [x, w, b])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unbatched(ndim):
    ties, x, w, b = tensors(ndim, "h", 1, (3,) * ndim, (5,) * ndim)
    one = x.detach()[0].requires_grad_()
    y = getattr(SF, f"symmetric_conv{ndim}d")(one, w, b, padding="same", symmetry=ties)
    assert_same_with_gradients(
        y, getattr(F, f"conv{ndim}d")(one, ties.expand(w), b, padding="same"), [one, w, b]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_dtypes(dtype, transposed):
    ties, x, w, b = tensors(2, {"h": 4, "hv": 8}, 1, (3, 3), (7, 6), dtype, transposed)
    name = "conv_transpose2d" if transposed else "conv2d"
    y = getattr(SF, f"symmetric_{name}")(x, w, b, symmetry=ties)
    assert y.dtype == dtype
    exact = getattr(F, name)(x.double(), ties.expand(w, int(transposed)).double(), b.double())
    eps = torch.finfo(dtype).eps
    # Minimal filtering (float32) rounds a little more than a plain sum; tests/test_errors.py has the exact rule.
    torch.testing.assert_close(y.double(), exact, rtol=4 * eps, atol=32 * eps)


def test_shared_bias_by_its_length():
    ties, x, w, _ = tensors(2, {"h": 4, "hv": 8}, 2, (3, 3), (5, 5))
    b = torch.randn(ties.unique, dtype=torch.float64, requires_grad=True)
    y = SF.symmetric_conv2d(x, w, b, groups=2, symmetry=ties)
    full = torch.stack([b[row] for row, _ in ties.channel_map])
    assert_same_with_gradients(y, F.conv2d(x, ties.expand(w), full, groups=2), [x, w, b])


def test_symmetry_in_any_form():
    ties, x, w, b = tensors(2, {"hv": 16}, 1, (3, 3), (5, 5))
    expected = F.conv2d(x, ties.expand(w), b)
    for symmetry in ("hv", "vh", {"hv": 16}, {"vh": "100%"}, Symmetry("hv"), ties):
        torch.testing.assert_close(SF.symmetric_conv2d(x, w, b, symmetry=symmetry), expected)
    for symmetry in (None, {}, Symmetry()):
        torch.testing.assert_close(SF.symmetric_conv2d(x, w, None, symmetry=symmetry), F.conv2d(x, w))


@given(data=st.data())
def test_any_layer_equals_torch(data):
    """Random layers over the whole space: ties, sizes, layouts, groups, strides, paddings."""
    draw = data.draw
    ndim, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    counts = {key: draw(st.integers(0, 1)) * 2 ** len(key) * groups for key in KEYS[ndim]}
    out = sum(counts.values()) + groups * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 4)) for _ in range(ndim)]
    stride, dilation, padding = (
        [draw(st.integers(lo, 3 if lo else 2)) for _ in range(ndim)] for lo in (1, 1, 0)
    )
    room = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    spatial = [n + draw(st.integers(0, 4)) for n in room]
    ties, x, w, b = tensors(ndim, counts, groups, kernel, spatial, channels=2 * groups, out=out)
    if draw(st.booleans()):
        x = x.detach().transpose(1, -1).contiguous().transpose(1, -1).requires_grad_()
    args = (stride, padding, dilation, groups)
    y = getattr(SF, f"symmetric_conv{ndim}d")(x, w, b, *args, symmetry=counts)
    assert_same_with_gradients(y, getattr(F, f"conv{ndim}d")(x, ties.expand(w), b, *args), [x, w, b])
