# The comparison of the bits of two builds: it finds one bit, and says what runs no more.

from __future__ import annotations

import json
from pathlib import Path

import cases
import pytest
import torch

pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")
from tools import same_bits

PROBLEMS = {name: cases.SPECIAL[name] for name in ("h", "winograd, to channels_last, 3 taps")}
ROW = "bfloat16 dgrad fold x2"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of this build."""
    path = tmp_path_factory.mktemp("bits") / "bits.jsonl"
    same_bits.record(path, PROBLEMS)
    return path.read_text()


@pytest.fixture
def stored(recorded: str, tmp_path: Path) -> Path:
    """Its first problem alone."""
    path = tmp_path / "bits.jsonl"
    path.write_text("\n".join(recorded.splitlines()[:2]))
    return path


def change(path: Path, row: str, digest: str | None) -> None:
    """Another digest of a row, or none."""
    head, line = map(json.loads, path.read_text().splitlines())
    line["digests"] |= {row: digest}
    line["digests"] = {name: value for name, value in line["digests"].items() if value is not None}
    path.write_text(f"{json.dumps(head)}\n{json.dumps(line)}\n")


def test_the_same_build_has_the_same_bits(recorded, tmp_path, capsys):
    path = tmp_path / "bits.jsonl"
    path.write_text(recorded)
    assert same_bits.compare(path, set()) == 0
    rows = [row for line in recorded.splitlines()[1:] for row in json.loads(line)["digests"]]
    assert f"{len(rows)} are the same, 0 differs, 0 is new, 0 vanished" in capsys.readouterr().out
    dtypes, passes, ways, threads = (set(column) for column in zip(*(columns(row) for row in rows)))
    assert dtypes == {"float32", "float64", "bfloat16", "float16"}
    assert passes >= {"fprop", "dgrad", "wgrad", "wgrad+bias"}
    assert passes & set(same_bits.ACTIVATIONS)
    assert ways >= {"fold", "scatter", "winograd f2", "winograd f4", "expand"}
    assert threads == {"x1", "x2"}


def columns(row: str) -> tuple[str, str, str, str]:
    dtype, name, rest = row.split(" ", 2)
    where, threads = rest.rsplit(" ", 1)
    return dtype, name, where, threads


def test_a_digest_that_differs_is_found(stored, capsys):
    change(stored, ROW, "another")
    assert same_bits.compare(stored, set()) == 1
    said = capsys.readouterr().out
    assert "differs: bfloat16 dgrad fold (1)" in said
    assert f"{ROW}: h: Case(" in said
    assert same_bits.compare(stored, {"fold"}) == 0


def test_one_bit_is_found(stored, monkeypatch):
    right = same_bits.oracle.call

    def call(case, op, t):
        result = right(case, op, t)
        if op == "wgrad" and result.dtype == torch.float64:
            result.view(torch.int64)[(-1,) * result.dim()] ^= 1
        return result

    monkeypatch.setattr(same_bits.oracle, "call", call)
    assert same_bits.compare(stored, set(), "float64 wgrad") == 1
    assert same_bits.compare(stored, set(), "fprop|dgrad|float32") == 0


def test_what_runs_no_more_and_what_is_new_is_listed(stored, capsys):
    change(stored, "float32 fprop gone x1", "of an algorithm that there was")
    change(stored, "float32 dgrad scatter x1", "of a pass that is refused now")
    change(stored, "float32 fprop fold x1", None)
    assert same_bits.compare(stored, set()) == 0
    said = capsys.readouterr().out
    assert "float32 fprop gone x1: h: no such algorithm" in said
    assert "float32 dgrad scatter x1: h: gradients are gathered, not scattered" in said
    assert "float32 fprop fold x1: h" in said
    assert "0 differs, 1 is new, 2 vanished" in said


def test_a_file_of_other_instructions_is_refused(stored, monkeypatch):
    monkeypatch.setattr(same_bits, "ISA", "another")
    with pytest.raises(SystemExit, match="was recorded with"):
        same_bits.compare(stored, set())
