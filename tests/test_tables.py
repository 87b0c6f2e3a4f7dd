# Tables of reports: plain, folded for narrow terminals, as Markdown; every report draws its own.

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

import symconv_fast.analysis
import symconv_fast.conversion
from symconv_fast.tables import Report, Table

WIDE = Table(
    "a [title]",
    ("layer|", "why|", *(f"column {i}" for i in range(6))),
    [("conv[0]", "for a reason of many words, " * 2, *(str(7 * 10**i) for i in range(6)))],
    ("a note [b]",),
)


def drawn(table: Any, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_every_cell_is_shown_at_any_width(width: int) -> None:
    lines = drawn(WIDE, width)
    assert max(map(len, lines)) <= width
    assert lines[0] == "a [title]"
    assert lines[-1] == "a note [b]"
    words = " ".join(lines).split()
    for cell in (f"{7 * 10**i}" for i in range(6)):
        assert words.count(cell) == 1
    assert words.count("many") == 2
    parts = sum("layer" in line for line in lines)
    assert words.count("conv[0]") == parts == {50: 3, 80: 2, 200: 1}[width]


def test_text_is_as_wide_as_it_needs_unless_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(str(WIDE).splitlines()) == 5  # title, heads, line, row, note
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, str(WIDE).splitlines())) <= 60
    assert WIDE.markdown().splitlines()[1] == "| --- | --- |" + " ---: |" * 6


@pytest.mark.parametrize("room", [symconv_fast.analysis, symconv_fast.conversion])
def test_what_is_called_a_report_can_be_printed(room: Any) -> None:
    tabled = [getattr(room, name) for name in room.__all__ if hasattr(getattr(room, name), "table")]
    assert tabled
    assert all(issubclass(report, Report) for report in tabled)
