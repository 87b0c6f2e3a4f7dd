# What holds alike for candidates on a GPU, which the CPU stands in for, and for those on a CPU that is one.

from __future__ import annotations

import pytest
import torch
from trials import World, X, host, layer, right, run_right, runs_of, world

from symconv_fast.trial import modes

__all__ = ["host", "world"]  # fixtures


@pytest.fixture(params=["world", "host"])
def either(request) -> World:
    """Each world in turn."""
    return request.getfixturevalue(request.param)


def test_torchs_convolution_is_among_them_however_bad_its_estimate(either):
    either.torchs.cost, either.torchs.seconds = 1e-4, 100.0
    conv = layer()
    run_right(conv, X)
    assert runs_of(either, conv, X) == ["reference"]


def test_all_three_passes_are_chosen_by_themselves(either):
    conv, x = layer(), X.clone().requires_grad_()
    gradient = torch.randn(2, 16, 21, 20)
    for _ in range(2):
        grads = torch.autograd.grad(conv(x), [x, conv.weight], gradient)
    wanted = torch.autograd.grad(right(conv, x), [x, conv.weight], gradient)
    for ours, torchs in zip(grads, wanted):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-3)
    for loss in (lambda: conv(x), lambda: conv(x).sum()):
        either.forget_runs()
        y = loss()
        torch.autograd.grad(y, [x, conv.weight], gradient if y.dim() else None)
        assert [op for op, _ in either.slow.ran] == ["fprop", "dgrad", "wgrad"]
        assert either.quick.ran == either.torchs.ran == []


def test_what_the_timing_runs_return_goes_nowhere(either):
    """Everything that is computed while the clock runs is NaN."""

    def poisoned(result, *_):
        return result.fill_(float("nan")) if either.clock.running else result

    for fake in (either.quick, either.slow, either.torchs):
        fake.damage = poisoned
    run_right(layer(), X)
    assert either.clock.samples


def test_a_compiled_layer_is_timed_when_it_runs(either, monkeypatch):
    conv = layer()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), right(conv, X))
        assert either.clock.samples
        either.forget_runs()
        torch.testing.assert_close(compiled(X), right(conv, X))
    assert [f.NAME for f in (either.quick, either.slow, either.torchs) if f.ran] == ["slow"]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert modes.allowed(torch.device("cpu"), (X,)) == modes.NOTHING
