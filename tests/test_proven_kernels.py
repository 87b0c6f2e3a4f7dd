# Real kernels give known answers: Triton's in its interpreter, CUDA's on the stand-in; and the list of all of them.

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import cuda_fake
import cuda_host
import pytest
import torch
from oracle import OPS, Case, problem_of
from test_small_problems import CPU, LAYERS

from symconv_fast import __main__ as report
from symconv_fast import dispatch, settings, trial
from symconv_fast.backends import reference
from symconv_fast.trial import known_answers, small, verdicts

ROOT = Path(__file__).parent.parent


# --- the kernels of Triton -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        pytest.param(
            arch, dtype, marks=() if (arch, dtype) == ("sm_90", torch.bfloat16) else pytest.mark.full
        )
        for arch in ("sm_80", "sm_90", "sm_100", "gfx942")
        for dtype in (torch.bfloat16, torch.float32)
    ],
    ids=str,
)
def test_a_small_problem_gets_the_tiles_of_the_layer(monkeypatch, arch, dtype):
    pytest.importorskip("triton")
    from symconv_fast.backends import gpu_cost
    from symconv_fast.backends.triton import backend, launch, run
    from symconv_fast.backends.triton.geometry import geometry

    monkeypatch.setattr(run, "architecture", lambda device: arch)
    monkeypatch.setattr(run, "device_name", lambda device: "a GPU")
    options, asked = launch.Options(arch=arch, precision=gpu_cost.precision()), 0
    for case in LAYERS.values():
        for op in OPS:
            problem = dataclasses.replace(problem_of(case, dtype, op), device="cuda")
            for algorithm in backend.ALGORITHMS:
                if algorithm == "fold" and geometry(problem).depthwise:
                    continue
                if launch.refusal(problem, op, algorithm, options):
                    continue
                assert backend.kernels(problem, op, algorithm)
                first = next(small.like(problem, op))
                assert callable(backend.bind_like(first, op, algorithm, problem)), (case, op, algorithm)
                asked += 1
    assert asked > 50


INTERPRETED = """
import dataclasses, torch
from symconv_fast import dispatch
from symconv_fast.trial import bound, modes, verdicts
from oracle import Case, problem_of

modes.DEVICES, device = {"cpu"}, torch.device("cpu")
triton, case = dispatch.load("triton"), Case(ties=((1, 16), (3, 4)), channels=20, spatial=(9, 11), padding=(1, 1))
for op in ("fprop", "dgrad"):
    problem = problem_of(case, torch.bfloat16, op)
    print(bound.prove(triton, problem, op, "fold", device))
whole = triton.run.Call.__call__
triton.run.Call.__call__ = lambda call, *tensors: whole(call, *tensors).mul_(1.01)
problem = problem_of(dataclasses.replace(case, padding=(0, 0)), torch.bfloat16, "fprop")
print(bound.prove(triton, problem, "fprop", "fold", device), *verdicts._failed.values())
"""


def test_kernels_of_triton_are_proven_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == second == "True"
    assert third.startswith("False ")
    assert "values are wrong" in third


# --- the kernels of CUDA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ties", "depthwise"])
def test_kernels_of_cuda_are_proven_on_the_stand_in(monkeypatch, name):
    """They have names, and pass; with a value changed they do not."""
    case = Case(ties=((1, 8), (3, 4)), channels=16, spatial=(7, 9), padding=(1, 1))
    if name == "depthwise":
        case = Case(ties=((1, 8),), channels=8, groups=8, spatial=(7, 9), padding=(1, 1))
    monkeypatch.setattr(settings, "tf32_allowed", lambda: True)
    with cuda_fake.stand_in(cuda_host.module()):
        from symconv_fast.backends.cuda import backend

        verdicts.forget()
        ways = [
            (problem, op, algorithm)
            for dtype in (torch.bfloat16, torch.float16, torch.float32)
            for op in OPS
            for problem in [problem_of(case, dtype, op)]
            for algorithm in backend.ALGORITHMS
            if backend.can_run(problem, op, algorithm) is None
        ]
        assert {op for _, op, _ in ways} == set(OPS)
        for way in ways:
            assert backend.kernels(*way)
            assert trial.prove(backend, *way, CPU) is True, way
            assert known_answers.ask_in_place(*way[:2], backend.bind(*way), CPU) == (True, None), way
        verdicts.forget()
        problem, op, algorithm = ways[0]
        right = backend.bind
        monkeypatch.setattr(backend, "bind", lambda *way: lambda *t: right(*way)(*t).add_(0.01))
        with pytest.warns(RuntimeWarning, match=f"cuda/{algorithm} .*values are wrong"):
            assert trial.prove(backend, problem, op, algorithm, CPU) is False
    verdicts.forget()


# --- python -m symconv_fast ------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch) -> types.SimpleNamespace:
    """A backend with four kernels on a GPU that is not there; `damaged` are the kernels that fail."""
    asked: list[tuple[str, torch.dtype]] = []

    def kernels(problem, op, algorithm):
        return (f"tile {64 if len(problem.ties) == 1 else 6} 4 warps",) if op == "fprop" else ("gradient",)

    def prove(module, problem, op, algorithm, device):
        (name,) = kernels(problem, op, algorithm)
        asked.append((name, problem.dtype))
        return not any(name.startswith(bad) for bad in module.damaged)

    backend = types.SimpleNamespace(
        ALGORITHMS=("fold",), kernels=kernels, asked=asked, damaged=(),
        can_run=lambda problem, op, algorithm: "no" if problem.dtype == torch.float64 else None,
        listing=lambda: (("tile 64", "sm_80"), ("tile 6", "sm_80"), ("gradient", "sm_80"), ("rare", "sm_90a")),
    )  # fmt: skip
    monkeypatch.setattr(dispatch, "BACKENDS", ("gpu", "reference"))
    monkeypatch.setattr(dispatch, "_import", lambda name: backend if name == "gpu" else reference)
    monkeypatch.setattr(dispatch, "load", lambda name: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(trial, "prove", prove)
    monkeypatch.setattr(trial, "refuted", lambda *_: "off by one")
    return backend


def test_the_report_lists_every_kernel_of_the_gpu_backends(gpu, monkeypatch):
    """Each is asked once a dtype; with one of them wrong it says which."""
    passed = "PASS  gpu kernel {} (sm_80): 3 known answers"
    rare = "not run (no problem of this check runs it here)  gpu kernel rare (sm_90a)"
    names = ("tile 64", "tile 6", "gradient")
    assert [r.text for r in report.gpu_kernels()] == [*map(passed.format, names), rare]
    assert len(gpu.asked) == 9
    gpu.asked.clear()
    assert sum(r.asked for r in report.gpu_kernels(every=True)) == len(gpu.asked) > 100

    gpu.damaged = ("tile 6 ",)
    found = list(report.gpu_kernels())
    assert [r.failed for r in found] == [0, 3, 0, 0]
    assert found[1].text == (
        "FAIL  gpu kernel tile 6 (sm_80): 3 of 3 known answers: h, fprop in float32: off by one"
    )


def test_the_report_says_why_no_kernel_was_run(gpu, monkeypatch):
    monkeypatch.setattr(dispatch, "load", lambda name: "it cannot be loaded")
    assert next(report.gpu_kernels()).text == "not run (it cannot be loaded)  gpu kernel tile 64 (sm_80)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {r.text[:16] for r in report.gpu_kernels()} == {"not run (no GPU)"}
    assert gpu.asked == []
