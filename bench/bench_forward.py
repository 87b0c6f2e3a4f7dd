# Forward pass (inference) of single layers against torch's convolution on expanded filters.
"""Benchmark of the forward pass: `pytest bench/bench_forward.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import cases

PASS = "fwd"


def test_forward(
    case: cases.Case, benchmark, record: Callable[[dict[str, object]], None], pytestconfig: pytest.Config
) -> None:
    """Check, measure interleaved with the baselines, and let pytest-benchmark time the layer once more alone."""
    row = cases.run(case, pytestconfig.getoption("--seconds"), compiled=pytestconfig.getoption("--full"))
    record(row)
    benchmark.extra_info.update(
        {name: row[name] for name in ("ratio", "backend", "algorithm", "baseline_ms")}
    )
    benchmark.pedantic(cases.Bench(case).ours().call(case.direction), rounds=5, warmup_rounds=1)
