# The noise guard: which ratios are not to be believed, and that waiting for a core is seen.

from __future__ import annotations

from pathlib import Path

import pytest
from fake_rows import row, run_python

from bench import noise, rows


def large(ratio: float, **other: object) -> rows.Row:
    return row("4x64@56", ratio, **{"config": {"allow_winograd": "f2"}, "waited": 0.0, **other})


@pytest.mark.parametrize(
    ("ratio", "algorithm", "level", "doubted"),
    [
        (2.2, "fold", "f2", False),  # a little more than 2: torch's convolution is not at the peak
        (2.4, "fold", "f2", True),
        (3.3, "scatter_winograd", "f2", False),
        (3.3, "fold+winograd", "f2", False),
        (3.3, "relayout", "f2", False),  # which may filter
        (3.3, "winograd", False, True),
        (3.6, "winograd", "f2", True),
        (3.6, "winograd", "f4", False),
    ],
)
def test_a_ratio_above_what_is_possible_is_doubted(ratio, algorithm, level, doubted):
    found = noise.doubt(large(ratio, algorithm=algorithm, config={"allow_winograd": level}))
    assert found == ("it came out larger than the saved multiplications allow" if doubted else None)


def test_ratios_of_a_busy_machine_are_doubted():
    assert noise.doubt(large(1.5, waited=0.26)) == "other programs took the cores"
    assert noise.doubt(large(1.5, waited=0.24, load=9.0)) is None
    assert noise.doubt(large(1.5, waited=None, load=3.1)) == "other programs took the cores"
    noisy = {"ours": [0.4, 1.0, 1.6], "expanded/contiguous": [1.0, 1.0, 1.0]}
    assert noise.doubt(large(1.5, timings=noisy)) == "the times varied too much"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not tell who waited")
def test_waiting_for_a_core_is_seen():
    """Two processes on one core: each waits half of the time. Where nothing else runs, one hardly waits."""
    code = (
        "import os, sys, time; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from bench import noise; w = noise.Waiting(); end = time.time() + 1.0\n"
        "if os.fork() == 0:\n    while time.time() < end + 1: pass\n    os._exit(0)\n"
        "while time.time() < end: pass\n"
        "print(w.share()); os.wait()"
    )
    assert float(run_python("-c", code).stdout) > 0.3
