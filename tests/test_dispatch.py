"""The choice of backends, what pins it, and what it costs to ask."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
import types

import pytest
import torch
from fake_backend import clear, fake, layer_and_input

import symconv_fast as sf
from symconv_fast import dispatch, settings
from symconv_fast.backends import reference
from symconv_fast.backends.cpu import rates, torch_cost
from symconv_fast.problem import OPS

__all__ = ["fake"]  # a fixture


# --- choosing ------------------------------------------------------------------------------------------------------


def test_the_lowest_estimate_runs_all_three_passes(fake):
    layer, x = layer_and_input()
    layer(x).sum().backward()
    assert fake.ran == [("fprop", "fold"), ("dgrad", "fold"), ("wgrad", "fold")]
    fake.ran.clear()
    fake.seconds = 1e9
    clear()
    layer(x).sum().backward()
    assert fake.ran == []


def test_what_cannot_run_is_passed_over(fake):
    layer, x = layer_and_input()
    fake.refused = {("fprop", "fold"): "no fold today", ("dgrad", "fold"): "no", ("dgrad", "direct"): "no"}
    layer(x).sum().backward()
    assert fake.ran == [("fprop", "direct"), ("wgrad", "fold")]


def test_empty_tensors_always_go_to_the_reference(fake):
    layer, x = layer_and_input(0)
    layer(x).sum().backward()
    with sf.backend("fake"):
        layer(x).sum().backward()
    assert fake.ran == []
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


def test_the_choice_is_made_once_a_shape(fake, monkeypatch):
    layer, x = layer_and_input()
    asked = []
    can_run = fake.can_run
    monkeypatch.setattr(fake, "can_run", lambda *args: asked.append(args) or can_run(*args))
    for _ in range(3):
        layer(x).sum().backward()
    assert len(asked) == 3 * len(fake.ALGORITHMS)
    layer(x[:1])
    assert len(asked) == 4 * len(fake.ALGORITHMS)


def test_the_choice_follows_the_number_of_threads(fake):
    layer, x = layer_and_input()
    threads = torch.get_num_threads()
    layer(x)
    fake.refused = {("fprop", "fold"): "changed"}
    try:
        torch.set_num_threads(threads + 1)
        layer(x)
    finally:
        torch.set_num_threads(threads)
    assert fake.ran == [("fprop", "fold"), ("fprop", "direct")]


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("candidates", id="while a backend is chosen"),
        pytest.param("bind", id="while what was chosen is stored"),
    ],
)
def test_what_was_chosen_before_a_switch_changed_is_not_kept(fake, monkeypatch, what):
    """Another thread forbids minimal filtering when the first call has read that it is allowed."""
    allowed, left = getattr(dispatch, what), [1]
    fake.can_run = lambda problem, op, algorithm: (
        "not allowed" if algorithm == "fold" and settings.winograd() is False else None
    )

    def slow(*args):
        result = allowed(*args)
        left[0] -= 1
        if left[0] == 0:
            other = threading.Thread(target=settings.set_winograd, args=(False,))
            other.start()
            other.join()
        return result

    layer, x = layer_and_input()
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(dispatch, what, slow)
        try:
            layer(x)
            patch.undo()
            first = len(fake.ran)
            layer(x)
            layer(x)
        finally:
            settings.set_winograd("f2")
    assert fake.ran[:first] == [("fprop", "fold")]
    assert left[0] <= 0
    assert fake.ran[first:] == [("fprop", "direct")] * 2


# --- pinning -------------------------------------------------------------------------------------------------------


def test_pin_holds_in_backward_and_ends_with_the_block(fake):
    layer, x = layer_and_input()
    with sf.backend("reference"):
        y = layer(x)
    y.sum().backward()
    assert fake.ran == [("dgrad", "fold"), ("wgrad", "fold")]
    fake.ran.clear()
    with sf.backend("reference"):
        layer(x).sum().backward()
    assert fake.ran == []
    with sf.backend("fake", algorithm="direct"):
        layer(x).sum().backward()
    assert fake.ran == [("fprop", "direct"), ("dgrad", "direct"), ("wgrad", "direct")]


def test_innermost_pin_counts_and_errors_do_not_leak(fake):
    layer, x = layer_and_input()
    with sf.backend("reference"):
        with sf.backend(algorithm="direct"):
            layer(x)
        with sf.backend():
            layer(x)
        with pytest.raises(KeyError), sf.backend("fake"):
            raise KeyError
        assert dispatch.pinned().name == "reference"
        layer(x)
    assert fake.ran == [("fprop", "direct"), ("fprop", "fold")]
    assert dispatch.pinned() == dispatch._environment


def test_pin_is_of_the_thread(fake):
    layer, x = layer_and_input()
    with sf.backend("reference"):
        thread = threading.Thread(target=layer, args=(x,))
        thread.start()
        thread.join()
    assert fake.ran == [("fprop", "fold")]


def test_pinned_backend_that_cannot_run_raises_with_the_reason(fake):
    layer, x = layer_and_input()
    layer(x)  # a choice made without the pin must not be remembered for it
    fake.refused = {("fprop", "fold"): "the moon is wrong", ("wgrad", "fold"): "no wgrad yet"}
    with sf.backend("fake", algorithm="fold"):
        with pytest.raises(
            RuntimeError, match=r"backend\(\) pins .*cannot run fprop here: fake/fold: the moon is wrong"
        ):
            layer(x)
        with pytest.raises(RuntimeError, match="cannot run fprop"), torch.no_grad():
            layer(x)
    y = layer(x)
    with (
        sf.backend(algorithm="fold"),
        pytest.raises(RuntimeError, match="cannot run wgrad here: fake/fold: no wgrad yet"),
    ):
        y.sum().backward()


def test_names_are_checked_when_entering():
    with (
        pytest.raises(ValueError, match=r"backend 'cudnn' does not exist; there are: cpu, .*reference"),
        sf.backend("cudnn"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"algorithm 'fast' does not exist; there are: .*expand"),
        sf.backend(algorithm="fast"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="algorithm 'fold' does not exist; there are: expand"),
        sf.backend("reference", algorithm="fold"),
    ):
        pass


# --- estimates -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif("cpu" not in dispatch.available(), reason="the native CPU module is not built")
def test_products_in_tiles_have_rates_of_their_own_or_none(monkeypatch):
    """bfloat16 in AMX tiles is no multiple of what was measured without: unknown kernels are not chosen."""
    from symconv_fast.backends import cpu
    from symconv_fast.backends.cpu import cost, rates, torch_cost

    layer = sf.SymmetricConv2d(64, 64, 3, symmetry="h").bfloat16()
    p = layer.problem(torch.empty(1, 64, 28, 28).bfloat16())
    assumed = {"_isa": "amx_bf16", "_maker": "Intel", "_torchs": "AVX512", "_tiles_of_torch": True}
    for name, value in assumed.items():
        monkeypatch.setattr(rates, name, value)
    known = rates.RATES["AVX512 Intel"]
    fold = cost.place(p, "fprop", "fold", cpu.select(p, "fprop", "fold"))
    for place in (fold, torch_cost.place(p, "fprop")):
        assert rates.find(place) is known[f"bfloat16 tiles {place.kind}"]
    assert cpu.estimate(p, "fprop", "fold") < math.inf
    others = {kind: of for kind, of in known.items() if not kind.startswith("bfloat16 tiles")}
    monkeypatch.setitem(rates.RATES, "AVX512 Intel", others)
    assert cpu.estimate(p, "fprop", "fold") == math.inf


def test_a_backend_that_runs_elsewhere_is_not_loaded(monkeypatch):
    """It says so itself; once there is a problem for it, it is loaded, and what hinders that is its reason."""
    loaded = []

    def load():
        loaded.append("slow")
        raise ImportError("no such compiler")

    slow = types.ModuleType("symconv_fast.backends.slow")
    slow.missing = lambda: None
    slow.misplaced = lambda device: None if device == "meta" else f"not on {device}"
    slow.load = load
    monkeypatch.setitem(sys.modules, slow.__name__, slow)
    monkeypatch.setattr(dispatch, "BACKENDS", ("slow", "reference"))
    problem = layer_and_input()[0].problem(torch.empty(2, 4, 6, 7))
    try:
        assert dispatch.candidates(problem, "fprop")[0] == ("slow", "-", "not on cpu", None)
        assert loaded == []
        elsewhere = dataclasses.replace(problem, device="meta")
        assert "no such compiler" in dispatch.candidates(elsewhere, "fprop")[0].reason
        assert loaded == ["slow"]
        slow.missing = lambda: "there is no such machine"
        dispatch.load.cache_clear()
        assert "there is no such machine" in dispatch.candidates(problem, "fprop")[0].reason
        assert loaded == ["slow"]
    finally:
        dispatch.load.cache_clear()
        dispatch._import.cache_clear()


def test_torchs_time_is_estimated_once_a_choice(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch_cost, "counts", lambda problem, f=torch_cost.counts: asked.append(1) or f(problem)
    )
    layer, x = layer_and_input()
    problem = layer.problem(x)
    for op in OPS:
        torch_cost.forget()
        asked.clear()
        dispatch.candidates(problem, op)
        assert len(asked) == 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("channels", "kernel"), [(16, 3), (64, 7), (128, 31)])
def test_the_reference_of_a_depthwise_layer_costs_what_torch_takes_for_one(op, channels, kernel):
    # torch has no quick kernel for a depthwise layer with a multiplier: its rates for other layers are far too low,
    # but for few taps of few channels, where those of narrow groups may be higher.
    layer = sf.SymmetricConv2d(
        channels, 2 * channels, kernel, padding=kernel // 2, groups=channels, symmetry="h"
    )
    problem = layer.problem(torch.empty(1, channels, 56, 56))
    ordinary = rates.seconds(torch_cost.counts(problem), torch_cost.place(problem, op))
    assert reference.estimate(problem, op, "expand") > torch_cost.seconds(problem, op)
    assert torch_cost.seconds(problem, op) > ordinary or kernel == 3


def test_torchs_time_depends_on_the_threads():
    layer, x = layer_and_input()
    problem, threads = layer.problem(x), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = torch_cost.seconds(problem, "fprop")
        torch.set_num_threads(2)
        assert torch_cost.seconds(problem, "fprop") < one
    finally:
        torch.set_num_threads(threads)
