# Turns stored rows into tables: as text after a run, as Markdown for the README and the documentation.
"""Report of one or several result files; where a case is in several, the last one counts.

python -m bench.report FILE...                          print the tables
python -m bench.report FILE... --into README.md DOC...  replace the regions between `bench:NAME:begin` and `:end`
python -m bench.report FILE... --plots docs/figures     draw ratios, roofline and channels as SVG and PNG
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import shapes, targets
from bench.rows import PASS_NAMES, Row, aligned, geometric_mean, latest, load, words

# Times the error of torch: the limit of the error rule for each dtype.
LESS_EXACT = {"float64": 2.0, "float32": 2.0, "bfloat16": 2.5, "float16": 2.5}
BUSY = 1.0  # load average beyond our own threads above which others took their time
IN_MEAN = {shape.on(device).name for shape in shapes.MEAN for device in ("cpu", "cuda")}
GROUP = ("family", "pass", "tie", "layout", "dtype", "backend_pin", "algorithm_pin")


def summary(rows: Iterable[Row]) -> list[Row]:
    """Geometric mean and worst ratio of every family, pass, tie, layout, dtype and pin.

    The mean is over `bench.shapes.MEAN` where the run has them, otherwise over all rows; the worst is always over all.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    result = []
    for group, members in groups.items():
        counted = [row for row in members if row["shape"] in IN_MEAN] or members
        worst = min(members, key=lambda row: row["ratio"])
        result.append({
            **dict(zip(GROUP, group, strict=True)), "shapes": len(counted),
            "mean": geometric_mean(row["ratio"] for row in counted), "limit": members[0]["limit"],
            "worst": worst["ratio"], "worst_shape": _place(worst),
        })  # fmt: skip
    return result


def _place(row: Row) -> str:
    """The shape; of a whole network its name."""
    return str(row["model"] if row["family"] == "model" else row["shape"])


def slower(rows: Iterable[Row]) -> list[Row]:
    """Rows below 1.0, the worst first."""
    return sorted((row for row in rows if row["ratio"] < 1.0), key=lambda row: row["ratio"])


HEAD = [
    "shape", "tie", "pass", "layout", "runs on", "ms", "baseline ms", "ratio", "of limit", "GMAC/s", "dense GFLOP/s",
    "GB/s", "memory: ours / baseline",  # extra at the peak, as shares of input and output
]  # fmt: skip


def _cells(row: Row) -> list[str]:
    """Cells of the printed table, in the order of HEAD."""
    extra = [row[name] for name in ("peak_extra_bytes", "baseline_peak_extra_bytes")]
    memory = " / ".join("-" if e is None else f"{e / row['activation_bytes']:.0%}" for e in extra)
    return [
        _place(row), row["tie"], PASS_NAMES[row["pass"]], f"{row['layout']} {row['dtype']}",
        f"{row['backend']} {row['algorithm']}", f"{row['ms_p50']:.3f}", f"{row['baseline_ms']:.3f}",
        f"{row['ratio']:.2f}", f"{row['fraction']:.0%}", f"{row['gmacs_folded']:.0f}",
        f"{row['gflops_dense']:.0f}", f"{row['gbytes']:.0f}", memory,
    ]  # fmt: skip


def text(rows: list[Row]) -> str:
    """All tables of a run, with its means, its worst cases, and everything that is slower than the baseline."""
    one, busiest = rows[0], max(row["load"] for row in rows)
    parts = [
        f"peak here: {one['peak_gflops']:.0f} GFLOP/s ({one['peak_by']}, {one['dtype']}), "
        f"{one['peak_gbytes']:.0f} GB/s (copy); load {min(r['load'] for r in rows)} to "
        f"{busiest} on {one['threads']} threads\n",
        "\n" if busiest <= one["threads"] + BUSY else "THE MACHINE WAS BUSY: do not believe these numbers\n\n",
        aligned([HEAD, *map(_cells, rows)]), "\n", aligned([MEANS, *_means(rows)]), "\n",
    ]  # fmt: skip
    goals = [target for target in targets.achieved(rows) if target.mean is not None]
    if goals:
        parts += [aligned([TARGETS, *map(_target, goals)]), "\n"]
    extra = targets.overhead(rows)
    if extra is not None:
        parts.append(f"a call of {targets.OVERHEAD_SHAPE} takes {extra:.1f} us longer than torch's\n\n")
    below = slower(rows)
    parts.append("below 1.00: " + ("\n" if below else "nothing\n"))
    for row in below:
        mark = f"  BELOW {targets.NOT_SLOWER}" if row["ratio"] < targets.NOT_SLOWER else ""
        parts.append(f"  {row['ratio']:.2f}  {words(row)}{mark}\n")
    # Not of networks: a rounding that turns a ReLU changes their gradients by far more, and they keep activations.
    layers = [row for row in rows if row["family"] != "model"]
    inexact = [row for row in layers if row["error"] > LESS_EXACT[row["dtype"]]]
    if inexact:
        parts.append("\nless exact than allowed (error against float64, as a multiple of torch's):\n")
    parts.extend(f"  {row['error']:.1f}  {words(row)}\n" for row in inexact)
    parts += _beside_onednn(rows)
    large = [row for row in targets.memory_rows(rows) if row["peak_extra_bytes"] > targets.memory_limit(row)]
    if large:
        parts.append("\nmore extra memory than allowed:\n")
    parts.extend(f"  {row['peak_extra_bytes'] / 1024:.0f} KiB  {words(row)}\n" for row in large)
    return "".join(parts)


def _beside_onednn(rows: list[Row]) -> list[str]:
    """Ratios to oneDNN, where torch's convolution takes a slower kernel although oneDNN has one."""
    some = [row for row in rows if "onednn" in row["timings"]]
    if not some:
        return []
    lines = [
        [
            "",
            f"{row['timings']['onednn'][1] / row['ms_p50']:.2f} instead of {row['ratio']:.2f}",
            words(row),
        ]
        for row in some
    ]
    return ["\nratio to oneDNN called directly, where F.convNd does without it:\n", aligned(lines)]


MEANS = [
    "layers", "pass", "tie", "layout", "dtype", "pinned", "geometric mean", "shapes", "limit", "worst", "worst shape",
]  # fmt: skip


def _means(rows: list[Row]) -> list[list[str]]:
    return [
        [
            g["family"], PASS_NAMES[g["pass"]], g["tie"], g["layout"], g["dtype"],
            " ".join(filter(None, (g["backend_pin"], g["algorithm_pin"]))) or "-",
            f"{g['mean']:.2f}", str(g["shapes"]), str(g["limit"]), f"{g['worst']:.2f}", g["worst_shape"],
        ]
        for g in summary(rows)
    ]  # fmt: skip


TARGETS = ["target", "must", "goal", "reached", "verdict", "worst", "worst shape"]


def _target(found: targets.Achieved) -> list[str]:
    mean, worst = ("-" if value is None else f"{value:.2f}" for value in (found.mean, found.worst))
    target = found.target
    return [target.name, str(target.must), str(target.goal), mean, found.verdict, worst, found.worst_shape]


# --- Markdown --------------------------------------------------------------------------------------------------------


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in body)


def origin(rows: list[Row]) -> str:
    """Where and when the rows were measured, and how busy the machine was."""
    one = rows[0]
    commits = ", ".join(dict.fromkeys(str(row["git"]) for row in rows))
    dates = sorted({str(row["date"])[:10] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    cudnn = f", cuDNN {one['cudnn']}" if "cudnn" in one else f", {one['threads']} pinned threads"
    return (
        f"{one['device']}{cudnn}, torch {one['torch']}, commit {commits}, {when}; load "
        f"average {min(r['load'] for r in rows):.1f} to {max(r['load'] for r in rows):.1f}.\n"
    )


def means_region(rows: list[Row]) -> str:
    """Means of every group of layers that no pin steers."""
    free = [
        row
        for row in rows
        if not row["backend_pin"] and not row["algorithm_pin"] and row["family"] != "model"
    ]
    return origin(rows) + "\n" + _table(MEANS, _means(free))


def targets_region(rows: list[Row]) -> str:
    """What must be reached and what is; the last lines are bounds of single cases."""
    lines = [_target(found) for found in targets.achieved(rows)]
    worst = min(rows, key=lambda row: row["ratio"])
    verdict = (
        "goal" if worst["ratio"] >= 1.0 else "must" if worst["ratio"] >= targets.NOT_SLOWER else "MISSED"
    )
    value = f"{worst['ratio']:.2f}"
    lines.append(["any single case", str(targets.NOT_SLOWER), "1.0", value, verdict, value, words(worst)])
    known = targets.memory_rows(rows)
    if known:
        most = max(known, key=lambda row: row["peak_extra_bytes"] / targets.memory_limit(row))
        share = most["peak_extra_bytes"] / targets.memory_limit(most)
        verdict = "must" if share <= 1 else "MISSED"
        lines.append(
            ["extra memory of a layer, of its limit", "100%", "-", f"{share:.0%}", verdict, "-", words(most)]
        )
    extra = targets.overhead(rows)
    if extra is not None:
        verdict = "must" if extra <= targets.OVERHEAD_US else "MISSED"
        most = f"{targets.OVERHEAD_US:.0f} µs"
        lines.append(
            [
                "a call takes longer by at most",
                most,
                "-",
                f"{extra:.1f} µs",
                verdict,
                "-",
                targets.OVERHEAD_SHAPE,
            ]
        )
    return origin(rows) + "\n" + _table(TARGETS, lines)


def shapes_region(rows: list[Row]) -> str:
    """Every shape: a table a pass and dtype, a line a shape and layout, a column a tie."""
    parts = [origin(rows)]
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["family"] != "model":
            pin = " ".join(filter(None, (row["backend_pin"], row["algorithm_pin"])))
            tables.setdefault((row["pass"], row["dtype"], pin), []).append(row)
    for (direction, dtype, pin), members in tables.items():
        title = f"{PASS_NAMES[direction].capitalize()}, {dtype}" + (f", pinned to {pin}" if pin else "")
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="report of benchmark runs")
    parser.add_argument("results", type=Path, nargs="+", help="files below bench/results")
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="files whose bench regions are replaced"
    )
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    options = parser.parse_args()
    rows = latest(row for path in options.results for row in load(path))
    print(text(rows), end="")
    for path in options.into:
        into(path, rows)
    if options.plots:
        from bench import plots

        plots.draw(rows, options.plots)


if __name__ == "__main__":
    main()
