"""Native CPU kernels: the parity fold or the scatter forward, the gather-sum backward, multiplied once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import native, settings
from ..problem import Problem, allocate
from . import cpu_cost, cpu_depthwise, cpu_direct, cpu_relayout, cpu_scatter, cpu_torch, torch_conv

NAME = "cpu"
_cpu = native.module
if _cpu is None:
    raise ImportError(native.missing())
_NATIVE = ("fold", "winograd", "scatter", "scatter_winograd", *cpu_direct.ALGORITHMS)
ALGORITHMS = (*_NATIVE, cpu_relayout.NAME, "expand")

# Estimates are off by 20 % at times; losing against torch is worse than leaving a small gain.
# Panels of 16-bit types pack few orbits or channels one by one, and there the estimates are worse.
_MARGIN, _MARGIN_NARROW, _NARROW = 1.1, 1.5, 8
# Most rows of the fit are older than what a pass keeps from call to call: an 8 x 8 x 8 input then took 7.7 us, now 5.3.
_KEPT_SECONDS = 2.4e-6

_DEPTHWISE = "a depthwise layer (one input channel in each group) has kernels of its own"


clear_workspace = _cpu.clear_workspace
"""Gives the working memory that the calling thread keeps (32 MiB at most) back to the system."""


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None.

    `fold` runs every geometry; `scatter`, forward, those where mirrored taps share their products, in a result that
    lies as the input does. `winograd` and `scatter_winograd` are the same with minimal filtering: float32 with three
    taps at stride 1 on an axis that is not tied. `direct`, each filter by itself, and `direct_fold` and
    `direct_lines`, which fold whole lines forward, are for up to four input channels (`cpu_direct`). `relayout` is the
    quickest of these in channels_last, between copies of contiguous tensors (`cpu_relayout`). `expand`, a native copy
    of the filters and torch's convolution, is for layers where none of them pays.
    """
    if problem.device != "cpu":
        return f"the tensors are on {problem.device}, not on the CPU"
    if algorithm.startswith("scatter"):
        reason = _why_no_scatter(problem, op)
        if reason is not None:
            return reason
    if algorithm.endswith("winograd"):
        return _why_no_winograd(problem, op, algorithm)
    if algorithm == cpu_relayout.NAME:
        return _DEPTHWISE if cpu_depthwise.applies(problem) else cpu_relayout.why_not(problem, op)
    if algorithm in cpu_direct.ALGORITHMS:
        if cpu_depthwise.applies(problem):
            return _DEPTHWISE
        return cpu_direct.why_not(problem, op, algorithm, cpu_cost.lanes(problem))
    return None


def _why_no_scatter(problem: Problem, op: str) -> str | None:
    if op != "fprop":
        return "gradients are gathered, not scattered"
    if problem.transposed:
        return "a transposed layer gathers forward"
    if cpu_depthwise.applies(problem):
        return _DEPTHWISE
    lanes, groups = cpu_cost.lanes(problem), problem.groups
    if not any(cpu_scatter.applies(problem, mask, rows // groups, lanes) for mask, rows in problem.ties):
        return (
            "no tie whose mirrored taps share their products in this layout, or a kernel of more than 49 taps"
        )
    return None


def _why_no_winograd(problem: Problem, op: str, algorithm: str) -> str | None:
    if settings.winograd() is False:
        return "symconv_fast.allow_winograd is False"
    if cpu_depthwise.applies(problem):
        return _DEPTHWISE
    if problem.dtype != torch.float32:
        return f"minimal filtering is for float32, not for {str(problem.dtype)[6:]}"
    level = str(settings.winograd())
    if algorithm == "winograd":
        axes = [cpu_cost.filtered_axis(problem, op, c, level) for c in cpu_cost.contractions(problem, op)]
        filtered = any(axis is not None for axis in axes)
    else:
        filtered = any(cpu_scatter.can_filter(problem, mask, level) for mask, _ in problem.ties)
    if not filtered:
        tied = (
            '; with allow_winograd = "f4", nor is it the outer one of two' if algorithm != "winograd" else ""
        )
        return f"no axis is free of ties and has three taps, stride 1 and dilation 1{tied}"
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds, from the fitted models of `cpu_cost` and `cpu_depthwise`; infinite where nothing was measured."""
    cpu_cost.say_if_unmeasured()
    if algorithm == "expand":
        return cpu_torch.seconds(problem, op)
    if cpu_depthwise.applies(problem):
        return _MARGIN * cpu_depthwise.native_seconds(problem, op)
    if algorithm == cpu_relayout.NAME:
        once, times = cpu_relayout.work(problem, op)
        return times * estimate(once, op, _relaid_by(problem, op)) + cpu_relayout.seconds(problem, op)
    name = _native_name(algorithm)
    if not cpu_cost.is_measured(problem, op, name):
        return math.inf
    call = cpu_cost.call_seconds(problem, op, name)  # is known well, and all of the time of a tiny layer
    kept = _KEPT_SECONDS if algorithm in ("fold", "winograd") and op != "wgrad" else 0.0
    least = min(problem.in_channels, *(rows for _, rows in problem.ties)) // problem.groups
    guessed = problem.dtype.itemsize == 2 and not cpu_cost.has_own_rates(
        problem, op, cpu_cost.native_kind(problem, op, name)
    )
    narrow = guessed and least < _NARROW and algorithm not in cpu_direct.ALGORITHMS
    margin = _MARGIN_NARROW if narrow else _MARGIN
    return call - kept + margin * (cpu_cost.native_seconds(problem, op, name) - call)


def _relaid_by(problem: Problem, op: str) -> str:
    """The algorithm for what was copied to channels_last."""
    part, (once, _) = cpu_relayout.relaid(problem, op), cpu_relayout.work(problem, op)
    sums = (
        op == "wgrad" and cpu_relayout.number(problem, op) > 1
    )  # direct algorithms have no accumulator to add to
    able = [
        algorithm
        for algorithm in _NATIVE
        if can_run(part, op, algorithm) is None and not (sums and algorithm in cpu_direct.ALGORITHMS)
    ]
    return min(able, key=lambda algorithm: estimate(once, op, algorithm))


def _native_name(algorithm: str) -> str:
    return algorithm.replace("winograd", str(settings.winograd() or "f2"))


def bind(problem: Problem, op: str, algorithm: str) -> Callable[..., Tensor]:
    """The function of `op` with all but its tensors bound: one native call."""
    p, parts = problem, None
    if algorithm == cpu_relayout.NAME:
        parts = cpu_relayout.parts(p, op)
        algorithm = _relaid_by(p, op)
    images, lines = parts or (0, 0)
    _, _, dilation, _, output_padding, _ = torch_conv.geometry(p)
    strides = allocate(p.result_shape(op), torch.empty(0, device="meta"), p.channels_last).stride()
    ties = [value for segment in p.ties for value in segment]
    native = _cpu.Pass(
        ties, p.stride, p.padding, p.dilation, p.transposed, p.groups, p.input_shape, p.weight_shape, p.output_shape,
        dilation, output_padding, p.expanded_shape, strides, torch_conv.asked_in(p, op), p.channels_last,
        cpu_depthwise.applies(p), _native_name(algorithm), images, lines, op == "dgrad",
    )  # fmt: skip
    function: Callable[..., Tensor] = getattr(native, op)
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
