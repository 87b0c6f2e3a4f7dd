# Fake backends, a fake clock and a world of them on the CPU, for the tests of what is proven and timed.
"""The fakes are on the CPU; in `world` `trial` takes it for a GPU.

Their results come from the reference; what they cost is what they add to the fake clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import types
import warnings
from collections.abc import Iterator

import pytest
import torch

import symconv_fast as sf
from symconv_fast import dispatch, settings
from symconv_fast.backends import reference
from symconv_fast.problem import OPS
from symconv_fast.trial import choices, modes, rates, timing, verdicts


class FakeClock:
    """Time goes by only when a fake runs; counts samples, and may do something while it measures."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples = 0
        self.running = 0
        self.during = lambda: None

    def seconds(self, function, calls):
        self.samples += 1
        self.running += 1
        start = self.now
        self.during()
        for _ in range(calls):
            function()
        self.running -= 1
        return (self.now - start) / calls

    def functions(self, costs):
        """By name functions that take so many seconds each, and how often they were called."""
        calls = dict.fromkeys(costs, 0)

        def function(name):
            def run():
                calls[name] += 1
                self.now += costs[name]

            return run

        return {name: function(name) for name in costs}, calls


class Fake(types.ModuleType):
    """A backend that is the reference in disguise: its estimate and its time are what the test says."""

    ALGORITHMS = ("fold",)

    def __init__(self, name: str, clock: FakeClock, estimate: float, cost: float) -> None:
        super().__init__(name)
        self.NAME, self.clock, self.seconds, self.cost = name, clock, estimate, cost
        self.ran: list[tuple[str, tuple[int, ...]]] = []
        self.damage = None
        self.refused: str | None = None

    def can_run(self, problem, op, algorithm):
        return self.refused

    def estimate(self, problem, op, algorithm):
        return self.seconds

    def __getattr__(self, op):
        if op not in OPS:
            raise AttributeError(op)

        def run(problem, algorithm, *tensors):
            self.ran.append((op, problem.input_shape))
            self.clock.now += self.cost
            result = getattr(reference, op)(problem, "expand", *tensors)
            return result if self.damage is None else self.damage(result, problem, *tensors)

        return run


class Ours(Fake):
    """One with kernels that have to be proven."""

    rows = False  # were they measured on this device?

    def kernels(self, problem, op, algorithm):
        return (f"{self.NAME} {op}",)

    def measured(self, device):
        return self.rows


class Torchs(Fake):
    """The reference of these tests."""

    ALGORITHMS = ("expand",)

    def torch_seconds(self, problem, op):
        return self.seconds / 2


@dataclasses.dataclass
class World:
    """Two fakes with kernels and torch's convolution: by the estimates `quick` wins, by the clock `slow`."""

    clock: FakeClock
    quick: Fake
    slow: Fake
    torchs: Torchs

    def forget_runs(self) -> None:
        for fake in (self.quick, self.slow, self.torchs):
            fake.ran.clear()


@pytest.fixture
def world(monkeypatch) -> Iterator[World]:
    """The fakes as the only backends of this process, which knows nothing yet; the CPU stands in for a GPU."""
    monkeypatch.setattr(modes, "DEVICES", {"cpu"})
    yield from _world(monkeypatch, Ours)


@pytest.fixture
def host(monkeypatch) -> Iterator[World]:
    """The same on a CPU that is one, of which nothing was measured."""
    monkeypatch.setattr(rates, "why_none", lambda dtype: "it is new")
    yield from _world(monkeypatch, Fake)


def _world(monkeypatch, kind: type[Fake]) -> Iterator[World]:
    clock = FakeClock()
    found = World(
        clock,
        kind("quick", clock, 1.0, 3e-3),
        kind("slow", clock, 2.0, 1e-3),
        Torchs("reference", clock, 10.0, 2e-3),
    )
    modules = {"quick": found.quick, "slow": found.slow, "reference": found.torchs}
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(modules))
    monkeypatch.setattr(dispatch, "load", modules.__getitem__)
    monkeypatch.setattr(timing, "clock_of", lambda device: clock)
    monkeypatch.delenv(settings.ENV_KNOWN_ANSWERS, raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    clear()
    sf.benchmark = "auto"
    yield found
    sf.benchmark = "auto"
    torch.use_deterministic_algorithms(before)
    clear()


def clear() -> None:
    choices.forget()
    verdicts.forget()
    dispatch._choose.cache_clear()
    sf.ops.forget_plans()


X = torch.randn(2, 4, 21, 20)


def layer(channels: int = 4, **options) -> sf.SymmetricConv2d:
    return sf.SymmetricConv2d(channels, 16, 3, padding=1, symmetry={"h": 4, "hv": 8}, **options)


def right(conv: sf.SymmetricConv2d, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv2d(x, conv.expanded_weight(), conv.bias, padding=1)


def run_right(conv: sf.SymmetricConv2d, x: torch.Tensor) -> None:
    """Calls the layer without gradients; what it returns must be right."""
    with torch.no_grad():
        torch.testing.assert_close(conv(x), right(conv, x))


def runs_of(world: World, conv: sf.SymmetricConv2d, x: torch.Tensor) -> list[str]:
    """Names of the fakes that run one more call."""
    world.forget_runs()
    run_right(conv, x)
    return [f.NAME for f in (world.quick, world.slow, world.torchs) for _ in f.ran]


@contextlib.contextmanager
def timing_elsewhere(world: World, conv: sf.SymmetricConv2d, x: torch.Tensor) -> Iterator[None]:
    """Another thread times a layer meanwhile, and no two threads did so at once."""
    inside, go_on = threading.Event(), threading.Event()
    most, first = [], threading.current_thread()

    def during():
        most.append(world.clock.running)
        if threading.current_thread() is not first and not inside.is_set():
            inside.set()
            assert go_on.wait(60)

    world.clock.during = during
    worker = threading.Thread(target=run_right, args=(conv, x))
    worker.start()
    assert inside.wait(60)
    samples = world.clock.samples
    yield
    assert world.clock.samples == samples
    go_on.set()
    worker.join(60)
    assert max(most) == 1


def warned(run) -> list[str]:
    """What is warned of while something runs, once for each time."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if w.category is RuntimeWarning]


def clear_plans_only() -> None:
    dispatch._choose.cache_clear()
    sf.ops.forget_plans()


def off_by_one(result, *_):
    result[(-1,) * result.dim()] += 1
    return result
