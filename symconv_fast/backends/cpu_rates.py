"""Rates of the CPU cost model in nanoseconds a unit; written by `python -m bench.fit_cost`, not by hand.

Measured on AMD EPYC (AVX512), 2 threads, torch 2.13.0+cpu, 2026-11-21; the rows are in
bench/results/reference-cost.jsonl. What is left out is 0.
"""

RATES = {
    "fold/dgrad": {
        "call": 20640.0,
        "activations": 0.01289,
        "pixels/pass": 2291.0,
        "pixels/multiply_adds": 0.1321,
        "pixels/results": 2.485,
        "pixels/panel": 0.4937,
        "pixels/runs": 2.412,
        "pixels/weights": 0.3087,
        "planes/pass": 3853.0,
        "planes/multiply_adds": 0.1515,
        "planes/results": 4.32,
        "planes/panel": 0.427,
        "planes/runs": 2.139,
        "planes/weights": 0.9636,
        "staged/multiply_adds": 0.07831,
        "staged/results": 33.92,
        "staged/runs": 21.92,
        "staged/weights": 0.5479,
        "turned/pass": 3933.0,
        "turned/multiply_adds": 0.127,
        "turned/results": 18.92,
        "turned/panel": 1.336,
        "turned/runs": 16.68,
        "turned/weights": 1.053
    },
    "fold/fprop": {
        "call": 17010.0,
        "activations": 0.107,
        "pixels/pass": 3659.0,
        "pixels/multiply_adds": 0.1269,
        "pixels/results": 0.0627,
        "pixels/panel": 0.4495,
        "pixels/runs": 3.193,
        "pixels/weights": 0.3642,
        "planes/pass": 7490.0,
        "planes/multiply_adds": 0.1548,
        "planes/panel": 0.3351,
        "planes/runs": 1.589,
        "planes/weights": 0.5356,
        "staged/pass": 139.5,
        "staged/multiply_adds": 0.07766,
        "staged/results": 1.455,
        "staged/panel": 0.8432,
        "staged/runs": 18.67,
        "staged/weights": 33.33,
        "turned/pass": 3654.0,
        "turned/multiply_adds": 0.1522,
        "turned/results": 0.3706,
        "turned/panel": 2.345,
        "turned/runs": 21.96,
        "turned/weights": 1.007
    },
    "fold/wgrad": {
        "call": 25350.0,
        "pixels/multiply_adds": 0.1369,
        "pixels/results": 4.078,
        "pixels/panel": 0.1548,
        "pixels/runs": 3.796,
        "pixels/weights": 1.106,
        "planes/pass": 481.6,
        "planes/multiply_adds": 0.1046,
        "planes/results": 5.008,
        "planes/panel": 1.651,
        "planes/runs": 5.611,
        "planes/weights": 1.293
    },
    "torch1d/planes/dgrad": {
        "call": 45340.0,
        "activations": 1.158,
        "pixels/multiply_adds": 0.05166,
        "pixels/weights": 1.347
    },
    "torch1d/planes/dgrad/few": {
        "call": 73700.0,
        "activations": 0.3546,
        "pixels/multiply_adds": 0.3493
    },
    "torch1d/planes/fprop": {
        "call": 40560.0,
        "activations": 0.9402,
        "pixels/multiply_adds": 0.05121,
        "pixels/weights": 1.069
    },
    "torch1d/planes/fprop/few": {
        "call": 86690.0,
        "pixels/multiply_adds": 0.2094
    },
    "torch1d/planes/wgrad": {
        "call": 45930.0,
        "activations": 1.124,
        "pixels/multiply_adds": 0.0553,
        "pixels/weights": 1.193
    },
    "torch1d/planes/wgrad/few": {
        "call": 84250.0,
        "pixels/multiply_adds": 0.2277,
        "pixels/weights": 36.58
    },
    "torch2d/pixels/dgrad": {
        "call": 78420.0,
        "activations": 0.05702,
        "pixels/multiply_adds": 0.1022,
        "pixels/weights": 0.713
    },
    "torch2d/pixels/dgrad/16": {
        "call": 37620.0,
        "activations": 1.445,
        "pixels/weights": 3.842
    },
    "torch2d/pixels/dgrad/below16": {
        "pixels/multiply_adds": 0.6564,
        "pixels/weights": 126.5
    },
    "torch2d/pixels/dgrad/few": {
        "call": 53360.0,
        "pixels/multiply_adds": 0.6681,
        "pixels/weights": 34.31
    },
    "torch2d/pixels/fprop": {
        "call": 58250.0,
        "activations": 0.02591,
        "pixels/multiply_adds": 0.1086,
        "pixels/weights": 0.592
    },
    "torch2d/pixels/fprop/16": {
        "call": 21560.0,
        "activations": 1.402,
        "pixels/weights": 2.181
    },
    "torch2d/pixels/fprop/below16": {
        "pixels/multiply_adds": 0.5398,
        "pixels/weights": 74.05
    },
    "torch2d/pixels/fprop/few": {
        "call": 24190.0,
        "activations": 0.07579,
        "pixels/multiply_adds": 0.04439,
        "pixels/weights": 63.22
    },
    "torch2d/pixels/wgrad": {
        "call": 75310.0,
        "pixels/multiply_adds": 0.1354,
        "pixels/weights": 0.6129
    },
    "torch2d/pixels/wgrad/16": {
        "call": 39840.0,
        "activations": 1.614
    },
    "torch2d/pixels/wgrad/below16": {
        "pixels/multiply_adds": 0.9031,
        "pixels/weights": 116.9
    },
    "torch2d/pixels/wgrad/few": {
        "call": 49830.0,
        "activations": 0.04669,
        "pixels/multiply_adds": 0.09576,
        "pixels/weights": 51.66
    },
    "torch2d/planes/dgrad": {
        "call": 91980.0,
        "activations": 0.1327,
        "pixels/multiply_adds": 0.1198,
        "pixels/weights": 0.986
    },
    "torch2d/planes/dgrad/16": {
        "call": 42840.0,
        "activations": 1.908
    },
    "torch2d/planes/dgrad/below16": {
        "pixels/multiply_adds": 1.169,
        "pixels/weights": 124.0
    },
    "torch2d/planes/dgrad/few": {
        "call": 18440.0,
        "activations": 0.591,
        "pixels/multiply_adds": 0.577,
        "pixels/weights": 107.4
    },
    "torch2d/planes/fprop": {
        "call": 75610.0,
        "activations": 0.07358,
        "pixels/multiply_adds": 0.1238,
        "pixels/weights": 0.7527
    },
    "torch2d/planes/fprop/16": {
        "call": 14990.0,
        "activations": 1.954,
        "pixels/weights": 9.505
    },
    "torch2d/planes/fprop/below16": {
        "pixels/multiply_adds": 0.6826,
        "pixels/weights": 74.51
    },
    "torch2d/planes/fprop/few": {
        "call": 9913.0,
        "activations": 0.2425,
        "pixels/weights": 102.8
    },
    "torch2d/planes/wgrad": {
        "call": 86570.0,
        "activations": 0.0182,
        "pixels/multiply_adds": 0.1425,
        "pixels/weights": 0.9036
    },
    "torch2d/planes/wgrad/16": {
        "call": 40080.0,
        "activations": 1.971
    },
    "torch2d/planes/wgrad/below16": {
        "pixels/multiply_adds": 0.7455,
        "pixels/weights": 118.3
    },
    "torch2d/planes/wgrad/few": {
        "call": 19030.0,
        "activations": 0.2224,
        "pixels/weights": 133.9
    },
    "torch3d/pixels/dgrad": {
        "call": 147800.0,
        "activations": 3.758,
        "pixels/multiply_adds": 0.5656
    },
    "torch3d/pixels/fprop": {
        "call": 104100.0,
        "activations": 3.732,
        "pixels/multiply_adds": 0.559
    },
    "torch3d/pixels/wgrad": {
        "call": 111600.0,
        "activations": 2.983,
        "pixels/multiply_adds": 0.5492
    },
    "torch3d/planes/dgrad": {
        "call": 137200.0,
        "activations": 3.649,
        "pixels/multiply_adds": 0.5584
    },
    "torch3d/planes/fprop": {
        "call": 92070.0,
        "activations": 3.367,
        "pixels/multiply_adds": 0.5453
    },
    "torch3d/planes/wgrad": {
        "call": 99890.0,
        "activations": 2.74,
        "pixels/multiply_adds": 0.5213
    },
    "winograd/dgrad": {
        "call": 19350.0,
        "activations": 0.2087,
        "pixels/pass": 4608.0,
        "pixels/multiply_adds": 0.1366,
        "pixels/runs": 2.509,
        "pixels/weights": 0.3508,
        "planes/pass": 4919.0,
        "planes/multiply_adds": 0.1714,
        "planes/runs": 2.276,
        "planes/weights": 0.07516,
        "staged/results": 34.06,
        "staged/panel": 0.1806,
        "staged/runs": 36.11,
        "staged/weights": 1.994,
        "turned/pass": 3287.0,
        "turned/multiply_adds": 0.1242,
        "turned/results": 20.7,
        "turned/panel": 0.7311,
        "turned/runs": 35.54,
        "turned/weights": 0.9845
    },
    "winograd/fprop": {
        "call": 18710.0,
        "activations": 0.1993,
        "pixels/pass": 4140.0,
        "pixels/multiply_adds": 0.1297,
        "pixels/panel": 0.6934,
        "pixels/runs": 1.761,
        "pixels/weights": 0.4152,
        "planes/pass": 6611.0,
        "planes/multiply_adds": 0.1519,
        "planes/results": 2.241,
        "planes/runs": 0.9859,
        "planes/weights": 0.7171,
        "staged/pass": 893.8,
        "staged/panel": 9.342,
        "turned/pass": 3116.0,
        "turned/multiply_adds": 0.1609,
        "turned/panel": 2.32,
        "turned/runs": 13.63,
        "turned/weights": 1.028
    },
    "winograd/wgrad": {
        "call": 22740.0,
        "pixels/multiply_adds": 0.1408,
        "pixels/results": 13.61,
        "pixels/panel": 0.4521,
        "pixels/runs": 2.036,
        "pixels/weights": 2.148,
        "planes/pass": 96.76,
        "planes/multiply_adds": 0.07906,
        "planes/results": 16.16,
        "planes/panel": 1.645,
        "planes/runs": 5.483,
        "planes/weights": 2.372
    }
}

# 16-bit types: what the threads share, over that of float32; the rows are in reference-cost-16.jsonl.
FACTORS = {
    "bfloat16 fold/dgrad/pixels": 0.745,
    "bfloat16 fold/dgrad/pixels/narrow": 1.21,
    "bfloat16 fold/dgrad/planes": 1.25,
    "bfloat16 fold/dgrad/planes/narrow": 2.93,
    "bfloat16 fold/fprop/pixels": 0.707,
    "bfloat16 fold/fprop/pixels/narrow": 1.37,
    "bfloat16 fold/fprop/planes": 1.54,
    "bfloat16 fold/fprop/planes/narrow": 2.68,
    "bfloat16 fold/wgrad/pixels": 0.983,
    "bfloat16 fold/wgrad/pixels/narrow": 3.3,
    "bfloat16 fold/wgrad/planes": 1.77,
    "bfloat16 fold/wgrad/planes/narrow": 1.34,
    "bfloat16 torch1d/planes/dgrad": 0.841,
    "bfloat16 torch1d/planes/fprop": 1.07,
    "bfloat16 torch1d/planes/wgrad": 1.0,
    "bfloat16 torch2d/pixels/dgrad": 0.66,
    "bfloat16 torch2d/pixels/dgrad/16": 1.0,
    "bfloat16 torch2d/pixels/dgrad/few": 0.605,
    "bfloat16 torch2d/pixels/fprop": 0.638,
    "bfloat16 torch2d/pixels/fprop/16": 1.05,
    "bfloat16 torch2d/pixels/fprop/few": 1.15,
    "bfloat16 torch2d/pixels/wgrad": 1.19,
    "bfloat16 torch2d/pixels/wgrad/16": 1.54,
    "bfloat16 torch2d/pixels/wgrad/few": 1.32,
    "bfloat16 torch2d/planes/dgrad": 0.72,
    "bfloat16 torch2d/planes/dgrad/16": 1.44,
    "bfloat16 torch2d/planes/dgrad/few": 0.901,
    "bfloat16 torch2d/planes/fprop": 0.672,
    "bfloat16 torch2d/planes/fprop/16": 1.05,
    "bfloat16 torch2d/planes/fprop/few": 1.21,
    "bfloat16 torch2d/planes/wgrad": 1.13,
    "bfloat16 torch2d/planes/wgrad/16": 1.77,
    "bfloat16 torch2d/planes/wgrad/few": 1.41,
    "bfloat16 torch3d/pixels/dgrad": 0.1,
    "bfloat16 torch3d/pixels/fprop": 0.1,
    "bfloat16 torch3d/pixels/wgrad": 1.39,
    "bfloat16 torch3d/planes/dgrad": 0.111,
    "bfloat16 torch3d/planes/fprop": 0.125,
    "bfloat16 torch3d/planes/wgrad": 1.46,
    "bfloat16 widened fold/dgrad/pixels": 1.25,
    "bfloat16 widened fold/dgrad/pixels/narrow": 1.02,
    "bfloat16 widened fold/dgrad/planes": 1.83,
    "bfloat16 widened fold/dgrad/planes/narrow": 2.93,
    "bfloat16 widened fold/fprop/pixels": 1.37,
    "bfloat16 widened fold/fprop/pixels/narrow": 1.0,
    "bfloat16 widened fold/fprop/planes": 1.57,
    "bfloat16 widened fold/fprop/planes/narrow": 2.3,
    "bfloat16 widened fold/wgrad/pixels": 1.44,
    "bfloat16 widened fold/wgrad/pixels/narrow": 2.38,
    "bfloat16 widened fold/wgrad/planes": 1.65,
    "bfloat16 widened fold/wgrad/planes/narrow": 1.52,
    "bfloat16 widened torch1d/planes/dgrad": 2.93,
    "bfloat16 widened torch1d/planes/fprop": 3.14,
    "bfloat16 widened torch1d/planes/wgrad": 2.73,
    "bfloat16 widened torch2d/pixels/dgrad": 3.14,
    "bfloat16 widened torch2d/pixels/dgrad/16": 2.07,
    "bfloat16 widened torch2d/pixels/dgrad/few": 2.78,
    "bfloat16 widened torch2d/pixels/fprop": 3.08,
    "bfloat16 widened torch2d/pixels/fprop/16": 2.26,
    "bfloat16 widened torch2d/pixels/fprop/few": 1.96,
    "bfloat16 widened torch2d/pixels/wgrad": 3.54,
    "bfloat16 widened torch2d/pixels/wgrad/16": 3.03,
    "bfloat16 widened torch2d/pixels/wgrad/few": 2.14,
    "bfloat16 widened torch2d/planes/dgrad": 2.73,
    "bfloat16 widened torch2d/planes/dgrad/16": 2.34,
    "bfloat16 widened torch2d/planes/dgrad/few": 2.22,
    "bfloat16 widened torch2d/planes/fprop": 2.88,
    "bfloat16 widened torch2d/planes/fprop/16": 1.77,
    "bfloat16 widened torch2d/planes/fprop/few": 2.03,
    "bfloat16 widened torch2d/planes/wgrad": 3.25,
    "bfloat16 widened torch2d/planes/wgrad/16": 2.93,
    "bfloat16 widened torch2d/planes/wgrad/few": 1.96,
    "bfloat16 widened torch3d/pixels/dgrad": 0.627,
    "bfloat16 widened torch3d/pixels/fprop": 0.459,
    "bfloat16 widened torch3d/pixels/wgrad": 1.57,
    "bfloat16 widened torch3d/planes/dgrad": 0.527,
    "bfloat16 widened torch3d/planes/fprop": 0.527,
    "bfloat16 widened torch3d/planes/wgrad": 1.57,
    "float16 fold/dgrad/pixels": 1.19,
    "float16 fold/dgrad/pixels/narrow": 2.34,
    "float16 fold/dgrad/planes": 1.83,
    "float16 fold/dgrad/planes/narrow": 3.19,
    "float16 fold/fprop/pixels": 1.21,
    "float16 fold/fprop/pixels/narrow": 1.52,
    "float16 fold/fprop/planes": 1.9,
    "float16 fold/fprop/planes/narrow": 2.98,
    "float16 fold/wgrad/pixels": 1.65,
    "float16 fold/wgrad/pixels/narrow": 6.38,
    "float16 fold/wgrad/planes": 2.07,
    "float16 fold/wgrad/planes/narrow": 2.22,
    "float16 torch1d/planes/dgrad": 23.8,
    "float16 torch1d/planes/fprop": 37.3,
    "float16 torch1d/planes/wgrad": 7.85,
    "float16 torch2d/pixels/dgrad": 77.1,
    "float16 torch2d/pixels/dgrad/16": 34.2,
    "float16 torch2d/pixels/dgrad/few": 6.38,
    "float16 torch2d/pixels/fprop": 10.9,
    "float16 torch2d/pixels/fprop/16": 15.4,
    "float16 torch2d/pixels/fprop/few": 31.9,
    "float16 torch2d/pixels/wgrad": 51.8,
    "float16 torch2d/pixels/wgrad/16": 27.8,
    "float16 torch2d/pixels/wgrad/few": 23.4,
    "float16 torch2d/planes/dgrad": 35.4,
    "float16 torch2d/planes/dgrad/16": 26.4,
    "float16 torch2d/planes/dgrad/few": 3.08,
    "float16 torch2d/planes/fprop": 67.2,
    "float16 torch2d/planes/fprop/16": 70.7,
    "float16 torch2d/planes/fprop/few": 12.7,
    "float16 torch2d/planes/wgrad": 8.56,
    "float16 torch2d/planes/wgrad/16": 4.06,
    "float16 torch2d/planes/wgrad/few": 3.3,
    "float16 torch3d/pixels/dgrad": 13.9,
    "float16 torch3d/pixels/fprop": 66.0,
    "float16 torch3d/pixels/wgrad": 1.65,
    "float16 torch3d/planes/dgrad": 17.4,
    "float16 torch3d/planes/fprop": 66.0,
    "float16 torch3d/planes/wgrad": 1.52
}
