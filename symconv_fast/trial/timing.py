"""Which of several ways is the quickest, on the tensors at hand: interleaved, within a budget."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

BUDGET = 50e-3
"""Seconds that the repetitions of all candidates of a problem may take together."""
SAMPLE = 200e-6
"""Seconds that a sample takes at least, in up to CALLS calls: launches then overlap as in a network, and on a CPU what
another candidate left in the caches is met by the first of them alone."""
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
    """How often candidates are repeated, and what their times come to.

    Attributes:
        summary: of the samples of one candidate.
        first_counts: is the first call, which may compile, among them?
        together: are the calls of a sample timed as one?
        least_rounds: that are made whatever they take.
        most_rounds: that are made at most.
        longer: what took more than so many times as long as the quickest is not repeated: by the first calls, by the
            first round too, and so on; the last one holds from there on.
        again: what is left after the least rounds may take so many times as long as all before, where that is more
            than the budget.
    """

    summary: Callable[[Sequence[float]], float]
    first_counts: bool
    together: bool
    least_rounds: int
    most_rounds: int
    longer: tuple[float, ...]
    again: float = 0.0


def median(found: Sequence[float]) -> float:
    """The upper one of two."""
    return sorted(found)[len(found) // 2]


MEDIANS = Rule(median, False, True, 0, 7, (2.0, math.inf))
"""For a GPU, whose clock rises and falls."""
QUICKEST = Rule(min, True, False, 3, 30, (3.0, 2.0, 1.5, 1.2), 1.0)
"""For a CPU, where others only ever make a call take longer: all of them may hit one candidate alone in few rounds, so
that the ones near the quickest are repeated more often."""


def clock_of(device: torch.device) -> Clock:
    """The clock of a device, which is the current one of its type."""
    return CudaClock() if device.type == "cuda" else HostClock()


def shuffled(ways: Iterable[Way], last: Way | None, draw: random.Random) -> list[Way]:
    """The ways in an order that is drawn anew, in which none follows itself: caches are what the one before left."""
    order = list(ways)
    draw.shuffle(order)
    if order[:1] == [last]:
        order.append(order.pop(0))
    return order


def calls_of(seconds: float) -> int:
    """Calls in a sample of a function that takes so long."""
    return max(1, min(CALLS, int(SAMPLE / max(seconds, 1e-9))))


def race(
    functions: Mapping[Way, Callable[[], object]],
    clock: Clock,
    failed: Callable[[Way, Exception], None],
    rule: Rule = MEDIANS,
) -> dict[Way, float]:
    """Seconds of each function by the rule; `failed` is told of those that raise, which are left out.

    Each is called twice, of which the first may compile. Then as many rounds of those near the quickest as the rule
    and the budget allow.
    """
    times: dict[Way, list[float]] = {}

    def sample(way: Way, calls: int) -> None:
        try:
            for each in [calls] if rule.together else [1] * calls:
                times.setdefault(way, []).append(clock.seconds(functions[way], each))
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
    _repeat(times, sample, rule)
    return {way: rule.summary(found) for way, found in times.items()}


def _repeat(times: dict[Way, list[float]], sample: Callable[[Way, int], None], rule: Rule) -> None:
    """Rounds of samples, which `times` gets; those that raise are taken out of it."""
    once = {way: min(found) for way, found in times.items()}
    calls = {way: calls_of(seconds) for way, seconds in once.items()}
    spent, budget = sum(once.values()), BUDGET
    left, draw = list(once), random.Random(0)
    last: Way | None = None
    for turn in range(rule.most_rounds):
        left = _near(times, left, rule.longer[min(turn, len(rule.longer) - 1)])
        a_round = sum(calls[way] * once[way] for way in left)
        if turn == rule.least_rounds:
            budget = max(budget, (1 + rule.again) * spent)
        if len(left) < 2 or (turn >= rule.least_rounds and spent + a_round > budget):
            return
        for way in shuffled(left, last, draw):
            sample(way, calls[way])
            last = way
        spent += a_round


def _near(times: Mapping[Way, Sequence[float]], ways: Iterable[Way], longer: float) -> list[Way]:
    """Those that have taken at most so many times as long as the quickest of all."""
    most = longer * min((min(found) for found in times.values()), default=0.0)
    return [way for way in ways if way in times and min(times[way]) <= most]
