# The checks of triton_grid.py in a process beside the suite: started when tests are chosen, waited for at the end.
"""`start`, `results` and `stop` of the one process that belongs to a run of pytest, however many workers that has.

It prints into files of a folder, which nobody has to empty meanwhile and every worker of pytest-xdist can read.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAM = HERE / "triton_grid.py"
TELL_EVERY = 10
"""Seconds between two lines while nothing else is left to do."""
INPUT = "checks"
"""What a worker is told the folder as."""
# Its exit code is a file too: workers cannot wait for each other's processes.
RUN = """
import os, subprocess, sys
folder, *command = sys.argv[1:]
with open(f"{folder}/out", "w") as out, open(f"{folder}/errors", "w") as errors:
    code = subprocess.call(command, stdout=out, stderr=errors)
with open(f"{folder}/new", "w") as file:
    file.write(str(code))
os.replace(f"{folder}/new", f"{folder}/code")
"""

FOLDER: pytest.StashKey[Path] = pytest.StashKey()


def environment(**more: str) -> dict[str, str]:
    """For another Python: this package, and one thread."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", **more}


def folder(config: pytest.Config) -> Path:
    """The folder of this run of pytest."""
    given = getattr(config, "workerinput", {}).get(INPUT)
    if given is not None:
        return Path(given)
    if FOLDER not in config.stash:
        config.stash[FOLDER] = Path(tempfile.mkdtemp(prefix="symconv_checks_"))
    return config.stash[FOLDER]


def start(config: pytest.Config) -> None:
    """Begin to check, unless that has begun, here or in another worker."""
    place = folder(config)
    try:
        (place / "begun").touch(exist_ok=False)
    except FileExistsError:
        return
    command = [sys.executable, "-c", RUN, str(place), sys.executable, str(PROGRAM)]
    running = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,  # a worker's own ones are its line to pytest-xdist
        stdout=subprocess.DEVNULL,
        env=environment(TRITON_INTERPRET="1"),
        start_new_session=True,
    )
    (place / "pid").write_text(str(running.pid))


def results(config: pytest.Config) -> dict[str, str]:
    """Wait, and say how long; title and verdict of every check."""
    start(config)
    place, told = folder(config), time.monotonic()
    while not (place / "code").exists():
        time.sleep(0.2)
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            _tell(config, f"waiting for the Triton kernels in the interpreter: {_progress(place)}")
    assert (place / "code").read_text() == "0", (place / "errors").read_text()[-3000:]
    _, *lines = (place / "out").read_text().splitlines()
    return {title: verdict for title, verdict, _ in (line.split("\t") for line in lines)}


def _progress(place: Path) -> str:
    total, *done = (place / "out").read_text().splitlines() or ["the"]
    return f"{len(done)} of {total} checks are done"


def _tell(config: pytest.Config, text: str) -> None:
    """A line between the dots, past the capturing of output."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{text}", flush=True)


def stop(config: pytest.Config) -> None:
    """End it where nobody waited for it; not by a worker, which may end before the others."""
    place = config.stash.get(FOLDER, None)
    if place is None:
        return
    with suppress(OSError, ValueError):  # not begun, or ended
        if not (place / "code").exists():
            os.killpg(int((place / "pid").read_text()), signal.SIGKILL)
    shutil.rmtree(place, ignore_errors=True)
