"""What is known of candidates, for those who ask without computing: the dispatch, `explain`, the self-check."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import settings
from ..problem import Problem
from . import modes, verdicts
from .verdicts import Way


class Evidence(NamedTuple):
    """Of a candidate: its measured seconds, and what came of its known answer; None where neither is asked for."""

    measured: float | None = None
    known_answer: str | None = None


NONE = Evidence()


def known(problem: Problem) -> bool:
    """May anything be known of the candidates of a problem, or become known?"""
    if modes.is_host(problem.device):
        return modes.tried(problem) or verdicts.any_timed() or verdicts.any_failed()
    return modes.tried(problem)


def undecided(problem: Problem, op: str, pinned: bool) -> bool:
    """Is there more to learn of a problem than the estimates say? On a CPU not of what is pinned, nor twice."""
    if not modes.tried(problem):
        return False
    return modes.proven(problem.device) or not (pinned or times(problem, op))


def state(problem: Problem) -> tuple[object, ...]:
    """What a choice for a problem depends on beside the settings: nothing where nothing is tried or known."""
    if not known(problem):
        return ()
    return (verdicts.changes(), _device(problem), verdicts.switches(problem))


def refuted(module: Any, problem: Problem, op: str, algorithm: str) -> str | None:
    """Why a candidate that can run is not used, as a clause: its kernel gave a wrong answer in this process."""
    if not verdicts.any_failed() or not known(problem):
        return None
    device = _device(problem)
    error = verdicts.error(verdicts.kernel(module, problem, op, algorithm, device))
    return None if error is None else f"it failed its known answer on this device: {error}"


def times(problem: Problem, op: str) -> dict[Way, float]:
    """The measured seconds of candidates of a problem on the current device; empty where none were."""
    if not known(problem):
        return {}
    return verdicts.timed(problem, op, None, _device(problem)) or {}


def evidence(module: Any, problem: Problem, op: str, algorithm: str) -> Evidence:
    """What is known of a candidate that can run."""
    if not known(problem):
        return NONE
    device = _device(problem)
    measured = times(problem, op).get((module.NAME, algorithm))
    return Evidence(measured, _known_answer(module, problem, op, algorithm, device))


def _known_answer(module: Any, problem: Problem, op: str, algorithm: str, device: torch.device) -> str | None:
    if not verdicts.is_ours(module) or not modes.proven(problem.device):
        return None
    if verdicts.is_measured(module, device):
        return "not needed (measured on this model)"
    kernel = verdicts.kernel(module, problem, op, algorithm, device)
    found = verdicts.verdict(kernel, problem)
    if found is not None:
        return "passed" if found else "failed"
    return "not run" if settings.known_answers() else "not run (switched off)"


def _device(problem: Problem) -> torch.device:
    """The device that is asked about: the current one of the problem's type."""
    if problem.device == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(problem.device)
