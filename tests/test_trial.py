# Candidates are timed before a layer on a GPU uses one: fake backends, a fake clock, on the CPU.

from __future__ import annotations

import re
import warnings

import pytest
import torch
from trials import (
    X,
    clear,
    clear_plans_only,
    layer,
    right,
    run_right,
    runs_of,
    timing_elsewhere,
    warned,
    world,
)

import symconv_fast as sf
from symconv_fast import settings
from symconv_fast.trial import modes

__all__ = ["world"]  # a fixture


# --- timing --------------------------------------------------------------------------------------------------------


def test_the_slow_one_loses_whatever_was_estimated(world):
    conv = layer()
    run_right(conv, X)
    samples = world.clock.samples
    assert samples > 6
    assert runs_of(world, conv, X) == ["slow"]
    assert world.clock.samples == samples
    world.slow.cost, world.quick.cost = 3e-3, 1e-3
    other = X[:1].contiguous()
    run_right(conv, other)  # another problem is timed by itself
    assert runs_of(world, conv, other) == ["quick"]
    assert runs_of(world, conv, X) == ["slow"]


def test_beyond_three_times_the_best_estimate_nothing_is_timed(world):
    world.slow.seconds = 3.1 * world.quick.seconds
    conv = layer()
    run_right(conv, X)
    assert world.slow.ran == []
    assert runs_of(world, conv, X) == ["reference"]  # 2 ms, and the quick one takes 3


def test_the_activation_is_part_of_what_is_timed(world):
    conv = layer()
    run_right(conv, X)
    samples = world.clock.samples
    static = (list(conv.ties.flat), [1, 1], [1, 1], [1, 1], [0, 0], False, 1, False)
    with torch.no_grad():
        y = torch.ops.symconv_fast.fprop_activated(X, conv.weight, conv.bias, "gelu", *static)
        torch.testing.assert_close(y, torch.nn.functional.gelu(right(conv, X)))
    assert world.clock.samples > samples


def test_a_kernel_that_raises_while_it_is_timed_is_disabled_with_one_warning(world):
    def broken(result, problem, *_):
        if world.clock.running:
            raise RuntimeError("launch failed")
        return result

    world.slow.damage = broken
    conv = layer()
    (message,) = warned(lambda: [run_right(conv, x) for x in (X, X[:1].contiguous())])
    assert re.search(r"slow/fold.*launch failed.*report", message)
    assert "slow" not in runs_of(world, conv, X)


def test_memory_that_does_not_suffice_for_timing_is_not_held_against_a_kernel(world):
    def greedy(result, *_):
        if world.clock.running:
            raise torch.OutOfMemoryError("all is full")
        return result

    world.slow.damage = greedy
    conv = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_right(conv, X)
        assert runs_of(world, conv, X) == ["reference"]
    world.slow.damage = None
    run_right(conv, X[:1].contiguous())
    assert runs_of(world, conv, X[:1].contiguous()) == ["slow"]


# --- when nothing is timed -------------------------------------------------------------------------------------------


def test_deterministic_algorithms_go_by_proof_and_estimates(world):
    torch.use_deterministic_algorithms(True)
    conv = layer()
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["quick"]
    assert world.clock.samples == 0
    torch.use_deterministic_algorithms(False)
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["slow"]
    assert world.clock.samples
    torch.use_deterministic_algorithms(True)
    assert runs_of(world, conv, X) == ["quick"]  # not by times, which differ from run to run


def test_a_captured_call_uses_what_is_proven(world, monkeypatch):
    conv = layer()
    with monkeypatch.context() as patch:
        patch.setattr(modes, "capturing", lambda device: True)
        assert runs_of(world, conv, X) == ["reference"]
        assert runs_of(world, conv, X) == ["reference"]
        assert world.clock.samples == 0
    run_right(conv, X)
    samples = world.clock.samples
    clear_plans_only()
    with monkeypatch.context() as patch:
        patch.setattr(modes, "capturing", lambda device: True)
        assert runs_of(world, conv, X) == ["slow"]  # timed before
        assert runs_of(world, conv, X[:1].contiguous()) == ["quick"]  # proven before
        assert world.clock.samples == samples
    world.quick.rows = True  # as Triton on an H200
    clear()
    monkeypatch.setattr(modes, "capturing", lambda device: True)
    assert runs_of(world, conv, X) == ["quick"]


def test_the_current_stream_is_asked_whether_it_is_captured(world, monkeypatch):
    for captured, allowed in ((True, modes.NOTHING), (False, modes.TIME)):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda captured=captured: captured)
        assert modes.allowed(torch.device("cuda"), (X, None)) == allowed
        assert modes.allowed(torch.device("cpu"), (X, None)) == modes.TIME


def test_vmap_neither_proves_nor_times(world):
    conv = layer()
    with torch.no_grad():
        ys = torch.vmap(conv)(X.expand(3, *X.shape).clone())
        torch.testing.assert_close(ys[1], right(conv, X))
    assert world.clock.samples == 0
    assert world.quick.ran == world.slow.ran == []


def test_tracing_neither_proves_nor_times(world):
    conv = layer().eval()
    torch.export.export(conv, (X,))
    torch.fx.symbolic_trace(conv)
    with torch.device("meta"):
        conv.to("meta")(torch.empty(2, 4, 21, 20))
    assert world.clock.samples == 0
    assert world.quick.ran == world.slow.ran == world.torchs.ran == []


@pytest.mark.parametrize("when", ["compiling", "mode", "subclass", "transform"])
def test_what_does_not_simply_run_neither_proves_nor_times(world, monkeypatch, when):
    device = torch.device("cpu")
    assert modes.allowed(device, (X, None)) == modes.TIME
    assert modes.allowed(device, (torch.nn.Parameter(X),)) == modes.TIME
    if when == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert modes.allowed(device, (X,)) == modes.NOTHING
    elif when == "mode":
        with torch.utils._python_dispatch.TorchDispatchMode():
            assert modes.allowed(device, (X,)) == modes.NOTHING
    elif when == "transform":
        levels = []
        torch.func.vmap(lambda x: levels.append(modes.allowed(device, (x,))) or x)(X)
        torch.func.grad(lambda x: levels.append(modes.allowed(device, (x,))) or x.sum())(X)
        assert levels == [modes.NOTHING] * 2
    else:
        assert modes.allowed(device, (X.as_subclass(type("Mine", (torch.Tensor,), {})),)) == modes.NOTHING


def test_threads_do_not_time_at_once(world):
    """While one thread times, the others run by estimates what is proven; later they run the winner."""
    conv, other = layer(), X[:, :, :7].contiguous()
    with timing_elsewhere(world, conv, X):
        assert runs_of(world, conv, X) == [
            "quick"
        ]  # proven by the other thread already, and the lowest estimate
        assert runs_of(world, conv, other) == ["quick"]
        unproven = layer(dtype=torch.float64)
        assert runs_of(world, unproven, X.double()) == ["reference"]
    run_right(conv, other)
    assert runs_of(world, conv, X) == runs_of(world, conv, other) == ["slow"]


# --- the setting -----------------------------------------------------------------------------------------------------


def test_auto_times_where_a_backend_has_no_rows(world):
    world.quick.rows = world.slow.rows = True
    conv = layer()
    assert runs_of(world, conv, X) == ["quick"]
    assert world.clock.samples == 0
    sf.benchmark = True
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["slow"]
    sf.benchmark = False
    assert runs_of(world, conv, X) == ["slow"]  # what was measured is kept
    assert "quick" in runs_of(world, conv, X[:1].contiguous())


def test_without_timing_kernels_are_proven_all_the_same(world):
    sf.benchmark = False
    conv = layer()
    run_right(conv, X)
    assert len(world.quick.ran) > 1
    assert world.slow.ran == []
    assert world.clock.samples == 0
    assert runs_of(world, conv, X) == ["quick"]


def test_changing_the_setting_does_not_time_again(world):
    conv = layer()
    run_right(conv, X)
    samples = world.clock.samples
    with sf.benchmarking():
        assert sf.benchmark is True
        assert runs_of(world, conv, X) == ["slow"]
        with sf.benchmarking(False):
            assert sf.benchmark is False
    assert sf.benchmark == "auto"
    sf.allow_winograd = False
    try:
        assert settings.version()
        run_right(layer(dtype=torch.float64), X.double())
    finally:
        sf.allow_winograd = "f2"
    assert runs_of(world, conv, X) == ["slow"]
    assert world.clock.samples > samples  # float64 was new
    with pytest.raises(RuntimeError), sf.benchmarking():
        raise RuntimeError
    assert sf.benchmark == "auto"


@pytest.mark.parametrize("level", ["yes", 1, 0, None, "AUTO"])
def test_the_setting_takes_three_levels(level):
    with pytest.raises(ValueError, match='True, False or "auto"'):
        sf.benchmark = level
    assert sf.benchmark == "auto"
    assert "benchmark" in dir(sf)


@pytest.mark.parametrize(
    ("word", "level"),
    [("1", True), ("on", True), ("0", False), ("no", False), ("", "auto"), ("AUTO", "auto")],
)
def test_the_environment_sets_the_level(monkeypatch, word, level):
    monkeypatch.setattr(settings, "_benchmark", None)
    monkeypatch.setenv(settings.ENV_BENCHMARK, word)
    assert sf.benchmark == level
    monkeypatch.setattr(settings, "_benchmark", None)
    monkeypatch.setenv(settings.ENV_BENCHMARK, "perhaps")
    with pytest.raises(ValueError, match="SYMCONV_FAST_BENCHMARK='perhaps'"):
        _ = sf.benchmark


def test_times_count_under_the_switches_of_torch_under_which_they_were_measured(world, monkeypatch):
    """The operators ask for another function when TF32 is allowed or forbidden; see `ops.plan`."""
    conv, allowed = layer(), [True]
    monkeypatch.setattr(settings, "tf32_allowed", lambda: allowed[0])
    for allowed[0], winner in ((True, "slow"), (False, "quick"), (True, "slow")):
        world.quick.cost = 3e-3 if allowed[0] else 5e-4
        clear_plans_only()
        samples = world.clock.samples
        run_right(conv, X)
        assert runs_of(world, conv, X) == [winner]
    assert world.clock.samples == samples  # the first times are still known


def test_what_was_settled_is_asked_again_when_cudnn_may_choose(world, monkeypatch):
    """With another switch torch's convolution takes another time; what was measured before comes back with it."""
    conv = layer()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["slow"]
    world.torchs.cost = 1e-4
    assert runs_of(world, conv, X) == ["slow"]
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["reference"]
    samples = world.clock.samples
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert runs_of(world, conv, X) == ["slow"]
    assert world.clock.samples == samples
