# `make demo`: the same small network with ordinary and with symmetric convolutions, trained and timed side by side.
"""Demonstration: accuracy, size and speed on handwritten digits, then single layers of real networks.

Both networks see the same images in the same order, epoch by epoch in turns, so that the times can be compared. The
numbers are printed as they come out, slower ones included; a ratio that the noise guard of the benchmark doubts is
withheld, with the reason. Writes demo_output/demo.txt and demo_output/demo.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench.threads  # noqa: F401, I001  (before torch: pins its threads)

import argparse
import os
import statistics
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import demo_picture
import torch
import torch.nn.functional as F
from common import accuracy, count_macs
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from bench import cases, measure, noise, peaks, shapes
from bench.case import Case
from bench.rows import Row, aligned
from symconv_fast import SymmetricConv2d, dispatch

ORDINARY, SYMMETRIC = "nn.Conv2d", "SymmetricConv2d"
TIES = "hv"  # quadruples: a quarter of the weights
SIZE = 24  # of the images, in pixels
LAYERS = {
    "4x64@56": "h",
    "4x128@28": "v",
    "4x256@14": "hv",
    "1x128@112": "h",
    "1x256@56": "hv",
    "1x3>64@224": "h",
}
PASSES = ("fwd", "step")
ENOUGH = 45.0  # seconds of training after which no other run begins: on a busy machine one has to do
HOPELESS = 3  # cases that stay in doubt when measured again: the machine is busy, and no more are repeated

NETWORKS = f"""\
1. Two networks learn to read handwritten digits

Both have five convolutions and see the same images. In the second network four of the five are
SymmetricConv2d(..., symmetry="{TIES}"): their filters come in quadruples. One of the four is stored, the
others are its mirror images: left to right, top to bottom, and both. So these layers store a quarter
of the weights and do a quarter of the multiplications.
"""
SINGLE = """\
2. Single layers of well-known networks

How many times as fast is a layer with tied filters as torch's convolution (F.conv2d) with as many
ordinary ones, in the memory format that suits it best?

layer   4x64@56 is a batch of 4 with 64 channels in and out on a map of 56 x 56; 3>64 is 3 channels in
        and 64 out. All kernels are 3 x 3.
tie     h: pairs of filters, mirrored left to right; v: pairs, top to bottom; hv: quadruples.
limit   The most that the tie alone can gain: 2 for pairs, 4 for quadruples. Pairs may go beyond it, to
        3 at most: "minimal filtering" saves products along the axis that is not tied, too.
step    A training step: forward and all gradients.
"""


@dataclass
class Network:
    """Results of one of the two networks over all seeds; `epochs` are seconds."""

    make: Callable[..., nn.Module]
    accuracy: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0


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
    """The 1797 handwritten digits of scikit-learn, upscaled: (1797, 1, SIZE, SIZE) and (1797,)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
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


def train(
    nets: dict[str, Network], seed: int, epochs: int, images: Tensor, labels: Tensor, bar: tqdm
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
    for turn in range(epochs):
        shuffled = rest[torch.randperm(split)]
        batchwise = images[shuffled].contiguous(memory_format=torch.channels_last), labels[shuffled]
        for name in list(nets)[:: 1 if turn % 2 else -1]:
            nets[name].epochs.append(epoch(models[name], *steps[name], *batchwise))
            bar.update()
    for name, net in nets.items():
        net.accuracy.append(accuracy(models[name], images[test], labels[test]))
    return models


def compare_networks(nets: dict[str, Network], seeds: int, epochs: int) -> dict[str, Row]:
    """Train and time both networks; rows for the noise guard, of "epoch" and "batch" (64 images, inference)."""
    images, labels = digits()
    rows, waiting, start = {}, noise.Waiting(), time.perf_counter()
    with tqdm(total=seeds * epochs * len(nets), desc="training", unit="epoch", leave=False) as bar:
        for seed in range(seeds):
            models = train(nets, seed, epochs, images, labels, bar)
            if time.perf_counter() - start > ENOUGH:
                break
    batch = images[:64].contiguous(memory_format=torch.channels_last)
    for name, model in models.items():
        nets[name].parameters = sum(parameter.numel() for parameter in model.parameters())
        nets[name].macs = count_macs(model, batch[:1])
    timings = {name: measure.percentiles([int(1e9 * s) for s in net.epochs]) for name, net in nets.items()}
    rows["epoch"] = as_row(nets, timings, waiting)
    waiting = noise.Waiting()
    with torch.inference_mode():
        calls = {name: partial(model.eval(), batch) for name, model in models.items()}
        rows["batch"] = as_row(nets, measure.interleave(calls, 2.0), waiting)
    return rows


def as_row(nets: dict[str, Network], timings: dict[str, measure.Timing], waiting: noise.Waiting) -> Row:
    """What the noise guard wants to know of a comparison of the networks; multiplications set their limit."""
    old, new = timings[ORDINARY], timings[SYMMETRIC]
    return {
        "ratio": old.p50 / new.p50, "limit": nets[ORDINARY].macs / nets[SYMMETRIC].macs, "baseline": "torch",
        "timings": {"ours": [new.p20, new.p50, new.p80], "torch": [old.p20, old.p50, old.p80]},
        "algorithm": "", "config": {},
        "waited": waiting.share(), "load": os.getloadavg()[0], "threads": torch.get_num_threads(),
    }  # fmt: skip


def network_table(nets: dict[str, Network], rows: dict[str, Row]) -> str:
    """Both networks side by side, with the factor between them."""
    old, new = nets[ORDINARY], nets[SYMMETRIC]

    def right(net: Network) -> str:
        deviation = f" ± {100 * statistics.stdev(net.accuracy):.1f}" if len(net.accuracy) > 1 else ""
        return f"{100 * statistics.mean(net.accuracy):.1f}{deviation} %"

    runs = f"{len(old.accuracy)} runs" if len(old.accuracy) > 1 else "one run"
    epochs = _times(rows["epoch"], lambda ms: f"{1e-3 * ms:.2f}")
    batches = _times(rows["batch"], lambda ms: f"{64e3 / ms:,.0f}")
    fewer = [old.parameters / new.parameters, old.macs / new.macs]
    faster = [told(row, "times as fast") for row in rows.values()]
    return aligned([
        ["", ORDINARY, SYMMETRIC, ""],
        [f"test digits read right ({runs})", right(old), right(new), ""],
        ["weights", f"{old.parameters:,}", f"{new.parameters:,}", f"{fewer[0]:.1f} times fewer"],
        ["multiplications an image", f"{old.macs:,}", f"{new.macs:,}", f"{fewer[1]:.1f} times fewer"],
        ["training, seconds an epoch", *epochs, faster[0]],
        ["inference, images a second", *batches, faster[1]],
    ])  # fmt: skip


def _times(row: Row, words: Callable[[float], str]) -> list[str]:
    """The times of both networks in words, unless there are doubts."""
    return ["-", "-"] if noise.doubt(row) else [words(row["timings"][name][1]) for name in ("torch", "ours")]


def told(row: Row, unit: str = "") -> str:
    """A ratio, unless there are doubts."""
    return "withheld" if noise.doubt(row) else f"{row['ratio']:.2f} {unit}".rstrip()


def measure_layers(seconds: float) -> list[Row]:
    """Forward and training step of six layers of real networks against expanded filters."""
    peaks.rehearse()  # no rate is shown here
    known = {shape.name: shape for shape in shapes.DEFAULT}
    todo = [Case(known[name], tie, direction) for name, tie in LAYERS.items() for direction in PASSES]
    run = partial(cases.run, seconds=seconds, memory=False, rivals_only=True)
    rows, hopeless = [], 0
    for case in tqdm(todo, desc="single layers", unit="case", leave=False):
        row = run(case)
        if noise.doubt(row) and hopeless < HOPELESS:
            row = run(case)
            hopeless += bool(noise.doubt(row))
        rows.append(row)
    return rows


def layer_table(rows: list[Row]) -> str:
    """A line a layer: times and ratio of both passes; no times either where the ratio is withheld."""
    head = [
        "layer",
        "from",
        "tie",
        "limit",
        "forward, ms: torch",
        "tied",
        "ratio",
        "step, ms: torch",
        "tied",
        "ratio",
    ]
    lines: dict[str, list[str]] = {}
    for row in rows:
        line = lines.setdefault(row["shape"], [row["shape"], row["model"], row["tie"], f"{row['limit']:.3g}"])
        times = [f"{ms:.2f}" for ms in (row["baseline_ms"], row["ms_p50"])]
        line += [*(["-", "-"] if noise.doubt(row) else times), told(row)]
    return aligned([head, *lines.values()])


def withheld(rows: list[Row]) -> str:
    """In one line what is withheld, why, and what to do; or nothing."""
    reasons = [reason for row in rows if (reason := noise.doubt(row))]
    waited = [share for row in rows if (share := noise.waiting(row)) is not None]
    share = f" (this program waited for a core {max(waited):.0%} of the time)" if waited else ""
    if reasons and any(map(noise.busy, rows)):
        return (
            f"{len(reasons)} of {len(rows)} ratios are withheld, because the machine is busy{share}. "
            "Close other programs and run `make demo` again."
        )
    if reasons:
        return (
            f"{len(reasons)} of {len(rows)} ratios are withheld, because {' and '.join(dict.fromkeys(reasons))}. "
            "Perhaps other machines share this processor: run `make demo` again at a quieter time."
        )
    if any(map(noise.busy, rows)):
        return f"The machine is a little busy{share}: ratios may be off by a tenth or two."
    return ""


def closing(nets: dict[str, Network], network_rows: dict[str, Row], layer_rows: list[Row]) -> str:
    """One sentence that says what was shown."""
    old, new = nets[ORDINARY], nets[SYMMETRIC]
    right = [f"{100 * statistics.mean(net.accuracy):.1f} %" for net in (new, old)]
    text = (
        f"Shown: with its filters tied in quadruples the network reads {right[0]} of new digits right (ordinary: "
        f"{right[1]}) with {old.parameters / new.parameters:.1f} times fewer weights; "
    )
    training = network_rows["epoch"]
    sure = [row["ratio"] for row in layer_rows if row["pass"] == "fwd" and not noise.doubt(row)]
    speed = [] if noise.doubt(training) else [f"it trains {training['ratio']:.1f} times as fast"]
    if sure:
        speed.append(f"single layers run {min(sure):.1f} to {max(sure):.1f} times as fast as torch's")
    return (
        text
        + (" and ".join(speed) or "how much faster it is could not be measured on this busy machine")
        + "."
    )


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description="ordinary and symmetric convolutions side by side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.8, help="time to measure one pass of a layer")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output")
    options = parser.parse_args()
    start, written = time.perf_counter(), []

    def say(text: str) -> None:
        written.append(text + "\n")
        print(text, flush=True)

    about = measure.provenance()
    where = f"{about['device']}, {about['threads']} threads, torch {about['torch']}, float32"
    say("symconv_fast: convolutions whose filters are mirror images of each other, beside ordinary ones")
    say(f"{where}; takes about a minute\n")
    if "cpu" not in dispatch.available():
        say(f"Nothing will be faster here: {dispatch.load('cpu')}. `python -m symconv_fast` says more.\n")
    nets = networks()
    say(NETWORKS)
    network_rows = compare_networks(nets, options.seeds, options.epochs)
    say(network_table(nets, network_rows))
    say(SINGLE)
    layer_rows = measure_layers(options.seconds)
    say(layer_table(layer_rows))
    if lines := withheld([*network_rows.values(), *layer_rows]):
        say(textwrap.fill(lines, 100) + "\n")
    say(textwrap.fill(closing(nets, network_rows, layer_rows), 100))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "demo.txt").write_text("".join(written))
    demo_picture.draw(list(nets.values()), network_rows, layer_rows, options.output / "demo.png")
    print(
        f"\nWritten: {options.output / 'demo.txt'} and demo.png beside it. Took {time.perf_counter() - start:.0f} s."
    )


if __name__ == "__main__":
    main()
