# Faults of the general matrix kernels: the layer that meets each, the changed text, and what is said of it.
"""For test_cuda_faults.py, which knows the layers."""

from __future__ import annotations

from cuda_mutants import NOT_YET, ORDER, OUTSIDE, WRONG, Fault

FAULTS: dict[str, tuple[str, Fault, str]] = {
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
    "a table without its barrier": (
        "forward h",
        Fault("conv/kernels.cuh", "    loader.start();\n    barrier();", "    loader.start();"),
        f"{ORDER}|nobody wrote",
    ),
    "blocks of the weights": (
        "forward h",
        Fault("conv/kernels.cuh", "b[j / 2][j % 2 * 2], b", "b[j / 2][(j + 1) % 2 * 2], b"),
        WRONG,
    ),
    "a sign of the parities": (
        "forward h",
        Fault(
            "conv/sums.cuh", "sums[i + kDistance][e] = even - odd;", "sums[i + kDistance][e] = odd - even;"
        ),
        WRONG,
    ),
    "pixels beyond the output": (
        "forward h",
        Fault(
            "conv/sums.cuh",
            "inside = inside && at < s.axis[axis].target;",
            "inside = inside && at <= s.axis[axis].target;",
        ),
        "store outside|store where thread|values of .* are wrong",
    ),
    "channels beyond the filters": (
        "forward h",
        Fault("conv/sums.cuh", "left = (kGradient ? s.channels : p.rows) - first;", "left = 8;"),
        "outside of the registered|store where thread",
    ),
    "members exchanged": (
        "forward hv, TF32",
        Fault(
            "conv/sums.cuh",
            "const int copy = kGradient ? 0 : p.copy_of[member];",
            "const int copy = kGradient ? 0 : p.copy_of[member ^ 1];",
        ),
        WRONG,
    ),
    "weights in another order": (
        "forward hv, TF32",
        Fault("conv/prepare.cuh", "row % 8 / 2 * 8 + row % 32 / 8 * 2", "row % 8 / 2 * 2 + row % 32 / 8 * 8"),
        f"{WRONG}|store",
    ),
    "a cursor that lanes do not wait for": (
        "forward h",
        Fault("conv/loader.cuh", "    warp_barrier();\n    if (lane() == 0) {", "    if (lane() == 0) {"),
        f"write {ORDER} read",
    ),
    "a copy too many in flight": (
        "forward h",
        Fault(
            "conv/kernels.cuh",
            "copy_wait<0>();\n        else\n          copy_wait<1>();",
            "copy_wait<1>();\n        else\n          copy_wait<2>();",
        ),
        NOT_YET,
    ),
    "copies before the barrier": (
        "forward h",
        Fault(
            "conv/kernels.cuh",
            "        barrier();\n      }\n      loader.issue();",
            "      }\n      loader.issue();\n      if (full) barrier();",
        ),
        f"write {ORDER} read|{NOT_YET}",
    ),
    "no barrier of a stage": (
        "forward h",
        Fault(
            "conv/kernels.cuh",
            "        barrier();\n      }\n      loader.issue();",
            "      }\n      loader.issue();",
        ),
        f"{NOT_YET}|{ORDER}",
    ),
    "a step of the contraction left out": (
        "forward h",
        Fault("conv/kernels.cuh", "step < (pieces > 2 ? 2 : 1)", "step < 1"),
        WRONG,
    ),
}
