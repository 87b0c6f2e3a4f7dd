# The install: pure Python where nothing compiles, plain messages, one version, and nothing tuned to the machine.

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import symconv_fast

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
