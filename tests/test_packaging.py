# The install: pure Python where nothing compiles, plain messages, one version, and nothing tuned to the machine.

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
import zipfile
from pathlib import Path

import pytest
import torch

import symconv_fast
from symconv_fast import native
from tools import native_build

ROOT = Path(__file__).resolve().parent.parent
LAYER = """
import sys
# An editable install of the repository in this environment would lend its native module to the copy.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import torch, symconv_fast
print(symconv_fast.__file__)
print(symconv_fast.SymmetricConv2d(4, 8, 3, symmetry="hv")(torch.ones(1, 4, 5, 5)).shape)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a source distribution has, so that building leaves nothing behind in the repository."""
    folder = tmp_path / "source"
    shutil.copytree(
        ROOT / "symconv_fast", folder / "symconv_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / "tools").mkdir()
    for tool in ("native_build.py", *(path.name for path in (ROOT / "tools").glob("cuda_*.py"))):
        shutil.copy(ROOT / "tools" / tool, folder / "tools")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    return folder


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python with some environment variables. It builds no CUDA module, unless they say so."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"SYMCONV_FAST_NO_CUDA": "1", **environment}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def hidden(folder: Path, name: str) -> Path:
    """A folder for PYTHONPATH in which a package cannot be imported."""
    (folder / "hide" / name).mkdir(parents=True)
    (folder / "hide" / name / "__init__.py").write_text(f"raise ImportError('{name} is hidden')\n")
    return folder / "hide"


def ask_setup(question: str) -> str:
    """What setup.py's functions answer, in a process of its own: setuptools wants to be imported first of all."""
    done = python("-c", f"import setup\n{question}", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_old_setuptools_is_told_in_one_sentence(source, tmp_path):
    code = (
        "import sys, runpy; sys.modules['setuptools.command.bdist_wheel'] = None; runpy.run_path('setup.py')"
    )
    done = python("-c", code, cwd=source)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "symconv_fast: setuptools is older than 70.1; upgrade it first: pip install 'setuptools>=70.1'"
    ]


def test_installs_as_pure_python_on_request(source, tmp_path):
    pytest.importorskip("pip", reason="needs pip in this environment")
    target = tmp_path / "target"
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    done = python("-m", "pip", "install", *options, str(source), cwd=tmp_path, SYMCONV_FAST_NO_CPU="1")
    assert done.returncode == 0, done.stderr
    assert not list(target.rglob("*.so"))
    assert (target / "symconv_fast/py.typed").exists()
    used = python("-c", LAYER, cwd=tmp_path, PYTHONPATH=str(target))
    assert used.returncode == 0, used.stderr
    assert str(target) in used.stdout
    assert "torch.Size([1, 8, 3, 3])" in used.stdout
    assert used.stderr.count("reference backend") == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no-such-compiler was not found"),
        ("", "CXX is empty"),
        ("'/no such folder/g++' -O1", "/no such folder/g++ was not found"),
    ],
)
def test_says_once_and_goes_on_without_a_compiler(source, compiler, reason):
    place = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/symconv_fast"
    (source / "build" / place).mkdir(parents=True)
    for stale in (f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}", "libsymconv_fast.so"):
        (source / "build" / place / stale).write_text("of another compiler, or another torch")
    done = python("setup.py", "-q", "build", cwd=source, CXX=compiler, SYMCONV_FAST_NO_CPU="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("installing without the native CPU module") == 1
    assert reason in done.stderr
    assert (source / "build" / place / "dispatch.py").exists()
    assert not list((source / "build").rglob("*.so"))


def test_goes_on_when_compiling_fails(source, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    done = python("setup.py", "-q", "build", cwd=source, CXX=str(compiler), SYMCONV_FAST_NO_CPU="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("installing without the native CPU module") == 1
    assert "failed" in done.stderr


def test_names_no_build_isolation_when_torch_is_missing(source, tmp_path):
    done = python(
        "setup.py",
        "-q",
        "build",
        cwd=source,
        PYTHONPATH=str(hidden(tmp_path, "torch")),
        SYMCONV_FAST_NO_CPU="0",
    )
    assert done.returncode != 0
    assert "pip install --no-build-isolation ." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["build", "bdist_wheel", "dist_info"])
def test_without_torch_a_build_ends_before_it_begins(source, tmp_path, command):
    done = python(
        "setup.py", command, cwd=source, PYTHONPATH=str(hidden(tmp_path, "torch")), SYMCONV_FAST_NO_CPU="0"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("symconv_fast: torch cannot be imported while building (torch is hidden)")
    assert not list(source.rglob("*.egg-info"))


def test_pip_shows_the_sentence_last_when_torch_is_missing(source, tmp_path):
    pytest.importorskip("pip", reason="needs pip in this environment")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(tmp_path / "target")]
    done = python(
        "-m", "pip", "install", *options, str(source), cwd=tmp_path, PYTHONPATH=str(hidden(tmp_path, "torch"))
    )
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "[4 lines of output]" in output  # NO_TORCH and nothing else
    assert "copying" not in output
    assert "or set SYMCONV_FAST_NO_CPU=1" in output


def test_a_source_distribution_needs_no_torch(source, tmp_path):
    done = python(
        "setup.py", "sdist", cwd=source, PYTHONPATH=str(hidden(tmp_path, "torch")), SYMCONV_FAST_NO_CPU="0"
    )
    assert done.returncode == 0, done.stderr
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.split("/", 1)[-1] for name in packed.getnames()}
    assert {"tools/native_build.py", "csrc/cpu/microkernels/kernels_impl.h"} <= names


def test_a_source_distribution_has_the_folders_of_the_kernels(source):
    """Whatever their depth, and the headers that are included once."""
    added = {f"csrc/cpu/{name}" for name in ("folder/new.cpp", "folder/new.h", "folder/inner/new.inc")}
    for name in added:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("// new\n")
    done = python("setup.py", "-q", "sdist", cwd=source, SYMCONV_FAST_NO_CPU="1")
    assert done.returncode == 0, done.stderr
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.split("/", 1)[-1] for name in packed.getnames()}
    tree = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").rglob("*.*")}
    assert added | tree <= names


def parts() -> list[str]:
    """Sources below csrc/cpu that others include, as often as they do."""
    lines = [line for p in (ROOT / "csrc/cpu").rglob("*.cpp") for line in p.read_text().splitlines()]
    found = [re.fullmatch(r'#include "(.+\.cpp)"', line) for line in lines]
    return [f"csrc/cpu/{match[1]}" for match in found if match]


def test_every_source_below_the_kernels_is_compiled():
    """By itself or as a part of one other file. It may include other folders by their paths from csrc/cpu."""
    found = ask_setup("print(*(s for e in setup.extensions() for s in e.sources))").split()
    every = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cpu").rglob("*.cpp"))
    assert sorted([*found, *parts()]) == every
    folders = ask_setup("print(*(f for e in setup.extensions() for f in e.include_dirs))").split()
    assert str(ROOT / "csrc/cpu") in folders


@pytest.mark.parametrize("why", ["no compiler", "on request"])
def test_a_wheel_without_native_code_is_for_every_platform(source, why):
    environment = {"SYMCONV_FAST_NO_CPU": str(int(why == "on request")), "CXX": "no-such-compiler"}
    done = python("setup.py", "bdist_wheel", cwd=source, **environment)
    assert done.returncode == 0, done.stderr
    assert "copying" not in done.stdout + done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel.name == f"symconv_fast-{symconv_fast.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        (facts,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: true" in packed.read(facts).decode()
    assert "symconv_fast/dispatch.py" in names


# Answers torch's questions, and makes of every command a file that says what it was.
SCRIBE = """#!/bin/sh
case "$1" in -dump*) echo 13.2.0; exit ;; -v) echo gcc version 13.2.0; exit ;; esac
line="$*"
while [ $# -gt 0 ]; do
  case "$1" in -o) out=$2; shift ;; -MF) echo "all: " >"$2"; shift ;; esac
  shift
done
echo "$line" >"$out"
"""


def test_a_wheel_has_the_module_and_its_library(source, tmp_path):
    compiler = tmp_path / "scribe"
    compiler.write_text(SCRIBE)
    compiler.chmod(0o755)
    done = python(
        "setup.py", "-q", "bdist_wheel", cwd=source, CXX=str(compiler), SYMCONV_FAST_NO_CPU="0", MAX_JOBS="2"
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as packed:
        linked = {name: packed.read(name).decode() for name in packed.namelist() if name.endswith(".so")}
        assert "symconv_fast/operators.inc" in packed.namelist()
    module = f"symconv_fast/_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    library = "symconv_fast/libsymconv_fast.so"
    assert set(linked) == {module, library}
    assert f"/{library} " in linked[module]
    assert "-rpath,$ORIGIN" in linked[module]
    assert "torch_python" in linked[module]
    assert "torch_python" not in linked[library]
    sources = {name: set(re.findall(r"csrc/cpu/([\w/]+)\.o", line)) for name, line in linked.items()}
    assert sources[module] == {"python/joined"}
    assert {"csrc/cpu/python/bindings.cpp", "csrc/cpu/python/layer_calls.cpp"} <= set(parts())
    every = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").rglob("*.cpp")} - set(parts())
    assert {f"csrc/cpu/{name}.cpp" for name in sources[library]} == every - {"csrc/cpu/python/joined.cpp"}


def test_what_another_command_links_is_linked_anew(source, tmp_path):
    """Though no file is newer than the module that is there."""
    compiler = tmp_path / "scribe"
    compiler.write_text(SCRIBE)
    compiler.chmod(0o755)
    for flag in ("-Wl,-O1", "-Wl,-O2"):
        environment = {"CXX": str(compiler), "LDFLAGS": flag, "SYMCONV_FAST_NO_CPU": "0", "MAX_JOBS": "2"}
        done = python("setup.py", "-q", "build", cwd=source, **environment)
        assert done.returncode == 0, done.stderr
        linked = [path.read_text() for path in (source / "build").rglob("lib*/symconv_fast/*.so")]
        assert [flag in line for line in linked] == [True, True]


# --- compiling -----------------------------------------------------------------------------------------------------

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
