"""`python -m symconv_fast`: versions, native modules, and a numeric self-check of every backend present.

`python -m symconv_fast calibrate` measures the rates of this machine instead: symconv_fast.calibration.

One line a backend, algorithm, pass and dtype; `--verbose` prints every single check as well. Then one line for each
kernel of the GPU backends: what came of its known answers, or why none was asked for.
"""

from __future__ import annotations

import argparse
import importlib
import math
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import __version__, dispatch, native, trial
from .binding import bind
from .problem import OPS, Problem
from .symmetry import Symmetry

NATIVE_MODULES = ("_cpu",)


class Case(NamedTuple):
    """A layer to check: title, symmetry, spatial sizes of its input and of its kernel, what is unusual about it.

    `channels` are those of the input, `filters` those of the output.
    """

    title: str
    counts: dict[str, int]
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int = 20
    filters: int = 36
    stride: int = 1
    groups: int = 1
    transposed: bool = False


class Check(NamedTuple):
    """One problem run in one way: "backend/algorithm pass dtype"; a check that raised has an infinite error."""

    way: str
    problem: str
    error: float
    outcome: str
    passed: bool


# Odd sizes, more than one image, an asymmetric kernel where the dims allow it: what goes wrong goes wrong here.
_CASES = (
    Case("h", {"h": 16}, (9, 11), (3, 3)),
    Case("v", {"v": 16}, (9, 11), (3, 3)),
    Case("hv", {"hv": 32}, (9, 11), (3, 5)),
    Case("hvz", {"hvz": 32}, (5, 6, 7), (3, 3, 3)),
    Case("mixed", {"h": 8, "v": 4, "hv": 16}, (9, 11), (5, 3)),
    Case("h 1-D", {"h": 16}, (37,), (5,)),
    Case("stride 2", {"h": 8, "hv": 16}, (9, 11), (3, 3), stride=2),
    Case("transposed", {"h": 8, "hv": 16}, (5, 6), (3, 3), stride=2, transposed=True),
    Case("groups", {"h": 16, "hv": 16}, (9, 11), (3, 3), groups=2),
    Case("one tap", {"h": 16, "hv": 16}, (9, 11), (3, 1)),
    Case("depthwise", {"h": 36}, (9, 11), (5, 3), channels=18, groups=18),
    # Whole vectors of filters, and few channels: what the algorithms `direct...` take.
    Case("C = 3", {"h": 16, "hv": 16}, (9, 11), (3, 3), channels=3, filters=32),
)
# Largest error that passes, relative to the largest value: the sums are of a few hundred terms.
_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def main(arguments: Sequence[str] = ()) -> int:
    """Print the report; 0 if every check passed, else 1."""
    if arguments and arguments[0] == "calibrate":
        from .calibration import command

        return command.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m symconv_fast",
        description="Versions and a numeric self-check.",
        epilog="python -m symconv_fast calibrate --help: measure the rates of this machine",
    )
    parser.add_argument("--verbose", action="store_true", help="print every single check")
    verbose = parser.parse_args(arguments).verbose
    print_versions()
    ways: dict[str, list[Check]] = {}
    for check in self_check():
        ways.setdefault(check.way, []).append(check)
        if verbose:
            print(f"{_verdict(check.passed)}  {check.way}, {check.problem}: {check.outcome}")
    for way in filter(ways.__contains__, _all_ways()):
        print(summary(way, ways[way]))
    total = sum(map(len, ways.values()))
    failures = sum(not check.passed for checks in ways.values() for check in checks)
    for kernel in gpu_kernels(verbose):
        print(kernel.text)
        total, failures = total + kernel.asked, failures + kernel.failed
    print(f"{failures} of {total} checks failed" if failures else f"all {total} checks passed")
    if native.missing():
        print(
            "without the native module: what passed is the reference, which is no faster than torch (see above)"
        )
    return 1 if failures else 0


def summary(way: str, checks: list[Check]) -> str:
    """One line for all problems that ran in one way: how many, and the worst, by name where it failed."""
    worst = max(checks, key=lambda c: (not c.passed, math.inf if math.isnan(c.error) else c.error))
    failures = sum(not check.passed for check in checks)
    if failures:
        return (
            f"FAIL  {way}: {failures} of {len(checks)} problems, the worst: {worst.problem}: {worst.outcome}"
        )
    return f"PASS  {way}: {len(checks)} problems, worst {worst.outcome}"


class KernelReport(NamedTuple):
    """A kernel of a GPU backend: its line, how many known answers it was asked for, and how many it failed."""

    text: str
    asked: int = 0
    failed: int = 0


def gpu_kernels(every: bool = False) -> Iterator[KernelReport]:
    """Every kernel that a GPU backend lists, with its known answers on the current GPU: one a dtype, or `every` one."""
    for name in dispatch.BACKENDS:
        package, loaded = dispatch._import(name), dispatch.load(name)
        listed = package.listing() if hasattr(package, "listing") else ()
        why = "no GPU" if not torch.cuda.is_available() else loaded if isinstance(loaded, str) else None
        kernels = [kernel for kernel, _ in listed]
        verdicts = list(_gpu_verdicts(loaded, kernels, every)) if listed and why is None else []
        for kernel, architectures in listed:
            own = [v for v in verdicts if kernel in v.kernels]
            yield _kernel_report(f"{name} kernel {kernel} ({architectures})", own, why)


def _kernel_report(title: str, verdicts: list[Verdict], why: str | None) -> KernelReport:
    """The line of one kernel."""
    failed = [v for v in verdicts if v.right is False]
    if failed:
        text = f"FAIL  {title}: {len(failed)} of {len(verdicts)} known answers: {failed[0].text}"
        return KernelReport(text, len(verdicts), len(failed))
    passed = sum(v.right is True for v in verdicts)
    if passed:
        return KernelReport(f"PASS  {title}: {passed} known answers", passed)
    return KernelReport(f"not run ({why or 'no problem of this check runs it here'})  {title}")


class Verdict(NamedTuple):
    """What came of a known answer: which kernels of the list were launched, whether it was right, and in words."""

    kernels: frozenset[str]
    right: bool | None
    text: str


def _gpu_verdicts(module: Any, listed: Sequence[str], every: bool) -> Iterator[Verdict]:
    """Known answers of the algorithms and passes: those by which a kernel is met in a dtype for the first time."""
    device = torch.device("cuda", torch.cuda.current_device())
    met: set[tuple[str, torch.dtype]] = set()
    for problem, title in _gpu_problems():
        for op in OPS:
            for algorithm in module.ALGORITHMS:
                if module.can_run(problem, op, algorithm) is not None:
                    continue
                # A name may go on with the tile.
                names = [f"{name} " for name in module.kernels(problem, op, algorithm)]
                kernels = frozenset(k for k in listed if any(name.startswith(f"{k} ") for name in names))
                new = {(kernel, problem.dtype) for kernel in kernels} - met
                if new or every:
                    met |= new
                    right = trial.prove(module, problem, op, algorithm, device)
                    found = trial.refuted(module, problem, op, algorithm)
                    yield Verdict(kernels, right, f"{title}, {op} in {str(problem.dtype)[6:]}: {found}")


def _gpu_problems() -> Iterator[tuple[Problem, str]]:
    """Those of the self-check on the GPU, with their titles."""
    for case in _CASES:
        for dtype in _TOLERANCE:
            for last in (True, False) if len(case.spatial) > 1 else (False,):
                yield replace(_problem(case, dtype, last), device="cuda"), case.title


def _all_ways() -> Iterator[str]:
    """In the order in which they are printed."""
    for name, module in dispatch.available().items():
        for algorithm in module.ALGORITHMS:
            for op in OPS:
                for dtype in _TOLERANCE:
                    yield _way(name, algorithm, op, dtype)


def _way(backend: str, algorithm: str, op: str, dtype: torch.dtype) -> str:
    return f"{backend}/{algorithm} {op} {str(dtype)[6:]}"


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def print_versions() -> None:
    """Python, torch, package, triton where there is one; each native module with its instruction set."""
    print(f"symconv_fast {__version__}, torch {torch.__version__}, python {platform.python_version()}")
    print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    try:
        print(f"triton {importlib.import_module('triton').__version__}")
    except ImportError:
        print("triton: not installed")
    for name in NATIVE_MODULES:
        reason = native.missing()
        if reason is not None:
            print(
                f"{name}: MISSING, so that CPU layers run on the reference backend: {reason}; {native.HOW_TO_BUILD}"
            )
        else:
            module = importlib.import_module(f"symconv_fast.{name}")
            details = ", ".join(f"{key}={value}" for key, value in module.build_info().items())
            print(f"{name}: runs with {module.isa()}; built with {details}")
    for name in dispatch.BACKENDS:
        loaded = dispatch.load(name)
        print(
            f"backend {name}: {loaded if isinstance(loaded, str) else 'algorithms ' + ', '.join(loaded.ALGORITHMS)}"
        )


def self_check() -> Iterator[Check]:
    """Every backend, algorithm and pass that can run each problem, dtype and layout."""
    for case in _CASES:
        for dtype in _TOLERANCE:
            for channels_last in (False, True) if len(case.spatial) > 1 else (False,):
                yield from _check_case(case, dtype, channels_last)


def _check_case(case: Case, dtype: torch.dtype, last: bool) -> Iterator[Check]:
    problem = _problem(case, dtype, last)
    tensors = _tensors(problem)
    exact = _expected(problem, tensors)
    title = f"{case.title}, {'channels last' if last else 'contiguous'}"
    for name, module in dispatch.available().items():
        for op in OPS:
            for algorithm in module.ALGORITHMS:
                if module.can_run(problem, op, algorithm) is not None:
                    continue
                way = _way(name, algorithm, op, dtype)
                try:
                    result = _run(module, problem, op, algorithm, tensors)
                except Exception as failure:  # a report must reach its end
                    message = (str(failure).splitlines() or [""])[0]
                    yield Check(way, title, math.inf, f"{type(failure).__name__}: {message}", False)
                    continue
                error = float((result.double() - exact[op]).abs().max() / exact[op].abs().max())
                yield Check(way, title, error, f"relative error {error:.1e}", error <= _TOLERANCE[dtype])


def _problem(case: Case, dtype: torch.dtype, last: bool) -> Problem:
    ndim = len(case.spatial)
    ties = Symmetry(case.counts, ndim=ndim).resolve(ndim, case.filters, case.groups)
    stride, one, zero = (case.stride,) * ndim, (1,) * ndim, (0,) * ndim
    padding = tuple(k // 2 for k in case.kernel)
    if case.transposed:
        weight = (case.channels, ties.unique // case.groups, *case.kernel)
    else:
        weight = (ties.unique, case.channels // case.groups, *case.kernel)
    static = (ties.flat, stride, padding, one, zero, case.transposed, case.groups, last)
    return Problem.create(((2, case.channels, *case.spatial), weight), static, last, dtype, "cpu")


def _tensors(problem: Problem) -> dict[str, Tensor]:
    """Seeded random x, w, b and gy in the dtype and layout of the problem."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": problem.input_shape, "w": problem.weight_shape, "gy": problem.output_shape}
    tensors = {}
    for name, shape in shapes.items():
        like = problem.empty_result("fprop", torch.empty(0, dtype=problem.dtype))
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(problem.dtype)
        last = like.dim() > 3 and problem.channels_last and name != "w"
        fmt = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
        tensors[name] = values.contiguous(memory_format=fmt) if last else values
    bias = torch.randn(problem.out_channels, generator=generator, dtype=torch.float64)
    tensors["b"] = bias.to(problem.dtype)
    return tensors


def _run(module: dispatch.Backend, problem: Problem, op: str, algorithm: str, t: dict[str, Tensor]) -> Tensor:
    names = {"fprop": ("x", "w", "b"), "dgrad": ("gy", "w"), "wgrad": ("gy", "x")}[op]
    return bind(module, problem, op, algorithm)(*(t[name] for name in names))


def _expected(problem: Problem, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three passes in float64 from torch's own convolution and autograd on expanded filters."""
    x, w, b, gy = (tensors[name].detach().clone().double() for name in ("x", "w", "b", "gy"))
    x, w = x.requires_grad_(), w.requires_grad_()
    p = problem
    filters = p.layer_ties.expand(w, 1 if p.transposed else 0)
    y = torch.convolution(
        x, filters, b, p.stride, p.padding, p.dilation, p.transposed, p.output_padding, p.groups
    )
    gx, gw = torch.autograd.grad(y, [x, w], gy)
    return {"fprop": y.detach(), "dgrad": gx, "wgrad": gw}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
