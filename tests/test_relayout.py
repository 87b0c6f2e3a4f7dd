"""How many images of contiguous tensors are copied to channels_last at a time."""

from __future__ import annotations

import pytest
import torch

import symconv_fast as sf
from symconv_fast.problem import Problem

pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")

from symconv_fast.backends import cpu, cpu_relayout


def problem(batch: int, channels: int, size: int, dtype: torch.dtype = torch.float32) -> Problem:
    layer = sf.SymmetricConv2d(channels, channels, 3, padding=1, symmetry="v").to(dtype)
    found: Problem = sf.explain(layer, torch.empty(batch, channels, size, size, dtype=dtype)).problem
    return found


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, 2), (torch.bfloat16, 4), (torch.float64, 0)], ids=str
)
def test_as_many_as_stay_within_a_mebibyte(dtype, expected):
    few = problem(batch=4, channels=64, size=32, dtype=dtype)  # 512 KiB an image in float32
    few = few if expected else problem(batch=4, channels=64, size=40, dtype=dtype)
    assert cpu_relayout.images(few, "dgrad") == expected


def test_parts_are_equal():
    assert cpu_relayout.images(problem(batch=6, channels=64, size=16), "dgrad") == 6
    assert cpu_relayout.images(problem(batch=9, channels=64, size=17), "dgrad") == 3  # of 7 that would fit


def test_a_weight_gradient_wants_all_images():
    p = problem(batch=4, channels=64, size=32)
    assert cpu_relayout.images(p, "wgrad") == 0
    assert "more than 1 MiB" in str(cpu.can_run(p, "wgrad", "relayout"))
    assert cpu.can_run(p, "dgrad", "relayout") is None


def test_small_beside_the_weight():
    """All at once: the copies are smaller than what is multiplied with."""
    p = problem(batch=4, channels=512, size=7, dtype=torch.float64)
    assert cpu_relayout.images(p, "wgrad") == 4


def test_an_estimate_counts_the_parts():
    two, four = problem(batch=2, channels=64, size=32), problem(batch=4, channels=64, size=32)
    assert cpu.estimate(four, "dgrad", "relayout") == pytest.approx(
        2 * cpu.estimate(two, "dgrad", "relayout")
    )
