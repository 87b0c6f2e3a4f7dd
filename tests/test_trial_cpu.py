# Candidates on a CPU are timed where nothing was measured: fake backends and a fake clock.

from __future__ import annotations

import json

import pytest
import torch
from trials import X, clear, host, layer, off_by_one, right, run_right, runs_of, timing_elsewhere, warned

import symconv_fast as sf
from symconv_fast import ops
from symconv_fast.backends import torch_conv
from symconv_fast.backends.cpu import rates as cpu_rates
from symconv_fast.trial import Trial, choices, rates

__all__ = ["host"]  # a fixture


def function(conv: sf.SymmetricConv2d, x: torch.Tensor) -> object:
    """What runs the forward pass of such calls."""
    static = (conv.ties.flat, (1, 1), (1, 1), (1, 1), (0, 0), False, 1, False)
    return ops.plan("fprop", x, conv.weight, conv.bias, static)


# --- what is chosen --------------------------------------------------------------------------------------------------


def test_the_slow_one_loses_and_no_trial_is_left(host):
    conv = layer()
    assert isinstance(function(conv, X), Trial)
    run_right(conv, X)
    samples = host.clock.samples
    assert samples > 6
    assert not isinstance(function(conv, X), Trial)
    assert runs_of(host, conv, X) == ["slow"]
    assert host.clock.samples == samples
    assert isinstance(function(conv, X[:1].contiguous()), Trial)  # another problem


@pytest.mark.parametrize(("estimate", "timed"), [(8.9, True), (9.1, False), (float("inf"), True)])
def test_estimates_may_be_off_by_three_either_way(host, estimate, timed):
    host.slow.seconds = estimate
    conv = layer()
    run_right(conv, X)
    assert runs_of(host, conv, X) == (["slow"] if timed else ["reference"])
    assert bool(host.slow.ran) == timed


def test_a_wrong_kernel_is_never_used(host):
    """Not though it is the quickest; one warning says what to report, and no later problem asks it again."""
    host.slow.damage = off_by_one
    conv, other = layer(), X[:1].contiguous()
    (message,) = warned(lambda: [run_right(conv, x) for x in (X, X, other, other)])
    assert "slow/fold" in message
    assert "values are wrong" in message
    assert "report this with" in message
    assert "CPU" in message
    assert runs_of(host, conv, X) == runs_of(host, conv, other) == ["reference"]
    sf.benchmark = False
    host.torchs.seconds = 1e3
    third = X[:, :, :7].contiguous()
    assert runs_of(host, conv, third) == ["quick"]
    host.quick.seconds = 1e4
    assert "slow" not in runs_of(host, conv, X[:, :, :8].contiguous())


def test_one_that_writes_to_its_arguments_is_never_used(host):
    """Which it shows on tensors of its own."""

    def writes(result, problem, first, *_):
        first[(0,) * first.dim()] += 1
        return result

    host.slow.damage = writes
    conv, x = layer(), X.clone()
    (message,) = warned(lambda: run_right(conv, x))
    assert "slow/fold" in message
    assert "wrote to its arguments" in message
    assert runs_of(host, conv, x) == ["reference"]
    assert torch.equal(x, X)


def test_a_choice_that_fails_later_is_left_by_layers_that_had_taken_it(host):
    conv, other = layer(), X[:1].contiguous()
    run_right(conv, X)
    assert runs_of(host, conv, X) == ["slow"]
    host.slow.damage = off_by_one
    assert len(warned(lambda: run_right(conv, other))) == 1
    host.slow.damage = None
    assert runs_of(host, conv, X) == ["reference"]


def test_one_that_raises_while_it_is_timed_is_disabled(host):
    def broken(result, *_):
        if host.clock.running:
            raise RuntimeError("no such instruction")
        return result

    host.slow.damage = broken
    conv = layer()
    (message,) = warned(lambda: run_right(conv, X))
    assert "no such instruction" in message
    assert runs_of(host, conv, X) == ["reference"]


def test_memory_that_does_not_suffice_is_not_held_against_a_kernel(host):
    def greedy(result, *_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    host.slow.damage = greedy
    conv = layer()
    assert warned(lambda: run_right(conv, X)) == []
    host.slow.damage = None
    assert "slow" in runs_of(host, conv, X[:1].contiguous())


# --- when nothing is timed -------------------------------------------------------------------------------------------


def test_deterministic_algorithms_go_by_estimates(host):
    torch.use_deterministic_algorithms(True)
    conv = layer()
    assert not isinstance(function(conv, X), Trial)
    assert runs_of(host, conv, X) == runs_of(host, conv, X) == ["quick"]
    assert host.clock.samples == 0
    torch.use_deterministic_algorithms(False)
    run_right(conv, X)
    samples = host.clock.samples
    assert samples
    assert runs_of(host, conv, X) == ["slow"]
    torch.use_deterministic_algorithms(True)
    assert runs_of(host, conv, X) == ["quick"]  # not by times, which differ from run to run
    torch.use_deterministic_algorithms(False)
    assert runs_of(host, conv, X) == ["slow"]
    assert host.clock.samples == samples


def test_vmap_tracing_and_export_time_nothing(host):
    conv = layer().eval()
    with torch.no_grad():
        ys = torch.vmap(conv)(X.expand(3, *X.shape).clone())
        torch.testing.assert_close(ys[1], right(conv, X))
    assert host.clock.samples == 0
    torch.export.export(conv, (X,))
    torch.fx.symbolic_trace(conv)
    with torch.device("meta"):
        conv.to("meta")(torch.empty(2, 4, 21, 20))
    assert host.clock.samples == 0


def test_what_is_pinned_is_not_timed(host):
    host.quick.ALGORITHMS = ("fold", "another")  # of which the estimates say as much
    conv = layer()
    with sf.backend("quick"):
        assert runs_of(host, conv, X) == ["quick"]
    assert host.clock.samples == 0
    run_right(conv, X)
    assert host.clock.samples


def test_threads_do_not_time_at_once(host):
    """While one thread times, the others run by estimates; later they run the winner."""
    conv, other = layer(), X[:, :, :7].contiguous()
    with timing_elsewhere(host, conv, X):
        assert runs_of(host, conv, X) == runs_of(host, conv, other) == ["quick"]
    run_right(conv, other)
    assert runs_of(host, conv, X) == runs_of(host, conv, other) == ["slow"]


# --- the setting -----------------------------------------------------------------------------------------------------


def test_auto_times_types_without_rates_alone(host, monkeypatch):
    monkeypatch.setattr(rates, "why_none", lambda dtype: "new" if dtype == torch.float64 else None)
    conv = layer()
    assert not isinstance(function(conv, X), Trial)
    assert runs_of(host, conv, X) == ["quick"]
    run_right(layer(dtype=torch.float64), X.double())
    samples = host.clock.samples
    assert samples
    sf.benchmark = True
    run_right(conv, X)
    assert host.clock.samples > samples
    assert runs_of(host, conv, X) == ["slow"]
    sf.benchmark = False
    assert runs_of(host, conv, X) == ["slow"]  # what was measured is kept
    assert runs_of(host, conv, X[:1].contiguous()) == ["quick"]
    with sf.benchmarking():
        assert "slow" in runs_of(host, conv, X[:1].contiguous())


def test_the_number_of_threads_is_part_of_what_is_timed(host):
    conv, threads = layer(), torch.get_num_threads()
    run_right(conv, X)
    samples = host.clock.samples
    try:
        torch.set_num_threads(threads + 1)
        run_right(conv, X)
        assert host.clock.samples > samples
    finally:
        torch.set_num_threads(threads)


def test_explain_says_what_was_measured(host):
    conv = layer()
    before = sf.explain(conv, X)
    assert before.passes[0].measured is None
    assert "an estimated 1,000.00 ms" in str(before)
    run_right(conv, X)
    after = sf.explain(conv, X)
    assert after.passes[0].measured == pytest.approx(1e-3)
    assert "forward          slow/fold" in str(after)
    assert "measured: 1.00 ms" in str(after)
    assert after.passes[1].measured is None
    assert "3.00 ms (measured)" in after.details()
    assert "(estimated)" in after.details()
    assert "known answer" not in after.details()


# --- which machines have rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiles", "halves", "vectors", "unknown"),
    [
        (False, False, "AVX512", ()),
        (False, False, "AVX2", ()),
        (True, False, "AVX512", ("bfloat16",)),
        (False, True, "AVX512", ("float16",)),
        (False, False, "NEON", ("float32", "float64", "bfloat16", "float16")),
    ],
)
def test_what_has_no_rates(monkeypatch, tiles, halves, vectors, unknown):
    monkeypatch.setattr(cpu_rates, "_tiles_of_torch", tiles)
    plain = {k: {n: r for n, r in of.items() if "tiles" not in n} for k, of in cpu_rates.RATES.items()}
    monkeypatch.setattr(cpu_rates, "RATES", plain)
    monkeypatch.setattr(torch_conv, "multiplies", lambda dtype: halves)
    monkeypatch.setattr(cpu_rates, "capability", lambda: vectors)
    monkeypatch.setattr(cpu_rates, "torch_capability", lambda: vectors)
    found = {
        d: rates.why_none.__wrapped__(getattr(torch, d))
        for d in ("float32", "float64", "bfloat16", "float16")
    }
    assert {d for d, why in found.items() if why} == set(unknown)
    assert all("nothing was measured" in why for why in found.values() if why)


# --- times that outlive the process ----------------------------------------------------------------------------------


def test_choices_are_kept_where_a_folder_is_named(host, monkeypatch, tmp_path):
    monkeypatch.setenv("SYMCONV_FAST_CACHE", str(tmp_path / "new"))
    conv = layer()
    run_right(conv, X)
    samples = host.clock.samples
    (path,) = (tmp_path / "new").iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(row["seconds"]) for row in rows] == [{"quick/fold", "slow/fold", "reference/expand"}]
    path.write_text(path.read_text() + '{"key": "cut off')
    clear()  # as in a fresh process
    assert runs_of(host, conv, X) == ["slow"]
    assert host.clock.samples == samples
    run_right(conv, X[:1].contiguous())
    assert host.clock.samples > samples
    with monkeypatch.context() as patch:
        patch.setattr(choices.machine, "identity", lambda: {"torch": "another"})
        clear()
        samples = host.clock.samples
        run_right(conv, X)
        assert host.clock.samples > samples  # not by those of another torch
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("value", ["", "0", "off"])
def test_nothing_is_kept_unasked(host, monkeypatch, tmp_path, value):
    monkeypatch.setenv("SYMCONV_FAST_CACHE", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run_right(layer(), X)
    assert host.clock.samples
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_keeps_nothing(host, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SYMCONV_FAST_CACHE", str(tmp_path / "file"))
    conv = layer()
    run_right(conv, X)
    assert runs_of(host, conv, X) == ["slow"]
