# What tools/sanitize.py compiles with the sanitizers, and what it takes from the ordinary build.

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import native_build, sanitize

SOURCES = [str(path) for path in (Path(__file__).parents[1] / "csrc/cpu").rglob("*.cpp")]
OF_PYTHON = "/somewhere/include/torch/csrc/utils/pybind.h"


def chosen(isa: str, *dtypes: str) -> set[str]:
    return {Path(source).stem for source in SOURCES if sanitize.is_checked(source, "", isa, list(dtypes))}


def test_every_source_is_checked_in_some_instruction_set():
    assert set().union(*(chosen(isa, *sanitize.DTYPES) for isa in sanitize.SETS)) == {
        Path(source).stem for source in SOURCES
    }


def test_one_instruction_set_in_the_dtypes_that_were_asked_for():
    one, all_ = chosen("avx2", "float"), chosen("avx2", *sanitize.DTYPES)
    assert one < all_ < {Path(source).stem for source in SOURCES}
    assert not [stem for stem in all_ if {"avx512", "baseline"} & set(stem.split("_"))]
    assert not [stem for stem in one if {"bfloat16", "half", "double"} & set(stem.split("_"))]
    assert [stem for stem in one if "avx2" in stem.split("_")]


def test_what_knows_python_is_not():
    assert not sanitize.is_checked("csrc/cpu/any.cpp", f"any.o: any.cpp {OF_PYTHON}", "avx2", ["float"])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command of the build with sanitizers, in a folder of its own, and the source that it compiles."""
    monkeypatch.setitem(sys.modules, "native_build", native_build)
    monkeypatch.setattr(sanitize, "ROOT", tmp_path)
    monkeypatch.setattr(sanitize, "BUILD", tmp_path / "build/sanitize")
    (tmp_path / "build/sanitize/temp").mkdir(parents=True)
    (tmp_path / "build/temp").mkdir()
    source = tmp_path / "any.cpp"
    source.write_text("")
    return ["c++", "-fsanitize=address", "-c", str(source), "-o", str(tmp_path / "build/sanitize/temp/any.o")]


def compiled(command: list[str], headers: str) -> Path:
    """The ordinary object of the source, as native_build leaves it."""
    source, target = command[-3], Path(command[-1].replace("sanitize/", ""))
    target.write_text("ordinary")
    target.with_suffix(".d").write_text(f"{target}: {source} {headers}\n")
    ordinary = ["c++", "-c", source, "-o", str(target)]
    target.with_suffix(".command").write_text("\n".join([*ordinary, native_build.torch_version()]))
    return target


def test_what_is_left_out_is_the_object_of_the_ordinary_build(command, tmp_path):
    header = tmp_path / "torch/csrc/any.h"
    header.parent.mkdir(parents=True)
    header.write_text("")
    compiled(command, str(header))
    assert sanitize.checked([("any.cpp", command)], "avx2", ["float"]) == []
    assert Path(command[-1]).read_text() == "ordinary"


def test_what_is_checked_is_compiled(command):
    compiled(command, "")
    assert sanitize.checked([("any.cpp", command)], "avx2", ["float"]) == [("any.cpp", command)]
    assert not Path(command[-1]).exists()


@pytest.mark.parametrize("fault", ["missing", "old"])
def test_the_ordinary_build_goes_first(command, fault):
    target = compiled(command, "")
    if fault == "missing":
        target.with_suffix(".command").unlink()
    else:
        target.with_suffix(".d").write_text(f"{target}: /no/such/header.h\n")
    with pytest.raises(SystemExit, match="make build goes first"):
        sanitize.checked([("any.cpp", command)], "avx2", ["float"])
