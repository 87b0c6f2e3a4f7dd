"""Seconds of every algorithm of some passes on this machine, and what they are times the estimates, by row."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from .. import binding
from ..problem import Problem
from ..trial import small
from ..trial.timing import HostClock
from . import factors, rows

LEAST_ROUNDS, MOST_ROUNDS = 2, 30
MARGIN_OF_TURNS = 1.5  # calls that warm up, tensors that are made
FOLDS = 5
WEIGHT_OF_FAMILY, WEIGHT_OF_SORT = 4, 8
"""In passes: of those from 0 to 1000 the best two on held-out layers of an Emerald Rapids."""

Run = Callable[[], object]


class Measured(NamedTuple):
    """Seconds of the algorithms of a pass."""

    problem: Problem
    op: str
    seconds: Mapping[str, float]


def measure(problem: Problem, op: str, seconds: float) -> Measured:
    """Time all algorithms of the CPU backend that can run a pass, in turns, for about so many seconds in all."""
    from ..backends import cpu

    tensors = small.make(problem, False).of(op, False)
    calls: dict[str, Run] = {}
    for algorithm in cpu.ALGORITHMS:
        if rows.row(problem, op, algorithm) is None or cpu.can_run(problem, op, algorithm) is not None:
            continue
        calls[algorithm] = _call(binding.bind(cpu, problem, op, algorithm), tensors)
    return Measured(problem, op, in_turns(calls, seconds))


def _call(run: Callable[..., object], tensors: Sequence[object]) -> Run:
    return lambda: run(*tensors)


def in_turns(calls: Mapping[str, Run], seconds: float) -> dict[str, float]:
    """The quickest of several rounds of each, after one that warms up."""
    clock = HostClock()
    for call in calls.values():
        call()
    best = {name: clock.seconds(call, 1) for name, call in calls.items()}
    a_round = max(1e-9, sum(best.values()))
    for _ in range(max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / MARGIN_OF_TURNS / a_round)))):
        for name, call in calls.items():
            best[name] = min(best[name], clock.seconds(call, 1))
    return best


Logs = dict[str, list[float]]


def ratios(measured: Iterable[Measured]) -> Logs:
    """Logarithms of measured over estimated seconds, one a pass, by the row that the estimate rests on.

    Passes in 16 bits say nothing of rows that other types rest on too.
    """
    logs: Logs = defaultdict(list)
    for problem, op, seconds in measured:
        for algorithm, found in seconds.items():
            name, estimate = rows.row(problem, op, algorithm), rows.seconds(problem, op, algorithm)
            own = name is not None and (
                problem.dtype.itemsize > 2 or rows.dtype_of(name) == str(problem.dtype)[6:]
            )
            if name is not None and own and 0 < estimate < math.inf:
                logs[name].append(math.log(found / estimate))
    return logs


def means(logs: Logs) -> dict[str, float]:
    """A factor for each row: its geometric mean, drawn to that of its family, and this one to that of all of a sort.

    The fewer passes say something of a row, the more it is drawn: estimates are off by 20 % from shape to shape.
    """
    families: Logs = defaultdict(list)
    sorts: Logs = defaultdict(list)
    for name, values in logs.items():
        family, sort = factors.families(name)
        families[family] += values
        sorts[sort] += values
    found = {}
    for name, values in logs.items():
        family, sort = factors.families(name)
        centre = _drawn(families[family], _drawn(sorts[sort], 0.0, 0), WEIGHT_OF_SORT)
        found[name] = math.exp(_drawn(values, centre, WEIGHT_OF_FAMILY))
    return found


def _drawn(values: Sequence[float], centre: float, weight: float) -> float:
    return (sum(values) + weight * centre) / (len(values) + weight)


class Learnt(NamedTuple):
    """What came of the passes in one type: mean regret by the package's rates and by factors, and which are kept."""

    dtype: torch.dtype
    passes: int
    before: float
    held_out: float
    factors: dict[str, float]

    @property
    def helps(self) -> bool:
        """Do the factors lose less than the package's own rates, on passes that they were not learnt from?"""
        return self.held_out < self.before

    @property
    def regret(self) -> float:
        """What is to be expected of layers that were not measured."""
        return min(self.before, self.held_out)


def learn(measured: Sequence[Measured], dtypes: Iterable[torch.dtype]) -> list[Learnt]:
    """Factors of each type. The package's own rates are in use before and after.

    Types of 16 bits come last, since estimates for them may rest on those for float32.
    """
    kept: dict[str, float] = {}
    found = []
    for dtype in sorted(dtypes, key=lambda d: -d.itemsize):
        own = [m for m in measured if m.problem.dtype == dtype]
        factors.apply(kept)
        before, logs = regret(own), ratios(own)
        lost = []
        for held in range(FOLDS):
            factors.apply(kept)
            rest = means(ratios(m for m in own if _fold(m) != held))
            factors.apply(kept | rest)
            lost += regret(m for m in own if _fold(m) == held)
        learnt = Learnt(dtype, len(before), mean_loss(before), mean_loss(lost), means(logs))
        found.append(learnt)
        if learnt.helps:
            kept |= learnt.factors
    factors.apply({})
    return found


def _fold(m: Measured) -> int:
    """Which part a pass belongs to: all passes and layouts of a layer lie in one."""
    p = m.problem
    layer = repr((p.in_channels, p.out_channels, p.spatial, p.kernel, p.stride, p.ties))
    return zlib.crc32(layer.encode()) % FOLDS


def mean_loss(lost: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log1p, lost)) / max(1, len(lost))) - 1


def regret(measured: Iterable[Measured]) -> list[float]:
    """How much longer than the quickest algorithm each pass takes by what the rates in use choose."""
    from ..backends import cpu

    lost = []
    for problem, op, seconds in measured:
        if len(seconds) > 1:
            chosen = min(seconds, key=lambda algorithm: cpu.estimate(problem, op, algorithm))
            lost.append(seconds[chosen] / min(seconds.values()) - 1)
    return lost


def supported(dtype: torch.dtype) -> bool:
    """Are convolutions of a type worth measuring here: does torch multiply in it?"""
    from ..backends import torch_conv

    return dtype.itemsize > 2 or torch_conv.multiplies(dtype)
