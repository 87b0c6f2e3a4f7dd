# The build of the native modules: what is compiled, what is said, and what is not compiled again.

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import types
from pathlib import Path

import pytest
import torch
from test_packaging import LAYER, ROOT, ask_setup, python, source

import symconv_fast
from symconv_fast import native
from tools import native_build

__all__ = ["source"]  # a fixture

COMPILER = """#!/bin/sh
# Takes `-o` and `-MF`, and fails where a source says so.
while [ $# -gt 0 ]; do
  case "$1" in -o) out=$2; shift ;; -MF) rule=$2; shift ;; *.cpp) source=$1 ;; esac
  shift
done
grep '^warning' "$source" >&2
if grep -q '^error' "$source"; then printf '%s: error: line 1\nline 2\n' "$source" >&2; exit 3; fi
echo compiled >"$out"
echo "$out: $source $(dirname "$source")/common.h" >"$rule"
"""


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    """Commands of a compiler of two lines' worth, by source; `common.h` is read by all."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    (tmp_path / "common.h").write_text("")
    commands = {}
    for name in ("a", "b", "c"):
        source = tmp_path / f"{name}.cpp"
        source.write_text("")
        commands[str(source)] = [str(compiler), "-c", str(source), "-o", str(tmp_path / f"{name}.o")]
    return commands


def test_compiling_takes_one_quiet_line_a_file(sources, capfd):
    native_build.run(list(sources.items()))
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert re.fullmatch(r"compiling 3 of 3 files, \d+ at a time", lines[0])
    assert sorted(line.split()[1] for line in lines[1:4]) == sorted(sources)
    assert [line.split()[0] for line in lines[1:4]] == ["[1/3]", "[2/3]", "[3/3]"]
    assert all(line.endswith(" s") and len(line) < 200 for line in lines[1:4])
    assert err == ""


def test_what_the_compiler_says_is_shown_in_full(sources, capfd):
    first, _, third = sources
    Path(first).write_text("warning: odd\n")
    Path(third).write_text("error\n")
    with pytest.raises(native_build.CompileError, match="ended with code 3"):
        native_build.run(list(sources.items()))
    err = capfd.readouterr().err
    assert f"{third}: error: line 1\nline 2\n" in err
    native_build.run([(s, c) for s, c in sources.items() if s != third])
    assert "warning: odd" in err + capfd.readouterr().err
    assert not native_build.is_current(sources[third])


def test_only_what_changed_is_compiled_again(sources, tmp_path, capfd):
    native_build.run(list(sources.items()))
    capfd.readouterr()
    native_build.run(list(sources.items()))
    assert capfd.readouterr().out == ""
    later = time.time() + 5
    first, second, third = sources
    os.utime(first, (later, later))
    sources[second].insert(1, "-Wall")
    native_build.run(list(sources.items()))
    out = capfd.readouterr().out
    assert first in out
    assert second in out
    assert third not in out
    os.utime(tmp_path / "common.h", (later + 5, later + 5))
    assert not any(map(native_build.is_current, sources.values()))


def test_for_another_torch_all_is_compiled_again(sources, monkeypatch):
    """Some installers give its headers old times."""
    native_build.run(list(sources.items()))
    assert all(map(native_build.is_current, sources.values()))
    monkeypatch.setattr(native_build, "torch_version", lambda: "torch 0.1")
    assert not any(map(native_build.is_current, sources.values()))


def test_the_longest_files_go_first():
    files = sorted((ROOT / "csrc/cpu").rglob("*.cpp"), key=lambda path: -native_build.cost(str(path)))
    assert files[0].stem.startswith("kernels_avx512")
    kernels = [path.stem.startswith("kernels_") for path in files]
    assert kernels == sorted(kernels, reverse=True)


@pytest.mark.parametrize(
    ("memory", "asked", "jobs"), [(7 << 30, "", 7), (1 << 29, "", 1), (None, "", 64), (1 << 29, "5", 5)]
)
def test_jobs_follow_memory(monkeypatch, memory, asked, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(native_build, "free_memory", lambda: memory)
    monkeypatch.setenv("MAX_JOBS", asked)
    assert native_build.parallel_jobs() == jobs


def test_msvc_is_not_even_asked():
    reason = ask_setup("setup.sys.platform = 'win32'\nprint(setup.why_not_compile())")
    assert "GCC and Clang" in reason


def test_no_flag_ties_the_build_to_this_machine():
    flags = ask_setup("print(*setup.compile_flags())").split()
    assert "-O3" in flags
    assert not [flag for flag in flags if flag.startswith(("-march", "-mtune", "-ffast-math", "-Ofast"))]


def test_version_is_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", symconv_fast.__version__)
    text = (ROOT / "symconv_fast/_version.py").read_text()
    assert f'"{symconv_fast.__version__}"' in text
    assert f"## [{symconv_fast.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_files_that_documents_link_to_are_there():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_source_distribution_is_complete(tmp_path):
    """Whatever the repository tracks, but for its own settings of git and of continuous integration."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and the repository")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        if (ROOT / name).exists():  # else it was removed, and not committed yet
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    done = python(
        "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), cwd=tmp_path / "copy", SYMCONV_FAST_NO_CPU="1"
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.split("/", 1)[-1] for name in packed.getnames()}
    missing = [
        n for n in listed if n not in names and (ROOT / n).exists() and not n.startswith((".git", ".ci/"))
    ]
    assert not missing


def test_the_makefile_names_its_targets():
    text = (ROOT / "Makefile").read_text()
    header = text[: text.index("\n#\n")]
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) - {"all", "FORCE"}
    assert targets == {t for t in targets if re.search(rf"\b{t}\b(?!-)", header)}


def test_make_gpu_needs_no_environment():
    if shutil.which("make") is None:
        pytest.skip("needs make")
    command = ["make", "-n", "gpu", "VENV=no-such-environment", "PYTHON=some-python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "PYTHON=some-python bench/gpu.sh" in done.stdout


def test_the_gpu_script_stops_at_once_without_a_gpu(tmp_path):
    if shutil.which("bash") is None or torch.cuda.is_available():
        pytest.skip("needs bash and no GPU")
    command = ["bash", "bench/gpu.sh", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"bench/gpu.sh: .* no torch that finds a GPU here\..*--rehearse.*\n", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("torch_to_install", "said"),
    [("torch==2.13.0", True), ("torch --index-url here", False), ("torch==1+cpu", False)],
)
def test_make_names_the_cpu_build_where_there_is_no_gpu(tmp_path, torch_to_install, said):
    if shutil.which("make") is None or sys.platform != "linux" or shutil.which("nvidia-smi"):
        pytest.skip("needs make and a Linux without a GPU")
    if any(name.startswith(("nvidia", "kfd", "dxg")) for name in os.listdir("/dev")):
        pytest.skip("there is a GPU")
    (tmp_path / "say.mk").write_text(f"include {ROOT}/Makefile\nsay:\n\t@$(SAY_CPU_BUILD)\n")
    command = ["make", "-s", "-f", str(tmp_path / "say.mk"), "say", f"TORCH={torch_to_install}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert (f'make TORCH="{torch_to_install} --index-url ADDRESS" say' in done.stderr) == said
    assert bool(done.stderr) == said


def test_make_installs_the_package_editable_and_compiles_once():
    if shutil.which("make") is None:
        pytest.skip("needs make")
    command = ["make", "-n", "demo", "VENV=no-such-environment"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (install,) = (line for line in done.stdout.splitlines() if line.endswith(" -e ."))
    assert install.startswith(
        "SYMCONV_FAST_NO_CPU=1 SYMCONV_FAST_NO_CUDA=1 no-such-environment/bin/python -m pip install "
    )
    assert done.stdout.count("build_ext --inplace") == 1
    command = ["make", "-n", "demo", "VENV=", f"PYTHON={sys.executable}"]
    assert "pip install" not in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_make_removes_the_old_module_before_it_builds():
    """If it cannot be built again, no stale one must be tested."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    command = ["make", "-n", "-W", "setup.py", "build/.built", "VENV=", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (build,) = (i for i, line in enumerate(lines) if line.endswith("build_ext --inplace"))
    removed = {word for line in lines[:build] if line.startswith("rm -f ") for word in line.split()[2:]}
    assert {"symconv_fast/_cpu*.so", "symconv_fast/libsymconv_fast.so"} <= removed


def test_pins_of_the_style_tools_agree():
    makefile, hooks, project = (
        (ROOT / n).read_text() for n in ("Makefile", ".pre-commit-config.yaml", "pyproject.toml")
    )
    for tool in ("ruff", "clang-format"):
        pins = {
            version
            for text in (makefile, hooks, project)
            for version in re.findall(rf"{tool}==([\d.]+)", text)
        }
        assert len(pins) == 1, (tool, pins)


def test_a_native_module_that_cannot_be_loaded_is_named(source):
    """One of another torch, say, is not one that nobody has built; layers run all the same."""
    module = f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    (source / "symconv_fast" / module).write_text("no module")
    done = python("-c", LAYER, cwd=source, PYTHONPATH=str(source))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(source / "symconv_fast/__init__.py"), "torch.Size([1, 8, 3, 3])"]
    assert done.stderr.count(f"{module} cannot be loaded: ") == 1
    assert native.HOW_TO_BUILD in done.stderr


def test_a_native_module_of_other_sources_is_refused_in_one_sentence():
    """After `git pull` without a build the names differ, and a call would fail somewhere later."""
    names = dict.fromkeys(native.NAMES)
    current = types.SimpleNamespace(__file__="_cpu.so", **names)
    native.check_age(current)
    if native.module is not None:
        native.check_age(native.module)
    older = types.SimpleNamespace(__file__="_cpu.so", **{n: None for n in names if n != "select"})
    with pytest.raises(ImportError, match=r"'select' is missing.*make build"):
        native.check_age(older)
    newer = types.SimpleNamespace(__file__="_cpu.so", run_direct=None, **names)
    with pytest.raises(ImportError, match="'run_direct' is unknown"):
        native.check_age(newer)
