"""Native CPU kernels: the parity fold forward, the gather-sum backward, packed into a panel and multiplied once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _cpu, settings  # type: ignore[attr-defined]
from ..problem import Problem, allocate, as_result, memory_format
from . import cpu_cost, cpu_depthwise
from .reference import torch_backward, torch_geometry, torch_is_wrong, without_autocast

NAME = "cpu"
ALGORITHMS = ("fold", "winograd", "expand")

# Estimates are off by 20 % at times; losing against torch is worse than leaving a small gain.
# The weight gradient, and all passes in 16-bit types, pack few orbits or channels one by one, and there the estimates
# are worse.
_MARGIN, _MARGIN_NARROW, _NARROW = 1.1, 1.5, 8


clear_workspace = _cpu.clear_workspace
"""Gives the working memory that the calling thread keeps (32 MiB at most) back to the system."""


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None.

    `fold` runs every geometry, `winograd` float32 with three taps at stride 1 on an axis that is not tied; `expand`,
    a native copy of the filters and torch's convolution, is for layers where neither pays.
    """
    if problem.device != "cpu":
        return f"the tensors are on {problem.device}, not on the CPU"
    if algorithm == "winograd":
        return _why_no_winograd(problem, op)
    if algorithm == "expand" and op == "fprop" and torch_is_wrong(problem, op):
        return "torch's convolution is wrong for these sizes in this type"
    return None


def _why_no_winograd(problem: Problem, op: str) -> str | None:
    if settings.winograd() is False:
        return "symconv_fast.allow_winograd is False"
    if cpu_depthwise.applies(problem):
        return "a depthwise layer (one input channel in each group) has kernels of its own"
    if problem.dtype != torch.float32:
        return f"minimal filtering is for float32, not for {str(problem.dtype)[6:]}"
    if not any(cpu_cost.filtered(problem, op, c) for c in cpu_cost.contractions(problem, op)):
        return "no axis is free of ties and has three taps, stride 1 and dilation 1"
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds, from the fitted models of `cpu_cost` and `cpu_depthwise`."""
    if cpu_depthwise.applies(problem):
        if algorithm == "expand":
            return cpu_depthwise.torch_seconds(problem, op)
        return _MARGIN * cpu_depthwise.native_seconds(problem, op)
    if algorithm == "expand":
        return cpu_cost.torch_seconds(problem, op)
    least = min(problem.in_channels, *(rows for _, rows in problem.ties)) // problem.groups
    narrow = (op == "wgrad" or problem.dtype.itemsize == 2) and least < _NARROW
    margin = _MARGIN_NARROW if narrow else _MARGIN
    return margin * cpu_cost.native_seconds(problem, op, _native_name(algorithm))


def _native_name(algorithm: str) -> str:
    return str(settings.winograd() or "f2") if algorithm == "winograd" else algorithm


def _geometry(problem: Problem) -> tuple[object, ...]:
    p = problem
    return _flat(p), p.stride, p.padding, p.dilation, p.transposed, p.groups


def _flat(problem: Problem) -> list[int]:
    return [value for segment in problem.ties for value in segment]


def _readable(tensor: Tensor) -> Tensor:
    """The kernels read along channels or along the last dimension; anything else is copied once."""
    strides = tensor.stride()
    if strides[1] == 1 or strides[-1] == 1:
        return tensor
    last = strides[1] < strides[-1] and tensor.dim() > 3 and strides[1] != 0
    return tensor.contiguous(memory_format=memory_format(tensor.dim() - 2, last))


def _expand(problem: Problem, weight: Tensor) -> Tensor:
    """The ordinary filters, in the memory format of the result."""
    filters = allocate(problem.expanded_shape, weight, problem.channels_last)
    _cpu.expand(weight, filters, _flat(problem), problem.transposed, problem.groups)
    return filters


def bind(problem: Problem, op: str, algorithm: str) -> Callable[..., Tensor]:
    """The function of `op` with all but its tensors bound, in one native call where there is one."""
    p = problem
    if algorithm == "expand" and op != "fprop":
        return partial(globals()[op], problem, algorithm)
    _, _, dilation, _, output_padding, _ = torch_geometry(p)
    result = {"fprop": p.output_shape, "dgrad": p.input_shape, "wgrad": p.weight_shape}[op]
    strides = allocate(result, torch.empty(0, device="meta"), p.channels_last).stride()
    native = _cpu.Pass(
        *_geometry(p), output_padding, dilation, result, strides, p.expanded_shape, p.channels_last,
        cpu_depthwise.applies(p), _native_name(algorithm),
    )  # fmt: skip
    return getattr(native, op)


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial)."""
    if algorithm == "expand":
        with without_autocast(input):
            filters = _expand(problem, weight)
            result = torch.convolution(input, filters, bias, *torch_geometry(problem))
        return as_result(result, problem.channels_last)
    output = allocate(problem.output_shape, input, problem.channels_last)
    if cpu_depthwise.applies(problem):
        _cpu.depthwise_fprop(input, weight, bias, output, *_geometry(problem))
    else:
        _cpu.fprop(_readable(input), weight, bias, output, *_geometry(problem), _native_name(algorithm))
    return output


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    grad = allocate(problem.input_shape, weight, problem.channels_last)
    if algorithm == "expand":
        with without_autocast(weight):
            filters = _expand(problem, weight)
            result = torch_backward(problem, grad_output, grad, filters, 0)
        return as_result(result, problem.channels_last)
    if cpu_depthwise.applies(problem):
        _cpu.depthwise_dgrad(grad_output, weight, grad, *_geometry(problem))
    else:
        _cpu.dgrad(_readable(grad_output), weight, grad, *_geometry(problem), _native_name(algorithm))
    return grad


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight."""
    if algorithm == "expand":
        return _expanded_wgrad(problem, grad_output, input)
    grad = allocate(problem.weight_shape, input, problem.channels_last)
    if cpu_depthwise.applies(problem):
        _cpu.depthwise_wgrad(grad_output, input, grad, *_geometry(problem))
    else:
        _cpu.wgrad(_readable(grad_output), input, grad, *_geometry(problem), _native_name(algorithm))
    return grad


def _expanded_wgrad(problem: Problem, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the ordinary filters, summed over each orbit."""
    filters = allocate(problem.expanded_shape, input, problem.channels_last)
    with without_autocast(input):
        expanded = torch_backward(problem, grad_output, input, filters, 1)
    grad = allocate(problem.weight_shape, input, problem.channels_last)
    _cpu.reduce(expanded, grad, _flat(problem), problem.transposed, problem.groups)
    return grad
