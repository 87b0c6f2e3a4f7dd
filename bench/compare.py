# Says what became slower from one result file to another, and whether that is more than noise.
"""`python -m bench.compare BEFORE AFTER`: exits with 1 if some case became slower by more than the noise.

Cases are compared by their ratio to a baseline that was timed in turns with them, so that a machine that is slower
today drops out. The noise of a case is what its ratio can vary by: the spread of our times and of the baseline's, from
both files, and how far the baselines of the two runs, which are the same code, drifted apart from each other.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.noise import spread
from bench.rows import Row, aligned, geometric_mean, key, load, words

LEAST = 0.03  # differences below this are not told, however quiet the machine
Rows = dict[tuple[object, ...], list[Row]]


@dataclass(frozen=True)
class Change:
    """One case in both files: ratio before and after (medians over repetitions), and its noise (relative)."""

    row: Row
    before: float
    after: float
    noise: float

    @property
    def factor(self) -> float:
        """Above 1: faster than before, relative to the baseline."""
        return self.after / self.before

    @property
    def slower(self) -> bool:
        """Slower by more than the noise."""
        return self.factor < 1 / (1 + self.noise)

    @property
    def faster(self) -> bool:
        """Faster by more than the noise."""
        return self.factor > 1 + self.noise


def grouped(rows: Iterable[Row]) -> Rows:
    """Rows by case; a file may hold the same case several times."""
    groups: Rows = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def drift(before: Rows, after: Rows) -> float:
    """How differently the baselines moved between the files: median distance from their common factor, relative."""
    logs = [
        math.log(_baseline(after[k]) / _baseline(before[k]))
        for k in before.keys() & after.keys()
    ]  # fmt: skip
    if len(logs) < 2:
        return 0.0
    middle = statistics.median(logs)
    return statistics.median(abs(value - middle) for value in logs)


def _baseline(rows: list[Row]) -> float:
    return statistics.median(row["baseline_ms"] for row in rows)


def compare(before: Iterable[Row], after: Iterable[Row]) -> list[Change]:
    """Every case that both have, the one that lost most first."""
    old, new = grouped(before), grouped(after)
    common = drift(old, new)
    changes = []
    for k in old.keys() & new.keys():
        ratios = [statistics.median(row["ratio"] for row in rows) for rows in (old[k], new[k])]
        noise = max(LEAST, math.hypot(spread(old[k]), spread(new[k]), common))
        changes.append(Change(new[k][-1], ratios[0], ratios[1], noise))
    return sorted(changes, key=lambda change: (change.factor, words(change.row)))


def text(changes: list[Change], missing: int = 0, added: int = 0) -> str:
    """What became slower, what faster, and how many did not change."""
    worse, better = [c for c in changes if c.slower], [c for c in reversed(changes) if c.faster]
    parts = []
    for title, some in (("slower", worse), ("faster", better)):
        parts.append(f"{title}: {len(some)} of {len(changes)} cases\n")
        if some:
            head = ["", "change", "noise", "ratio before", "after", "runs on", "case"]
            parts.append(aligned([head, *map(_line, some)]))
    if changes:
        mean = geometric_mean(change.factor for change in changes)
        noise = statistics.median(change.noise for change in changes)
        parts.append(f"geometric mean of all changes: {mean - 1:+.1%}; median noise of a case: {noise:.1%}\n")
    if missing or added:
        parts.append(f"not compared: {missing} cases only in the first file, {added} only in the second\n")
    return "".join(parts)


def _line(change: Change) -> list[str]:
    row = change.row
    return [
        "", f"{change.factor - 1:+.1%}", f"±{change.noise:.1%}", f"{change.before:.2f}", f"{change.after:.2f}",
        f"{row['backend']} {row['algorithm']}", words(row),
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="what became slower between two result files, with the noise"
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    before, after = load(options.before), load(options.after)
    changes = compare(before, after)
    if not changes:
        sys.exit(f"{options.before} and {options.after} have no case in common")
    old, new = {key(row) for row in before}, {key(row) for row in after}
    machines = [{str(row["device"]) for row in rows} for rows in (before, after)]
    if machines[0] != machines[1]:
        print(f"different machines: {', '.join(sorted(machines[0]))}; {', '.join(sorted(machines[1]))}")
    print(text(changes, len(old - new), len(new - old)), end="")
    sys.exit(any(change.slower for change in changes))


if __name__ == "__main__":
    main()
