# README and docs: every block runs alone as it stands, every command exists, prose is short and wrapped.
from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import symconv_fast
from bench import networks

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_WRAPPED = {"gpu.md", "triton.md"}
"""Pages of notes and measurements with longer lines."""

README_LINES, COLUMNS = 150, 100
OPTIONAL = ("onnx", "onnxscript", "onnxruntime")
TIMEOUT = 300


class Block(NamedTuple):
    """A fenced block of a page; `line` is that of its fence."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(name: str, text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(name, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


BLOCKS = [b for page in PAGES for b in blocks_of(str(page.relative_to(ROOT)), page.read_text())]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh"]
assert len(PYTHON) > 15
assert len(SHELL) > 4


# --- blocks of Python ------------------------------------------------------------------------------------------------

RUNNER = """
import json, os, sys, tempfile, traceback, warnings
import torch, symconv_fast

state = torch.get_default_dtype(), torch.get_num_threads(), symconv_fast.allow_winograd, dict(os.environ)
for block in json.load(sys.stdin):
    error = None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        os.chdir(folder)
        torch.manual_seed(0)
        try:
            exec(compile(block["text"], block["name"], "exec"), {"__name__": "__main__"})
        except BaseException:
            error = traceback.format_exc()
        os.chdir("/")
    torch.set_default_dtype(state[0])
    torch.set_num_threads(state[1])
    symconv_fast.allow_winograd = state[2]
    os.environ.clear()
    os.environ.update(state[3])
    print("\\n" + json.dumps({"name": block["name"], "error": error}), file=sys.stderr, flush=True)
"""


def test_no_block_goes_by_another_name():
    """A fence of `py` or `bash` would not be run, and one that is not closed would hide the next.

    What C++ says is in a program that test_cpp_program.py runs.
    """
    assert {block.language for block in BLOCKS} <= {"python", "sh", "cpp", ""}
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)


def run_alone(blocks: list[Block]) -> dict[str, str | None]:
    """The traceback of each block, or None: each with names of its own, in an empty folder.

    They share a process, since torch takes seconds to load.
    """
    given = json.dumps([{"name": str(block), "text": block.text} for block in blocks])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SYMCONV_FAST")}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=given, capture_output=True, text=True, cwd="/", timeout=TIMEOUT,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith('{"name": ')]
    results = {found["name"]: found["error"] for found in map(json.loads, lines)}
    unheard = f"the process ended (exit status {done.returncode}): {done.stderr[-2000:]}"
    return {str(block): results.get(str(block), unheard) for block in blocks}


def missing(block: Block) -> list[str]:
    """Optional packages that a block needs and that are not here."""
    wanted = {"onnxscript"} if "torch.onnx.export" in block.text else set()
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            wanted |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            wanted.add(node.module.split(".")[0])
    return [name for name in OPTIONAL if name in wanted and importlib.util.find_spec(name) is None]


@cache
def results() -> dict[str, str | None]:
    return run_alone([block for block in PYTHON if not missing(block)])


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_blocks_of_python_run_alone_in_an_empty_folder(block):
    if missing(block):
        pytest.skip(f"a block of the documents needs {', '.join(missing(block))}")
    error = results()[str(block)]
    assert error is None, error


def test_a_block_that_fails_is_seen_and_leaves_nothing_to_the_next():
    broken = [
        Block("a", 1, "python", "import torch\ny = 1\ntorch.set_default_dtype(torch.float64)\nopen('f', 'w')\n"),
        Block("b", 1, "python", "import os, torch\nassert torch.ones(1).dtype == torch.float32 and not os.listdir()"),
        Block("c", 1, "python", "print(y)\n"),
        Block("d", 1, "python", "import os\nos._exit(3)\n"),
    ]  # fmt: skip
    found = run_alone(broken)
    assert found["a:1"] is None
    assert found["b:1"] is None
    assert "NameError: name 'y'" in found["c:1"]
    assert "exit status 3" in found["d:1"]


class ConvNeXtBlock(nn.Module):
    """As published: a depthwise 7 x 7 convolution of one filter a channel, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        return x + self.body(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """Four stages with a block each, whose widths are a third of ConvNeXt-T's."""
    layers, widths = [nn.Conv2d(3, 32, 4, 4)], (32, 64, 128, 256)
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(widths[i - 1], width, 2, 2)] if i else []
        layers.append(ConvNeXtBlock(width))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def resnet18() -> nn.Module:
    return networks.resnet18(
        lambda cin, cout, kernel, stride=1: nn.Conv2d(cin, cout, kernel, stride, kernel // 2)
    )


@pytest.mark.parametrize(("make", "count", "left"), [(resnet18, 16, 4), (convnext, 3, 5)])
def test_the_readme_brings_in_a_model_and_takes_it_back(make, count, left):
    model = make().eval()
    tied, report = symconv_fast.convert(model, "hv", match=False)
    assert (len(report.tied), len(report.layers)) == (count, count + left)
    layers = [m for m in tied.modules() if isinstance(m, symconv_fast.SymmetricConv2d)]
    assert len(layers) == count
    saved = sum(3 * layer.weight.numel() for layer in layers)
    assert report.parameters == report.parameters_before - saved

    x = torch.randn(1, 3, 64, 64)
    plain = symconv_fast.revert(tied)
    names = [{name: type(layer) for name, layer in m.named_modules()} for m in (plain, model)]
    assert names[0] == names[1]
    torch.testing.assert_close(plain(x), tied(x), rtol=1e-3, atol=1e-5)


# --- commands --------------------------------------------------------------------------------------------------------

PROGRAMS = {"pip", "pre-commit"}  # of others, with arguments of theirs
PYTEST_OPTIONS = {"-k", "-m", "-x"}


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without comments; lines that go on are joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def what_is_wrong(words: list[str]) -> str | None:
    """Why a command cannot run in this project, or None."""
    program, *rest = itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)
    if program == "make":
        return _wrong_make(rest)
    if program in ("python", "pytest"):
        if rest[:1] == ["-m"]:
            return _wrong_options(_module(rest[1]), rest[1], rest[2:])
        if program == "python":
            return None if (ROOT / rest[0]).is_file() else f"no file {rest[0]}"
        return _wrong_options(ROOT / "bench/conftest.py", program, rest)
    if program == ".":
        return None if rest == [".venv/bin/activate"] else f"what is {rest}?"
    if "/" in program:
        return _wrong_options(ROOT / program, program, rest)
    return None if program in PROGRAMS else f"what is {program}?"


def _wrong_make(words: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        known = rf"^{name}\b *\??=" if is_variable else rf"^{name}:"
        if not re.search(known, text, re.MULTILINE):
            return f"the Makefile has no {'variable' if is_variable else 'target'} {name}"
    return None


def _module(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def _wrong_options(source: Path, program: str, words: list[str]) -> str | None:
    """The program's source must be there and know the options, files of the project that are named be there."""
    if not source.is_file():
        return f"there is no {source.relative_to(ROOT)} for {program}"
    text = source.read_text()
    for word in words:
        option = word.split("=")[0]
        known = option in PYTEST_OPTIONS or re.search(rf"{option}(?![\w-])", text)
        if option.startswith("-") and not known:
            return f"{program} has no option {option}"
        if re.fullmatch(r"(bench|docs|tests)/[\w./]*", word) and not (ROOT / word).exists():
            return f"there is no {word}"
    return None


@pytest.mark.parametrize(
    "block", [*SHELL, *blocks_of("CONTRIBUTING.md", (ROOT / "CONTRIBUTING.md").read_text())], ids=str
)
def test_commands_exist(block):
    found = [(words, what_is_wrong(words)) for words in commands(block)]
    assert found
    assert not [(words, wrong) for words, wrong in found if wrong]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("make dmeo", "no target dmeo"),
        ("make VENVV= test", "no variable VENVV"),
        ("python -m bench.reports FILE", "no bench/reports.py"),
        ("python -m bench.report --intoo README.md", "no option --intoo"),
        ("pytest bench/ --shape 256@14", "no option --shape"),
        ("python -m symconv_fast --verbos", "no option --verbos"),
        ("bench/gpu.zsh", "no bench/gpu.zsh"),
        ("X=1 symconv", "what is symconv"),
    ],
)
def test_commands_that_do_not_exist_are_seen(command, wrong):
    (words,) = commands(Block("x", 1, "sh", command))
    assert wrong in str(what_is_wrong(words))


# --- variables of the environment -----------------------------------------------------------------------------------


SOURCES = ("symconv_fast", "csrc", "tests", "tools", "bench", "setup.py", "Makefile", ".ci")
VARIABLE = re.compile(r"\bSYMCONV_FAST_[A-Z]+(?:_[A-Z]+)*\b")


def variables(*places: Path) -> set[str]:
    """Names of this package's variables in files, those below folders included."""
    files = itertools.chain.from_iterable(p.rglob("*") if p.is_dir() else [p] for p in places)
    texts = (
        p.read_text() for p in files if p.suffix not in (".so", ".pyd", ".pyc", ".jsonl") and p.is_file()
    )
    return set(itertools.chain.from_iterable(map(VARIABLE.findall, texts)))


def test_every_variable_is_in_a_page_and_every_one_there_is_read():
    used = variables(*(ROOT / name for name in SOURCES))
    assert {"SYMCONV_FAST_ISA", "SYMCONV_FAST_NO_CPU"} <= used
    listed = variables(ROOT / "docs" / "install.md")
    assert used == listed
    assert variables(*PAGES) <= used


# --- prose -----------------------------------------------------------------------------------------------------------


def long_lines(text: str) -> list[str]:
    """Lines of prose beyond 100 columns; tables, links, code and what the benchmark writes are no prose."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- bench:(\w+):begin -->.*?<!-- bench:\1:end -->", "", text, flags=re.DOTALL)
    return [x for x in text.splitlines() if len(x) > COLUMNS and not x.startswith("|") and "](" not in x]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in NOT_WRAPPED], ids=lambda p: p.name)
def test_prose_is_wrapped(page):
    assert not long_lines(page.read_text())


def test_long_lines_of_prose_alone_are_seen():
    long = "word " * 21
    code = f"```python\n{long}\n```\n"
    table = f"<!-- bench:short:begin -->\n{long}\n<!-- bench:short:end -->\n"
    assert long_lines(f"{long}\n{code}| {long} |\n{table}[{long}](x)\nshort\n") == [long]


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in readme]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_that_are_linked_to_are_there(page):
    links = re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", page.read_text())
    assert not [(to, name) for to, name in links if name not in headings(page.parent / to if to else page)]
