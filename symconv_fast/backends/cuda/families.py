"""Which family of kernels runs each pass of each algorithm, and what a family's planner must have."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch

from ...problem import OPS, Problem
from . import limits, native
from .limits import Limits

Strides = Mapping[str, tuple[int, ...]]
"""Of the layer's tensors, or of their gradients: x and y (N, C, D, H, W), w (groups, rows, channels, D, H, W)."""

CHANNELS_LAST, AS_IT_IS = "channels last", "as it is"


class Request(NamedTuple):
    """What a planner is told of a call: the strides of its tensors, and what the kernels add to the convolution.

    `activation` is 0 for none, else the place in the table of activations, counted from 1.
    """

    problem: Problem
    op: str
    strides: Strides
    limits: Limits
    activation: int = 0
    bias: bool = False


class Planner(Protocol):
    """What a module of this folder that is named like a family must have.

    `LAYOUT` says how x and y are handed over. CHANNELS_LAST: channels innermost and 16 bytes a divisor of every other
    stride, but for those of the result, which is dense. AS_IT_IS: dense in either layout, both in the same.
    """

    LAYOUT: str

    def refusal(self, problem: Problem, op: str, limits: Limits) -> str | None:
        """Why the kernels cannot run a problem, as a clause, or None."""

    def parameters(self, call: Request) -> dict[str, int]:
        """The fields of the family's class in the native module: of ConvParams, if it is called conv."""

    def kernels(self, problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
        """The instantiations that would be launched, by the names that the native module's `variants()` has."""

    def seconds(self, problem: Problem, op: str, limits: Limits) -> float:
        """An estimate by counting, of the kernels alone."""


FAMILIES: dict[tuple[str, str], str] = {
    ("tile", "fprop"): "conv",
    ("tile", "dgrad"): "conv",
    ("tile", "wgrad"): "wgrad",
    ("patch", "fprop"): "patch",
    ("hopper", "fprop"): "hopper",
    ("hopper", "dgrad"): "hopperdgrad",
    ("hopper", "wgrad"): "hopperwgrad",
    ("depthwise", "fprop"): "depthwise",
    ("depthwise", "dgrad"): "depthwise",
    ("depthwise", "wgrad"): "depthwise",
}
"""By algorithm and pass: a module of this folder."""

MOST_SEGMENTS = 8  # ties of one launch


@cache
def planner(algorithm: str, op: str) -> Any:
    """The planner of a pass that an algorithm has."""
    return importlib.import_module(f".{FAMILIES[algorithm, op]}", __package__)


def native_class(algorithm: str, op: str) -> Any:
    """The native class of a family's parameters; None where the module was built without it."""
    return getattr(native.module(), f"{FAMILIES[algorithm, op].capitalize()}Params", None)


def refusal(problem: Problem, op: str, algorithm: str, device: Limits) -> str | None:
    """Why an algorithm cannot run a pass of a problem on a device, as a clause, or None."""
    passes = [p for p in OPS if (algorithm, p) in FAMILIES]
    if op not in passes:
        return f"it has the passes {', '.join(passes)} alone"
    if device.capability < limits.LEAST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    if not native.built_for(device.capability):
        return f"the native CUDA module was not built for {device.arch}; {native.HOW_TO_BUILD}"
    if native_class(algorithm, op) is None:
        return f"the native CUDA module was built without these kernels; {native.HOW_TO_BUILD}"
    if problem.transposed:
        return "a transposed layer runs on the Triton backend"
    if problem.dtype not in limits.DTYPES:
        return f"it has no kernels in {str(problem.dtype)[6:]}"
    if problem.dtype == torch.float32 and not device.tf32 and algorithm != "depthwise":
        return (
            "its kernels round float32 to TF32, which torch.backends.cudnn.conv.fp32_precision does not allow"
        )
    if sum(rows > 0 for _, rows in problem.ties) > MOST_SEGMENTS:
        return f"it has more than {MOST_SEGMENTS} segments of ties"
    reason: str | None = planner(algorithm, op).refusal(problem, op, device)
    return reason
