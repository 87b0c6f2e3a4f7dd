# Motifs on either strand of simulated DNA: a reverse-complement network beside the usual ways to read both strands.
"""Trains four networks to tell which motif a sequence has, on one strand or the other.

    python examples/equivariant_motifs.py [--quick] [--markdown] [--seeds 3] [--epochs 8] [--width 64]

Each sequence is random but for one motif of eight, written with errors at a random place of a random strand. On the
other strand it reads backwards, with A for T and C for G. Which motif it is does not depend on the strand.

- ordinary: torch's layers, trained on the strand as it comes.
- other strand too: the same, and each training sequence is its reverse complement with probability 1/2.
- averaged: an ordinary network reads both strands, and the mean of its two answers is what counts, in training and
  afterwards. One answer for both strands, at twice the time.
- reverse complement: tied layers that know the complement, the larger of each two strands at the end. One answer for
  both strands, whatever was learnt, from one reading.

All have one width and see the same sequences in the same order, step by step in turns. Writes equivariant_motifs.txt
and .png to demo_output/.
"""

from __future__ import annotations

import common  # isort: skip  (before torch: pins its threads)

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from equivariant_genome import reverse_complement, trunk
from equivariant_layers import Layers
from torch import Tensor, nn

from bench import measure
from symconv_fast.tables import Table

MOTIFS, TAPS = 8, 12  # how many there are, and their length
KEPT = 0.9  # probability that a position of a motif has its letter; else it is any of the four
DILATIONS = (2, 4, 8)
AVERAGED, TIED = "averaged", "reverse complement"


@dataclass(frozen=True)
class Sequences:
    """One-hot DNA (N, 4, L), channels A, C, G, T, and the motif that each has (N,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def simulate(count: int, length: int, motifs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random sequences with one of the motifs (MOTIFS, TAPS) each, half of them on the other strand."""
    draw = {"generator": generator}
    letters = torch.randint(4, (count, length), **draw)
    which = torch.randint(len(motifs), (count,), **draw)
    starts = torch.randint(length - TAPS + 1, (count,), **draw)
    written = motifs[which]
    written = torch.where(
        torch.rand(written.shape, **draw) < KEPT, written, torch.randint(4, written.shape, **draw)
    )
    letters.scatter_(1, starts[:, None] + torch.arange(TAPS), written)
    x = F.one_hot(letters, 4).mT.float()
    other = torch.rand(count, 1, 1, **draw) < 0.5
    return torch.where(other, reverse_complement(x), x).contiguous(), which


def sequences(count: int, test: int, length: int) -> Sequences:
    """Always the same ones."""
    generator = torch.Generator().manual_seed(0)
    motifs = torch.randint(4, (MOTIFS, TAPS), generator=generator)
    return Sequences(*(simulate(n, length, motifs, generator) for n in (count, test)))


class MotifNet(nn.Module):
    """One-hot DNA (N, 4, L) to a number for each motif (N, MOTIFS)."""

    def __init__(self, symmetry: str, width: int) -> None:
        super().__init__()
        layers = Layers(1, symmetry)
        self.trunk = trunk(layers, width, DILATIONS)
        self.head = nn.Sequential(
            nn.AdaptiveMaxPool1d(1),
            layers.pool("max"),
            nn.Flatten(),
            nn.Linear(width // layers.members, MOTIFS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return self.head(self.trunk(x))


class Averaged(nn.Module):
    """The mean of what a network says of both strands."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return (self.net(x) + self.net(reverse_complement(x))) / 2


class OtherStrandToo(common.Learner):
    """A learner that sees about half of the sequences of a batch from the other strand."""

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One training step; returns the loss."""
        chosen = torch.rand(len(images), 1, 1) < 0.5
        return super().step(torch.where(chosen, reverse_complement(images), images), labels)


@dataclass
class Network(common.Network):
    """One of the networks that are compared, and its results; lists have an entry for each seed."""

    right: list[float] = field(default_factory=list)
    """Share of test sequences whose motif is found."""
    agree: list[float] = field(default_factory=list)
    """Share of test sequences of which both strands get the same motif, right or wrong."""
    apart: list[float] = field(default_factory=list)
    """The largest difference of two strands' answers, relative to the largest answer."""
    reading: float = 0.0
    """Milliseconds for a batch, without training."""


def networks(width: int, epochs: int) -> dict[str, Network]:
    """The networks by name, the ordinary one first."""
    ordinary = partial(MotifNet, "", width)
    return {
        "ordinary": Network("", ordinary, epochs),
        "other strand too": Network("", ordinary, epochs, OtherStrandToo),
        AVERAGED: Network("", lambda: Averaged(ordinary()), epochs),
        TIED: Network("h", partial(MotifNet, "h", width), epochs),
    }


@torch.no_grad()
def judge(x: Tensor, labels: Tensor, net: Network, model: nn.Module) -> None:
    """Add what a trained model says of sequences and of their other strands."""
    model.eval()
    plain, other = (
        torch.cat([model(part) for part in each.split(100)]) for each in (x, reverse_complement(x))
    )
    net.right.append((plain.argmax(1) == labels).double().mean().item())
    net.agree.append((plain.argmax(1) == other.argmax(1)).double().mean().item())
    net.apart.append(((plain - other).abs().max() / plain.abs().max()).item())


def time_readings(nets: dict[str, Network], models: dict[str, nn.Module], x: Tensor, seconds: float) -> None:
    """Time a batch without training, in turns."""
    with torch.inference_mode():
        calls = {name: partial(model.eval(), x) for name, model in models.items()}
        for name, timing in measure.interleave(calls, seconds).items():
            nets[name].reading = timing.p50


def table(nets: dict[str, Network]) -> Table:
    """A row for each network."""
    rows = [
        [
            name, common.percent(net.right), common.percent(net.agree), f"{max(net.apart):.0e}", f"{net.parameters:,}",
            f"{net.milliseconds:.3g}", f"{net.reading:.3g}",
        ]
        for name, net in nets.items()
    ]  # fmt: skip
    seeds = len(next(iter(nets.values())).right)
    notes = [
        "found: test sequences whose motif is named right, "
        + (f"mean ± deviation of {seeds} seeds" if seeds > 1 else "one seed"),
        "agree: sequences of which both strands get the same motif, right or wrong",
        "apart: the largest difference between the answers for two strands, of the largest answer",
        f"step, read: one of training, and one without, of {common.BATCH} sequences; medians, in turns",
    ]
    return Table("", ["network|", "found", "agree", "apart", "weights", "step, ms", "read, ms"], rows, notes)


def closing(nets: dict[str, Network]) -> str:
    """A sentence that says what the numbers mean."""
    both, tied = nets[AVERAGED], nets[TIED]
    return (
        f"Two networks give one answer for both strands, to rounding. That of tied layers has "
        f"{both.parameters / tied.parameters:.1f} times fewer weights, trains "
        f"{both.milliseconds / tied.milliseconds:.1f} and reads {both.reading / tied.reading:.1f} times as fast as the "
        "averaged one."
    )


def draw(nets: dict[str, Network], plt: Any) -> Any:
    """Motifs that are found, over the time of a training step."""
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for (name, net), marker in zip(nets.items(), "osD^"):
        percents = [100 * share for share in net.right]
        axis.plot([net.milliseconds] * len(percents), percents, "_", color="gray", markersize=12)
        axis.plot(net.milliseconds, statistics.mean(percents), marker, label=name)
    axis.set_xlim(left=0)
    axis.set_xlabel("milliseconds a training step")
    axis.set_ylabel("motifs found, %\n(lines: seeds; axis cut)")
    axis.legend()
    return figure


def main(given: Sequence[str] | None = None) -> dict[str, Network]:
    """Train, judge, print, write."""
    parser = common.arguments(str(__doc__).splitlines()[0], seeds=3, epochs=8, width=64, length=200)
    options = common.parse(parser, given, seeds=1, epochs=1, width=8, length=60)
    if options.length < TAPS:
        parser.error(
            f"--length {options.length} is too short for motifs of {TAPS} letters; give {TAPS} or more"
        )
    with common.plain_errors("matplotlib", "rich"):
        results = common.Results("equivariant_motifs", options)
        data = sequences(*(128, 64) if options.quick else (2000, 1000), options.length)
        nets = networks(options.width, options.epochs)
        results.say(
            f"Four networks of one width, trained on {len(data.train[0]):,} sequences of {options.length} letters for "
            f"{common.epochs(options.epochs)}, tested on {len(data.test[0]):,} others and their other strands. "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32, {common.seeds(options.seeds)}.\n"
        )
        models = common.compare(nets, *data.train, options.seeds, partial(judge, *data.test))
        time_readings(nets, models, data.test[0][: common.BATCH], 0.05 if options.quick else 4.0)
        results.table(table(nets))
        results.say(closing(nets))
        results.finish(partial(draw, nets))
    return nets


if __name__ == "__main__":
    main()
