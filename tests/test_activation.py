"""Activations applied by the call itself, against torch's function on the output of the call without one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from symconv_fast import SymmetricConv2d, dispatch, ops
from symconv_fast import functional as SF

FUNCTIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}
# function, its weight, its output channels, its symmetry
CALLS = {
    "1-D": (SF.symmetric_conv1d, (2, 3, 3), 4, "h"),
    "2-D": (SF.symmetric_conv2d, (5, 3, 3, 2), 8, {"h": 4, "v": 2}),
    "3-D": (SF.symmetric_conv3d, (2, 3, 3, 3, 1), 16, "hvz"),
    "1-D transposed": (SF.symmetric_conv_transpose1d, (3, 2, 3), 4, "h"),
    "2-D transposed": (SF.symmetric_conv_transpose2d, (3, 2, 3, 2), 8, "hv"),
    "3-D transposed": (SF.symmetric_conv_transpose3d, (3, 2, 3, 1, 2), 16, "hvz"),
}


def arguments(name, dtype=torch.float64, device="cpu"):
    """(function of input, weight, bias and activation, those tensors)."""
    function, shape, out, symmetry = CALLS[name]
    options = {"dtype": dtype, "device": device, "requires_grad": True}
    tensors = [torch.randn(s, **options) for s in ((2, 3, *[5] * (len(shape) - 2)), shape, (out,))]
    return (lambda x, w, b, a: function(x, w, b, padding=1, symmetry=symmetry, activation=a)), tensors


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_those_of_torch(name, activation):
    call, leaves = arguments(name)
    expected = FUNCTIONS[activation](call(*leaves, None))
    with torch.no_grad():
        assert torch.equal(call(*leaves, activation), expected)
    y = call(*leaves, activation)
    gy = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, gy)
    for a, e in zip(torch.autograd.grad(y, leaves, gy), wanted):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_second_derivatives(activation):
    call, leaves = arguments("2-D")
    assert torch.autograd.gradgradcheck(lambda *t: call(*t, activation), leaves, fast_mode=True)


def operator_arguments(requires_grad):
    """Of `ops.fprop_activated` before and after the activation, for an hv layer."""
    layer = SymmetricConv2d(3, 8, 3, padding=1, symmetry="hv", dtype=torch.float64)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=requires_grad)
    tensors = [t.detach().requires_grad_(requires_grad) for t in (layer.weight, layer.bias)]
    return (x, *tensors), (layer.ties.flat, (1, 1), (1, 1), (1, 1), (0, 0), False, 1, False)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_the_operator(activation, requires_grad):
    tensors, static = operator_arguments(requires_grad)
    torch.library.opcheck(ops.fprop_activated, (*tensors, activation, *static))
    y = ops.fprop_activated(*tensors, activation, *static)
    torch.testing.assert_close(y, FUNCTIONS[activation](ops.fprop(*tensors, *static)))


def test_a_batch_of_inputs_under_vmap():
    (x, w, b), static = operator_arguments(False)
    batched = torch.stack([x, 2 * x])
    found = torch.vmap(lambda x: ops.fprop_activated(x, w, b, "relu", *static))(batched)
    for y, x in zip(found, batched):
        torch.testing.assert_close(y, F.relu(ops.fprop(x, w, b, *static)))


def test_a_backend_with_an_epilogue_gets_the_activation(monkeypatch):
    """And dispatch applies nothing after it."""
    tensors, static = operator_arguments(False)
    seen = []

    def bind(problem, op, algorithm, activation=None):
        seen.append((op, algorithm, activation))
        return lambda *tensors: torch.full(problem.output_shape, -1.0, dtype=problem.dtype)

    for name, value in {"bind": bind, "ACTIVATES": True}.items():
        monkeypatch.setattr(dispatch.load("reference"), name, value, raising=False)
    ops.forget_plans()
    with dispatch.backend("reference"):
        assert bool((ops.fprop_activated(*tensors, "relu", *static) == -1).all())
    assert seen[-1] == ("fprop", "expand", "relu")
    ops.forget_plans()


def test_devices_other_than_the_cpu_get_the_operator():
    call, leaves = arguments("2-D", device="meta")
    with torch.no_grad():
        assert call(*leaves, "relu").shape == (2, 8, 5, 6)
    assert call(*leaves, "relu").requires_grad


@pytest.mark.parametrize("gradient", [False, True])
def test_compiled_in_one_graph(gradient):
    call, (x, w, b) = arguments("2-D", torch.float32)
    if not gradient:
        x, w, b = (t.detach() for t in (x, w, b))
    y = torch.compile(call, fullgraph=True, backend="aot_eager")(x, w, b, "gelu")
    torch.testing.assert_close(y, F.gelu(call(x, w, b, None)))


def test_autocast_and_unbatched_and_empty():
    call, (x, w, b) = arguments("2-D", torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = call(x, w, b, "silu")
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, F.silu(call(x, w, b, None)))
    assert torch.equal(call(x[0], w, b, "relu"), F.relu(call(x[0], w, b, None)))
    assert call(x[:0], w, b, "relu").shape == (0, 8, 5, 6)


@pytest.mark.parametrize("wrong", ["tanh", "ReLU", "", 1, F.relu])
def test_an_unknown_one_is_refused(wrong):
    call, leaves = arguments("2-D")
    with pytest.raises(ValueError, match=r"activation=.* is not valid; give None, 'relu', 'silu' or 'gelu'"):
        call(*leaves, wrong)
    tensors, static = operator_arguments(False)
    if isinstance(wrong, str):
        with pytest.raises(ValueError, match="is not valid; give None"):
            ops.fprop_activated(*tensors, wrong, *static)
