# Builds, for one shape and tie, our layer and its baselines as functions to time, and checks our numbers first.
"""One measured case: what is called, what it is compared with, and whether its result is right.

Baselines: `expanded/...` is torch's convolution on filters that were expanded beforehand, outside the timing, in both
layouts; the faster one is THE baseline of every ratio. `expand inside` expands within the timing, `compiled` is that
under torch.compile, `ordinary` is torch's own layer. Depthwise layers have one more, `separate`: |G| convolutions of
multiplier 1, one for each member, because torch has no quick kernel for a depthwise layer with a multiplier.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import symconv_fast
from bench.measure import interleave, peak_extra_bytes, provenance
from bench.shapes import Shape

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ORDINARY = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SYMMETRIC = {
    1: symconv_fast.SymmetricConv1d,
    2: symconv_fast.SymmetricConv2d,
    3: symconv_fast.SymmetricConv3d,
}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
PASSES = ("fwd", "dgrad", "wgrad", "step")
# Times the error of torch's own convolution of the same dtype, both against float64 (root mean square). Above it a
# result is wrong and is not timed; what is merely less exact than the project allows is timed and listed.
WRONG = 10.0


@dataclass(frozen=True)
class Case:
    """A shape with a tie, dtype, memory format and pass (fwd, dgrad, wgrad, or step: forward and all gradients)."""

    shape: Shape
    tie: str
    direction: str = "fwd"
    channels_last: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """Name of the case, as pytest shows it."""
        layout = "" if self.channels_last else "-nchw"
        return f"{self.shape.name}-{self.tie}-{self.direction}{layout}".replace(" ", "_")


@dataclass(frozen=True)
class Row:
    """A convolution with its arguments, as the functions below time it."""

    run: Callable[..., Tensor]
    input: Tensor
    parameters: tuple[Tensor, ...]
    upstream: Tensor | None = None

    def call(self, direction: str) -> Callable[[], Sequence[Tensor]]:
        """A function without arguments for one pass; gradients are taken by autograd, as in training."""
        if direction == "fwd":
            return self._forward
        if direction == "step":
            return self._step
        wanted = (self.input,) if direction == "dgrad" else self.parameters[:1]
        output = self.run(self.input, *self.parameters)
        return lambda: torch.autograd.grad(output, wanted, self.upstream, retain_graph=True)

    def _forward(self) -> Sequence[Tensor]:
        with torch.no_grad():
            return (self.run(self.input, *self.parameters),)

    def _step(self) -> Sequence[Tensor]:
        output = self.run(self.input, *self.parameters)
        return (output.detach(), *torch.autograd.grad(output, (self.input, *self.parameters), self.upstream))


class Bench:
    """The tensors and functions of one case."""

    def __init__(self, case: Case) -> None:
        self.case, shape = case, case.shape
        self.ndim = len(shape.spatial)
        self.orbit = 2 ** len(case.tie)
        self.filters = shape.out_channels(self.orbit)
        generator = torch.Generator().manual_seed(0)
        layer = SYMMETRIC[self.ndim](
            shape.channels, self.filters, shape.kernel, shape.stride, shape.padding,
            groups=shape.groups, symmetry=case.tie, dtype=case.dtype,
        )  # fmt: skip
        x = torch.randn(shape.batch, shape.channels, *shape.spatial, generator=generator).to(case.dtype)
        self.layer = self._laid_out(layer, case.channels_last)
        self.x = self._laid_out(x, case.channels_last)
        self.conv_args = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups}
        self.ties = layer.symmetry.resolve(self.ndim, self.filters, shape.groups)
        self.expanded = layer.expanded_weight().detach()
        with torch.no_grad():
            like = CONV[self.ndim](self.x, self.expanded, **self.conv_args)
        self.upstream = (
            torch.randn(like.shape, generator=generator).to(case.dtype) if case.direction != "fwd" else None
        )
        self.macs_dense = like.numel() * self.expanded[0].numel()
        self.macs_folded = self.macs_dense * layer.unique_out_channels // self.filters

    def _laid_out(self, it, channels_last: bool):
        """A tensor or module in the memory format that is measured (there is one only for 1-D)."""
        if self.ndim == 1:
            return it
        return it.to(memory_format=CHANNELS_LAST[self.ndim] if channels_last else torch.contiguous_format)

    def _leaf(self, tensor: Tensor, channels_last: bool | None = None) -> Tensor:
        """A tensor that takes part in autograd, where the pass needs it."""
        channels_last = self.case.channels_last if channels_last is None else channels_last
        tensor = (
            self._laid_out(tensor.detach().clone(), channels_last)
            if tensor.ndim > 1
            else tensor.detach().clone()
        )
        return tensor.requires_grad_(self.case.direction != "fwd")

    def _row(self, run: Callable[..., Tensor], weight: Tensor, channels_last: bool | None = None) -> Row:
        channels_last = self.case.channels_last if channels_last is None else channels_last
        upstream = None if self.upstream is None else self._laid_out(self.upstream, channels_last)
        parameters = (self._leaf(weight, channels_last), self._leaf(self.layer.bias))
        return Row(run, self._leaf(self.x, channels_last), parameters, upstream)

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return CONV[self.ndim](x, weight, bias, **self.conv_args)

    def _expand_inside(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return CONV[self.ndim](x, self.ties.expand(weight), bias, **self.conv_args)

    def _separate(self) -> Row:
        """Each member of the orbits as a convolution of its own; the outputs are not brought together."""
        groups = self.case.shape.groups
        filters = self.expanded.unflatten(0, (groups, self.orbit)).unbind(1)
        biases = self.layer.bias.detach().unflatten(0, (groups, self.orbit)).unbind(1)
        members = [
            (self._laid_out(w.contiguous(), self.case.channels_last), b.contiguous())
            for w, b in zip(filters, biases, strict=True)
        ]

        def run(x: Tensor, *_: Tensor) -> Tensor:
            return [self._conv(x, w, b) for w, b in members][-1]

        return Row(run, self._leaf(self.x), ())

    def ours(self) -> Row:
        """The symmetric layer itself, called as a user calls it."""
        upstream = None if self.upstream is None else self._laid_out(self.upstream, self.case.channels_last)
        parameters = (self.layer.weight, self.layer.bias)
        return Row(lambda x, *_: self.layer(x), self._leaf(self.x), parameters, upstream)

    def baselines(self, compiled: bool = False) -> dict[str, Row]:
        """All baselines by name."""
        rows = {"expanded/contiguous": self._row(self._conv, self.expanded, False)}
        if self.ndim > 1:
            rows["expanded/channels_last"] = self._row(self._conv, self.expanded, True)
        rows["expand inside"] = self._row(self._expand_inside, self.layer.weight)
        if compiled:
            rows["compiled"] = self._row(torch.compile(self._expand_inside), self.layer.weight)
        rows["ordinary"] = self._ordinary()
        if self.case.shape.depthwise and self.case.direction == "fwd":
            rows["separate"] = self._separate()
        return rows

    def _ordinary(self) -> Row:
        """torch's own layer of the same shape, with weights of its own."""
        shape = self.case.shape
        layer = ORDINARY[self.ndim](
            shape.channels, self.filters, shape.kernel, shape.stride, shape.padding,
            groups=shape.groups, dtype=self.case.dtype,
        )  # fmt: skip
        layer = self._laid_out(layer, self.case.channels_last)
        row = self.ours()
        return Row(lambda x, *_: layer(x), row.input, (layer.weight, layer.bias), row.upstream)

    def check(self) -> float:
        """Compare every tensor of our result with float64.

        Returns:
            The largest error as a multiple of that of torch's own convolution of the same dtype (root mean squares),
            or of one rounding of the result where that is more.

        Raises:
            AssertionError: a result is wrong, or not a number.
        """
        direction = self.case.direction
        mine = self.ours().call(direction)()
        theirs = self._row(self._expand_inside, self.layer.weight).call(direction)()
        exact_row = self._row(self._expand_inside, self.layer.weight)
        leaves = [
            t.detach().double().requires_grad_(t.requires_grad)
            for t in (exact_row.input, *exact_row.parameters)
        ]
        upstream = None if self.upstream is None else self.upstream.double()
        exact = Row(self._expand_inside, leaves[0], tuple(leaves[1:]), upstream).call(direction)()
        worst = 0.0
        for index, (got, torchs, true) in enumerate(zip(mine, theirs, exact, strict=True)):
            rounding = torch.finfo(self.case.dtype).eps * rms(true)
            error = rms(got.double() - true) / max(rms(torchs.double() - true), rounding)
            text = f"{self.case.name}: result {index} is wrong, so it is not timed: {error:.3g} times torch's error"
            assert error <= WRONG, text  # also false for NaN
            worst = max(worst, error)
        return worst


def rms(tensor: Tensor) -> float:
    """Root mean square."""
    return math.sqrt(tensor.square().mean().item())


def chosen(bench: Bench) -> tuple[str, str]:
    """Backend and algorithm that run in this case; for a step, those of the forward, dgrad and wgrad."""
    ops = {"fwd": ("fprop",), "step": ("fprop", "dgrad", "wgrad")}.get(
        bench.case.direction, (bench.case.direction,)
    )
    passes = [chosen for chosen in symconv_fast.explain(bench.layer, bench.x).passes if chosen.op in ops]
    backends = dict.fromkeys(str(chosen.backend) for chosen in passes)
    algorithms = dict.fromkeys(str(chosen.algorithm) for chosen in passes)
    return "+".join(backends), "+".join(algorithms)


def run(case: Case, seconds: float = 2.0, compiled: bool = False, memory: bool = True) -> dict[str, object]:
    """Check and measure one case; with `compiled` also against torch.compile, with `memory` also its peak memory.

    Returns:
        The row that is stored: case, milliseconds, MAC rates (in 1e9 a second), ratio to the best expanded
        convolution, its fraction of |G|, peak extra bytes of ours and of the baseline, and where it was measured.
    """
    bench = Bench(case)
    error = bench.check()
    rows = {"ours": bench.ours(), **bench.baselines(compiled)}
    calls = {name: row.call(case.direction) for name, row in rows.items()}
    timings = interleave(calls, seconds)
    candidates = [name for name in timings if name.startswith("expanded/") or name == "separate"]
    baseline = min(candidates, key=lambda name: timings[name].p50)
    mine, backend = timings["ours"], chosen(bench)
    ratio = timings[baseline].p50 / mine.p50
    work = 3 if case.direction == "step" else 1
    shape = case.shape
    return {
        "shape": shape.name, "model": shape.model, "dtype": str(case.dtype).removeprefix("torch."),
        "layout": "channels_last" if case.channels_last and bench.ndim > 1 else "contiguous",
        "tie": case.tie, "pass": case.direction, "backend": backend[0], "algorithm": backend[1],
        "ms_p20": mine.p20, "ms_p50": mine.p50, "ms_p80": mine.p80,
        "gmacs_folded": work * bench.macs_folded / mine.p50 * 1e-6,
        "gmacs_dense": work * bench.macs_dense / mine.p50 * 1e-6,
        "baseline": baseline, "baseline_ms": timings[baseline].p50, "ratio": ratio,
        "orbit": bench.orbit, "fraction": ratio / bench.orbit, "error": error,
        "all_ms": {name: timing.p50 for name, timing in timings.items()},
        "peak_extra_bytes": peak_extra_bytes(calls["ours"]) if memory else None,
        "baseline_peak_extra_bytes": peak_extra_bytes(calls[baseline]) if memory else None,
        "activation_bytes": bench.x.nbytes + bench.macs_dense // bench.expanded[0].numel() * bench.x.element_size(),
        **provenance(),
    }  # fmt: skip
