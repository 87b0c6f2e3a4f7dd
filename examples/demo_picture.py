# The picture of `make demo`: accuracy, what the networks cost, and the ratios of the layers.
"""Draws what examples/demo.py measured; what its noise guard doubts is left out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import noise, plots  # draws without a screen
from bench.rows import Row


def draw(networks: Sequence[Any], network_rows: dict[str, Row], layer_rows: list[Row], path: Path) -> None:
    """Accuracy, what the networks cost, and the ratios of the layers, but for what is withheld.

    Args:
        networks: the ordinary one and the tied one, with `accuracy` of each run, `parameters` and `macs`.
        network_rows: rows of the noise guard for "epoch" and "batch".
        layer_rows: forward and training step of each layer.
        path: of the picture, a PNG.
    """
    plt = plots.plt
    with plots.matplotlib.rc_context(plots.STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(11, 4), gridspec_kw={"width_ratios": [2, 3, 6]}
        )
        old, new = networks
        for place, net in enumerate((old, new)):
            percent = [100 * value for value in net.accuracy]
            left.bar(place, statistics.mean(percent), 0.6, color=("gray", plots.TIE_COLOURS["hv"])[place])
            left.plot([place] * len(percent), percent, "k_", markersize=12)
        left.set_ylim(max(0.0, 100 * min(old.accuracy + new.accuracy) - 3), 100.5)
        left.set_xticks((0, 1), ("ordinary", "tied"))
        left.set_title("digits read right, %\n(marks: runs; axis cut)")
        share = {"weights": new.parameters / old.parameters, "multipli-\ncations": new.macs / old.macs}
        for name, key in (("training\ntime", "epoch"), ("inference\ntime", "batch")):
            if not noise.doubt(network_rows[key]):
                share[name] = 1 / network_rows[key]["ratio"]
        middle.bar(list(share), list(share.values()), 0.6, color=plots.TIE_COLOURS["hv"])
        middle.axhline(1.0, color="black", linewidth=0.8)
        middle.set_title("tied network,\nas a share of the ordinary one")
        _layers(right, layer_rows)
        figure.tight_layout()
        figure.savefig(path, dpi=130)


def _layers(axis: Any, rows: list[Row]) -> None:
    """Bars of the forward ratios, rings of the training steps, and a tick at each limit."""
    ties = {row["shape"]: row["tie"] for row in reversed(rows)}
    names = list(ties)
    for row in rows:
        place = names.index(row["shape"])
        axis.plot([row["limit"]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.5)
        if noise.doubt(row):
            continue
        if row["pass"] == "fwd":
            axis.barh(place, row["ratio"], 0.7, color=plots.TIE_COLOURS[row["tie"]])
        else:
            axis.plot(row["ratio"], place, "o", color="black", markerfacecolor="white", markersize=5)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), [f"{name}  {ties[name]}" for name in names])
    axis.set_xlim(0, 4.5)
    axis.set_title(
        "layers: times as fast as torch's\n(bars: forward, rings: training step, ticks: limit of the tie)"
    )
