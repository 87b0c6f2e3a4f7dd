"""Means, standard deviations and correlations of channels over a data set, for one network or between two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Moments:
    """Sums over samples and positions, in float64, of values less the first one: constant channels have variance 0."""

    def __init__(self, first: Tensor) -> None:
        self.count = 0
        self.shift = first
        self.sums = torch.zeros_like(first)
        self.squares = torch.zeros_like(first)

    def add(self, rows: Tensor) -> Tensor:
        """Count (M, C) rows; returns them shifted."""
        shifted = rows - self.shift
        self.count += len(rows)
        self.sums += shifted.sum(0)
        self.squares += shifted.square().sum(0)
        return shifted

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self.shift + self.sums / self.count

    @property
    def std(self) -> Tensor:
        """(C,), of the population."""
        return (self.squares / self.count - (self.sums / self.count).square()).clamp_min(0).sqrt()


class Pair:
    """Moments of one layer in two networks on the same inputs, and the correlation of each channel with each other."""

    def __init__(self) -> None:
        self._moments: tuple[Moments, Moments] | None = None
        self._products: Any = 0.0

    def add(self, first: Tensor, second: Tensor) -> None:
        """Count (M, C) rows of the first network and those of the second at the same samples and positions."""
        if self._moments is None:
            self._moments = Moments(first[0].clone()), Moments(second[0].clone())
        a, b = (moments.add(rows) for moments, rows in zip(self._moments, (first, second)))
        self._products = self._products + a.T @ b

    @property
    def moments(self) -> tuple[Moments, Moments]:
        """Of the first network and of the second."""
        assert self._moments is not None
        return self._moments

    def correlation(self) -> Tensor:
        """(C, C): of channel i of the first network with channel j of the second; 0 where one of them is constant."""
        a, b = self.moments
        covariance = self._products / a.count - torch.outer(a.sums, b.sums) / a.count**2
        scale = torch.outer(a.std, b.std)
        return torch.where(scale > 0, covariance / scale, 0.0)


def channel_dim(module: nn.Module, output: Tensor) -> int:
    """The dim of the channels in what a layer returns."""
    if isinstance(module, nn.Linear):
        return output.dim() - 1
    if isinstance(module, nn.modules.conv._ConvNd):
        return output.dim() - 1 - len(module.kernel_size)
    return 1


def rows_of(module: nn.Module, output: Tensor) -> Tensor:
    """(N, C, *spatial) -> (N * positions, C) in float64."""
    return output.detach().movedim(channel_dim(module, output), -1).flatten(0, -2).to(torch.float64)


def input_of(batch: Any, device: torch.device) -> Tensor:
    """The input of a batch that a loader gives: a Tensor, or the first of a tuple or list."""
    value = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(value, Tensor):
        raise TypeError(
            f"loader must give a Tensor or (input, target), got {type(value).__name__}; such as a DataLoader of a "
            "TensorDataset"
        )
    return value.to(device)


def compare(
    first: nn.Module, second: nn.Module, names: Iterable[str], batches: Callable[[], Iterator[Tensor]]
) -> dict[str, Pair]:
    """The moments of these layers in two networks on the same inputs; of those that are called.

    Raises:
        ValueError: an output is not finite.
    """
    pairs: dict[str, Pair] = {}
    waiting: dict[str, list[Tensor]] = {}

    def keep(name: str, module: nn.Module, _: Any, output: Tensor) -> None:
        waiting.setdefault(name, []).append(output.detach().clone())  # what follows may write into it

    def meet(name: str, module: nn.Module, _: Any, output: Tensor) -> None:
        a, b = rows_of(module, waiting[name].pop(0)), rows_of(module, output)
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(
                f"the output of {name} is not finite (NaN or infinity) in a batch of loader; check the inputs and the "
                "weights"
            )
        pairs.setdefault(name, Pair()).add(a, b)

    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            for model, hook in ((first, keep), (second, meet)):
                handle = model.get_submodule(name).register_forward_hook(partial(hook, name))
                hooks.callback(handle.remove)
        for x in batches():
            first(x)
            second(x)
    return pairs
