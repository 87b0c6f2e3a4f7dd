# The checks of triton_grid.py in a process beside the suite: started when tests are chosen, waited for at the end.
"""`start`, `results` and `stop` of the one process that belongs to a run of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Process:
    """A process and the files that it prints into, which nobody has to empty meanwhile."""

    running: subprocess.Popen[str]
    out: IO[str]
    errors: IO[str]


GRID: pytest.StashKey[Process] = pytest.StashKey()


def environment(**more: str) -> dict[str, str]:
    """For another Python: this package, and one thread."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", **more}


def start(config: pytest.Config) -> Process:
    """Begin to check, unless that has begun."""
    if GRID not in config.stash:
        out, errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  (read in `results`)
        command = [sys.executable, str(HERE / "triton_grid.py")]
        running = subprocess.Popen(
            command, stdout=out, stderr=errors, text=True, env=environment(TRITON_INTERPRET="1")
        )
        config.stash[GRID] = Process(running, out, errors)
    return config.stash[GRID]


def results(config: pytest.Config) -> dict[str, str]:
    """Wait; title and verdict of every check."""
    grid = start(config)
    code = grid.running.wait()
    grid.out.seek(0), grid.errors.seek(0)
    assert code == 0, grid.errors.read()[-3000:]
    return {
        title: verdict for title, verdict, _ in (line.split("\t") for line in grid.out.read().splitlines())
    }


def stop(config: pytest.Config) -> None:
    """End it where nobody waited for it."""
    grid = config.stash.get(GRID, None)
    if grid is not None and grid.running.poll() is None:
        grid.running.kill()
        grid.running.wait()
