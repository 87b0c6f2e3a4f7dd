"""Rates of the CPU cost model in nanoseconds a unit; written by `python -m bench.fit_cost`, not by hand.

Measured on AMD EPYC (AVX512), 2 threads, torch 2.13.0+cpu, 2026-11-20; the rows are in
bench/results/reference-cost.jsonl.
"""

RATES = {
    "native/pixels/dgrad": {"call": 25650.0, "pass": 0.0, "multiply_adds": 0.1469, "panel": 0.1234, "runs": 5.88, "weights": 0.7591, "activations": 0.06282},
    "native/pixels/fprop": {"call": 18930.0, "pass": 7546.0, "multiply_adds": 0.1489, "panel": 0.0, "runs": 2.995, "weights": 1.034, "activations": 0.1913},
    "native/pixels/wgrad": {"call": 29150.0, "pass": 0.0, "multiply_adds": 0.1676, "panel": 0.3152, "runs": 3.807, "weights": 1.322, "activations": 0.03593},
    "native/planes/dgrad": {"call": 28890.0, "pass": 0.0, "multiply_adds": 0.1507, "panel": 1.104, "runs": 3.4, "weights": 1.081, "activations": 0.06887},
    "native/planes/fprop": {"call": 20180.0, "pass": 5146.0, "multiply_adds": 0.1366, "panel": 0.9254, "runs": 1.958, "weights": 1.162, "activations": 0.3239},
    "native/planes/wgrad": {"call": 29430.0, "pass": 0.0, "multiply_adds": 0.1267, "panel": 1.651, "runs": 5.544, "weights": 1.788, "activations": 0.04514},
    "torch/pixels/dgrad": {"call": 57710.0, "pass": 0.0, "multiply_adds": 0.1122, "panel": 0.0, "runs": 0.0, "weights": 1.243, "activations": 0.391},
    "torch/pixels/fprop": {"call": 47780.0, "pass": 0.0, "multiply_adds": 0.1323, "panel": 0.0, "runs": 0.0, "weights": 0.9423, "activations": 0.1425},
    "torch/pixels/wgrad": {"call": 59070.0, "pass": 0.0, "multiply_adds": 0.1545, "panel": 0.0, "runs": 0.0, "weights": 1.061, "activations": 0.1379},
    "torch/planes/dgrad": {"call": 54950.0, "pass": 0.0, "multiply_adds": 0.1317, "panel": 0.0, "runs": 0.0, "weights": 1.958, "activations": 0.6519},
    "torch/planes/fprop": {"call": 49440.0, "pass": 0.0, "multiply_adds": 0.1499, "panel": 0.0, "runs": 0.0, "weights": 1.711, "activations": 0.2359},
    "torch/planes/wgrad": {"call": 56010.0, "pass": 0.0, "multiply_adds": 0.1529, "panel": 0.0, "runs": 0.0, "weights": 1.814, "activations": 0.414},
}
