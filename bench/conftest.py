# Options of `pytest bench/`, the fixture that measures, progress, and the table that a run ends with.
"""pytest configuration of the benchmark."""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import datetime
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from bench import cases, peaks, plan, report, rows
from bench.case import Case
from bench.device import device
from bench.measure import Comparison, measure, provenance

RESULTS = Path(__file__).parent / "results"
ROWS: pytest.StashKey[list[rows.Row]] = pytest.StashKey()
PATH: pytest.StashKey[Path] = pytest.StashKey()
BUDGET: pytest.StashKey[plan.Budget] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the benchmark."""
    add = parser.getgroup("symconv_fast").addoption
    add(
        "--full",
        action="store_true",
        help="all shapes that the device takes, ties, layouts; torch.compile too",
    )
    add("--shapes", default="", help="only shapes whose name contains this, out of all")
    add("--ties", default="", help="only these ties, such as h,hv")
    add("--layouts", default="", help="channels_last, contiguous or both, with a comma")
    add("--dtypes", default="", help="float32, bfloat16, float16, float64, with commas")
    add("--passes", default="", help="fwd, dgrad, wgrad, step, with commas")
    add("--backend", default="", help="pin the backend of ours")
    add("--algorithm", default="", help="pin the algorithm of ours, such as fold")
    add("--device", default="cpu", help="cpu or cuda")
    add("--compiled", action="store_true", help="also expand-and-convolve under torch.compile (minutes)")
    add("--seconds", type=float, default=1.0, help="time to spend on the measurement of one case")
    add("--minutes", type=float, default=0.0, help="less time a case, so that all take about this long")
    add("--rehearse", action="store_true", help="tiny cases, every call once: to see that everything runs")
    add(
        "--out",
        type=Path,
        default=None,
        help="file to append the rows to; by default a new one in bench/results",
    )


def options(config: pytest.Config) -> plan.Options:
    """The options that choose cases."""
    get = config.getoption
    lists = {
        name: tuple(filter(None, get("--" + name).split(",")))
        for name in ("ties", "layouts", "dtypes", "passes")
    }
    try:
        return plan.Options(
            full=get("--full"), shapes=get("--shapes"), backend=get("--backend"), algorithm=get("--algorithm"),
            device=get("--device"), rehearsal=get("--rehearse"), **lists,
        )  # fmt: skip
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    """Set up the device; keep pytest-benchmark's table back: ours says more."""
    try:
        device(config.getoption("--device"))
    except (RuntimeError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    if options(config).rehearsal:
        peaks.rehearse()
    config.stash[ROWS] = []
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    sha = str(provenance(config.getoption("--device"))["git"]).replace("+", "-")
    config.stash[PATH] = config.getoption("--out") or RESULTS / f"{stamp}-{sha}.jsonl"
    if not config.option.verbose and hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True
    if not config.option.verbose:
        config.pluginmanager.register(Progress(config), "symconv_fast_progress")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every benchmark its cases; its module says of which kind they are."""
    if "case" in metafunc.fixturenames:
        wanted = metafunc.module.cases(options(metafunc.config))
        metafunc.parametrize("case", wanted, ids=[case.name for case in wanted])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out files for which nothing was asked; pytest would call that skipped."""
    empty = [item for item in items if item.name.endswith("[NOTSET]")]
    if empty:
        items[:] = [item for item in items if item not in empty]
        config.hook.pytest_deselected(items=empty)
    config.stash[BUDGET] = plan.Budget(
        config.getoption("--seconds"), config.getoption("--minutes"), len(items)
    )


if importlib.util.find_spec("pytest_benchmark") is None:

    class NoBenchmark:
        """Stands for pytest-benchmark where it is not installed: its own files are then not written."""

        def __init__(self) -> None:
            self.extra_info: dict[str, object] = {}

        def pedantic(self, call: Callable[[], object], rounds: int) -> None:
            """Nothing: ours has been measured."""

    @pytest.fixture
    def benchmark() -> NoBenchmark:
        """What the fixture of pytest-benchmark is used for here."""
        return NoBenchmark()


@pytest.fixture(name="measure")
def _measure(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Comparison], rows.Row]:
    """A function that checks and measures a comparison, stores its row, and returns it.

    pytest-benchmark times ours a few times more, alone, for its own files (`--benchmark-json`).
    """
    config = request.config
    rehearsal = config.getoption("--rehearse")

    def run(comparison: Comparison) -> rows.Row:
        seconds = config.stash[BUDGET].seconds(len(config.stash[ROWS]))
        row = measure(comparison, seconds, rehearsal=rehearsal)
        config.stash[ROWS].append(row)
        rows.append(config.stash[PATH], row)
        benchmark.extra_info.update({name: row[name] for name in ("ratio", "baseline_ms")})
        benchmark.pedantic(comparison.calls["ours"], rounds=1 if rehearsal else 3)
        return row

    return run


@pytest.fixture
def measure_layer(
    request: pytest.FixtureRequest, measure: Callable[[Comparison], rows.Row]
) -> Callable[[Case], rows.Row]:
    """A function that measures one layer; a case that the pinned backend or algorithm cannot run is skipped."""
    get = request.config.getoption

    def run(case: Case) -> rows.Row:
        compiled = get("--compiled") or (get("--full") and case.direction == "fwd" and case.channels_last)
        with cases.pinned(case):
            try:
                comparison = cases.Bench(case).comparison(compiled)
            except cases.CannotRunError as error:
                pytest.skip(str(error))
            return measure(comparison)

    return run


class Progress:
    """A bar with the ratio of the last case, in place of pytest's dots; letters are left to failures and skips."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.bar: tqdm | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begin; straight to the terminal, for sys.stderr is captured."""
        if session.items and not self.config.option.collectonly:
            stream = sys.__stderr__
            every = 0.1 if stream is not None and stream.isatty() else 30.0
            self.bar = tqdm(total=len(session.items), file=stream, unit="case", mininterval=every)
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letter for what is measured."""
        return ("passed" if report.when == "call" else "", "", "") if report.passed else None

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """One case more."""
        if self.bar is not None:
            if done := self.config.stash[ROWS]:
                last = done[-1]
                self.bar.set_postfix_str(f"{last['shape']} {last['tie']} {last['ratio']:.2f}", refresh=False)
            self.bar.update()

    def pytest_sessionfinish(self) -> None:
        """End of the bar."""
        if self.bar is not None:
            self.bar.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table and say where the rows are."""
    measured = config.stash[ROWS]
    if not measured:
        return
    terminalreporter.section("ratio: time of torch's convolution on filters expanded beforehand / our time")
    terminalreporter.write(report.text(measured))
    terminalreporter.line(f"stored: {config.stash[PATH]}")
