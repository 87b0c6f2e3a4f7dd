# The CUDA kernels end to end without a GPU: every family on the stand-in, through the backend, against the oracle.
"""Slow kernels of small problems: what a thread of theirs does is simulated. Special and random problems, in turn with
the types; the rest of both is left to the full suite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cuda_fake
import cuda_grid
import cuda_host
import oracle
import pytest
import torch
from cuda_grid import ALGORITHMS, BF16, DTYPES, FP16, FP32, OPS
from oracle import Case

import symconv_fast as sf
from symconv_fast import ops
from symconv_fast.backends.cuda import backend, families, limits

QUICK = 2_000_000  # multiply-accumulates of what the quick suite runs


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Any]:
    with cuda_fake.stand_in(cuda_host.module()) as module:
        yield module


def built() -> set[str]:
    """Algorithms and passes whose family is part of the sources."""
    folder = cuda_host.ROOT / "csrc" / "cuda"
    there = {path.parent.name for path in folder.glob("*/instances.txt")}
    return {f"{algorithm} {op}" for (algorithm, op), name in families.FAMILIES.items() if name in there}


def runs() -> list[Any]:
    """Every problem that an algorithm has to take, in one type each by turns, and with the mark `full` in the others."""
    found, turn = [], 0
    for name, case in cuda_grid.grid().items():
        for algorithm in ALGORITHMS:
            for op in OPS:
                if f"{algorithm} {op}" not in built():
                    continue
                takes = [dtype for dtype in DTYPES if cuda_grid.must_run(case, dtype, op, algorithm)]
                turn += 1
                for dtype in takes:
                    quick = dtype == takes[turn % len(takes)] and cuda_grid.cost(case) < QUICK
                    marks = () if quick else pytest.mark.full
                    title = f"{algorithm}, {op}, {str(dtype)[6:]}, {name}"
                    found.append(pytest.param(case, dtype, op, algorithm, id=title, marks=marks))
    return found


@pytest.mark.parametrize(("case", "dtype", "op", "algorithm"), runs())
def test_equals_the_oracle(case: Case, dtype: torch.dtype, op: str, algorithm: str) -> None:
    cuda_grid.check(case, dtype, op, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_refused_may_be(algorithm: str) -> None:
    """For the reason that is given; what an algorithm has to take it takes."""
    wrong = []
    for name, case in cuda_grid.grid().items():
        for dtype in DTYPES:
            for op in OPS:
                reason = backend.can_run(oracle.problem_of(case, dtype, op), op, algorithm)
                must = f"{algorithm} {op}" in built() and cuda_grid.must_run(case, dtype, op, algorithm)
                if reason is None or (not must and "was built without these kernels" in reason):
                    continue
                if must or not cuda_grid.refused(case, reason, dtype, op):
                    wrong.append(f"{op}, {dtype}, {name}: {reason}")
    assert not wrong, "\n".join(wrong)
