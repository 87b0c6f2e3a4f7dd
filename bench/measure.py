# Times several functions against each other fairly, measures peak memory, and says on what machine it was done.
"""Measuring: interleaved timing, peak extra memory, provenance."""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import datetime
import functools
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from symconv_fast import dispatch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Percentiles of the time of one call, in milliseconds."""

    p20: float
    p50: float
    p80: float


def percentiles(samples: list[int]) -> Timing:
    """Timing of a list of nanoseconds."""
    ordered = sorted(samples)
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e-6 for q in (0.2, 0.5, 0.8)]
    return Timing(*at)


def once(call: Call) -> int:
    """Nanoseconds of one call. What it returns is freed inside the timing, as in a network that runs on."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def interleave(
    calls: Mapping[str, Call],
    seconds: float = 2.0,
    repeats: int = 3,
    min_rounds: int = 6,
    max_rounds: int = 80,
) -> dict[str, Timing]:
    """Time the calls in turns, so that whatever else the machine does hits all of them alike.

    A round gives every call `repeats` runs; the order moves on by one from round to round, so that none is always
    behind the same other.

    Args:
        calls: functions without arguments, by name.
        seconds: about how long to measure in total, after three warm-up runs of each.
        repeats: runs of one call in a row.
        min_rounds: rounds to do however long they take.
        max_rounds: rounds to do at most.
    """
    names = list(calls)
    for call in calls.values():
        once(call), once(call)
    round_seconds = repeats * sum(once(call) for call in calls.values()) * 1e-9
    rounds = max(min_rounds, min(max_rounds, int(seconds / max(round_seconds, 1e-9))))
    samples: dict[str, list[int]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for step in range(len(names)):
                name = names[(turn + step) % len(names)]
                samples[name].extend(once(calls[name]) for _ in range(repeats))
    finally:
        if collecting:
            gc.enable()
    return {name: percentiles(taken) for name, taken in samples.items()}


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Most bytes that one call held at a time beyond what it returned.

    Counts every allocation through torch's CPU allocator, that of native scratch included, as the profiler sees it.
    """
    call()
    cpu = dispatch.available().get("cpu")
    if cpu is not None:
        cpu.clear_workspace()  # else what is kept from the call before would not be counted
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        kept = call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak - held


def _output(*command: str) -> str:
    """What a command prints, or an empty string."""
    try:
        folder = Path(__file__).resolve().parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def provenance() -> dict[str, object]:
    """Where, when and with what a row was measured."""
    import symconv_fast

    sha = _output("git", "rev-parse", "--short", "HEAD")
    changed = bool(
        _output("git", "status", "--porcelain", "--untracked-files=no", "--", "..", ":!../README.md")
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": sha + ("+changes" if changed else ""),
        "symconv_fast": symconv_fast.__version__,
        "torch": torch.__version__,
        "onednn": torch.backends.mkldnn.is_available(),
        "python": platform.python_version(),
        "device": cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "pinned": os.environ.get("OMP_PROC_BIND", "") + "/" + os.environ.get("OMP_PLACES", ""),
    }
