# Faults of the gradient of the input on Hopper: the layer that meets each, the changed text, and what is said of it.
"""For test_cuda_faults.py, which knows the layers. Those of the pipeline are in test_cuda_patch_faults.py."""

from __future__ import annotations

from cuda_mutants import ORDER, WRONG, Fault

H, HV = "input gradient h, warp groups", "input gradient hv, warp groups"
FILE = "hopperdgrad/gather.h"

FAULTS: dict[str, tuple[str, Fault, str]] = {
    "columns of a mirrored member": (
        H,
        Fault(FILE, "T::kSliceBytes, 0, kw, t)", "T::kSliceBytes, 0, 2 - kw, t)"),
        WRONG,
    ),
    "columns of a member": (
        H,
        Fault(FILE, "T::kSliceBytes, 0, 2 - kw, t)", "T::kSliceBytes, 0, kw, t)"),
        WRONG,
    ),
    "the slice of a member": (H, Fault(FILE, "(slice + 1) * T", "slice * T"), WRONG),
    "a row of the windows": (H, Fault(FILE, "sum[q + 2 - kh], stage", "sum[q + kh], stage"), WRONG),
    "a row of mirrored rows": (HV, Fault(FILE, "turned[q + kh][e]", "turned[q + 2 - kh][e]"), WRONG),
    "slices of mirrored rows": (
        HV,
        Fault(FILE, "load_sum(turned, stage, kw, 2)", "load_sum(turned, stage, kw, 1)"),
        WRONG,
    ),
    "the scale of halved sums": (
        HV,
        Fault(FILE, "? kFold<E> * kFold<E> : kFold<E>", "? kFold<E> : kFold<E>"),
        WRONG,
    ),
    "products that are not waited for": (
        H,
        Fault(FILE, "    product_wait<0>();\n", ""),
        f"write {ORDER} read|{WRONG}",
    ),
    "products before their fence": (
        H,
        Fault(FILE, "load_sum(sum, stage, kw, 0);\n    product_fence();", "load_sum(sum, stage, kw, 0);"),
        "no fence after ldmatrix",
    ),
    "a patch without whole repeats of the swizzle": (
        H,
        Fault(FILE, "+ 255) / 256 * 256", "+ 127) / 128 * 128"),
        f"bank conflict|{WRONG}",
    ),
    "a member beyond its slice": (
        H,
        Fault("hopperdgrad/roles.h", "q.channels = p.rows", "q.channels = p.rows + 8"),
        f"outside of the registered buffers|{WRONG}",
    ),
    "rows and channels of the weight": (
        H,
        Fault(
            "hopperdgrad/roles.h",
            "q.w_row = p.w_channel, q.w_channel = p.w_row",
            "q.w_row = p.w_row, q.w_channel = p.w_channel",
        ),
        f"outside of the registered buffers|{WRONG}",
    ),
}
