"""Expand the filters, then torch's own convolution: the oracle for every backend and the fallback everywhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem, allocate, as_result
from . import cpu_cost, gpu_cost

NAME = "reference"
ALGORITHMS = ("expand",)

# Expanding and reducing filters with torch operators, for which the CPU backend has one native call.
_EXPAND_SECONDS = 60e-6


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Always None: whatever torch can convolve runs here."""
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds: torch's convolution and the expansion of the filters."""
    if problem.device == "cpu":
        return _EXPAND_SECONDS + cpu_cost.torch_seconds(problem, op)
    return _EXPAND_SECONDS + gpu_cost.torch_seconds(problem, op)


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial) of `torch.convolution` with the expanded filters."""
    with without_autocast(input):
        output = torch_forward(problem, input, _expand(problem, weight), bias)
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


def torch_forward(problem: Problem, input: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """torch's convolution with ordinary filters."""
    tensors: list[Any] = [input, filters, bias]
    if torch_is_wrong(problem, "fprop"):
        tensors = _widened(problem, *tensors)
    return torch.convolution(*tensors, *torch_geometry(problem)).to(problem.dtype)


def torch_backward(
    problem: Problem, grad_output: Tensor, input: Tensor, filters: Tensor, which: int
) -> Tensor:
    """torch's gradient of the input (which = 0) or of the ordinary filters (which = 1)."""
    tensors: list[Any] = [grad_output, input, filters]
    if torch_is_wrong(problem, "wgrad" if which == 1 else "dgrad"):
        tensors = _widened(problem, *tensors)
    mask = [which == 0, which == 1, False]
    grad: Tensor = torch.ops.aten.convolution_backward(*tensors, None, *torch_geometry(problem), mask)[which]
    return grad.to(problem.dtype)


def torch_is_wrong(problem: Problem, op: str) -> bool:
    """Is torch 2.13 wrong here, at times or always? On a CPU its fast convolutions are; float64 has none of them.

    - float32 and 16 bits, where a strided axis has a single output: the forward pass of one channel in channels_last is
      wrong each time (36 of 83,000 random problems, all of them such), and the gradient of the input of some other
      shapes in about half the runs on two threads, (2, 5, 12, 5) with a kernel (1, 7) and 68 channels out among them.
    - 16 bits, in all passes where the padding is as long as the map on some axis: reads and writes outside of its
      tensors; all cases that some 7,000 random problems found were such.
    - Gradient of the filters in three dims: in float32 only with this stride and padding, as 6,000 random problems
      showed; in bfloat16 no such rule was found.
    """
    if problem.device != "cpu" or problem.dtype == torch.float64:
        return False
    least = list(map(min, problem.spatial, problem.out_spatial))
    if _one_output(problem) or _deep_wgrad(problem, op):
        return True
    half = problem.dtype.itemsize == 2
    return half and (
        any(p >= n for p, n in zip(problem.padding, least)) or (op == "wgrad" and problem.ndim == 3)
    )


def _one_output(problem: Problem) -> bool:
    outputs = problem.spatial if problem.transposed else problem.out_spatial
    return any(s > 1 and n == 1 for s, n in zip(problem.stride, outputs))


def _deep_wgrad(problem: Problem, op: str) -> bool:
    return op == "wgrad" and problem.ndim == 3 and problem.padding[0] > problem.stride[0] > 1


def _widened(problem: Problem, *tensors: Tensor | None) -> list[Any]:
    """Contiguous in a type in which torch is right: float32 will do where only the 16-bit types are wrong."""
    single = problem.dtype.itemsize == 2 and not _one_output(problem) and not _deep_wgrad(problem, "wgrad")
    wide = torch.float32 if single else torch.float64
    return [None if t is None else t.to(wide).contiguous() for t in tensors]


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
