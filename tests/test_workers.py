# A run of the suite in several processes: the interpreter's checks run once for all, and what is left is counted.

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Stands for the interpreter's checks: begins once, and takes longer than the tests that do not wait for it.
PROGRAM = """
import os, time
with open("begun.txt", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(1)
print(2, "a\\tok\\t0.1", "b\\tok\\t0.1", sep="\\n")
"""
PLUGIN = """
import background, pathlib
background.PROGRAM = pathlib.Path("program.py").resolve()
"""
TESTS = """
import background, pytest

@pytest.fixture(scope="module")
def interpreted_checks(pytestconfig):
    return background.results(pytestconfig)

@pytest.mark.parametrize("number", range(8))
def test_of_a_kind(number):
    pass

@pytest.mark.full
@pytest.mark.parametrize("number", range(8))
def test_repeated(number):
    pass

@pytest.mark.parametrize("number", range(4))
def test_that_waits(interpreted_checks, number):
    assert interpreted_checks == {"a": "ok", "b": "ok"}
"""


def suite(folder: Path, *options: str) -> str:
    """What a run of these tests prints."""
    for name, text in (("program.py", PROGRAM), ("stand_in.py", PLUGIN), ("test_suite.py", TESTS)):
        (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    full: repetitions\n    gpu: none\n")
    paths = os.pathsep.join(map(str, (folder, HERE, HERE.parent)))
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "stand_in", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in scratch.iterdir() if path.name.startswith("symconv")] == []
    return done.stdout


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.full)])
def test_the_interpreter_is_started_once_and_what_is_left_is_counted(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("xdist")
    said = suite(tmp_path, "-m", "not full", "-n", str(workers))
    assert "12 passed" in said
    assert "8 tests of kinds that were met are left to `make test-full`" in said
    assert len((tmp_path / "begun.txt").read_text().split()) == 1


@pytest.mark.full
def test_nothing_is_started_where_no_test_waits(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    assert "8 passed" in suite(tmp_path, "-n", "2", "-k", "test_of_a_kind")
    assert not (tmp_path / "begun.txt").exists()


@pytest.mark.full
def test_checks_that_fail_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PROGRAM", "raise SystemExit('no such kernel')")
    with pytest.raises(AssertionError, match="no such kernel"):
        suite(tmp_path, "-k", "test_that_waits")
