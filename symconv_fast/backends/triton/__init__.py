"""Triton kernels for GPUs: the parity fold forward and the gather-sum backward, or each filter by itself.

No figure of speed in this backend has been measured on a GPU: the estimates are a model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import Problem
from .. import misplaced
from . import interpreted, model, run
from .geometry import geometry

NAME = "triton"
ALGORITHMS = ("fold", "direct")

_LEAST_CAPABILITY = (8, 0)


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None. Every geometry and dtype runs; depthwise layers have `direct` alone."""
    reason = misplaced(NAME, problem.device)
    if reason is not None:
        return reason
    if problem.device == "cuda":
        if not torch.version.hip and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
            return "the GPU is older than compute capability 8.0"
        if _cannot_compile(problem, op, algorithm):
            return "Triton 3.6 cannot compile this gradient for sm_100 where several ties meet"
    if algorithm == "fold" and geometry(problem).depthwise:
        return "a depthwise layer has nothing to contract but its taps, so folding saves nothing there"
    return None


def _cannot_compile(problem: Problem, op: str, algorithm: str) -> bool:
    """tools/aot_known.py has the compiler's own words."""
    if (op, algorithm) != ("dgrad", "direct") or problem.dtype.itemsize != 2 or len(problem.ties) == 1:
        return False
    return run.architecture(torch.device(problem.device)) == "sm_100"


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds by the model of `model.seconds`; under the interpreter so many that nothing is sent there unasked."""
    if interpreted.ACTIVE:
        return model.INTERPRETED_SECONDS
    device = torch.device(problem.device)
    return model.seconds(problem, op, algorithm, run.architecture(device), run.precision())


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial)."""
    return run.fprop(problem, algorithm, input, weight, bias)


def fprop_activated(
    problem: Problem, algorithm: str, activation: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """`fprop` with the activation applied before the one rounding of the output."""
    return run.fprop(problem, algorithm, input, weight, bias, activation)


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    return run.dgrad(problem, algorithm, grad_output, weight)


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight."""
    return run.wgrad(problem, algorithm, grad_output, input)
