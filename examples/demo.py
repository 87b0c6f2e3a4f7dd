# `make demo`: the same small network with ordinary and with symmetric convolutions, trained and timed side by side.
"""Demonstration: accuracy, size and speed on handwritten digits, then single layers of real networks.

Both networks see the same images in the same order, epoch by epoch in turns, so that the times can be compared. The
numbers are printed as they come out, slower ones included. Writes demo_output/demo.txt and demo_output/demo.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench.threads  # noqa: F401, I001  (before torch: pins its threads)

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from bench import cases, measure, shapes
from bench.case import Case
from bench.rows import PASS_NAMES, Row, aligned
from symconv_fast import SymmetricConv2d

ORDINARY, SYMMETRIC = "nn.Conv2d", "SymmetricConv2d"
TIES = "hv"  # quadruples: a quarter of the weights
LAYERS = {
    "4x64@56": "h",
    "4x128@28": "v",
    "4x256@14": "hv",
    "1x128@112": "h",
    "1x256@56": "hv",
    "1x3>64@224": "h",
}


@dataclass
class Network:
    """Results of one of the two networks over all seeds."""

    make: Callable[..., nn.Module]
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0
    images_per_second: float = 0.0


def cnn(conv: Callable[..., nn.Module]) -> nn.Module:
    """Five convolutions; `conv` makes all but the first, which has one input channel and nothing to save."""

    def block(make: Callable[..., nn.Module], inputs: int, outputs: int) -> list[nn.Module]:
        return [
            make(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *block(nn.Conv2d, 1, 32), nn.MaxPool2d(2),
        *block(conv, 32, 64), *block(conv, 64, 128), nn.MaxPool2d(2),
        *block(conv, 128, 128), *block(conv, 128, 256),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def networks() -> dict[str, Network]:
    """The two networks that are compared."""
    return {
        ORDINARY: Network(partial(cnn, nn.Conv2d)),
        SYMMETRIC: Network(partial(cnn, partial(SymmetricConv2d, symmetry=TIES))),
    }


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 handwritten digits of scikit-learn, upscaled to 32 x 32: (1797, 1, 32, 32) and (1797,)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule, images: Tensor, labels: Tensor
) -> float:
    """One pass over shuffled batches; returns its seconds."""
    start = time.perf_counter()
    model.train()
    for batch in zip(images.split(64), labels.split(64), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that are recognised."""
    model.eval()
    return (model(images).argmax(1) == labels).double().mean().item()


def train(
    nets: dict[str, Network], seed: int, epochs: int, images: Tensor, labels: Tensor
) -> dict[str, nn.Module]:
    """Train both networks on the same three quarters of the images, epoch by epoch in turns."""
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    split = len(order) * 3 // 4
    rest, test = order[:split], order[split:]
    models, steps = {}, {}
    for name, net in nets.items():
        torch.manual_seed(seed)
        models[name] = net.make()
        optimizer = torch.optim.AdamW(models[name].parameters(), lr=4e-3, weight_decay=0.01)
        total = epochs * -(-split // 64)
        steps[name] = (optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=total))
        net.seconds.append(0.0)
    with tqdm(total=epochs * len(nets), desc=f"training, seed {seed}", unit="epoch") as bar:
        for turn in range(epochs):
            shuffled = rest[torch.randperm(split)]
            batchwise = images[shuffled].contiguous(memory_format=torch.channels_last), labels[shuffled]
            for name in list(nets)[:: 1 if turn % 2 else -1]:
                nets[name].seconds[-1] += epoch(models[name], *steps[name], *batchwise)
                bar.update()
    for name, net in nets.items():
        net.accuracy.append(accuracy(models[name], images[test], labels[test]))
    return models


def count_macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one image; a symmetric layer does as many as its reduced weight has to do."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += output[0, 0].numel() * layer.weight.numel()

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return total


def measure_inference(nets: dict[str, Network], models: dict[str, nn.Module], images: Tensor) -> None:
    """Size of both networks, and their images a second in batches of 64, measured in turns."""
    batch = images[:64].contiguous(memory_format=torch.channels_last)
    for name, model in models.items():
        nets[name].parameters = sum(parameter.numel() for parameter in model.parameters())
        nets[name].macs = count_macs(model, batch[:1])
    with torch.inference_mode():
        timings = measure.interleave(
            {name: partial(model.eval(), batch) for name, model in models.items()}, 4.0
        )
    for name, timing in timings.items():
        nets[name].images_per_second = 64e3 / timing.p50


def network_table(nets: dict[str, Network]) -> str:
    """Both networks side by side, with the factor between them."""
    old, new = nets[ORDINARY], nets[SYMMETRIC]

    def spread(values: list[float], scale: float, unit: str) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{scale * statistics.mean(values):.2f} ± {scale * deviation:.2f}{unit}"

    seconds = [statistics.mean(net.seconds) for net in (old, new)]
    rates = [f"{net.images_per_second:,.0f}" for net in (old, new)]
    lines = [
        ["", ORDINARY, SYMMETRIC, "factor"],
        [
            f"test accuracy, {len(old.accuracy)} seeds",
            *(spread(n.accuracy, 100, " %") for n in (old, new)),
            "",
        ],
        [
            "parameters",
            f"{old.parameters:,}",
            f"{new.parameters:,}",
            f"{old.parameters / new.parameters:.2f}x fewer",
        ],
        ["MACs an image", f"{old.macs:,}", f"{new.macs:,}", f"{old.macs / new.macs:.2f}x fewer"],
        [
            "training, seconds",
            *(spread(n.seconds, 1, "") for n in (old, new)),
            times(seconds[0] / seconds[1]),
        ],
        ["inference, images/s", *rates, times(new.images_per_second / old.images_per_second)],
    ]
    return aligned(lines)


def times(ratio: float) -> str:
    """A factor of speed that cannot be misread."""
    return f"{ratio:.2f}x" + ("" if ratio >= 1 else " (slower)")


def measure_layers(seconds: float) -> list[Row]:
    """Forward and training step of six layers of real networks against expanded filters."""
    known = {shape.name: shape for shape in shapes.DEFAULT}
    todo = [
        Case(known[name], tie, direction) for name, tie in LAYERS.items() for direction in ("fwd", "step")
    ]
    return [cases.run(case, seconds, memory=False) for case in tqdm(todo, desc="single layers", unit="layer")]


def layer_table(rows: list[Row]) -> str:
    """The layers with both times and what ran."""
    lines = [["layer", "network", "tie", "pass", "runs on", "F.conv2d, expanded", "symmetric", "ratio"]]
    for row in rows:
        what = [row["shape"], row["model"], row["tie"], PASS_NAMES[row["pass"]], row["backend"]]
        lines.append([*what, f"{row['baseline_ms']:.2f} ms", f"{row['ms_p50']:.2f} ms", times(row["ratio"])])
    return aligned(lines)


def plot(nets: dict[str, Network], rows: list[Row], path: Path) -> None:
    """One picture: accuracy, what the networks cost, and the ratios of the layers."""
    import matplotlib.pyplot as plt

    from bench import plots  # draws without a screen

    figure, axes = plt.subplots(2, 2, figsize=(13, 8), gridspec_kw={"width_ratios": [1, 2]})
    old, new = nets[ORDINARY], nets[SYMMETRIC]
    for place, net in enumerate((old, new)):
        percent = [100 * value for value in net.accuracy]
        axes[0, 0].bar(place, statistics.mean(percent), 0.6)
        axes[0, 0].plot([place] * len(percent), percent, "k_", markersize=12)
    lowest = 100 * min(old.accuracy + new.accuracy)
    axes[0, 0].set_ylim(max(0.0, lowest - 3), 100.5)
    axes[0, 0].set_xticks((0, 1), (ORDINARY, SYMMETRIC))
    axes[0, 0].set_title("test accuracy in % (marks: seeds; axis cut)")
    share = {
        "parameters": new.parameters / old.parameters,
        "MACs": new.macs / old.macs,
        "training time": statistics.mean(new.seconds) / statistics.mean(old.seconds),
        "inference time": old.images_per_second / new.images_per_second,
    }
    axes[1, 0].bar(list(share), list(share.values()), 0.6, color="tab:orange")
    axes[1, 0].axhline(1.0, color="black", linewidth=0.8)
    axes[1, 0].tick_params(axis="x", labelsize=8)
    axes[1, 0].set_title(f"{SYMMETRIC} as a share of {ORDINARY}")
    for axis, direction in zip(axes[:, 1], ("fwd", "step"), strict=True):
        plots.bars(axis, [row for row in rows if row["pass"] == direction])
        axis.set_title(f"{PASS_NAMES[direction]}: times faster than F.conv2d on expanded filters")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description="ordinary and symmetric convolutions side by side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="time to measure one layer")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output")
    options = parser.parse_args()
    start = time.perf_counter()
    about = measure.provenance()
    head = f"{about['device']}, {about['threads']} pinned threads, torch {about['torch']}, float32, channels_last\n"
    head += f"ties of the symmetric network: {TIES}\n"
    print(head)
    images, labels = digits()
    nets = networks()
    for seed in range(options.seeds):
        models = train(nets, seed, options.epochs, images, labels)
    measure_inference(nets, models, images)
    first = "Handwritten digits, the same network with both layers:\n\n" + network_table(nets)
    print("\n" + first)
    rows = measure_layers(options.seconds)
    what = "Single layers, against F.conv2d on filters expanded beforehand (above 1: the symmetric layer is faster)"
    second = f"{what}:\n\n{layer_table(rows)}"
    print("\n" + second)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "demo.txt").write_text(f"{head}\n{first}\n{second}")
    plot(nets, rows, options.output / "demo.png")
    print(f"Written: {options.output / 'demo.txt'} and {options.output / 'demo.png'}")
    print(f"Took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
