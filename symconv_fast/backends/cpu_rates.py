"""Rates of the CPU cost model in nanoseconds a unit; written by `python -m bench.fit_cost`, not by hand.

Measured on AMD EPYC (AVX512), 2 threads, torch 2.13.0+cpu, 2026-11-20; the rows are in
bench/results/reference-cost.jsonl.
"""

RATES = {
    "fold/pixels/dgrad": {"call": 23520.0, "pass": 0.0, "multiply_adds": 0.1764, "panel": 0.2215, "runs": 4.157, "weights": 1.864, "activations": 0.07963},
    "fold/pixels/fprop": {"call": 16710.0, "pass": 8423.0, "multiply_adds": 0.183, "panel": 0.0, "runs": 1.855, "weights": 1.823, "activations": 0.2206},
    "fold/pixels/wgrad": {"call": 28480.0, "pass": 0.0, "multiply_adds": 0.2038, "panel": 0.3661, "runs": 2.579, "weights": 1.973, "activations": 0.06123},
    "fold/planes/dgrad": {"call": 26670.0, "pass": 0.0, "multiply_adds": 0.191, "panel": 0.9238, "runs": 2.584, "weights": 2.415, "activations": 0.165},
    "fold/planes/fprop": {"call": 16690.0, "pass": 6315.0, "multiply_adds": 0.1773, "panel": 0.9769, "runs": 1.739, "weights": 2.425, "activations": 0.3132},
    "fold/planes/wgrad": {"call": 27750.0, "pass": 0.0, "multiply_adds": 0.1893, "panel": 1.664, "runs": 3.973, "weights": 3.117, "activations": 0.0358},
    "torch1d/planes/dgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.1831, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 2.159},
    "torch1d/planes/fprop": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.0, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 5.337},
    "torch1d/planes/wgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.5759, "panel": 0.0, "runs": 0.0, "weights": 3.904, "activations": 0.0},
    "torch2d/pixels/dgrad": {"call": 43810.0, "pass": 0.0, "multiply_adds": 0.1675, "panel": 0.0, "runs": 0.0, "weights": 1.646, "activations": 0.04463},
    "torch2d/pixels/dgrad/few": {"call": 66260.0, "pass": 0.0, "multiply_adds": 0.7743, "panel": 0.0, "runs": 0.0, "weights": 1.291, "activations": 0.0},
    "torch2d/pixels/fprop": {"call": 35210.0, "pass": 0.0, "multiply_adds": 0.1571, "panel": 0.0, "runs": 0.0, "weights": 1.662, "activations": 0.1078},
    "torch2d/pixels/fprop/few": {"call": 49450.0, "pass": 0.0, "multiply_adds": 0.1213, "panel": 0.0, "runs": 0.0, "weights": 28.71, "activations": 0.0257},
    "torch2d/pixels/wgrad": {"call": 40290.0, "pass": 0.0, "multiply_adds": 0.2178, "panel": 0.0, "runs": 0.0, "weights": 1.741, "activations": 0.0},
    "torch2d/pixels/wgrad/few": {"call": 71330.0, "pass": 0.0, "multiply_adds": 0.1776, "panel": 0.0, "runs": 0.0, "weights": 6.293, "activations": 0.0},
    "torch2d/planes/dgrad": {"call": 42920.0, "pass": 0.0, "multiply_adds": 0.1842, "panel": 0.0, "runs": 0.0, "weights": 1.817, "activations": 0.5401},
    "torch2d/planes/dgrad/few": {"call": 38300.0, "pass": 0.0, "multiply_adds": 0.7574, "panel": 0.0, "runs": 0.0, "weights": 49.07, "activations": 0.5117},
    "torch2d/planes/fprop": {"call": 36270.0, "pass": 0.0, "multiply_adds": 0.1894, "panel": 0.0, "runs": 0.0, "weights": 1.527, "activations": 0.4151},
    "torch2d/planes/fprop/few": {"call": 40040.0, "pass": 0.0, "multiply_adds": 0.01997, "panel": 0.0, "runs": 0.0, "weights": 103.7, "activations": 0.1975},
    "torch2d/planes/wgrad": {"call": 40950.0, "pass": 0.0, "multiply_adds": 0.1813, "panel": 0.0, "runs": 0.0, "weights": 1.901, "activations": 0.6134},
    "torch2d/planes/wgrad/few": {"call": 32740.0, "pass": 0.0, "multiply_adds": 0.04858, "panel": 0.0, "runs": 0.0, "weights": 122.9, "activations": 0.1773},
    "torch3d/pixels/dgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.1999, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 31.44},
    "torch3d/pixels/fprop": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.2361, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 29.35},
    "torch3d/pixels/wgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.1733, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 28.45},
    "torch3d/planes/dgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.2969, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 25.65},
    "torch3d/planes/fprop": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.2918, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 22.35},
    "torch3d/planes/wgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.2669, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 21.73},
    "winograd/pixels/dgrad": {"call": 0.0, "pass": 23050.0, "multiply_adds": 0.1835, "panel": 0.385, "runs": 4.22, "weights": 1.58, "activations": 0.0},
    "winograd/pixels/fprop": {"call": 16920.0, "pass": 5891.0, "multiply_adds": 0.2019, "panel": 0.0, "runs": 4.827, "weights": 2.159, "activations": 0.0},
    "winograd/pixels/wgrad": {"call": 26260.0, "pass": 0.0, "multiply_adds": 0.2409, "panel": 0.5767, "runs": 2.146, "weights": 3.48, "activations": 0.0},
    "winograd/planes/dgrad": {"call": 23980.0, "pass": 0.0, "multiply_adds": 0.208, "panel": 1.295, "runs": 3.184, "weights": 2.071, "activations": 0.0},
    "winograd/planes/fprop": {"call": 18360.0, "pass": 4813.0, "multiply_adds": 0.2081, "panel": 0.0, "runs": 2.186, "weights": 2.521, "activations": 0.4595},
    "winograd/planes/wgrad": {"call": 25410.0, "pass": 0.0, "multiply_adds": 0.2051, "panel": 2.551, "runs": 3.21, "weights": 4.483, "activations": 0.0},
}
