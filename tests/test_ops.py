"""The operators: derivatives of every order, registration, layouts."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import symconv_fast
from symconv_fast import SymmetricConv2d, Symmetry, ops

# ndim, symmetry, out_channels, groups, transposed, stride, padding, dilation, kernel, spatial
CASES = {
    "1d": (1, "h", 4, 1, False, 1, 1, 1, (3,), (5,)),
    "1d stride": (1, {"h": 4}, 6, 2, False, 2, 2, 2, (2,), (6,)),
    "2d hv": (2, "hv", 4, 1, False, 1, 1, 1, (3, 3), (4, 3)),
    "2d mixed": (2, {"h": 2, "v": 2, "hv": 4}, 9, 1, False, 2, 1, 1, (3, 2), (5, 4)),
    "2d groups": (2, {"v": 4}, 6, 2, False, 1, 0, 2, (2, 3), (4, 5)),
    "2d transposed": (2, {"h": 4}, 6, 2, True, 2, 1, 1, (3, 3), (3, 3)),
    "3d hvz": (3, {"hvz": 8}, 9, 1, False, 1, 1, 1, (2, 3, 2), (3, 2, 3)),
}


def make(name: str, channels_last: bool = False, dtype: torch.dtype = torch.float64, batch: int = 2):
    """Tensors and static arguments of the operators for one case: (input, weight, bias, grad_output, static)."""
    ndim, spec, out, groups, transposed, stride, padding, dilation, kernel, spatial = CASES[name]
    ties = Symmetry(spec).resolve(ndim, out, groups)
    channels = 2 * groups
    shape = (channels, ties.unique // groups) if transposed else (ties.unique, channels // groups)
    static = (ties.flat, *[(v,) * ndim for v in (stride, padding, dilation, 0)], transposed, groups)
    static = (*static, channels_last and ndim > 1)
    x = torch.randn(batch, channels, *spatial, dtype=dtype)
    w = torch.randn(*shape, *kernel, dtype=dtype)
    if channels_last and ndim > 1:
        x = x.contiguous(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)
    b = torch.randn(out, dtype=dtype)
    gy = torch.randn_like(ops.fprop(x, w, b, *static))
    return x, w, b, gy, static


def expanded(name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The same by torch alone."""
    ndim, spec, out, groups, transposed, stride, padding, dilation, *_ = CASES[name]
    filters = Symmetry(spec).resolve(ndim, out, groups).expand(w, 1 if transposed else 0)
    if transposed:
        return getattr(F, f"conv_transpose{ndim}d")(x, filters, b, stride, padding, 0, groups, dilation)
    return getattr(F, f"conv{ndim}d")(x, filters, b, stride, padding, dilation, groups)


# --- derivatives ---------------------------------------------------------------------------------------------------


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_and_gradgradcheck(name):
    x, w, b, gy, static = make(name, batch=1)
    x_size, w_size = list(x.shape), list(w.shape)
    for function, inputs in (
        (lambda x, w, b: ops.fprop(x, w, b, *static), (x, w, b)),
        (lambda gy, w: ops.dgrad(gy, w, x_size, *static), (gy, w)),
        (lambda gy, x: ops.wgrad(gy, x, w_size, *static), (gy, x)),
        (lambda gy, x: ops.wgrad_bias(gy, x, w_size, *static), (gy, x)),
        (lambda gy, x: ops.wgrad_bias(gy, x, w_size, *static)[1], (gy, x.detach())),
    ):
        assert torch.autograd.gradcheck(function, leaves(*inputs), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves(*inputs), fast_mode=True)


def derivative_chain(function, x: Tensor, w: Tensor) -> list[Tensor]:
    """First, second and third derivatives of a nonlinear function of the output."""
    found, value = [], function(x, w).pow(3).sum()
    for _ in range(3):
        gx, gw = torch.autograd.grad(value, [x, w], create_graph=True)
        found += [gx.detach(), gw.detach()]
        value = gx.pow(2).sum() + gw.pow(2).sum()
    return found


@pytest.mark.parametrize("name", CASES)
def test_three_orders_equal_those_of_torch(name):
    x, w, b, _, static = make(name)
    ours = derivative_chain(lambda x, w: ops.fprop(x, w, b, *static), *leaves(x, w))
    torchs = derivative_chain(lambda x, w: expanded(name, x, w, b), *leaves(x, w))
    for a, e in zip(ours, torchs):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10 * float(e.abs().max()))


class Recorded(TorchDispatchMode):
    """Names of our operators in the order of their calls."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "symconv_fast":
            self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.names: list[str] = []
        return super().__enter__()


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_only_the_gradients_that_are_wanted_are_computed(needs):
    x, w, b, gy, static = make("2d mixed")
    tensors = [t.requires_grad_(need) for t, need in zip((x, w, b), needs)]
    with Recorded() as seen:
        y = ops.fprop(*tensors, *static)
    assert seen.names == ["fprop"]
    assert y.requires_grad == any(needs)
    if not any(needs):
        return
    with Recorded() as seen:
        y.backward(gy)
    weight = "wgrad_bias" if needs[2] else "wgrad"
    assert seen.names == [op for op, need in zip(("dgrad", weight), needs) if need]
    reference = leaves(x, w, b)
    grads = torch.autograd.grad(expanded("2d mixed", *reference), reference, gy)
    for tensor, grad, need in zip(tensors, grads, needs):
        assert (tensor.grad is not None) == need
        if need:
            torch.testing.assert_close(tensor.grad, grad)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_saves_only_what_the_wanted_gradients_need(frozen):
    x, w, b, _, static = make("2d mixed")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        ops.fprop(x.requires_grad_(frozen == "weight"), w.requires_grad_(frozen == "input"), b, *static)
    assert [t.data_ptr() for t in saved] == [(w if frozen == "weight" else x).data_ptr()]


def test_checkpoint():
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv", dtype=torch.float64)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(layer(x).sin().sum(), [x, layer.weight, layer.bias])
    y = checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False)
    for a, e in zip(torch.autograd.grad(y.sum(), [x, layer.weight, layer.bias]), plain):
        assert torch.equal(a, e)


# --- registration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, channels_last):
    x, w, b, gy, static = make(name, channels_last)
    grads = [t.requires_grad_() for t in (x, w, b)]
    for op, args in (
        (ops.fprop, (*grads, *static)),
        (ops.fprop, (x, w, None, *static)),
        (ops.dgrad, (gy.detach().requires_grad_(), w, list(x.shape), *static)),
        (ops.wgrad, (gy.detach().requires_grad_(), x, list(w.shape), *static)),
        (ops.wgrad_bias, (gy.detach().requires_grad_(), x, list(w.shape), *static)),
    ):
        torch.library.opcheck(op, args)


def test_opcheck_of_odd_strides_and_one_pixel():
    x, w, b, _, static = make("2d hv")
    wide = torch.randn(2, 4, 8, 6, dtype=torch.float64)[:, ::2, ::2, ::2]
    one = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    flat = torch.randn(1, 2, 4, 3, dtype=torch.float64).expand(2, 2, 4, 3)
    for odd in (wide, one, flat, x.transpose(0, 1), x[:0]):
        for last in (False, True):
            torch.library.opcheck(ops.fprop, (odd, w, b, *static[:-1], last))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_have_the_promised_layout(name, channels_last):
    x, w, b, gy, static = make(name, channels_last)
    fmt = torch.contiguous_format
    if channels_last and x.dim() > 3:
        fmt = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    results = (
        ops.fprop(x, w, b, *static),
        ops.dgrad(gy, w, list(x.shape), *static),
        ops.wgrad(gy, x, list(w.shape), *static),
    )
    for result in results:
        assert result.is_contiguous(memory_format=fmt)


def test_no_result_aliases_an_argument():
    """Even where nothing is tied and the expansion is the weight itself."""
    x, w = torch.randn(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    static = ((0, 1), (1, 1), (0, 0), (1, 1), (0, 0), False, 1, False)
    results = (
        ops.fprop(x, w, None, *static), ops.dgrad(x, w, [1, 1, 1, 1], *static), ops.wgrad(w, x, [1, 1, 1, 1], *static),
    )  # fmt: skip
    for result in results:
        assert torch.equal(result, x)
        assert result.data_ptr() not in (x.data_ptr(), w.data_ptr())


def views(x: Tensor) -> dict[str, Tensor]:
    """The values of x in every kind of memory; the last two hold other values."""
    padded = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    padded[..., 1::2] = x
    negated = torch._neg_view(-x)
    assert negated.is_neg()
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": padded[..., 1::2],
        "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
        "negative": negated,
        "offset": torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
        "stride 0": x[:1, :, :1].expand_as(x),
        "flipped": x.flip(0),
    }


@pytest.mark.parametrize("kind", list(views(torch.zeros(1, 1, 1, 1))))
def test_any_strides_give_the_right_numbers(kind):
    x, w, b, gy, _ = make("2d mixed")
    x, w, gy = views(x)[kind], views(w)[kind], views(gy)[kind]
    layer_args = {"stride": 2, "padding": 1, "symmetry": {"h": 2, "v": 2, "hv": 4}}
    ours, torchs = leaves(x, w, b), leaves(x, w, b)
    # leaves() would make them contiguous: differentiate through the views themselves.
    ours[:2], torchs[:2] = (
        [t.detach().requires_grad_() for t in (x, w)],
        [t.detach().requires_grad_() for t in (x, w)],
    )
    y = symconv_fast.functional.symmetric_conv2d(*ours, **layer_args)
    e = expanded("2d mixed", *torchs)
    torch.testing.assert_close(y, e)
    for a, g in zip(torch.autograd.grad(y, ours, gy), torch.autograd.grad(e, torchs, gy)):
        torch.testing.assert_close(a, g)
