# The checks of triton_grid.py in a process beside the suite: started when tests are chosen, waited for at the end.
"""`start`, `results` and `stop` of the one process that belongs to a run of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

HERE = Path(__file__).parent
TELL_EVERY = 10
"""Seconds between two lines while nothing else is left to do."""


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
    """Wait, and say how long; title and verdict of every check."""
    grid = start(config)
    told = time.monotonic()
    while grid.running.poll() is None:
        time.sleep(0.2)
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            _tell(config, f"waiting for the Triton kernels in the interpreter: {_progress(grid)}")
    grid.errors.seek(0)
    assert grid.running.returncode == 0, grid.errors.read()[-3000:]
    _, *lines = _printed(grid)
    return {title: verdict for title, verdict, _ in (line.split("\t") for line in lines)}


def _printed(grid: Process) -> list[str]:
    """Lines so far: the number of checks, then each that is done. `pread`, since both processes share one offset."""
    size = os.fstat(grid.out.fileno()).st_size
    return os.pread(grid.out.fileno(), size, 0).decode().splitlines()


def _progress(grid: Process) -> str:
    total, *done = _printed(grid) or ["the"]
    return f"{len(done)} of {total} checks are done"


def _tell(config: pytest.Config, text: str) -> None:
    """A line between the dots, past the capturing of output."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{text}", flush=True)


def stop(config: pytest.Config) -> None:
    """End it where nobody waited for it."""
    grid = config.stash.get(GRID, None)
    if grid is not None and grid.running.poll() is None:
        grid.running.kill()
        grid.running.wait()
