# Layers for networks that keep mirrors from end to end, or torch's in their place, and what an example says of them.
"""What the equivariant networks of the examples share: their layers, and a report of errors, parameters and time."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

import symconv_fast
import symconv_fast.nn
from symconv_fast.nn import OrbitPool, orbit_cat
from symconv_fast.nn.checking import EquivarianceCheck


class Layers:
    """Makes layers for feature maps whose channels are orbits of one tie; without a tie, the layers of torch.

    So one description of a network gives the equivariant one, and the ordinary one of the same width.

    Args:
        ndim: spatial dims.
        symmetry: "h", "hv" or "hvz", or "" for ordinary layers.
    """

    def __init__(self, ndim: int, symmetry: str) -> None:
        self.ndim, self.symmetry = ndim, symmetry
        self.members = 2 ** len(symmetry)

    def lift(
        self, inputs: int, outputs: int, kernel: int, *, input_symmetry: Any = None, **settings: Any
    ) -> nn.Module:
        """The first convolution: no mirror moves channels of its input, or `input_symmetry` says how.

        Positions around the input are zero, half a kernel on each side. There is no bias unless asked for; the members
        of an orbit share it.
        """
        settings.setdefault("padding", settings.get("dilation", 1) * (kernel // 2))
        settings.setdefault("bias", False)
        return self._make(symconv_fast, "Conv", input_symmetry)(inputs, outputs, kernel, **settings)

    def conv(self, inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Module:
        """Any later convolution: orbits in, orbits out."""
        return self.lift(inputs, outputs, kernel, input_symmetry=self.symmetry or None, **settings)

    def double(self, inputs: int, outputs: int) -> nn.Module:
        """A transposed convolution to twice the size, each position to two of its own along each axis.

        Mirrored positions go to mirrored positions, as the windows do not overlap.
        """
        make = self._make(symconv_fast, "ConvTranspose", self.symmetry or None)
        return make(inputs, outputs, 2, stride=2, bias=False)

    def norm(self, channels: int) -> nn.Module:
        """Batch norm with one statistic for each orbit."""
        if not self.symmetry:
            return getattr(nn, f"BatchNorm{self.ndim}d")(channels)
        return getattr(symconv_fast.nn, f"OrbitBatchNorm{self.ndim}d")(channels, self.symmetry)

    def pool(self, mode: str = "mean") -> nn.Module:
        """The mean or "max" of each orbit: channels that no mirror exchanges, `channels / members` of them."""
        return OrbitPool(self.symmetry, mode) if self.symmetry else nn.Identity()

    def join(self, *maps: Tensor) -> Tensor:
        """Feature maps side by side, joined orbit by orbit, so that a layer after them knows their mirrors."""
        return orbit_cat(maps, self.symmetry or None)

    def _make(self, package: Any, kind: str, input_symmetry: Any) -> Callable[..., nn.Module]:
        """The class of a convolution, its ties given."""
        if not self.symmetry:
            return getattr(nn, f"{kind}{self.ndim}d")
        tied = getattr(package, f"Symmetric{kind}{self.ndim}d")
        ties = {"symmetry": self.symmetry, "input_symmetry": input_symmetry, "share_bias": True}
        return lambda *sizes, **settings: tied(*sizes, **ties, **settings)


def parameters(model: nn.Module) -> int:
    """Numbers that are stored and trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def training_step(model: nn.Module, x: Tensor, rate: float = 0.01) -> Callable[[], None]:
    """A function that does one step of SGD towards outputs of zero; `model` gives a tensor, or several."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def step() -> None:
        optimizer.zero_grad()
        outputs = model(x)
        several = (outputs,) if isinstance(outputs, Tensor) else outputs
        sum(output.square().mean() for output in several).backward()
        optimizer.step()

    return step


def milliseconds(calls: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median of each call, made in turns, after one that does not count."""
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            if round_:
                taken[name].append(time.perf_counter_ns() - start)
    return {name: 1e-6 * statistics.median(each) for name, each in taken.items()}


def report(
    title: str, model: nn.Module, ordinary: nn.Module, x: Tensor, checks: Mapping[str, EquivarianceCheck]
) -> None:
    """Print what the checks found, parameters, and the time of a training step, beside the ordinary network."""
    print(title)
    for name, check in checks.items():
        print(f"  {name}: {check.verdict()}")
    own, other = parameters(model), parameters(ordinary)
    print(
        f"  parameters: {own:,}, the ordinary network of this width {other:,} ({other / own:.2f} times as many)"
    )
    steps = {"own": training_step(model.train(), x), "ordinary": training_step(ordinary.train(), x)}
    times = milliseconds(steps, rounds=3)
    print(
        f"  a training step with input {tuple(x.shape)}: {times['own']:.1f} ms, the ordinary network "
        f"{times['ordinary']:.1f} ms (medians of 3, {torch.get_num_threads()} threads)"
    )
