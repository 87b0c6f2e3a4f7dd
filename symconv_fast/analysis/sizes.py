"""Input sizes at which every operation of a model commutes with mirrors, or with shifts on a circle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn

from .calls import Call
from .geometry import Axis
from .recording import Recorder

Near = tuple[Union[int, None], Union[int, None]]
"""The nearest size below and the nearest above."""
Faults = Callable[[Axis], Union[str, None]]


def resized(inputs: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Inputs of other spatial sizes, random; what has no spatial dims stays.

    Raises:
        ValueError: the inputs have several spatial sizes, so that it is not known how they belong together.
    """
    ndim = len(sizes)
    maps = [x for x in inputs if isinstance(x, Tensor) and x.dim() == ndim + 2]
    if len({x.shape[2:] for x in maps}) > 1:
        raise ValueError("inputs of several spatial sizes")
    return [_resized(x, sizes) if isinstance(x, Tensor) and x.dim() == ndim + 2 else x for x in inputs]


def _resized(x: Tensor, sizes: Sequence[int]) -> Tensor:
    shape = (*x.shape[:2], *sizes)
    if x.is_meta or not x.is_floating_point():
        return x.new_zeros(shape)
    return torch.randn(shape, dtype=x.dtype, device="cpu").to(x.device)


class Sizes:
    """Runs a model for the shapes alone: on the meta device, or as it is where it cannot run there."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any], ndim: int) -> None:
        self.ndim = ndim
        self.model, self.inputs, self.shapes_only = model, list(inputs), False
        try:
            meta = copy.deepcopy(model).to("meta")
            moved = [x.to("meta") if isinstance(x, Tensor) else x for x in inputs]
            _axes(meta, moved, ndim, True)
        except Exception:  # whatever a model does that needs numbers
            return
        self.model, self.inputs, self.shapes_only = meta, moved, True

    def faults(self, sizes: Sequence[int]) -> dict[str, list[bool]] | None:
        """For "mirror" and "shift": is any operation inexact along each axis? None where the model cannot run."""
        try:
            seen = _axes(self.model, resized(self.inputs, sizes), self.ndim, self.shapes_only)
        except Exception:  # whatever a model raises at a size that it does not take
            return None
        return {
            "mirror": [any(axes[i].mirror_fault() for axes in seen) for i in range(self.ndim)],
            "shift": [any(axes[i].shift_fault() for axes in seen) for i in range(self.ndim)],
        }

    def nearest(self, start: Sequence[int], reach: int, kinds: Sequence[str]) -> dict[str, list[Near]]:
        """For each kind and axis the nearest exact sizes, at most `reach` from `start`, which itself does not count.

        All axes move at once: what an operation does along one of them does not depend on the others.
        """
        found: dict[tuple[str, int, int], int] = {}
        for side in (-1, 1):
            for distance in range(1, reach + 1):
                sizes = [n + side * distance for n in start]
                if min(sizes) < 1 or all(
                    (kind, i, side) in found for kind in kinds for i in range(self.ndim)
                ):
                    break
                faults = self.faults(sizes)
                for kind in kinds if faults else ():
                    for i, fault in enumerate(faults[kind]):  # type: ignore[index]
                        if not fault:
                            found.setdefault((kind, i, side), sizes[i])
        return {
            kind: [(found.get((kind, i, -1)), found.get((kind, i, 1))) for i in range(self.ndim)]
            for kind in kinds
        }


def _axes(model: nn.Module, inputs: Sequence[Any], ndim: int, shapes_only: bool) -> list[tuple[Axis, ...]]:
    """What each operation does along each axis; padding that a later one reads is part of that one."""
    seen: list[tuple[object, tuple[Axis, ...]]] = []
    absorbed: set[object] = set()

    def watch(call: Call, output: Tensor, name: str) -> None:
        if call.kind == "windows":
            absorbed.update(call.absorbs)
        seen.append((call.token, call.axes))

    recorder = Recorder(ndim, watch, shapes_only=shapes_only)
    recorder.run(model, inputs)
    absorbed -= recorder.read_otherwise
    return [axes for token, axes in seen if token not in absorbed]
