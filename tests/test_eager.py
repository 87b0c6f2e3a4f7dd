# Remembered calls: they give what the operators give, notice every change, and leave alone what is not theirs.
"""A layer's second call runs in one native call (symconv_fast/eager.py); `native` says whether the last one did."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import symconv_fast
from symconv_fast import SymmetricConv2d, SymmetricConvTranspose2d, eager, modules, ops
from symconv_fast.functional import symmetric_conv2d, symmetric_conv3d

_cpu = pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    ops.forget_plans()


def native(call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The result of `call`, which must not come from the operator."""
    with monkeypatch.context() as patch:
        patch.setattr(ops, "fprop", None)
        return call()


def slow(call: Callable[[], Tensor]) -> Tensor:
    """The result of `call`, by the operator, which a dispatch mode wants to see."""
    with Recorded() as seen:
        result = call()
    assert "fprop" in seen.names
    return result


class Recorded(TorchDispatchMode):
    """Names of the operators of this package that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "symconv_fast":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def tied(**more: object) -> SymmetricConv2d:
    return SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv", **more)


LAYERS = {
    "plain": tied(),
    "no bias": tied(bias=False),
    "float64": tied(dtype=torch.float64),
    "bfloat16": tied(dtype=torch.bfloat16),
    "shared bias": tied(share_bias=True),
    "circular": tied(padding_mode="circular"),
    "same": SymmetricConv2d(2, 8, 3, padding="same", symmetry="hv"),
    "even kernel, same": SymmetricConv2d(2, 8, 4, padding="same", symmetry="hv"),
    "stride, groups": SymmetricConv2d(4, 8, 3, stride=2, groups=2, symmetry={"h": 4}),
    "depthwise": SymmetricConv2d(4, 4, 5, groups=4, symmetry=None),
    "transposed": SymmetricConvTranspose2d(2, 8, 3, stride=2, output_padding=1, symmetry="hv"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("last", [False, True])
def test_gives_what_the_operators_give(name: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = copy.deepcopy(LAYERS[name])
    fmt = torch.channels_last if last else torch.contiguous_format
    layer = layer.to(memory_format=fmt)
    x = (
        torch.randn(2, layer.in_channels, 9, 7, dtype=layer.weight.dtype)
        .to(memory_format=fmt)
        .requires_grad_()
    )
    inputs = [x, *layer.parameters()]
    expected = slow(lambda: layer(x))
    layer(x)
    y = native(lambda: layer(x), monkeypatch)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    gy = torch.randn_like(y)
    with Recorded() as seen:
        right = torch.autograd.grad(expected, inputs, gy)
    assert seen.names == ["dgrad", "wgrad" if layer.bias is None else "wgrad_bias"]
    for mine, its in zip(torch.autograd.grad(y, inputs, gy), right, strict=True):
        assert torch.equal(mine, its)
        assert mine.stride() == its.stride()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            layer(x)
            assert torch.equal(native(lambda: layer(x), monkeypatch), expected)


def test_every_order_of_derivative() -> None:
    layer = tied(dtype=torch.float64)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    layer(x)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    inputs = (x, layer.weight, layer.bias)
    assert layer(x).grad_fn.name() == "SymconvFpropBackward"
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    # gradgradcheck passes over gradients that have no graph.
    for gradient in torch.autograd.grad(layer(x).square().sum(), inputs, create_graph=True):
        assert gradient.requires_grad
    gx, gw = torch.autograd.grad(layer(x).sum(), inputs[:2], create_graph=True)
    assert gx.requires_grad
    assert gw.requires_grad


CLASSES = (Tensor, torch.nn.Parameter)


def connect(request: pytest.FixtureRequest, plan: Callable[..., object]) -> None:
    """Have native code ask `plan` for who runs a call, until the test ends."""
    request.addfinalizer(lambda: _cpu.connect(*CLASSES, symconv_fast.dispatch.PINNED, ops.plan))
    _cpu.connect(*CLASSES, symconv_fast.dispatch.PINNED, plan)


def test_a_gradient_that_is_not_asked_for_is_not_computed(request: pytest.FixtureRequest) -> None:
    def plan(op: str, *arguments: object) -> object:
        calls.append(op)
        return ops.plan(op, *arguments)

    calls: list[str] = []
    connect(request, plan)
    layer, x = tied(), torch.randn(2, 2, 5, 6, requires_grad=True)
    tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
    layer(x)
    for wanted, expected in (
        ("x", ["dgrad"]),
        ("weight", ["wgrad"]),
        ("bias", []),
        ("x weight", ["dgrad", "wgrad"]),
    ):
        ops.forget_plans()
        layer(x)
        y = layer(x * 1)
        calls.clear()
        grads = torch.autograd.grad(y.sum(), [tensors[name] for name in wanted.split()])
        assert calls == expected
        assert all(g is not None for g in grads)
    ops.forget_plans()
    calls.clear()
    tied().requires_grad_(False)(x).sum().backward()
    assert calls == ["fprop", "dgrad"]


def test_changes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = tied(), torch.randn(2, 2, 6, 6)
    layer(x)

    def right() -> Tensor:
        return F.conv2d(x, layer.expanded_weight(), layer.bias, layer.stride, layer.padding, layer.dilation)

    for name, value in (
        ("stride", (2, 2)), ("padding", (3, 3)), ("dilation", (2, 2)), ("padding", 4), ("stride", 1),
        ("bias", None), ("weight", torch.nn.Parameter(torch.randn(2, 2, 5, 5))),
        ("ties", SymmetricConv2d(2, 2, 3, symmetry=None).ties),
    ):  # fmt: skip
        if name == "ties":  # is read-only
            layer.__dict__[name] = value
        else:
            setattr(layer, name, value)
        for _ in range(3):
            torch.testing.assert_close(layer(x), right(), rtol=1e-4, atol=1e-4)
    x = x.to(memory_format=torch.channels_last)
    for _ in range(2):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="float64"):
        layer(x.double())
    with pytest.raises(RuntimeError, match="channels"):
        layer(x[:, :1])
    with torch.no_grad():
        layer.weight.add_(1)
    torch.testing.assert_close(native(lambda: layer(x), monkeypatch), right(), rtol=1e-4, atol=1e-4)


def test_arguments_that_can_change_are_not_remembered() -> None:
    x, w, stride = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3), [1, 1]
    symmetry = {"h": 4}
    for _ in range(2):
        assert symmetric_conv2d(x, w, stride=stride, symmetry=symmetry).shape == (1, 4, 4, 4)
    stride[:] = [2, 2]
    assert symmetric_conv2d(x, w, stride=stride, symmetry=symmetry).shape == (1, 4, 2, 2)
    pair = (torch.tensor(1), torch.tensor(1))  # a tuple, but not of what cannot change
    for _ in range(2):
        assert symmetric_conv2d(x, w, stride=pair, symmetry="h").shape == (1, 4, 4, 4)
    pair[0].fill_(2)
    assert symmetric_conv2d(x, w, stride=pair, symmetry="h").shape == (1, 4, 2, 4)
    symmetry["v"], symmetry["h"] = 4, 0
    torch.testing.assert_close(
        symmetric_conv2d(x, w, symmetry=symmetry), symmetric_conv2d(x, w, symmetry={"v": 4})
    )


def test_the_same_arguments_in_another_number_of_dims_raise() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    for _ in range(2):
        symmetric_conv2d(x, w, symmetry="h")
    with pytest.raises(RuntimeError, match="3-D convolution"):
        symmetric_conv3d(x, w, symmetry="h")


def test_pins_switches_and_threads_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SymmetricConv2d(16, 32, 3, padding=1, symmetry="h")
    x = torch.randn(1, 16, 20, 20, requires_grad=True)
    chosen: list[tuple[str, str]] = []
    bind = symconv_fast.dispatch.bind

    def recorded(problem: object, op: str, activation: str | None) -> object:
        chosen.append((op, symconv_fast.dispatch.choose(problem, op).algorithm))
        return bind(problem, op, activation)

    monkeypatch.setattr(symconv_fast.dispatch, "bind", recorded)
    before = torch.get_num_threads()
    try:
        for algorithm in ("fold", "expand", "fold"):
            with symconv_fast.backend("cpu", algorithm):
                layer(x)
                y = native(lambda: layer(x), monkeypatch)
                y.sum().backward()
        assert chosen == [(op, a) for a in ("fold", "expand") for op in ("fprop", "dgrad", "wgrad")]
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            with symconv_fast.backend("cpu", "winograd"):
                layer(x)
        assert len(chosen) == 6 + 2
        with symconv_fast.backend("cpu", "winograd"):
            y = native(lambda: layer(x), monkeypatch)
            y.sum().backward(retain_graph=True)
            monkeypatch.setattr(symconv_fast, "allow_winograd", False)
            with pytest.raises(RuntimeError, match="allow_winograd is False"):
                y.sum().backward()  # chosen anew, since the switch came after the forward pass
    finally:
        torch.set_num_threads(before)


def test_a_choice_by_switches_that_changed_meanwhile_is_not_kept(request: pytest.FixtureRequest) -> None:
    def forgotten(op: str, *arguments: object) -> object:
        calls.append(op)
        found = ops.plan(op, *arguments)
        if len(calls) == 1:
            other = threading.Thread(target=ops.forget_plans)
            other.start()
            other.join()
        return found

    calls: list[str] = []
    connect(request, forgotten)
    layer, x = tied(), torch.randn(1, 2, 5, 5)
    for _ in range(3):
        layer(x)
    assert calls == ["fprop"] * 2


def test_autograd_sees_a_node_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = tied(), torch.randn(1, 2, 5, 5, requires_grad=True)
    layer(x)
    y = native(lambda: layer(x), monkeypatch)
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    y.sum().backward()
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    y = layer(x)
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y = native(lambda: layer(x), monkeypatch)
    assert [t.shape for t in packed] == [x.shape, layer.weight.shape]
    y.sum().backward()
    x.grad = None
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, torch.autograd.grad(layer(x).sum(), x)[0])
    with torch.autograd.detect_anomaly(check_nan=True), warnings.catch_warnings():
        layer(x).sum().backward()
    with torch.inference_mode():
        z = torch.randn(1, 2, 5, 5)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        layer(z)


class Special(torch.Tensor):
    """A subclass, which may want to see the operator."""


def test_what_others_listen_for_goes_to_the_operators() -> None:
    layer = tied()
    x, spec = torch.randn(1, 2, 5, 5), (2, False, layer.stride, layer.padding, layer.dilation, 1, layer.ties)
    layer(x)

    def hit(x: Tensor) -> bool:
        return eager.recall(x, layer.weight, layer.bias, *spec) is not None

    assert hit(x)
    for special in (torch._neg_view(x), x.to("meta"), Special(x), x.double(), x[:, :, 1:]):
        assert not hit(special)
    with Recorded():
        assert not hit(x)
    with torch.profiler.profile():
        assert not hit(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert hit(x)
        assert layer(x).dtype == torch.bfloat16
    assert not torch.vmap(lambda t: t.sum() * 0 + hit(t))(x[None]).any()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        assert not hit(dual)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            layer(dual)
    assert hit(x)


def test_gradients_that_others_listen_for_go_to_the_operators() -> None:
    layer, x = tied(), torch.randn(1, 2, 5, 5, requires_grad=True)
    layer(x)
    right = torch.autograd.grad(layer(x).sum(), [x, layer.weight])
    y = layer(x)
    with Recorded() as seen:
        found = torch.autograd.grad(y.sum(), [x, layer.weight])
    assert seen.names == ["dgrad", "wgrad"]
    assert all(map(torch.equal, found, right))


def test_threads_and_nodes_that_die_elsewhere() -> None:
    layer, x = tied(), torch.randn(2, 2, 7, 7, requires_grad=True)
    right = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
    graphs, wrong = [layer(x) for _ in range(8)], []

    def work(i: int) -> None:
        for k in range(50):
            if k % 10 == i:
                ops.forget_plans()
            y = layer(x)
            if not torch.equal(torch.autograd.grad(y.sum(), layer.weight)[0], right):
                wrong.append(i)
        graphs[i] = None

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


@pytest.mark.parametrize(("device", "asked"), [("meta", 0), ("cpu", 5)])
def test_only_tensors_on_the_cpu_are_looked_up_and_remembered(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: int
) -> None:
    """A first call on a CPU looks for itself three times, in each layer of the package, and is remembered in two."""
    calls = []

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        return lambda *args: (calls.append(function.__name__), function(*args))[1]

    for module, name in ((modules, "recall_layer"), (eager, "recall"), (eager, "remember")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    layer, x = tied().to(device), torch.zeros(2, 2, 6, 5, device=device)
    assert layer(x).shape == (2, 8, 6, 5)
    assert len(calls) == asked, calls
    symmetric_conv2d(x, layer.weight, padding=2, symmetry="hv")
    assert len(calls) == 2 * asked - bool(asked), calls


def test_nothing_grows_without_end() -> None:
    layer = SymmetricConvTranspose2d(2, 4, 3, stride=2, symmetry="h")
    x = torch.randn(1, 2, 5, 5)
    circular = tied(padding_mode="circular")
    for _ in range(3):
        layer(x, output_size=[12, 12]), circular(x)
    gc.collect()
    before = _cpu.remembered()
    for _ in range(10):
        layer(x, output_size=[12, 12]), circular(x)
    assert _cpu.remembered() == before
