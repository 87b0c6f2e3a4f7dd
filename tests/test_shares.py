# `--share`: every repetition is in exactly one share, whichever process asks, and all else is in every one.
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import conftest
import pytest

HERE = Path(__file__).parent
TESTS = """
import pytest

@pytest.mark.full
@pytest.mark.parametrize("number", range(40))
def test_repeated(number):
    pass

@pytest.mark.parametrize("number", range(3))
def test_of_a_kind(number):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of 40 repetitions and 3 other tests."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    full: repetitions\n    gpu: none\n")
    (folder / "test_suite.py").write_text(TESTS)
    return folder


def collected(folder: Path, seed: int, *options: str) -> tuple[list[str], str]:
    """Names of the tests that would run, and all that is printed; with a seed of hash() of its own."""
    paths = os.pathsep.join(map(str, (HERE, HERE.parent)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "conftest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode in (0, 4), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [line for line in lines if line.startswith("test_suite.py::")], done.stdout + done.stderr


def test_shares_have_every_repetition_once_and_all_else_each_time(folder: Path) -> None:
    every, _ = collected(folder, 0)
    assert len(every) == 43
    repeated = [name for name in every if "repeated" in name]
    shares = [collected(folder, which, "--share", f"{which}/3") for which in (1, 2, 3)]
    for names, said in shares:
        own = [name for name in names if name in repeated]
        assert [name for name in names if name not in own] == [name for name in every if name not in repeated]
        assert 40 / 6 <= len(own) <= 40 / 2  # about a third
        assert f"{40 - len(own)} tests of kinds that were met are left" in said
    met = [name for names, _ in shares for name in names if name in repeated]
    assert sorted(met) == sorted(repeated)


def test_a_share_that_there_is_not_is_refused(folder: Path) -> None:
    names, said = collected(folder, 0, "--share", "4/3")
    assert names == []
    assert "expected I/N with 1 <= I <= N, such as 2/5, got '4/3'" in said
    for text in ("0/3", "3", "/3", "1/0", "a/b", "-1/3", "1/3/3"):
        with pytest.raises(argparse.ArgumentTypeError):
            conftest._share(text)
    assert conftest._share("2/5") == (2, 5)
