# Timing among the native kernels: each gives the answer, a wrong one is left out, and a warm call is native again.

from __future__ import annotations

import pytest
import torch
from trials import X, clear, layer, run_right, warned

import symconv_fast as sf
from symconv_fast import dispatch, native, ops, settings
from symconv_fast.backends import cpu
from symconv_fast.trial import Trial, verdicts

needs_native = pytest.mark.skipif(native.module is None, reason="the native module was not built")


@pytest.fixture
def timed():
    """Benchmark mode on, in a process that knows nothing."""
    torch.use_deterministic_algorithms(False)
    clear()
    sf.benchmark = True
    yield
    sf.benchmark = "auto"
    torch.use_deterministic_algorithms(True)
    clear()


@needs_native
def test_a_warm_call_is_native_again(timed, monkeypatch):
    """Once settled, neither a layer nor its backward pass comes to Python."""
    conv, x = layer(), X.clone().requires_grad_()
    gradient = torch.randn(2, 16, 21, 20)

    def step():
        return torch.autograd.grad(conv(x), [x, conv.weight, conv.bias], gradient)

    first = step()
    step()
    assert len(verdicts._times) == 3
    step()
    monkeypatch.setattr(dispatch, "bind", lambda *_: pytest.fail("chosen anew"))
    monkeypatch.setattr(Trial, "__call__", lambda *_: pytest.fail("a trial"))
    monkeypatch.setattr(ops, "_real_fprop", lambda *_: pytest.fail("an operator"))
    for ours, wanted in zip(step(), first):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-3)
    assert native.module.remembered() >= 1


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("level", ["f2", "f4"])
def test_every_native_kernel_gives_the_answer(timed, dtype, level):
    """What is right is not disabled, whatever rounds it: layers of each kind in both layouts, all passes."""
    sf.allow_winograd = level
    try:
        for options in (
            {}, {"stride": 2}, {"groups": 4}, {"symmetry": "hv"}, {"kernel_size": 5, "symmetry": "v"},
        ):  # fmt: skip
            options = {"kernel_size": 3, "symmetry": "h", "padding": 1, **options}
            for channels in (1, 4, 20) if "groups" not in options else (4, 20):
                conv = sf.SymmetricConv2d(channels, 16, dtype=dtype, **options)
                for form in (torch.contiguous_format, torch.channels_last):
                    x = torch.randn(3, channels, 12, 11, dtype=dtype).contiguous(memory_format=form)
                    y = conv(x.requires_grad_())
                    assert warned(lambda: y.backward(torch.randn_like(y))) == []  # noqa: B023
        assert verdicts._failed == {}
        assert len(verdicts._times) > 50
    finally:
        sf.allow_winograd = "f2"


@needs_native
def test_a_wrong_native_kernel_is_left_out(timed, monkeypatch):
    bind = cpu.bind

    def damaged(problem, op, algorithm):
        run = bind(problem, op, algorithm)
        return (lambda *tensors: run(*tensors).add_(1)) if algorithm == "fold" else run

    monkeypatch.setattr(cpu, "bind", damaged)
    conv = sf.SymmetricConv2d(16, 16, 3, padding=1, symmetry="h")
    x = torch.randn(2, 16, 9, 9)
    messages = warned(lambda: run_right(conv, x))
    assert ["cpu/fold" in message for message in messages] == [True]
    report = sf.explain(conv, x).passes[0]
    reasons = {c.algorithm: c.reason for c in report.candidates if c.backend == "cpu"}
    assert "failed its known answer" in reasons["fold"]
    assert report.algorithm != "fold"
    assert settings.benchmark() is True
