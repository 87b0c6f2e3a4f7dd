# The operators under torch.func, in forward mode, under autocast, and what they cost in FLOPs.

from __future__ import annotations

import itertools

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from test_ops import CASES, Recorded, expanded, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import symconv_fast
from symconv_fast import SymmetricConv2d, ops

# --- torch.func ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_vmap_over_any_argument(name):
    x, w, b, gy, static = make(name)
    stack = {
        "x": torch.stack([x, 2 * x, -x], 1),
        "w": torch.stack([w, w + 1, -w]),
        "gy": torch.stack([gy, -gy, gy], 1),
    }
    fprop = lambda x, w: ops.fprop(x, w, b, *static)  # noqa: E731
    dgrad = lambda gy, w: ops.dgrad(gy, w, list(x.shape), *static)  # noqa: E731
    wgrad = lambda gy, x: ops.wgrad(gy, x, list(w.shape), *static)  # noqa: E731
    plain = {"x": x, "w": w, "gy": gy}
    where = {"x": 1, "w": 0, "gy": 1}
    for function, names in ((fprop, "x w"), (dgrad, "gy w"), (wgrad, "gy x")):
        for batched in itertools.product((False, True), repeat=2):
            if not any(batched):
                continue
            dims = tuple(where[n] if on else None for n, on in zip(names.split(), batched))
            args = [stack[n] if on else plain[n] for n, on in zip(names.split(), batched)]
            result = torch.vmap(function, dims)(*args)
            for i in range(3):
                alone = [a if d is None else a.select(d, i) for a, d in zip(args, dims)]
                torch.testing.assert_close(result[i], function(*alone))


def test_vmap_calls_once_where_only_the_input_is_batched():
    x, w, b, _, static = make("2d hv")
    with Recorded() as seen:
        torch.vmap(lambda x: ops.fprop(x, w, b, *static))(torch.stack([x] * 5))
    assert seen.names == ["fprop"]


def test_vmap_over_the_bias():
    x, w, b, _, static = make("2d hv")
    biases = torch.stack([b, b + 1])
    result = torch.vmap(lambda b: ops.fprop(x, w, b, *static))(biases)
    torch.testing.assert_close(result[1], result[0] + 1)


def test_nested_transforms_equal_those_of_torch():
    """grad of grad of grad, Hessians, per-sample gradients: each level must see the one below."""
    x, w, b, _, static = make("2d mixed", batch=1)
    mine = lambda x: ops.fprop(x, w, b, *static).pow(3).sum()  # noqa: E731
    torchs = lambda x: expanded("2d mixed", x, w, b).pow(3).sum()  # noqa: E731
    grad, vmap, jacrev = torch.func.grad, torch.vmap, torch.func.jacrev
    second = lambda f: grad(lambda x: grad(f)(x).pow(2).sum())  # noqa: E731
    third = lambda f: grad(lambda x: second(f)(x).sin().sum())  # noqa: E731
    batch = torch.stack([x, x + 1, -x])
    for transform in (
        lambda f: grad(f)(x),
        lambda f: second(f)(x),
        lambda f: third(f)(x),
        lambda f: jacrev(jacrev(f))(x),
        lambda f: vmap(grad(f))(batch),
        lambda f: vmap(second(f))(batch),
        lambda f: grad(lambda batch: vmap(f)(batch).sum())(batch),
    ):
        expected = transform(torchs)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(transform(mine), expected)


def test_per_sample_gradients():
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv", dtype=torch.float64)
    x = torch.randn(4, 2, 5, 6, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (sample[None],)).pow(2).sum()

    parameters = dict(layer.named_parameters())
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    whole = torch.autograd.grad(layer(x).pow(2).sum(), list(parameters.values()))
    for name, gradient in zip(parameters, whole):
        torch.testing.assert_close(each[name].sum(0), gradient)


# --- forward mode, FLOPs, autocast ---------------------------------------------------------------------------------


def test_forward_mode_raises_and_never_gives_zeros():
    x, w, b, gy, static = make("2d hv")
    f = lambda x: ops.fprop(x, w, b, *static).pow(2).sum()  # noqa: E731
    calls = [
        lambda: torch.func.jvp(f, (x,), (x,)),
        lambda: torch.func.jvp(lambda w: ops.fprop(x, w, b, *static), (w,), (w,)),
        lambda: torch.func.jvp(lambda b: ops.fprop(x, w, b, *static), (b,), (b,)),
        lambda: torch.func.jvp(lambda g: ops.dgrad(g, w, list(x.shape), *static), (gy,), (gy,)),
        lambda: torch.func.jvp(lambda g: ops.wgrad(g, x, list(w.shape), *static), (gy,), (gy,)),
        lambda: torch.func.jacfwd(f)(x),
        lambda: torch.func.hessian(f)(x),
        lambda: torch.func.jvp(torch.func.grad(f), (x,), (x,)),
        lambda: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (x,))[1])(x),
        lambda: torch.vmap(lambda t: torch.func.jvp(f, (t,), (t,))[1])(torch.stack([x, x])),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match="forward-mode"):
            call()


def test_forward_over_reverse_with_dual_tensors_raises():
    x, w, b, gy, static = make("2d hv")
    x.requires_grad_()
    y = ops.fprop(x, w, b, *static)
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(y, x, forward_ad.make_dual(gy, gy))
        with torch.no_grad(), pytest.raises(NotImplementedError, match="forward-mode"):
            symconv_fast.functional.symmetric_conv2d(
                forward_ad.make_dual(x, x), w, b, padding=1, symmetry="hv"
            )
        # Without tangents everything works, dual level or not.
        torch.testing.assert_close(ops.fprop(x, w, b, *static), y)


@pytest.mark.parametrize("name", CASES)
def test_flop_counter_counts_folded_multiply_accumulates(name):
    x, w, b, _, static = make(name)
    # torch's own counter on the expanded filters, scaled by the rows that are left.
    with FlopCounterMode(display=False) as dense:
        expanded(name, x, w, b)
    with FlopCounterMode(display=False) as folded:
        y = ops.fprop(x.requires_grad_(), w.requires_grad_(), b, *static)
    out, unique = CASES[name][2], sum(static[0][1::2])
    assert folded.get_total_flops() * out == dense.get_total_flops() * unique
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * folded.get_total_flops()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_train_and_eval(train, dtype):
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv").train(train)
    x = torch.randn(2, 2, 5, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        expected = F.conv2d(x, layer.expanded_weight(), layer.bias, padding=1)
    assert y.dtype == expected.dtype == dtype
    # Native kernels round sums of inputs, and torch's products of each: neither is nearer to the other than that.
    allowed = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(y, expected, rtol=0, atol=allowed)
    y.float().pow(2).sum().backward()
    for tensor in (x, layer.weight, layer.bias):
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.abs().max() > 0
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer(x), y)
        assert (
            layer.double()(x.double()).dtype == torch.float64
        )  # autocast leaves float64 alone, as torch's does


def casts(network: torch.nn.Module, x: Tensor) -> int:
    """How often tensors go to another dtype in a step under autocast."""

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counted.append(func is torch.ops.aten._to_copy.default)
            return func(*args, **(kwargs or {}))

    counted: list[bool] = []
    with torch.autocast("cpu", dtype=torch.bfloat16), Counted():
        network(network(network(x)))
    return sum(counted)


@pytest.mark.parametrize("train", [True, False])
def test_autocast_casts_a_weight_once(train):
    """As for torch's own layer: a weight that wants a gradient is cast once for as long as autocast is on."""
    tied = SymmetricConv2d(4, 4, 3, padding=1, symmetry="h").requires_grad_(train)
    x = torch.randn(1, 4, 5, 6)
    assert casts(tied, x) == casts(torch.nn.Conv2d(4, 4, 3, padding=1).requires_grad_(train), x)


def test_calls_under_autocast_are_those_of_the_first():
    layer, x = SymmetricConv2d(4, 8, 3, padding=1, symmetry="hv"), torch.randn(1, 4, 5, 6)
    found = []
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        found.append([y.detach(), *torch.autograd.grad(y.float().pow(2).sum(), layer.parameters())])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_operator_called_under_autocast_keeps_its_dtype(device):
    x, w, b, _, static = make("2d hv", dtype=torch.float32)
    x, w, b = (t.to(device) for t in (x, w, b))
    with torch.autocast(device, dtype=torch.bfloat16):
        y = ops.fprop(x, w, b, *static)
        assert y.dtype == torch.float32
        assert ops.dgrad(y, w, list(x.shape), *static).dtype == torch.float32


@pytest.mark.parametrize("leaf", [True, False])
def test_a_gradient_that_is_not_asked_for_is_not_computed(leaf):
    layer = SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv")
    start = torch.randn(2, 2, 5, 6, requires_grad=True)
    cases = {
        "start": ["dgrad"],
        "x": ["dgrad"],
        "weight": ["wgrad"],
        "bias": [],
        "x weight": ["dgrad", "wgrad"],
    }
    for wanted, names in cases.items():
        tensors = {
            "start": start,
            "x": start if leaf else start * 2,
            "weight": layer.weight,
            "bias": layer.bias,
        }
        y = layer(tensors["x"])
        with Recorded() as seen:
            torch.autograd.grad(y.sum(), [tensors[name] for name in wanted.split()])
        assert seen.names == names
    with Recorded() as seen:
        layer(start).sum().backward()
    assert seen.names[-2:] == ["dgrad", "wgrad_bias"]
