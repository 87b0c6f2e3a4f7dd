"""Every torch.library schema, fake, autograd formula, vmap rule and FLOP count. The only file that has them.

Convolution is bilinear, so three functional operators close under differentiation:
    fprop(x, w) = y        dgrad(gy, w) = gx        wgrad(gy, x) = gw
The derivative of each is made of the other two, and every order of derivative is there without another kernel.
fprop_activated is fprop with an activation in the same kernel where a backend has that; where a gradient is wanted it
is two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils.flop_counter import register_flop_formula

from . import activation as activations
from . import dispatch, native, settings, trial
from .checks import ShapeError, check_tensors
from .native import suggests_channels_last
from .problem import Problem, allocate, macs, output_size

_GEOMETRY = (
    "int[] ties, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt[] output_padding, "
    "bool transposed, int groups, bool channels_last"
)
_LIBRARY = torch.library.Library("symconv_fast", "DEF")
_LIBRARY.define(f"fprop(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(
    f"fprop_activated(Tensor input, Tensor weight, Tensor? bias, str activation, {_GEOMETRY}) -> Tensor"
)
_LIBRARY.define(f"dgrad(Tensor grad_output, Tensor weight, SymInt[] input_size, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(f"wgrad(Tensor grad_output, Tensor input, SymInt[] weight_size, {_GEOMETRY}) -> Tensor")

fprop: Any = torch.ops.symconv_fast.fprop.default
fprop_activated: Any = torch.ops.symconv_fast.fprop_activated.default
dgrad: Any = torch.ops.symconv_fast.dgrad.default
wgrad: Any = torch.ops.symconv_fast.wgrad.default

# --- shapes: one check for fake and real -------------------------------------------------------------------------


def _sizes(
    op: str, first: Tensor, second: Tensor, third: Any, geometry: Sequence[Any]
) -> tuple[Any, Any, list[int]]:
    """(input_size, weight_size, output_size) of the layer from the arguments of `op`; checks tensors and shapes."""
    input_size = first.shape if op == "fprop" else third if op == "dgrad" else second.shape
    weight_size = third if op == "wgrad" else second.shape
    out = output_size(input_size, weight_size, *geometry)
    check_tensors(first, second, third if op == "fprop" else None, out[1])
    if op != "fprop" and list(first.shape) != out:
        raise ShapeError(f"expected grad_output of shape {out}, got {list(first.shape)}")
    return input_size, weight_size, out


def fake_fprop(input: Tensor, weight: Tensor, bias: Tensor | None, *static: Any) -> Tensor:
    """An empty output of `fprop`, in its shape and strides."""
    return allocate(_sizes("fprop", input, weight, bias, static[:7])[2], input, static[7])


def fake_fprop_activated(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *static: Any
) -> Tensor:
    """An empty output of `fprop_activated`."""
    activations.check(activation)
    return fake_fprop(input, weight, bias, *static)


def _fake_dgrad(grad_output: Tensor, weight: Tensor, input_size: Any, *static: Any) -> Tensor:
    return allocate(_sizes("dgrad", grad_output, weight, input_size, static[:7])[0], grad_output, static[7])


def _fake_wgrad(grad_output: Tensor, input: Tensor, weight_size: Any, *static: Any) -> Tensor:
    return allocate(_sizes("wgrad", grad_output, input, weight_size, static[:7])[1], grad_output, static[7])


# --- real kernels: through dispatch, with the choice remembered ----------------------------------------------------

_plans: dict[Any, Callable[..., Tensor]] = {}
_MAX_PLANS = 8192


def forget_plans() -> None:
    """Choose anew from now on: after a switch was changed, or, in tests, the backends."""
    _plans.clear()
    if native.module is not None:
        native.module.forget()


settings.on_change(forget_plans)


def plan(
    op: str,
    first: Tensor,
    second: Tensor,
    third: Any,
    static: tuple[Any, ...],
    activation: str | None = None,
) -> Callable[..., Tensor]:
    """The function for these arguments: checked, chosen and bound once for each combination."""
    last = suggests_channels_last(first)
    extra = (third.shape, third.dtype, third.device) if isinstance(third, Tensor) else third
    key = (
        op, first.shape, second.shape, extra, first.dtype, second.dtype, first.device, second.device, static, last,
        dispatch.pinned(), torch.get_num_threads(), settings.version(), activation,
        first.is_cuda and dispatch.rounding("cuda"),
    )  # fmt: skip
    found = _plans.get(key)
    if found is None:
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        input_size, weight_size, _ = _sizes(op, first, second, third, static[:7])
        problem = Problem.create((input_size, weight_size), static, last, first.dtype, first.device.type)
        found = _plans[key] = dispatch.bind(problem, op, activation)
    return found


def _hashable(static: Sequence[Any]) -> tuple[Any, ...]:
    """The dispatcher gives lists."""
    ties, stride, padding, dilation, output_padding, *scalars = static
    return (tuple(ties), tuple(stride), tuple(padding), tuple(dilation), tuple(output_padding), *scalars)


def _real_fprop(input: Tensor, weight: Tensor, bias: Tensor | None, *static: Any) -> Tensor:
    return plan("fprop", input, weight, bias, _hashable(static))(input, weight, bias)


def _real_fprop_activated(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *static: Any
) -> Tensor:
    activations.check(activation)
    return plan("fprop", input, weight, bias, _hashable(static), activation)(input, weight, bias)


def _real_dgrad(grad_output: Tensor, weight: Tensor, input_size: Any, *static: Any) -> Tensor:
    run = plan("dgrad", grad_output, weight, tuple(input_size), _hashable(static))
    return run(grad_output, weight)


def _real_wgrad(grad_output: Tensor, input: Tensor, weight_size: Any, *static: Any) -> Tensor:
    run = plan("wgrad", grad_output, input, tuple(weight_size), _hashable(static))
    return run(grad_output, input)


# --- derivatives ---------------------------------------------------------------------------------------------------
# Not torch.library.register_autograd: that cannot be reached under torch.func.grad, and forward-mode AD over it
# silently gives zeros. ctx holds no tensors but those of save_for_backward, only sizes and flags.


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


class SymconvFprop(_SingleLevelFunction):
    """y = fprop(x, w, b): gx = dgrad(gy, w), gw = wgrad(gy, x), gb = sum of gy over all but the channels."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, input: Tensor, weight: Tensor, bias: Any, *static: Any) -> Tensor:
        """The output; saves what the wanted gradients need."""
        _, need_input, need_weight = ctx.needs_input_grad[:3]
        ctx.save_for_backward(input if need_weight else None, weight if need_input else None)
        ctx.sizes, ctx.static = (input.shape, weight.shape), static
        ctx.weight_last = suggests_channels_last(weight)
        ctx.set_materialize_grads(False)
        return _record(fprop, keyset, input, weight, bias, static)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the tensor arguments, those that are wanted."""
        _, need_input, need_weight, need_bias = ctx.needs_input_grad[:4]
        grads: list[Any] = [None, None, None]
        if grad is not None:
            input, weight = ctx.saved_tensors
            geometry = ctx.static[:7]
            if need_input and _wanted(ctx, 0):
                grads[0] = dgrad(grad, weight, ctx.sizes[0], *ctx.static)
            if need_weight and _wanted(ctx, 1):
                grads[1] = wgrad(grad, input, ctx.sizes[1], *geometry, ctx.weight_last)
            if need_bias and _wanted(ctx, 2):
                grads[2] = grad.sum([d for d in range(grad.dim()) if d != 1])
        return (None, *grads, *[None] * 8)


class SymconvDgrad(_SingleLevelFunction):
    """gx = dgrad(gy, w): for the upstream gradient g, ggy = fprop(g, w) and gw = wgrad(gy, g)."""

    @staticmethod
    def forward(
        ctx: Any, keyset: Any, grad_output: Tensor, weight: Tensor, size: Any, *static: Any
    ) -> Tensor:
        """The gradient; saves what its own wanted gradients need."""
        _, need_grad, need_weight = ctx.needs_input_grad[:3]
        ctx.save_for_backward(grad_output if need_weight else None, weight if need_grad else None)
        ctx.weight_size, ctx.static = weight.shape, static
        ctx.weight_last = suggests_channels_last(weight)
        ctx.set_materialize_grads(False)
        return _record(dgrad, keyset, grad_output, weight, size, static)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the tensor arguments, those that are wanted."""
        _, need_grad, need_weight = ctx.needs_input_grad[:3]
        grads: list[Any] = [None, None]
        if grad is not None:
            grad_output, weight = ctx.saved_tensors
            geometry = ctx.static[:7]
            if need_grad:
                grads[0] = fprop(
                    grad, weight, None, *geometry, suggests_channels_last(grad) or ctx.weight_last
                )
            if need_weight:
                grads[1] = wgrad(grad_output, grad, ctx.weight_size, *geometry, ctx.weight_last)
        return (None, *grads, *[None] * 9)


class SymconvWgrad(_SingleLevelFunction):
    """gw = wgrad(gy, x): for the upstream gradient g, ggy = fprop(x, g) and gx = dgrad(gy, g)."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, grad_output: Tensor, input: Tensor, size: Any, *static: Any) -> Tensor:
        """The gradient; saves what its own wanted gradients need."""
        _, need_grad, need_input = ctx.needs_input_grad[:3]
        ctx.save_for_backward(grad_output if need_input else None, input if need_grad else None)
        ctx.input_size, ctx.static = input.shape, static
        ctx.input_last = suggests_channels_last(input)
        ctx.set_materialize_grads(False)
        return _record(wgrad, keyset, grad_output, input, size, static)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the tensor arguments, those that are wanted."""
        _, need_grad, need_input = ctx.needs_input_grad[:3]
        grads: list[Any] = [None, None]
        if grad is not None:
            grad_output, input = ctx.saved_tensors
            geometry = ctx.static[:7]
            last = ctx.input_last or suggests_channels_last(grad)
            if need_grad:
                grads[0] = fprop(input, grad, None, *geometry, last)
            if need_input:
                grads[1] = dgrad(grad_output, grad, ctx.input_size, *geometry, last)
        return (None, *grads, *[None] * 9)


def _below(op: Any, keyset: Any, first: Tensor, second: Tensor, third: Any, static: Sequence[Any]) -> Tensor:
    """Call `op` again beneath autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, first, second, third, *static)


def _record(op: Any, keyset: Any, first: Tensor, second: Tensor, third: Any, static: Sequence[Any]) -> Tensor:
    """`_below` from the forward of an autograd.Function, which has turned both modes of differentiation off."""
    if not torch._C._are_functorch_transforms_active():
        return _below(op, keyset, first, second, third, static)
    # Beneath this level of the transforms there may be another one that differentiates.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        return _below(op, keyset, first, second, third, static)


def _autograd_kernel(op: Any, function: Any) -> Callable[..., Tensor]:
    """The Autograd kernel of `op`: refuses forward mode, records `function` only where a gradient is wanted."""

    def kernel(keyset: Any, first: Tensor, second: Tensor, third: Any, *static: Any) -> Tensor:
        if forward_ad._current_level >= 0:
            _refuse_tangents(first, second, third)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(first, second, third)):
            return _below(op, keyset, first, second, third, static)
        if not torch._C._are_functorch_transforms_active():
            return function.apply(keyset, first, second, third, *static)
        # Under torch.func.grad this kernel already runs at one level of the transforms, where an autograd.Function
        # of a single level is what is needed; torch wants to be told that this is so.
        with enable_single_level_autograd_function():
            return function.apply(keyset, first, second, third, *static)

    return kernel


def _activated_autograd_kernel(
    keyset: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *static: Any
) -> Tensor:
    """Two operations with derivatives of their own, or the one operator where none is wanted."""
    grad = torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight, bias)
    if grad or forward_ad._current_level >= 0:
        activations.check(activation)
        return activations.activate(fprop(input, weight, bias, *static), activation)
    return _below(fprop_activated, keyset, input, weight, bias, (activation, *static))


def _refuse_tangents(*tensors: Any) -> None:
    """Forward mode over operators in Python would give zeros without a word."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "symconv_fast does not implement forward-mode automatic differentiation (torch.func.jvp, jacfwd, "
                "dual tensors); use reverse mode: torch.autograd.grad, torch.func.vjp or jacrev"
            )


# --- torch.vmap ----------------------------------------------------------------------------------------------------


def _vmap_rule(op: Any) -> Callable[..., tuple[Tensor, int]]:
    """Batch over the first tensor alone folds into N (one call); any other batch is a loop of calls."""

    def rule(
        info: Any, in_dims: Sequence[Any], first: Tensor, second: Tensor, third: Any, *static: Any
    ) -> Any:
        with trial.paused():
            return called(info, in_dims, first, second, third, *static)

    def called(
        info: Any, in_dims: Sequence[Any], first: Tensor, second: Tensor, third: Any, *static: Any
    ) -> Any:
        tensors, dims = (first, second, third), in_dims[:3]
        if op is not wgrad and dims[0] is not None and dims[1] is None and not isinstance(dims[2], int):
            folded = first.movedim(dims[0], 0).flatten(0, 1)
            if op is dgrad:
                third = [third[0] * info.batch_size, *third[1:]]
            return op(folded, second, third, *static).unflatten(0, (info.batch_size, -1)), 0
        results = []
        for i in range(info.batch_size):
            args = (t.select(d, i) if isinstance(d, int) else t for t, d in zip(tensors, dims))
            results.append(op(*args, *static))
        return torch.stack(results), 0

    return rule


# --- FLOP counts for torch.utils.flop_counter -----------------------------------------------------------------------


def _flops(input_size: Any, weight_size: Any, static: Sequence[Any]) -> int:
    """2 x the folded multiply-accumulates: what the tied layer needs, whichever backend runs it."""
    out = output_size(input_size, weight_size, *static[:7])
    return 2 * macs(input_size, weight_size, out[2:], static[5])


def _flops_fprop(input: Any, weight: Any, bias: Any, *static: Any, **_: Any) -> int:
    return _flops(input, weight, static)


def _flops_fprop_activated(
    input: Any, weight: Any, bias: Any, activation: str, *static: Any, **_: Any
) -> int:
    return _flops(input, weight, static)


def _flops_dgrad(grad_output: Any, weight: Any, input_size: Any, *static: Any, **_: Any) -> int:
    return _flops(input_size, weight, static)


def _flops_wgrad(grad_output: Any, input: Any, weight_size: Any, *static: Any, **_: Any) -> int:
    return _flops(input, weight_size, static)


def _register() -> None:
    rows = (
        (fprop, _real_fprop, fake_fprop, _autograd_kernel(fprop, SymconvFprop), _flops_fprop),
        (
            fprop_activated, _real_fprop_activated, fake_fprop_activated, _activated_autograd_kernel,
            _flops_fprop_activated,
        ),
        (dgrad, _real_dgrad, _fake_dgrad, _autograd_kernel(dgrad, SymconvDgrad), _flops_dgrad),
        (wgrad, _real_wgrad, _fake_wgrad, _autograd_kernel(wgrad, SymconvWgrad), _flops_wgrad),
    )  # fmt: skip
    for op, real, fake, differentiable, flops in rows:
        qualified = op._schema.name
        name = qualified.split("::")[1]
        # Any device that torch has: the choice of backend, the reference included, is made inside.
        _LIBRARY.impl(name, real, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, differentiable, "Autograd", with_keyset=True)
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        torch.library.register_vmap(qualified, _vmap_rule(op), lib=_LIBRARY)
        register_flop_formula(getattr(torch.ops.symconv_fast, name))(flops)


_register()
