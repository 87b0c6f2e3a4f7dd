# Depthwise layers on the native CPU kernels: widths of the register windows and their neighbours, lanes, borders.
"""Random depthwise problems against the oracle, where the general fuzz (test_fuzz.py) has few of them.

Channels around the number of lanes, kernels around 3, 5 and 7, and maps smaller than the kernel are what the
depthwise kernels treat in different ways.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import OPS, Case, arrange, check, expected, make_tensors, problem_of

from symconv_fast import dispatch

pytestmark = pytest.mark.skipif(
    "cpu" not in dispatch.available(), reason="the native CPU module is not built"
)

MASKS = {1: (1, 0), 2: (1, 2, 3, 0), 3: (1, 2, 4, 3, 5, 6, 7, 0)}
DTYPES = (torch.float64,) * 3 + (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32)
LAYOUTS = ("channels_last", "channels_last", "contiguous", "sliced", "transposed")


def depthwise(seed: int) -> Case:
    """A seeded problem with one input channel in every group."""
    pick = random.Random(seed).choice
    ndim = pick((1, 2, 2, 2, 2, 3))
    transposed = pick((False, False, False, False, True))
    groups = pick((2, 3, 8, 16, 17, 32, 35))
    kernels = (1, 2, 3, 3, 4, 5) if ndim == 3 else (1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8, 9, 13)
    width = pick(kernels)
    kernel = (*(pick((width, width, pick(kernels))) for _ in range(ndim - 1)), width)
    plain = pick((True, True, False))
    stride, dilation = (tuple(1 if plain else pick((1, 1, 2, 3)) for _ in range(ndim)) for _ in range(2))
    padding = tuple(pick((k // 2, k // 2, 0, 1, 3)) for k in kernel)
    extents = (1, 2, 3, 5, 7) if ndim == 3 else (1, 2, 5, 7, 8, 12, 14, 17, 31)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding)]
    spatial = tuple(max(pick(extents), r) for r in reach)
    if transposed:
        spatial = tuple(max(pick(extents), 1 + (2 * p) // s) for p, s in zip(padding, stride))
    masks = [m for m in MASKS[ndim] if pick((True, False))] if pick((True, False)) else [pick(MASKS[ndim])]
    ties = tuple((m, groups * pick((1, 1, 2, 3))) for m in masks) or ((1, groups),)
    more: dict[str, Any] = {"layouts": (pick(LAYOUTS), "contiguous", pick(LAYOUTS))}
    return Case(
        ndim=ndim, ties=ties, channels=groups, spatial=spatial, kernel=kernel, stride=stride, padding=padding,
        dilation=dilation, output_padding=(0,) * ndim, transposed=transposed, groups=groups, batch=pick((1, 2)),
        bias=pick((False, True)), result_last=ndim > 1 and pick((True, True, False)), threads=pick((1, 2)), seed=seed,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize("block", range(15))
def test_equals_the_oracle(block: int) -> None:
    for seed in range(8 * block, 8 * block + 8):
        case = depthwise(seed)
        for op in OPS:
            check(case, DTYPES[seed % 8], op, "cpu", "fold")


# Odd and even widths, channels_last in and out, all members of an orbit stored from registers.
FAST = Case(
    ties=((3, 32),), channels=32, spatial=(13, 14), kernel=(7, 7), padding=(3, 3), groups=32,
    layouts=("channels_last", "contiguous", "channels_last"), result_last=True, threads=2,
)  # fmt: skip


@pytest.mark.parametrize("mask", [0, 1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5, 7, 13, 31])
def test_register_windows(mask: int, kernel: int) -> None:
    case = replace(FAST, ties=((mask, 32),), kernel=(kernel, kernel), padding=(kernel // 2,) * 2)
    for op in OPS:
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            check(case, dtype, op, "cpu", "fold")


SHORT = replace(FAST, layouts=("contiguous",) * 3, result_last=False)


@pytest.mark.parametrize("mask", [0, 1, 3])
@pytest.mark.parametrize("spatial", [(7, 7), (14, 14), (20, 3), (3, 5), (31, 1), (9, 28), (5, 112), (4, 113)])
def test_short_lines_move_together(mask: int, spatial: tuple[int, int]) -> None:
    """Lines without a gap between them are transposed as one run: whole ones, a rest, and fewer than a vector."""
    for channels in (16, 35):
        case = replace(SHORT, ties=((mask, channels),), channels=channels, groups=channels, spatial=spatial)
        for op in OPS:
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                check(case, dtype, op, "cpu", "fold")


@pytest.mark.parametrize("layout", ["sliced", "transposed"])
@pytest.mark.parametrize("stride", [1, 2])
def test_lines_with_gaps_move_one_by_one(layout: str, stride: int) -> None:
    case = replace(SHORT, layouts=(layout, "contiguous", layout), stride=(stride,) * 2, spatial=(9, 7))
    for op in OPS:
        check(case, torch.float64, op, "cpu", "fold")


@pytest.mark.parametrize("channels", [35, 64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_boxes_of_several_blocks_and_images(channels: int, layout: str) -> None:
    """Zeros around a box are written once and stay; 64 channels are shared by blocks, 35 by single tasks."""
    case = replace(
        FAST, ties=((1, channels),), channels=channels, groups=channels, spatial=(40, 33), batch=3,
        layouts=(layout, "contiguous", layout), result_last=layout == "channels_last",
    )  # fmt: skip
    for op in OPS:
        check(case, torch.float32, op, "cpu", "fold")
        check(replace(case, threads=1), torch.float64, op, "cpu", "fold")


@pytest.mark.parametrize("op", OPS)
def test_float32_is_as_exact_as_torch(op: str) -> None:
    """Relative root mean square error at most twice that of torch's own convolution in float32."""
    t, answer = make_tensors(FAST, torch.float32), expected(FAST, torch.float32)[op]
    with dispatch.backend("reference"):
        ordinary = _run(t, op)
    with dispatch.backend("cpu", "fold"):
        ours = _run(t, op)
    assert (ours - answer).norm() <= 2 * (ordinary - answer).norm() + 2.0**-24 * answer.norm()


def _run(t: Any, op: str) -> torch.Tensor:
    x, w, gy = (arrange(v, layout, torch.float32) for v, layout in zip((t.x, t.w, t.gy), FAST.layouts))
    ops = torch.ops.symconv_fast
    if op == "fprop":
        return ops.fprop(x, w, t.b.float(), *FAST.static).double()
    if op == "dgrad":
        return ops.dgrad(gy, w, list(FAST.input_shape), *FAST.static).double()
    return ops.wgrad(gy, x, list(FAST.weight_shape), *FAST.static).double()


@pytest.mark.parametrize("mask", [0, 1])
def test_nan_at_the_border_stays_where_it_is(mask: int) -> None:
    """The zeros that fill the last chunk of a line must not meet a NaN of the other tensor."""
    case = replace(FAST, ties=((mask, 32),), spatial=(13, 12), bias=False)
    t = make_tensors(case, torch.float64)
    x = t.x.clone()
    x[0, 5, 4, -1] = float("nan")
    x, gy = (arrange(v, "channels_last", torch.float64) for v in (x, t.gy))
    with dispatch.backend("cpu", "fold"):
        got = torch.ops.symconv_fast.wgrad(gy, x, list(case.weight_shape), *case.static).isnan()
    with dispatch.backend("reference"):
        wanted = torch.ops.symconv_fast.wgrad(gy, x, list(case.weight_shape), *case.static).isnan()
    assert wanted[5].any()
    assert not wanted[6].any()
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("mask", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tied_layers_are_left_to_these_kernels(op: str, mask: int, dtype: torch.dtype) -> None:
    """torch has no quick kernel for several filters in a group; expanding would be several times slower."""
    case = replace(FAST, ties=((mask, 32),), spatial=(28, 28))
    chosen = dispatch.choose(problem_of(case, dtype, op), op)
    assert (chosen.backend.NAME, chosen.algorithm) == ("cpu", "fold")
