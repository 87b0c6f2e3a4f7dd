# Faults of the gradient of the weight: the layer that meets each, the changed text, and what is said of it.
"""For test_cuda_faults.py, which knows the layers."""

from __future__ import annotations

from cuda_mutants import NOT_YET, ORDER, OUTSIDE, WRONG, Fault

FAULTS: dict[str, tuple[str, Fault, str]] = {
    "a tile that is not folded by its copier": (
        "weight gradient h",
        Fault(
            "wgrad/tile.cuh",
            "const uint32_t address = stage + (i >> p.m_shift) * p.y_pitch + 16 * (i & mask);",
            "const uint32_t address = stage + ((i ^ 64) >> p.m_shift) * p.y_pitch + 16 * (i & mask);",
        ),
        f"{NOT_YET}|{ORDER}|outside of shared memory",
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
    "folded, but no barrier": (
        "weight gradient h",
        Fault("wgrad/kernels.cuh", "    barrier();\n    // Warps", "    // Warps"),
        f"{NOT_YET}|{ORDER}",
    ),
    "a stage let go of early": (
        "weight gradient h",
        Fault("wgrad/kernels.cuh", "stage ? stage - 1 : p.stages - 1);", "stage);"),
        f"{NOT_YET}|{ORDER}|{WRONG}",
    ),
    "sums of one split alone": (
        "weight gradient h",
        Fault("wgrad/total.cuh", "s < p.splits; s += p.parts", "s < 1; s += p.parts"),
        WRONG,
    ),
}
