# How far a measured ratio can be believed: what other programs took of the machine meanwhile, and how times vary.
"""The noise guard of benchmark and demo. Knows no torch.

Calls that are compared are timed in turns (`bench.measure.interleave`), so that what else the machine does hits all of
them; on a busy machine it hits the longer ones more often, and a ratio comes out too large. Three things tell: how long
our threads waited for a core, how much the times of one call vary, and that a ratio is above what is possible.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

from bench.rows import Row

BUSY = 1.0  # load average beyond our own threads above which others took their time
NOTED = 0.1  # share of the time that our threads waited for a core, above which a report says so
CROWDED = 0.25  # and above which a ratio is not to be believed
UNSTEADY = 0.25  # spread of a ratio above which it is not; on a quiet machine nine of ten rows are below 0.14
FILTERING = {
    "f2": 1.5,
    "f4": 2.0,
}  # what minimal filtering along one axis saves of three taps, by allow_winograd
UNLIKE = 1.15  # torch's convolution of large layers is at least so near to the peak that ours is at


class Waiting:
    """How long the threads of this process wait for a core that another program has, from here on."""

    def __init__(self) -> None:
        self.waited, self.ran = _waited(), time.process_time()

    def share(self) -> float | None:
        """Share of the time in which they wanted to run; None where the system does not tell (Linux does)."""
        waited, ran = _waited(), time.process_time() - self.ran
        if waited is None or self.waited is None:
            return None
        lost = max(0.0, waited - self.waited)  # a thread that has ended is not counted any more
        return lost / max(1e-9, lost + ran)


def _waited() -> float | None:
    """Seconds that the threads of this process were ready to run and did not."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (
            OSError,
            ValueError,
            IndexError,
        ):  # a thread that ends meanwhile, or a kernel without the numbers
            continue
    return total * 1e-9 if total else None


def spread(rows: list[Row]) -> float:
    """Relative spread of the ratio within its runs: half of p20 to p80 of ours and of the baseline, as one."""
    within = [
        math.hypot(half(*row["timings"]["ours"]), half(*row["timings"][row["baseline"]])) for row in rows
    ]
    # The median of n interleaved runs is steadier than one run; repeated rows show their own scatter beside it.
    ratios = [row["ratio"] for row in rows]
    between = (max(ratios) - min(ratios)) / (2 * statistics.median(ratios)) if len(rows) > 1 else 0.0
    return max(statistics.median(within) / 2, between)


def half(p20: float, p50: float, p80: float) -> float:
    """Half of the distance between the percentiles, relative to the median."""
    return (p80 - p20) / (2 * p50)


def waiting(row: Row) -> float | None:
    """Share of the time that our threads waited while a row was measured; None if it was not told."""
    return row.get("waited")


def busy(row: Row) -> bool:
    """Did other programs take part of the machine while a row was measured?"""
    waited = waiting(row)
    return row["load"] > row["threads"] + BUSY if waited is None else waited > NOTED


def possible(row: Row) -> float:
    """The largest ratio that saved multiplications explain: the limit of the tie times what minimal filtering adds.

    It binds large layers that are not depthwise. For others torch's convolution may be slow by itself.
    """
    filtered = any(name in row["algorithm"] for name in ("winograd", "relayout"))
    return row["limit"] * (FILTERING.get(row["config"].get("allow_winograd"), 1.0) if filtered else 1.0)


def doubt(row: Row) -> str | None:
    """Why the ratio of a large layer is not to be believed, as a clause, or None."""
    waited = waiting(row)
    if row["ratio"] > UNLIKE * possible(row):
        return "it came out larger than the saved multiplications allow"
    if (waited is not None and waited > CROWDED) or (waited is None and busy(row)):
        return "other programs took the cores"
    if spread([row]) > UNSTEADY:
        return "the times varied too much"
    return None
