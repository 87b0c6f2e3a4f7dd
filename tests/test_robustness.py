# Threads, forked workers, memory that runs out, repeatability, and every instruction set that this CPU has.
"""What a service or a data loader does to the kernels; each check compares bits or fails loudly."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Barrier

import cases
import pytest
import torch
from oracle import OPS, Case, candidates, expected, run, tolerance
from oracle import threads as number_of_threads
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import symconv_fast
from symconv_fast import SymmetricConv2d, dispatch

PACKAGE = Path(symconv_fast.__file__).parent.parent
REPLAY = str(Path(__file__).with_name("replay.py"))
SETS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16")

# Large enough for several tiles and two threads; both layouts.
JOBS = [
    replace(case, spatial=(25, 26), threads=2, **more)
    for case in map(cases.SPECIAL.get, ("mixed 2-D", "groups", "transposed", "winograd, h"))
    for more in ({}, cases.LAST)
]


def _has_native() -> bool:
    return "cpu" in dispatch.available()


needs_native = pytest.mark.skipif(not _has_native(), reason="the native CPU module is not built")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two threads in each test, and afterwards what it was before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@lru_cache
def ways(case: Case) -> list[tuple[str, str]]:
    """(op, algorithm) of the native kernels; minimal filtering at its default level, since the level is global.

    Not `expand`, which ends in torch's own convolution: oneDNN's weight gradient was seen to wait for ever at a
    barrier when a shape is run again after `torch.set_num_threads` (torch 2.13). Nor `relayout`, which is one of the
    others: which one may depend on the number of threads.
    """
    return [
        (op, algorithm.removesuffix(" f2"))
        for op in OPS
        for backend, algorithm, reason in candidates(case, torch.float32, op)
        if backend == "cpu" and reason is None and not algorithm.endswith(("f4", "expand", "relayout"))
    ]


def all_results(case: Case) -> list[Tensor]:
    """Every operator and algorithm of the CPU backend in float32, in the order of `ways`."""
    return [run(case, torch.float32, op, "cpu", algorithm) for op, algorithm in ways(case)]


# --- threads -----------------------------------------------------------------------------------------------------


@needs_native
def test_eight_python_threads_give_the_same_bits_as_one() -> None:
    alone = [all_results(case) for case in JOBS]
    start = Barrier(8)

    def work(offset: int) -> list[tuple[int, list[Tensor]]]:
        torch.set_num_threads(2)  # a setting of each thread
        start.wait()
        order = [(offset + i) % len(JOBS) for i in range(2 * len(JOBS))]
        return [(i, all_results(JOBS[i])) for i in order]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(8)):
            for i, results in found:
                assert all(torch.equal(a, b) for a, b in zip(results, alone[i])), JOBS[i]


@needs_native
def test_training_in_python_threads_gives_the_same_bits() -> None:
    """Forward and backward of one shared layer, through autograd."""
    layer = SymmetricConv2d(8, 24, 3, padding=1, symmetry={"h": 8, "hv": 8})
    inputs = torch.randn(8, 4, 8, 17, 19)

    def work(x: Tensor) -> tuple[Tensor, ...]:
        torch.set_num_threads(2)
        x = x.clone().requires_grad_()
        y = layer(x)
        return (y.detach(), *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias]))

    alone = [work(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for a, b in zip(pool.map(work, inputs), alone):
            assert all(torch.equal(p, q) for p, q in zip(a, b))


@needs_native
def test_number_of_threads_may_change_between_calls() -> None:
    """Right with any number; the same bits again when a number comes back."""
    for case in JOBS:
        first: dict[int, list[Tensor]] = {}
        for count in (1, 3, 2, 5, 1, 2, 3, 5):
            torch.set_num_threads(count)
            results = all_results(case)
            for (op, algorithm), result, before in zip(ways(case), results, first.setdefault(count, results)):
                error = (result.double() - expected(case, torch.float32)[op]).abs().max()
                assert error <= tolerance(case, torch.float32, op, "cpu", algorithm), (count, op, case)
                assert torch.equal(result, before), (count, op, case)


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls libgomp, which torch brings on Linux")
def test_inside_a_parallel_region() -> None:
    """Called by every thread of an OpenMP region, as from another library's loop: serial inside, and right."""
    runtime = list(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if not runtime:
        pytest.skip("this torch brings no libgomp")
    gomp, done = ctypes.CDLL(str(runtime[0])), []
    with number_of_threads(1):
        alone = [all_results(case) for case in JOBS]

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_: object) -> None:
        try:
            inside = gomp.omp_in_parallel() == 1
            same = [
                all(torch.equal(a, b) for a, b in zip(all_results(case), results))
                for case, results in zip(JOBS, alone)
            ]
            done.append((inside, all(same)))
        except BaseException as error:  # must not pass through the region
            done.append((False, repr(error)))

    gomp.GOMP_parallel(region, None, 2, 0)
    assert done == [(True, True)] * 2


# --- processes ---------------------------------------------------------------------------------------------------


class _Convolved(Dataset):
    """Runs a layer, forward and backward, in the worker."""

    def __init__(self, layer: SymmetricConv2d, inputs: Tensor) -> None:
        self.layer, self.inputs = layer, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        y = self.layer(self.inputs[index])
        (gw,) = torch.autograd.grad(y.sum(), self.layer.weight)
        return y.detach(), gw


@needs_native
def test_forked_data_loader_workers() -> None:
    """After the parent has used its threads. torch gives each worker one: OpenMP's do not survive a fork."""
    layer = SymmetricConv2d(6, 16, 3, padding=1, symmetry={"h": 8, "v": 4})
    data = _Convolved(layer, torch.randn(8, 2, 6, 21, 23))
    here = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for (y, gw), (y_here, gw_here) in zip(loader, here):
        torch.testing.assert_close(y, y_here, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gw, gw_here, rtol=1e-4, atol=1e-4)
    assert torch.equal(data[0][0], here[0][0])


# With torch 2.13 the first two write past their tensors in the weight gradient and the third crashes in bfloat16
# forward, unless the package keeps torch's convolution away from them.
TORCH_GOES_WRONG = (
    Case(
        ndim=3, ties=((1, 8),), channels=4, spatial=(5, 4, 4), kernel=(7, 1, 1), stride=(2, 1, 1),
        padding=(3, 0, 0), dilation=(1, 1, 1), output_padding=(0, 0, 0), layouts=("channels_last",) * 3,
    ),
    Case(
        ndim=3, ties=((4, 2), (7, 4)), channels=2, spatial=(2, 1, 5), kernel=(5, 2, 5), stride=(2, 2, 2),
        padding=(3, 1, 3), dilation=(1, 1, 1), output_padding=(0, 1, 0), transposed=True, groups=2,
        layouts=("channels_last",) * 3, result_last=True,
    ),
    Case(
        ndim=3, ties=((2, 4),), channels=3, spatial=(3, 8, 1), kernel=(1, 5, 1), stride=(3, 3, 3),
        padding=(1, 1, 2), dilation=(1, 2, 2), output_padding=(0, 0, 0), batch=1,
        layouts=("channels_last",) * 3, result_last=True,
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", TORCH_GOES_WRONG)
def test_problems_that_torch_gets_wrong(case: Case) -> None:
    """Right with every backend, the reference included; in a process of its own, since it may not survive."""
    done = _python([REPLAY, repr(replace(case, result_last=True))])
    assert done.stdout.count("reference expand") == 12


# A strided axis with one output. With torch 2.13 in float32 the forward pass of the first is wrong each time, and the
# gradient of the input of the second in about half of the runs on two threads.
ONE_OUTPUT = (
    Case(
        ndim=2, ties=((1, 4),), channels=1, spatial=(12, 3), kernel=(3, 3), stride=(1, 3), padding=(1, 1), bias=False,
        dilation=(1, 1), output_padding=(0, 0), layouts=("channels_last",) * 3, result_last=True,
    ),
    Case(
        ndim=2, ties=((1, 34),), channels=5, spatial=(12, 5), kernel=(1, 7), stride=(1, 2), padding=(0, 1),
        dilation=(1, 1), output_padding=(0, 0), batch=3, layouts=("channels_last",) * 3, result_last=True,
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", ONE_OUTPUT)
@pytest.mark.parametrize("op", OPS)
def test_one_output_on_a_strided_axis(case: Case, op: str) -> None:
    """With the filters expanded, on two threads, time after time."""
    allowed = tolerance(case, torch.float32, op, "reference", "expand")
    for _ in range(20):
        result = run(case, torch.float32, op, "reference", "expand")
        assert (result.double() - expected(case, torch.float32)[op]).abs().max() <= allowed


OUT_OF_MEMORY = """
import resource, sys, torch, symconv_fast
from symconv_fast import SymmetricConv2d
torch.set_num_threads(2)
layer = SymmetricConv2d(2048, 2048, 3, padding=1, bias=False, symmetry="h")
small = SymmetricConv2d(4, 8, 3, symmetry="h")
x, s = torch.randn(1, 2048, 4, 4), torch.randn(1, 4, 8, 8)
gy = torch.randn(1, 2048, 4, 4)
ops, static = torch.ops.symconv_fast, ([1, 1024], [1, 1], [1, 1], [1, 1], [0, 0], False, 1, False)
calls = {
    "fprop": lambda: ops.fprop(x, layer.weight.detach(), None, *static),
    "dgrad": lambda: ops.dgrad(gy, layer.weight.detach(), x.shape, *static),
    "wgrad": lambda: ops.wgrad(gy, x, layer.weight.shape, *static),
}
with symconv_fast.backend("cpu", "fold"):
    before = small(s)
    pages = int(open("/proc/self/statm").read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (24 << 20), hard))
    for name, call in calls.items():
        try:
            call()
        except (RuntimeError, MemoryError) as error:
            assert isinstance(error, MemoryError) or "memory" in str(error), error
            print(name, "raised")
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert torch.equal(small(s), before)
    for call in calls.values():
        assert call().isfinite().all()
print("works again")
"""


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_memory_that_runs_out_raises() -> None:
    """Packed weights of 75 MB and a limit of 24 MB: an exception, and everything works once there is memory."""
    done = _python(["-c", OUT_OF_MEMORY])
    assert done.stdout.split("\n")[:4] == ["fprop raised", "dgrad raised", "wgrad raised", "works again"], (
        done
    )


# --- a crash of torch that is gone round -------------------------------------------------------------------------

WINDOWS_IN_PADDING = """
import torch, symconv_fast
layer = symconv_fast.SymmetricConv2d(32, 32, 2, stride=(3, 2), padding=3, dilation=(3, 2), groups=2, symmetry="hv")
layer = layer.to(memory_format=torch.channels_last)
x = torch.randn(1, 32, 1, 1).to(memory_format=torch.channels_last)
with torch.no_grad(), symconv_fast.backend(*BACKEND):
    for _ in range(6000):
        layer(x)
print("came back")
"""


@needs_native
@pytest.mark.parametrize("backend", [("cpu", "expand"), ("reference", "expand")])
def test_windows_in_the_padding_do_not_crash(backend: tuple[str, str]) -> None:
    """torch 2.13's own convolution crashes here, with a bias, in one call of some thousands."""
    assert "came back" in _python(["-c", WINDOWS_IN_PADDING.replace("BACKEND", repr(backend))]).stdout


# --- instruction sets --------------------------------------------------------------------------------------------


def _python(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Another Python with this checkout and this environment."""
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    env = os.environ | threads | {"PYTHONPATH": str(PACKAGE)} | environment
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-2000:])
    return done


def _highest() -> str:
    if not _has_native():
        return "baseline"
    code = "from symconv_fast import _cpu; print(_cpu.isa())"
    return _python(["-c", code], SYMCONV_FAST_ISA="").stdout.strip()


def _guarded(mode: str) -> dict[str, str]:
    """What puts every tensor and buffer between pages that cannot be touched; else freed memory is garbage."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        return {"MALLOC_PERTURB_": "128"}
    guard = pytest.importorskip("tools.guard")
    return {"LD_PRELOAD": str(guard.build()), "SYMCONV_FAST_GUARD": mode}


@needs_native
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(
    ("turn", "count", "mode"),
    [("own", len(cases.GUARDED), "end"), pytest.param("others", 20, "begin", marks=pytest.mark.full)],
)
def test_every_instruction_set(isa: str, turn: str, count: int, mode: str) -> None:
    """Each one that this CPU has passes the special cases and random ones, and touches nothing outside of a tensor.

    Our own kernels alone: torch's choose their instructions by themselves. One dtype for each operator of a problem in
    turn, where blocks end at a guarded page, or all the others, where they begin at one. `make guard` tries more.
    """
    if SETS.index(isa) > SETS.index(_highest()):
        pytest.skip(f"this CPU has no {isa}")
    code = "from symconv_fast import _cpu; print(_cpu.isa())"
    assert _python(["-c", code], SYMCONV_FAST_ISA=isa).stdout.strip() == isa
    arguments = [REPLAY, str(count), str(cases.GUARDED.start), "--special", "--kernels", "--turn", turn]
    done = _python(arguments, SYMCONV_FAST_ISA=isa, **_guarded(mode))
    assert "checks passed" in done.stdout
    assert int(done.stdout.split()[0]) >= len(OPS) * (1 if turn == "own" else 3) * (
        count + len(cases.SPECIAL)
    )


@pytest.mark.parametrize("mode", ["end", "begin"])
def test_a_read_outside_of_a_tensor_ends_the_process(mode: str) -> None:
    """By one vector: on both sides of the block, where the guard is told to be there."""
    guarded = _guarded(mode)
    if "LD_PRELOAD" not in guarded:
        pytest.skip("needs Linux and a C compiler")
    code = (
        "import ctypes, torch; t = torch.empty(1024); ctypes.string_at(t.data_ptr() + {}, 64); print('read')"
    )
    outside, inside = {"end": (4096, 0), "begin": (-64, 0)}[mode]
    assert "read" in _python(["-c", code.format(inside)], **guarded).stdout
    with pytest.raises(AssertionError):
        _python(["-c", code.format(outside)], **guarded)


def test_replay_reports_what_is_wrong() -> None:
    """The script that the instruction sets and the sanitizers rely on fails when a result is wrong."""
    code = (
        f"import sys; sys.argv = ['replay', '1']; sys.path.insert(0, {str(Path(REPLAY).parent)!r}); "
        "import oracle, replay; right = oracle.run; oracle.run = lambda *a: right(*a) * 1.001; replay.main()"
    )
    with pytest.raises(AssertionError, match=r"FAIL .* values are wrong"):
        _python(["-c", code])
    case = repr(cases.SPECIAL["h"])
    assert "ok float64 wgrad cpu" in _python([REPLAY, case, "float64", "wgrad"]).stdout
    with pytest.raises(AssertionError, match="nothing here runs that"):
        _python([REPLAY, case, "float64", "wgrad", "gone"])
