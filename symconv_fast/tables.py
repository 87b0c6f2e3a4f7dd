"""Tables of reports: one description, drawn by rich for terminals and notebooks, as plain text and as Markdown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Table:
    """Cells are text as it is shown; a column whose name ends with "|" is of text, all others are of numbers.

    `str()` is plain text of whatever width it needs; `rich.print(table)` draws it in colour; `notes` follow the rows,
    a line each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __rich__(self) -> rich.table.Table:
        """For `rich.print` and for consoles and notebooks that rich is installed in."""
        return self._draw(self.title)

    def _draw(self, title: str | None) -> rich.table.Table:
        from rich import box
        from rich.markup import escape
        from rich.table import Table as Drawn

        drawn = Drawn(
            title=title and escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        drawn.caption = "\n".join(map(escape, self.notes)) or None
        drawn.caption_justify = "left"
        for name in self.columns:
            drawn.add_column(
                name.rstrip("|"), justify="left" if name.endswith("|") else "right", no_wrap=True
            )
        for row in self.rows:
            drawn.add_row(*map(escape, row))
        return drawn

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        wide = sum(max(len(cell) for cell in column) + 3 for column in zip(self.columns, *self.rows))
        bare = Table(self.title, self.columns, self.rows)
        Console(file=out, width=max(wide, 20), color_system=None, highlight=False).print(bare._draw(None))
        lines = [self.title, *out.getvalue().splitlines(), *self.notes]
        return "\n".join(line.rstrip() for line in lines if line.strip())

    def markdown(self) -> str:
        """The rows as a Markdown table, without title and notes."""
        rule = ["---" if name.endswith("|") else "---:" for name in self.columns]
        head = [name.rstrip("|") for name in self.columns]
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *self.rows))
