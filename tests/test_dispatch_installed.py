"""The choice by what is installed and what the environment says, mostly in processes of their own."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_backend import clear, layer_and_input

import symconv_fast as sf
from symconv_fast import dispatch

ROOT = Path(__file__).parent.parent

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


def test_pinning_a_backend_that_is_not_there_raises_with_the_reason():
    out = run_script(HIDE_NATIVE, SYMCONV_FAST_BACKEND="cpu")
    assert out.count("RuntimeError") == 2
    assert "cannot run fprop here: cpu/-: the cpu backend is not available in this installation" in out
    assert "runs None None None" in out
