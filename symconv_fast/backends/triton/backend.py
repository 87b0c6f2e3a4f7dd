"""Triton kernels for GPUs: the parity fold forward and the gather-sum backward, or each filter by itself.

The estimates are a model with rates of an H200; see docs/gpu.md for what was measured there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...problem import Problem
from .. import gpu_cost
from . import interpreted, launch, letters, misplaced, model, run
from .configs import Config
from .geometry import geometry
from .launch import refusal
from .tuned import TUNED

NAME = "triton"
ALGORITHMS = ("fold", "direct")
ACTIVATES = True

bind = run.bind

_LEAST_CAPABILITY = (8, 0)


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None. Every geometry and dtype runs; depthwise layers, and what has no tile, have `direct` alone.

    Ties on both sides have `fold` alone.
    """
    reason = misplaced(problem.device) or letters.refusal(problem, algorithm)
    if reason:
        return reason
    if problem.device == "cuda":
        if not torch.version.hip and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
            return "the GPU is older than compute capability 8.0"
        if why := refusal(problem, op, algorithm, run.options_for(torch.device(problem.device))):
            return why
    if algorithm == "fold" and geometry(problem).depthwise:
        return "a depthwise layer has nothing to contract but its taps, so folding saves nothing there"
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds by the model of `model.seconds`; under the interpreter so many that nothing is sent there unasked."""
    if interpreted.ACTIVE:
        return model.INTERPRETED_SECONDS
    return model.seconds(problem, op, algorithm, gpu_cost.architecture(), gpu_cost.precision())


# --- what has to be proven before it is used; see `trial` ------------------------------------------------------------


def measured(device: torch.device) -> bool:
    """Are there rows of this model of GPU? There all kernels were compared with the oracle too."""
    return run.device_name(device) in {row["device"] for row in TUNED}


def kernels(problem: Problem, op: str, algorithm: str) -> tuple[str, ...]:
    """The kernels with tiles that would be launched on the current device."""
    return _names(_launches(problem, op, algorithm))


def bind_like(
    problem: Problem, op: str, algorithm: str, like: Problem, activation: str | None = None
) -> Callable[..., Tensor] | None:
    """The operator of a problem with the tiles that another one gets; None where these would be cut."""
    wanted = _launches(like, op, algorithm)
    tiles = _tiles(like, wanted)
    if _names(_launches(problem, op, algorithm, **tiles)) != _names(wanted):
        return None
    return run.bind(problem, op, algorithm, activation, **tiles)


def _tiles(problem: Problem, steps: list[launch.Launch]) -> dict[str, Any]:
    """The options that ask for the tiles of some launches: of one, or of one for each number of tied axes."""
    if len(steps) == 1:
        return {"config": steps[0].config}
    tiles = []
    for step in steps:
        rows = {entry[1] for entry in step.constants["SEGS"]}
        order = max(s.order for s in geometry(problem).segments if s.row in rows)
        tiles.append((order, step.config))
    return {"tiles": tuple(tiles)}


def _launches(problem: Problem, op: str, algorithm: str, **tiles: Any) -> list[launch.Launch]:
    """Those that have a tile: the others go over elements, one by one."""
    options = run.options_for(torch.device(problem.device), **tiles)
    steps = launch.plan(problem, op, algorithm, options=options).launches
    return [step for step in steps if step.config is not None]


def _names(steps: list[launch.Launch]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{step.kernel} {_tile(step.config)}" for step in steps if step.config))


def _tile(c: Config) -> str:
    return f"{c.m}x{c.n}x{c.k}, {c.warps} warps, {c.stages} stages"
