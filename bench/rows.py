# Rows of results: how they are stored, found again and averaged. Knows no torch.
"""Result files: JSON lines, one row a measured case, appended as they are measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# What makes two rows the same case, measured twice.
KEY = (
    "family", "shape", "model", "tie", "pass", "layout", "dtype", "device_kind", "backend_pin", "algorithm_pin",
)  # fmt: skip
PASS_NAMES = {
    "fwd": "forward",
    "dgrad": "input gradient",
    "wgrad": "weight gradient",
    "step": "training step",
    "step_of_sum": "training step from an expanded gradient",
    "step_contiguous": "training step from a contiguous gradient",
}


def key(row: Row) -> tuple[object, ...]:
    """Identity of the case that a row measures."""
    return tuple(row[name] for name in KEY)


def load(path: Path) -> list[Row]:
    """Rows of a results file.

    Raises:
        ValueError: a line is not a row of this benchmark, with its number.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            key(rows[-1])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a row of this benchmark ({error!r})") from None
    return rows


def append(path: Path, row: Row) -> None:
    """Add a row to a results file, so that an interrupted run keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row a case: the last one."""
    return list({key(row): row for row in rows}.values())


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def limit(row: Row) -> str:
    """The limit of a ratio: "2", "1.99"."""
    return f"{row['limit']:.3g}"


def words(row: Row) -> str:
    """A case in words."""
    pins = [row[name] for name in ("backend_pin", "algorithm_pin") if row[name]]
    text = f"{row['shape']} {row['tie']} {PASS_NAMES[row['pass']]} {row['layout']} {row['dtype']}"
    return text + (f" ({' '.join(pins)})" if pins else "")


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells as columns of text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)
