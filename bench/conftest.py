# Options of `pytest bench/`, the cases of each run, and the table that it ends with.
"""pytest configuration of the benchmark."""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import datetime
import json
from pathlib import Path

import pytest
import torch

from bench import report, shapes
from bench.cases import PASSES, Case

RESULTS = Path(__file__).parent / "results"
ROWS: pytest.StashKey[list[dict[str, object]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the benchmark."""
    group = parser.getgroup("symconv_fast")
    group.addoption(
        "--full", action="store_true", help="all CPU-sized shapes, both layouts, every pass, torch.compile"
    )
    group.addoption(
        "--shapes", default="", help="only shapes whose name contains this, out of all; 'quick': a few"
    )
    group.addoption("--ties", default="", help="only these ties, such as h,hv")
    group.addoption("--layouts", default="", help="channels_last, contiguous or both, with a comma")
    group.addoption("--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"])
    group.addoption("--seconds", type=float, default=3.0, help="time to spend on the measurement of one case")


def pytest_configure(config: pytest.Config) -> None:
    """Keep pytest-benchmark's table back: ours says more."""
    config.stash[ROWS] = []
    if not config.option.verbose and hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True


def _shapes(config: pytest.Config) -> list[shapes.Shape]:
    wanted = config.getoption("--shapes")
    if wanted == "quick":
        return shapes.QUICK
    if wanted:
        return [shape for shape in dict.fromkeys([*shapes.DEFAULT, *shapes.CPU]) if wanted in shape.name]
    return (
        list(dict.fromkeys([*shapes.DEFAULT, *shapes.CPU])) if config.getoption("--full") else shapes.DEFAULT
    )


def _cases(config: pytest.Config, default_pass: str) -> list[Case]:
    full = config.getoption("--full")
    ties = config.getoption("--ties").split(",") if config.getoption("--ties") else None
    layouts = config.getoption("--layouts").split(",") if config.getoption("--layouts") else ["channels_last"]
    if full and not config.getoption("--layouts"):
        layouts.append("contiguous")
    passes = [name for name in PASSES if name != "fwd"] if full and default_pass == "step" else [default_pass]
    dtype = getattr(torch, config.getoption("--dtype"))
    return [
        Case(shape, tie, direction, layout == "channels_last", dtype)
        for direction in passes
        for shape in _shapes(config)
        for tie in shape.ties
        if ties is None or tie in ties
        for layout in (layouts if len(shape.spatial) > 1 else layouts[:1])
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every benchmark its cases; its module says which pass it measures."""
    if "case" in metafunc.fixturenames:
        cases = _cases(metafunc.config, metafunc.module.PASS)
        metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture
def record(request: pytest.FixtureRequest):
    """A function that keeps a row for the table and the file of this run."""
    return request.config.stash[ROWS].append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table and store the rows."""
    rows = config.stash[ROWS]
    if not rows:
        return
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    path = RESULTS / f"{stamp}-{str(rows[0]['git']).replace('+', '-')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    terminalreporter.section("ratio: time of torch's convolution on filters expanded beforehand / our time")
    terminalreporter.write(report.text(rows))
    terminalreporter.line(f"stored: {path}")
