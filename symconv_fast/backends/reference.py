"""Expand the filters, then torch's own convolution: the oracle for every backend and the fallback everywhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem, allocate, as_result
from . import cpu_cost

NAME = "reference"
ALGORITHMS = ("expand",)

# Elsewhere than on a CPU no other backend competes yet, so the figure only has to be one.
_FLOPS_PER_SECOND = 20e12
# Expanding and reducing filters with torch operators, for which the CPU backend has one native call.
_EXPAND_SECONDS = 60e-6


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Always None: whatever torch can convolve runs here."""
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds: torch's convolution and the expansion of the filters."""
    if problem.device == "cpu":
        return _EXPAND_SECONDS + cpu_cost.torch_seconds(problem, op)
    return _EXPAND_SECONDS + 2 * problem.macs_dense / _FLOPS_PER_SECOND


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial) of `torch.convolution` with the expanded filters."""
    with without_autocast(input):
        output = torch.convolution(input, _expand(problem, weight), bias, *torch_geometry(problem))
    return as_result(output, problem.channels_last)


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    # Only shape and layout of the input are read for its own gradient.
    input = allocate(problem.input_shape, weight, problem.channels_last)
    filters = _expand(problem, weight)
    return as_result(_backward(problem, grad_output, input, filters, 0), problem.channels_last)


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight: that of the expanded filters, summed over each orbit."""
    filters = allocate(problem.expanded_shape, input, problem.channels_last)
    grad = _backward(problem, grad_output, input, filters, 1)
    dim = 1 if problem.transposed else 0
    return as_result(problem.layer_ties.adjoint(grad, dim), problem.channels_last)


def _expand(problem: Problem, weight: Tensor) -> Tensor:
    return problem.layer_ties.expand(weight, 1 if problem.transposed else 0)


def _backward(problem: Problem, grad_output: Tensor, input: Tensor, filters: Tensor, which: int) -> Tensor:
    with without_autocast(input):
        return torch_backward(problem, grad_output, input, filters, which)


def torch_backward(
    problem: Problem, grad_output: Tensor, input: Tensor, filters: Tensor, which: int
) -> Tensor:
    """torch's gradient of the input (which = 0) or of the ordinary filters (which = 1)."""
    tensors = [grad_output, input, filters]
    if which == 1 and _torch_is_wrong(problem):
        wide = torch.promote_types(problem.dtype, torch.float32)
        tensors = [t.to(wide).contiguous() for t in tensors]
    mask = [which == 0, which == 1, False]
    grad: Tensor = torch.ops.aten.convolution_backward(*tensors, None, *torch_geometry(problem), mask)[which]
    return grad.to(problem.dtype)


def _torch_is_wrong(problem: Problem) -> bool:
    """Does the gradient of the filters read and write outside of its tensors? So torch 2.13 on a CPU in three dims.

    In float32 only in channels_last_3d and with this stride and padding, as 2,500 random problems showed; in bfloat16
    no such rule was found.
    """
    if problem.device != "cpu" or problem.ndim != 3:
        return False
    return problem.dtype.itemsize == 2 or problem.padding[0] > problem.stride[0] > 1


def torch_geometry(problem: Problem) -> tuple[Any, ...]:
    """Arguments of torch.convolution from `stride` on."""
    p = problem
    # Where the kernel is 1 dilation does nothing but to allow a larger output padding, and with it torch 2.13's
    # bfloat16 kernel for three dims crashes.
    sizes = zip(p.dilation, p.kernel, p.stride, p.output_padding)
    dilation = tuple(d if k > 1 or o >= s else 1 for d, k, s, o in sizes)
    return p.stride, p.padding, dilation, p.transposed, p.output_padding, p.groups


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Autocast has had its say where the function was entered; below that, dtypes are what the operator was given.

    (CUDA's autocast casts in aten::convolution as well, the CPU's only above it.)
    """
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
