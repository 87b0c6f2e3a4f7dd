# What a choice takes longer than the best, as `bench.contest` measures it: by times that are known, and noise.

from __future__ import annotations

import random

import pytest
from trials import FakeClock

from bench import contest
from symconv_fast.trial import timing


def drawn(draw: random.Random, costs: dict[str, float], count: int) -> list[dict[str, float]]:
    """Rounds of noisy times, none of which is below the true one."""
    return [{way: cost * (1 + draw.expovariate(20)) for way, cost in costs.items()} for _ in range(count)]


def mean(losses) -> float:
    losses = list(losses)
    return sum(losses) / len(losses)


def test_ways_that_are_alike_lose_nothing():
    """Against the least of all times even a choice that is as good as any loses; by another half of the rounds none."""
    draw = random.Random(0)
    costs = dict.fromkeys("abcdef", 1.0)
    found = [drawn(draw, costs, 6) for _ in range(3000)]
    assert mean(contest.loss(rounds, "a") for rounds in found) > 0.005
    assert abs(mean(contest.held_out(rounds, "a") for rounds in found)) < 0.001


@pytest.mark.parametrize("slower", [0.02, 0.1, 0.5])
def test_a_true_loss_lies_between(slower):
    draw = random.Random(1)
    costs = {"best": 1.0, "near": 1.03, "chosen": 1.0 + slower, "slow": 2.0}
    found = [drawn(draw, costs, 12) for _ in range(1000)]
    low = mean(contest.held_out(rounds, "chosen") for rounds in found)
    high = mean(contest.loss(rounds, "chosen") for rounds in found)
    assert low <= slower + 0.002
    assert high >= slower - 0.002
    assert low == pytest.approx(slower, abs=0.01)
    assert high == pytest.approx(slower, abs=0.01)


def test_the_best_loses_nothing_without_noise():
    found = [{"a": 2.0, "b": 1.0, "c": 1.5}] * 6
    assert contest.held_out(found, "b") == contest.loss(found, "b") == 0.0
    assert contest.held_out(found, "a") == contest.loss(found, "a") == pytest.approx(1.0)


def test_every_way_has_a_part_in_every_round():
    clock = FakeClock()
    costs = {"tiny": 1e-6, "short": 1e-4, "long": 1e-2}
    functions, calls = clock.functions(costs)
    for seconds, least in ((0.5, 40), (0.0, contest.LEAST_ROUNDS), (1e3, contest.MOST_ROUNDS)):
        before = dict(calls)
        found = contest.rounds(functions, seconds, clock)
        assert least <= len(found) <= contest.MOST_ROUNDS
        assert len(found) % 2 == 0
        assert all(dict(one) == pytest.approx(costs) for one in found)
        made = {way: 1 + len(found) * timing.calls_of(cost) for way, cost in costs.items()}
        assert calls == {way: before[way] + made[way] for way in costs}


def test_contenders_are_what_is_near_and_what_was_chosen():
    seconds = {"a": 1.0, "b": 1.14, "c": 1.16, "d": 3.0}
    assert contest.contenders(seconds, ["d", "a"]) == ["a", "b", "d"]
