# Rows as the benchmark stores them, made up, and a fresh Python: for the tests of the benchmark.

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import rows

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the root of the repository."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | environment
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def row(shape: str, ratio: float, **other: object) -> rows.Row:
    """A row as it is stored: 1 ms, twice as long for the baseline unless `ratio` says otherwise."""
    base = {
        "family": "2-D", "shape": shape, "model": "ResNet", "pass": "fwd", "tie": "h", "layout": "channels_last",
        "dtype": "float32", "device_kind": "cpu", "backend_pin": "", "algorithm_pin": "", "backend": "cpu",
        "algorithm": "fold", "limit": 2, "error": 1.0, "ms_p50": 1.0, "baseline": "expanded/contiguous",
        "baseline_ms": ratio, "ratio": ratio, "fraction": ratio / 2, "gmacs_folded": 1.0, "gmacs_dense": 2.0,
        "gflops_dense": 4.0, "gbytes": 3.0, "flops_per_byte": 8.0, "peak_gflops": 5.0, "peak_gbytes": 1.0,
        "peak_by": "matmul", "peak_extra_bytes": 10, "baseline_peak_extra_bytes": 0, "activation_bytes": 100,
        "filter_bytes": 50,
        "timings": {"ours": [0.99, 1.0, 1.01], "expanded/contiguous": [0.99 * ratio, ratio, 1.01 * ratio]},
        "load": 0.1, "device": "a CPU", "threads": 2, "torch": "2", "git": "abc", "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return base | other


def some_rows() -> list[rows.Row]:
    """Two shapes of the mean and one that is not in it."""
    return [row("4x64@56", 1.0), row("4x128@28", 4.0), row("1x512@7", 0.5)]
