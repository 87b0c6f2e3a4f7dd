# One equivariant network here and in e2cnn and escnn: whether the numbers are equal, its time and its memory.
"""python -m bench.peers [--symmetry h] [--widths 64,128,128] [--size 57] [--batch 4] [--seconds 6] [--markdown]

Three 3 x 3 convolutions from an image to regular fields of the mirrors (orbits, here), batch norm of each field, ReLU,
the maximum of each field, the mean over positions and a linear layer. The filters that the peers expand are projected
into ours, so that all compute the same; outputs and gradients of the input are compared first. Then the forward pass
(in eval mode, where the peers keep expanded filters) and the training step (forward, backward, update) are timed in
turns, in one process, with the ordinary network of the same width. Each network runs in the memory format that suits it
best.

The peers are no dependencies. They want NumPy 1 and an environment of their own:

    python3 -m venv PEERS && PEERS/bin/pip install "numpy<2" torch==2.13.0 rich tqdm e2cnn==0.2.3 joblib
    PEERS/bin/pip install --no-deps escnn==1.0.11 lie_learn pymanopt autograd && PEERS/bin/pip install requests
    PYTHONPATH=. PEERS/bin/python -m bench.peers

What cannot be imported or run is named with its error, and the others are measured.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bench.device import device
from bench.measure import interleave, provenance
from symconv_fast import SymmetricConv2d
from symconv_fast.nn import OrbitBatchNorm2d, OrbitPool
from symconv_fast.tables import Table

OURS, ORDINARY = "symconv_fast", "ordinary"
SPACES = {
    "e2cnn": {"h": ("Flip2dOnR2", ()), "hv": ("FlipRot2dOnR2", (2,))},
    "escnn": {"h": ("flip2dOnR2", ()), "hv": ("flipRot2dOnR2", (2,))},
}
# The members of an orbit, as masks of mirrored axes, in the order of a regular field: no mirror and the reflection;
# no mirror, the rotation, which is both mirrors, the reflection, and both together, which is the other mirror.
FIELD = {"h": (0, 1), "hv": (0, 3, 1, 2)}
COLOURS, CLASSES = 3, 10
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
SAME = 1e-5  # relative norm of what outputs and gradients may differ by: the peers pool in float32
PASSES = ("forward", "training step")


def ordinary(symmetry: str, widths: Sequence[int]) -> nn.Module:
    """torch's layers of the same width."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((COLOURS, *widths)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))


def tied(symmetry: str, widths: Sequence[int]) -> nn.Module:
    """The network of this package."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise((COLOURS, *widths))):
        moves = symmetry if place else None
        conv = SymmetricConv2d(
            inputs, outputs, 3, padding=1, symmetry=symmetry, input_symmetry=moves, bias=False
        )
        layers += [conv, OrbitBatchNorm2d(outputs, symmetry), nn.ReLU()]
    head = nn.Linear(widths[-1] >> len(symmetry), CLASSES)
    return nn.Sequential(*layers, OrbitPool(symmetry, "max"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class Peer(nn.Module):
    """The same network by the layers of e2cnn or escnn, whose interfaces differ in the names of groups alone."""

    def __init__(self, package: str, symmetry: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.library: Any = importlib.import_module(f"{package}.nn")
        name, arguments = SPACES[package][symmetry]
        space = getattr(importlib.import_module(f"{package}.gspaces"), name)(*arguments)
        self.symmetry, parts = symmetry, []
        self.image = kind = self.library.FieldType(space, [space.trivial_repr] * COLOURS)
        for width in widths:
            fields = self.library.FieldType(space, [space.regular_repr] * (width >> len(symmetry)))
            parts += [
                self.library.R2Conv(kind, fields, 3, padding=1, bias=False),
                self.library.InnerBatchNorm(fields),
                self.library.ReLU(fields, inplace=True),
            ]
            kind = fields
        self.body = self.library.SequentialModule(*parts, self.library.GroupPooling(kind))
        linear = nn.Linear(widths[-1] >> len(symmetry), CLASSES)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)

    def forward(self, x: Tensor) -> Tensor:
        """(N, COLOURS, H, W) to (N, CLASSES)."""
        features = self.body(self.library.GeometricTensor(x, self.image)).tensor
        return self.head(features.to(x.dtype))

    def places(self, channels: int) -> Tensor:
        """Which of its channels each of ours is: members of an orbit are a field's neighbours there, blocks here."""
        fields = FIELD[self.symmetry]
        rows = range(channels // len(fields))
        return torch.tensor(
            [row * len(fields) + fields.index(member) for member in sorted(fields) for row in rows]
        )

    @torch.no_grad()
    def give(self, ours: nn.Module) -> None:
        """Set the weights of our network to what this one computes with.

        Raises:
            AssertionError: its filters are not tied as ours are.
        """
        theirs = [layer for layer in self.modules() if isinstance(layer, self.library.R2Conv)]
        mine = [layer for layer in ours.modules() if isinstance(layer, SymmetricConv2d)]
        for place, (their, conv) in enumerate(zip(theirs, mine, strict=True)):
            filters = their.expand_parameters()[0][self.places(conv.out_channels)]
            filters = filters[:, self.places(conv.in_channels)] if place else filters
            lost = conv.ties.lost_energy(filters)
            assert lost < 1e-10, (
                f"convolution {place}: filters lose {lost:.1e} of their energy as {self.symmetry!r}"
            )
            conv.weight.copy_(conv.ties.project(filters))
        ours[-1].load_state_dict(self.head[-1].state_dict())


@dataclass
class Entrant:
    """A network, and what was found of it; times and bytes by pass."""

    net: nn.Module
    error: float | None = None
    ms: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.net.parameters())


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Of outputs and gradients of the input, in eval and in training mode: relative norm, the largest.

    In float64, since a rounding that turns a ReLU moves gradients by far more than rounding does.
    """
    found = [0.0]
    for training in (False, True):
        pairs = []
        for net in (one, other):
            leaf = x.double().requires_grad_()
            y = net.double().train(training)(leaf)
            pairs.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
        found += [float((a - b).norm() / b.norm()) for a, b in zip(*pairs, strict=True)]
    return max(found)


def calls_of(net: nn.Module, x: Tensor, name: str) -> Callable[[], object]:
    """A function without arguments for a pass; the update changes no weight, so that all steps do the same."""
    if name == "forward":
        net.eval()

        def forward() -> Tensor:
            with torch.no_grad():
                return net(x)

        return forward
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    return step


def time_all(entrants: dict[str, Entrant], x: Tensor, seconds: float) -> None:
    """Time each pass of all networks in turns, in both memory formats; what is kept is the faster one."""
    for name in PASSES:
        calls = {}
        for who, entrant in entrants.items():
            for kind, layout in FORMATS.items():
                net = entrant.net
                if not isinstance(net, Peer):  # peers expand their filters anew, in a layout of their own
                    net = copy.deepcopy(net).to(memory_format=layout)
                calls[who, kind] = calls_of(net, x.contiguous(memory_format=layout), name)
        timings = interleave({"/".join(key): call for key, call in calls.items()}, seconds)
        for who, entrant in entrants.items():
            best = min(FORMATS, key=lambda kind: timings[f"{who}/{kind}"].p20)
            entrant.ms[name] = timings[f"{who}/{best}"].p20
            entrant.held[name] = device("cpu").peak_extra_bytes(calls[who, best])


def enter(symmetry: str, widths: Sequence[int], x: Tensor) -> tuple[dict[str, Entrant], list[str]]:
    """The networks that can be made, compared with ours; and for each that cannot, why."""
    torch.manual_seed(0)
    entrants, missing = {ORDINARY: Entrant(ordinary(symmetry, widths))}, []
    mine = Entrant(tied(symmetry, widths))
    for package in SPACES:
        try:
            peer = Peer(package, symmetry, widths)
            peer.eval()(x)  # in training mode it would change the statistics of its norms
        except Exception as reason:
            missing.append(f"{package} does not run here: {type(reason).__name__}: {reason}")
            continue
        peer.give(mine.net)
        # Of a part: the peers' bases are samples in float32, and among millions of values one is near enough to 0 for
        # that to turn its ReLU.
        error = difference(copy.deepcopy(mine.net), peer, x[:1, :, :17, :17])
        peer.float()
        assert error < SAME, f"{package} computes something else: {error:.1e}"
        entrants[package] = Entrant(peer, error)
    return {**entrants, OURS: mine}, missing


def table(entrants: dict[str, Entrant], missing: list[str]) -> Table:
    """A row for each network."""
    old, rows = entrants[ORDINARY], []
    for who, one in entrants.items():
        rows.append([who, f"{one.weights:,}", "" if one.error is None else f"{one.error:.0e}"])
        for name in PASSES:
            ratio, held = old.ms[name] / one.ms[name], one.held[name] / 2**20
            rows[-1] += [f"{one.ms[name]:.2f}", f"{ratio:.2f}", f"{held:.1f}"]
    columns = [f"{name}{what}" for name in PASSES for what in (", ms", ", ratio", ", MiB")]
    notes = [
        "differs: outputs and input gradients from ours, relative",
        "ms: the 20th percentile, since what other programs take makes times longer alone; ratio: times as fast",
    ]
    notes += ["MiB: held at the peak of a pass beyond its result", *missing]
    return Table("", ["network|", "weights", "differs", *columns], rows, notes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--symmetry", choices=tuple(FIELD), default="h")
    parser.add_argument("--widths", default="64,128,128", help="channels of each convolution, with commas")
    parser.add_argument("--size", type=int, default=57, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0, help="to time each pass of all networks")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    widths = [int(width) for width in given.widths.split(",")]
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(given.batch, COLOURS, given.size, given.size, generator=drawn)
    entrants, missing = enter(given.symmetry, widths, x)
    time_all(entrants, x, given.seconds)
    about, found = provenance(), table(entrants, missing)
    print(
        f"symmetry {given.symmetry!r}, widths {given.widths}, input {tuple(x.shape)}; {about['device']} "
        f"({about.get('capability')}), {about['threads']} threads, torch {about['torch']}, {str(about['date'])[:10]}\n"
    )
    print(found.markdown() if given.markdown else found)
    if given.markdown:
        print("\n" + "\n".join(f"- {note}" for note in found.notes))


if __name__ == "__main__":
    main()
