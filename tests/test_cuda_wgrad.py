# The CUDA kernels of the weight's gradient on the stand-in: sizes, splits, products made, banks, and bad numbers.
"""What every family has to pass is in test_cuda.py; here is what only this one has."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cuda_fake
import cuda_grid
import cuda_host
import oracle
import pytest
import torch
from cuda_grid import BF16, DTYPES, FP16, FP32
from oracle import Case

from symconv_fast.backends.cuda import families, limits, wgrad
from symconv_fast.backends.triton.geometry import geometry

LAST = ("channels_last",) * 3
PLAIN = Case(channels=16, spatial=(9, 11), padding=(1, 1), bias=False, layouts=LAST, ties=((3, 16),))
MANY = replace(limits.STAND_IN, multiprocessors=132)  # more splits than the stand-in's own device wants


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Any]:
    with cuda_fake.stand_in(cuda_host.module()) as module:
        yield module


def native(case: Case, dtype: torch.dtype, device: limits.Limits = MANY) -> Any:
    return wgrad._native(oracle.problem_of(case, dtype, "wgrad"), device)


def splits(case: Case, dtype: torch.dtype, device: limits.Limits = MANY) -> float:
    """Sums of the weight that are kept: their bytes but for what fills them up."""
    return native(case, dtype, device).workspace() / (4 * case.unique * math.prod(case.weight_shape[1:]))


def check(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: limits.Limits = MANY
) -> None:
    monkeypatch.setattr(limits, "STAND_IN", device)
    cuda_fake.forget()
    cuda_grid.check(case, dtype, "wgrad", "tile")


SIZES = [(1, 1), (1, 19), (19, 1), (3, 2), (5, 7), (8, 8), (13, 17), (19, 19)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", [0, 1, 2, 3])
def test_sizes_of_maps(mask: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    turn = SIZES.index(size) + mask
    check(replace(PLAIN, ties=((mask, 16),), spatial=size, batch=1 + turn % 3), DTYPES[turn % 3], monkeypatch)


@pytest.mark.parametrize("channels", [8, 24, 40, 72, 136, 264])
@pytest.mark.parametrize("rows", [8, 40, 72])
def test_channels_and_rows(channels: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = channels // 8 + rows // 8
    ties = ((turn % 4, rows),)
    case = replace(PLAIN, ties=ties, channels=channels, spatial=(4, 9), batch=1)
    check(case, DTYPES[turn % 3], monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [0, 1, 3])
def test_splits(mask: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several, each of more tiles than stages in one of the two."""
    few = replace(PLAIN, ties=((mask, 16),), batch=8, spatial=(13, 19))
    assert splits(few, dtype) > 8
    check(few, dtype, monkeypatch)
    long = replace(few, batch=2, spatial=(23, 37))
    device = replace(MANY, multiprocessors=1)
    assert splits(long, dtype, device) <= 8
    check(long, dtype, monkeypatch, device)


UNUSUAL = {
    "dilation 3, one pixel high": {"spatial": (7, 19), "dilation": (3, 3), "padding": (0, 2)},
    "stride 3, dilation 2": {"stride": (3, 3), "dilation": (2, 2), "spatial": (15, 19)},
    "stride 2, dilation 4": {"stride": (2, 2), "dilation": (4, 4), "spatial": (15, 19)},
    "1 x 1, stride 2": {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0)},
    "7 x 7": {"kernel": (7, 7), "padding": (3, 3)},
    "4 x 2": {"kernel": (4, 2)},
    "5 x 3": {"kernel": (5, 3)},
    "3 x 31": {"kernel": (3, 31), "padding": (1, 15)},
    "several ties": {"ties": ((1, 8), (2, 16), (3, 8), (0, 8))},
    "groups": {"groups": 3, "channels": 48, "ties": ((3, 48), (0, 24))},
    "free rows that fill no vector": {"ties": ((3, 16), (0, 5))},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(PLAIN, **UNUSUAL[name])
    for dtype in DTYPES:
        if case.out_channels * dtype.itemsize % 16 == 0:  # else pixels are copied, to places of their own
            check(case, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("mask", [0, 1, 2, 3])
def test_products_are_those_of_the_reduced_filter(machine: Any, mask: int, dtype: torch.dtype) -> None:
    case = replace(PLAIN, ties=((mask, 32),), channels=64, spatial=(16, 16), batch=1)
    cuda_fake.forget()
    machine.reset_counts()
    cuda_grid.check(case, dtype, "wgrad", "tile")
    counts = machine.counts()
    made = 2048 * counts["mma_bfloat16"] + 1024 * counts["mma_tf32"]
    problem = oracle.problem_of(case, dtype, "wgrad")
    assert problem.macs_folded <= made <= 1.13 * problem.macs_folded
    assert problem.macs_dense == problem.macs_folded << mask.bit_count()


def test_one_bank_a_lane(machine: Any) -> None:
    """The loads of TF32's fragments, one element a lane: a wavefront each, as many as 16 bytes a lane take."""
    case = replace(PLAIN, ties=((0, 32),), channels=64, batch=1)
    cuda_fake.forget()
    machine.set_tracing(True)
    machine.reset_counts()
    try:
        cuda_grid.check(case, FP32, "wgrad", "tile")
        counts = machine.counts()
    finally:
        machine.set_tracing(False)
    assert counts["shared_loads"] > 1000
    assert 128 * counts["shared_load_wavefronts"] <= 1.1 * counts["shared_load_bytes"]


def test_workspace_is_bounded() -> None:
    large = replace(PLAIN, ties=((0, 512),), channels=512, spatial=(28, 28), batch=4)
    assert splits(large, BF16) > 1
    assert native(large, BF16).workspace() <= 64 << 20
    huge = replace(large, ties=((0, 4096),), channels=4096, batch=1)
    assert splits(huge, BF16) == 1


def test_numbers_that_fit_nothing_are_named(machine: Any) -> None:
    """No number is trusted: a check answers, and what it lets pass has a plan."""
    random.seed(0)
    problem = oracle.problem_of(PLAIN, FP16, "wgrad")
    x, y = (wgrad.pixel_strides(shape, True) for shape in (problem.input_shape, problem.output_shape))
    given = wgrad.parameters(
        families.Request(problem, "wgrad", {"x": x, "y": y, "w": (1, 1, 1, 1, 1, 1)}, MANY)
    )
    assert set(given) == set(machine.WgradParams.FIELDS)
    odd = [-(2**63), -1, 0, 1, 2, 3, 7, 8, 9, 1023, 1024, 2**20, 2**30, 2**31, 2**40, 2**58, 2**63 - 1]
    refused = 0
    for _ in range(3000):
        changed = given | {
            name: random.choice(odd) for name in random.sample(sorted(given), random.choice((1, 1, 2, 4)))
        }
        params = machine.WgradParams(**changed)
        if params.check():
            refused += 1
            assert params.plan() == (0.0, [])
            assert params.launch(16, 16, 0, 16, 16, 0, 0) == params.check()
        else:
            clocks, kernels = params.plan()
            assert 0 < clocks < math.inf
            assert kernels
            assert params.workspace() > 0
    assert 1000 < refused < 2900
    good = machine.WgradParams(**given)
    assert good.launch(0, 16, 0, 16, 16, 0, 0) == "a tensor is missing"
    assert good.launch(8, 16, 0, 16, 16, 0, 0) == "tensors must start at multiples of 16 bytes"


def test_estimates_grow_with_the_work() -> None:
    problem = oracle.problem_of(PLAIN, BF16, "wgrad")
    twice = oracle.problem_of(replace(PLAIN, batch=64, spatial=(56, 56)), BF16, "wgrad")
    assert 0 < wgrad.seconds(problem, "wgrad", MANY) < wgrad.seconds(twice, "wgrad", MANY)
    assert geometry(problem).rows == 16
