"""Convolutions whose taps or outputs lie far apart: what the taps read is gathered, then convolved side by side.

torch 2.13 crashes in such gradients, and kernels that count the phases of a stride would count for hours. Here each
axis of the input becomes [output][tap], zeros where a tap reads padding, and the convolution one whose stride is the
kernel. A transposed convolution is the adjoint: it convolves the other way round and scatters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Problem


def forward(problem: Problem, input: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with ordinary filters."""
    problem.empty_result("fprop", input)  # fails at once where no memory could hold the result
    if not problem.transposed:
        return torch.convolution(_gather(problem, input), filters, bias, *_geometry(problem))
    output = _scatter(problem, _gradient(problem, input, None, filters, 0), problem.out_spatial)
    return output if bias is None else output + bias.view(-1, *[1] * problem.ndim)


def backward(problem: Problem, grad_output: Tensor, input: Tensor, filters: Tensor, which: int) -> Tensor:
    """The gradient of the input (which = 0) or of the ordinary filters (which = 1)."""
    if not problem.transposed:
        if which == 1:
            return _gradient(problem, grad_output, _gather(problem, input), filters, 1)
        return _scatter(problem, _gradient(problem, grad_output, None, filters, 0), problem.spatial)
    if which == 1:
        return _gradient(problem, input, _gather(problem, grad_output), filters, 1)
    return torch.convolution(_gather(problem, grad_output), filters, None, *_geometry(problem))


def _geometry(problem: Problem) -> tuple[Any, ...]:
    zero, one = [0] * problem.ndim, [1] * problem.ndim
    return problem.kernel, zero, one, False, zero, problem.groups


def _gradient(problem: Problem, grad: Tensor, gathered: Tensor | None, filters: Tensor, which: int) -> Tensor:
    if gathered is None:
        spatial = [n * k for n, k in zip(grad.shape[2:], problem.kernel)]
        gathered = grad.new_empty(grad.shape[0], filters.shape[1] * problem.groups, *spatial)
    mask = [which == 0, which == 1, False]
    arguments = (grad, gathered, filters, None, *_geometry(problem), mask)
    result: Tensor = torch.ops.aten.convolution_backward(*arguments)[which]
    return result


def _reads(problem: Problem, axis: int, extent: int, device: torch.device) -> Tensor:
    """Of each output and tap the position that is read, or `extent` in padding."""
    outputs = (
        torch.arange(_steps(problem)[axis], device=device) * problem.stride[axis] - problem.padding[axis]
    )
    taps = torch.arange(problem.kernel[axis], device=device) * problem.dilation[axis]
    at = (outputs[:, None] + taps).flatten()
    return torch.where((at >= 0) & (at < extent), at, extent)


def _steps(problem: Problem) -> tuple[int, ...]:
    """How many positions the window stops at along each axis: outputs, or a transposed layer's inputs."""
    return problem.spatial if problem.transposed else problem.out_spatial


def _gather(problem: Problem, map: Tensor) -> Tensor:
    for axis in range(problem.ndim):
        dim = axis + 2
        reads = _reads(problem, axis, map.shape[dim], map.device)
        zeros = map.new_zeros([1 if d == dim else n for d, n in enumerate(map.shape)])
        map = torch.cat([map, zeros], dim).index_select(dim, reads)
    return map


def _scatter(problem: Problem, gathered: Tensor, extents: tuple[int, ...]) -> Tensor:
    for axis, extent in enumerate(extents):
        dim = axis + 2
        reads = _reads(problem, axis, extent, gathered.device)
        size = [extent + 1 if d == dim else n for d, n in enumerate(gathered.shape)]
        gathered = gathered.new_zeros(size).index_add_(dim, reads, gathered).narrow(dim, 0, extent)
    return gathered
