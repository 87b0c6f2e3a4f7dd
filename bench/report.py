# Turns stored rows into a table: as text after a run, as Markdown for the README, as a plot.
"""Report of a benchmark run.

python -m bench.report bench/results/FILE.jsonl                      print the table
python -m bench.report bench/results/FILE.jsonl --readme README.md   replace the region between its bench markers
python -m bench.report bench/results/FILE.jsonl --plot ratios.png    bar chart of the ratios
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import shapes

Row = dict[str, Any]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
LESS_EXACT = {
    "float64": 2.0,
    "float32": 2.0,
    "bfloat16": 2.5,
    "float16": 2.5,
}  # times the error of torch: the limit
NOT_SLOWER = 0.97  # below this a fallback should have run: more than what noise explains
PASS_NAMES = {
    "fwd": "forward",
    "dgrad": "input gradient",
    "wgrad": "weight gradient",
    "step": "training step",
}
IN_MEAN = {shape.name for shape in shapes.MEAN}


def load(path: Path) -> list[Row]:
    """Rows of a results file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def summary(rows: list[Row]) -> list[Row]:
    """Geometric mean and worst ratio for every pass, tie, layout and dtype.

    The mean is over `bench.shapes.MEAN` where the run has them, otherwise over all rows; the worst is always over all.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("pass", "tie", "layout", "dtype")), []).append(row)
    result = []
    for (direction, tie, layout, dtype), members in groups.items():
        counted = [row for row in members if row["shape"] in IN_MEAN] or members
        worst = min(members, key=lambda row: row["ratio"])
        result.append({
            "pass": direction, "tie": tie, "layout": layout, "dtype": dtype, "shapes": len(counted),
            "mean": geometric_mean(row["ratio"] for row in counted),
            "limit": members[0]["orbit"], "worst": worst["ratio"], "worst_shape": worst["shape"],
        })  # fmt: skip
    return result


def _cells(row: Row) -> list[str]:
    """Cells of the printed table, in the order of HEAD."""
    extra = [row[key] / row["activation_bytes"] for key in ("peak_extra_bytes", "baseline_peak_extra_bytes")]
    return [
        row["shape"], row["tie"], PASS_NAMES[row["pass"]], row["layout"], f"{row['backend']} {row['algorithm']}",
        f"{row['ms_p50']:.3f}", f"{row['baseline_ms']:.3f}", f"{row['ratio']:.2f}", f"{row['fraction']:.0%}",
        f"{row['gmacs_folded']:.0f}", f"{row['gmacs_dense']:.0f}", f"{extra[0]:.0%} / {extra[1]:.0%}",
    ]  # fmt: skip


HEAD = [
    "shape", "tie", "pass", "layout", "runs on", "ms", "expanded ms", "ratio", "of limit", "GMAC/s", "dense-equiv.",
    "memory: ours / expanded",  # extra at the peak, as shares of input and output
]  # fmt: skip


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells as columns of text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


def text(rows: list[Row]) -> str:
    """The table of a run with its means, its worst case, and everything that is slower than the baseline."""
    parts = [aligned([HEAD, *map(_cells, rows)]), "\n"]
    for group in summary(rows):
        parts.append(
            f"{PASS_NAMES[group['pass']]}, {group['tie']}, {group['layout']}, {group['dtype']}: geometric mean "
            f"{group['mean']:.2f} over {group['shapes']} shapes (limit {group['limit']}), "
            f"worst {group['worst']:.2f} ({group['worst_shape']})\n"
        )
    slower = sorted((row for row in rows if row["ratio"] < 1.0), key=lambda row: row["ratio"])
    parts.append("\nbelow 1.00: " + ("nothing\n" if not slower else "\n"))
    for row in slower:
        mark = f"  BELOW {NOT_SLOWER}" if row["ratio"] < NOT_SLOWER else ""
        parts.append(f"  {row['ratio']:.2f}  {_what(row)}{mark}\n")
    inexact = [row for row in rows if row["error"] > LESS_EXACT[row["dtype"]]]
    if inexact:
        parts.append("\nless exact than allowed (error against float64, as a multiple of torch's):\n")
    parts.extend(f"  {row['error']:.1f}  {_what(row)}\n" for row in inexact)
    return "".join(parts)


def _what(row: Row) -> str:
    """A case in words."""
    return f"{row['shape']} {row['tie']} {PASS_NAMES[row['pass']]} {row['layout']}"


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in body)


def markdown(rows: list[Row]) -> str:
    """Tables for the README: means first, then every shape by pass, with where it was measured."""
    one = rows[0]
    parts = [
        f"{one['device']}, {one['threads']} pinned threads, torch {one['torch']}, {one['dtype']}, "
        f"commit {one['git']}, {str(one['date'])[:10]}.\n"
        "Ratio: time of `F.convNd` on filters expanded beforehand, in its faster layout, over that of the symmetric "
        "layer.\n\n"
    ]
    means = [
        [
            PASS_NAMES[g["pass"]],
            g["tie"],
            g["layout"],
            f"{g['mean']:.2f}",
            str(g["limit"]),
            f"{g['worst']:.2f}",
            g["worst_shape"],
        ]
        for g in summary(rows)
    ]
    parts.append(_table(["pass", "tie", "layout", "geometric mean", "limit", "worst", "worst shape"], means))
    for direction in dict.fromkeys(row["pass"] for row in rows):
        parts.append(f"\n{PASS_NAMES[direction].capitalize()}: ratio (time, backend)\n\n")
        parts.append(_by_shape([row for row in rows if row["pass"] == direction]))
    return "".join(parts)


def _by_shape(rows: list[Row]) -> str:
    """Markdown table of one pass: a line a shape and layout, a column a tie."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['ratio']:.2f} ({row['ms_p50']:.2f} ms, {row['backend']})"
        lines.setdefault((row["shape"], row["layout"]), {})[row["tie"]] = cell
    ties = list(dict.fromkeys(row["tie"] for row in rows))
    cells = [[*place, *(by_tie.get(tie, "") for tie in ties)] for place, by_tie in lines.items()]
    return _table(["shape", "layout", *ties], cells)


def into_readme(path: Path, table: str) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the file has no region between the markers.
    """
    old = path.read_text()
    new, count = re.subn(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}{END}", old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{path} must have exactly one region between {BEGIN} and {END}; it has {count}")
    path.write_text(new)


def plot(rows: list[Row], path: Path) -> None:
    """Bar chart: ratio by shape and tie, one panel a pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure, axes = plt.subplots(len(passes), 1, figsize=(10, 3.2 * len(passes)), squeeze=False)
    for axis, direction in zip(axes[:, 0], passes, strict=True):
        bars(axis, [row for row in rows if row["pass"] == direction])
        axis.set_title(PASS_NAMES[direction])
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def bars(axis: Any, rows: list[Row]) -> None:
    """Draw the ratios of one pass: a group a shape and layout, a bar a tie, and a line at 1."""
    place = [(f"{row['shape']}\n{row['layout']}", row["tie"]) for row in rows]
    names, ties = list(dict.fromkeys(name for name, _ in place)), list(dict.fromkeys(tie for _, tie in place))
    here = {name: [tie for at, tie in place if at == name] for name in names}
    width = 0.8 / max(map(len, here.values()))
    for tie in ties:
        mine = [(name, row["ratio"]) for (name, at), row in zip(place, rows, strict=True) if at == tie]
        xs = [
            names.index(name) + (here[name].index(tie) - (len(here[name]) - 1) / 2) * width
            for name, _ in mine
        ]
        axis.bar(xs, [ratio for _, ratio in mine], width, label=tie)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, fontsize=7)
    axis.set_ylabel("times faster")
    axis.legend(title="tie", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="report of a benchmark run")
    parser.add_argument("results", type=Path, nargs="+", help="files below bench/results")
    parser.add_argument("--readme", type=Path, help="file whose bench region is replaced")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    options = parser.parse_args()
    rows = [row for path in options.results for row in load(path)]
    print(text(rows), end="")
    if options.readme:
        into_readme(options.readme, markdown(rows))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
