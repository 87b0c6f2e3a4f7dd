# Builds, for one shape and tie, our layer and its baselines as functions to time, and checks our numbers first.
"""One layer as a comparison: what is called, what it is compared with, and whether its result is right.

Baselines: `expanded/...` is torch's convolution on filters that were expanded beforehand, outside the timing, in both
layouts; the faster one is THE baseline of every ratio. `expand inside` expands within the timing, `compiled` is that
under torch.compile, `ordinary` is torch's own layer. Depthwise layers have one more, `separate`: |G| convolutions of
multiplier 1, one for each member, because torch has no quick kernel for a depthwise layer with a multiplier. On a CPU
torch leaves some small problems to a slow kernel although oneDNN has a quick one: there `onednn`, that one called
directly, is timed too, but it is not what a user gets and does not count for the ratio.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import symconv_fast
from bench.case import STEPS, Case
from bench.device import device
from bench.measure import Comparison, Verdict, measure
from symconv_fast import settings
from symconv_fast.backends import torch_conv
from symconv_fast.nn import rc_symmetry
from symconv_fast.problem import memory_format

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ORDINARY = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SYMMETRIC = {
    1: symconv_fast.SymmetricConv1d,
    2: symconv_fast.SymmetricConv2d,
    3: symconv_fast.SymmetricConv3d,
}
OPS = {"fwd": ("fprop",), "dgrad": ("dgrad",), "wgrad": ("wgrad",)}
OPS |= dict.fromkeys(STEPS, ("fprop", "dgrad", "wgrad"))
# Times the error of torch's own convolution of the same dtype, both against float64 (root mean square). Above it a
# result is wrong and is not timed; what is merely less exact than the project allows is timed and listed.
WRONG = 10.0
# A baseline is wrong above this error relative to the result: 2 % covers TF32 and bfloat16 with room to spare.
BASELINE_WRONG = 0.02


class CannotRunError(RuntimeError):
    """What a case pins cannot run it; the message gives the reason."""


@dataclass(frozen=True)
class Row:
    """A convolution with its arguments, as the functions below time it; `run` may give several outputs."""

    run: Callable[..., Sequence[Tensor]]
    input: Tensor
    parameters: tuple[Tensor, ...]
    upstream: tuple[Tensor, ...] = ()

    def call(self, direction: str) -> Callable[[], Sequence[Tensor]]:
        """A function without arguments for one pass; gradients are taken by autograd, as in training."""
        if direction == "fwd":
            return self._forward
        if direction in STEPS:
            return self._step
        weights = tuple(p for p in self.parameters if p.ndim > 1)
        wanted = (self.input,) if direction == "dgrad" else weights
        outputs = self.run(self.input, *self.parameters)
        return lambda: torch.autograd.grad(outputs, wanted, self.upstream, retain_graph=True)

    def _forward(self) -> Sequence[Tensor]:
        with torch.no_grad():
            return self.run(self.input, *self.parameters)

    def _step(self) -> Sequence[Tensor]:
        outputs = self.run(self.input, *self.parameters)
        gradients = torch.autograd.grad(outputs, (self.input, *self.parameters), self.upstream)
        return (*(output.detach() for output in outputs), *gradients)


class Bench:
    """The tensors and functions of one case."""

    def __init__(self, case: Case) -> None:
        self.case, shape = case, case.shape
        self.ndim = len(shape.spatial)
        self.orbit = case.orbit
        self.filters = shape.out_channels(self.orbit)
        drawn = {"generator": torch.Generator(case.device).manual_seed(0), "device": case.device}
        layer = SYMMETRIC[self.ndim](
            shape.channels, self.filters, shape.taps, shape.stride, shape.padding, dilation=shape.dilation,
            groups=shape.groups, symmetry=case.tie, input_symmetry=input_symmetry(case), bias="-" not in case.tie,
        )  # fmt: skip
        x = torch.randn(shape.batch, shape.channels, *shape.spatial, **drawn)
        self.layer = self._laid_out(layer.to(case.device, case.dtype), case.channels_last)
        self.x = self._laid_out(x.to(case.dtype), case.channels_last)
        self.conv_args = {
            "stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation, "groups": shape.groups,
        }  # fmt: skip
        self.biases = () if self.layer.bias is None else (self.layer.bias,)
        self.expanded = layer.expanded_weight().detach()
        with torch.no_grad():
            like = CONV[self.ndim](self.x, self.expanded, **self.conv_args)
        self.upstream = torch.randn(like.shape, **drawn).to(case.dtype)
        self.macs_dense = like.numel() * self.expanded[0].numel()
        self.macs_folded = self.macs_dense * layer.weight.numel() // self.expanded.numel()

    def _laid_out(self, it, channels_last: bool):
        """A tensor or module in a memory format; where it has it already, the same object."""
        return it.to(memory_format=memory_format(self.ndim, channels_last))

    def _leaf(self, tensor: Tensor, channels_last: bool) -> Tensor:
        """A copy that takes part in autograd, where the pass needs it."""
        tensor = tensor.detach().clone()
        tensor = self._laid_out(tensor, channels_last) if tensor.ndim > 1 else tensor
        return tensor.requires_grad_(self.case.direction != "fwd")

    def _upstream(self, gradient: Tensor, channels_last: bool) -> Tensor:
        """The gradient of an output, in the layout of the output or as the pass says."""
        if self.case.direction == "step_of_sum":
            return torch.ones((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)
        return self._laid_out(gradient, channels_last and self.case.direction != "step_contiguous")

    def _row(
        self, run: Callable[..., Tensor], parameters: Sequence[Tensor], channels_last: bool | None = None
    ) -> Row:
        """`run` on parameters of its own; in the layout of the case unless another one is given."""
        last = self.case.channels_last if channels_last is None else channels_last
        leaves = tuple(self._leaf(parameter, last) for parameter in parameters)
        upstream = (self._upstream(self.upstream, last),)
        return Row(lambda *a: (run(*a),), self._leaf(self.x, last), leaves, upstream)

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return CONV[self.ndim](x, weight, bias, **self.conv_args)

    def _expand_inside(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return CONV[self.ndim](x, self.layer.ties.expand(weight), bias, **self.conv_args)

    def _separate(self) -> Row:
        """Each member of the orbits as a convolution of its own; the outputs are not brought together."""
        last, groups = self.case.channels_last, self.case.shape.groups

        def members(tensor: Tensor, dim: int) -> list[Tensor]:
            parts = tensor.detach().unflatten(dim, (groups, self.orbit)).unbind(dim + 1)
            return [part.contiguous() for part in parts]

        weights = [self._leaf(w, last) for w in members(self.expanded, 0)]
        biases = [self._leaf(b, last) for bias in self.biases for b in members(bias, 0)]
        upstream = tuple(self._upstream(g, last) for g in members(self.upstream, 1))
        n = self.orbit

        def run(x: Tensor, *parameters: Tensor) -> list[Tensor]:
            pairs = zip(parameters[:n], parameters[n:], strict=True)
            return [self._conv(x, weight, bias) for weight, bias in pairs]

        return Row(run, self._leaf(self.x, last), (*weights, *biases), upstream)

    def ours(self) -> Row:
        """The symmetric layer itself, called as a user calls it."""
        row = self._row(lambda x, *_: self.layer(x), ())
        return Row(row.run, row.input, (self.layer.weight, *self.biases), row.upstream)

    def _ordinary(self) -> Row:
        """torch's own layer of the same shape, with weights of its own."""
        shape = self.case.shape
        layer = ORDINARY[self.ndim](
            shape.channels, self.filters, shape.taps, **self.conv_args, bias=bool(self.biases)
        )
        layer = self._laid_out(layer.to(self.case.device, self.case.dtype), self.case.channels_last)
        row = self._row(lambda x, *_: layer(x), ())
        return Row(row.run, row.input, tuple(layer.parameters()), row.upstream)

    def baselines(self, compiled: bool = False, rivals_only: bool = False) -> dict[str, Row]:
        """All baselines by name, or those alone that count for the ratio."""
        expanded, reduced = (self.expanded, *self.biases), (self.layer.weight, *self.biases)
        rows = {"expanded/contiguous": self._row(self._conv, expanded, False)}
        if self.ndim > 1:
            rows["expanded/channels_last"] = self._row(self._conv, expanded, True)
        if self._lacks_instructions():
            rows["expanded/widened"] = self._row(self._widened, expanded, self.ndim > 1)
        if self.case.shape.depthwise and self.orbit > 1:
            rows["separate"] = self._separate()
        if rivals_only:
            return rows
        rows["expand inside"] = self._row(self._expand_inside, reduced)
        if compiled:
            torch._dynamo.reset()  # else the limit of recompilations is reached after a few cases
            rows["compiled"] = self._row(torch.compile(self._expand_inside, dynamic=False), reduced)
        rows["ordinary"] = self._ordinary()
        if not self.case.shape.depthwise and self._lacks_onednn(rows["expanded/contiguous"]):
            rows["onednn"] = self._row(self._onednn, expanded)
        return rows

    def _lacks_instructions(self) -> bool:
        """Has this CPU no products of a 16-bit type? Then float32 is the stronger baseline."""
        case = self.case
        return case.device == "cpu" and case.dtype.itemsize == 2 and not torch_conv.multiplies(case.dtype)

    def _widened(self, *tensors: Tensor) -> Tensor:
        return self._conv(*(tensor.float() for tensor in tensors)).to(self.case.dtype)

    def _onednn(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape, n = self.case.shape, self.ndim
        sizes = (list(shape.padding), [shape.stride] * n, [shape.dilation] * n)
        return torch.mkldnn_convolution(x, weight, bias, *sizes, shape.groups)

    def _lacks_onednn(self, row: Row) -> bool:
        """Does torch leave this forward pass to a kernel of its own although oneDNN could run it?"""
        case, onednn = self.case, torch.backends.mkldnn
        able = onednn.is_available() and case.dtype in (torch.float32, torch.bfloat16)
        able = able and not self._lacks_instructions()
        if case.device != "cpu" or case.direction != "fwd" or self.ndim == 1 or not able:
            return False
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            row.call("fwd")()
        return not any("mkldnn" in event.key for event in profile.key_averages())

    def check(self) -> Verdict:
        """Compare every tensor of our result, and of the rivals', with float64.

        Returns:
            The largest error as a multiple of that of torch's own convolution of the same dtype (root mean squares),
            or of one rounding of the result where that is more; and the rivals that are wrong.

        Raises:
            AssertionError: a result of ours is wrong, or not a number.
        """
        direction = self.case.direction
        mine, theirs = self.ours().call(direction)(), self._expanding(self.case.dtype).call(direction)()
        with without_search():
            exact = self._expanding(torch.float64).call(direction)()
        worst = 0.0
        for index, (got, torchs, true) in enumerate(zip(mine, theirs, exact, strict=True)):
            rounding = torch.finfo(self.case.dtype).eps * rms(true)
            error = rms(got.double() - true) / max(rms(torchs.double() - true), rounding)
            text = f"{self.case.name}: result {index} is wrong, so it is not timed: {error:.3g} times torch's error"
            assert error <= WRONG, text  # also false for NaN
            worst = max(worst, error)
        return Verdict(worst, self._wrong_rivals())

    def _expanding(self, dtype: torch.dtype) -> Row:
        """Expansion and torch's convolution, from the same numbers, in any dtype."""
        row = self._row(self._expand_inside, (self.layer.weight, *self.biases))
        leaves = [t.detach().to(dtype).requires_grad_(t.requires_grad) for t in (row.input, *row.parameters)]
        return Row(row.run, leaves[0], tuple(leaves[1:]), tuple(g.to(dtype) for g in row.upstream))

    def _wrong_rivals(self) -> list[str]:
        """Expanded baselines whose forward result is not torch's in float64: cuDNN has had such kernels."""
        with torch.no_grad():
            with without_search():
                true = self._conv(self.x.double(), self.expanded.double(), *(b.double() for b in self.biases))
            wrong = []
            for name, row in self.baselines(rivals_only=True).items():
                if name.startswith("expanded/"):
                    (got,) = row.call("fwd")()
                    if not rms(got.double() - true) <= BASELINE_WRONG * rms(true):  # also for NaN
                        wrong.append(name)
        return wrong

    def comparison(self, compiled: bool = False, rivals_only: bool = False) -> Comparison:
        """What `bench.measure.measure` takes."""
        case, work = self.case, len(OPS[self.case.direction])
        rows = {"ours": self.ours(), **self.baselines(compiled, rivals_only)}
        tensors = self.x.nbytes + self.upstream.nbytes
        return Comparison(
            name=case.name,
            facts={
                **case.facts(), **chosen(self), "orbit": self.orbit, "unique": self.layer.unique_out_channels,
                "filter_bytes": self.expanded.nbytes,
            },
            calls={name: row.call(case.direction) for name, row in rows.items()},
            rivals=tuple(filter(is_rival, rows)),
            check=self.check,
            limit=self.expanded.numel() / self.layer.weight.numel(),
            macs_dense=work * self.macs_dense,
            macs_folded=work * self.macs_folded,
            bytes=work * (tensors + self.layer.weight.nbytes),
            activation_bytes=tensors,
            device=case.device,
            dtype=case.dtype,
        )  # fmt: skip


def input_symmetry(case: Case) -> dict[str, tuple[int, ...]] | str | None:
    """What mirrors do to the input channels of a case, as layers take it."""
    return rc_symmetry() if case.input_tie == "rc" else case.input_tie or None


def is_rival(name: str) -> bool:
    """Does a call count for the ratio, as a baseline of that name?"""
    return name.startswith("expanded/") or name == "separate"


def rms(tensor: Tensor) -> float:
    """Root mean square."""
    return math.sqrt(tensor.square().mean().item())


def chosen(bench: Bench) -> dict[str, object]:
    """Backend, algorithm and configuration that run in this case; for a step, of forward, dgrad and wgrad.

    A backend may have `config(problem, op, algorithm)` that returns what it tuned: tile sizes and the like.

    Raises:
        CannotRunError: what the case pins cannot run it.
    """
    explained = symconv_fast.explain(bench.layer, bench.x)
    passes = [found for found in explained.passes if found.op in OPS[bench.case.direction]]
    for found in passes:
        if found.error:
            raise CannotRunError(found.error)
    modules = symconv_fast.dispatch.available()
    configs = {}
    for found in passes:
        describe = getattr(modules[found.backend], "config", None)
        if describe is not None:
            configs[found.op] = str(describe(explained.problem, found.op, found.algorithm))
    return {
        "backend": "+".join(dict.fromkeys(str(found.backend) for found in passes)),
        "algorithm": "+".join(dict.fromkeys(str(found.algorithm) for found in passes)),
        "config": {"allow_winograd": settings.winograd(), **configs},
    }


@contextmanager
def without_search() -> Iterator[None]:
    """cuDNN takes its first choice: trying all its kernels takes seconds in float64, which nobody times."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def pinned(case: Case) -> AbstractContextManager[None]:
    """Context in which ours runs as the case says."""
    return symconv_fast.backend(case.backend or None, case.algorithm or None)


def run(
    case: Case, seconds: float = 2.0, compiled: bool = False, memory: bool = True, rivals_only: bool = False
) -> dict[str, object]:
    """Check and measure one case; with `compiled` also against torch.compile, with `memory` also its peak memory.

    With `rivals_only` nothing is timed but ours and what counts for the ratio.

    Returns:
        The row of `bench.measure.measure`.

    Raises:
        AssertionError: a wrong result. CannotRunError: what the case pins cannot run it.
    """
    device(case.device)  # sets up CUDA before the first tensor
    with pinned(case):
        return measure(Bench(case).comparison(compiled, rivals_only), seconds, memory)
