# Forward pass (inference) of single layers,
# against torch's convolution on expanded filters.
"""`pytest bench/bench_forward.py`."""

from __future__ import annotations

from collections.abc import Callable

from bench import plan
from bench.case import Case
from bench.rows import Row


def cases(options: plan.Options) -> list[Case]:
    """The cases of this file."""
    return plan.cases("forward", options)


def test_forward(case: Case, measure_layer: Callable[[Case], Row]) -> None:
    """Check, then measure interleaved with the baselines."""
    measure_layer(case)
