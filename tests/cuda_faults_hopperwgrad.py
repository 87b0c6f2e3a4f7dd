# Faults of the weight's gradient on Hopper: the layer that meets each, the changed text, and what is said of it.
"""For test_cuda_faults.py, which knows the layers."""

from __future__ import annotations

from cuda_mutants import NOT_YET, ORDER, WRONG, Fault

H, HV = "weight gradient h, Hopper", "weight gradient hv, Hopper"
MULTIPLY = "column.multiply(stages + turn.stage * T::kStageBytes);"
LET_GO = "warp_barrier();\n    if (lane() == 0) arrive(empty + turn.stage * 8);"
KERNELS, COLUMN = "hopperwgrad/kernels.cuh", "hopperwgrad/column.cuh"

FAULTS: dict[str, tuple[str, Fault, str]] = {
    "mirror image at the wrong column": (
        H, Fault(COLUMN, "mirrored = (pixel + kw)", "mirrored = (pixel + 2 - kw)"), WRONG
    ),
    "a window without its swizzle": (
        H, Fault(COLUMN, "load_transposed(other, right ^ (right >> 3 & 112))", "load_transposed(other, right)"),
        f"{WRONG}|bank conflict",
    ),
    "rows of a step that are neighbours": (
        H, Fault(COLUMN, "(matrix >> 1) * (T::kSteps * T::kPitch)", "(matrix >> 1) * T::kPitch"), WRONG
    ),
    "tap rows in the wrong order": (
        H, Fault(COLUMN, "product(kh, pair[t % 2],", "product(2 - kh, pair[t % 2],"), WRONG
    ),
    "blocks of eight rows beside each other": (
        H, Fault(COLUMN, "product_transposed<E, T::kSteps * T::kRowBytes>", "product_transposed<E, T::kRowBytes>"),
        WRONG,
    ),
    "halves that are not made whole": (
        H, Fault(COLUMN, "constexpr float scale = T::kMembers == 4 ? kFold<E> * kFold<E> : kFold<E>;",
                 "constexpr float scale = 1.0f;"),
        WRONG,
    ),
    "rows of the next member": (
        H, Fault(COLUMN, "if (u < p.rows && channel + 8 * n < p.channels)", "if (channel + 8 * n < p.channels)"),
        f"{WRONG}|outside of the registered buffers|has written",
    ),
    "flipped rows not flipped": (
        HV, Fault(COLUMN, "add(first_flipped, first_flipped, last)", "add(first_flipped, last_flipped, last)"), WRONG
    ),
    "products not waited for": (
        HV, Fault(COLUMN, "    product_wait<0>();", "    product_wait<1>();"), f"{WRONG}|{ORDER}|{NOT_YET}|bulk copy"
    ),
    "no fence before the products": (
        H,
        Fault(
            COLUMN,
            "load_pair(pair[t % 2], stage, 0, t);\n      product_fence();",
            "load_pair(pair[t % 2], stage, 0, t);",
        ),
        "no fence",
    ),
    "a box at its pixel": (
        HV, Fault(KERNELS, "gradient, column - 1, row - 1, image", "gradient, column - 1, row, image"), WRONG
    ),
    "a stage let go of before its products": (
        HV,
        Fault(
            KERNELS,
            f"    {MULTIPLY}\n    {LET_GO}\n",
            f"    {LET_GO}\n    {MULTIPLY}\n",
        ),
        f"{ORDER}|{NOT_YET}|{WRONG}",
    ),
    "one arrival too few": (
        H, Fault(KERNELS, "(empty + stage * 8, 12)", "(empty + stage * 8, 13)"), "deadlock"
    ),
    "splits that overlap": (
        HV, Fault(KERNELS, "(b.split + 1) / p.splits)", "(b.split + 2) / (p.splits + 1))"),
        WRONG,
    ),
}  # fmt: skip
