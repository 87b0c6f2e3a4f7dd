# Kernels give a known answer before a layer on a GPU uses them: fake backends on the CPU, wrong in many ways.

from __future__ import annotations

import warnings

import pytest
import torch
from trials import X, layer, off_by_one, run_right, runs_of, warned, world

import symconv_fast as sf
from symconv_fast import binding, dispatch, settings
from symconv_fast.problem import OPS
from symconv_fast.trial import modes, verdicts

__all__ = ["world"]  # a fixture


# --- known answers ---------------------------------------------------------------------------------------------------


def raises(*_):
    raise RuntimeError("error text of the module")


def writes(result, problem, first, *_):
    first[(0,) * first.dim()] += 1
    return result


WRONG = {
    "one value": (off_by_one, "values are wrong"),
    "NaN": (lambda result, *_: result.mul_(float("nan")), "values are wrong"),
    "raises": (raises, "RuntimeError: error text of the module"),
    "strides": (lambda result, *_: result.transpose(-1, -2).contiguous().transpose(-1, -2), "strides"),
    "dtype": (lambda result, *_: result.double(), "dtype"),
    "argument": (writes, "wrote to its arguments"),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", WRONG)
def test_the_wrong_one_is_never_used(world, kind, op):
    damage, words = WRONG[kind]
    world.slow.damage = lambda result, problem, *tensors: damage(result, problem, *tensors)
    world.slow.can_run = lambda problem, asked, algorithm: None if asked == op else "only the broken pass"
    conv, x = layer(), X.clone().requires_grad_()

    def step():
        for batch in (2, 1):
            y = conv(x[:batch])
            torch.autograd.grad(y, [x, conv.weight], torch.ones_like(y))

    (message,) = warned(step)
    for said in (
        "slow/fold",
        f"{op} in float32",
        words,
        f"torch {torch.__version__}",
        sf.__version__,
        "Problem(",
    ):
        assert said in message
    shapes = {shape for _, shape in world.slow.ran}
    assert shapes
    assert (2, 4, 21, 20) not in shapes  # it never saw the layer's own problem
    reason = {(c.backend, r.op): c.reason for r in sf.explain(conv, X).passes for c in r.candidates}
    assert words in reason["slow", op]


def test_a_kernel_that_failed_is_disabled_for_every_layer(world):
    """Also where it passed before, on another kind of layer, and was chosen."""
    conv = layer()
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["slow"]
    world.slow.damage = lambda result, problem, *_: off_by_one(result) if problem.stride == (2, 2) else result
    strided = sf.SymmetricConv2d(4, 16, 3, padding=1, stride=2, symmetry="h")
    with pytest.warns(RuntimeWarning, match="slow/fold"), torch.no_grad():
        strided(X)
    assert "slow" not in runs_of(world, conv, X)
    assert "slow" not in runs_of(world, layer(), X)
    kernel = verdicts.kernel(world.slow, sf.explain(conv, X).problem, "fprop", "fold", X.device)
    assert verdicts.verdict(kernel, sf.explain(conv, X).problem) is False


def test_a_known_answer_is_asked_for_once(world):
    conv = layer()
    run_right(conv, X)
    for fake in (world.quick, world.slow):
        assert {shape for _, shape in fake.ran} == {(2, 4, 13, 11), (2, 4, 21, 20)}
        assert sum(shape == (2, 4, 13, 11) for _, shape in fake.ran) == 2  # integers, and normal numbers
    world.forget_runs()
    run_right(layer(), X[:1].contiguous())
    assert (2, 4, 13, 11) not in {shape for _, shape in world.quick.ran}
    with torch.no_grad():
        sf.SymmetricConv2d(4, 16, 3, padding=1, symmetry="h")(X)  # another tie: an answer of its own
    assert (2, 4, 13, 11) in {shape for _, shape in world.quick.ran}


def test_a_pinned_kernel_that_is_wrong_is_refused_with_the_reason(world):
    world.slow.damage = off_by_one
    conv = layer()

    def refused():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="slow/fold: it failed its known answer on this device"):
                run_right(conv, X)

    with sf.backend("slow"):
        assert len(warned(refused)) == 1
    assert len(runs_of(world, conv, X)) > 0


def test_a_pin_runs_what_cannot_be_proven_now(world, monkeypatch):
    monkeypatch.setattr(modes, "capturing", lambda device: True)
    with sf.backend("slow"):
        assert runs_of(world, layer(), X) == ["slow"]


def test_a_pin_of_one_way_is_proven_and_not_timed(world):
    conv = layer()
    with sf.backend("slow", "fold"):
        run_right(conv, X)
        assert runs_of(world, conv, X) == ["slow"]
    assert world.clock.samples == 0


def test_memory_that_does_not_suffice_is_not_held_against_a_kernel(world):
    def greedy(result, problem, *_):
        raise torch.OutOfMemoryError("all is full")

    world.slow.damage = greedy
    conv = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_right(conv, X)
        assert "slow" not in runs_of(world, conv, X)
    world.slow.damage = None
    run_right(conv, X[:1].contiguous())
    assert runs_of(world, conv, X[:1].contiguous()) == ["slow"]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_kernel_that_no_small_problem_runs_is_asked_the_layers_own(world, wrong):
    """The names say which kernel would run: a known answer of another one proves nothing."""
    world.slow.kernels = lambda problem, op, algorithm: (f"tile for {problem.input_shape}",)
    world.slow.damage = off_by_one if wrong else None
    conv = layer()
    messages = warned(lambda: run_right(conv, X))
    assert len(messages) == wrong
    assert {shape for _, shape in world.slow.ran} == {tuple(X.shape)}
    assert runs_of(world, conv, X) == ["reference" if wrong else "slow"]


def test_a_backend_may_run_a_small_problem_with_the_kernels_of_a_large_one(world):
    asked = []

    def bind_like(small, op, algorithm, like, activation):
        asked.append((small.input_shape, like.input_shape))
        return (
            binding.bind(world.slow, small, op, algorithm, activation) if small.spatial != (13, 11) else None
        )

    world.slow.kernels = lambda problem, op, algorithm: (f"tile for {problem.input_shape}",)
    world.slow.bind_like = bind_like
    conv = layer()
    run_right(conv, X)
    assert runs_of(world, conv, X) == ["slow"]
    # The sizes with the remainders of the layer's, since the first were declined.
    assert asked == [((2, 4, 13, 11), (2, 4, 21, 20)), ((2, 4, 21, 12), (2, 4, 21, 20))]


def test_known_answers_can_be_switched_off(world, monkeypatch):
    monkeypatch.setenv(settings.ENV_KNOWN_ANSWERS, "0")
    sf.benchmark = False
    conv = layer()
    assert runs_of(world, conv, X) == ["quick"]
    report = sf.explain(conv, X).passes[0]
    assert report.evidence[0].known_answer == "not run (switched off)"


def test_a_part_that_another_backend_runs_is_proven_too(world, monkeypatch):
    """`distinct` leaves a smaller problem to the others: to kernels that are proven."""
    from symconv_fast.backends import distinct

    world.slow.damage = world.quick.damage = off_by_one
    modules = {m.NAME: m for m in (world.quick, world.slow, world.torchs)} | {"distinct": distinct}
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(modules))
    monkeypatch.setattr(dispatch, "load", modules.__getitem__)
    monkeypatch.setattr(distinct, "_others", [])
    distinct.connect(dispatch._seconds, dispatch._bind_quickest)
    with pytest.warns(sf.SymmetryWarning, match="one tap"):
        conv = sf.SymmetricConv2d(4, 16, (3, 1), padding=(1, 0), symmetry="h")
    wanted = torch.nn.functional.conv2d(X, conv.expanded_weight(), conv.bias, padding=(1, 0))

    def calls():
        for pin in ("distinct", "distinct", None, None):
            with torch.no_grad(), sf.backend(pin):
                torch.testing.assert_close(conv(X), wanted)

    assert len(warned(calls)) == 2
    assert X.shape not in {shape for f in (world.quick, world.slow) for _, shape in f.ran}


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_says_what_is_measured_and_what_is_proven(world):
    conv = layer()
    found = sf.explain(conv, X)
    assert [(e.measured, e.known_answer) for e in found.passes[0].evidence] == [
        (None, "not run"), (None, "not run"), (None, None),
    ]  # fmt: skip
    assert (found.passes[0].backend, found.passes[0].measured) == ("quick", None)
    assert "1,000.00 ms (estimated); known answer: not run" in found.details()
    assert world.quick.ran == []

    world.quick.damage = off_by_one
    with pytest.warns(RuntimeWarning):
        run_right(conv, X)
    found = sf.explain(conv, X)
    forward, dgrad = found.passes[:2]
    assert (forward.backend, forward.measured) == ("slow", pytest.approx(1e-3))
    assert forward.seconds == pytest.approx(1e-3)
    assert forward.torch_seconds == pytest.approx(
        1e-3
    )  # half of what the reference took, as the estimates are
    assert (dgrad.backend, dgrad.measured) == ("quick", None)
    text, details = str(found), found.details()
    assert "measured: 1.00 ms; torch's layer an estimated 1.00 ms" in text
    assert "an estimated 1,000.00 ms" in text
    rows = [" ".join(line.split()) for line in details.splitlines() if line.startswith("forward")]
    assert rows[0].startswith("forward quick fold it failed its known answer on this device: ")
    assert rows[1] == "forward slow fold chosen 1.00 ms (measured); known answer: passed"
    assert rows[2] == "forward reference expand 2.00 ms (measured)"
    world.slow.rows = True
    assert "known answer: not needed (measured on this model)" in sf.explain(conv, X).details()


def test_on_a_device_without_trials_nothing_changes(world, monkeypatch):
    monkeypatch.setattr(modes, "DEVICES", {"cuda"})
    conv = layer()
    assert runs_of(world, conv, X) == ["quick"]
    assert world.clock.samples == 0
    found = sf.explain(conv, X)
    assert found.passes[0].evidence == ()
    assert "estimated)" not in found.details()
    assert isinstance(
        dispatch.bind(found.problem, "fprop"), type(binding.bind(world.quick, found.problem, "fprop", "fold"))
    )
