# The Hopper kernels of the weight's gradient on the stand-in: sizes, blocks, splits, both strips, and bad numbers.
"""What every family has to pass is in test_cuda.py; here is what only this one has."""

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
from cuda_grid import BF16, FP16
from oracle import Case

from symconv_fast.backends.cuda import backend, hopperwgrad, limits

LAST = ("channels_last",) * 3
PLAIN = Case(channels=16, spatial=(9, 11), padding=(1, 1), bias=False, layouts=LAST, ties=((3, 16),))
TYPES = (BF16, FP16)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Any]:
    with cuda_fake.stand_in(cuda_host.module()) as module:
        yield module


def plan(case: Case, device: limits.Limits = limits.STAND_IN) -> hopperwgrad.Plan:
    return hopperwgrad.plan(oracle.problem_of(case, BF16, "wgrad"), device)


def check_as(
    monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype, strip: int, splits: int
) -> None:
    """Against the oracle, with this strip and so many splits."""
    monkeypatch.setattr(hopperwgrad, "plan", lambda problem, device: hopperwgrad.Plan(strip, splits, 0.0))
    hopperwgrad._of.cache_clear()
    cuda_fake.forget()
    try:
        cuda_grid.check(case, dtype, "wgrad", "hopper")
    finally:
        hopperwgrad._of.cache_clear()
        cuda_fake.forget()


SIZES = [(1, 1), (1, 19), (19, 1), (3, 2), (8, 8), (17, 9), (7, 7), (16, 24)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", [1, 2, 3])
def test_sizes_of_maps(mask: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By both strips in turn, and in both types."""
    turn = SIZES.index(size) + mask
    case = replace(PLAIN, ties=((mask, 16),), spatial=size, batch=1 + turn % 3)
    check_as(monkeypatch, case, TYPES[turn % 2], turn // 2 % 2, 1)


@pytest.mark.parametrize(
    ("mask", "rows", "channels", "groups"),
    [(1, 72, 136, 1), (2, 144, 80, 2), (3, 144, 144, 2), (3, 68, 8, 1), (1, 132, 64, 1), (2, 12, 48, 3)],
)
def test_blocks(mask: int, rows: int, channels: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows and channels than a block's, and fewer, in groups; rows that 8 does not divide."""
    case = replace(PLAIN, ties=((mask, rows),), channels=channels, groups=groups, spatial=(5, 9), batch=1)
    check_as(monkeypatch, case, TYPES[rows % 16 // 8], 1, 1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("mask", "strip"), [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1)])
def test_splits(mask: int, strip: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with more strips than stages, and as many splits as strips, whose sums several threads share."""
    case = replace(PLAIN, ties=((mask, 16),), channels=8, batch=5, spatial=(13, 19))
    check_as(monkeypatch, case, dtype, strip, 1)
    check_as(monkeypatch, case, dtype, strip, 15)


def test_two_runs_are_equal_bit_by_bit() -> None:
    case = replace(PLAIN, batch=4, spatial=(24, 24))
    assert plan(case).splits > 1
    first, second = (oracle.run(case, BF16, "wgrad", "cuda", "hopper") for _ in range(2))
    assert torch.equal(first, second)


def test_products_are_those_of_the_reduced_weight(machine: Any) -> None:
    """Nine for sixteen pixels, of 64 rows and channels: as many as the reduced filter has taps."""
    case = replace(PLAIN, batch=1, spatial=(16, 8), ties=((3, 64),), channels=64)
    machine.reset_counts()
    cuda_grid.check(case, BF16, "wgrad", "hopper")
    warps = 4  # of a warp group, each of which counts its part
    assert machine.counts()["wgmma"] == 9 * warps * 16 * 8 // 16


def test_plans() -> None:
    """Low strips for low maps; CTAs for all multiprocessors; no more sums than there is memory for."""
    large = replace(limits.STAND_IN, multiprocessors=132)
    low = replace(PLAIN, spatial=(7, 7), batch=64)
    assert plan(low, large).strip == 1
    assert plan(replace(low, spatial=(32, 32)), large).strip == 0
    wide = replace(PLAIN, spatial=(28, 28), ties=((1, 256),), channels=512, batch=64)
    found = plan(wide, large)
    assert found.splits * 4 * 8 <= 4 * 132
    assert (found.splits - 1) * 36 * 256 * 512 <= hopperwgrad._WORKSPACE
    names = [v for v in cuda_host.module().variants() if v["family"] == "hopperwgrad"]
    assert [(v["name"], v["shared_bytes"]) for v in names] == [
        (strip.name, strip.shared_bytes) for strip in hopperwgrad.STRIPS
    ]


BAD = [
    ("dtype", 2, "bfloat16 and float16"),
    ("mask", 4, "ties h, v and hv"),
    ("strip", 2, "no such strip"),
    ("batch", 0, "not positive"),
    ("rows", 1 << 29, "too many channels"),
    ("channels", 12, "8 does not divide"),
    ("splits", 100, "more splits than strips"),
    ("batch", 1 << 30, "too many strips"),
    ("groups", 1 << 20, "the weight is too large"),
    ("x_n", -8, "strides of maps"),
    ("x_y", 1 << 60, "strides of maps"),
    ("y_x", 12, "strides of maps"),
    ("w_row", -1, "strides of w"),
]


@pytest.mark.parametrize(("field", "value", "text"), BAD)
def test_bad_numbers_are_refused(field: str, value: int, text: str) -> None:
    problem = oracle.problem_of(replace(PLAIN, batch=2), BF16, "wgrad")
    native = hopperwgrad._native(problem, limits.STAND_IN)
    fields = {name: getattr(native, name) for name in native.FIELDS}
    wrong = type(native)(**(fields | {field: value}))
    assert native.check() == ""
    assert text in wrong.check()
    assert wrong.workspace() == 0
    assert wrong.launch(64, 64, 0, 64, 64, 0, 0) == wrong.check()


def test_what_is_missing_is_said() -> None:
    native = hopperwgrad._native(oracle.problem_of(PLAIN, BF16, "wgrad"), limits.STAND_IN)
    assert native.launch(64, 0, 0, 64, 64, 0, 0) == "a tensor is missing"
    assert native.launch(72, 64, 0, 64, 64, 0, 0) == "tensors must start at multiples of 16 bytes"


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = oracle.problem_of(PLAIN, BF16, "wgrad")
    monkeypatch.setattr(limits, "STAND_IN", replace(limits.STAND_IN, arch="sm_100", capability=(10, 0)))
    assert "of compute capability 9.0" in str(backend.can_run(problem, "wgrad", "hopper"))
