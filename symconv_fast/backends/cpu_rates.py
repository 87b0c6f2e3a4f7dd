"""Rates of the CPU cost model, read from the tables beside this file; `python -m bench.fit_cost` writes those.

cpu_rates.csv has nanoseconds a unit: a row for the vectors of a CPU and a kind of work, a column for each unit of
`cpu_cost.FEATURES` that any kind has. An empty cell is a unit that costs nothing, or that was not seen.
cpu_factors.csv is for 16-bit types without rates of their own: what the threads share, over that of float32, and
nanoseconds of a call beside those of float32.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Rates = dict[str, dict[str, dict[str, float]]]
Factors = dict[str, dict[str, tuple[float, float]]]

RATES_FILE = Path(__file__).with_name("cpu_rates.csv")
FACTORS_FILE = Path(__file__).with_name("cpu_factors.csv")
_KEYS = ("vectors", "kind")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def read_rates(path: Path = RATES_FILE) -> Rates:
    """{vectors: {kind: {unit: nanoseconds}}}."""
    found: Rates = {}
    for row in _rows(path):
        vectors, kind = (row.pop(key) for key in _KEYS)
        found.setdefault(vectors, {})[kind] = {unit: float(value) for unit, value in row.items() if value}
    return found


def read_factors(path: Path = FACTORS_FILE) -> Factors:
    """{vectors: {type, kind and place: (factor, nanoseconds of a call)}}."""
    found: Factors = {}
    for row in _rows(path):
        found.setdefault(row["vectors"], {})[row["kind"]] = (float(row["factor"]), float(row["call"]))
    return found


def write_rates(rates: Rates, units: Sequence[str], notes: Iterable[str], path: Path = RATES_FILE) -> None:
    """What `read_rates` reads, the columns in the order of `units`; `notes` become comments at the top."""
    used = {unit for kinds in rates.values() for row in kinds.values() for unit in row}
    columns = [*_KEYS, *(unit for unit in units if unit in used)]
    rows = [
        {"vectors": vectors, "kind": kind, **row}
        for vectors, kinds in rates.items()
        for kind, row in kinds.items()
    ]
    _write(path, columns, rows, notes)


def write_factors(factors: Factors, notes: Iterable[str], path: Path = FACTORS_FILE) -> None:
    """What `read_factors` reads; `notes` become comments at the top."""
    rows = [
        {"vectors": vectors, "kind": kind, "factor": factor, "call": call}
        for vectors, kinds in factors.items()
        for kind, (factor, call) in kinds.items()
    ]
    _write(path, [*_KEYS, "factor", "call"], rows, notes)


def _write(
    path: Path, columns: Sequence[str], rows: Sequence[dict[str, object]], notes: Iterable[str]
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {note}\n" for note in notes)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


RATES = read_rates()
FACTORS = read_factors()
