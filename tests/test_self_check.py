"""`python -m symconv_fast`: every algorithm of every backend against the reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_backend import fake

from symconv_fast import __main__ as report
from symconv_fast import dispatch
from symconv_fast.backends import reference
from symconv_fast.problem import OPS

__all__ = ["fake"]  # a fixture

ROOT = Path(__file__).parent.parent


def test_self_check_passes_here(capsys):
    assert report.main() == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("PASS  ")]
    ways = [line.removeprefix("PASS  ").split(":")[0] for line in lines]
    assert len(set(ways)) == len(ways)
    assert all(re.search(r": \d+ problems?, worst relative error \S+$", line) for line in lines)
    for backend, module in dispatch.available().items():
        for op in OPS:
            for dtype in ("float32", "float64", "bfloat16", "float16"):
                able = (backend, op) != ("distinct", "fprop") or not dtype.endswith("16")
                assert any(f"{backend}/{a} {op} {dtype}" in ways for a in module.ALGORITHMS) == able
    assert "FAIL" not in out
    assert f"torch {torch.__version__}" in out


def test_self_check_runs_every_algorithm():
    ran = {(*check.way.split()[:2], check.problem) for check in report.self_check()}
    for backend, module in dispatch.available().items():
        assert {way.split("/")[1] for way, *_ in ran if way.startswith(f"{backend}/")} == set(
            module.ALGORITHMS
        )
        for op in OPS:
            problems = {p.split(",")[0] for way, o, p in ran if way.startswith(f"{backend}/") and o == op}
            able = {"one tap"} if backend == "distinct" else {case.title for case in report._CASES}
            assert problems == able


def test_self_check_prints_every_check_when_asked(fake, capsys):
    assert report.main(["--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for layout in ("contiguous", "channels last"):
        wanted = f"PASS  fake/fold dgrad bfloat16, depthwise, {layout}: relative error"
        assert sum(line.startswith(wanted) for line in lines) == 1


@pytest.mark.parametrize("damage", [1e-3, float("nan")])
def test_self_check_fails_when_one_number_is_wrong(fake, capsys, damage):
    def broken(problem, algorithm, *tensors):
        grad = reference.wgrad(problem, "expand", *tensors)
        if problem.groups == 2 and problem.dtype == torch.float32 and problem.channels_last:
            grad[(0,) * grad.dim()] += damage * grad.abs().max()
        return grad

    fake.wgrad = broken
    assert report.main() == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert len(failed) == len(fake.ALGORITHMS)
    for line, algorithm in zip(failed, fake.ALGORITHMS):
        start = f"FAIL  fake/{algorithm} wgrad float32: 1 of 23 problems, the worst: groups, channels last: relative"
        assert line.startswith(start)
    assert re.fullmatch(r"2 of \d+ checks failed", lines[-1])


def test_self_check_survives_a_backend_that_raises(fake, capsys):
    def broken(*_):
        raise MemoryError("no room\nat all")

    fake.fprop = broken
    assert report.main(["--verbose"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL  fake/direct fprop float64, hvz, contiguous: MemoryError: no room" in lines
    assert any(
        re.match("FAIL  fake/direct fprop float64: 23 of 23 .*: MemoryError: no room$", line)
        for line in lines
    )


def test_self_check_as_a_program():
    found = subprocess.run(
        [sys.executable, "-m", "symconv_fast"],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.fullmatch(r"all \d+ checks passed", found.stdout.splitlines()[-1])
