"""Problem -> backend and algorithm, with reasons: the list of backends, the choice, and how to see and steer it."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import backends, native, settings
from .activation import activate
from .problem import OPS, Problem, suggests_channels_last

BACKENDS: tuple[str, ...] = ("cpu", "triton", "composed", "reference")
"""Modules under symconv_fast.backends. To add a backend, add its name here and nowhere else."""

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

    def fprop(
        self, problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The layer's output."""

    def dgrad(self, problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the layer's input."""

    def wgrad(self, problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
        """The gradient of the reduced weight."""


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
    reason = backends.missing(name)
    if reason is None:
        try:
            return importlib.import_module(f"symconv_fast.backends.{name}")
        except ImportError as error:
            reason = str(error)
    return f"the {name} backend is not available in this installation ({reason})"


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
    (nothing to compute) always go to the reference.

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
    return _choose(problem, op, pinned(), torch.get_num_threads())


def bind(problem: Problem, op: str, activation: str | None = None) -> Callable[..., Tensor]:
    """The function that `choose` finds, all but its tensors bound: (input, weight, bias) for fprop, two tensors else.

    A backend may have a `bind` of its own, where it can prepare more than the arguments, and an `fprop_activated` of
    its own, where its kernels can apply an activation.
    """
    backend, algorithm = choose(problem, op)
    if activation is not None and hasattr(backend, "fprop_activated"):
        return partial(backend.fprop_activated, problem, algorithm, activation)
    own = getattr(backend, "bind", None)
    run = own(problem, op, algorithm) if own else partial(getattr(backend, op), problem, algorithm)
    return run if activation is None else lambda *tensors: activate(run(*tensors), activation)


@lru_cache(maxsize=4096)
def _choose(problem: Problem, op: str, pin: Pin, threads: int) -> Choice:
    # `threads` is part of the key alone: estimates may depend on it.
    _check_names(pin)
    if problem.device == "cpu":
        native.say_if_missing()
    if _is_empty(problem):
        module = load("reference")
        return Choice(module, "expand")
    allowed = candidates(problem, op, pin)
    able = [c for c in allowed if c.reason is None]
    if not able:
        reasons = "; ".join(f"{c.backend}/{c.algorithm}: {c.reason}" for c in allowed)
        wanted = f"backend={pin.name!r}, algorithm={pin.algorithm!r}"
        raise RuntimeError(f"{pin.origin} pins {wanted}, which cannot run {op} here: {reasons}")
    best = min(able, key=lambda c: c.seconds or 0.0)
    return Choice(load(best.backend), best.algorithm)


settings.on_change(_choose.cache_clear)


def candidates(problem: Problem, op: str, pin: Pin | None = None) -> list[Candidate]:
    """Every backend and algorithm with its reason or its estimate; with a pin, those that it allows.

    One alone needs no estimate.
    """
    found = []
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
            reason = module.can_run(problem, op, algorithm)
            settled = reason is not None or (pin and pin.name and pin.algorithm)
            seconds = None if settled else module.estimate(problem, op, algorithm)
            found.append(Candidate(name, algorithm, reason, seconds))
    return found


def _load_for(problem: Problem, name: str) -> Any | str:
    """`load`, or why the backend is not even imported: it runs nothing on the device of the problem."""
    reason = None if backends.missing(name) else backends.misplaced(name, problem.device)
    return load(name) if reason is None else reason


def _is_empty(problem: Problem) -> bool:
    shapes = (problem.input_shape, problem.weight_shape, problem.output_shape)
    return any(0 in shape for shape in shapes)


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


@dataclass(frozen=True)
class PassReport:
    """One of the three passes: what runs, or why nothing can, and all candidates."""

    op: str
    backend: str | None
    algorithm: str | None
    candidates: tuple[Candidate, ...]
    error: str | None


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `str()` of it is a table."""

    problem: Problem
    passes: tuple[PassReport, ...]

    def __str__(self) -> str:
        p = self.problem
        kind = "transposed convolution" if p.transposed else "convolution"
        layout = "channels last" if p.channels_last else "contiguous"
        names = (c.algorithm for report in self.passes for c in report.candidates)
        width = max(map(len, ("algorithm", *names)))
        lines = [
            f"{kind} {p.input_shape} -> {p.output_shape}, kernel {p.kernel}, "
            f"{str(p.dtype)[6:]} on {p.device}, {layout}",
            f"{p.unique} rows of weight for {p.out_channels} filters; multiply-accumulates a pass: "
            f"{p.macs_folded:,} folded, {p.macs_dense:,} dense; {p.bytes:,} bytes",
            *(
                [f"{native.missing()}; {native.HOW_TO_BUILD}"]
                if p.device == "cpu" and native.missing()
                else []
            ),
            f"{'pass':<6} {'backend':<10} {'algorithm':<{width}} {'':<7} estimate or reason",
        ]
        for report in self.passes:
            for c in report.candidates:
                chosen = (c.backend, c.algorithm) == (report.backend, report.algorithm)
                why = c.reason if c.seconds is None else _estimate(c.seconds)
                lines.append(
                    f"{report.op:<6} {c.backend:<10} {c.algorithm:<{width}} {'chosen' if chosen else '':<7} {why}"
                )
            if report.error:
                lines.append(f"{report.op:<6} error: {report.error}")
        return "\n".join(lines)


def _estimate(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if math.isfinite(seconds) else "not measured on this kind of device"


def explain(layer: Any, x: Tensor | None = None) -> Explanation:
    """What would run for a layer and an input, and why: nothing is computed.

    Args:
        layer: a Symmetric layer, or a `Problem` (then `x` is left out).
        x: the layer's input, batched or not.

    Returns:
        An `Explanation`: for fprop, dgrad and wgrad the backend and algorithm chosen, every other candidate with its
        estimate (seconds) or the reason why it cannot run, multiply-accumulates folded and dense, and bytes.

    Raises:
        TypeError: `layer` is neither, or x is missing. Whatever calling the layer with `x` raises.
    """
    if isinstance(layer, Problem):
        problem, weight_last = layer, layer.channels_last
    elif not hasattr(layer, "problem"):
        raise TypeError(
            "explain takes SymmetricConv1d/2d/3d, SymmetricConvTranspose1d/2d/3d or a Problem, "
            f"got {type(layer).__name__}"
        )
    elif x is None:
        raise TypeError("explain(layer, x) needs the input x of the layer; only a Problem goes without")
    else:
        problem, weight_last = layer.problem(x), suggests_channels_last(layer.weight)
    gradient_last = problem.channels_last
    problems = {
        "fprop": problem,
        "dgrad": replace(problem, input_channels_last=gradient_last),
        "wgrad": replace(problem, input_channels_last=gradient_last, channels_last=weight_last),
    }
    return Explanation(problem, tuple(_report(problems[op], op) for op in OPS))


def _report(problem: Problem, op: str) -> PassReport:
    found = tuple(candidates(problem, op))
    try:
        choice = choose(problem, op)
    except RuntimeError as error:
        return PassReport(op, None, None, found, str(error))
    return PassReport(op, choice.backend.NAME, choice.algorithm, found, None)
