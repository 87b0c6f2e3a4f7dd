# Runs under TRITON_INTERPRET=1, started by test_triton.py: the Triton backend against the oracle, one line a check.
"""`python tests/triton_grid.py` prints the number of checks, then a line for each: its title, `ok`, `skipped: why` or
what is wrong, and seconds of CPU time, with tabs between them.

Triton decides when its kernels are imported whether they are interpreted, so all this needs a process of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from unittest import mock

import cases
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
import triton_sides
from oracle import OPS, Case, check, expand, expected, make_tensors, problem_of, run

import symconv_fast as sf
from symconv_fast import binding, ops
from symconv_fast.backends.triton import backend, configs, launch
from symconv_fast.backends.triton.launch import Options

ALGORITHMS = ("fold", "direct")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SAMPLE = 8
# An operation of the interpreter takes microseconds whatever its size, so the cost is programs times taps.
TOO_MANY = 400
SHRUNK = {
    "depthwise, 31 x 31": {"spatial": (13, 12), "kernel": (11, 9), "padding": (5, 4)},
    "stem, C = 3": {"spatial": (11, 9)},
    "stem, C = 1, wide": {"spatial": (11, 12)},
    "many pixels": {"spatial": (23, 31)},
    "many pixels, contiguous": {"spatial": (31, 23)},
    "many pixels in one line": {"spatial": (700,)},
    "many orbits": {"spatial": (3, 4)},
    "many orbits, contiguous": {"spatial": (3, 4)},
    "transposed 3-D": {"spatial": (2, 2, 3)},
    "groups, channels last": {"groups": 1, "channels": 5, "ties": ((1, 2), (3, 1), (0, 3))},
    "winograd, 3-D": {"ties": ((3, 4), (6, 3))},
    # Long lines and large maps matter to the native kernels, which cut them into parts; here a few tiles are enough.
    "few orbits, octuple": {"spatial": (3, 4, 5)},
    "stem, C = 3, channels last": {"spatial": (13, 11)},
    "mirrored axis, two chunks": {"spatial": (4, 5)},
    "mirrored axis, tiles": {"spatial": (17, 9)},
    "mirrored axis, even kernel": {"spatial": (9, 8)},
    "mirrored axis, 3-D": {"spatial": (3, 3, 5)},
    "mirrored axis below a strided one": {"spatial": (5, 4, 6)},
    "mirrored axis, turned": {"spatial": (3, 4, 6)},
    "scatter, lines across, tiles": {"spatial": (4, 21)},
    "scatter, lines across, 3-D": {"spatial": (3, 4, 6)},
    "scatter, 3-D": {"spatial": (3, 3, 6)},
    "scatter, 3-D, turned": {"spatial": (3, 4, 6)},
    "scatter, 3-D, stride": {"spatial": (4, 3, 6)},
    "direct, stride 2": {"spatial": (13, 11)},
    "direct, large map": {"spatial": (17, 20)},
    "direct, contiguous": {"spatial": (5, 40)},
    "relayout, images in parts": {"spatial": (6, 5)},
    "relayout, lines in parts": {"spatial": (9, 7)},
    "relayout, lines, stride": {"spatial": (9, 8)},
    "relayout, lines, dilation": {"spatial": (13, 10)},
    "relayout, 3-D, lines in parts": {"spatial": (4, 3, 5)},
    "mixed 3-D": {"spatial": (4, 3, 5), "kernel": (2, 2, 3)},
    "mixed 3-D, channels last": {"spatial": (3, 4, 5), "kernel": (3, 2, 2)},
    # Every program of a depthwise kernel has all members and taps; a few rows a group have as many kinds of them.
    "random 5": {"ties": ((2, 3), (7, 12)), "batch": 2},
    "random 6": {"ties": ((1, 6), (2, 6), (3, 9), (5, 12), (0, 3))},
}

Check = Callable[[], None]


def _steps(case: Case) -> int:
    """Rounds of loads that wgrad, the slowest pass there, takes: members times taps squared in depthwise layers."""
    taps, total = 1, 0
    for k in case.kernel:
        taps *= k
    for mask, rows in case.ties:
        total += (
            taps
            * (1 << mask.bit_count())
            * -(-rows // case.groups // 32)
            * -(-case.channels // case.groups // 32)
        )
    return total * (1 if case.channels == case.groups else case.groups)


class TooExpensiveError(Exception):
    """A check that is not made, and why."""


def _special() -> dict[str, Case]:
    return {name: case for name, case in cases.SPECIAL.items() if not name.startswith(cases.CPU_PLANS)}


def problems() -> dict[str, Case]:
    """Every special case but those of plans of the CPU, and seeded random ones; the expensive ones shrunk."""
    found = _special() | {f"random {i}": case for i, case in enumerate(cases.sample(SAMPLE))}
    return {name: replace(case, **SHRUNK.get(name, {})) for name, case in found.items()}


def why_not(case: Case) -> str | None:
    """Why a problem is left out, or None."""
    return f"{_steps(case)} rounds of loads are more than {TOO_MANY}" if _steps(case) > TOO_MANY else None


def grid() -> Iterator[tuple[str, Check]]:
    """All problems, all passes; dtypes and algorithms in turn, so that each meets each.

    Forward the two algorithms are two kernels, so the special cases run both.
    """
    dtypes = cycle(DTYPES)
    special = _special()
    for i, (name, case) in enumerate(problems().items()):
        number = i if name in special else i - len(special)
        forward = ALGORITHMS if name in special else ALGORITHMS[number % 2 :][:1]
        yield from _checks(name, case, number, forward, dtypes)


def _checks(
    name: str, case: Case, number: int, forward: tuple[str, ...], dtypes: Iterator[torch.dtype]
) -> Iterator[tuple[str, Check]]:
    reason = why_not(case)
    if reason is not None:
        yield f"every pass, {name}", partial(_skip, reason)
        return
    depthwise = case.groups == case.channels > 1
    for i, op in enumerate(OPS):
        for algorithm in forward if op == "fprop" else ALGORITHMS[(number + i) % 2 :][:1]:
            if depthwise:
                algorithm = "direct"
            dtype = next(dtypes)
            title = f"{algorithm}, {str(dtype)[6:]}, {op}, {name}"
            yield title, partial(check, case, dtype, op, "triton", algorithm)
    if number % 2:
        next(dtypes)  # else a pass would meet the same dtypes again and again


def _skip(reason: str) -> None:
    raise TooExpensiveError(reason)


# --- what the grid does not reach ----------------------------------------------------------------------------------


def same_bits(case: Case, op: str, algorithm: str) -> None:
    """Twice the same arguments, twice the same bits; the positions of wgrad are split, so that there is an order."""
    first = run(case, torch.float32, op, "triton", algorithm)
    if op == "wgrad":
        steps = launch.plan(
            problem_of(case, torch.float32, op), op, algorithm, options=Options("interpreter")
        )
        assert steps.launches[0].constants["SPLITS"] > 1
        assert steps.launches[1].kernel == "reduce_splits"
    assert first.abs().sum() > 0
    assert torch.equal(first, run(case, torch.float32, op, "triton", algorithm))


def forget_calls() -> None:
    """Plan anew what was called before."""
    ops.forget_plans()
    backend.bind.cache_clear()
    launch._plan.cache_clear()


def other_tiles(case: Case, op: str, algorithm: str, dtype: torch.dtype, arch: str) -> None:
    """With the tiles of a GPU, which are other ones than the interpreter's."""
    forget_calls()
    with mock.patch.object(backend.run, "architecture", return_value=arch) as asked:
        check(case, dtype, op, "triton", algorithm)
    asked.assert_called()
    forget_calls()


def one_launch_a_tie(case: Case, count: int) -> None:
    """A layer that fills the device gets a launch for each number of tied axes."""
    with mock.patch.object(configs, "MERGE_WAVES", 0):
        forget_calls()
        options = Options("sm_90", bias=case.bias)
        problem = problem_of(case, torch.float32, "fprop")
        assert len(launch.plan(problem, "fprop", "fold", options=options).launches) == 1 + count
        check(case, torch.float32, "fprop", "triton", "fold")
    forget_calls()
    assert len(launch.plan(problem, "fprop", "fold", options=options).launches) == 2


def activation(case: Case, function: Callable[[torch.Tensor], torch.Tensor], algorithm: str) -> None:
    """The fused activation is that of torch, and it is the kernel that applies it."""
    t, dtype = make_tensors(case, torch.float32), torch.float32
    tensors = (t.x.to(dtype), t.w.to(dtype), t.b.to(dtype))
    with sf.backend("triton", algorithm), mock.patch.object(binding, "activate", side_effect=AssertionError):
        y = ops.fprop_activated(*tensors, function.__name__, *case.static)
    wanted = function(expected(case, dtype)["fprop"])
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def strict_overflow() -> None:
    """float16 sums of mirrored values beyond 65504 do not overflow where the result does not."""
    case = Case(ties=((3, 4),), channels=16, spatial=(4, 4), padding=(1, 1), bias=False)
    problem = problem_of(case, torch.float16, "fprop")
    x, w = torch.full(case.input_shape, 60000.0).half(), torch.full(case.weight_shape, 2.0**-12).half()
    gy = torch.full(case.output_shape, 60000.0).half()
    filters = expand(w.double(), case)
    leaf = x.double().requires_grad_()
    y = F.conv2d(leaf, filters, padding=1)
    (gx,) = torch.autograd.grad(y, leaf, gy.double())
    got = backend.bind(problem, "fprop", "fold")(x, w), backend.bind(problem, "dgrad", "fold")(gy, w)
    for result, wanted in zip(got, (y.detach(), gx)):
        assert wanted.abs().max() < 65504
        torch.testing.assert_close(result.double(), wanted, rtol=2e-3, atol=0)


@triton.jit
def brain_kernel(a, b, out, product, less, N: tl.constexpr):
    """Sum, difference and product of bfloat16, a comparison, and a matrix product."""
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    x = tl.load(a + at)
    y = tl.load(b + at)
    tl.store(out + at, x + y)
    tl.store(out + N * N + at, x - y)
    tl.store(out + 2 * N * N + at, x * y)
    tl.store(less + at, (x < y).to(tl.int32))
    tl.store(product + at, tl.dot(x, y, tl.zeros((N, N), tl.float32)))
    tl.store(out + 3 * N * N + at, tl.dot(x, y, tl.zeros((N, N), tl.float32)).to(tl.bfloat16))


def brain_arithmetic() -> None:
    """The repaired interpreter computes in bfloat16 as torch does, rounding to nearest even."""
    n = 32
    a, b = (torch.randn(n, n).to(torch.bfloat16) for _ in range(2))
    a[0, :4] = torch.tensor([float("inf"), float("nan"), 0.0, -0.0], dtype=torch.bfloat16)
    a[0, 4], b[0, 4] = 1.0, 2.0**-8  # halfway, to even
    out, less = torch.empty(4, n, n, dtype=torch.bfloat16), torch.empty(n, n, dtype=torch.int32)
    product = torch.empty(n, n)
    brain_kernel[(1,)](a, b, out, product, less, n)
    for got, wanted in zip(out, (a + b, a - b, a * b)):
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
        assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(less.bool(), a < b)
    exact = a[1:].float() @ b.float()
    torch.testing.assert_close(product[1:], exact)
    assert torch.equal(out[3, 1:], product[1:].to(torch.bfloat16))


def all_checks() -> Iterator[tuple[str, Check]]:
    """The grid and the checks of what it does not reach."""
    yield "bfloat16 in the interpreter", brain_arithmetic
    yield from grid()
    special = cases.SPECIAL
    wide = Case(ties=((1, 3),), channels=2, spatial=(64, 66), kernel=(1, 3), bias=False)
    for op in OPS:
        for algorithm in ALGORITHMS:
            yield f"same bits, {algorithm}, {op}", partial(same_bits, wide, op, algorithm)
    yield (
        "same bits, depthwise",
        partial(
            same_bits,
            replace(wide, ties=((1, 4),), channels=4, groups=4, spatial=(160, 264)),
            "wgrad",
            "direct",
        ),
    )
    for name, arch in (
        ("many pixels", "sm_90"),
        ("mixed 2-D", "sm_80"),
        ("groups", "sm_90"),
        ("1-D", "gfx942"),
    ):
        case = replace(special[name], **SHRUNK.get(name, {}))
        for op in OPS:
            yield (
                f"tiles of {arch}, {op}, {name}",
                partial(other_tiles, case, op, "fold", torch.float16, arch),
            )
    yield (
        "tiles of sm_90, direct, many pixels",
        partial(
            other_tiles,
            replace(special["many pixels"], spatial=(23, 31)),
            "fprop",
            "direct",
            torch.float32,
            "sm_90",
        ),
    )
    for arch, dtype in (("gfx942", torch.float16), ("sm_80", torch.float32)):  # the latter has 8 columns
        case = replace(special["few orbits, octuple"], spatial=(3, 4, 5))
        yield f"tiles of {arch}, fold, octuples", partial(other_tiles, case, "fprop", "fold", dtype, arch)
    yield "one launch a number of tied axes", partial(one_launch_a_tie, special["mixed 2-D"], 3)
    for function in (F.relu, F.silu, F.gelu):
        for algorithm in ALGORITHMS:
            title = f"activation, {algorithm}, {function.__name__}"
            yield title, partial(activation, special["hv"], function, algorithm)
    yield "activation, depthwise", partial(activation, special["depthwise, stride 2"], F.silu, "direct")
    yield "float16 does not overflow", strict_overflow
    yield from triton_sides.checks()


def main() -> int:
    """Run and print them all."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    checks = list(all_checks())
    print(len(checks), flush=True)
    for title, function in checks:
        start = time.process_time()
        try:
            function()
            verdict = "ok"
        except TooExpensiveError as reason:
            verdict = f"skipped: {reason}"
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(title, verdict, f"{time.process_time() - start:.2f}", sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
