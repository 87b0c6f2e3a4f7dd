"""The functions that `dispatch` lists, by the selections of the native module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import calibration, native, settings
from ...problem import Problem, allocate
from .. import torch_conv
from . import cost, rates, torch_cost
from .selection import select

__all__ = [
    "ALGORITHMS",
    "NAME",
    "bind",
    "can_run",
    "clear_workspace",
    "dgrad",
    "estimate",
    "fprop",
    "select",
    "wgrad",
]

NAME = "cpu"
_cpu: Any = native.module
_NATIVE = ("fold", "winograd", "scatter", "scatter_winograd", "direct", "direct_fold")
_RELAYOUT, _EXPAND = "relayout", "expand"
ALGORITHMS = (*_NATIVE, _RELAYOUT, _EXPAND)


clear_workspace = _cpu.clear_workspace
"""Gives the working memory that the calling thread keeps (32 MiB at most) back to the system."""


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None: csrc/cpu/selection/select.cpp decides.

    `fold` runs every geometry; `scatter`, forward, those where mirrored taps share their products, in a result that
    lies as the input does; of a mixture, segments that share none are folded beside those that do. `winograd` and
    `scatter_winograd` are the same with minimal filtering: float32 with three taps at stride 1 on an axis that is
    not tied. `direct`, each filter by itself, and `direct_fold`, which folds whole lines, are for up to four input
    channels. `relayout` is the quickest of these in channels_last, between copies of contiguous tensors. `expand`,
    a native copy of the filters and torch's convolution, is for layers where none of them pays.
    """
    if problem.device != "cpu":
        return f"the tensors are on {problem.device}, not on the CPU"
    if algorithm.endswith("winograd") and settings.winograd() is False:
        return "symconv_fast.allow_winograd is False"
    reason: str | None = _select(problem, op, algorithm).reason
    return reason


def _select(problem: Problem, op: str, algorithm: str) -> Any:
    if algorithm == _RELAYOUT:
        return select(problem, op, "fold", relayout=True)  # which is refused nothing else
    return selected(problem, op, algorithm)[1]


def selected(problem: Problem, op: str, algorithm: str) -> tuple[str, Any]:
    """The native name of an algorithm, and what it selects; not of `relayout`."""
    name = _native_name(algorithm)
    return name, select(problem, op, name)


def _native_name(algorithm: str) -> str:
    """That of csrc/cpu/selection/select.h, where minimal filtering has a level."""
    level = str(settings.winograd() or "f2")
    return {"winograd": f"fold_{level}", "scatter_winograd": f"scatter_{level}"}.get(algorithm, algorithm)


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds, from the fitted models of `cost` and `torch_cost`; infinite where nothing was measured."""
    rates.say_if_unmeasured()
    if algorithm == _EXPAND:
        return torch_cost.seconds(problem, op)
    if algorithm == _RELAYOUT:
        return _quickest_relaid(problem, op).seconds
    name = _native_name(algorithm)
    return cost.seconds(problem, op, name, select(problem, op, name))


class _Relaid(NamedTuple):
    selection: Any
    seconds: float


def _quickest_relaid(problem: Problem, op: str) -> _Relaid:
    """The algorithm for what was copied to channels_last."""
    best = None
    for algorithm in _NATIVE:
        if algorithm.endswith("winograd") and settings.winograd() is False:
            continue
        name = _native_name(algorithm)
        selection = select(problem, op, name, relayout=True)
        if selection.reason is None:
            found = _Relaid(selection, cost.seconds(problem, op, name, selection))
            best = found if best is None or found.seconds < best.seconds else best
    if best is None:
        reason = can_run(problem, op, _RELAYOUT)
        raise ValueError(f"algorithm {_RELAYOUT!r} cannot run {op} of {problem}: {reason}")
    return best


def bind(problem: Problem, op: str, algorithm: str) -> Callable[..., Tensor]:
    """The function of `op` with all but its tensors bound: one native call."""
    p = problem
    selection = _quickest_relaid(p, op).selection if algorithm == _RELAYOUT else _select(p, op, algorithm)
    _, _, dilation, _, output_padding, _ = torch_conv.geometry(p)
    result = allocate(p.result_shape(op), torch.empty(0, device="meta"), p.channels_last)
    native_pass = _cpu.Pass(
        selection,
        dilation=dilation,
        output_padding=output_padding,
        filters=p.expanded_shape,
        strides=result.stride(),
        asked=torch_conv.asked_in(p, op),
    )
    function: Callable[..., Tensor] = getattr(native_pass, op)
    return function


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial)."""
    return bind(problem, "fprop", algorithm)(input, weight, bias)


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    return bind(problem, "dgrad", algorithm)(grad_output, weight)


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight."""
    return bind(problem, "wgrad", algorithm)(grad_output, input)


calibration.use_stored()
