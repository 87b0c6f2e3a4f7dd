"""Two views of each input, mirrored or shifted, and how the outputs for them are brought to the same positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import ShapeError, ints
from ..ties import mirrored_dims
from .arguments import axis_mask, integer

Chunks = Iterable[tuple[Tensor, Tensor]]
"""Pairs of outputs that are compared with one another, some samples at a time, in the order of the samples."""


class Views(Protocol):
    """What `consistency` asks of a transformation."""

    name: str
    equal_offsets: int | None

    def make(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, *S) to the two inputs that the model gets."""

    def align(self, first: Tensor, second: Tensor) -> tuple[Chunks, int | None]:
        """The outputs for them as comparable pairs, and over all samples the number of positions, if there are any."""


def is_dense(output: Tensor, ndim: int) -> bool:
    """Has an output positions, (N, K, *S) in floating point or (N, *S) as integers, for an input of `ndim` dims?

    Raises:
        ValueError: neither that nor one value or one row of scores a sample: what its dims mean has to be said.
    """
    scores = output.is_floating_point()
    if output.dim() == ndim + 1 + scores:
        return True
    if output.dim() == 1 or (scores and output.dim() == 2):
        return False
    raise ShapeError(
        f"outputs of shape {tuple(output.shape)} are neither (N, K) nor (N, K, *S) with {ndim} spatial dims; give "
        "map_output, which brings them to the positions of the input"
    )


class Mirror:
    """An input and its mirror image along `axis`, letters."""

    equal_offsets: int | None = None

    def __init__(self, axis: str, map_output: Callable[[Tensor], Tensor] | None) -> None:
        self.name = f"the mirror {axis}"
        self._axis, self._map = axis, map_output

    def make(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input itself and its mirror image."""
        self._ndim = x.dim() - 2
        mask = axis_mask(self._axis, self._ndim)
        self._dims = mirrored_dims(mask)
        return x, x.flip(self._dims)

    def align(self, first: Tensor, second: Tensor) -> tuple[Chunks, int | None]:
        """The second is mirrored back, if it has positions."""
        if self._map is not None:
            second = mapped(self._map(second), len(first))
            same_shape(first, second)
            return [(first, second)], None
        dense = is_dense(first, self._ndim)
        same_shape(first, second)
        if not dense:
            return [(first, second)], None
        return [(first, second.flip(self._dims))], len(first) * first.shape[-self._ndim :].numel()


class Shifts:
    """Two random shifts of each input: position p has what was at p + offset, modulo the size or in a smaller crop."""

    equal_offsets: int | None

    def __init__(
        self,
        max_shift: int | tuple[int, ...],
        mode: str,
        seed: int,
        map_output: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        if mode not in ("circular", "crop"):
            raise ValueError(f"mode={mode!r} is not valid; valid: 'circular' and 'crop'")
        self._most = ints(max_shift, "max_shift")
        if not self._most or min(self._most) < 0 or max(self._most) == 0:
            raise ValueError(
                f"max_shift={max_shift!r} must be at least 1 pixel, and along no axis below 0, such as max_shift=4"
            )
        self._random = np.random.default_rng(integer(seed, "seed", least=0))
        self._circular, self._map = mode == "circular", map_output
        kind = "circular shifts" if self._circular else "shifted crops"
        self.name = f"{kind} of up to {' × '.join(map(str, self._most))} pixels"
        self.equal_offsets = 0

    def make(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input with each of two offsets a sample."""
        size = tuple(x.shape[2:])
        most = self._most * len(size) if len(self._most) == 1 else self._most
        if len(most) != len(size):
            raise ShapeError(
                f"max_shift={most} has {len(most)} values for inputs of {len(size)} spatial dims: {size}"
            )
        if any(shift >= length for shift, length in zip(most, size)):
            raise ShapeError(f"max_shift={max(most)} must be below the size of the inputs, {size}")
        drawn = self._random.integers(0, np.array(most) + 1, size=(len(x), 2, len(size)))
        self._offsets = torch.from_numpy(drawn)
        self.equal_offsets = (self.equal_offsets or 0) + int((drawn[:, 0] == drawn[:, 1]).all(1).sum())
        self._size = size if self._circular else tuple(n - shift for n, shift in zip(size, most))
        self._overlap = all(2 * shift < n for n, shift in zip(size, most))
        views = [torch.stack([self._shift(*pair) for pair in zip(x, drawn[:, i].tolist())]) for i in (0, 1)]
        return views[0], views[1]

    def _shift(self, sample: Tensor, offset: list[int]) -> Tensor:
        if self._circular:
            return sample.roll([-by for by in offset], list(range(-len(offset), 0)))
        return window(sample, offset, self._size)

    def align(self, first: Tensor, second: Tensor) -> tuple[Chunks, int | None]:
        """Outputs at every position are taken back by the offsets; of crops the part that both have is compared."""
        if self._map is not None:
            pair = [
                mapped(self._map(y, self._offsets[:, i].to(y.device)), len(first))
                for i, y in enumerate((first, second))
            ]
            same_shape(*pair)
            return [(pair[0], pair[1])], None
        dims = len(self._size)
        dense = is_dense(first, dims)
        same_shape(first, second)
        if not dense:
            return [(first, second)], None
        if tuple(first.shape[-dims:]) != self._size:
            raise ShapeError(
                f"outputs of size {tuple(first.shape[-dims:])} for inputs of size {self._size} have no position for "
                "each pixel of a shift; give map_output, for example one that interpolates them to that size first"
            )
        if not self._circular and not self._overlap:
            raise ShapeError(
                f"crops of size {self._size} may share no position; with outputs at every position max_shift must be "
                "below half of the input's size"
            )
        chunks = [self._common(a, b, o) for a, b, o in zip(first, second, self._offsets.tolist())]
        return chunks, sum(a.shape[-dims:].numel() for a, _ in chunks)

    def _common(self, first: Tensor, second: Tensor, offsets: list[list[int]]) -> tuple[Tensor, Tensor]:
        """One sample's outputs at the positions of the input that both have, as batches of one."""
        if self._circular:
            dims = list(range(-len(self._size), 0))
            return first.roll(offsets[0], dims)[None], second.roll(offsets[1], dims)[None]
        start = [max(a, b) for a, b in zip(*offsets)]
        length = [min(a, b) + n - s for a, b, n, s in zip(*offsets, self._size, start)]
        parts = [
            window(output, [s - by for s, by in zip(start, own)], length)[None]
            for output, own in zip((first, second), offsets)
        ]
        return parts[0], parts[1]


def window(tensor: Tensor, start: Sequence[int], length: Sequence[int]) -> Tensor:
    """The part of `length` positions from `start` on, along the last dims."""
    for dim, (first, count) in enumerate(zip(start, length), -len(start)):
        tensor = tensor.narrow(dim, first, count)
    return tensor


def mapped(output: Tensor, samples: int) -> Tensor:
    """What `map_output` returned, if it is a tensor for all samples."""
    if not isinstance(output, Tensor):
        raise TypeError(f"map_output must return a Tensor, got {type(output).__name__}")
    if output.dim() == 0 or len(output) != samples:
        raise ShapeError(
            f"map_output must return {samples} samples, (N, ...), got shape {tuple(output.shape)}"
        )
    return output


def same_shape(first: Tensor, second: Tensor) -> None:
    """Raises ValueError where two outputs cannot be compared."""
    if first.shape != second.shape:
        raise ShapeError(
            f"the two outputs to compare have shapes {tuple(first.shape)} and {tuple(second.shape)}; map_output must "
            "bring them to one shape"
        )
