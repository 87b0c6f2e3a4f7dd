# Candidates on a CPU are timed where nothing was measured: fake backends and a fake clock, then the native kernels.

from __future__ import annotations

import json
import threading

import pytest
import torch
from trials import X, clear, host, layer, off_by_one, right, run_right, runs_of, warned

import symconv_fast as sf
from symconv_fast import dispatch, native, ops, settings
from symconv_fast.backends import cpu, torch_conv
from symconv_fast.backends.cpu import rates as cpu_rates
from symconv_fast.trial import Trial, choices, modes, rates, timing, verdicts

__all__ = ["host"]  # a fixture

needs_native = pytest.mark.skipif(native.module is None, reason="the native module was not built")


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


def test_torchs_convolution_is_among_them_however_bad_its_estimate(host):
    host.torchs.cost, host.torchs.seconds = 1e-4, 100.0
    conv = layer()
    run_right(conv, X)
    assert runs_of(host, conv, X) == ["reference"]


@pytest.mark.parametrize(("estimate", "timed"), [(8.9, True), (9.1, False), (float("inf"), True)])
def test_estimates_may_be_off_by_three_either_way(host, estimate, timed):
    host.slow.seconds = estimate
    conv = layer()
    run_right(conv, X)
    assert runs_of(host, conv, X) == (["slow"] if timed else ["reference"])
    assert bool(host.slow.ran) == timed


def test_all_three_passes_are_chosen_by_themselves(host):
    conv, x = layer(), X.clone().requires_grad_()
    gradient = torch.randn(2, 16, 21, 20)
    for _ in range(2):
        grads = torch.autograd.grad(conv(x), [x, conv.weight], gradient)
    wanted = torch.autograd.grad(right(conv, x), [x, conv.weight], gradient)
    for ours, torchs in zip(grads, wanted):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-3)
    host.forget_runs()
    torch.autograd.grad(conv(x), [x, conv.weight], gradient)
    assert [op for op, _ in host.slow.ran] == ["fprop", "dgrad", "wgrad"]
    assert host.quick.ran == host.torchs.ran == []


def test_what_the_timing_runs_return_goes_nowhere(host):
    """Everything that is computed while the clock runs is NaN."""

    def poisoned(result, *_):
        return result.fill_(float("nan")) if host.clock.running else result

    for fake in (host.quick, host.slow, host.torchs):
        fake.damage = poisoned
    run_right(layer(), X)
    assert host.clock.samples


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


def test_the_quickest_of_several_calls_counts():
    """Others that use the machine make some calls take longer, the first one among them."""
    clock = timing.HostClock()
    turns = {"shaky": iter([9e-3, 9e-3, 1e-3, *[9e-3] * 50]), "steady": iter([1.2e-3] * 50)}
    clock.seconds = lambda call, calls: call()
    functions = {name: lambda turn=turn: next(turn) for name, turn in turns.items()}
    found = timing.race(functions, clock, lambda *_: pytest.fail("raised"), timing.QUICKEST._replace())
    assert found["steady"] == 1.2e-3
    assert found["shaky"] == 9e-3  # seven times as slow in two calls: not asked again
    for shaky in ([9e-3, 2e-3, 1e-3], [1e-3, 1.3e-3, 9e-3]):  # in a later round, and in the first one of all
        turns = {"shaky": iter([*shaky, *[9e-3] * 50]), "steady": iter([1.2e-3] * 50)}
        functions = {name: lambda turn=turn: next(turn) for name, turn in turns.items()}
        found = timing.race(functions, clock, lambda *_: pytest.fail("raised"), timing.QUICKEST)
        assert found == {"shaky": 1e-3, "steady": 1.2e-3}


def test_with_one_thread_time_of_others_does_not_count(monkeypatch):
    monkeypatch.setattr(timing.time, "thread_time", iter([1.0, 1.5]).__next__)
    monkeypatch.setattr(timing.time, "perf_counter", iter([1.0, 3.0]).__next__)
    for threads, seconds in ((1, 0.25), (2, 1.0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert timing.HostClock().seconds(lambda: None, 2) == seconds


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


def test_a_compiled_layer_is_timed_when_it_runs(host, monkeypatch):
    conv = layer()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), right(conv, X))
        assert host.clock.samples
        host.forget_runs()
        torch.testing.assert_close(compiled(X), right(conv, X))
    assert [f.NAME for f in (host.quick, host.slow, host.torchs) if f.ran] == ["slow"]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert modes.allowed(torch.device("cpu"), (X,)) == modes.NOTHING


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
    conv, inside, go_on = layer(), threading.Event(), threading.Event()
    most, first = [], threading.current_thread()

    def during():
        most.append(host.clock.running)
        if threading.current_thread() is not first and not inside.is_set():
            inside.set()
            assert go_on.wait(60)

    host.clock.during = during
    worker = threading.Thread(target=run_right, args=(conv, X))
    worker.start()
    assert inside.wait(60)
    samples = host.clock.samples
    other = X[:, :, :7].contiguous()
    assert runs_of(host, conv, X) == runs_of(host, conv, other) == ["quick"]
    assert host.clock.samples == samples
    go_on.set()
    worker.join(60)
    run_right(conv, other)
    assert runs_of(host, conv, X) == runs_of(host, conv, other) == ["slow"]
    assert max(most) == 1


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


# --- the native kernels ----------------------------------------------------------------------------------------------


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
