# Settings of the whole suite: NaN in fresh memory, fixed seeds, markers, what runs beside it, what was skipped.
"""Shared pytest configuration."""

from __future__ import annotations

import argparse
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS; read when CUDA starts
# Threads that wait for others must not take the core of another worker; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["SYMCONV_FAST_CACHE"] = "0"  # what was measured on this machine changes what is chosen

import setuptools  # noqa: F401, I001  before distutils, whose place it takes

import background
import hypothesis
import pytest
import torch

LEFT: pytest.StashKey[int] = pytest.StashKey()
FUZZ_EXAMPLES = int(os.environ.get("SYMCONV_FAST_FUZZ", "25"))

hypothesis.settings.register_profile(
    "suite",
    max_examples=FUZZ_EXAMPLES,
    deadline=None,
    derandomize="SYMCONV_FAST_FUZZ" not in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every fresh tensor with NaN, so that a result built on memory that was never written shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(64).isnan().all(), "this torch does not fill uninitialised memory"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, alone or in the whole suite."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--share`."""
    parser.addoption(
        "--share", type=_share, default=(1, 1), metavar="I/N",
        help="of the tests marked full run the I-th of N shares alone, such as 2/5; each test is in one share",
    )  # fmt: skip


def _share(text: str) -> tuple[int, int]:
    which, _, of = text.partition("/")
    if not (which.isdigit() and of.isdigit() and 1 <= int(which) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, such as 2/5, got {text!r}")
    return int(which), int(of)


def _in_share(item: pytest.Item, share: tuple[int, int]) -> bool:
    which, of = share
    return not item.get_closest_marker("full") or zlib.crc32(item.nodeid.encode()) % of == which - 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none and it is not just rehearsed; leave out what is in other shares.

    First the file of the most tests, so that the percentage moves at once; last what waits for the interpreter.
    """
    share = config.getoption("--share")
    others = [item for item in items if not _in_share(item, share)]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _in_share(item, share)]
    (largest, _), *_ = Counter(item.path for item in items).most_common(1) or [(None, 0)]
    items.sort(key=lambda item: (_waits(item), item.path != largest))
    if torch.cuda.is_available() or os.environ.get("SYMCONV_FAST_REHEARSE"):
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what was left to the full suite."""
    left = [item for item in items if item.get_closest_marker("full")]
    if left:
        left[0].config.stash[LEFT] = left[0].config.stash.get(LEFT, 0) + len(left)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the interpreter's checks, if tests want them: they take minutes on a core of their own."""
    if not session.config.option.collectonly and any(map(_waits, session.items)):
        background.start(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Do not leave them behind."""
    background.stop(config)


# --- workers of pytest-xdist, where that is installed ------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The first worker with tests that wait for the interpreter starts it for all."""
    node.workerinput[background.INPUT] = str(background.folder(node.config))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells how much it left to the full suite."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All workers have chosen among the same tests."""
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def _waits(item: pytest.Item) -> bool:
    return "interpreted_checks" in getattr(item, "fixturenames", ())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every skipped test, grouped by reason; parameters of one test function count together."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for report in terminalreporter.stats.get("skipped", []):
        where, _, reason = (
            report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        )
        groups[reason.removeprefix("Skipped: ")][report.nodeid.split("[")[0] or where] += 1
    terminalreporter.section("what was skipped and why")
    left = terminalreporter.config.stash.get(LEFT, 0)
    if left:
        terminalreporter.line(f"{left} tests of kinds that were met are left to `make test-full`")
    if not groups:
        terminalreporter.line("nothing was skipped")
    for reason, tests in sorted(groups.items()):
        terminalreporter.line(f"{reason} ({sum(tests.values())})")
        for test, count in sorted(tests.items()):
            terminalreporter.line(f"    {test}" + (f" × {count}" if count > 1 else ""))
