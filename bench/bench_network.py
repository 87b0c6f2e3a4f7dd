# Kinds of layers of real networks that are not 3 x 3 convolutions of many channels: stems, patches, far taps, groups.
"""`pytest bench/bench_network.py`."""

from __future__ import annotations

from collections.abc import Callable

from bench import plan
from bench.case import Case
from bench.rows import Row


def cases(options: plan.Options) -> list[Case]:
    """The cases of this file."""
    return plan.cases("network", options)


def test_network(case: Case, measure_layer: Callable[[Case], Row]) -> None:
    """Check, then measure interleaved with the baselines."""
    measure_layer(case)
