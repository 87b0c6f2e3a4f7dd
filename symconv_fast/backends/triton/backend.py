"""Triton kernels for GPUs: the parity fold forward and the gather-sum backward, or each filter by itself.

The estimates are a model with rates of an H200; see docs/gpu.md for what was measured there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import Problem
from . import interpreted, misplaced, model, run
from .geometry import geometry
from .launch import Options, refusal

NAME = "triton"
ALGORITHMS = ("fold", "direct")

_LEAST_CAPABILITY = (8, 0)


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None. Every geometry and dtype runs; depthwise layers, and what has no tile, have `direct` alone."""
    reason = misplaced(problem.device)
    if reason is not None:
        return reason
    if problem.device == "cuda":
        if not torch.version.hip and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
            return "the GPU is older than compute capability 8.0"
        options = Options(arch=run.architecture(torch.device(problem.device)), precision=run.precision())
        if why := refusal(problem, op, algorithm, options):
            return why
    if algorithm == "fold" and geometry(problem).depthwise:
        return "a depthwise layer has nothing to contract but its taps, so folding saves nothing there"
    return None


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
