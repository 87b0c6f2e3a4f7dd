"""Problem -> backend and algorithm, with reasons: the list of backends, the choice, and how to steer it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import binding, native, settings, trial
from .problem import FAR, Problem

BACKENDS: tuple[str, ...] = ("cpu", "cuda", "triton", "distinct", "reference")
"""Modules under symconv_fast.backends. To add a backend, add its name here and nowhere else. The last one runs every
problem, by the first of its algorithms."""

ENV_BACKEND = "SYMCONV_FAST_BACKEND"
ENV_ALGORITHM = "SYMCONV_FAST_ALGORITHM"


class Backend(Protocol):
    """What a module in symconv_fast.backends must have."""

    NAME: str
    ALGORITHMS: tuple[str, ...]

    def can_run(self, problem: Problem, op: str, algorithm: str) -> str | None:
        """None, or the reason why not, as a clause."""

    def estimate(self, problem: Problem, op: str, algorithm: str) -> float:
        """Seconds, the smaller the better."""

    # Its passes are three functions, or one that returns them, with ACTIVATES activations and all (`binding`):
    #
    #     fprop(problem, algorithm, input, weight, bias)         the layer's output
    #     dgrad(problem, algorithm, grad_output, weight)         the gradient of its input
    #     wgrad(problem, algorithm, grad_output, input)          the gradient of the reduced weight
    #     bind(problem, op, algorithm)                           the pass `op`, all but its tensors bound
    #
    # One with kernels of this package for a GPU has more, by which `trial` knows them:
    #
    #     kernels(problem, op, algorithm) -> tuple[str, ...]     names of what would be launched, tiles included
    #     bind_like(problem, op, algorithm, like, activation)    as `binding.bind`, with the kernels of another problem
    #     measured(device) -> bool                               were they checked and timed on this model of GPU?
    #
    # The second is for kernels that are chosen by sizes, the third for those whose measurements are in this package.
    # Its package may have listing() -> ((name, architectures), ...), every kernel that there is, without a GPU.


class Pin(NamedTuple):
    """What the user fixed; None leaves it to the estimate. `origin` says where, for the error message."""

    name: str | None
    algorithm: str | None
    origin: str


class Candidate(NamedTuple):
    """One way to run an operator: with a reason why not, or with its estimate in seconds."""

    backend: str
    algorithm: str
    reason: str | None
    seconds: float | None


class Choice(NamedTuple):
    """The backend module and algorithm that run an operator."""

    backend: Any
    algorithm: str


PINNED: ContextVar[Pin | None] = ContextVar("symconv_fast_pinned", default=None)
_environment = Pin(
    os.environ.get(ENV_BACKEND) or None,
    os.environ.get(ENV_ALGORITHM) or None,
    "/".join(name for name in (ENV_BACKEND, ENV_ALGORITHM) if os.environ.get(name)),
)


@cache
def load(name: str) -> Any | str:
    """The module of a backend, or, as text, why it is not available. Quiet: who needs it gives the reason."""
    module = _import(name)
    reason = module if isinstance(module, str) else _missing(module)
    if reason is None:
        try:
            module = module.load() if hasattr(module, "load") else module
            if hasattr(module, "connect"):  # runs a smaller problem by the others
                module.connect(_seconds, _bind_quickest)
            return module
        except ImportError as error:
            reason = str(error)
    return f"the {name} backend is not available in this installation ({reason})"


@cache
def _import(name: str) -> Any | str:
    """The module or package of a backend, of which the slow part may still have to be loaded, or why there is none."""
    try:
        return importlib.import_module(f"symconv_fast.backends.{name}")
    except ImportError as error:
        return str(error)


def _missing(module: Any) -> str | None:
    """Why no problem can run on a backend here, by what is known before the slow part is loaded."""
    reason: str | None = module.missing() if hasattr(module, "missing") else None
    return reason


def lacking(device: str) -> list[str]:
    """Why backends with kernels for a type of device are not available here; nothing where one of them is."""
    packages = {name: _import(name) for name in BACKENDS}
    own = [n for n, p in packages.items() if hasattr(p, "misplaced") and p.misplaced(device) is None]
    reasons = [found for found in map(load, own) if isinstance(found, str)]
    return reasons if len(reasons) == len(own) else []


def available() -> dict[str, Any]:
    """Modules of the backends that can be imported here, by name."""
    loaded = {name: load(name) for name in BACKENDS}
    return {name: module for name, module in loaded.items() if not isinstance(module, str)}


@contextmanager
def backend(name: str | None = None, algorithm: str | None = None) -> Iterator[None]:
    """Pin the backend and the algorithm of everything that runs inside the `with`, backward passes included.

    What is None is left to the dispatch. The innermost `with` alone counts, and it wins over the environment
    variables. The pin holds in the current thread (and asyncio task); backward on a GPU runs in another one.
    An operator that the pinned backend or algorithm cannot run raises RuntimeError with the reason; empty tensors
    (nothing to compute) and strides (multiplied), paddings and dilations above 16384 always go to the reference.

    Raises:
        ValueError: no backend, or no algorithm of the backend, has that name.
    """
    pin = _pin(name, algorithm)
    _check_names(pin)
    token = PINNED.set(pin)
    try:
        yield
    finally:
        PINNED.reset(token)


@cache
def _pin(name: str | None, algorithm: str | None) -> Pin:
    """One object for equal pins: remembered calls tell them apart by identity."""
    return Pin(name, algorithm, "backend()")


def pinned() -> Pin:
    """What is fixed now: the innermost `backend()`, else the environment."""
    return PINNED.get() or _environment


def choose(problem: Problem, op: str) -> Choice:
    """The backend and algorithm for `op` ("fprop", "dgrad" or "wgrad"): the lowest estimate of those that can run.

    Raises:
        RuntimeError: what is pinned cannot run, with the reason. ValueError: the environment names no backend.
    """
    learnt = (rounding(problem.device), trial.state(problem))
    return _choose(problem, op, pinned(), torch.get_num_threads(), settings.version(), learnt)


def rounding(device: str) -> bool:
    """What torch's own switches say of the rounding of float32 on a type of device: part of the key of a choice."""
    return device == "cuda" and settings.tf32_allowed()


def bind(problem: Problem, op: str, activation: str | None = None) -> Callable[..., Tensor]:
    """The function that `choose` finds, all but its tensors bound: (input, weight, bias) for fprop, two tensors else.

    Where more is to be learnt it is one that chooses when it is called, after it has proven kernels and timed
    candidates: see `trial`.
    """
    pin = pinned()
    insisted = bool(pin.name or pin.algorithm)
    if trial.undecided(problem, op, insisted) and not settled(problem):
        _check_names(pin)
        return _try(problem, op, activation, lambda: _able(problem, op, pin), insisted)
    choice = choose(problem, op)
    return binding.bind(choice.backend, problem, op, choice.algorithm, activation)


def _try(
    problem: Problem, op: str, activation: str | None, able: Callable[[], list[Candidate]], insisted: bool
) -> trial.Trial:
    """The function that chooses among candidates when it is called."""

    def bind_one(name: str, algorithm: str) -> Callable[..., Tensor]:
        return binding.bind(load(name), problem, op, algorithm, activation)

    return trial.Trial(problem, op, activation, trial.Ways(able, load, bind_one, insisted))


def _quickest(problem: Problem, op: str) -> Candidate:
    """The quickest of those that run a problem themselves, whatever is pinned."""
    return _best(problem, op, _themselves(problem, op))


def _best(problem: Problem, op: str, able: list[Candidate]) -> Candidate:
    """The lowest measured time, or the lowest estimate where none was measured."""
    times = trial.times(problem, op)
    measured = [c for c in able if (c.backend, c.algorithm) in times]
    return min(measured or able, key=lambda c: times.get((c.backend, c.algorithm), c.seconds or 0.0))


def _themselves(problem: Problem, op: str) -> list[Candidate]:
    """Candidates that do not leave a part of the problem to others."""
    return [
        c
        for c in candidates(problem, op)
        if c.seconds is not None and not hasattr(load(c.backend), "connect")
    ]


def _seconds(problem: Problem, op: str) -> float:
    return min(c.seconds or 0.0 for c in _themselves(problem, op))


def _bind_quickest(problem: Problem, op: str) -> Callable[..., Tensor]:
    if trial.undecided(problem, op, False) and not settled(problem):
        return _try(problem, op, None, lambda: _themselves(problem, op), False)
    best = _quickest(problem, op)
    return binding.bind(load(best.backend), problem, op, best.algorithm)


@lru_cache(maxsize=4096)
def _choose(
    problem: Problem, op: str, pin: Pin, threads: int, version: int, learnt: tuple[object, ...]
) -> Choice:
    # The last three are part of the key alone: estimates, reasons and times may depend on them.
    _check_names(pin)
    if problem.device == "cpu":
        native.say_if_missing()
    if settled(problem):
        last: Any = load(BACKENDS[-1])
        return Choice(last, last.ALGORITHMS[0])
    best = _best(problem, op, _able(problem, op, pin))
    return Choice(load(best.backend), best.algorithm)


settings.on_change(_choose.cache_clear)


def _able(problem: Problem, op: str, pin: Pin) -> list[Candidate]:
    """Candidates that can run, of those that a pin allows. Raises RuntimeError, with the reasons, where none can."""
    allowed = candidates(problem, op, pin)
    able = [c for c in allowed if c.reason is None]
    if not able:
        reasons = "; ".join(f"{c.backend}/{c.algorithm}: {c.reason}" for c in allowed)
        wanted = f"backend={pin.name!r}, algorithm={pin.algorithm!r}"
        raise RuntimeError(f"{pin.origin} pins {wanted}, which cannot run {op} here: {reasons}")
    return able


def candidates(problem: Problem, op: str, pin: Pin | None = None) -> list[Candidate]:
    """Every backend and algorithm with its reason or its estimate; with a pin, those that it allows.

    One alone needs no estimate. What is settled is the last backend's, and nothing is asked of the others.
    """
    found, taken = [], settled(problem)
    for name in BACKENDS:
        if pin and pin.name not in (None, name):
            continue
        module = _load_for(problem, name)
        if isinstance(module, str):
            found.append(Candidate(name, "-", module, None))
            continue
        for algorithm in module.ALGORITHMS:
            if pin and pin.algorithm not in (None, algorithm):
                continue
            if taken is not None and name != BACKENDS[-1]:
                found.append(Candidate(name, algorithm, taken, None))
                continue
            reason = module.can_run(problem, op, algorithm)
            reason = reason or trial.refuted(module, problem, op, algorithm)
            alone = reason is not None or (pin and pin.name and pin.algorithm)
            seconds = None if alone else _estimate(module, problem, op, algorithm)
            found.append(Candidate(name, algorithm, reason, seconds))
    return found


def evidence(problem: Problem, op: str, candidate: Candidate) -> trial.Evidence:
    """What is known of one of the `candidates`: its time, and on a GPU whether its kernels are right."""
    if candidate.reason is not None:
        return trial.Evidence()
    return trial.evidence(load(candidate.backend), problem, op, candidate.algorithm)


def settled(problem: Problem) -> str | None:
    """Why the reference runs a problem whatever is pinned, as a clause; None where pins and estimates decide."""
    if problem.is_empty:
        return "there is nothing to compute, and the reference fills the result"
    if problem.is_far:
        return f"strides (multiplied), paddings and dilations above {FAR} always go to the reference"
    return None


def _estimate(module: Any, problem: Problem, op: str, algorithm: str) -> float:
    """Seconds by the backend's model, which no problem without a multiplication is put to."""
    seconds: float = 0.0 if problem.is_empty else module.estimate(problem, op, algorithm)
    return seconds


def _load_for(problem: Problem, name: str) -> Any | str:
    """`load`, or why the backend is not even loaded: it runs nothing on the device of the problem."""
    module = _import(name)
    if hasattr(module, "misplaced") and _missing(module) is None:
        return module.misplaced(problem.device) or load(name)
    return load(name)


def _check_names(pin: Pin) -> None:
    # Of an origin in two variables the first has the backend and the second the algorithm.
    origins = pin.origin.split("/")
    if pin.name is not None and pin.name not in BACKENDS:
        raise ValueError(
            f"{origins[0]}: backend {pin.name!r} does not exist; there are: {', '.join(BACKENDS)}"
        )
    if pin.algorithm is None:
        return
    modules = [m for n, m in available().items() if pin.name in (None, n)]
    names = sorted({a for module in modules for a in module.ALGORITHMS})
    if modules and pin.algorithm not in names:
        raise ValueError(
            f"{origins[-1]}: algorithm {pin.algorithm!r} does not exist; there are: {', '.join(names)}"
        )
