"""Which of several ways is the quickest, on the tensors at hand: interleaved, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

BUDGET = 50e-3
"""Seconds that the repetitions of all candidates of a problem may take together."""
ROUNDS = 7
HOST_ROUNDS = 3
"""Rounds that a CPU makes whatever they take: what else the machine does there may be in a single time."""
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
    """For devices that compute before a call returns. With one thread, its own time: others that run do not count."""

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Of one call."""
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        for _ in range(calls):
            function()
        return (clock() - start) / calls


class Rule(NamedTuple):
    """What the times of a way come to, rounds that are made whatever they take, and whether the first call counts."""

    summary: Callable[[Sequence[float]], float]
    least_rounds: int
    first_counts: bool


def median(found: Sequence[float]) -> float:
    """The upper one of two."""
    return sorted(found)[len(found) // 2]


MEDIANS = Rule(median, 0, False)
"""For a GPU, whose clock rises and falls."""
QUICKEST = Rule(min, HOST_ROUNDS, True)
"""For a CPU, where others only ever make a call take longer."""


def clock_of(device: torch.device) -> Clock:
    """The clock of a device, which is the current one of its type."""
    return CudaClock() if device.type == "cuda" else HostClock()


def race(
    functions: Mapping[Way, Callable[[], object]],
    clock: Clock,
    failed: Callable[[Way, Exception], None],
    rule: Rule = MEDIANS,
) -> dict[Way, float]:
    """Seconds of each function by the rule; `failed` is told of those that raise, which are left out.

    Each is called twice, of which the first may compile. Then as many rounds of all that are not hopeless as the
    budget allows.
    """
    times: dict[Way, list[float]] = {}

    def sample(way: Way, calls: int) -> None:
        try:
            times.setdefault(way, []).append(clock.seconds(functions[way], calls))
        except Exception as failure:
            times.pop(way, None)
            failed(way, failure)

    for way in functions:
        sample(way, 1)
    first = list(times)
    if not rule.first_counts:
        times.clear()
    for way in first:
        sample(way, 1)
    if not times:
        return {}
    once = {way: min(found) for way, found in times.items()}
    hopeful = [way for way, seconds in once.items() if seconds <= HOPELESS * min(once.values())]
    calls = {way: max(1, min(CALLS, int(SAMPLE / max(once[way], 1e-9)))) for way in hopeful}
    spent = sum(once.values())
    a_round = sum(calls[way] * once[way] for way in hopeful)
    affordable = max(rule.least_rounds, int((BUDGET - spent) / max(a_round, 1e-9)))
    rounds = min(ROUNDS, affordable) if len(hopeful) > 1 else 0
    for turn in range(rounds):
        for way in hopeful if turn % 2 else reversed(hopeful):
            if way in times:
                sample(way, calls[way])
    return {way: rule.summary(found) for way, found in times.items()}
