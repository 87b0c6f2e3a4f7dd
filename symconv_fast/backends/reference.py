"""Expand the filters, then torch's own convolution: the oracle for every backend and the fallback everywhere."""

from __future__ import annotations

from torch import Tensor

from ..problem import Problem, allocate, as_result
from . import gpu_cost, torch_conv
from .cpu import torch_cost

NAME = "reference"
ALGORITHMS = ("expand",)

# Expanding and reducing filters with torch operators on a CPU, for which the CPU backend has one native call.
_EXPAND_SECONDS = 60e-6


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Always None: whatever torch can convolve runs here."""
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds: torch's convolution and the expansion of the filters."""
    on_cpu = problem.device == "cpu"
    return (_EXPAND_SECONDS if on_cpu else gpu_cost.expand_seconds(problem)) + torch_seconds(problem, op)


def torch_seconds(problem: Problem, op: str) -> float:
    """Seconds of torch's convolution on filters that are there: what torch's own layer takes."""
    return torch_cost.seconds(problem, op) if problem.device == "cpu" else gpu_cost.torch_seconds(problem)


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial) of `torch.convolution` with the expanded filters."""
    if problem.is_empty:
        output = allocate(problem.output_shape, input, problem.channels_last).zero_()
        return output if bias is None else output.add_(bias.view(-1, *[1] * problem.ndim))
    with torch_conv.without_autocast(input):
        output = torch_conv.forward(problem, input, _expand(problem, weight), bias)
    return as_result(output, problem.channels_last)


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    if problem.is_empty:
        return problem.empty_result("dgrad", weight).zero_()
    # Only shape and layout of the input are read for its own gradient.
    input = allocate(problem.input_shape, weight, problem.channels_last)
    filters = _expand(problem, weight)
    grad = _backward(problem, grad_output, input, filters, 0)
    return as_result(grad.to(problem.dtype), problem.channels_last)


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight: that of the expanded filters, summed over each orbit."""
    if problem.is_empty:
        return problem.empty_result("wgrad", input).zero_()
    filters = allocate(problem.expanded_shape, input, problem.channels_last)
    grad = _backward(problem, grad_output, input, filters, 1)
    dim = 1 if problem.transposed else 0
    return as_result(problem.layer_ties.adjoint(grad, dim).to(problem.dtype), problem.channels_last)


def _expand(problem: Problem, weight: Tensor) -> Tensor:
    return problem.layer_ties.expand(weight, 1 if problem.transposed else 0)


def _backward(problem: Problem, grad_output: Tensor, input: Tensor, filters: Tensor, which: int) -> Tensor:
    with torch_conv.without_autocast(input):
        return torch_conv.backward(problem, grad_output, input, filters, which)
