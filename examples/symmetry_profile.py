# How symmetric the mean kernel of each layer is: while a network trains, and in networks that others trained.
"""Follows the symmetry S of mean kernels while an ordinary network learns digits, and looks at trained face detectors.

    python examples/symmetry_profile.py [--quick] [--markdown] [--seeds 3] [--epochs 10]

S is 1 for a mean kernel that no mirror and no rotation changes (Alsallakh et al. 2025, "On Symmetries in Convolutional
Weights"; symconv_fast.analysis.kernel_symmetry). Chance gives S of kernels of independent Gaussian values, as the mean
kernels of new layers are: the percentile says how many of those are less symmetric. h and v are S under one mirror
alone, left to right and top to bottom; chance gives 0.45 for 3 x 3 kernels, 0.38 for 5 x 5 and 0.33 for 2 x 2.

No layer here is tied. The face detectors are P-Net, R-Net and O-Net of MTCNN, whose weights facenet-pytorch brings
(pip install --no-deps facenet-pytorch); their layers of one tap are left out. Writes symmetry_profile.txt and .png to
demo_output/.
"""

from __future__ import annotations

import common  # isort: skip  (before torch: pins its threads)

import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from symconv_fast.analysis import KernelSymmetry, kernel_symmetry
from symconv_fast.tables import Table

SHIPPED = {"P-Net": "pnet.pt", "R-Net": "rnet.pt", "O-Net": "onet.pt"}
UNUSUAL = 95.0  # percentile above which a kernel is more symmetric than chance gives in 19 of 20 cases


@dataclass
class Layer:
    """One convolution of the network that is trained, over seeds and epochs."""

    name: str
    conv: nn.Conv2d
    history: list[list[KernelSymmetry]] = field(default_factory=list)
    """For each seed: before training and after each epoch."""

    def mean(self, epoch: int, what: str = "value") -> float:
        """Over the seeds, at an epoch, of "value", "percentile", "h" or "v"."""
        return statistics.mean(getattr(seed[epoch], what) for seed in self.history)


def follow(data: common.Digits, width: int, seeds: int, epochs: int) -> list[Layer]:
    """Train an ordinary network with each seed and measure its layers before training and after each epoch."""
    layers: list[Layer] = []
    with tqdm(
        total=seeds * epochs * -(-len(data.images) // common.BATCH), desc="training", unit="step", leave=False
    ) as bar:
        for seed in range(seeds):
            torch.manual_seed(seed)
            learner = common.Learner(common.cnn(nn.Conv2d, width), epochs)
            convs = [layer for layer in learner.model.modules() if isinstance(layer, nn.Conv2d)]
            layers = layers or [Layer(f"layer {i}", conv) for i, conv in enumerate(convs, 1)]
            runs: list[list[KernelSymmetry]] = [[kernel_symmetry(conv)] for conv in convs]

            def measure(epoch: int, convs: list[nn.Conv2d] = convs, runs: Any = runs) -> None:
                for run, conv in zip(runs, convs):
                    run.append(kernel_symmetry(conv))

            common.train({"": learner}, data.images, data.labels, seed, bar, measure)
            for layer, run in zip(layers, runs):
                layer.history.append(run)
    return layers


def shipped() -> dict[str, tuple[Tensor, KernelSymmetry]]:
    """Filters of the face detectors and their symmetry, by network and layer."""
    package = importlib.util.find_spec("facenet_pytorch")  # importing it would import torchvision
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "The face detectors of this example need facenet-pytorch: pip install --no-deps facenet-pytorch",
            name="facenet_pytorch",
        )
    found = {}
    for network, file in SHIPPED.items():
        state = torch.load(Path(package.origin).parent / "data" / file, weights_only=True)
        for name, filters in state.items():
            if filters.dim() == 4 and max(filters.shape[2:]) > 1:
                layer = f"{network} {name.removesuffix('.weight')}"
                found[layer] = filters, kernel_symmetry(filters)
    return found


def trained_table(layers: list[Layer]) -> Table:
    """A row for each layer: before training, after one epoch, in the end."""
    epochs = len(layers[0].history[0]) - 1
    rows = []
    for layer in layers:
        first = layer.history[0][0]
        rows.append([
            layer.name, _kernel(layer.conv.weight), str(max(layer.conv.stride)), _chance(first),
            *(f"{layer.mean(epoch):.2f}" for epoch in (0, min(1, epochs), epochs)),
            "  ".join(f"{run[-1].percentile:.0f}" for run in layer.history),
            *(f"{layer.mean(epochs, letter):.2f}" for letter in "hv"),
        ])  # fmt: skip
    columns = ["trained here|", "filters|", "stride", "by chance", "S, new", "epoch 1", f"epoch {epochs}"]
    seeds = len(layers[0].history)
    notes = [
        f"S, h and v: means of {seeds} seeds; percentile: of each seed, in the end"
        if seeds > 1
        else "one seed",
        "by chance: mean and the range of 90 % of Gaussian kernels of this size",
    ]
    return Table("", [*columns, "percentile", "h", "v"], rows, notes)


def shipped_table(found: dict[str, tuple[Tensor, KernelSymmetry]]) -> Table:
    """A row for each layer of the face detectors."""
    rows = [
        [
            name, _kernel(filters), _chance(one), f"{one.value:.2f}", f"{one.percentile:.0f}",
            f"{one.h:.2f}", f"{one.v:.2f}",
        ]
        for name, (filters, one) in found.items()
    ]  # fmt: skip
    return Table("", ["shipped|", "filters|", "by chance", "S", "percentile", "h", "v"], rows)


def _kernel(filters: Tensor) -> str:
    out, inputs, height, width = filters.shape
    return f"{inputs} > {out}, {height} × {width}"


def _chance(one: KernelSymmetry) -> str:
    return f"{one.null.mean:.2f} ({one.null.low:.2f} to {one.null.high:.2f})"


def closing(layers: list[Layer], found: dict[str, tuple[Tensor, KernelSymmetry]]) -> str:
    """Two sentences that say what the numbers mean."""
    runs = [run for layer in layers for run in layer.history]
    before, after = (sum(run[epoch].percentile > UNUSUAL for run in runs) for epoch in (0, -1))
    theirs = sum(one.percentile > UNUSUAL for _, one in found.values())
    return (
        f"Of {len(runs)} mean kernels (all layers and seeds), {before} when new and {after} after training are more "
        f"symmetric than 95 % of Gaussian kernels; of the face detectors {theirs} of {len(found)} are, where chance "
        "would make it one in 20. S is a property of the mean: it says that a layer favours no direction, not that its "
        "filters are mirror images of each other, so that what a tie costs is a question for training."
    )


def draw(layers: list[Layer], found: dict[str, tuple[Tensor, KernelSymmetry]], plt: Any) -> Any:
    """S of each layer by epoch, and of the face detectors, over the band that chance gives."""
    figure, axes = plt.subplots(
        1, len(layers) + 1, figsize=(2.1 * len(layers) + 3.4, 3.4), sharey=True,
        gridspec_kw={"width_ratios": [2] * len(layers) + [3.4]},
    )  # fmt: skip
    for axis, layer in zip(axes, layers):
        null, epochs = layer.history[0][0].null, len(layer.history[0])
        axis.axhspan(null.low, null.high, color="0.88")
        axis.axhline(null.mean, color="0.6", linewidth=0.8)
        for run in layer.history:
            axis.plot(range(epochs), [one.value for one in run], color="#1f6fb4", linewidth=0.8)
        axis.plot(range(epochs), [layer.mean(epoch) for epoch in range(epochs)], color="#1f6fb4", linewidth=2)
        stride = ", stride 2" if max(layer.conv.stride) > 1 else ""
        axis.set_title(f"{layer.name}\n{_kernel(layer.conv.weight)}{stride}")
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("symmetry S of the mean kernel\n(grey: 90 % of Gaussian kernels)")
    axes[0].set_ylim(0, 1)
    last, places = axes[-1], range(len(found))
    for place, (_, one) in zip(places, found.values()):
        last.bar(place, one.null.high - one.null.low, 1, one.null.low, color="0.88")
        last.plot(place, one.value, "o", color="#d9730d")
    last.set_xticks(places, list(found), rotation=60, ha="right", rotation_mode="anchor")
    last.set_title("face detectors, as shipped")
    return figure


def main(
    given: Sequence[str] | None = None,
) -> tuple[list[Layer], dict[str, tuple[Tensor, KernelSymmetry]]]:
    """Train, measure, print, write."""
    parser = common.arguments(str(__doc__).splitlines()[0], seeds=3, epochs=10)
    options = common.parse(parser, given, seeds=1, epochs=2)
    with common.plain_errors("mlxtend", "matplotlib", "rich"):
        found = shipped()
        results = common.Results("symmetry_profile", options)
        data = common.digits(options.quick)
        results.say(
            f"An ordinary network learns {len(data.images):,} digits for {common.epochs(options.epochs)}, "
            f"{common.seeds(options.seeds)}: how symmetric are the mean kernels of its layers?\n"
        )
        layers = follow(data, 8 if options.quick else 64, options.seeds, options.epochs)
        results.table(trained_table(layers))
        results.table(shipped_table(found))
        results.say(closing(layers, found))
        results.finish(partial(draw, layers, found))
    return layers, found


if __name__ == "__main__":
    main()
