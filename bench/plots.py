# Draws stored rows: sorted ratios beside their limits, ratios over the number of channels, and a roofline.
"""Plots of a benchmark run, each as SVG and PNG, 800 pixels wide."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
# Else it says that it builds its font cache, the first time.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
import matplotlib.pyplot as plt  # noqa: E402

from bench.rows import Row, limit  # noqa: E402

TIE_COLOURS = {"h": "#1f6fb4", "v": "#0f8f9c", "hv": "#d9730d", "hvz": "#2e8540"}
TIE_WORDS = {
    "h": "h: pairs, mirrored left to right",
    "v": "v: pairs, mirrored top to bottom",
    "hv": "hv: quadruples",
    "hvz": "hvz: octuples",
}
WIDTH = 800 / 96  # inches: a browser shows 96 pixels for one
STYLE = {
    # Text stays text: files are small, and browsers draw it with a font that they have.
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 8.5,  # points, 11 pixels
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",  # also where the page is dark
    "axes.axisbelow": True,
}
NAMES = "4x64@56: a batch of 4, 64 channels in and out, on a 56 x 56 map; 3 x 3 kernels, where k7 does not say 7 x 7"
BEYOND = "beyond the limit: minimal filtering adds to pairs, and some layers are slow in torch (depthwise, 7 x 7 maps)"
BASELINE = "torch's convolution on filters expanded beforehand"


def label(row: Row) -> str:
    """Network and shape. A tied depthwise layer has |G| filters a channel, those of the networks have one."""
    if row["family"] == "depthwise":
        return f"{row['shape'].removesuffix(' depthwise')}  depthwise, {limit(row)} filters a channel"
    return f"{row['model']}  {row['shape']}"


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
        # No date and no random names inside: the same rows give the same file.
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            figure = make(free)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=144)
        plt.close(figure)
        written += [folder / f"{name}.svg", folder / f"{name}.png"]
    return written


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """Single layers of the commonest dtype, in channels_last where there is a choice: what one scale can compare."""
    layers = [row for row in rows if row["family"] not in ("model", "equivariant")]
    dtype = Counter(row["dtype"] for row in layers).most_common(1)[0][0]
    return [
        row
        for row in layers
        if row["dtype"] == dtype and (row["layout"] == "channels_last" or "@L" in row["shape"])
    ]


def machine(rows: list[Row]) -> str:
    """Where and when, for a caption."""
    one = rows[0]
    where = f"{one['device']}, {one.get('threads', 1)} threads, torch {one['torch']}"
    return f"{where}, {one['dtype']}, {str(one['date'])[:10]}"


# --- ratios, sorted --------------------------------------------------------------------------------------------------


def ratio(rows: list[Row]) -> Any:
    """Bars: the ratio of every layer, a panel a tie, sorted; a line at the limit |G|, a ring for the training step.

    Layers that are so small that the call itself takes the time stand in the caption.
    """
    mine = main_rows(rows)
    layers = [row for row in mine if row["family"] != "small"] or mine
    ties = _drawn(row for row in layers if row["pass"] == "fwd")
    counts = [sum(row["tie"] == tie and row["pass"] == "fwd" for row in layers) for tie in ties]
    figure, axes = plt.subplots(
        len(ties), 1, figsize=(WIDTH, 0.145 * sum(counts) + 0.36 * len(ties) + 1.2), sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": [count + 0.6 for count in counts]},
    )  # fmt: skip
    for axis, tie in zip(axes[:, 0], ties, strict=True):
        bars(axis, [row for row in layers if row["tie"] == tie])
        axis.set_title(TIE_WORDS[tie], loc="left", fontsize=9, fontweight="bold", pad=4)
    axes[0, 0].legend(*_once(axes[:, 0]), loc="lower right", borderaxespad=0.2)
    axes[0, 0].set_xlim(
        0, 1.02 * max(max(row["ratio"], row["limit"]) for row in layers if row["tie"] in ties)
    )
    axes[-1, 0].set_xlabel(f"times as fast as {BASELINE}", fontweight="bold")
    figure.supxlabel("\n".join([NAMES, BEYOND, *_tiny(mine), machine(mine)]), fontsize=8, ha="left", x=0.012)
    figure.tight_layout(h_pad=0.5)
    return figure


def bars(axis: Any, rows: list[Row]) -> None:
    """One tie: sorted bars with their numbers, lines at 1 and at the limit, rings for training steps."""
    forward = sorted((row for row in rows if row["pass"] == "fwd"), key=lambda row: row["ratio"])
    steps = {row["shape"]: row["ratio"] for row in rows if row["pass"] == "step"}
    axis.barh(
        range(len(forward)), [row["ratio"] for row in forward], 0.74, color=TIE_COLOURS.get(forward[0]["tie"]),
        label="forward",
    )  # fmt: skip
    for place, row in enumerate(forward):
        axis.annotate(f"{row['ratio']:.1f}", (0.06, place), color="white", va="center", fontsize=8)
    for most in dict.fromkeys(row["limit"] for row in forward):
        axis.axvline(most, color="black", linewidth=1.3, linestyle=(0, (4, 2)), label="limit of the tie")
        axis.annotate(f"limit {most:.3g}", (most, 0), (5, 0), textcoords="offset points", va="center")
    axis.axvline(1.0, color="black", linewidth=0.8, label="1: as fast as torch")
    at = [(steps[row["shape"]], place) for place, row in enumerate(forward) if row["shape"] in steps]
    if at:
        axis.plot(
            *zip(*at), "o", color="black", markerfacecolor="white", markersize=4.5, label="training step"
        )
    axis.set_yticks(range(len(forward)), [label(row) for row in forward])
    axis.set_ylim(-0.6, len(forward) - 0.4)
    axis.tick_params(axis="y", length=0)


def _drawn(rows: Iterable[Row]) -> list[str]:
    """The ties that are drawn: `v` is as `h` within a few per cent, and stands in the tables."""
    found = {row["tie"] for row in rows}
    return [tie for tie in TIE_WORDS if tie in found and not (tie == "v" and "h" in found)]


def _once(axes: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Handles and labels of all axes, each label once; colours that differ by the tie are told by the titles."""
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _tiny(rows: list[Row]) -> list[str]:
    """Ratios of the layers in which the call itself takes the time, as a line of a caption."""
    small = [row for row in rows if row["family"] == "small" and row["pass"] == "fwd"]
    found = []
    for tie in dict.fromkeys(row["tie"] for row in small):
        ratios = sorted(row["ratio"] for row in small if row["tie"] == tie)
        found.append(f"{ratios[0]:.1f}" + (f" to {ratios[-1]:.1f}" if len(ratios) > 1 else "") + f" ({tie})")
    return [f"not drawn: tiny layers, where the call takes the time: {', '.join(found)}"] if found else []


# --- ratio over channels ---------------------------------------------------------------------------------------------


def channels(rows: list[Row]) -> Any:
    """Ratio of the forward pass over the number of input channels, 3 x 3 and 3 x 3 x 3 layers, a panel a tie."""
    dense = [row for row in rows if row["pass"] == "fwd" and re.fullmatch(r"\d+x\d+@\d+(\^3)?", row["shape"])]
    dtype = Counter(row["dtype"] for row in dense).most_common(1)[0][0] if dense else ""
    dense = [row for row in dense if row["dtype"] == dtype and row["family"] in ("2-D", "3-D", "small")]
    ties = _drawn(dense) or ["h"]
    figure, axes = plt.subplots(1, len(ties), figsize=(WIDTH, 3.6), sharex=True, sharey=True, squeeze=False)
    for axis, tie in zip(axes[0], ties, strict=True):
        mine = [row for row in dense if row["tie"] == tie]
        for layout, marker in (("channels_last", "o"), ("contiguous", "s")):
            some = [row for row in mine if row["layout"] == layout]
            axis.plot(
                [_channels(row) for row in some], [row["ratio"] for row in some], marker, label=layout,
                color=TIE_COLOURS[tie], markersize=5, fillstyle="full" if marker == "o" else "none",
            )  # fmt: skip
        for most in dict.fromkeys(row["limit"] for row in mine):
            axis.axhline(most, color="black", linewidth=1.3, linestyle=(0, (4, 2)))
            axis.annotate(
                f"limit {most:.3g}", (0.02, most), (0, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points",
            )  # fmt: skip
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_title(TIE_WORDS[tie].partition(",")[0], loc="left", fontsize=9, fontweight="bold")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
    axes[0, 0].set_ylim(0, 1.05 * max([1.0, *(max(row["ratio"], row["limit"]) for row in dense)]))
    axes[0, 0].set_ylabel("times as fast as torch, forward")
    figure.supxlabel(
        "input channels of a layer (dots: channels_last, squares: contiguous tensors)", fontsize=8.5
    )
    figure.tight_layout()
    return figure


def _channels(row: Row) -> int:
    return int(row["shape"].split("x")[1].split("@")[0])


# --- roofline --------------------------------------------------------------------------------------------------------


def roofline(rows: list[Row]) -> Any:
    """Rates over arithmetic intensity, forward: operations of the reduced weight (dots), dense-equivalent (rings)."""
    forward = [row for row in main_rows(rows) if row["pass"] == "fwd" and row["family"] != "small"]
    figure, axis = plt.subplots(figsize=(WIDTH, 4.9))
    for tie in (tie for tie in TIE_WORDS if any(row["tie"] == tie for row in forward)):
        at = [row for row in forward if row["tie"] == tie]
        intensity, colour = [row["flops_per_byte"] for row in at], TIE_COLOURS[tie]
        axis.plot(
            intensity,
            [2 * row["gmacs_folded"] for row in at],
            "o",
            color=colour,
            markersize=5,
            label=TIE_WORDS[tie],
        )
        axis.plot(
            intensity, [row["gflops_dense"] for row in at], "o", color=colour, markersize=6, fillstyle="none"
        )
    _roof(axis, forward)
    figure.supxlabel(
        "Rings may lie above the roof: they count the ordinary layer's work, most of which the tie makes unnecessary.\n"
        "Dots count the products of the reduced weight, of which minimal filtering (h, v) leaves out a third again.",
        fontsize=8.5, ha="left", x=0.012,
    )  # fmt: skip
    figure.tight_layout()
    return figure


def _roof(axis: Any, rows: list[Row]) -> None:
    """The measured peaks as lines; caches may lift dots above the slope, which is that of main memory."""
    peak = max(row["peak_gflops"] for row in rows)
    slope = max(row["peak_gbytes"] for row in rows)
    low, high = min(row["flops_per_byte"] for row in rows) / 2, max(row["flops_per_byte"] for row in rows) * 3
    xs = sorted((low, peak / slope, high))
    axis.plot(xs, [min(peak, slope * x) for x in xs], color="black", linewidth=1.3)
    axis.annotate(
        f"roof: {peak:.0f} GFLOP/s",
        (high, peak),
        (0, 4),
        textcoords="offset points",
        ha="right",
    )
    axis.set(xscale="log", yscale="log", ylabel="GFLOP/s, forward")
    axis.set_xlabel("operations a byte (input, output and reduced weight moved once)")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:,.0f}")
    axis.legend(title="dots: as executed; rings: dense-equivalent", loc="lower right", alignment="left")
