# Which of several functions is the quickest: rounds, samples and what they come to, by a fake clock.

from __future__ import annotations

import random

import pytest
import torch
from trials import FakeClock

from symconv_fast.trial import timing


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def unexpected(way, failure):
    pytest.fail(f"{way} raised {failure}")


def race(
    clock: FakeClock, rule: timing.Rule = timing.MEDIANS, **costs: float
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds and number of calls of functions that take so long."""
    functions, calls = clock.functions(costs)
    return timing.race(functions, clock, unexpected, rule), calls


def test_timing_is_bounded(clock):
    most = timing.MEDIANS.most_rounds
    found, calls = race(clock, a=1e-3, b=1.5e-3, hopeless=2.1e-3)
    assert found == pytest.approx({"a": 1e-3, "b": 1.5e-3, "hopeless": 2.1e-3})
    assert calls == {"a": 2 + most, "b": 2 + most, "hopeless": 2}
    _, calls = race(clock, a=1e-6, b=1e-6)
    assert calls["a"] == 2 + most * timing.CALLS
    start = clock.now
    race(clock, a=8e-3, b=9e-3, c=10e-3)
    assert clock.now - start - 27e-3 <= 50e-3  # beside the first calls
    _, calls = race(clock, a=1.0, b=1.1)
    assert calls == {"a": 2, "b": 2}


def test_timing_on_a_cpu_is_bounded(clock):
    """Those near the quickest are repeated most, and what is slow takes at most twice as long as its least rounds."""
    rule = timing.QUICKEST
    least, most = rule.least_rounds, rule.most_rounds
    costs = {
        "a": 1e-4,
        "near": 1.19e-4,
        "slower": 1.4e-4,
        "twice": 1.9e-4,
        "thrice": 2.9e-4,
        "hopeless": 3.1e-4,
    }
    found, calls = race(clock, rule, **costs)
    assert found == pytest.approx(costs)
    repeats = {name: timing.calls_of(seconds) for name, seconds in costs.items()}
    rounds = {"a": most, "near": most, "slower": least, "twice": 2, "thrice": 1, "hopeless": 0}
    assert calls == {name: 2 + rounds[name] * repeats[name] for name in costs}
    start = clock.now
    _, calls = race(clock, rule, a=0.1, b=0.11, c=0.15)
    assert calls["c"] == 2 + least
    assert calls["a"] == calls["b"] > 2 + least
    first = 2 * 0.36 + least * 0.36
    assert clock.now - start <= 2 * first
    _, calls = race(clock, rule, a=1e-3, b=2e-2)
    assert calls == {"a": 2, "b": 2}  # nothing to compare with


def test_no_way_follows_itself(clock):
    for count in (2, 3, 7):
        ran = []

        def function(name, ran=ran):
            return lambda: (ran.append(name), setattr(clock, "now", clock.now + 1e-3))

        timing.race({name: function(name) for name in range(count)}, clock, unexpected, timing.QUICKEST)
        assert len(ran) > 2 * count + 9
        assert all(one != other for one, other in zip(ran[count:], ran[count + 1 :]))


def test_a_way_that_raises_in_a_later_round_is_left_out(clock):
    turns, failed = iter([1e-3] * 4), []

    def breaks():
        clock.now += next(turns)

    def steady():
        clock.now += 1.1e-3

    found = timing.race(
        {"breaks": breaks, "steady": steady}, clock, lambda way, _: failed.append(way), timing.QUICKEST
    )
    assert failed == ["breaks"]
    assert found == pytest.approx({"steady": 1.1e-3})


@pytest.mark.parametrize(("seconds", "most"), [(1e-5, 0.0005), (3e-4, 0.0005), (3e-2, 0.0025)])
def test_what_noise_costs_a_choice_on_a_cpu(seconds, most):
    """Others take 10 % of the time, now and then more: the mean loss among eight ways that are 2 % apart."""
    draw = random.Random(0)
    lost = []
    for _ in range(200):
        costs = {way: seconds * (1 + 0.02 * place) for place, way in enumerate(draw.sample(range(8), 8))}
        clock = FakeClock()

        def function(cost, clock=clock):
            return lambda: setattr(clock, "now", clock.now + cost * (1 + draw.expovariate(10)))

        ways = {way: function(costs[way]) for way in range(8)}
        found = timing.race(ways, clock, unexpected, timing.QUICKEST)
        lost.append(costs[min(found, key=found.get)] / seconds - 1)
    assert sum(lost) / len(lost) < most


def test_one_outlier_does_not_decide(clock):
    turns = iter([9e-3, 1e-3, 9e-3, *[1e-3] * 50])

    def shaky():
        clock.now += next(turns)

    def steady():
        clock.now += 1.2e-3

    found = timing.race({"shaky": shaky, "steady": steady}, clock, unexpected)
    assert found == pytest.approx({"shaky": 1e-3, "steady": 1.2e-3})


def test_the_quickest_of_several_calls_counts():
    """Others that use the machine make some calls take longer, the first one among them."""
    clock = timing.HostClock()
    turns = {"shaky": iter([9e-3, 9e-3, 1e-3, *[9e-3] * 50]), "steady": iter([1.2e-3] * 50)}
    clock.seconds = lambda call, calls: call()
    functions = {name: lambda turn=turn: next(turn) for name, turn in turns.items()}
    found = timing.race(functions, clock, unexpected, timing.QUICKEST)
    assert found["steady"] == 1.2e-3
    assert found["shaky"] == 9e-3  # seven times as slow in two calls: not asked again
    for shaky in ([9e-3, 2e-3, 1e-3], [1e-3, 1.3e-3, 9e-3]):  # in a later round, and in the first one of all
        turns = {"shaky": iter([*shaky, *[9e-3] * 50]), "steady": iter([1.2e-3] * 50)}
        functions = {name: lambda turn=turn: next(turn) for name, turn in turns.items()}
        found = timing.race(functions, clock, unexpected, timing.QUICKEST)
        assert found == {"shaky": 1e-3, "steady": 1.2e-3}


def test_with_one_thread_time_of_others_does_not_count(monkeypatch):
    monkeypatch.setattr(timing.time, "thread_time", iter([1.0, 1.5]).__next__)
    monkeypatch.setattr(timing.time, "perf_counter", iter([1.0, 3.0]).__next__)
    for threads, seconds in ((1, 0.25), (2, 1.0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert timing.HostClock().seconds(lambda: None, 2) == seconds
