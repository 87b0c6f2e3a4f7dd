"""Which family of kernels runs each pass of each algorithm, and what a family's planner must have."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from ...problem import OPS, Problem
from .limits import Limits

Strides = Mapping[str, tuple[int, ...]]
"""Of the layer's tensors, or of their gradients: x and y (N, C, D, H, W), w (groups, rows, channels, D, H, W)."""

CHANNELS_LAST, AS_IT_IS = "channels last", "as it is"


class Planner(Protocol):
    """What a module of this folder that is named like a family must have.

    `NATIVE` is its class in the native module. `LAYOUT` says how x and y are handed over: CHANNELS_LAST, channels
    innermost and 16 bytes a divisor of every other stride, or AS_IT_IS, dense in either layout, both in the same.
    """

    NATIVE: str
    LAYOUT: str

    def refusal(self, problem: Problem, op: str, limits: Limits) -> str | None:
        """Why the kernels cannot run a problem, as a clause, or None."""

    def parameters(
        self, problem: Problem, op: str, strides: Strides, limits: Limits, activation: int, bias: bool
    ) -> dict[str, int]:
        """The fields of the native class."""

    def seconds(self, problem: Problem, op: str, limits: Limits) -> float:
        """An estimate by counting, of the kernels alone."""


FAMILIES: dict[tuple[str, str], str] = {}
"""By algorithm and pass: a module of this folder."""


@cache
def planner(algorithm: str, op: str) -> Any:
    """The planner of a pass of an algorithm, None if it has no such pass."""
    name = FAMILIES.get((algorithm, op))
    return name and importlib.import_module(f".{name}", __package__)


def passes(algorithm: str) -> list[str]:
    """The passes that an algorithm has."""
    return [op for op in OPS if (algorithm, op) in FAMILIES]
