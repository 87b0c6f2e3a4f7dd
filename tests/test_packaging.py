# The install: pure Python where nothing compiles, plain messages, one version, and nothing tuned to the machine.

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
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
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    return folder


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python with some environment variables."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def ask_setup(question: str) -> str:
    """What setup.py's functions answer, in a process of its own: setuptools wants to be imported first of all."""
    done = python("-c", f"import setup\n{question}", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


def test_says_once_and_goes_on_without_a_compiler(source):
    done = python("setup.py", "-q", "build", cwd=source, CXX="no-such-compiler", SYMCONV_FAST_NO_CPU="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("installing without the native CPU module") == 1
    assert "no-such-compiler was not found" in done.stderr
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
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('torch is hidden')\n")
    done = python("setup.py", "-q", "build", cwd=source, PYTHONPATH=str(tmp_path), SYMCONV_FAST_NO_CPU="0")
    assert done.returncode != 0
    assert "pip install --no-build-isolation ." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("memory", "jobs"), [("7 << 30", 3), ("1 << 30", 1), ("None", 64)])
def test_jobs_follow_memory(memory, jobs):
    question = (
        f"setup.os.cpu_count = lambda: 64\nsetup.free_memory = lambda: {memory}\nprint(setup.parallel_jobs())"
    )
    assert ask_setup(question) == str(jobs)


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
