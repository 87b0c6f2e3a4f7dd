"""Native CUDA kernels: halo tiles on matrix units with the parity fold, and depthwise layers on the scalar ones.

What each algorithm can run is known by the planners of its families (`families`); the estimates are models.
"""

from __future__ import annotations

from ...problem import Problem
from .. import gpu_cost
from . import families, limits, misplaced, native, run

NAME = "cuda"
ALGORITHMS = ("tile", "patch", "hopper", "depthwise")

ACTIVATES = True

bind = run.bind

STAND_IN_SECONDS = 1e6
"""So that nothing is sent to the stand-in unasked."""
MARGIN = 1.1


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None. On several GPUs of different kinds the current one is asked."""
    reason = misplaced(problem.device) or (problem.sides and problem.sides.why_not)
    if reason:
        return reason
    return families.refusal(problem, op, algorithm, limits.of())


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds by the planner's model, and of the copies that its layout needs."""
    if native.STAND_IN is not None:
        return STAND_IN_SECONDS
    planner = families.planner(algorithm, op)
    copies = gpu_cost.copy_seconds(run.copied_bytes(problem, op, planner.LAYOUT), launches=0)
    return MARGIN * (planner.seconds(problem, op, limits.of()) + copies)


def kernels(problem: Problem, op: str, algorithm: str) -> tuple[str, ...]:
    """Names of the compiled kernels that a pass would launch on the current device, as in `listing`."""
    names = families.planner(algorithm, op).kernels(problem, op, limits.of())
    return tuple(f"{families.FAMILIES[algorithm, op]} {name}" for name in names)


def config(problem: Problem, op: str, algorithm: str) -> str:
    """What a row of the benchmark says of the kernels."""
    return " + ".join(kernels(problem, op, algorithm))
