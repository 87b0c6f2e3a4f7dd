# Calls that are remembered in native code: the same bits, and the arguments of layers, which native code reads.

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_eager import Recorded, _cpu, native, nothing_remembered
from torch import Tensor

import symconv_fast
from symconv_fast import SymmetricConv2d, ops

__all__ = ["nothing_remembered"]  # a fixture

# --- the same bits, whoever remembers ---------------------------------------------------------------------------------


ALGORITHMS = {"plain": None, "stem": "direct_fold", "fold": "fold", "expand": "expand"}


def everything(layer: SymmetricConv2d, x: Tensor, gy: Tensor) -> list[Tensor]:
    """Output and all gradients that are wanted."""
    y, wanted = layer(x), [t for t in (x, *layer.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, gy)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_call_gives_the_bits_of_the_first(name: str, last: bool) -> None:
    """The bias's gradient too, which some kernels sum in a pass of their own and others with the weight's."""
    fmt = torch.channels_last if last else torch.contiguous_format
    layer = SymmetricConv2d(3, 32, 3, padding=1, symmetry="hv").to(memory_format=fmt)
    x = torch.randn(2, 3, 23, 21).to(memory_format=fmt).requires_grad_(name != "stem")
    gy = torch.randn(2, 32, 23, 21).to(memory_format=fmt)
    with symconv_fast.backend("cpu" if ALGORITHMS[name] else None, ALGORITHMS[name]):
        first, *others = (everything(layer, x, gy) for _ in range(3))
        for _ in range(2):
            ops.forget_plans()
            others.append(everything(layer, x, gy))
        with Recorded():
            others.append(everything(layer, x, gy))
        compiled = torch.compile(layer, backend="aot_eager")
        others += [everything(compiled, x, gy) for _ in range(2)]
    for other in others:
        assert all(map(torch.equal, first, other))


def test_operators_called_by_themselves_are_remembered() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    static = ((3, 2), (1, 1), (0, 0), (1, 1), (0, 0), False, 1, False)
    y = ops.fprop(x, w, None, *static)
    before = _cpu.remembered()
    assert torch.equal(ops.fprop(x, w, None, *static), y)
    assert _cpu.remembered() == before
    ops.fprop(x, w, None, *static[:-1], True)
    assert _cpu.remembered() == before + 1


# --- layers, whose arguments native code reads -----------------------------------------------------------------------


def remembered_layer(**more: object) -> tuple[SymmetricConv2d, Tensor, Tensor]:
    """A layer that was called before, its input and its output."""
    layer = SymmetricConv2d(3, 8, 3, padding=1, symmetry="hv", **more)
    x = torch.randn(2, 3, 6, 5)
    layer(x)
    return layer, x, layer(x).detach()


def test_a_layer_is_recalled_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, y = remembered_layer()
    monkeypatch.setattr(SymmetricConv2d, "_conv_forward", None)
    assert torch.equal(layer(x), y)


def test_a_recalled_layer_shares_what_autocast_made_of_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cast of weight and bias for as long as autocast is on: the graph shows it."""
    layer, x, _ = remembered_layer()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        calls = [native(lambda: layer(x), monkeypatch) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        calls.append(native(lambda: layer(x), monkeypatch))
    assert [y.dtype for y in calls] == [torch.bfloat16] * 3
    first, again, later = ([node for node, _ in y.grad_fn.next_functions[1:]] for y in calls)
    assert [node.name() for node in first] == ["ToCopyBackward0"] * 2
    for one, other, anew in zip(first, again, later):
        assert one is other
        assert one is not anew


@pytest.mark.parametrize(
    ("name", "value"), [("padding", (0, 0)), ("stride", (2, 2)), ("dilation", (2, 1)), ("bias", None)]
)
def test_a_layer_that_was_changed_is_not_the_one_that_was_remembered(name: str, value: object) -> None:
    layer, x, _ = remembered_layer()
    setattr(layer, name, value)
    bias = None if layer.bias is None else layer.expanded_bias()
    args = (layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.expanded_weight(), bias, *args))


def test_other_padding_modes_go_past() -> None:
    layer, x, _ = remembered_layer()
    layer.padding_mode = "circular"
    padded = F.pad(x, (1, 1, 1, 1), mode="circular")
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.expanded_weight(), layer.bias))


def test_a_subclass_keeps_its_own_way() -> None:
    class Doubled(SymmetricConv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return 2 * super()._conv_forward(input, weight, bias)

    layer, x, y = remembered_layer()
    other = Doubled(3, 8, 3, padding=1, symmetry="hv")
    other.load_state_dict(layer.state_dict())
    for _ in range(3):
        torch.testing.assert_close(other(x), 2 * y)


def test_a_parametrised_weight_is_computed_each_time() -> None:
    class Half(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    layer, x, y = remembered_layer(bias=False)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Half())
    for _ in range(2):
        torch.testing.assert_close(layer(x), y / 2)
    state = {"parametrizations.weight.original": torch.zeros_like(layer.weight)}
    assert torch.func.functional_call(layer, state, (x,)).abs().max() == 0


def test_hooks_of_a_layer_run() -> None:
    layer, x, y = remembered_layer()
    layer.register_forward_hook(lambda module, args, output: -output)
    assert torch.equal(layer(x), -y)


@pytest.mark.parametrize("wrong", [(), (1,), (1, 2, 3)])
def test_recall_layer_checks_its_arguments(wrong: tuple[object, ...]) -> None:
    with pytest.raises((RuntimeError, AttributeError)):
        _cpu.recall_layer(*wrong)
    with pytest.raises(AttributeError):
        _cpu.recall_layer(1, torch.ones(1))
