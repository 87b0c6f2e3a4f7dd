"""Native CUDA kernels: halo tiles on matrix units with the parity fold, and depthwise layers on the scalar ones.

What each algorithm can run is known by the planners of its families (`families`); the estimates are models.
"""

from __future__ import annotations

from torch import Tensor

from ...problem import Problem
from .. import gpu_cost, reference
from ..gpu_cost import RATES
from . import families, limits, misplaced, native, run

NAME = "cuda"
ALGORITHMS = ("tile", "patch", "hopper", "depthwise")

bind = run.bind

STAND_IN_SECONDS = 1e6
"""So that nothing is sent to the stand-in unasked."""
MARGIN = 1.1


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None. On several GPUs of different kinds the current one is asked."""
    reason = misplaced(problem.device)
    if reason is not None:
        return reason
    return families.refusal(problem, op, algorithm, limits.of())


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """A model on the scale of the reference backend: its own figure times the ratio of the two models."""
    if native.STAND_IN is not None:
        return STAND_IN_SECONDS
    device, arch = limits.of(), gpu_cost.architecture()
    planner = families.planner(algorithm, op)
    copies = run.copied_bytes(problem, op, planner.LAYOUT) / RATES[arch].bandwidth
    ours = MARGIN * (planner.seconds(problem, op, device) + copies)
    library = gpu_cost.library_seconds(problem, arch, "tf32" if device.tf32 else "ieee")
    return reference.estimate(problem, op, "expand") * ours / library


def kernels(problem: Problem, op: str, algorithm: str) -> tuple[str, ...]:
    """Names of the compiled kernels that a pass would launch on the current device, as in `listing`."""
    names = families.planner(algorithm, op).kernels(problem, op, limits.of())
    return tuple(f"{families.FAMILIES[algorithm, op]} {name}" for name in names)


def config(problem: Problem, op: str, algorithm: str) -> str:
    """What a row of the benchmark says of the kernels."""
    return " + ".join(kernels(problem, op, algorithm))


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial)."""
    return run.bind(problem, "fprop", algorithm)(input, weight, bias)


def fprop_activated(
    problem: Problem, algorithm: str, activation: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """`fprop` with the activation applied before the one rounding of the output."""
    return run.bind(problem, "fprop", algorithm, activation)(input, weight, bias)


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    return run.bind(problem, "dgrad", algorithm)(grad_output, weight)


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight; bitwise repeatable."""
    return run.bind(problem, "wgrad", algorithm)(grad_output, input)
