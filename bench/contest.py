# Which of several ways to run a pass is the quickest, and what another takes longer, without the luck of the draw.
"""Rounds of samples in turns, and losses against the best of them.

The least of several noisy times is below the least of the true ones: what is compared with it seems to lose, even where
all are alike. So the best is chosen by one half of the rounds, and by the other half alone it is told what a choice
takes longer than that one; then the halves change places. By chance that best may be another than the true one, which
then hides as much of a loss. The true loss lies between this and the one against the least time of all rounds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from symconv_fast.trial import timing

NEAR = 1.15  # times as long as the quickest in few rounds: what takes longer cannot be the best
LEAST_ROUNDS, MOST_ROUNDS = 6, 100

Way = TypeVar("Way")
Round = Mapping[Way, float]


def contenders(seconds: Mapping[Way, float], chosen: Collection[Way]) -> list[Way]:
    """Those that may be the best by few rounds, and what was chosen."""
    most = NEAR * min(seconds.values())
    return [way for way, found in seconds.items() if found <= most or way in chosen]


def rounds(
    calls: Mapping[Way, Callable[[], object]], seconds: float, clock: timing.Clock
) -> list[dict[Way, float]]:
    """Seconds of each way in every round: of some calls as in benchmark mode, for about so many seconds in all.

    The number of rounds is even. One more, which comes first, warms up.
    """
    once = {way: clock.seconds(call, 1) for way, call in calls.items()}
    repeats = {way: timing.calls_of(found) for way, found in once.items()}
    a_round = max(1e-9, sum(repeats[way] * found for way, found in once.items()))
    count = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / a_round) // 2 * 2))
    found: list[dict[Way, float]] = []
    draw, last = random.Random(0), None
    for _ in range(count):
        order = timing.shuffled(calls, last, draw)
        found.append({way: min(clock.seconds(calls[way], 1) for _ in range(repeats[way])) for way in order})
        last = order[-1]
    return found


def quickest(found: Sequence[Round[Way]]) -> dict[Way, float]:
    """The least of each way's times."""
    return {way: min(each[way] for each in found) for way in found[0]}


def loss(found: Sequence[Round[Way]], chosen: Way) -> float:
    """What a way takes longer, relative, than the one that is the best in all of the rounds: never below zero."""
    times = quickest(found)
    return times[chosen] / min(times.values()) - 1


def held_out(found: Sequence[Round[Way]], chosen: Way) -> float:
    """The same against the best of one half of the rounds, by the other: the geometric mean of both ways round."""
    halves = quickest(found[::2]), quickest(found[1::2])
    logs = 0.0
    for first, second in (halves, halves[::-1]):
        best = min(first, key=lambda way: first[way])
        logs += math.log(second[chosen] / second[best])
    return math.exp(logs / 2) - 1
