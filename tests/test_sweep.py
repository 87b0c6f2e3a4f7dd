# The sweep that looks for layers that lose, from the command line.
"""`python -m bench.sweep` over two tiny shapes: each case once, ratios of what was timed, the slow ones checked."""

from __future__ import annotations

import pytest
from fake_rows import run_python

rows = pytest.importorskip("bench.rows")
PINS = {"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores", "OMP_WAIT_POLICY": "passive"}


def test_every_case_is_timed_and_those_that_lose_are_checked(tmp_path):
    arguments = ("--shapes", "1x8@8", "--passes", "fwd", "--seconds", "0.01", "--again", "0.01")
    done = run_python("-m", "bench.sweep", *arguments, "--out", str(tmp_path / "rows.jsonl"), **PINS)
    assert done.returncode == 0, done.stderr
    found = rows.load(tmp_path / "rows.jsonl")
    below = [row for row in found if row["ratio"] < 0.97]
    # 8 x 8 with three ties and two layouts, and 8 x 8 x 8.
    assert len({rows.key(row) for row in found}) == len(found) == 12
    assert f"12 cases, geometric mean {rows.geometric_mean(row['ratio'] for row in found):.2f}" in done.stdout
    assert f"{len(below)} below 0.97" in done.stdout
    assert all(row["checked"] for row in below)
    assert not all(row["checked"] for row in found)  # not all seemed slow
    for row in found:
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ms_p50"])
        assert row["baseline"].startswith("expanded/")
