"""Rates of the CPU cost model in nanoseconds a unit; written by `python -m bench.fit_cost`, not by hand.

Measured on AMD EPYC (AVX512), 2 threads, torch 2.13.0+cpu, 2026-11-20; the rows are in
bench/results/reference-cost.jsonl.
"""

RATES = {
    "fold/pixels/dgrad": {"call": 33520.0, "pass": 0.0, "multiply_adds": 0.1485, "panel": 0.1787, "runs": 5.649, "weights": 1.23, "activations": 0.09154},
    "fold/pixels/fprop": {"call": 18780.0, "pass": 15270.0, "multiply_adds": 0.1581, "panel": 0.0, "runs": 2.494, "weights": 1.613, "activations": 0.2016},
    "fold/pixels/wgrad": {"call": 29420.0, "pass": 0.0, "multiply_adds": 0.2012, "panel": 0.3114, "runs": 3.723, "weights": 1.633, "activations": 0.08333},
    "fold/planes/dgrad": {"call": 36890.0, "pass": 0.0, "multiply_adds": 0.1606, "panel": 1.105, "runs": 4.397, "weights": 2.288, "activations": 0.08996},
    "fold/planes/fprop": {"call": 21780.0, "pass": 11920.0, "multiply_adds": 0.1357, "panel": 1.155, "runs": 2.176, "weights": 2.323, "activations": 0.4131},
    "fold/planes/wgrad": {"call": 28190.0, "pass": 0.0, "multiply_adds": 0.1462, "panel": 1.655, "runs": 6.779, "weights": 3.172, "activations": 0.02919},
    "torch1d/planes/dgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.2065, "panel": 0.0, "runs": 0.0, "weights": 1.808, "activations": 1.385},
    "torch1d/planes/fprop": {"call": 82730.0, "pass": 0.0, "multiply_adds": 0.1634, "panel": 0.0, "runs": 0.0, "weights": 1.261, "activations": 0.09188},
    "torch1d/planes/wgrad": {"call": 0.0, "pass": 0.0, "multiply_adds": 0.0374, "panel": 0.0, "runs": 0.0, "weights": 2.667, "activations": 1.881},
    "torch2d/pixels/dgrad": {"call": 61580.0, "pass": 0.0, "multiply_adds": 0.1334, "panel": 0.0, "runs": 0.0, "weights": 1.35, "activations": 0.1115},
    "torch2d/pixels/dgrad/few": {"call": 64620.0, "pass": 0.0, "multiply_adds": 0.7394, "panel": 0.0, "runs": 0.0, "weights": 43.44, "activations": 0.0},
    "torch2d/pixels/fprop": {"call": 51720.0, "pass": 0.0, "multiply_adds": 0.131, "panel": 0.0, "runs": 0.0, "weights": 1.336, "activations": 0.1578},
    "torch2d/pixels/fprop/few": {"call": 46330.0, "pass": 0.0, "multiply_adds": 0.08907, "panel": 0.0, "runs": 0.0, "weights": 52.27, "activations": 0.07679},
    "torch2d/pixels/wgrad": {"call": 53110.0, "pass": 0.0, "multiply_adds": 0.1596, "panel": 0.0, "runs": 0.0, "weights": 1.904, "activations": 0.06973},
    "torch2d/pixels/wgrad/few": {"call": 66030.0, "pass": 0.0, "multiply_adds": 0.1702, "panel": 0.0, "runs": 0.0, "weights": 29.67, "activations": 0.0},
    "torch2d/planes/dgrad": {"call": 58600.0, "pass": 0.0, "multiply_adds": 0.1501, "panel": 0.0, "runs": 0.0, "weights": 1.574, "activations": 0.5789},
    "torch2d/planes/dgrad/few": {"call": 40160.0, "pass": 0.0, "multiply_adds": 0.7861, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 0.9973},
    "torch2d/planes/fprop": {"call": 51330.0, "pass": 0.0, "multiply_adds": 0.1571, "panel": 0.0, "runs": 0.0, "weights": 1.336, "activations": 0.4233},
    "torch2d/planes/fprop/few": {"call": 37300.0, "pass": 0.0, "multiply_adds": 0.001505, "panel": 0.0, "runs": 0.0, "weights": 123.8, "activations": 0.2194},
    "torch2d/planes/wgrad": {"call": 55160.0, "pass": 0.0, "multiply_adds": 0.1506, "panel": 0.0, "runs": 0.0, "weights": 1.757, "activations": 0.5697},
    "torch2d/planes/wgrad/few": {"call": 33080.0, "pass": 0.0, "multiply_adds": 0.09003, "panel": 0.0, "runs": 0.0, "weights": 66.14, "activations": 0.594},
    "torch3d/pixels/dgrad": {"call": 34550.0, "pass": 0.0, "multiply_adds": 0.6047, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 11.97},
    "torch3d/pixels/fprop": {"call": 162500.0, "pass": 0.0, "multiply_adds": 0.7373, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 6.536},
    "torch3d/pixels/wgrad": {"call": 210600.0, "pass": 0.0, "multiply_adds": 0.7274, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 4.477},
    "torch3d/planes/dgrad": {"call": 52820.0, "pass": 0.0, "multiply_adds": 0.5516, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 10.89},
    "torch3d/planes/fprop": {"call": 125700.0, "pass": 0.0, "multiply_adds": 0.7205, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 6.155},
    "torch3d/planes/wgrad": {"call": 237600.0, "pass": 0.0, "multiply_adds": 0.7672, "panel": 0.0, "runs": 0.0, "weights": 0.0, "activations": 2.285},
    "winograd/pixels/dgrad": {"call": 32030.0, "pass": 0.0, "multiply_adds": 0.1534, "panel": 0.2497, "runs": 6.882, "weights": 1.197, "activations": 0.1648},
    "winograd/pixels/fprop": {"call": 19590.0, "pass": 11530.0, "multiply_adds": 0.155, "panel": 0.453, "runs": 5.6, "weights": 1.46, "activations": 0.2816},
    "winograd/pixels/wgrad": {"call": 0.0, "pass": 26390.0, "multiply_adds": 0.2804, "panel": 0.3729, "runs": 2.987, "weights": 2.613, "activations": 0.1229},
    "winograd/planes/dgrad": {"call": 32900.0, "pass": 0.0, "multiply_adds": 0.1861, "panel": 1.951, "runs": 4.333, "weights": 1.793, "activations": 0.0},
    "winograd/planes/fprop": {"call": 22070.0, "pass": 10040.0, "multiply_adds": 0.1162, "panel": 0.0, "runs": 2.752, "weights": 2.389, "activations": 0.8213},
    "winograd/planes/wgrad": {"call": 24350.0, "pass": 0.0, "multiply_adds": 0.1567, "panel": 3.461, "runs": 6.111, "weights": 4.276, "activations": 0.0},
}
