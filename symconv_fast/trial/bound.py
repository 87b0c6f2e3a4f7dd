"""The function that a layer calls while more is to be learnt: it proves and times candidates, and runs one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import settings
from ..binding import bind
from ..problem import Problem
from . import known_answers, modes, small, timing, verdicts
from .known_answers import Answer, Run
from .verdicts import Way

WITHIN, WITHIN_ON_HOST = 3.0, 9.0
"""Candidates with an estimate of up to so many times the lowest one are timed, and torch's convolution. On a CPU that
was never measured either estimate may be off by 3, and most algorithms lie within that anyway; there those without an
estimate are timed too."""

_IMAGES = 2  # with which a CPU's kernels are asked; more of them are more of the same


class Candidate(Protocol):
    """One way that can run a problem, with its estimate: what `dispatch.candidates` gives."""

    @property
    def backend(self) -> str: ...  # noqa: D102
    @property
    def algorithm(self) -> str: ...  # noqa: D102
    @property
    def seconds(self) -> float | None: ...  # noqa: D102


class Ways(NamedTuple):
    """What a trial asks of the dispatch: candidates that can run, the module of one, and its function."""

    able: Callable[[], Iterable[Candidate]]
    load: Callable[[str], Any]
    bind: Callable[[str, str], Run]
    insisted: bool = False
    """Is a backend or an algorithm pinned? Then what cannot be proven now runs all the same."""


class Trial:
    """An operator on a problem and device, bound to whatever is proven and quickest of its candidates."""

    def __init__(self, problem: Problem, op: str, activation: str | None, ways: Ways) -> None:
        self._problem, self._op, self._activation, self._ways = problem, op, activation, ways
        self._settled: Run | None = None
        self._settled_at: tuple[int, bool, bool] | None = None
        self._meanwhile: dict[tuple[int, bool, bool], tuple[int, Run]] = {}

    def __call__(self, *tensors: Tensor | None) -> Tensor:
        """The operator's result, always of a run of its own."""
        if self._settled is not None and self._settled_at == _circumstances():
            return self._settled(*tensors)
        return self._choose(tensors)(*tensors)

    def _choose(self, tensors: tuple[Tensor | None, ...]) -> Run:
        """What runs this call, and the ones to come where nothing more is to be learnt."""
        device = next(t.device for t in tensors if t is not None)
        level = modes.allowed(device, tensors)
        held = level > modes.NOTHING and modes.LOCK.acquire(blocking=False)
        try:
            level = level if held else modes.NOTHING
            seen = verdicts.changes()
            place = (level, *_switches())
            found = self._meanwhile.get(place)
            if found is not None and found[0] == seen:
                return found[1]
            with _current(device):
                run, settled = self._decide(device, level, tensors)
            # Under the lock nobody else learns anything, and what was learnt meanwhile is in the choice.
            self._meanwhile[place] = (verdicts.changes() if held else seen, run)
            if settled:
                self._settled, self._settled_at = run, _circumstances()
                self._make_known(device)
            return run
        finally:
            if held:
                modes.LOCK.release()

    def _make_known(self, device: torch.device) -> None:
        """On a CPU choices are made anew: with times they need no trial, and a native call may be remembered again."""
        if modes.is_host(device.type) and verdicts.timed(self._problem, self._op, self._activation, device):
            settings.changed()

    def _decide(
        self, device: torch.device, level: int, tensors: tuple[Tensor | None, ...]
    ) -> tuple[Run, bool]:
        """The function to run, and whether later calls would find no better one."""
        able = sorted(self._ways.able(), key=_seconds)
        times = verdicts.timed(self._problem, self._op, self._activation, device)
        rivals = self._rivals(able, device) if times is None else []
        if len(rivals) > 1 and level == modes.TIME:
            self._time(rivals, device, tensors)
            able = sorted(self._ways.able(), key=_seconds)  # without those that have failed meanwhile
            times = verdicts.timed(self._problem, self._op, self._activation, device)
        if times is not None:
            known = times
            able.sort(key=lambda c: (known.get((c.backend, c.algorithm), float("inf")), _seconds(c)))
        for candidate in able:
            if self._is_proven(candidate, device, level):
                # What may be timed is, at the next call that may; so is what could not be proven now.
                settled = level > modes.NOTHING and (
                    times is not None or len(rivals) < 2 or level == modes.TIME
                )
                return self._function(candidate), settled
        if self._ways.insisted:
            able = list(self._ways.able())  # raises with the reasons where all have failed
            return self._function(min(able, key=_seconds)), level > modes.NOTHING
        raise RuntimeError("no candidate can run, though the reference always can")

    def _function(self, candidate: Candidate) -> Run:
        return self._ways.bind(candidate.backend, candidate.algorithm)

    def _is_proven(self, candidate: Candidate, device: torch.device, level: int) -> bool:
        """Has a candidate no kernels of ours, or are they known to be right here? Proves them where that is allowed."""
        module = self._ways.load(candidate.backend)
        if not _must_be_proven(module, device):
            return True
        arguments = (module, self._problem, self._op, candidate.algorithm, device)
        found = verdicts.verdict(verdicts.kernel(*arguments), self._problem, self._activation)
        if found is None and level > modes.NOTHING:
            found = prove(*arguments, self._activation)
        return found is True

    def _rivals(self, able: list[Candidate], device: torch.device) -> list[Candidate]:
        """Those worth timing by their estimates, torch's convolution among them; none where nothing is to be timed."""
        if not able or not self._is_timed(able, device):
            return []
        host = modes.is_host(device.type)
        most = (WITHIN_ON_HOST if host else WITHIN) * min(map(_seconds, able))
        rivals = [
            c
            for c in able
            if _seconds(c) <= most or c.algorithm == "expand" or (host and math.isinf(_seconds(c)))
        ]
        natively = [c for c in rivals if c.algorithm == "expand" and c.backend != "reference"]
        # The reference is the same, but expands the filters more slowly.
        return [c for c in rivals if not (natively and c.backend == "reference")]

    def _is_timed(self, able: list[Candidate], device: torch.device) -> bool:
        """Are these to be timed, by the setting and by what was measured before?"""
        if modes.is_host(device.type):
            return modes.tried(self._problem)
        wanted = settings.benchmark()
        unmeasured = (
            verdicts.is_ours(module) and not verdicts.is_measured(module, device)
            for module in (self._ways.load(c.backend) for c in able)
        )
        return wanted is True or (wanted == "auto" and any(unmeasured))

    def _time(
        self, rivals: list[Candidate], device: torch.device, tensors: tuple[Tensor | None, ...]
    ) -> None:
        """Time those that are proven, on the tensors of the call; what they return is thrown away."""
        if modes.is_host(device.type):
            rivals = self._right(rivals, device)
        else:
            rivals = [c for c in rivals if self._is_proven(c, device, modes.TIME)]
        functions = {(c.backend, c.algorithm): _call(self._function(c), tensors) for c in rivals}

        def failed(way: Way, failure: Exception) -> None:
            module = self._ways.load(way[0])
            ours = verdicts.is_ours(module) or modes.is_host(device.type)
            if ours and way[0] != "reference" and not known_answers.is_shortage(failure):
                what = f"{type(failure).__name__} while it was timed: {failure}"
                kernel = verdicts.kernel(module, self._problem, self._op, way[1], device)
                verdicts.fail(kernel, self._problem, what)

        clock = timing.clock_of(device)
        rule = timing.QUICKEST if modes.is_host(device.type) else timing.MEDIANS
        seconds = timing.race(functions, clock, failed, rule) if len(functions) > 1 else {}
        if seconds:
            verdicts.keep(self._problem, self._op, self._activation, device, seconds)

    def _right(self, rivals: list[Candidate], device: torch.device) -> list[Candidate]:
        """Those that give the answer of torch's convolution on a CPU, of this problem with two images at most."""
        asked = replace(self._problem, batch=min(self._problem.batch, _IMAGES))
        if any(self._ways.load(c.backend).can_run(asked, self._op, c.algorithm) for c in rivals):
            asked = self._problem
        try:
            sheet = known_answers.Sheet(asked, self._op, device)
        except Exception:  # memory does not suffice, or torch's convolution fails: the call itself will tell
            return []
        right = []
        for candidate in rivals:
            module = self._ways.load(candidate.backend)
            given = sheet.ask(bind(module, asked, self._op, candidate.algorithm))
            if candidate.backend == "reference" or given.right:
                right.append(candidate)
            elif given.right is False:
                kernel = verdicts.kernel(module, asked, self._op, candidate.algorithm, device)
                verdicts.fail(kernel, asked, str(given.error))
        return right


def _circumstances() -> tuple[int, bool, bool]:
    """What may have changed since something was settled: a kernel was disabled, or a switch was set."""
    return verdicts.failures(), *_switches()


def _switches() -> tuple[bool, bool]:
    """Must runs repeat, and may torch's convolution try algorithms? TF32 is not here: by it `ops.plan` asks anew."""
    return torch.are_deterministic_algorithms_enabled(), torch._C._get_cudnn_benchmark()


def _call(run: Run, tensors: tuple[Tensor | None, ...]) -> Callable[[], object]:
    return lambda: run(*tensors)


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds or 0.0


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one: by it backends say what can run, and there events are recorded."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _must_be_proven(module: Any, device: torch.device) -> bool:
    if modes.is_host(device.type) or not verdicts.is_ours(module):
        return False
    return not verdicts.is_measured(module, device) and settings.known_answers()


# --- known answers ---------------------------------------------------------------------------------------------------


def prove(
    module: Any,
    problem: Problem,
    op: str,
    algorithm: str,
    device: torch.device,
    activation: str | None = None,
) -> bool | None:
    """Ask a backend's kernel for a known answer and keep the verdict: True or False; None where there is none.

    The device is the current one of its type.
    """
    wanted = verdicts.kernel(module, problem, op, algorithm, device)
    asked, given = _ask(module, problem, op, algorithm, device, activation)
    if given.right:
        verdicts.pass_(wanted, problem, activation)
    elif given.right is False:
        verdicts.fail(wanted, asked, str(given.error))
    return given.right


def _ask(
    module: Any, problem: Problem, op: str, algorithm: str, device: torch.device, activation: str | None
) -> tuple[Problem, Answer]:
    """A known answer of a small problem that runs the kernels of the layer, else of the layer's own problem."""
    for asked in small.like(problem, op):
        if module.can_run(asked, op, algorithm) is None:
            run = _bind_like(module, asked, op, algorithm, problem, activation)
            if run is not None:
                return asked, known_answers.ask(asked, op, run, device, activation)
    run = bind(module, problem, op, algorithm, activation)
    return problem, known_answers.ask_in_place(problem, op, run, device, activation)


def _bind_like(
    module: Any, small_problem: Problem, op: str, algorithm: str, problem: Problem, activation: str | None
) -> Run | None:
    """The function of a small problem with the kernels of a large one, or None: the backend would take others."""
    if hasattr(module, "bind_like"):
        run: Run | None = module.bind_like(small_problem, op, algorithm, problem, activation)
        return run
    if tuple(module.kernels(small_problem, op, algorithm)) != tuple(module.kernels(problem, op, algorithm)):
        return None
    return bind(module, small_problem, op, algorithm, activation)
