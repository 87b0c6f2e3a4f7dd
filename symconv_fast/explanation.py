"""explain(): the choice of `dispatch` in words, a verdict first, then the way of each pass; the rest on request."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from . import dispatch, native, trial
from .dispatch import Candidate, Pin
from .problem import OPS, Problem, suggests_channels_last
from .trial import Evidence

PASSES = {"fprop": "forward", "dgrad": "input gradient", "wgrad": "weight gradient"}
"""The three passes in words."""

_TORCHS = "torch's convolution"


@dataclass(frozen=True)
class PassReport:
    """One of the three passes: what runs, or why nothing can, and all candidates.

    `torch_seconds` is the estimate for the same pass of torch's own layer, with as many filters; where torch's
    convolution was measured on expanded filters, as much less as the estimates say. `evidence` has, for each candidate
    on a GPU, its measured seconds and what is known of its kernels; on other devices there is none.
    """

    op: str
    backend: str | None
    algorithm: str | None
    candidates: tuple[Candidate, ...]
    error: str | None
    torch_seconds: float = math.inf
    evidence: tuple[Evidence, ...] = ()

    @property
    def measured(self) -> float | None:
        """Seconds that were measured for what runs, in this process; None where it was chosen by estimates."""
        found = zip(self.candidates, self.evidence)
        return next((e.measured for c, e in found if self._runs(c)), None)

    @property
    def seconds(self) -> float:
        """Measured or estimated seconds of what runs; infinite where there are none."""
        if self.measured is not None:
            return self.measured
        found = (c for c in self.candidates if self._runs(c))
        return next((c.seconds for c in found if c.seconds is not None), math.inf)

    def _runs(self, candidate: Candidate) -> bool:
        return (candidate.backend, candidate.algorithm) == (self.backend, self.algorithm)

    @property
    def way(self) -> str:
        """What runs, such as `cpu/fold`, or torch's convolution where the filters are expanded for it."""
        return _TORCHS if self.algorithm == "expand" else f"{self.backend}/{self.algorithm}"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. `str()` opens with the verdict; `details()` has every candidate; `passes` are the data.

    `pin` is what was fixed when it was asked.
    """

    problem: Problem
    passes: tuple[PassReport, ...]
    pin: Pin

    @property
    def limit(self) -> float:
        """Numbers of the filters for each one of the weight: how much faster the ties alone can make a pass.

        1 where mirrors exchange groups: each filter of an orbit then reads other channels.
        """
        p = self.problem
        if p.sides and p.sides.across:
            return 1.0
        return (
            math.prod(p.expanded_shape) / math.prod(p.weight_shape) if p.sides else p.out_channels / p.unique
        )

    @property
    def verdict(self) -> str:
        """In one line what runs and how much faster than torch's layer that is estimated to be."""
        failed = next((report for report in self.passes if report.error), None)
        if failed is not None:
            return f"cannot run the {PASSES[failed.op]} pass: {failed.error}"
        if self.problem.is_empty:
            return "nothing to compute: input, weight or output is empty"
        if all(report.way == _TORCHS for report in self.passes):
            return (
                f"no gain expected: {_TORCHS} runs, on filters that are expanded in the call{self._because()}"
            )
        return f"runs on {self._ways()}: {self._estimate()}"

    def _because(self) -> str:
        """Why torch's convolution runs, where that is not by the estimates."""
        pin = self.pin
        settled = dispatch.settled(self.problem)
        if settled is not None:
            overruled = pin.name not in (None, "reference") or pin.algorithm not in (None, "expand")
            return f"; {settled}" + (f", whatever {pin.origin} asks for" if overruled else "")
        if pin.name == "reference" or pin.algorithm == "expand":
            return f" ({pin.origin} asks for it)"
        missing = native.missing() if self.problem.device == "cpu" else None
        if missing is not None:
            return f"; native module missing: {missing}; {native.HOW_TO_BUILD}"
        lacking = dispatch.lacking(self.problem.device)
        if lacking:
            return f"; kernels missing: {'; '.join(lacking)}"
        if self.problem.sides and all(c.reason for c in self.passes[0].candidates if c.algorithm != "expand"):
            return f" (no kernel runs these ties yet: {self._refusal()})"
        return " (nothing is tied)" if self.problem.unique == self.problem.out_channels else ""

    def _refusal(self) -> str:
        """Why no kernel runs ties on both sides: what the fold says, or all that know nothing of them."""
        folds = [c.reason for c in self.passes[0].candidates if c.algorithm == "fold"]
        return next(filter(None, folds), "") or (self.problem.sides.why_not if self.problem.sides else "")

    def _ways(self) -> str:
        forward, *backward = (report.way for report in self.passes)
        backwards = " and ".join(dict.fromkeys(backward))
        return (
            f"{forward} forward and backward"
            if backwards == forward
            else f"{forward} forward, {backwards} backward"
        )

    def _estimate(self) -> str:
        """How many times as fast as torch's layer, beside the limit of the ties."""
        forward = self.passes[0].torch_seconds / self.passes[0].seconds
        step = sum(r.torch_seconds for r in self.passes) / sum(r.seconds for r in self.passes)
        if not all(math.isfinite(ratio) and ratio > 0 for ratio in (forward, step)):
            return "its speed is not estimated on this kind of device"
        limit = f"{self.limit:.2f}".rstrip("0").rstrip(".")
        beyond = max(forward, step) > 1.1 * self.limit
        filtered = any("winograd" in str(report.algorithm) for report in self.passes)
        more = "minimal filtering adds to it" if filtered else f"{_TORCHS} is slow here"
        return (
            f"an estimated {forward:.1f} times as fast as torch's layer forward, {step:.1f} times in a training step "
            f"(limit {limit}{'; ' + more if beyond else ''})"
        )

    def __str__(self) -> str:
        return "\n".join(
            [self.verdict, *self._passes(), *self._costs(), "every other way, and why not: .details()"]
        )

    def _passes(self) -> list[str]:
        """What runs in each pass that can run, with its estimate and that of torch's layer."""
        if self.problem.is_empty:
            return []
        able = [report for report in self.passes if report.error is None]
        width = max((len(report.way) for report in able), default=0)
        lines = [f"{PASSES[report.op]:<15}  {report.way:<{width}}" for report in able]
        return [f"{line}  {_times(report)}" for line, report in zip(lines, able)]

    def _costs(self) -> list[str]:
        p = self.problem
        kind = "transposed convolution" if p.transposed else "convolution"
        layout = "channels last" if p.channels_last else "contiguous"
        return [
            f"{kind} {p.input_shape} -> {p.output_shape}, kernel {p.kernel}, "
            f"{str(p.dtype)[6:]} on {p.device}, {layout}",
            f"{p.unique} rows of weight for {p.out_channels} filters; multiply-accumulates a pass: "
            f"{p.macs_folded:,} folded, {p.macs_dense:,} dense; {p.bytes:,} bytes",
        ]

    def details(self) -> str:
        """The verdict, then a table of every candidate of every pass: its estimate, or the reason why it cannot run."""
        names = (c.algorithm for report in self.passes for c in report.candidates)
        width = max(map(len, ("algorithm", *names)))
        lines = [
            self.verdict,
            *self._costs(),
            f"{'pass':<15}  {'backend':<10} {'algorithm':<{width}} {'':<7} estimate or reason",
        ]
        for report in self.passes:
            for i, c in enumerate(report.candidates):
                known = report.evidence[i] if report.evidence else None
                lines.append(
                    f"{PASSES[report.op]:<15}  {c.backend:<10} {c.algorithm:<{width}} "
                    f"{'chosen' if report._runs(c) else '':<7} {_why(c, known)}"
                )
            if report.error:
                lines.append(f"{PASSES[report.op]:<15}  error: {report.error}")
        return "\n".join(lines)


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "time that is not measured on this kind of device"
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def _times(report: PassReport) -> str:
    """What a pass takes, and torch's layer in it."""
    if report.measured is None:
        return f"an estimated {_time(report.seconds)}, torch's layer {_time(report.torch_seconds)}"
    return f"measured: {_time(report.seconds)}; torch's layer an estimated {_time(report.torch_seconds)}"


def _why(candidate: Candidate, known: Evidence | None) -> str:
    """Why a candidate is chosen or not: its reason, or its time, and what is known of its kernels."""
    if candidate.reason is not None:
        return candidate.reason
    estimate = "the only one that the pin allows" if candidate.seconds is None else _time(candidate.seconds)
    if known is None:
        return estimate
    if known.measured is not None:
        text = f"{_time(known.measured)} (measured)"
    else:
        text = estimate if candidate.seconds is None else f"{estimate} (estimated)"
    return text if known.known_answer is None else f"{text}; known answer: {known.known_answer}"


def explain(layer: Any, x: Tensor | None = None) -> Explanation:
    """What would run for a layer and an input, and why: nothing is computed.

        print(explain(layer, x))            # a verdict, then what runs in each pass
        print(explain(layer, x).details())  # also every way that was not taken, and why

    Args:
        layer: a Symmetric layer, or a `Problem` (then `x` is left out).
        x: the layer's input, batched or not.

    Returns:
        An `Explanation`. Its `verdict` is one line: the backend and algorithm of the passes, and how much faster than
        torch's layer of as many filters that is by the estimates that the choice is made from (those of native kernels
        are a little pessimistic), or by measurements where the choice was made by those (on GPUs: docs/trust.md), or
        that no gain is expected. Its `passes` are the same as data: for fprop, dgrad and
        wgrad what is chosen, every candidate with its estimate (seconds) or the reason why it cannot run, and the
        estimate for torch's layer. Its `problem` has multiply-accumulates folded and dense, and bytes.

    Raises:
        TypeError: `layer` is neither, or x is missing. Whatever calling the layer with `x` raises.
    """
    if isinstance(layer, Problem):
        problem, weight_last = layer, layer.channels_last
    elif not hasattr(layer, "problem"):
        raise TypeError(
            "explain takes SymmetricConv1d/2d/3d, SymmetricConvTranspose1d/2d/3d or a Problem, "
            f"got {type(layer).__name__}; of a whole model convert(model, ..., example_input=x) reports each layer"
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
    return Explanation(problem, tuple(_report(problems[op], op) for op in OPS), dispatch.pinned())


def _report(problem: Problem, op: str) -> PassReport:
    found = tuple(dispatch.candidates(problem, op))
    try:
        choice = dispatch.choose(problem, op)
    except RuntimeError as error:
        return PassReport(op, None, None, found, str(error))
    evidence = tuple(dispatch.evidence(problem, op, candidate) for candidate in found)
    evidence = evidence if trial.known(problem) else ()
    return PassReport(
        op, choice.backend.NAME, choice.algorithm, found, None, _torch_seconds(problem, op), evidence
    )


def _torch_seconds(problem: Problem, op: str) -> float:
    """Estimated seconds of torch's own layer, on the scale of what was measured where that was."""
    if problem.is_empty:
        return math.inf
    reference: Any = dispatch.load("reference")
    seconds: float = reference.torch_seconds(problem, op)
    measured = trial.times(problem, op).get(("reference", "expand"))
    return seconds if measured is None else seconds * measured / reference.estimate(problem, op, "expand")
