"""The choice of backends, pinning, the environment, explain(), and the self-check."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

import symconv_fast as sf
from symconv_fast import __main__ as report
from symconv_fast import dispatch, settings
from symconv_fast.backends import reference
from symconv_fast.backends.cpu import rates, torch_cost
from symconv_fast.problem import OPS

ROOT = Path(__file__).parent.parent


def layer_and_input(batch: int = 2) -> tuple[sf.SymmetricConv2d, torch.Tensor]:
    layer = sf.SymmetricConv2d(4, 16, 3, padding=1, symmetry={"h": 4, "hv": 8})
    return layer, torch.randn(batch, 4, 6, 7, requires_grad=True)


class Fake(types.ModuleType):
    """A backend that is the reference in disguise and remembers what it ran."""

    NAME = "fake"
    ALGORITHMS = ("fold", "direct")

    def __init__(self, seconds: float = 1e-9) -> None:
        super().__init__("fake")
        self.seconds = seconds
        self.ran: list[tuple[str, str]] = []
        self.refused: dict[tuple[str, str], str] = {}

    def can_run(self, problem, op, algorithm):
        return self.refused.get((op, algorithm))

    def estimate(self, problem, op, algorithm):
        return self.seconds * (2 if algorithm == "direct" else 1)

    def __getattr__(self, op):
        if op not in OPS:
            raise AttributeError(op)

        def run(problem, algorithm, *tensors):
            self.ran.append((op, algorithm))
            return getattr(reference, op)(problem, "expand", *tensors)

        return run


@pytest.fixture
def fake(monkeypatch) -> Fake:
    """The fake beside the reference, with empty caches before and after."""
    module = Fake()
    modules = {"fake": module, "reference": reference}
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(modules))
    monkeypatch.setattr(dispatch, "load", modules.__getitem__)
    clear()
    yield module
    clear()


def clear() -> None:
    dispatch._choose.cache_clear()
    sf.ops.forget_plans()


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


# --- environment and installation ----------------------------------------------------------------------------------

SCRIPT = """
import sys
import warnings
{before}
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import torch, symconv_fast as sf
    layer = sf.SymmetricConv2d(4, 16, 3, symmetry="hv")
    for _ in range(2):
        try:
            layer(torch.randn(1, 4, 6, 6)).sum().backward()
        except Exception as error:
            print(type(error).__name__, error)
    report = sf.explain(layer, torch.randn(1, 4, 6, 6))
    print("runs", *(p.backend for p in report.passes))
    print(report)
print("warnings", *(str(w.message) for w in caught if "symconv" in str(w.message)), sep="|")
"""
HIDE_NATIVE = 'sys.modules["symconv_fast._cpu"] = None'  # makes the import fail, as if it had not been built


def run_script(before: str = "", check: bool = True, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0 or not check, found.stderr
    return found.stdout


def test_environment_pins():
    assert "runs reference reference reference" in run_script(SYMCONV_FAST_BACKEND="reference")
    assert "runs reference reference reference" in run_script(
        SYMCONV_FAST_BACKEND="reference", SYMCONV_FAST_ALGORITHM="expand"
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BACKEND": "quantum"}, "SYMCONV_FAST_BACKEND: backend 'quantum' does not exist"),
        ({"ALGORITHM": "fast"}, "SYMCONV_FAST_ALGORITHM: algorithm 'fast' does not exist"),
        (
            {"BACKEND": "quantum", "ALGORITHM": "expand"},
            "SYMCONV_FAST_BACKEND: backend 'quantum' does not exist",
        ),
        (
            {"BACKEND": "reference", "ALGORITHM": "fold"},
            "SYMCONV_FAST_ALGORITHM: algorithm 'fold' does not exist",
        ),
    ],
)
def test_environment_with_a_wrong_name_says_which_variable(variables, message):
    out = run_script(**{f"SYMCONV_FAST_{name}": value for name, value in variables.items()}, check=False)
    assert f"ValueError {message}; there are: " in out


def test_an_unknown_instruction_set_gets_a_warning():
    pytest.importorskip("symconv_fast._cpu", reason="the native module is not built")
    out = run_script(SYMCONV_FAST_ISA="avx1024")
    assert (
        "SYMCONV_FAST_ISA='avx1024' has no effect; give one of baseline, avx2, avx512, avx512_bf16, amx_bf16"
        in out
    )
    for name in ("baseline", ""):
        assert "has no effect" not in run_script(SYMCONV_FAST_ISA=name)


def test_without_the_native_module_it_works_and_says_so_once():
    out = run_script(HIDE_NATIVE)
    assert "runs reference reference reference" in out
    messages = [line for line in out.splitlines() if line.startswith("warnings|")]
    assert len(messages) == 1
    assert messages[0].count("CPU layers run on the reference backend") == 1
    assert messages[0].count("pip install --no-build-isolation .") == 1
    assert (
        "no gain expected: torch's convolution runs, on filters that are expanded in the call; native module missing: "
        in out
    )


@pytest.mark.parametrize(
    "use",
    [
        "sf.SymmetricConv2d(4, 8, 3, symmetry='h')(x)",
        "with sf.backend('reference'): sf.SymmetricConv2d(4, 8, 3, symmetry='h')(x)",
        "with sf.backend('distinct', 'copy'): sf.SymmetricConv2d(4, 8, (3, 1), symmetry='h')(x).sum().backward()",
        "torch.compile(sf.SymmetricConv2d(4, 8, 3, symmetry='h'), backend='aot_eager')(x)",
        "sf.SymmetricConv2d(4, 8, 3, symmetry='h').double()(x[:0].double())",
        "sf.ops.wgrad(x, x, (2, 4, 1, 1), (1, 2), (1, 1), (0, 0), (1, 1), (0, 0), False, 1, False)",
        "print(sf.explain(sf.SymmetricConv2d(4, 8, 3, symmetry='h'), x))",
    ],
    ids=["eager", "pinned", "another pin", "compiled", "empty", "gradient alone", "explain"],
)
def test_whatever_runs_first_says_once_that_the_native_module_is_missing(use):
    code = f"import sys; {HIDE_NATIVE}\nimport torch, symconv_fast as sf\nx = torch.ones(2, 4, 5, 5)\n"
    code += f"def use():\n    {use}\nuse(); use()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("CPU layers run on the reference backend") == 1, done.stderr
    assert ("; build it, where a C++ compiler is" in done.stdout) == ("explain" in use)


def test_missing_kernels_of_a_gpu_are_said(monkeypatch):
    """Of every backend that has some for the device; nothing where one of them is there."""
    layer, x = layer_and_input()
    problem = dataclasses.replace(sf.explain(layer, x).problem, device="cuda")
    there = {}
    load = dispatch.load

    def load_or_not(name):
        return there.get(name, f"{name} is gone") if name in ("cuda", "triton") else load(name)

    monkeypatch.setattr(dispatch, "load", load_or_not)
    no_gain = "no gain expected: torch's convolution runs, on filters that are expanded in the call"
    clear()
    assert sf.explain(problem).verdict == f"{no_gain}; kernels missing: cuda is gone; triton is gone"
    assert dispatch.lacking("cpu") == dispatch.lacking("xpu") == []
    there["triton"] = types.SimpleNamespace(NAME="triton", ALGORITHMS=())
    clear()
    assert dispatch.lacking("cuda") == []
    assert sf.explain(problem).verdict == no_gain
    clear()


def test_the_report_says_clearly_that_the_native_module_is_missing():
    code = f"import sys; {HIDE_NATIVE}\nfrom symconv_fast import __main__ as m; m.print_versions()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_cpu: MISSING, so that CPU layers run on the reference backend: " in done.stdout


def test_the_triton_backend_is_not_imported_for_a_layer_on_the_cpu():
    """Importing it takes as long as a thousand small layers; here as if torch had a GPU."""
    code = (
        "import sys, torch; torch.version.cuda, torch.cuda.is_available = '13.0', lambda: True; "
        "import symconv_fast as sf; layer, x = sf.SymmetricConv2d(4, 8, 3, symmetry='h'), torch.ones(1, 4, 5, 5); "
        "layer(x).sum().backward(); print(sf.explain(layer, x).details()); "
        "print('symconv_fast.backends.triton.backend' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "False"
    assert re.search(r"forward +triton +- .*the tensors are on the CPU", found.stdout)


@pytest.mark.skipif("cpu" not in dispatch.available(), reason="the native CPU module is not built")
def test_products_in_tiles_have_rates_of_their_own_or_none(monkeypatch):
    """bfloat16 in AMX tiles is no multiple of what was measured without: unknown kernels are not chosen."""
    from symconv_fast.backends import cpu
    from symconv_fast.backends.cpu import cost, rates, torch_cost

    layer = sf.SymmetricConv2d(64, 64, 3, symmetry="h").bfloat16()
    p = layer.problem(torch.empty(1, 64, 28, 28).bfloat16())
    for name, value in (
        ("_isa", "amx_bf16"),
        ("_maker", "Intel"),
        ("_torchs", "AVX512"),
        ("_tiles_of_torch", True),
    ):
        monkeypatch.setattr(rates, name, value)
    known = rates.RATES["AVX512 Intel"]
    fold = cost.place(p, "fprop", "fold", cpu.select(p, "fprop", "fold"))
    for place in (fold, torch_cost.place(p, "fprop")):
        assert rates.find(place) is known[f"bfloat16 tiles {place.kind}"]
    assert cpu.estimate(p, "fprop", "fold") < math.inf
    others = {kind: of for kind, of in known.items() if not kind.startswith("bfloat16 tiles")}
    monkeypatch.setitem(rates.RATES, "AVX512 Intel", others)
    assert cpu.estimate(p, "fprop", "fold") == math.inf


VECTORS = """
import warnings
import torch, symconv_fast as sf
from symconv_fast import _cpu
from symconv_fast.backends import cpu
from symconv_fast.backends.cpu import cost, rates, torch_cost
bytes_of = {"avx2": 32, "baseline": 16}.get(_cpu.isa(), 64)
x = torch.empty(1, 4, 24, 24)
for filters in (4, 8, 16):
    p = sf.SymmetricConv2d(4, filters, 3, symmetry="h").problem(x)
    assert cpu.select(p, "wgrad", "fold").lanes == bytes_of // 4
    fills = filters % (bytes_of // 4) == 0
    assert (cpu.can_run(p, "wgrad", "direct") is None) == fills
of_torch = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16)
assert torch_cost.counts(p)["pixels/multiply_adds"] == p.macs_dense * 4 / of_torch
fold = cost.place(p, "fprop", "fold", cpu.select(p, "fprop", "fold"))
for place, used in ((torch_cost.place(p, "fprop"), of_torch), (fold, bytes_of)):
    vectors = "AVX512" if used == 64 else "AVX2"
    assert rates.find(place) is rates.RATES[rates.measured_as(vectors)][place.kind]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        cpu.estimate(p, "fprop", "fold")
print(_cpu.isa(), *(str(w.message) for w in caught), sep="|")
"""


@pytest.mark.skipif("cpu" not in dispatch.available(), reason="the native CPU module is not built")
@pytest.mark.parametrize(
    ("isa", "torchs"), [("", ""), ("", "avx2"), ("", "default"), ("avx2", ""), ("baseline", "")]
)
def test_native_kernels_are_estimated_by_their_own_vectors_and_torchs_by_torchs(isa, torchs):
    """Either can be lowered without the other. Vectors that nothing was measured with get a warning, once."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SYMCONV_FAST_ISA": isa,
        "ATEN_CPU_CAPABILITY": torchs,
    }
    if not torchs:
        del environment["ATEN_CPU_CAPABILITY"]
    found = subprocess.run(
        [sys.executable, "-c", VECTORS], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    used, *warned = found.stdout.strip().split("|")
    unknown = [name for name, lowest in (("baseline", used), ("DEFAULT", torchs.upper())) if name == lowest]
    assert len(warned) == bool(unknown)
    assert all(name in warned[0] for name in unknown)


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


def test_pinning_a_backend_that_is_not_there_raises_with_the_reason():
    out = run_script(HIDE_NATIVE, SYMCONV_FAST_BACKEND="cpu")
    assert out.count("RuntimeError") == 2
    assert "cannot run fprop here: cpu/-: the cpu backend is not available in this installation" in out
    assert "runs None None None" in out


# --- explain -------------------------------------------------------------------------------------------------------


def test_explain_shows_choices_reasons_and_costs(fake):
    layer, x = layer_and_input()
    fake.refused = {("dgrad", "fold"): "it rains", ("dgrad", "direct"): "it snows"}
    found = sf.explain(layer, x)
    assert fake.ran == []  # nothing was computed
    assert [(p.op, p.backend, p.algorithm) for p in found.passes] == [
        ("fprop", "fake", "fold"), ("dgrad", "reference", "expand"), ("wgrad", "fake", "fold"),
    ]  # fmt: skip
    text, details = str(found), found.details()
    for shown in (text, details):
        assert shown.startswith(found.verdict + "\n")
        assert "convolution (2, 4, 6, 7) -> (2, 16, 6, 7), kernel (3, 3), float32 on cpu, contiguous" in shown
        assert "8 rows of weight for 16 filters" in shown
        assert f"{2 * 42 * 8 * 4 * 9:,} folded, {2 * 42 * 16 * 4 * 9:,} dense" in shown
        assert f"{4 * (2 * 4 * 42 + 2 * 16 * 42 + 8 * 4 * 9):,} bytes" in shown
    assert "rains" not in text
    assert re.search(
        "^input gradient +torch's convolution  an estimated .*, torch's layer ", text, re.MULTILINE
    )
    rows = [line.split() for line in details.splitlines()[4:]]
    assert ["input", "gradient", "fake", "fold", "it", "rains"] in rows
    assert ["input", "gradient", "fake", "direct", "it", "snows"] in rows
    assert sum("chosen" in row for row in rows) == 3
    assert len(rows) == 9


def torchs_seconds(fake: Fake, monkeypatch, seconds: float) -> None:
    """Make torch's layer take so long a pass, and the fake a second."""
    fake.seconds = 1.0
    monkeypatch.setattr(reference, "torch_seconds", lambda problem, op: seconds)


TIMES = "an estimated {} times as fast as torch's layer forward, {} times in a training step (limit 2{})"


@pytest.mark.parametrize(
    ("seconds", "refused", "algorithms", "verdict"),
    [
        (1.9, {}, ("fold",), "runs on fake/fold forward and backward: " + TIMES.format("1.9", "1.9", "")),
        (
            1.9,
            {("wgrad", "fold"): "no"},
            ("fold", "other"),
            "runs on fake/fold forward, fake/fold and fake/other backward: " + TIMES.format("1.9", "1.9", ""),
        ),
        (
            1.9,
            {("dgrad", "fold"): "no"},
            ("fold",),
            "runs on fake/fold forward, torch's convolution and fake/fold backward: "
            + TIMES.format("1.9", "1.5", ""),
        ),
        (
            3.0,
            {},
            ("fold",),
            "runs on fake/fold forward and backward: "
            + TIMES.format("3.0", "3.0", "; torch's convolution is slow here"),
        ),
        (
            3.0,
            {},
            ("winograd",),
            "runs on fake/winograd forward and backward: "
            + TIMES.format("3.0", "3.0", "; minimal filtering adds to it"),
        ),
        (
            0.5,
            {},
            ("fold",),
            "no gain expected: torch's convolution runs, on filters that are expanded in the call",
        ),
    ],
)
def test_the_verdict_says_what_runs_and_how_fast(fake, monkeypatch, seconds, refused, algorithms, verdict):
    torchs_seconds(fake, monkeypatch, seconds)
    fake.refused, fake.ALGORITHMS = refused, algorithms
    assert sf.explain(*layer_and_input()).verdict == verdict


def test_the_verdict_says_why_torchs_convolution_runs(fake, monkeypatch):
    layer, x = layer_and_input()
    no_gain = "no gain expected: torch's convolution runs, on filters that are expanded in the call"
    with sf.backend("reference"):
        assert sf.explain(layer, x).verdict == f"{no_gain} (backend() asks for it)"
    assert sf.explain(layer, x[:0]).verdict == "nothing to compute: input, weight or output is empty"
    torchs_seconds(fake, monkeypatch, 0.5)
    free = sf.SymmetricConv2d(4, 16, 3)
    assert sf.explain(free, x).verdict == f"{no_gain} (nothing is tied)"
    # A device without rates: the choice is made, but nothing is said of its speed.
    monkeypatch.setattr(fake, "estimate", lambda *_: float("inf"))
    with sf.backend("fake"):
        assert sf.explain(layer, x).verdict.endswith(": its speed is not estimated on this kind of device")


def test_explain_under_a_pin_that_cannot_run(fake):
    layer, x = layer_and_input()
    fake.refused = {("fprop", "fold"): "closed"}
    with sf.backend("fake", algorithm="fold"):
        found = sf.explain(layer, x)
    assert found.passes[0].backend is None
    assert found.passes[1].backend == "fake"
    assert str(found).startswith("cannot run the forward pass: backend() pins")
    assert "forward          error: backend() pins" in found.details()


@pytest.mark.parametrize("channels_last", [False, True])
def test_explain_describes_the_problems_that_run(fake, monkeypatch, channels_last):
    """The problem of each pass, layouts included, is the one that a backend gets."""
    layer, x = layer_and_input()
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    asked = {}
    monkeypatch.setattr(fake, "can_run", lambda problem, op, algorithm: asked.update({op: problem}))
    sf.explain(layer, x)
    explained = dict(asked)
    clear()
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert asked == explained
    assert explained["fprop"].channels_last == channels_last


def test_explain_of_every_kind_of_layer():
    padded = sf.SymmetricConv2d(4, 16, 4, padding="same", padding_mode="circular", symmetry="hv")
    assert sf.explain(padded, torch.randn(4, 6, 7)).problem.output_shape == (1, 16, 6, 7)
    up = sf.SymmetricConvTranspose3d(4, 16, 3, stride=2, symmetry="hvz")
    found = sf.explain(up, torch.randn(2, 4, 3, 3, 3))
    assert "transposed convolution (2, 4, 3, 3, 3) -> (2, 16, 7, 7, 7)" in str(found)
    assert str(sf.explain(found.problem)) == str(found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sf.explain(padded, torch.randn(4, 6, 7)).problem.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="needs the input"):
        sf.explain(up)


@pytest.mark.parametrize("layer", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float64, torch.bfloat16])
def test_explain_raises_what_the_call_raises(layer, dtype):
    layer, x = layer(4, 8, 3, symmetry="h"), torch.ones(1, 4, 6, 6).to(dtype)
    with pytest.raises((TypeError, RuntimeError)) as called:
        layer(x)
    with pytest.raises(type(called.value), match=re.escape(str(called.value))):
        sf.explain(layer, x)


NOTHING = [
    (ndim, transposed, batch, channels)
    for ndim in (1, 2, 3)
    for transposed in (False, True)
    for batch, channels in ((0, 4), (2, 0), (0, 0))
    if channels or not transposed  # as torch, which refuses such a weight
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("ndim", "transposed", "batch", "channels"), NOTHING)
def test_explain_of_nothing_to_compute(ndim, transposed, batch, channels, last):
    cls = getattr(sf, f"SymmetricConv{'Transpose' * transposed}{ndim}d")
    x = torch.randn(batch, channels, *(9,) * ndim)
    if last and ndim > 1:
        x = x.to(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        layer = cls(channels, 16, 3, symmetry="h")
    for pin in ((None, None), ("distinct", "copy")):
        with sf.backend(*pin):
            found, y = sf.explain(layer, x), layer(x)
        assert found.verdict == "nothing to compute: input, weight or output is empty"
        assert y.shape == found.problem.output_shape
        assert "torch's convolution" not in str(found)
        for one in found.passes:
            assert (one.backend, one.algorithm, one.error) == ("reference", "expand", None)
            able = [c for c in one.candidates if c.reason is None]
            assert [(c.backend, c.seconds) for c in able] == [("reference", 0.0)]
            reasons = {c.reason for c in one.candidates if c.algorithm != "-"}
            assert reasons == {None, "there is nothing to compute, and the reference fills the result"}
        assert "None" not in found.details()


@pytest.mark.parametrize(
    "options",
    [{"dilation": 16385, "padding": 16385}, {"stride": 16385, "padding": 16384}, {"padding": 16385}],
)
def test_explain_of_steps_too_far_for_kernels(options):
    layer, x = sf.SymmetricConv1d(4, 8, 3, symmetry="h", **options), torch.randn(1, 4, 100)
    why = "strides (multiplied), paddings and dilations above 16384 always go to the reference"
    verdict = f"no gain expected: torch's convolution runs, on filters that are expanded in the call; {why}"
    clauses = {
        ("distinct", "copy"): ", whatever backend() asks for",
        ("distinct", None): ", whatever backend() asks for",
        (None, "fold"): ", whatever backend() asks for",
        ("reference", None): "",
        (None, "expand"): "",
        (None, None): "",
    }
    for pin, clause in clauses.items():
        with sf.backend(*pin):
            found = sf.explain(layer, x)
        assert found.verdict == verdict + clause
        for one in found.passes:
            assert (one.backend, one.algorithm) == ("reference", "expand")
            assert one.seconds > 0
            assert {c.reason for c in one.candidates if c.algorithm != "-"} == {None, why}
            assert [c.backend for c in one.candidates if c.reason is None] == ["reference"]


def test_explain_takes_no_other_layer():
    with pytest.raises(TypeError, match=r"SymmetricConv1d/2d/3d, SymmetricConvTranspose.*, got Conv2d"):
        sf.explain(torch.nn.Conv2d(4, 8, 3), torch.ones(1, 4, 6, 6))


def test_columns_of_explain_line_up(fake):
    fake.ALGORITHMS = ("fold", "an_algorithm_with_a_long_name")
    header, *rows = sf.explain(*layer_and_input()).details().splitlines()[3:]
    start = header.index("estimate")
    assert all(row[start - 1] == " " and row[start] != " " for row in rows)


# --- python -m symconv_fast ----------------------------------------------------------------------------------------


def test_self_check_passes_here(capsys):
    assert report.main() == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("PASS  ")]
    ways = [line.removeprefix("PASS  ").split(":")[0] for line in lines]
    assert len(set(ways)) == len(ways)
    assert all(re.search(r": \d+ problems?, worst relative error \S+$", line) for line in lines)
    for backend, module in dispatch.available().items():
        for op in OPS:
            for dtype in ("float32", "float64", "bfloat16", "float16"):
                able = (backend, op) != ("distinct", "fprop") or not dtype.endswith("16")
                assert any(f"{backend}/{a} {op} {dtype}" in ways for a in module.ALGORITHMS) == able
    assert "FAIL" not in out
    assert f"torch {torch.__version__}" in out


def test_self_check_runs_every_algorithm():
    ran = {(*check.way.split()[:2], check.problem) for check in report.self_check()}
    for backend, module in dispatch.available().items():
        assert {way.split("/")[1] for way, *_ in ran if way.startswith(f"{backend}/")} == set(
            module.ALGORITHMS
        )
        for op in OPS:
            problems = {p.split(",")[0] for way, o, p in ran if way.startswith(f"{backend}/") and o == op}
            able = {"one tap"} if backend == "distinct" else {case.title for case in report._CASES}
            assert problems == able


def test_self_check_prints_every_check_when_asked(fake, capsys):
    assert report.main(["--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for layout in ("contiguous", "channels last"):
        wanted = f"PASS  fake/fold dgrad bfloat16, depthwise, {layout}: relative error"
        assert sum(line.startswith(wanted) for line in lines) == 1


@pytest.mark.parametrize("damage", [1e-3, float("nan")])
def test_self_check_fails_when_one_number_is_wrong(fake, capsys, damage):
    def broken(problem, algorithm, *tensors):
        grad = reference.wgrad(problem, "expand", *tensors)
        if problem.groups == 2 and problem.dtype == torch.float32 and problem.channels_last:
            grad[(0,) * grad.dim()] += damage * grad.abs().max()
        return grad

    fake.wgrad = broken
    assert report.main() == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert len(failed) == len(fake.ALGORITHMS)
    for line, algorithm in zip(failed, fake.ALGORITHMS):
        start = f"FAIL  fake/{algorithm} wgrad float32: 1 of 23 problems, the worst: groups, channels last: relative"
        assert line.startswith(start)
    assert re.fullmatch(r"2 of \d+ checks failed", lines[-1])


def test_self_check_survives_a_backend_that_raises(fake, capsys):
    def broken(*_):
        raise MemoryError("no room\nat all")

    fake.fprop = broken
    assert report.main(["--verbose"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL  fake/direct fprop float64, hvz, contiguous: MemoryError: no room" in lines
    assert any(
        re.match("FAIL  fake/direct fprop float64: 23 of 23 .*: MemoryError: no room$", line)
        for line in lines
    )


def test_self_check_as_a_program():
    found = subprocess.run(
        [sys.executable, "-m", "symconv_fast"],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.fullmatch(r"all \d+ checks passed", found.stdout.splitlines()[-1])


@pytest.mark.skipif("cpu" not in dispatch.available(), reason="the native CPU module is not built")
def test_quadruples_filter_along_a_tied_axis_with_f4_alone():
    layer = sf.SymmetricConv2d(32, 32, 3, padding=1, symmetry="hv")
    cpu, able = dispatch.available()["cpu"], {}
    for level in ("f2", "f4"):
        sf.allow_winograd = level
        try:
            p = sf.explain(layer, torch.empty(1, 32, 16, 16)).problem
            able[level] = [
                cpu.can_run(p, op, algorithm) is None
                for op, algorithm in (
                    ("fprop", "scatter_winograd"),
                    ("dgrad", "winograd"),
                    ("wgrad", "winograd"),
                )
            ]
            reason = str(cpu.can_run(p, "wgrad", "winograd"))
        finally:
            sf.allow_winograd = "f2"
        assert "no axis is free of ties" in reason
    assert able == {"f2": [False, False, False], "f4": [True, True, False]}
