"""Schemas and derivatives of the operators where no native module registers them: operators.inc, read by Python.

Not torch.library.register_autograd: that cannot be reached under torch.func.grad, and forward-mode AD over it silently
gives zeros. ctx holds no tensors but those of save_for_backward, only names, sizes and flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import activation as activations
from .problem import suggests_channels_last

_TEXT = (Path(__file__).parent / "operators.inc").read_text()


def _rows(kind: str, pattern: str) -> list[Any]:
    return re.findall(rf"^{kind}\({pattern}\)$", _TEXT, re.MULTILINE)


_FIVE_NAMES = ", ".join([r"(\w+)"] * 5)
DERIVATIVES = [
    (of, ("first", "second").index(argument), result, left, right)
    for of, argument, result, left, right in _rows("DERIVATIVE", _FIVE_NAMES)
]
"""(of, which tensor, is, of, and); see operators.inc."""


def define(library: torch.library.Library) -> None:
    """Give a library the operators' schemas."""
    (geometry,) = _rows("GEOMETRY", '"(.*)"')
    for name, arguments, results in _rows("OPERATOR", r'(\w+), "(.*)", "(.*)"'):
        library.define(f"{name}({arguments}, {geometry}) -> {results}")


def kernel(op: Any) -> Callable[..., Any]:
    """The kernel of an operator for the dispatcher's key Autograd."""
    return _activated if _name(op) == "fprop_activated" else _differentiable(op)


def _name(op: Any) -> str:
    return str(op._schema.name.split("::")[1])


def _operator(name: str) -> Any:
    return getattr(torch.ops.symconv_fast, name).default


def _wanted(ctx: Any, place: int) -> bool:
    """Does the running backward pass ask for the gradient of the tensor argument at `place`?

    needs_input_grad says what was wanted when the graph was built; torch.autograd.grad may ask for less.
    """
    try:
        node = ctx.next_functions[place][0]
        return node is not None and bool(torch._C._will_engine_execute_node(node))
    except (
        AttributeError,
        IndexError,
        RuntimeError,
    ):  # a leaf that torch.autograd.grad asks for, or no engine
        return True


class Symconv(_SingleLevelFunction):
    """An operator, whose gradients are those of the table."""

    @staticmethod
    def forward(
        ctx: Any, op: Any, keyset: Any, first: Tensor, second: Tensor, third: Any, *static: Any
    ) -> Any:
        """The result; saves what the wanted gradients need."""
        need_first, need_second = ctx.needs_input_grad[2:4]
        ctx.save_for_backward(first if need_second else None, second if need_first else None)
        ctx.name, ctx.static = _name(op), static
        of_weight = ctx.name.startswith("wgrad")
        sizes = first.shape if ctx.name == "fprop" else second.shape if of_weight else third
        ctx.sizes = {"dgrad": sizes, "wgrad": third if of_weight else second.shape}
        ctx.second_last = suggests_channels_last(second)
        ctx.set_materialize_grads(False)
        return _record(op, keyset, first, second, third, static)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, bias_grad: Tensor | None = None) -> tuple[Any, ...]:
        """Gradients of the tensor arguments, those that are wanted."""
        grads: list[Any] = [None, None, None]
        if grad is None and bias_grad is not None:
            grad = bias_grad.new_zeros(ctx.sizes["wgrad"])
        if grad is not None:
            saved = dict(zip(("first", "second"), ctx.saved_tensors), grad=grad)  # which may be unpacked once
            wanted = [need and _wanted(ctx, i) for i, need in enumerate(ctx.needs_input_grad[2:5])]
            for argument, result, left, right in _derivatives(ctx.name):
                if wanted[argument]:
                    both = (
                        result == "wgrad" and ctx.name == "fprop" and wanted[2] and grad.device.type == "cpu"
                    )
                    third = bias_grad if result == "fprop" else ctx.sizes[result]
                    found = _operator("wgrad_bias" if both else result)(
                        saved[left], saved[right], third, *ctx.static[:7], _last(ctx, result, grad)
                    )
                    grads[argument], grads[2] = found if both else (found, grads[2])
            if wanted[2] and grads[2] is None:
                grads[2] = grad.sum([d for d in range(grad.dim()) if d != 1])
        return (None, None, *grads, *[None] * 8)


_recorded: Any = Symconv  # torch's stubs leave `apply` out


def _derivatives(name: str) -> list[tuple[int, str, str, str]]:
    return [tuple(row) for of, *row in DERIVATIVES if of == name]


def _last(ctx: Any, result: str, grad: Tensor) -> bool:
    """Layout of a gradient as the layer would give it: by its input and its weight, one of which is `grad`."""
    if result == "wgrad":
        return bool(ctx.second_last)
    return bool(ctx.static[7] if ctx.name == "fprop" else ctx.second_last or suggests_channels_last(grad))


def _below(op: Any, keyset: Any, first: Tensor, second: Tensor, third: Any, static: Sequence[Any]) -> Any:
    """Call `op` again beneath autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, first, second, third, *static)


def _record(op: Any, keyset: Any, first: Tensor, second: Tensor, third: Any, static: Sequence[Any]) -> Any:
    """`_below` from the forward of an autograd.Function, which has turned both modes of differentiation off."""
    if not torch._C._are_functorch_transforms_active():
        return _below(op, keyset, first, second, third, static)
    # Beneath this level of the transforms there may be another one that differentiates.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        return _below(op, keyset, first, second, third, static)


def _differentiable(op: Any) -> Callable[..., Any]:
    """Refuses forward mode, and records a node only where a gradient is wanted."""

    def kernel(keyset: Any, first: Tensor, second: Tensor, third: Any, *static: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(first, second, third)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(first, second, third)):
            return _below(op, keyset, first, second, third, static)
        if not torch._C._are_functorch_transforms_active():
            return _recorded.apply(op, keyset, first, second, third, *static)
        # Under torch.func.grad this kernel already runs at one level of the transforms, where an autograd.Function
        # of a single level is what is needed; torch wants to be told that this is so.
        with enable_single_level_autograd_function():
            return _recorded.apply(op, keyset, first, second, third, *static)

    return kernel


def _activated(
    keyset: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *static: Any
) -> Tensor:
    """Two operations with derivatives of their own, or the one operator where none is wanted."""
    grad = torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight, bias)
    if grad or forward_ad._current_level >= 0:
        activations.check(activation)
        return activations.activate(_operator("fprop")(input, weight, bias, *static), activation)
    below: Tensor = _below(_operator("fprop_activated"), keyset, input, weight, bias, (activation, *static))
    return below


def _refuse_tangents(*tensors: Any) -> None:
    """Forward mode over operators in Python would give zeros without a word."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "symconv_fast does not implement forward-mode automatic differentiation (torch.func.jvp, jacfwd, "
                "dual tensors); use reverse mode: torch.autograd.grad, torch.func.vjp or jacrev"
            )
