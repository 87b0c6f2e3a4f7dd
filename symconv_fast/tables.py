"""Tables of reports: one description, drawn by rich for terminals and notebooks, as plain text and as Markdown."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console
    import rich.table

_GAP = 3  # characters between columns
_FOLDED = 32  # characters of a column of text where a line has no room for all


@dataclass(frozen=True)
class Table:
    """Cells are text as it is shown; a column whose name ends with "|" is of text, all others are of numbers.

    `str()` is plain text of whatever width it needs; `rich.print(table)` draws it in colour and folds text where the
    terminal is narrow; `notes` follow the rows, a line each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> Iterator[Any]:
        """Drawn by rich; columns that a line has no room for follow in further tables, each after the first column."""
        from rich.text import Text

        if self.title:
            yield Text(self.title, style="bold")
        for part in self._parts(options.max_width):
            yield part._draw()
        for note in self.notes:
            yield Text(note)

    def _parts(self, width: int) -> list[Table]:
        """The table in pieces of at most `width` characters a line, where that can be."""
        needed = [max(map(len, column)) for column in zip(self.columns, *self.rows)]
        if sum(needed) + _GAP * (len(needed) - 1) <= width:
            return [self]
        needed = [min(n, _FOLDED) if name.endswith("|") else n for name, n in zip(self.columns, needed)]
        groups, used = [[0]], needed[0]
        for i, own in enumerate(needed[1:], 1):
            if used + _GAP + own > width and len(groups[-1]) > 1:
                groups.append([0])
                used = needed[0]
            groups[-1].append(i)
            used += _GAP + own
        return [self._pick(group) for group in groups]

    def _pick(self, places: Sequence[int]) -> Table:
        rows = [[row[i] for i in places] for row in self.rows]
        return Table("", [self.columns[i] for i in places], rows)

    def _draw(self) -> rich.table.Table:
        from rich import box
        from rich.markup import escape
        from rich.table import Table as Drawn

        drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in self.columns:
            text = name.endswith("|")
            drawn.add_column(
                name.rstrip("|"), justify="left" if text else "right", no_wrap=not text, overflow="fold"
            )
        for row in self.rows:
            drawn.add_row(*map(escape, row))
        return drawn

    def __str__(self) -> str:
        from rich.console import Console

        wide = sum(max(map(len, column)) + _GAP for column in zip(self.columns, *self.rows))
        longest = max(map(len, "\n".join([self.title, *self.notes]).splitlines()), default=0)
        # What goes to a file or a pipe is not folded.
        width = shutil.get_terminal_size().columns if _is_terminal() else max(wide, longest, 20)
        out = io.StringIO()
        Console(file=out, width=width, color_system=None, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())

    def markdown(self) -> str:
        """The rows as a Markdown table, without title and notes."""
        rule = ["---" if name.endswith("|") else "---:" for name in self.columns]
        head = [name.rstrip("|") for name in self.columns]
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *self.rows))


class Report:
    """What every report can do: `print(report)` and `rich.print(report)` show its table."""

    def table(self) -> Table:
        """The report as a table."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        """For `rich.print`, and for consoles and notebooks that rich is installed in."""
        return self.table()


def _is_terminal() -> bool:
    return bool(getattr(sys.stdout, "isatty", lambda: False)())
