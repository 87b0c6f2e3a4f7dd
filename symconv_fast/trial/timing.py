"""Which of several ways is the quickest, on the tensors at hand: interleaved, medians, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch

BUDGET = 50e-3
"""Seconds that the repetitions of all candidates of a problem may take together."""
ROUNDS = 7
HOPELESS = 2.0
"""Times as long as the quickest in its first timed call: such a candidate is not repeated."""
SAMPLE = 200e-6
"""Seconds that a sample takes at least, in up to CALLS calls: launches then overlap as in a network."""
CALLS = 4

Way = TypeVar("Way")


class Clock(Protocol):
    """Measures calls on a device."""

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Of one call, on average over some that follow each other."""


class CudaClock:
    """Events on the current stream: the device's time, and the host's where launching takes longer."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Of one call."""
        self._start.record()
        for _ in range(calls):
            function()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / calls


class HostClock:
    """For devices that compute before a call returns."""

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Of one call."""
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls


def clock_of(device: torch.device) -> Clock:
    """The clock of a device, which is the current one of its type."""
    return CudaClock() if device.type == "cuda" else HostClock()


def race(
    functions: Mapping[Way, Callable[[], object]],
    clock: Clock,
    failed: Callable[[Way, Exception], None],
) -> dict[Way, float]:
    """Median seconds of each function; `failed` is told of those that raise, which are left out.

    Each is called once before it is timed: that may compile. One timed call each, then as many rounds of all that are
    not hopeless as the budget allows.
    """
    times: dict[Way, list[float]] = {}

    def sample(way: Way, calls: int) -> None:
        try:
            times.setdefault(way, []).append(clock.seconds(functions[way], calls))
        except Exception as failure:
            times.pop(way, None)
            failed(way, failure)

    for way in functions:
        sample(way, 1)  # not timed: the second call takes its place
    first = dict(times)
    times.clear()
    for way in first:
        sample(way, 1)
    if not times:
        return {}
    quickest = min(sample_[0] for sample_ in times.values())
    hopeful = [way for way, found in times.items() if found[0] <= HOPELESS * quickest]
    calls = {way: max(1, min(CALLS, int(SAMPLE / max(times[way][0], 1e-9)))) for way in hopeful}
    spent = sum(found[0] for found in times.values())
    a_round = sum(calls[way] * times[way][0] for way in hopeful)
    rounds = min(ROUNDS, int((BUDGET - spent) / max(a_round, 1e-9))) if len(hopeful) > 1 else 0
    for turn in range(max(0, rounds)):
        for way in hopeful if turn % 2 else reversed(hopeful):
            if way in times:
                sample(way, calls[way])
    return {way: sorted(found)[len(found) // 2] for way, found in times.items()}
