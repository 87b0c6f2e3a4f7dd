"""The operators as Python registers them where the native module is missing: the tests of the operators, elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = ("tests/test_ops.py", "tests/test_ops_transforms.py")
HIDDEN = 'import sys, pytest; sys.modules["symconv_fast._cpu"] = None; sys.exit(pytest.main(sys.argv[1:]))'
# What depends on who registers the operators; layouts and FLOP counts do not.
FEW = (
    "gradgradcheck or three_orders or wanted or saves or nested or per_sample or forward_mode or forward_over or "
    "asked_for"
)
# What the native library alone does: torch has no cache of casts for Python, and its compiled autograd traces no
# function of a single level.
NATIVE = "compiled_autograd or autocast_casts_a_weight_once"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Pytest in a process of its own, without the native module."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest", *arguments]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIDDEN, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_derivatives_and_transforms() -> None:
    done = run(*OPS, "-k", FEW)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


@pytest.mark.full
def test_all_of_them() -> None:
    done = run(*OPS, "tests/test_compile.py", "-k", f"not ({NATIVE})")
    assert done.returncode == 0, done.stdout[-4000:]
