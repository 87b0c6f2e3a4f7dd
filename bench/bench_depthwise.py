# Every pass of depthwise layers,
# against torch's convolution on expanded filters or |G| separate convolutions of multiplier 1, the faster.
"""`pytest bench/bench_depthwise.py`."""

from __future__ import annotations

from collections.abc import Callable

from bench import plan
from bench.case import Case
from bench.rows import Row


def cases(options: plan.Options) -> list[Case]:
    """The cases of this file."""
    return plan.cases("depthwise", options)


def test_depthwise(case: Case, measure_layer: Callable[[Case], Row]) -> None:
    """Check, then measure interleaved with the baselines."""
    measure_layer(case)
