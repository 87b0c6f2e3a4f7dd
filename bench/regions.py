# Turns stored rows into Markdown: the tables of the README and of docs/benchmark.md, between their markers.
"""Regions of a document: what stands between `bench:NAME:begin` and `bench:NAME:end` is made from rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import targets
from bench.report import MEANS, TARGETS, means, slower, summary, target_lines
from bench.rows import PASS_NAMES, Row, limit, words


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in body)


def _dates(rows: list[Row]) -> str:
    """The day of the rows, or the first and the last one."""
    dates = sorted({str(row["date"])[:10] for row in rows})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def origin(rows: list[Row]) -> str:
    """Where and when the rows were measured, and how busy the machine was."""
    one = rows[0]
    commits = ", ".join(dict.fromkeys(str(row["git"]) for row in rows))
    cudnn = f", cuDNN {one['cudnn']}" if "cudnn" in one else f", {one['threads']} pinned threads"
    return (
        f"{one['device']}{cudnn}, torch {one['torch']}, commit {commits}, {_dates(rows)}; load "
        f"average {min(r['load'] for r in rows):.1f} to {max(r['load'] for r in rows):.1f}.\n"
    )


# What a reader of the README needs: (in words, family, pass, tie), all in float32 and channels_last, without pins.
SHORT = (
    ("forward, 2-D", "2-D", "fwd", "h"),
    ("forward, 2-D", "2-D", "fwd", "hv"),
    ("forward, 3-D", "3-D", "fwd", "hvz"),
    ("training step, 2-D", "2-D", "step", "hv"),
)
SHORT_MODEL = ("ResNet-18", "step", "hv")


def short_region(rows: list[Row]) -> str:
    """Four means that matter and one network, each beside the limit of its tie, with machine and date."""
    found = {}
    for group in summary(rows):
        kind = (group["layout"], group["dtype"], group["backend_pin"] or group["algorithm_pin"])
        if kind == ("channels_last", "float32", ""):
            found[group["family"], group["pass"], group["tie"]] = group
    lines = [
        [
            what,
            f"`{tie}`",
            f"{group['mean']:.2f}",
            group["limit"],
            f"{group['worst']:.2f}",
        ]
        for what, family, direction, tie in SHORT
        if (group := found.get((family, direction, tie)))
    ]
    lines += [
        [
            f"{PASS_NAMES[row['pass']]}, {row['model']}",
            f"`{row['tie']}`",
            f"{row['ratio']:.2f}",
            limit(row),
            "",
        ]
        for row in rows
        if (row["model"], row["pass"], row["tie"]) == SHORT_MODEL
        and (row["family"], row["dtype"]) == ("model", "float32")
    ]
    one = rows[0]
    vectors = f" ({one['capability']})" if "capability" in one else ""
    machine = f"{one['device']}{vectors}, {one['threads']} threads, torch {one['torch']}, {_dates(rows)}"
    head = ["layers", "tie", "times as fast", "limit", "least of any layer"]
    return f"Geometric means, float32, channels_last; {machine}.\n\n" + _table(head, lines)


def means_region(rows: list[Row]) -> str:
    """Means of every group of layers that no pin steers."""
    free = [
        row
        for row in rows
        if not row["backend_pin"] and not row["algorithm_pin"] and row["family"] != "model"
    ]
    return origin(rows) + "\n" + _table(MEANS, means(free))


def targets_region(rows: list[Row]) -> str:
    """What must be reached and what is."""
    return origin(rows) + "\n" + _table(TARGETS, target_lines(rows))


def shapes_region(rows: list[Row]) -> str:
    """Every shape: a table a pass and dtype, a line a shape and layout, a column a tie; equivariant layers apart."""
    parts = [origin(rows)]
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["family"] != "model":
            pin = " ".join(filter(None, (row["backend_pin"], row["algorithm_pin"])))
            kind = "equivariant layers" if row["family"] == "equivariant" else ""
            tables.setdefault((row["pass"], row["dtype"], kind, pin and f"pinned to {pin}"), []).append(row)
    for (direction, *rest), members in tables.items():
        title = ", ".join(filter(None, (PASS_NAMES[direction].capitalize(), *rest)))
        parts.append(f"\n{title}: ratio (milliseconds, algorithm)\n\n{_by_shape(members)}")
    return "".join(parts)


def _by_shape(rows: list[Row]) -> str:
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        runs = row["algorithm"] if row["backend"] != "reference" else "reference"
        lines.setdefault((row["shape"], row["layout"]), {})[row["tie"]] = (
            f"{row['ratio']:.2f} ({row['ms_p50']:.2f}, {runs})"
        )
    ties = sorted({row["tie"] for row in rows}, key=lambda tie: (len(tie), tie))
    cells = [[*place, *(by_tie.get(tie, "") for tie in ties)] for place, by_tie in lines.items()]
    return _table(["shape", "layout", *ties], cells)


def models_region(rows: list[Row]) -> str:
    """Whole networks: times, ratio and parameters."""
    if not any(row["family"] == "model" for row in rows):
        return "No network was measured in this run.\n"
    head = ["network", "input", "tie", "pass", "dtype", "ms", "torch's layers, ms", "ratio", "parameters"]
    lines = [
        [
            row["model"], row["shape"], row["tie"], PASS_NAMES[row["pass"]], row["dtype"], f"{row['ms_p50']:.1f}",
            f"{row['baseline_ms']:.1f}", f"{row['ratio']:.2f}",
            f"{row['parameters'] / 1e6:.2f} of {row['baseline_parameters'] / 1e6:.2f} million",
        ]
        for row in rows if row["family"] == "model"
    ]  # fmt: skip
    return origin(rows) + "\n" + _table(head, lines)


def below_region(rows: list[Row]) -> str:
    """Every case that is slower than its baseline."""
    head = ["ratio", "case", "runs on", "ms", "baseline ms"]
    lines = [
        [
            f"{row['ratio']:.2f}", words(row), f"{row['backend']} {row['algorithm']}", f"{row['ms_p50']:.3f}",
            f"{row['baseline_ms']:.3f}",
        ]
        for row in slower(rows)
    ]  # fmt: skip
    return origin(rows) + f"\n{len(lines)} of {len(rows)} cases are below 1.00.\n\n" + _table(head, lines)


def memory_region(rows: list[Row]) -> str:
    """How many layers hold how much at the peak of a call, and those that hold more than torch's convolution."""
    known = targets.memory_rows(rows)
    if not known:
        return "Memory was not measured in this run.\n"
    large = [row for row in known if row["peak_extra_bytes"] > targets.MEMORY_SHARE * row["activation_bytes"]]
    beyond = [row for row in large if row["peak_extra_bytes"] > (row["baseline_peak_extra_bytes"] or 0)]
    over = sum(row["peak_extra_bytes"] > targets.memory_limit(row) for row in known)
    head = ["case", "runs on", "extra KiB", "of activations", "torch's extra KiB"]
    lines = [
        [
            words(row), f"{row['backend']} {row['algorithm']}", f"{row['peak_extra_bytes'] / 1024:.0f}",
            f"{row['peak_extra_bytes'] / row['activation_bytes']:.0%}",
            f"{(row['baseline_peak_extra_bytes'] or 0) / 1024:.0f}",
        ]
        for row in sorted(beyond, key=lambda row: -row["peak_extra_bytes"])
    ]  # fmt: skip
    return (
        f"{origin(rows)}\n{len(known) - len(large)} of {len(known)} cases hold at most {targets.MEMORY_SHARE:.0%} of "
        f"their activations beside them, {len(large) - len(beyond)} more at most what torch's own convolution holds. "
        f"Of the others, below, {over} hold more than {targets.MEMORY_OF_THREAD >> 20} MiB a thread and the packed "
        "weight."
        f"\n\n" + _table(head, lines)
    )


REGIONS: dict[str, Callable[[list[Row]], str]] = {
    "short": short_region,
    "means": means_region,
    "targets": targets_region,
    "shapes": shapes_region,
    "models": models_region,
    "below": below_region,
    "memory": memory_region,
}


def markers(name: str) -> tuple[str, str]:
    """The lines between which a region stands."""
    return f"<!-- bench:{name}:begin -->", f"<!-- bench:{name}:end -->"


def into(path: Path, rows: list[Row]) -> None:
    """Replace every region that a file has.

    Raises:
        ValueError: the file has none, an unknown one, or one that is not closed; the file is left as it is.
    """
    old = path.read_text()
    names = re.findall(r"<!-- bench:(\w+):begin -->", old)
    if not names:
        raise ValueError(f"{path} has no region; put {' and '.join(markers('means'))} where one belongs")
    for name in names:
        if name not in REGIONS:
            raise ValueError(f"{path}: there is no region {name!r}; there are {', '.join(REGIONS)}")
        begin, end = markers(name)
        table = REGIONS[name](rows)
        new, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{table}{end}", old, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ValueError(f"{path} must have exactly one region between {begin} and {end}; it has {count}")
        old = new
    path.write_text(old)
