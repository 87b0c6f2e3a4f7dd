# Checks a comparison, times its calls against each other fairly, and says on what machine it was done.
"""Measuring: one `Comparison` in, one row out. Correctness first, interleaved timing, peak memory, provenance."""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import datetime
import functools
import gc
import os
import platform
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from bench import noise
from bench.device import Call, device, output
from bench.peaks import peaks


@dataclass(frozen=True)
class Timing:
    """Percentiles of the time of one call, in milliseconds."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Verdict:
    """What a check found: our error as a multiple of torch's, and the baselines whose own result is wrong."""

    error: float
    wrong: Collection[str] = ()


@dataclass(frozen=True)
class Comparison:
    """What a benchmark hands over to be measured: our function, and those that it is compared with.

    Attributes:
        name: for messages.
        facts: the columns that say what is measured: shape, tie, pass, dtype, ...
        calls: functions without arguments by name; "ours" is ours.
        rivals: names of the calls whose fastest one is THE baseline of the ratio.
        check: compares our result with float64; raises AssertionError if it is wrong.
        limit: the ratio that counting multiplications allows.
        macs_dense, macs_folded: multiply-accumulates of one call with expanded filters and with the reduced weight.
        bytes: of everything that has to be read or written once.
        activation_bytes: of inputs and outputs, the measure for extra memory.
        device, dtype: where and in which type, for the peak rates.
    """

    name: str
    facts: Mapping[str, object]
    calls: Mapping[str, Call]
    rivals: tuple[str, ...]
    check: Callable[[], Verdict]
    limit: float
    macs_dense: int
    macs_folded: int
    bytes: int
    activation_bytes: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def percentiles(samples: list[int]) -> Timing:
    """Timing of a list of nanoseconds."""
    ordered = sorted(samples)
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e-6 for q in (0.2, 0.5, 0.8)]
    return Timing(*at)


def interleave(
    calls: Mapping[str, Call],
    seconds: float = 2.0,
    repeats: int = 3,
    min_rounds: int = 6,
    max_rounds: int = 80,
    once: Callable[[Call], int] | None = None,
    warm_up: int = 2,
) -> dict[str, Timing]:
    """Time the calls in turns, so that whatever else the machine does hits all of them alike.

    A round gives every call `repeats` runs, one if the rounds would not fit into the time, in an order that is drawn
    anew: what a call finds in the caches is what the one before it left there.

    Args:
        calls: functions without arguments, by name.
        seconds: about how long to measure in total, after the warm-up.
        repeats: runs of one call in a row.
        min_rounds: rounds to do however long they take.
        max_rounds: rounds to do at most.
        once: nanoseconds of one call; by default those of the CPU's clock.
        warm_up: runs of each before one that tells how long a round takes.
    """
    once = once or device("cpu").once
    names, shuffle = list(calls), random.Random(0).shuffle
    for call in calls.values():
        for _ in range(warm_up):
            once(call)
    single = max(1e-9, sum(once(call) for call in calls.values()) * 1e-9)
    if single * repeats * min_rounds > seconds:
        repeats = 1
    rounds = max(min_rounds, min(max_rounds, int(seconds / (single * repeats))))
    samples: dict[str, list[int]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(names)
            for name in names:
                samples[name].extend(once(calls[name]) for _ in range(repeats))
    finally:
        if collecting:
            gc.enable()
    return {name: percentiles(taken) for name, taken in samples.items()}


def measure(
    comparison: Comparison, seconds: float = 2.0, memory: bool = True, rehearsal: bool = False
) -> dict[str, object]:
    """Check, then time all calls in turns, then watch memory; `seconds` as for `interleave`.

    In a rehearsal all this happens, but each call is timed once: interpreted kernels take a thousand times as long.

    Returns:
        The row that is stored: the facts, milliseconds, rates (1e9 multiply-accumulates, floating-point operations
        and bytes a second), ratio to the fastest rival that is not wrong, its fraction of the limit, the times of all
        calls, peak extra bytes of ours and of the baseline (with `memory`), and where it was measured.

    Raises:
        AssertionError: our result is wrong, or that of every rival.
    """
    c, machine = comparison, device(comparison.device)
    verdict = c.check()
    rivals = [name for name in c.rivals if name not in verdict.wrong]
    assert rivals, f"{c.name}: the result of every baseline is wrong: {', '.join(verdict.wrong)}"
    calls, timer = machine.prepare(c.calls)
    few = {"warm_up": 0, "max_rounds": 1, "min_rounds": 1, "repeats": 1} if rehearsal else {}
    waiting = noise.Waiting()
    timings = interleave(calls, seconds, once=machine.once, **few)
    waited = waiting.share()
    baseline = min(rivals, key=lambda name: timings[name].p50)
    mine = timings["ours"]
    return {
        **c.facts,
        "ms_p20": mine.p20, "ms_p50": mine.p50, "ms_p80": mine.p80, "timer": timer,
        **rates(c, mine.p50),
        "baseline": baseline, "baseline_ms": timings[baseline].p50,
        "ratio": timings[baseline].p50 / mine.p50, "limit": c.limit,
        "fraction": timings[baseline].p50 / mine.p50 / c.limit,
        "error": verdict.error, "wrong_baselines": sorted(verdict.wrong),
        "timings": {name: [t.p20, t.p50, t.p80] for name, t in timings.items()},
        "peak_extra_bytes": machine.peak_extra_bytes(c.calls["ours"]) if memory else None,
        "baseline_peak_extra_bytes": machine.peak_extra_bytes(c.calls[baseline]) if memory else None,
        "activation_bytes": c.activation_bytes,
        **machine.state(), "waited": None if waited is None else round(waited, 3),
        "load": round(os.getloadavg()[0], 2), **provenance(c.device),
    }  # fmt: skip


def rates(comparison: Comparison, ms: float) -> dict[str, object]:
    """What `ms` for one call means: both MAC rates and the bytes a second, beside the peaks measured here."""
    c, best = comparison, peaks(comparison.device, comparison.dtype)
    return {
        "gmacs_folded": c.macs_folded / ms * 1e-6,
        "gmacs_dense": c.macs_dense / ms * 1e-6,
        "gflops_dense": 2 * c.macs_dense / ms * 1e-6,  # may exceed the peak: that is the point
        "gbytes": c.bytes / ms * 1e-6,
        "flops_per_byte": 2 * c.macs_folded / c.bytes,
        "of_peak": 2 * c.macs_folded / ms * 1e-6 / best.gflops,
        "peak_gflops": best.gflops, "peak_by": best.gflops_by, "peak_gbytes": best.gbytes,
    }  # fmt: skip


@functools.cache
def provenance(kind: str = "cpu") -> dict[str, object]:
    """Where, when and with what a row was measured."""
    import symconv_fast

    sha = output("git", "rev-parse", "--short", "HEAD")
    changed = bool(
        output("git", "status", "--porcelain", "--untracked-files=no", "--", "..", ":!../README.md")
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": sha + ("+changes" if changed else ""),
        "symconv_fast": symconv_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **device(kind).describe(),
        "threads": torch.get_num_threads(),
        "pinned": os.environ.get("OMP_PROC_BIND", "") + "/" + os.environ.get("OMP_PLACES", ""),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }
