# Faults put on purpose into the CUDA kernels: the stand-in for a GPU, or the oracle, must see each of them.
"""So a test that passes on the stand-in is worth something. A few are in the quick suite, all in the full one. Those of
the patch kernels and of the pipeline of the Hopper kernels are in test_cuda_patch_faults.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cuda_fake
import cuda_faults_conv
import cuda_faults_depthwise
import cuda_faults_hopperdgrad
import cuda_faults_wgrad
import cuda_grid
import cuda_host
import cuda_mutants
import oracle
import pytest
import torch
from oracle import Case

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Layer(NamedTuple):
    """A problem, its way through the backend, and the instantiations that it takes."""

    case: Case
    dtype: torch.dtype
    op: str
    algorithm: str
    instances: tuple[str, ...]


def _layer(
    mask: int,
    rows: int,
    channels: int,
    op: str,
    algorithm: str,
    dtype: torch.dtype,
    *instances: str,
    groups: int = 1,
) -> Layer:
    """3 x 3 with edges on all sides, tiles that are not full, and more stages of channels than a pipeline has."""
    last = ("channels_last",) * 3
    sizes = {"spatial": (9, 19), "padding": (1, 1), "batch": 2, "groups": groups}
    case = Case(ties=((mask, rows),), channels=channels, layouts=last, result_last=True, **sizes)
    return Layer(case, dtype, op, algorithm, instances)


LAYERS = {
    "forward h": _layer(1, 24, 136, "fprop", "tile", BF16, "prepare_bf16", "forward_bf16"),
    "forward hv, TF32": _layer(3, 16, 72, "fprop", "tile", FP32, "prepare_tf32", "forward_tf32"),
    "input gradient hv": _layer(3, 40, 40, "dgrad", "tile", BF16, "prepare_bf16", "gradient_bf16"),
    "input gradient h, warp groups": _layer(1, 80, 40, "dgrad", "hopper", BF16, "gh64p"),
    "input gradient hv, warp groups": _layer(3, 64, 40, "dgrad", "hopper", FP16, "ghv64p"),
    "weight gradient h": _layer(1, 24, 72, "wgrad", "tile", BF16, "bf16_nine1", "bf16_total"),
    "weight gradient hv, TF32": _layer(3, 16, 24, "wgrad", "tile", FP32, "tf32_nine2", "tf32_total"),
    "depthwise forward": _layer(3, 32, 16, "fprop", "depthwise", BF16, "fprop_plain_bfloat16", groups=16),
    "depthwise input gradient": _layer(3, 16, 16, "dgrad", "depthwise", BF16, "dgrad_bfloat16", groups=16),
    "depthwise weight gradient": _layer(
        3, 16, 16, "wgrad", "depthwise", BF16, "wgrad_plain_bfloat16", "dgrad_bfloat16", groups=16
    ),
}

FAULTS = {
    **cuda_faults_conv.FAULTS,
    **cuda_faults_wgrad.FAULTS,
    **cuda_faults_depthwise.FAULTS,
    **cuda_faults_hopperdgrad.FAULTS,
}
QUICK = (
    "copies before the barrier",
    "no swizzle",
    "a stage let go of early",
    "sums beyond the rows",
    "weights overwritten too early",
    "a row of the windows",
)


def check(layer: str) -> None:
    """Right numbers, and no fault. float32 also runs with values that TF32 does not hold."""
    case, dtype, op, algorithm, _ = LAYERS[layer]
    if dtype == FP32:
        oracle.run(case, dtype, op, "cuda", algorithm)
    cuda_grid.check(case, dtype, op, algorithm)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_a_fault_all_is_right(layer: str) -> None:
    """On one multiprocessor, so that a CTA has several tiles; so below."""
    with cuda_fake.stand_in(cuda_host.module()) as module:
        module.set_multiprocessors(1)
        check(layer)
        module.set_multiprocessors(4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in FAULTS]
)
def test_a_fault_is_seen(tmp_path: Path, name: str) -> None:
    layer, fault, says = FAULTS[name]
    wrong = cuda_mutants.build(fault, LAYERS[layer].instances, tmp_path)
    wrong.set_multiprocessors(1)
    with cuda_fake.stand_in(wrong), pytest.raises((RuntimeError, AssertionError)) as caught:
        check(layer)
    text = str(caught.value) or caught.typename
    assert re.search(says, text) or re.search(says, caught.typename), f"{name}: {text}"
