# Layers of equivariant networks: orbits to orbits, self-symmetric filters, the reverse complement of DNA,
# against torch's convolution on expanded filters.
"""`pytest bench/bench_equivariant.py`."""

from __future__ import annotations

from collections.abc import Callable

from bench import plan
from bench.case import Case
from bench.rows import Row


def cases(options: plan.Options) -> list[Case]:
    """The cases of this file."""
    return plan.cases("equivariant", options)


def test_equivariant(case: Case, measure_layer: Callable[[Case], Row]) -> None:
    """Check, then measure interleaved with the baselines."""
    measure_layer(case)
