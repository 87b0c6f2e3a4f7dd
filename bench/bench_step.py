# Training step (forward and all gradients) of single layers against torch's convolution on expanded filters.
"""Benchmark of the training step: `pytest bench/bench_step.py`; with --full also of each gradient alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import cases

PASS = "step"


def test_step(
    case: cases.Case, benchmark, record: Callable[[dict[str, object]], None], pytestconfig: pytest.Config
) -> None:
    """Check, measure interleaved with the baselines, and let pytest-benchmark time the layer once more alone."""
    row = cases.run(case, pytestconfig.getoption("--seconds"), compiled=pytestconfig.getoption("--full"))
    record(row)
    benchmark.extra_info.update(
        {name: row[name] for name in ("ratio", "backend", "algorithm", "baseline_ms")}
    )
    benchmark.pedantic(cases.Bench(case).ours().call(case.direction), rounds=5, warmup_rounds=1)
