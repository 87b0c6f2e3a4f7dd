"""What torch's own convolution costs on a CPU: what every backend there is weighed against."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch

from ...problem import Problem
from ..torch_conv import asked_in
from . import rates
from .rates import Place

_VECTOR_BYTES = {"AVX512": 64, "AVX2": 32}
# torch's convolution in a wider type (one Zen 3 core, 2026-11-21): three conversions, an element of each, and float64
# beside float32, where 2 to 10 was seen.
_WIDEN_CALL_SECONDS, _WIDEN_ELEMENT_SECONDS = 10e-6, 0.3e-9
_WIDE = {torch.float32: 1.0, torch.float64: 4.0}
# No layer of few channels that was measured has more expanded weights, and what theirs seem to cost is not the price of
# one: at 153 ns each 768 patches of 16 x 16 would take 90 ms where they take 17.
_FEW, _MOST_FEW_WEIGHTS = 8, 35_000
_NARROW_TAPS = 3


def seconds(problem: Problem, op: str) -> float:
    """Estimate for one pass with filters that are expanded natively, in the type in which torch is asked.

    Depthwise layers (one input channel in each group) have rates of their own, and so may groups of few channels.
    """
    tiles = rates.in_tiles(problem.dtype, "torch")
    whose = rates.measured_as(rates.torch_capability())
    return _seconds(problem, op, whose, tiles, torch.get_num_threads())


@lru_cache(maxsize=64)
def _seconds(problem: Problem, op: str, whose: str, tiles: bool, threads: int) -> float:
    # Three backends go by this estimate for one choice. The last three arguments are part of the key alone.
    if (key := depthwise_key(problem, op)) is not None:
        return _depthwise_seconds(problem, op, key)
    asked = asked_in(problem, op)
    wide = 1.0 if asked == problem.dtype else _WIDE[asked]
    inner = replace(problem, dtype=asked)
    return wide * rates.seconds(counts(problem), place(inner, op)) + _widening_seconds(problem, op)


def forget() -> None:
    """Forget estimates: the tables of rates have changed."""
    _seconds.cache_clear()


def lanes(problem: Problem) -> int:
    """Sums in a vector of torch's kernels."""
    return _VECTOR_BYTES.get(rates.torch_capability(), 16) // max(4, problem.dtype.itemsize)


def counts(problem: Problem) -> dict[str, float]:
    """Work of one pass by expanding the filters and torch's convolution."""
    weights = math.prod(problem.expanded_shape)
    if problem.in_channels < _FEW * problem.groups:
        weights = min(weights, _MOST_FEW_WEIGHTS)
    return {
        "call": 1,
        "activations": _activations(problem),
        "pixels/multiply_adds": problem.macs_dense / lanes(problem),
        "pixels/weights": weights,
    }


def _activations(problem: Problem) -> int:
    return math.prod(problem.input_shape) + math.prod(problem.output_shape)


def place(problem: Problem, op: str) -> Place:
    """Where the rates of torch's convolution stand; it has other kernels by dimension and for few channels.

    Those for fewer than 8 are of stems: many groups of few channels cost what other narrow layers do. In float32
    input gradients of images have other kernels for a stride, and in stems for more than three taps.
    """
    channels, few = problem.in_channels // problem.groups, ""
    if _is_small(problem):
        few = "/small"
    elif channels < _FEW and problem.groups == 1:
        few = "/few"
    elif problem.ndim == 2:
        least = min(channels, problem.out_channels // problem.groups)
        few = "/below16" if least < 16 else "/16" if least == 16 else ""
    if (problem.ndim, op, problem.dtype) == (2, "dgrad", torch.float32) and few != "/small":
        if few == "/few":
            few += "/wide" if max(problem.kernel) > _NARROW_TAPS else ""
        elif max(problem.stride) > 1:
            few += "/strided"
    kind = f"torch{problem.ndim}d/{_layout(problem)}/{op}{few}"
    own = f"{rates.dtype_name(problem.dtype, kind)} {kind}"
    return Place(kind, own, own, problem.dtype)


def _is_small(problem: Problem) -> bool:
    """Does torch leave a problem to its own kernels, which are far slower in 3-D, instead of oneDNN?

    That is the rule of aten/src/ATen/native/Convolution.cpp (torch 2.13) for float32; it looks at the first two spatial
    dimensions alone, and a 1-D problem has one of size 1 before its own.
    """
    p = problem
    if p.dtype != torch.float32 or p.batch > 1 or p.groups > 1:
        return False
    outer = p.spatial[0] * (p.spatial[1] if p.ndim > 1 else 1)
    return p.in_channels * outer <= 20480 and not (p.ndim > 1 and min(p.kernel[-2:]) > 3)


def _depthwise_seconds(problem: Problem, op: str, key: tuple[str, str, str]) -> float:
    p, of = problem, rates.DEPTHWISE[key]
    elements = _activations(p) * max(2, p.dtype.itemsize) / 4
    width = p.in_channels // p.groups
    filled = math.ceil(width / _FEW) * _FEW / width if width > 1 else 1.0
    shared = filled * p.macs_dense / lanes(p) * of["multiply_adds"] + elements * of["elements"]
    return (of["call"] + shared / max(1, torch.get_num_threads())) * 1e-9 + _widening_seconds(p, op)


def depthwise_key(problem: Problem, op: str) -> tuple[str, str, str] | None:
    """Where the rates of torch's convolution of a depthwise layer stand, or of groups of few channels; else None."""
    p = problem
    if p.groups == 1:
        return None
    if p.groups < p.in_channels:
        key = f"torch groups {rates.torch_capability()}", _layout(p), op
        few = max(p.in_channels, p.out_channels) <= _FEW * p.groups
        return (
            key
            if few and p.ndim == 2 and asked_in(p, op) == torch.float32 and key in rates.DEPTHWISE
            else None
        )
    single = p.out_channels == p.groups and asked_in(p, op).itemsize <= 4 and p.ndim < 3
    return "torch single" if single else "torch multiple", _layout(p), op


def _layout(problem: Problem) -> str:
    return "pixels" if problem.input_channels_last else "planes"


def _widening_seconds(problem: Problem, op: str) -> float:
    """What it takes to bring tensors into the type in which torch is asked, and the result back."""
    if asked_in(problem, op) == problem.dtype:
        return 0.0
    elements = _activations(problem) + math.prod(problem.expanded_shape)
    return _WIDEN_CALL_SECONDS + elements * _WIDEN_ELEMENT_SECONDS / max(1, torch.get_num_threads())
