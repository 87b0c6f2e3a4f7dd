# The benchmark itself: its statistics, its report, and that it refuses to time a wrong result.

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINNED = {"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}

# The benchmark pins threads before torch is loaded, so it runs in a process of its own.
MEASURE = """
import json, sys
from bench import cases
from bench.shapes import Shape

case = cases.Case(Shape("test", 8, (6, 7)), "hv", sys.argv[1])
row = cases.run(case, seconds=0.01)
print(json.dumps(row))

right = cases.Bench.ours
def wrong(self):
    good = right(self)
    return cases.Row(lambda x, *_: good.run(x) * (1 + 1e-3), good.input, good.parameters, good.upstream)
cases.Bench.ours = wrong
try:
    cases.run(case, seconds=0.01)
except AssertionError as error:
    print("refused:", error)
"""


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the root of the repository."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | environment
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report():
    """The report module; `bench` is importable from the root of the repository."""
    from bench import report

    return report


def rows() -> list[dict[str, object]]:
    """Two shapes of the mean and one that is not in it."""
    base = {
        "pass": "fwd", "tie": "h", "layout": "channels_last", "dtype": "float32", "orbit": 2, "error": 1.0,
        "backend": "cpu", "algorithm": "fold", "ms_p50": 1.0, "baseline_ms": 2.0, "fraction": 0.5, "gmacs_folded": 1.0,
        "gmacs_dense": 2.0, "peak_extra_bytes": 10, "baseline_peak_extra_bytes": 0, "activation_bytes": 100,
        "device": "a CPU", "threads": 2, "torch": "2", "git": "abc", "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return [
        base | {"shape": "4x64@56", "ratio": 1.0},
        base | {"shape": "4x128@28", "ratio": 4.0},
        base | {"shape": "4x512@7", "ratio": 0.5},
    ]


@pytest.mark.parametrize("direction", ["fwd", "dgrad", "wgrad", "step"])
def test_measures_right_results_and_refuses_wrong_ones(direction):
    done = run_python("-c", MEASURE, direction, **PINNED)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("{", "refused:"))]
    row = json.loads(lines[0])
    assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ms_p50"])
    assert row["baseline_ms"] == min(
        row["all_ms"]["expanded/channels_last"], row["all_ms"]["expanded/contiguous"]
    )
    assert row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
    assert row["gmacs_dense"] == pytest.approx(4 * row["gmacs_folded"])
    assert row["peak_extra_bytes"] >= 0
    assert "is not timed" in lines[1]


def test_refuses_threads_that_are_not_pinned():
    done = run_python("-c", "import torch, bench.threads")
    assert done.returncode != 0
    assert "OMP_PROC_BIND=close" in done.stderr


def test_summary_has_mean_over_its_shapes_and_worst_over_all(report):
    (group,) = report.summary(rows())
    assert group["mean"] == pytest.approx(2.0)
    assert group["shapes"] == 2
    assert (group["worst"], group["worst_shape"]) == (0.5, "4x512@7")


def test_text_lists_what_is_slower(report):
    text = report.text(rows())
    assert "0.50  4x512@7 h forward channels_last  BELOW 0.97" in text
    assert "below 1.00: nothing" in report.text(rows()[:2])


def test_text_lists_what_is_less_exact(report):
    inexact, *rest = rows()
    assert "2.5  4x64@56 h forward channels_last" in report.text([inexact | {"error": 2.5}, *rest])
    assert "less exact" not in report.text(rows())


def test_readme_region_is_replaced_and_nothing_else(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.into_readme(readme, report.markdown(rows()))
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| forward | h | channels_last | 2.00 | 2 | 0.50 | 4x512@7 |" in text


def test_readme_without_markers_is_an_error(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    with pytest.raises(ValueError, match="exactly one region"):
        report.into_readme(readme, "")


def test_project_readme_has_one_region(report):
    text = (ROOT / "README.md").read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_shapes_have_distinct_names_and_every_tie_fits():
    from bench import shapes

    for group in (shapes.ALL, shapes.DEFAULT, shapes.QUICK):
        names = [(shape.name, shape.model) for shape in group]
        assert len(set(names)) == len(names)
    for shape in {*shapes.ALL, *shapes.DEFAULT, *shapes.QUICK}:
        for tie in shape.ties:
            assert shape.out_channels(2 ** len(tie)) % (2 ** len(tie) * shape.groups) == 0
