# Draws stored rows: ratios by shape, a roofline, and the ratio over the number of channels.
"""Plots of a benchmark run, each as SVG and PNG."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.rows import PASS_NAMES, Row

TIE_COLOURS = {"h": "tab:blue", "v": "tab:cyan", "hv": "tab:orange", "hvz": "tab:green"}


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Write `ratio`, `roofline` and `channels` into a folder; returns the files. Only rows without pins are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    free = [row for row in rows if not row["backend_pin"] and not row["algorithm_pin"]]
    kinds: dict[str, Callable[[list[Row]], Any]] = {
        "ratio": ratio,
        "roofline": roofline,
        "channels": channels,
    }
    written = []
    for name, make in kinds.items():
        figure = make(free)
        # No date and no random names inside: the same rows give the same file.
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        written += [folder / f"{name}.svg", folder / f"{name}.png"]
    return written


def ratio(rows: list[Row]) -> Any:
    """Bars: ratio by shape and tie, a panel a pass and dtype; dashed lines are the limits |G|."""
    panels = list(dict.fromkeys((row["pass"], row["dtype"]) for row in rows))
    most = max(
        len({(_short(row), row["layout"]) for row in rows if (row["pass"], row["dtype"]) == p})
        for p in panels
    )
    size = (max(12.0, 0.4 * most), 3.4 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False)
    for axis, (direction, dtype) in zip(axes[:, 0], panels, strict=True):
        mine = [row for row in rows if (row["pass"], row["dtype"]) == (direction, dtype)]
        bars(axis, mine)
        axis.set_title(
            f"{PASS_NAMES[direction]}, {dtype}: times faster than the baseline; dashed: the limit |G|"
        )
    figure.tight_layout()
    return figure


def bars(axis: Any, rows: list[Row]) -> None:
    """Draw the ratios of one pass: a group a shape and layout, a bar a tie, lines at 1 and at the limit of each tie."""
    place = [(f"{_short(row)}\n{row['layout'].replace('contiguous', 'NCHW')}", row["tie"]) for row in rows]
    names, ties = list(dict.fromkeys(name for name, _ in place)), list(dict.fromkeys(tie for _, tie in place))
    here = {name: [tie for at, tie in place if at == name] for name in names}
    width = 0.8 / max(map(len, here.values()))
    for tie in ties:
        mine = [(name, row) for (name, at), row in zip(place, rows, strict=True) if at == tie]
        xs = [
            names.index(name) + (here[name].index(tie) - (len(here[name]) - 1) / 2) * width
            for name, _ in mine
        ]
        colour = TIE_COLOURS.get(tie)
        axis.bar(xs, [row["ratio"] for _, row in mine], width, label=tie, color=colour)
        axis.hlines(
            [row["limit"] for _, row in mine], [x - width / 2 for x in xs], [x + width / 2 for x in xs],
            color=colour, linestyle="--", linewidth=1.0,
        )  # fmt: skip
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, fontsize=6, rotation=90 if len(names) > 12 else 0)
    axis.set_ylabel("times faster")
    axis.legend(title="tie", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _short(row: Row) -> str:
    return str(row["model"] if row["family"] == "model" else row["shape"])


def roofline(rows: list[Row]) -> Any:
    """Rates over arithmetic intensity, forward passes: executed operations (dots) and dense-equivalent ones (rings)."""
    forward = [row for row in rows if row["pass"] == "fwd" and row["family"] not in ("model", "small")]
    dtypes = list(dict.fromkeys(row["dtype"] for row in forward))
    figure, axes = plt.subplots(1, max(1, len(dtypes)), figsize=(8 * max(1, len(dtypes)), 5.5), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes):
        mine = [row for row in forward if row["dtype"] == dtype]
        for tie in dict.fromkeys(row["tie"] for row in mine):
            at = [row for row in mine if row["tie"] == tie]
            intensity = [row["flops_per_byte"] for row in at]
            colour = TIE_COLOURS.get(tie)
            axis.plot(intensity, [2 * row["gmacs_folded"] for row in at], "o", color=colour, label=tie)
            axis.plot(intensity, [row["gflops_dense"] for row in at], "o", color=colour, fillstyle="none")
        _roof(axis, mine)
        axis.set_title(f"{dtype}: dots are executed, rings dense-equivalent operations")
    figure.tight_layout()
    return figure


def _roof(axis: Any, rows: list[Row]) -> None:
    """The measured peaks as lines; caches may lift dots above the slope, which is that of main memory."""
    peak = max(row["peak_gflops"] for row in rows)
    slope = max(row["peak_gbytes"] for row in rows)
    low, high = min(row["flops_per_byte"] for row in rows) / 2, max(row["flops_per_byte"] for row in rows) * 2
    xs = sorted((low, peak / slope, high))
    axis.plot(
        xs, [min(peak, slope * x) for x in xs], color="black", label=f"{peak:.0f} GFLOP/s, {slope:.0f} GB/s"
    )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="executed operations a byte (input, output and reduced weight once)",
    )
    axis.set_ylabel("GFLOP/s")
    axis.legend()


def channels(rows: list[Row]) -> Any:
    """Ratio of the forward pass over the number of input channels, 3 x 3 and 3 x 3 x 3 layers, a line at each limit."""
    figure, axis = plt.subplots(figsize=(8, 5))
    dense = [row for row in rows if row["pass"] == "fwd" and re.fullmatch(r"\d+x\d+@\d+(\^3)?", row["shape"])]
    groups = dict.fromkeys((row["tie"], row["layout"], row["dtype"]) for row in dense)
    for tie, layout, dtype in groups:
        mine = [row for row in dense if (row["tie"], row["layout"], row["dtype"]) == (tie, layout, dtype)]
        points = sorted(
            (int(row["shape"].split("x")[1].split("@")[0]), row["ratio"], row["limit"]) for row in mine
        )
        marker = "o" if layout == "channels_last" else "s"
        fill = "full" if dtype == "float32" else "none"
        label = f"{tie} {layout} {dtype}"
        colour = TIE_COLOURS.get(tie)
        axis.plot(
            [c for c, *_ in points],
            [r for _, r, _ in points],
            marker,
            label=label,
            color=colour,
            fillstyle=fill,
        )
        axis.axhline(points[0][2], color=colour, linestyle="--", linewidth=0.8)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set(
        xlabel="input channels",
        ylabel="times faster than the baseline",
        title="forward; dashed: the limit |G|",
    )
    axis.set_xscale("log", base=2)
    if groups:
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure
