# Faults put on purpose into the CUDA kernels: the stand-in for a GPU, or the oracle, must see each of them.
"""So a test that passes on the stand-in is worth something. A few are in the quick suite, all in the full one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cuda_fake
import cuda_grid
import cuda_host
import cuda_mutants
import oracle
import pytest
import torch
from cuda_mutants import Fault
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
    "forward h": _layer(1, 24, 136, "fprop", "tile", BF16, "prepare_bf16", "forward_pair_bf16"),
    "forward hv, TF32": _layer(3, 16, 72, "fprop", "tile", FP32, "prepare_tf32", "forward_quad_tf32"),
    "input gradient hv": _layer(
        3, 40, 40, "dgrad", "tile", BF16, "prepare_bf16", "gradient_128_bf16", "gradient_64_bf16"
    ),
    "weight gradient h": _layer(1, 24, 72, "wgrad", "tile", BF16, "bf16_nine1", "bf16_total"),
    "weight gradient hv, TF32": _layer(3, 16, 24, "wgrad", "tile", FP32, "tf32_nine2", "tf32_total"),
    "patch h": _layer(1, 40, 136, "fprop", "patch", BF16, "h64"),
    "patch hv": _layer(3, 24, 136, "fprop", "patch", FP16, "hv32"),
    "depthwise forward": _layer(3, 32, 16, "fprop", "depthwise", BF16, "fprop_bfloat16", groups=16),
    "depthwise input gradient": _layer(3, 16, 16, "dgrad", "depthwise", BF16, "dgrad_bfloat16", groups=16),
    "depthwise weight gradient": _layer(
        3, 16, 16, "wgrad", "depthwise", BF16, "wgrad_bfloat16", "dgrad_bfloat16", groups=16
    ),
}

WRONG = "values of .* are wrong|AssertionError"
ORDER = "without a barrier after the"
NOT_YET = "copy that was not waited for|read of what nobody wrote"
OUTSIDE = "outside of the registered buffers|of what no kernel wrote"

# Name -> (layer, fault, what is said of it).
FAULTS: dict[str, tuple[str, Fault, str]] = {
    # ---- the general kernels: forward and gradient of the input
    "no barrier of a stage": (
        "forward h",
        Fault("conv/kernels.cuh", "    barrier();\n    loader.issue();", "    loader.issue();"),
        f"{NOT_YET}|{ORDER}",
    ),
    "copies before the barrier": (
        "forward h",
        Fault(
            "conv/kernels.cuh",
            "    barrier();\n    loader.issue();\n    copy_commit();",
            "    loader.issue();\n    copy_commit();\n    barrier();",
        ),
        f"write {ORDER} read|{NOT_YET}",
    ),
    "a copy too many in flight": (
        "forward h",
        Fault("conv/kernels.cuh", "    else\n      copy_wait<1>();", "    else\n      copy_wait<2>();"),
        NOT_YET,
    ),
    "a table without its barrier": (
        "forward h",
        Fault("conv/kernels.cuh", "    barrier();\n    loader.start();", "    loader.start();"),
        f"{ORDER}|nobody wrote",
    ),
    "lanes that do not wait for each other": (
        "forward h",
        Fault(
            "conv/loader.cuh",
            "!used ? ~1u : inside ? source : ~0u);\n    }\n    warp_barrier();",
            "!used ? ~1u : inside ? source : ~0u);\n    }",
        ),
        f"read {ORDER} write|nobody wrote",
    ),
    "rows of a fragment": (
        "forward h",
        Fault(
            "conv/kernels.cuh",
            "matrix % 2 * 8 + row) * 8 + 4) + matrix / 2",
            "matrix / 2 * 8 + row) * 8 + 4) + matrix % 2",
        ),
        WRONG,
    ),
    "blocks of the weights": (
        "forward h",
        Fault("conv/kernels.cuh", "b[k][j / 2][j % 2 * 2],", "b[k][j / 2][(j + 1) % 2 * 2],"),
        WRONG,
    ),
    "swizzle of the weights": (
        "forward h",
        Fault("conv/kernels.cuh", "lane() / 8 % 2 ^ (row >> 1 & 3)", "lane() / 8 % 2 ^ (row >> 2 & 3)"),
        f"bank conflict|{WRONG}",
    ),
    "no swizzle": (
        "forward h",
        Fault("conv/kernels.cuh", "lane() / 8 % 2 ^ (row >> 1 & 3)", "lane() / 8 % 2"),
        "bank conflict",
    ),
    "a step of the contraction left out": (
        "forward h",
        Fault(
            "conv/kernels.cuh", "const int steps = p.pieces - chunk * 4 > 2 ? 2 : 1;", "const int steps = 1;"
        ),
        WRONG,
    ),
    "a sign of the parities": (
        "forward h",
        Fault("conv/sums.cuh", "sums[c + axis][f][e] = even - odd;", "sums[c + axis][f][e] = odd - even;"),
        WRONG,
    ),
    "a halo that begins late": (
        "forward h",
        Fault(
            "conv/loader.cuh",
            "const int to = origin[axis] + position * a.sample;",
            "const int to = origin[axis] + position * a.sample + 1;",
        ),
        f"{WRONG}|{OUTSIDE}",
    ),
    "beyond the map": (
        "forward h",
        Fault(
            "conv/loader.cuh",
            "inside = inside && to >= 0 && to < a.source;",
            "inside = inside && to >= 0 && to <= a.source;",
        ),
        f"{WRONG}|{OUTSIDE}",
    ),
    "pixels beyond the output": (
        "forward h",
        Fault("conv/sums.cuh", "inside = inside && to < a.target;", "inside = inside && to <= a.target;"),
        "store outside|store where thread|values of .* are wrong",
    ),
    "channels beyond the filters": (
        "forward h",
        Fault("conv/sums.cuh", "left = columns - first;", "left = columns - first + 8;"),
        "store outside|store where thread",
    ),
    "members exchanged": (
        "forward hv, TF32",
        Fault(
            "conv/sums.cuh",
            "return kOrder == 3 ? kAll[member] : member;",
            "return kOrder == 3 ? kAll[member] : 3 - member;",
        ),
        WRONG,
    ),
    "operands that are not rounded": (
        "forward hv, TF32",
        Fault("conv/kernels.cuh", "for (int e = 0; e < 4; ++e) a[k][e] = operand<T>(a[k][e]);", "{}"),
        "operand is not rounded to TF32",
    ),
    "odd part of the folded weights": (
        "forward hv, TF32",
        Fault("conv/prepare.cuh", "sum += odd ? -v : v;", "sum += v;"),
        WRONG,
    ),
    "weights in another order": (
        "forward hv, TF32",
        Fault(
            "conv/prepare.cuh",
            "inside % 8 / 2 * p.together + inside / 8 * 2",
            "inside % 8 / 2 * 2 + inside / 8 * p.together",
        ),
        f"{WRONG}|store",
    ),
    "members not mirrored": (
        "input gradient hv",
        Fault(
            "conv/prepare.cuh",
            "last - t.tap[axis]) * kConvPitch + slice",
            "t.tap[axis]) * kConvPitch + slice",
        ),
        WRONG,
    ),
    "a slice of the members": (
        "input gradient hv",
        Fault("conv/loader.cuh", "input + slice * s.slice_bytes", "input + (slice ^ 1) * s.slice_bytes"),
        f"{WRONG}|{NOT_YET}|{ORDER}",
    ),
    # ---- the gradient of the weight
    "a tile that is not folded by its copier": (
        "weight gradient h",
        Fault(
            "wgrad/tile.cuh",
            "const uint32_t address = stage + (i >> p.m_shift) * p.y_pitch + 16 * (i & mask);",
            "const uint32_t address = stage + ((i ^ 64) >> p.m_shift) * p.y_pitch + 16 * (i & mask);",
        ),
        f"{NOT_YET}|{ORDER}|outside of shared memory",
    ),
    "folded, but no barrier": (
        "weight gradient h",
        Fault(
            "wgrad/kernels.cuh",
            "    barrier();\n    if (p.stages > 1) copy(",
            "    if (p.stages > 1) copy(",
        ),
        f"{NOT_YET}|{ORDER}",
    ),
    "a stage let go of early": (
        "weight gradient h",
        Fault("wgrad/kernels.cuh", "int stage = 0, free = p.stages - 1;", "int stage = 0, free = 0;"),
        f"{NOT_YET}|{ORDER}|{WRONG}",
    ),
    "stages not waited for": (
        "weight gradient h",
        Fault("wgrad/kernels.cuh", "    wait_stage(p.stages);\n", ""),
        NOT_YET,
    ),
    "rows and columns of a load": (
        "weight gradient h",
        Fault(
            "wgrad/kernels.cuh",
            "return lane() % 8 * pitch + lane() / 8 % 2 * 16;",
            "return lane() % 8 * pitch + lane() / 16 * 16;",
        ),
        WRONG,
    ),
    "sum and difference of the pixels": (
        "weight gradient h",
        Fault(
            "wgrad/kernels.cuh",
            "butterfly<T>(b[w][i], b[w | bit][i]);",
            "butterfly<T>(b[w | bit][i], b[w][i]);",
        ),
        WRONG,
    ),
    "sums of one split alone": (
        "weight gradient h",
        Fault("wgrad/total.cuh", "for (int s = 0; s < p.splits; ++s)", "for (int s = 0; s < 1; ++s)"),
        WRONG,
    ),
    "sums beyond the rows": (
        "weight gradient h",
        Fault(
            "wgrad/kernels.cuh",
            "if (u < p.rows && channel + 8 * n < p.channels)",
            "if (channel + 8 * n < p.channels)",
        ),
        "store outside|store where thread",
    ),
    "zeros of the last run left out": (
        "weight gradient hv, TF32",
        Fault(
            "wgrad/tile.cuh",
            "const bool inside = entry != kNoPixel && z < p.y[0] && y < p.y[1] && x < p.y[2];",
            "const bool inside = entry != kNoPixel && z < p.y[0] && y < p.y[1];",
        ),
        f"{WRONG}|{OUTSIDE}",
    ),
    "pixels of TF32 not rounded": (
        "weight gradient hv, TF32",
        Fault("wgrad/kernels.cuh", "for (int i = 0; i < 4; ++i) b[w][i] = operand<T>(b[w][i]);", "{}"),
        "operand is not rounded to TF32",
    ),
    "a halo row short": (
        "weight gradient hv, TF32",
        Fault(
            "wgrad/kernels.cuh",
            "int pixel = (z * p.halo[1] + y) * p.halo[2] + x % p.step[2]",
            "int pixel = (z * p.halo[1] + y) * (p.halo[2] - 1) + x % p.step[2]",
        ),
        WRONG,
    ),
    # ---- patches
    "no barrier of a patch": (
        "patch h",
        Fault("patch/kernels.cuh", "      barrier();\n", ""),
        f"{NOT_YET}|{ORDER}",
    ),
    "stages out of turn": (
        "patch h",
        Fault(
            "patch/kernels.cuh",
            "stage = stage + 1 == T::kStages ? 0 : stage + 1;",
            "stage = stage + 2 == T::kStages ? 0 : stage + 1;",
        ),
        f"{NOT_YET}|outside|{ORDER}",
    ),
    "a patch a row off": (
        "patch h",
        Fault("patch/tile.h", "const int y = at.row + row - 1,", "const int y = at.row + row,"),
        WRONG,
    ),
    "beyond the last column": (
        "patch h",
        Fault("patch/tile.h", "x >= 0 && x < p.width;", "x >= 0 && x <= p.width;"),
        f"{WRONG}|{OUTSIDE}",
    ),
    "patches without a key": (
        "patch h",
        Fault("patch/tile.h", "(column >> T::kKeyShift)", "(column * 0)"),
        "bank conflict",
    ),
    "weights of a chunk too far": (
        "patch h",
        Fault(
            "patch/kernels.cuh",
            "weights + (int64_t{tile % p.blocks} * p.steps + step) * T::kWeightBytes",
            "weights + (int64_t{tile % p.blocks} * p.steps + step + 1) * T::kWeightBytes",
        ),
        f"{WRONG}|{OUTSIDE}",
    ),
    "a tap of quadruples": (
        "patch hv",
        Fault(
            "patch/warp.h",
            "multiply_rows(weight, 3, 1, difference);",
            "multiply_rows(weight, 4, 1, difference);",
        ),
        WRONG,
    ),
    "rows of quadruples": (
        "patch hv",
        Fault(
            "patch/warp.h",
            "fold_subtract<E>(rows[q][e], rows[q + 2][e])",
            "fold_subtract<E>(rows[q + 2][e], rows[q][e])",
        ),
        WRONG,
    ),
    "a row beyond the map": (
        "patch hv",
        Fault("patch/sums.h", "if (row < rows)", "if (row <= rows)"),
        "store outside|store where thread",
    ),
    "weights halved twice": (
        "patch hv",
        Fault("patch/fold.h", "0.5f * kFold<E>", "0.5f"),
        WRONG,
    ),
    # ---- depthwise
    "a window that is not there yet": (
        "depthwise forward",
        Fault("depthwise/fprop.cuh", "row, w, weights);\n  barrier();", "row, w, weights);"),
        f"{ORDER}|nobody wrote",
    ),
    "weights overwritten too early": (
        "depthwise forward",
        Fault(
            "depthwise/fprop.cuh",
            "  barrier();  // all have done with the weights from before, and the window is there\n",
            "",
        ),
        f"{ORDER}|nobody wrote",
    ),
    "taps not reversed": (
        "depthwise forward",
        Fault(
            "depthwise/fprop.cuh",
            "w_back = column.w + (s.taps - 1 - phase) * column.step",
            "w_back = column.w + phase * column.step",
        ),
        f"{WRONG}|outside of shared memory|nobody wrote",
    ),
    "an output too many": (
        "depthwise forward",
        Fault(
            "depthwise/fprop.cuh",
            "(left_over - 1) / s.output_step + 1",
            "(left_over - 1) / s.output_step + 2",
        ),
        "store outside|store where thread",
    ),
    "members over those that are read": (
        "depthwise input gradient",
        Fault("depthwise/dgrad.cuh", "      barrier();  // all have done with the members from before\n", ""),
        ORDER,
    ),
    "a mirror of the gradient": (
        "depthwise input gradient",
        Fault("depthwise/dgrad.cuh", "along = mirrors >> (folded ^ 1) & 1;", "along = 0;"),
        WRONG,
    ),
    "an edge of the window": (
        "depthwise weight gradient",
        Fault(
            "depthwise/window.cuh",
            "static_cast<unsigned>(m.x + x) < static_cast<unsigned>(m.width)",
            "m.x + x <= m.width",
        ),
        f"{WRONG}|{OUTSIDE}",
    ),
    "parts added without a barrier": (
        "depthwise weight gradient",
        Fault(
            "depthwise/wgrad.cuh",
            "shared_put(parts + (i * threads() + thread()) * 4, sums[k][i]);\n    barrier();",
            "shared_put(parts + (i * threads() + thread()) * 4, sums[k][i]);",
        ),
        f"{ORDER}|nobody wrote",
    ),
    "odd taps": (
        "depthwise weight gradient",
        Fault(
            "depthwise/wgrad.cuh",
            "0.5f * (side ? even - odd : even + odd)",
            "0.5f * (side ? even + odd : even - odd)",
        ),
        WRONG,
    ),
    "a share left out": (
        "depthwise weight gradient",
        Fault(
            "depthwise/wgrad.cuh",
            "for (int chunk = 0; chunk < p.chunks; ++chunk) total",
            "for (int chunk = 1; chunk < p.chunks; ++chunk) total",
        ),
        WRONG,
    ),
}
QUICK = (
    "copies before the barrier",
    "no swizzle",
    "a stage let go of early",
    "sums beyond the rows",
    "a tap of quadruples",
    "weights overwritten too early",
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
