"""How much of contiguous tensors is copied to channels_last at a time."""

from __future__ import annotations

import pytest
import torch

import symconv_fast as sf
from symconv_fast.problem import Problem

pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")

from symconv_fast.backends import cpu


def problem(batch: int, channels: int, size: int, dtype: torch.dtype = torch.float32) -> Problem:
    layer = sf.SymmetricConv2d(channels, channels, 3, padding=1, symmetry="v").to(dtype)
    found: Problem = sf.explain(layer, torch.empty(batch, channels, size, size, dtype=dtype)).problem
    return found


def relaid(p: Problem, op: str):
    """The fold between copies."""
    return cpu.select(p, op, "fold", relayout=True)


def parts(p: Problem, op: str) -> tuple[int, int]:
    """Images and lines that are copied together."""
    selection = relaid(p, op)
    assert selection.reason is None
    return selection.parts


@pytest.mark.parametrize(("dtype", "images"), [(torch.float32, 2), (torch.bfloat16, 4)], ids=str)
def test_as_many_images_as_stay_within_a_mebibyte(dtype, images):
    few = problem(batch=4, channels=64, size=32, dtype=dtype)  # 512 KiB an image in float32
    assert parts(few, "dgrad") == (images, 0)


def test_parts_are_equal():
    assert parts(problem(batch=6, channels=64, size=16), "dgrad") == (6, 0)
    assert parts(problem(batch=9, channels=64, size=17), "dgrad") == (3, 0)  # of 7 that would fit
    many = problem(batch=2, channels=64, size=80)
    assert parts(many, "dgrad") == (1, 20)
    assert relaid(many, "dgrad").number == 8


def test_lines_of_a_large_image():
    p = problem(batch=1, channels=64, size=128)
    images, lines = parts(p, "fprop")
    assert images == 1
    assert 128 % lines == 0
    number = relaid(p, "fprop").number
    assert number == 128 // lines
    # Two lines around each part are copied with it.
    assert relaid(p, "fprop").copied == 64 * 128 * (2 * 128 + 2 * number)


def test_lines_of_a_gradient_are_a_multiple_of_the_stride():
    layer = sf.SymmetricConv2d(64, 64, 3, padding=1, stride=3, symmetry="v")
    p = sf.explain(layer, torch.empty(1, 64, 100, 100)).problem
    assert parts(p, "dgrad")[1] % 3 == 0


def test_not_where_lines_around_a_part_are_most_of_it():
    layer = sf.SymmetricConv2d(64, 64, 15, padding=7, symmetry="v")
    p = sf.explain(layer, torch.empty(1, 64, 128, 128)).problem
    assert "more than 1 MiB" in relaid(p, "fprop").reason


def test_a_weight_gradient_sums_over_parts_of_the_batch():
    assert parts(problem(batch=4, channels=64, size=32), "wgrad") == (2, 0)
    large = problem(batch=4, channels=64, size=80)
    assert "more than 1 MiB" in str(cpu.can_run(large, "wgrad", "relayout"))
    assert cpu.can_run(large, "dgrad", "relayout") is None


@pytest.mark.parametrize(
    ("batch", "channels"), [(12, 32), (24, 3), (32, 1)], ids=["panels", "few channels", "one"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parts_of_a_weight_gradient_add_up(batch, channels, dtype):
    torch.manual_seed(batch)
    layer = sf.SymmetricConv2d(channels, 64, 3, padding=1, stride=2, symmetry={"h": "50%", "hv": "50%"})
    layer = layer.to(dtype)
    x = torch.randn(batch, channels, 48, 44, dtype=dtype)
    p = sf.explain(layer, x).problem
    assert relaid(p, "wgrad").number > 1
    gy = torch.randn(p.output_shape, dtype=dtype)
    got = cpu.wgrad(p, "relayout", gy, x)
    whole = cpu.wgrad(p, "fold", gy, x)
    scale = whole.float().abs().max()
    assert (got.float() - whole.float()).abs().max() <= 8 * torch.finfo(dtype).eps * scale


def test_what_adds_nothing_up_is_no_way_to_sum_over_parts():
    """Direct algorithms have no accumulator that images could be added to."""
    layer = sf.SymmetricConv2d(3, 64, 3, padding=1, symmetry="h")
    p = sf.explain(layer, torch.empty(24, 3, 48, 44)).problem
    assert relaid(p, "wgrad").number > 1
    assert cpu.select(p, "wgrad", "direct").reason is None
    assert "does not add to the sums" in cpu.select(p, "wgrad", "direct", relayout=True).reason


def test_what_is_several_sums_is_no_way_to_sum_over_parts():
    """Ties on both sides: gradients of one multiplication are added to, those of several are not."""
    x = torch.randn(12, 32, 48, 44)
    for symmetry, refused in (({"h": 64}, False), ({"h": 32, "hv": 32}, True)):
        layer = sf.SymmetricConv2d(32, 64, 3, padding=1, symmetry=symmetry, input_symmetry="h", bias=False)
        p = layer.problem(x)
        selection = cpu.select(p, "wgrad", "fold", relayout=True)
        assert selection.number > 1
        assert cpu.can_run(p, "wgrad", "fold") is None
        assert ("does not add to the sums" in str(selection.reason)) == refused
        assert bool(cpu.can_run(p, "wgrad", "relayout")) == refused
        if not refused:
            gy = torch.randn(p.output_shape)
            whole = cpu.wgrad(p, "fold", gy, x)
            error = (cpu.wgrad(p, "relayout", gy, x) - whole).abs().max()
            assert error <= 8 * torch.finfo(torch.float32).eps * whole.abs().max()


def test_small_beside_the_weight():
    """All at once: the copies are smaller than what is multiplied with."""
    p = problem(batch=4, channels=512, size=7, dtype=torch.float64)
    assert parts(p, "wgrad") == (4, 0)


def test_an_estimate_counts_the_parts():
    two, four = problem(batch=2, channels=64, size=32), problem(batch=4, channels=64, size=32)
    assert cpu.estimate(four, "dgrad", "relayout") == pytest.approx(
        2 * cpu.estimate(two, "dgrad", "relayout")
    )
