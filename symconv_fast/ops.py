"""The operators: their fakes, vmap rules, FLOP counts, and the choice of who runs them.

Convolution is bilinear, so three functional operators close under differentiation:
    fprop(x, w) = y        dgrad(gy, w) = gx        wgrad(gy, x) = gw
The derivative of each is made of the other two, and every order of derivative is there without another kernel.
wgrad_bias is wgrad with the gradient of the bias, in one pass over gy where a backend has that. fprop_activated is
fprop with an activation in the same kernel where a backend has that; where a gradient is wanted it is two operations.

operators.inc has the schemas and the derivatives. The native module registers both, with kernels for the CPU that
remember what `plan` chose; where it is missing, derivatives.py registers them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import activation as activations
from . import dispatch, native, settings, trial
from .checks import ShapeError, check_tensors
from .native import suggests_channels_last
from .problem import Problem, allocate, macs, output_size

_LIBRARY = torch.library.Library("symconv_fast", "FRAGMENT" if native.module else "DEF")
if native.module is None:
    from . import derivatives

    derivatives.define(_LIBRARY)

fprop: Any = torch.ops.symconv_fast.fprop.default
fprop_activated: Any = torch.ops.symconv_fast.fprop_activated.default
dgrad: Any = torch.ops.symconv_fast.dgrad.default
wgrad: Any = torch.ops.symconv_fast.wgrad.default
wgrad_bias: Any = torch.ops.symconv_fast.wgrad_bias.default

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


def _stay_whole_in_inductor(op: Any) -> None:
    """Inductor calls `op`, though export.py gives it a decomposition, without complaint.

    Where the environment has `CI`, inductor refuses to compile an operator that it does not list and that has an
    entry in torch's table of decompositions. An operator that was made a fallback is listed.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and op not in lowering.lowerings:
        constraint = lowering.tag_to_layout_constraint(lowering.get_layout_constraint_tag(op))
        lowering.make_fallback(op, layout_constraint=constraint, warn=False)


def fake_fprop(input: Tensor, weight: Tensor, bias: Tensor | None, *static: Any) -> Tensor:
    """An empty output of `fprop`, in its shape and strides."""
    _stay_whole_in_inductor(fprop)
    return allocate(_sizes("fprop", input, weight, bias, static[:7])[2], input, static[7])


def fake_fprop_activated(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *static: Any
) -> Tensor:
    """An empty output of `fprop_activated`."""
    activations.check(activation)
    _stay_whole_in_inductor(fprop_activated)
    return fake_fprop(input, weight, bias, *static)


def _fake_dgrad(grad_output: Tensor, weight: Tensor, input_size: Any, *static: Any) -> Tensor:
    return allocate(_sizes("dgrad", grad_output, weight, input_size, static[:7])[0], grad_output, static[7])


def _fake_wgrad(grad_output: Tensor, input: Tensor, weight_size: Any, *static: Any) -> Tensor:
    return allocate(_sizes("wgrad", grad_output, input, weight_size, static[:7])[1], grad_output, static[7])


def _fake_wgrad_bias(
    grad_output: Tensor, input: Tensor, weight_size: Any, *static: Any
) -> tuple[Tensor, Tensor]:
    weight = _fake_wgrad(grad_output, input, weight_size, *static)
    return weight, grad_output.new_empty(grad_output.shape[1])


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
        torch.are_deterministic_algorithms_enabled(),
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


def _real_wgrad_bias(
    grad_output: Tensor, input: Tensor, weight_size: Any, *static: Any
) -> tuple[Tensor, Tensor]:
    weight = _real_wgrad(grad_output, input, weight_size, *static)
    return weight, grad_output.sum([d for d in range(grad_output.dim()) if d != 1])


# --- torch.vmap ----------------------------------------------------------------------------------------------------


def _vmap_rule(op: Any) -> Callable[..., Any]:
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
        if (
            op not in (wgrad, wgrad_bias)
            and dims[0] is not None
            and dims[1] is None
            and not isinstance(dims[2], int)
        ):
            folded = first.movedim(dims[0], 0).flatten(0, 1)
            if op is dgrad:
                third = [third[0] * info.batch_size, *third[1:]]
            return op(folded, second, third, *static).unflatten(0, (info.batch_size, -1)), 0
        results = []
        for i in range(info.batch_size):
            args = (t.select(d, i) if isinstance(d, int) else t for t, d in zip(tensors, dims))
            results.append(op(*args, *static))
        if op is wgrad_bias:
            return tuple(map(torch.stack, zip(*results))), (0, 0)
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
        (fprop, _real_fprop, fake_fprop, _flops_fprop),
        (fprop_activated, _real_fprop_activated, fake_fprop_activated, _flops_fprop_activated),
        (dgrad, _real_dgrad, _fake_dgrad, _flops_dgrad),
        (wgrad, _real_wgrad, _fake_wgrad, _flops_wgrad),
        (wgrad_bias, _real_wgrad_bias, _fake_wgrad_bias, _flops_wgrad),
    )
    for op, real, fake, flops in rows:
        qualified = op._schema.name
        name = qualified.split("::")[1]
        # Any device that torch has, but for the CPU where native code has it: the choice of backend, the reference
        # included, is made inside.
        _LIBRARY.impl(name, real, "CompositeExplicitAutograd")
        if native.module is None:
            _LIBRARY.impl(name, derivatives.kernel(op), "Autograd", with_keyset=True)
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        torch.library.register_vmap(qualified, _vmap_rule(op), lib=_LIBRARY)
        register_flop_formula(getattr(torch.ops.symconv_fast, name))(flops)


_register()
