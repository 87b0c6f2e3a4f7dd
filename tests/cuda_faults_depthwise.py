# Faults of the depthwise kernels: the layer that meets each, the changed text, and what is said of it.
"""For test_cuda_faults.py, which knows the layers."""

from __future__ import annotations

from cuda_mutants import ORDER, OUTSIDE, WRONG, Fault

FAULTS: dict[str, tuple[str, Fault, str]] = {
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
    "members over those that are read": (
        "depthwise input gradient",
        Fault("depthwise/dgrad.cuh", "      barrier();  // all have done with the members from before\n", ""),
        ORDER,
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
    "taps not reversed": (
        "depthwise input gradient",
        Fault(
            "depthwise/dgrad.cuh",
            "const int top = MIRROR ? s.taps - 1 - t.down.first : t.down.first;",
            "const int top = t.down.first;",
        ),
        f"{WRONG}|outside of shared memory|nobody wrote",
    ),
    "an output too many": (
        "depthwise forward",
        Fault("depthwise/fprop.cuh", "PLAIN ? left_over :", "PLAIN ? left_over + 1 :"),
        "store outside|store where thread",
    ),
    "an edge of the window": (
        "depthwise weight gradient",
        Fault(
            "depthwise/window.cuh",
            "x + k < f.columns && static_cast<unsigned>(m.x + x + k) < static_cast<unsigned>(m.width);",
            "x + k < f.columns && m.x + x + k <= m.width;",
        ),
        f"{WRONG}|{OUTSIDE}",
    ),
    "parts added without a barrier": (
        "depthwise weight gradient",
        Fault(
            "depthwise/wgrad.cuh",
            "(i * apart + thread()) * 4, sums[k][i]);\n    barrier();",
            "(i * apart + thread()) * 4, sums[k][i]);",
        ),
        f"{ORDER}|nobody wrote",
    ),
}
