"""to_torch: whole models with torch's layers; the same outputs, hooks and modes, and what else leads to a layer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import symconv_fast as sf


class Net(nn.Module):
    """Every kind of layer; one used twice, one in a list that torch knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            sf.SymmetricConv2d(3, 8, 3, padding=1, symmetry={"h": 4, "v": 2}), nn.BatchNorm2d(8)
        )
        self.block = sf.SymmetricConv2d(8, 8, 3, padding=1, groups=2, symmetry="hv", share_bias=True)
        self.again = self.block
        self.up = sf.SymmetricConvTranspose2d(8, 4, 2, 2, symmetry="hv", bias=False)
        self.untied = sf.SymmetricConv2d(4, 4, 1)
        self.stages = [self.stem, self.block]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.untied(self.up(self.again(x)))


def tied(model: nn.Module) -> int:
    return sum("Symmetric" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_computes_the_same_without_ties(inplace: bool) -> None:
    net, x = Net().eval(), torch.randn(2, 3, 6, 6)
    net.stem.train()
    net.block.weight.requires_grad_(False)
    with torch.no_grad():
        expected = net.eval()(x)
    net.stem.train()
    if inplace:
        net.stages = [net.stem]  # what is in no module can only be replaced in a copy
        net.stages.append(lambda x: net.block(x))
    plain = sf.to_torch(net, inplace=inplace)
    assert (plain is net) == inplace
    assert tied(plain) == 0
    assert tied(net) == (0 if inplace else 4)
    assert [type(m).__name__ for m in (plain.block, plain.up, plain.untied)] == [
        "Conv2d",
        "ConvTranspose2d",
        "Conv2d",
    ]
    assert plain.again is plain.block
    assert plain.stem.training
    assert not plain.block.training
    assert not plain.block.weight.requires_grad
    assert plain.block.bias.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), expected)


def test_the_model_itself_is_left_alone() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 6, 6)
    before = net(x)
    plain = sf.to_torch(net)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_by_itself(inplace: bool) -> None:
    layer, x = sf.SymmetricConv1d(3, 8, 3, symmetry="h", dtype=torch.float64), torch.randn(1, 3, 9).double()
    plain = sf.to_torch(layer, inplace=inplace)
    assert type(plain) is nn.Conv1d
    torch.testing.assert_close(plain(x), layer(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_go_along(inplace: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = sf.SymmetricConv2d(3, 8, 3, symmetry="hv")
            self.calls: list[str] = []
            self.conv.register_forward_hook(self.after)
            self.conv.register_forward_pre_hook(self.before, with_kwargs=True)
            self.conv.register_full_backward_hook(self.backward)

        def before(self, module, args, kwargs):
            self.calls.append("before")
            return (2 * args[0],), kwargs

        def after(self, module, args, output):
            self.calls.append(f"after {type(module).__name__}")

        def backward(self, module, grad_input, grad_output):
            self.calls.append("backward")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    net, x = Counting(), torch.randn(1, 3, 5, 5)
    expected = net(x)
    net.calls.clear()
    plain = sf.to_torch(net, inplace=inplace)
    y = plain(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert plain.calls == ["before", "after Conv2d", "backward"]
    assert net.calls == (plain.calls if inplace else []), (
        "hooks that are methods of the model belong to the copy"
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_parameters_that_layers_share_stay_shared_where_the_ties_are_the_same(inplace: bool) -> None:
    a, b, c = (sf.SymmetricConv2d(8, 8, 3, symmetry=s) for s in ("h", "h", "v"))
    b.weight = c.weight = a.weight
    plain = sf.to_torch(nn.Sequential(a, b, c), inplace=inplace)
    assert plain[0].weight is plain[1].weight
    assert plain[0].bias is not plain[1].bias
    assert plain[2].weight is not plain[0].weight
    for conv, layer in zip(plain, (a, b, c)):
        assert torch.equal(conv.weight, layer.expanded_weight())


def test_computed_weights_become_permanent() -> None:
    net = nn.Sequential(sf.SymmetricConv2d(3, 8, 3, symmetry="hv"), sf.SymmetricConv2d(8, 8, 3, symmetry="h"))
    parametrizations.weight_norm(net[0])
    prune.l1_unstructured(net[1], "weight", amount=0.5)
    x = torch.randn(1, 3, 7, 7)
    net(x)
    with torch.no_grad():
        net[1].weight_orig.mul_(3)  # `weight` is that of the last call until the next one
    plain = sf.to_torch(net)
    torch.testing.assert_close(plain(x), net(x))
    assert [type(m) for m in plain] == [nn.Conv2d, nn.Conv2d]
    assert [name for name, _ in plain.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_what_cannot_be_converted_is_refused() -> None:
    class Doubled(sf.SymmetricConv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(2 * input)

    class Known(Doubled):
        def to_conv(self):
            conv = sf.SymmetricConv2d.from_conv(nn.Conv2d(3, 8, 3), None).to_conv()
            conv.weight = nn.Parameter(2 * self.expanded_weight().detach())
            conv.bias = nn.Parameter(self.expanded_bias().detach())
            return conv

    with pytest.raises(TypeError, match=r"Doubled has a forward of its own.*to_conv\(\)"):
        sf.to_torch(nn.Sequential(Doubled(3, 8, 3, symmetry="h")))
    wrapped = sf.SymmetricConv2d(3, 8, 3, symmetry="h")
    wrapped.forward = lambda x, forward=wrapped.forward: 2 * forward(x)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="SymmetricConv2d has a forward of its own"):
        sf.to_torch(nn.Sequential(wrapped))
    net, x = nn.Sequential(Known(3, 8, 3, symmetry="h")), torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(sf.to_torch(net)(x), net(x))
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got OrderedDict"):
        sf.to_torch(net.state_dict())  # type: ignore[type-var]


# --- what else leads to a layer ---------------------------------------------------------------------------------------


class Ordered(nn.Module):
    """Layers that are submodules, and that `forward` takes from elsewhere."""

    def __init__(self, hold: Callable[[nn.Module, nn.Module], Any]) -> None:
        super().__init__()
        self.a = sf.SymmetricConv2d(8, 8, 3, padding=1, symmetry="hv")
        self.b = sf.SymmetricConv2d(8, 8, 3, padding=1, symmetry="h")
        self.order = hold(self.a, self.b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class Slotted:
    __slots__ = "layer"

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


HOLDERS: dict[str, tuple[Callable[[nn.Module, nn.Module], Any], str]] = {
    "tuple": (lambda a, b: (a, b), r"order\[0\], 0\.order\[1\]"),
    "dict": (lambda a, b: {"first": [a]}, r"order\['first'\]\[0\]"),
    "object": (lambda a, b: SimpleNamespace(layer=a), r"order\.layer"),
    "slots": (lambda a, b: Slotted(a), r"order\.layer"),
    "method": (lambda a, b: a.forward, "order"),
    "partial": (lambda a, b: functools.partial(b), "order"),
    "unregistered module": (lambda a, b: [nn.Sequential(a)], r"order\[0\]"),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_in_place_a_layer_that_is_held_elsewhere_is_refused_before_anything_changes(holder: str) -> None:
    hold, path = HOLDERS[holder]
    net = nn.Sequential(Ordered(hold))
    with pytest.raises(ValueError, match=rf"0\.{path} would go on calling it.*to_torch\(model\)"):
        sf.to_torch(net, inplace=True)
    assert tied(net) == 2


@pytest.mark.parametrize("holder", ["tuple", "dict", "object", "slots", "unregistered module"])
def test_a_copy_trains_what_is_held_elsewhere(holder: str) -> None:
    plain = sf.to_torch(Ordered(HOLDERS[holder][0]))
    held = plain.order
    first = {
        "tuple": lambda: held[0],
        "dict": lambda: held["first"][0],
        "object": lambda: held.layer,
        "slots": lambda: held.layer,
        "unregistered module": lambda: held[0][0],
    }[holder]()
    assert first is plain.a
    assert type(first) is nn.Conv2d


FUNCTIONS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "closure": lambda a, b: lambda x: b(x),
    "default": lambda a, b: lambda x, layer=b: layer(x),
    "wrapped": lambda a, b: functools.wraps(lambda x: b(x))(lambda x: x),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_layer_that_a_function_holds_is_refused_in_both_forms(function: str) -> None:
    net = Ordered(FUNCTIONS[function])
    with pytest.raises(ValueError, match=r"order.* would go on calling it"):
        sf.to_torch(net, inplace=True)
    with pytest.raises(TypeError, match=r"copying Ordered leaves layers tied, at order.*; let"):
        sf.to_torch(net)


def test_modules_held_by_others_and_functions_of_the_model_are_no_obstacle() -> None:
    net = Net()
    net.stages = [net.stem]
    net.scale = lambda x: net.block(x)
    net.itself = [net]
    assert tied(sf.to_torch(net)) == 0
    assert tied(sf.to_torch(net, inplace=True)) == 0


def test_any_name_can_hold_a_layer() -> None:
    net = Net()
    net.stages = [net.stem]
    net.my_hooks = [net.block]
    with pytest.raises(ValueError, match=r"my_hooks\[0\]"):
        sf.to_torch(net, inplace=True)


def test_what_is_in_no_submodule_is_converted_in_a_copy() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    net.teachers = [nn.Sequential(sf.SymmetricConv2d(3, 8, 3, symmetry="h"))]
    assert type(sf.to_torch(net).teachers[0][0]) is nn.Conv2d


def test_a_compiled_layer_is_refused_in_place_and_trains_as_a_copy() -> None:
    net, x = nn.Sequential(torch.compile(Net().block, backend="eager")), torch.randn(1, 8, 6, 6)
    with pytest.raises(ValueError, match=r"0 \(of torch\.compile\) would go on"):
        sf.to_torch(net, inplace=True)
    plain = sf.to_torch(net)
    torch.testing.assert_close(plain(x), net(x))
    plain(x).sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    whole = torch.compile(nn.Sequential(Net().block), backend="eager")
    y = whole(x)
    changed = sf.to_torch(whole, inplace=True)
    torch.testing.assert_close(changed(x), y)
    changed(x).sum().backward()
    assert all(parameter.grad is not None for parameter in changed.parameters())


def test_a_copy_that_stays_tied_is_refused() -> None:
    class Forgetful(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Forgetful:
            return Forgetful(*(copy.deepcopy(child) for child in self))

    net = nn.Sequential(Forgetful(sf.SymmetricConv2d(3, 8, 3, symmetry="h")))
    with pytest.raises(TypeError, match=r"leaves layers tied, at 0\.0;.*memo.*inplace=True"):
        sf.to_torch(net)
    assert tied(sf.to_torch(net, inplace=True)) == 0
