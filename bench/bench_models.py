# Forward pass and training step of whole networks with every eligible layer tied,
# against the same network on torch's own layers.
"""`pytest bench/bench_models.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import symconv_fast
from bench import plan
from bench.measure import Comparison
from bench.models import MODELS, REHEARSAL, ModelBench, ModelCase
from bench.rows import Row


def cases(options: plan.Options) -> list[ModelCase]:
    """The networks in channels_last; in the quick set only the largest tie of each."""
    everything = options.full or options.ties
    return [
        ModelCase(
            model, tie, direction, getattr(torch, dtype), options.backend, options.algorithm, options.device
        )
        for dtype in options.dtypes or ("float32",)
        for model in ((REHEARSAL,) if options.rehearsal else MODELS)
        if options.shapes in model.name
        for tie in (model.ties if everything else model.ties[-1:])
        if not options.ties or tie in options.ties
        for direction in ("fwd", "step")
        if not options.passes or direction in options.passes
    ]


def test_model(case: ModelCase, measure: Callable[[Comparison], Row]) -> None:
    """Check, then measure interleaved with the baselines; skipped where a layer cannot be run by what is pinned."""
    with symconv_fast.backend(case.backend or None, case.algorithm or None):
        try:
            comparison = ModelBench(case).comparison()
        except RuntimeError as error:
            if not (case.backend or case.algorithm) or "which cannot run" not in str(error):
                raise
            pytest.skip(str(error))
        measure(comparison)
