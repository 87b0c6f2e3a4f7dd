# Turns stored rows into tables of text: ratios, limits and means after a run; on request the targets of contributors.
"""Report of one or several result files; where a case is in several, the last one counts.

python -m bench.report FILE...                          print the tables
python -m bench.report FILE... --into README.md DOC...  replace the regions between `bench:NAME:begin` and `:end`
python -m bench.report FILE... --targets                what contributors have to reach, and what is reached
python -m bench.report FILE... --plots docs/figures     draw ratios, roofline and channels as SVG and PNG
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from bench import noise, shapes, targets
from bench.rows import PASS_NAMES, Row, aligned, geometric_mean, latest, limit, load, words

# Times the error of torch: the limit of the error rule for each dtype.
LESS_EXACT = {"float64": 2.0, "float32": 2.0, "bfloat16": 2.5, "float16": 2.5}
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
            "mean": geometric_mean(row["ratio"] for row in counted), "limit": limits(counted),
            "worst": worst["ratio"], "worst_shape": place(worst),
        })  # fmt: skip
    return result


def limits(rows: list[Row]) -> str:
    """Their common limit, or the least and the largest: that of self-symmetric filters depends on the kernel."""
    ends = [limit(choose(rows, key=lambda row: row["limit"])) for choose in (min, max)]
    return " to ".join(dict.fromkeys(ends))


def place(row: Row) -> str:
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
        place(row), row["tie"], PASS_NAMES[row["pass"]], f"{row['layout']} {row['dtype']}",
        f"{row['backend']} {row['algorithm']}", f"{row['ms_p50']:.3f}", f"{row['baseline_ms']:.3f}",
        f"{row['ratio']:.2f}", f"{row['fraction']:.0%}", f"{row['gmacs_folded']:.0f}",
        f"{row['gflops_dense']:.0f}", f"{row['gbytes']:.0f}", memory,
    ]  # fmt: skip


LEGEND = (
    "4x64@56 is a batch of 4, 64 channels in and out, a map of 56 x 56; 3>64: 3 in, 64 out; ^3: a cube, L: a line;\n"
    "k7: a 7 x 7 kernel (else 3 x 3), s2: stride 2. h>h: the input's tie, then that of the filters; h+: even filters.\n"
    "limit: filters in an orbit, or taps over those that are kept, the most that ties alone can gain; minimal\n"
    "filtering, or a slow kernel of torch's, may carry a ratio beyond it.\n\n"
)


def text(rows: list[Row]) -> str:
    """All tables of a run, with its means, its worst cases, and everything that is slower than the baseline."""
    one = rows[0]
    parts = [
        f"peak here: {one['peak_gflops']:.0f} GFLOP/s ({one['peak_by']}, {one['dtype']}), "
        f"{one['peak_gbytes']:.0f} GB/s (copy); load {min(r['load'] for r in rows)} to "
        f"{max(r['load'] for r in rows)} on {one['threads']} threads\n\n",
        LEGEND, aligned([HEAD, *map(_cells, rows)]), "\n", aligned([MEANS, *means(rows)]), "\n", *_noise(rows),
    ]  # fmt: skip
    below = slower(rows)
    parts.append("below 1.00: " + ("\n" if below else "nothing\n"))
    parts.extend(f"  {row['ratio']:.2f}  {words(row)}\n" for row in below)
    # Not of networks: a rounding that turns a ReLU changes their gradients by far more, and they keep activations.
    layers = [row for row in rows if row["family"] != "model"]
    inexact = [row for row in layers if row["error"] > LESS_EXACT[row["dtype"]]]
    if inexact:
        parts.append("\nless exact than promised (error against float64, as a multiple of torch's):\n")
    parts.extend(f"  {row['error']:.1f}  {words(row)}\n" for row in inexact)
    return "".join(parts + _beside_onednn(rows))


def _noise(rows: list[Row]) -> list[str]:
    """Whether the machine was busy, and the rows whose times varied."""
    parts = []
    if any(noise.busy(row) for row in rows):
        parts.append(
            "THE MACHINE WAS BUSY: do not believe these numbers; close other programs and measure again\n\n"
        )
    unsteady = sorted(((noise.spread([row]), row) for row in rows), key=lambda found: -found[0])
    unsteady = [(spread, row) for spread, row in unsteady if spread > noise.UNSTEADY]
    if unsteady:
        parts.append("ratios that varied while they were measured:\n")
        parts.append(aligned([["", f"±{spread:.0%}", words(row)] for spread, row in unsteady]) + "\n")
    return parts


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


def means(rows: list[Row]) -> list[list[str]]:
    """A line of MEANS for each group of `summary`."""
    return [
        [
            g["family"], PASS_NAMES[g["pass"]], g["tie"], g["layout"], g["dtype"],
            " ".join(filter(None, (g["backend_pin"], g["algorithm_pin"]))) or "-",
            f"{g['mean']:.2f}", str(g["shapes"]), g["limit"], f"{g['worst']:.2f}", g["worst_shape"],
        ]
        for g in summary(rows)
    ]  # fmt: skip


TARGETS = ["target", "must", "goal", "reached", "verdict", "worst", "worst shape"]


def targets_text(rows: list[Row]) -> str:
    """What contributors have to reach, what is reached, and every case that is beyond a bound."""
    parts = [aligned([TARGETS, *target_lines(rows)])]
    slow = [row for row in slower(rows) if row["ratio"] < targets.NOT_SLOWER]
    if slow:
        parts.append(f"\nbelow {targets.NOT_SLOWER}:\n")
    parts.extend(f"  {row['ratio']:.2f}  {words(row)}\n" for row in slow)
    large = [row for row in targets.memory_rows(rows) if row["peak_extra_bytes"] > targets.memory_limit(row)]
    if large:
        parts.append("\nmore extra memory than allowed:\n")
    parts.extend(f"  {row['peak_extra_bytes'] / 1024:.0f} KiB  {words(row)}\n" for row in large)
    return "".join(parts)


def target_lines(rows: list[Row]) -> list[list[str]]:
    """A line of TARGETS for each target; the last lines are bounds of single cases."""
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
        title = "extra memory of a layer, of its limit"
        lines.append([title, "100%", "-", f"{share:.0%}", verdict, "-", words(most)])
    extra = targets.overhead(rows)
    if extra is not None:
        verdict, most = "must" if extra <= targets.OVERHEAD_US else "MISSED", f"{targets.OVERHEAD_US:.0f} µs"
        shape = targets.OVERHEAD_SHAPE
        lines.append(["a call takes longer by at most", most, "-", f"{extra:.1f} µs", verdict, "-", shape])
    return lines


def _target(found: targets.Achieved) -> list[str]:
    mean, worst = ("-" if value is None else f"{value:.2f}" for value in (found.mean, found.worst))
    target = found.target
    return [target.name, str(target.must), str(target.goal), mean, found.verdict, worst, found.worst_shape]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="report of benchmark runs")
    parser.add_argument("results", type=Path, nargs="+", help="files below bench/results")
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], help="files whose bench regions are replaced"
    )
    parser.add_argument("--targets", action="store_true", help="for contributors: what must be reached")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    options = parser.parse_args()
    rows = latest(row for path in options.results for row in load(path))
    print(targets_text(rows) if options.targets else text(rows), end="")
    from bench import regions

    for path in options.into:
        regions.into(path, rows)
    if options.plots:
        from bench import plots

        plots.draw(rows, options.plots)


if __name__ == "__main__":
    main()
