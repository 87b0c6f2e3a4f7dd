# What choices lose against the quickest algorithm: by estimates, by wrong ones, and with candidates that were timed.
"""`python -m bench.regret [--dtype DTYPE] [--minutes 5] [--factor 3] [--shapes NAME]`: the regret of the choice.

For each pass of the layers of `bench.targets` every algorithm is timed in turns, in a few rounds. Three ways to choose
are asked: estimates by the rates in use here, estimates by rates of which each is off by up to FACTOR either way, as on
a CPU that was never measured, and benchmark mode, which starts from these. Then what they chose, and what is near the
quickest, is timed in turns again. What a choice takes longer is told in two ways, between which the truth lies
(`bench.contest`): than the best of one half of the rounds, by the other half, and than the least time of all, which
noise alone puts below what a choice takes. A third figure is against the least time of the few rounds.

The cost of the first calls with benchmark mode is told too, and how often the best was not among the candidates that it
timed. `--factor 1` starts from the rates as they are.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

import symconv_fast
from bench import contest, shapes, targets
from bench.case import STEPS, Case
from bench.targets import NOT_SLOWER
from symconv_fast import binding, calibration, dispatch, ops
from symconv_fast.calibration.measure import in_turns, mean_loss
from symconv_fast.problem import OPS, Problem
from symconv_fast.symmetry import Symmetry
from symconv_fast.ties import orbit_size
from symconv_fast.trial import small, timing, verdicts

Way = tuple[str, str]
BENCHMARK = "wrong rates, benchmark mode"
SCREENING = 0.4  # of the time of a pass: the few rounds of all algorithms
BIGGEST = 4e9  # multiply-accumulates of a pass with expanded filters: all algorithms of one then take a second or two
PASSES = {"fwd": ("fprop",), "dgrad": ("dgrad",), "wgrad": ("wgrad",)} | dict.fromkeys(STEPS, OPS)


@dataclass
class Pass:
    """A pass with the seconds of every algorithm in few rounds, and of those that count in more.

    Also the three choices, what benchmark mode timed, and seconds of the first call and a later one.
    """

    problem: Problem
    op: str
    name: str
    seconds: dict[Way, float]
    chosen: dict[str, Way]
    rounds: list[dict[Way, float]]
    timed: dict[Way, float]
    first: float = 0.0
    later: float = 0.0

    def loss(self, how: str) -> float:
        """How much longer than the best a choice takes, relative: best and loss by other rounds."""
        return contest.held_out(self.rounds, self.chosen[how])

    def losses(self, how: str) -> tuple[float, float, float]:
        """That, the loss against the least time of all rounds, and the one against that of the few rounds."""
        few = self.seconds[self.chosen[how]] / min(self.seconds.values()) - 1
        return self.loss(how), contest.loss(self.rounds, self.chosen[how]), few

    @property
    def overlooked(self) -> bool:
        """Was the best not among the candidates that benchmark mode timed?"""
        times = contest.quickest(self.rounds)
        return bool(self.timed) and min(times, key=lambda way: times[way]) not in self.timed

    def ratio(self, how: str) -> float:
        """How many times as fast as torch's convolution on filters that are expanded in the call."""
        return self.seconds["cpu", "expand"] / self.seconds[self.chosen[how]]


def passes(dtype: torch.dtype, part: str) -> Iterator[tuple[Problem, str, str]]:
    """(problem, pass, name) of everything in a type whose shape has `part` in its name, once.

    Rates are not fitted to layers with ties on both sides, which are left out.
    """
    tiny = [Case(shape, tie, "step") for shape in shapes.SMALL for tie in shape.ties]
    found = {}
    for case in (*targets.cases("cpu"), *tiny):
        case = replace(case, dtype=dtype) if dtype.itemsize == 2 else case
        if (
            case.dtype != dtype
            or case.algorithm
            or part not in case.shape.name
            or case.family == "equivariant"
        ):
            continue
        problem = problem_of(case)
        for op in PASSES[case.direction]:
            if problem.macs_dense <= BIGGEST:
                found[problem, op] = f"{case.shape.name} {case.tie} {op} {case.layout}"
    yield from ((problem, op, name) for (problem, op), name in found.items())


def problem_of(case: Case) -> Problem:
    """The layer of a case as a problem."""
    shape, ndim = case.shape, len(case.shape.spatial)
    mask = sum({"h": 1, "v": 2, "z": 4}[axis] for axis in case.tie)
    ties = Symmetry(case.tie).resolve(ndim, shape.out_channels(orbit_size(mask)), shape.groups)
    sizes = (
        (shape.batch, shape.channels, *shape.spatial),
        (ties.unique, shape.channels // shape.groups, *shape.taps),
    )
    last = case.layout == "channels_last"
    stride, dilation, zero = ([n] * ndim for n in (shape.stride, shape.dilation, 0))
    static = (ties.flat, stride, list(shape.padding), dilation, zero, False, shape.groups, last)
    return Problem.create(sizes, static, last, case.dtype, "cpu")


def candidates(problem: Problem, op: str) -> list[Way]:
    """The ways whose times count: torch's convolution is there once, with filters that are expanded natively."""
    found = dispatch.candidates(problem, op)
    return [(c.backend, c.algorithm) for c in found if c.reason is None and c.backend != "reference"]


def choice(problem: Problem, op: str) -> Way:
    """What the dispatch chooses now."""
    chosen = dispatch.choose(problem, op)
    way = (chosen.backend.NAME, chosen.algorithm)
    return ("cpu", "expand") if way == ("reference", "expand") else way


def call_of(problem: Problem, op: str) -> Callable[[], object]:
    """The operator on seeded tensors, as a layer calls it."""
    p, tensors = problem, small.make(problem, False).of(op, False)
    flat = [n for tie in p.ties for n in tie]
    static = (
        flat,
        p.stride,
        p.padding,
        p.dilation,
        p.output_padding,
        p.transposed,
        p.groups,
        p.channels_last,
    )
    if op == "fprop":
        return lambda: ops.fprop(tensors[0], tensors[1], None, *static)
    size, run = (p.input_shape, ops.dgrad) if op == "dgrad" else (p.weight_shape, ops.wgrad)
    return lambda: run(tensors[0], tensors[1], list(size), *static)


def bound(problem: Problem, op: str, way: Way, tensors: Sequence[object]) -> Callable[[], object]:
    """One way to run a pass on tensors."""
    run = binding.bind(dispatch.load(way[0]), problem, op, way[1])
    return lambda: run(*tensors)


def examine(problem: Problem, op: str, name: str, wrong: dict[str, float], seconds: float) -> Pass:
    """Time a pass, ask for the three choices, and time what they are compared with."""
    tensors = small.make(problem, False).of(op, False)
    calls = {way: bound(problem, op, way, tensors) for way in candidates(problem, op)}
    found = Pass(problem, op, name, in_turns(calls, SCREENING * seconds), {}, [], {})
    symconv_fast.benchmark = False
    found.chosen["rates in use"] = choice(problem, op)
    calibration.apply(wrong)
    found.chosen["wrong rates"] = choice(problem, op)
    with symconv_fast.benchmarking():
        call = call_of(problem, op)
        found.first, found.later = duration(call), min(duration(call) for _ in range(3))
        found.chosen[BENCHMARK] = choice(problem, op)
    found.timed = verdicts.timed(problem, op, None, small.CPU) or {}
    left = contest.contenders(found.seconds, found.chosen.values())
    found.rounds = contest.rounds(
        {way: calls[way] for way in left}, (1 - SCREENING) * seconds, timing.HostClock()
    )
    return found


def duration(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def tell(found: Sequence[Pass]) -> None:
    """Print what was found."""
    print(f"{len(found)} passes, {torch.get_num_threads()} threads. Longer than the best, geometric mean:")
    for how in found[0].chosen:
        lost, least, few = zip(*(each.losses(how) for each in found))
        slower = sum(each.ratio(how) < NOT_SLOWER for each in found)
        print(
            f"  {how:<28} {mean_loss(lost):6.2%} (than the least time of all rounds {mean_loss(least):.2%}, of few "
            f"{mean_loss(few):.2%}), at most {max(lost):.0%}, more than 10 % on {sum(loss > 0.1 for loss in lost)}; "
            f"slower than torch's convolution (below {NOT_SLOWER}) on {slower}"
        )
    overlooked = [each for each in found if each.overlooked]
    share = math.fsum(math.log1p(each.loss(BENCHMARK)) for each in overlooked) / len(found)
    print(f"benchmark mode did not time the best of {len(overlooked)} passes, {share:.2%} of its loss")
    first = [1e3 * each.first for each in found]
    times = statistics.median(each.first / each.later for each in found)
    print(
        f"first calls in benchmark mode: {statistics.median(first):.0f} ms in the median ({times:.0f} later calls), at "
        f"most {max(first):.0f} ms, {sum(first) / 1e3:.1f} s in all"
    )
    for how in list(found[0].chosen)[::2]:
        worst = sorted(found, key=lambda each: -each.loss(how))[:5]
        told = "; ".join(f"{p.name} {p.chosen[how][1]} {p.loss(how):.0%}" for p in worst)
        print(f"most lost, {how}: {told}")


def main() -> None:
    """Time everything, then tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--minutes", type=float, default=5.0, help="to spend on timing all algorithms")
    parser.add_argument("--factor", type=float, default=3.0, help="by which wrong rates are off at most")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong rates")
    parser.add_argument("--shapes", default="", help='part of the name of a shape, such as "256@14"')
    args = parser.parse_args()
    from symconv_fast.calibration import rows

    draw = random.Random(args.seed)
    wrong = {name: args.factor ** draw.uniform(-1, 1) for name in rows.names()}
    todo = list(passes(getattr(torch, args.dtype), args.shapes))
    end, found = time.monotonic() + 60 * args.minutes, []
    for done, (problem, op, name) in enumerate(tqdm(todo, desc="timing", unit="pass", mininterval=10)):
        share = max(0.0, end - time.monotonic()) / (len(todo) - done)
        calibration.apply({})
        calibration.use_stored()
        found.append(examine(problem, op, name, wrong, 0.7 * share))
    tell(found)


if __name__ == "__main__":
    main()
