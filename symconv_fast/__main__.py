"""`python -m symconv_fast`: versions, native modules, and a numeric self-check of every backend present."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import __version__, dispatch
from .problem import OPS, Problem
from .symmetry import Symmetry

NATIVE_MODULES = ("_cpu",)


class Case(NamedTuple):
    """A layer to check: title, symmetry, spatial sizes of its input and of its kernel."""

    title: str
    counts: dict[str, int]
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]


# Odd sizes, more than one image, an asymmetric kernel where the dims allow it: what goes wrong goes wrong here.
_CASES = (
    Case("h", {"h": 16}, (9, 11), (3, 3)),
    Case("v", {"v": 16}, (9, 11), (3, 3)),
    Case("hv", {"hv": 32}, (9, 11), (3, 5)),
    Case("hvz", {"hvz": 32}, (5, 6, 7), (3, 3, 3)),
    Case("mixed", {"h": 8, "v": 4, "hv": 16}, (9, 11), (5, 3)),
    Case("h 1-D", {"h": 16}, (37,), (5,)),
)
# Largest error that passes, relative to the largest value: the sums are of a few hundred terms.
_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def main() -> int:
    """Print the report; 0 if every check passed, else 1."""
    print_versions()
    failures = 0
    for line, passed in self_check():
        print(f"{'PASS' if passed else 'FAIL'}  {line}")
        failures += not passed
    print(f"{failures} checks failed" if failures else "all checks passed")
    return 1 if failures else 0


def print_versions() -> None:
    """Python, torch, package, triton where there is one; each native module with its instruction set."""
    print(f"symconv_fast {__version__}, torch {torch.__version__}, python {platform.python_version()}")
    print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    try:
        print(f"triton {importlib.import_module('triton').__version__}")
    except ImportError:
        print("triton: not installed")
    for name in NATIVE_MODULES:
        try:
            module = importlib.import_module(f"symconv_fast.{name}")
        except ImportError as error:
            print(f"{name}: not available ({error})")
        else:
            details = ", ".join(f"{key}={value}" for key, value in module.build_info().items())
            print(f"{name}: runs with {module.isa()}; built with {details}")
    for name in dispatch.BACKENDS:
        loaded = dispatch.load(name)
        print(
            f"backend {name}: {loaded if isinstance(loaded, str) else 'algorithms ' + ', '.join(loaded.ALGORITHMS)}"
        )


def self_check() -> Iterator[tuple[str, bool]]:
    """(what was checked and its error, passed) for each backend, algorithm, tie, pass, dtype and layout that runs."""
    for case in _CASES:
        for dtype in _TOLERANCE:
            for channels_last in (False, True) if len(case.spatial) > 1 else (False,):
                yield from _check_case(case, dtype, channels_last)


def _check_case(case: Case, dtype: torch.dtype, last: bool) -> Iterator[tuple[str, bool]]:
    problem = _problem(case, dtype, last)
    tensors = _tensors(problem)
    exact = _expected(problem, tensors)
    for name, module in dispatch.available().items():
        for op in OPS:
            for algorithm in module.ALGORITHMS:
                if module.can_run(problem, op, algorithm) is not None:
                    continue
                layout = "channels last" if last else "contiguous"
                what = f"{name}/{algorithm} {op} {case.title}, {str(dtype)[6:]}, {layout}"
                try:
                    result = _run(module, problem, op, algorithm, tensors)
                except Exception as failure:  # a report must reach its end
                    message = (str(failure).splitlines() or [""])[0]
                    yield f"{what}: {type(failure).__name__}: {message}", False
                    continue
                error = float((result.double() - exact[op]).abs().max() / exact[op].abs().max())
                yield f"{what}: relative error {error:.1e}", error <= _TOLERANCE[dtype]


def _problem(case: Case, dtype: torch.dtype, last: bool) -> Problem:
    ndim = len(case.spatial)
    ties = Symmetry(case.counts, ndim=ndim).resolve(ndim, 36)
    one, zero, padding = (1,) * ndim, (0,) * ndim, tuple(k // 2 for k in case.kernel)
    sizes = (2, 20, *case.spatial), (ties.unique, 20, *case.kernel)
    return Problem.create(sizes, (ties.flat, one, padding, one, zero, False, 1, last), last, dtype, "cpu")


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
    if op == "fprop":
        return module.fprop(problem, algorithm, t["x"], t["w"], t["b"])
    if op == "dgrad":
        return module.dgrad(problem, algorithm, t["gy"], t["w"])
    return module.wgrad(problem, algorithm, t["gy"], t["x"])


def _expected(problem: Problem, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three passes in float64 from torch's own convolution and autograd on expanded filters."""
    x, w, b, gy = (tensors[name].detach().clone().double() for name in ("x", "w", "b", "gy"))
    x, w = x.requires_grad_(), w.requires_grad_()
    p = problem
    filters = p.layer_ties.expand(w)
    y = torch.convolution(x, filters, b, p.stride, p.padding, p.dilation, False, p.output_padding, p.groups)
    gx, gw = torch.autograd.grad(y, [x, w], gy)
    return {"fprop": y.detach(), "dgrad": gx, "wgrad": gw}


if __name__ == "__main__":
    sys.exit(main())
