"""Which layers run on the depthwise kernels of csrc/cpu, and what they and torch's own cost, in seconds.

Least-squares fits over 200 random layers (one AVX-512 core, 2-D, kernels 3 to 13, stride 1 and 2, 8 to 384 channels).
They are off by a factor of 1.3 to 2, which is enough: torch is 2 to 20 times slower wherever a group has more than one
filter, and close only for ordinary layers with one.
"""

from __future__ import annotations

import math

import torch

from ..problem import Problem
from . import cpu_cost
from .torch_conv import asked_in

# Nanoseconds: a call; a vector multiply-add with the source in registers; one without; an element moved.
_NATIVE = {
    ("pixels", "fprop"): (3900, 0.151, 0.354, 0.106),
    ("pixels", "dgrad"): (3900, 0.165, 0.450, 0.120),
    ("pixels", "wgrad"): (3700, 0.159, 0.356, 0.143),
    ("planes", "fprop"): (4700, 0.152, 0.366, 0.143),
    ("planes", "dgrad"): (5700, 0.125, 0.407, 0.181),
    ("planes", "wgrad"): (4500, 0.147, 0.362, 0.174),
}
# A call; a vector multiply-add; an element moved. One filter a group in at most 32 bits, and everything else.
_TORCH_SINGLE = {
    ("pixels", "fprop"): (22300, 0.219, 0.027),
    ("pixels", "dgrad"): (26400, 0.242, 0.037),
    ("pixels", "wgrad"): (37300, 0.707, 0.0),
    ("planes", "fprop"): (31900, 0.117, 0.216),
    ("planes", "dgrad"): (37300, 0.203, 0.176),
    ("planes", "wgrad"): (23400, 1.92, 0.0),
}
_TORCH_MULTIPLE = {
    ("pixels", "fprop"): (34000, 0.80, 0.035),
    ("pixels", "dgrad"): (29200, 2.72, 0.154),
    ("pixels", "wgrad"): (35300, 0.68, 0.130),
    ("planes", "fprop"): (29400, 2.22, 0.360),
    ("planes", "dgrad"): (30900, 2.29, 0.588),
    ("planes", "wgrad"): (30400, 2.29, 0.428),
}


def applies(problem: Problem) -> bool:
    """One input channel in every group, and more than one group: lanes would be idle otherwise."""
    return problem.groups == problem.in_channels > 1


def native_seconds(problem: Problem, op: str) -> float:
    """Estimate for the depthwise kernels."""
    p = problem
    call, window, general, element = _NATIVE[_layout(p), op]
    lanes = cpu_cost.lanes(p)  # 16-bit types are widened to float32
    positions = p.batch * math.prod(p.spatial if p.transposed else p.out_spatial)
    vectors = positions * -(-p.groups // lanes) * (p.unique // p.groups) * math.prod(p.kernel)
    simple = p.kernel[-1] in (3, 5, 7) and p.stride[-1] == p.dilation[-1] == 1 and not p.transposed
    shared = vectors * (window if simple else general) + _moved(p, 4) * element
    return (call + shared / max(1, torch.get_num_threads())) * 1e-9


def torch_seconds(problem: Problem, op: str) -> float:
    """Estimate for expanded filters and torch's convolution."""
    p = problem
    single = p.out_channels == p.groups and asked_in(p, op).itemsize <= 4 and p.ndim < 3
    call, vector, element = (_TORCH_SINGLE if single else _TORCH_MULTIPLE)[_layout(p), op]
    lanes = cpu_cost.torch_lanes(p)
    shared = p.macs_dense / lanes * vector + _moved(p, 2) * element
    return (call + shared / max(1, torch.get_num_threads())) * 1e-9 + cpu_cost.widening_seconds(p, op)


def _layout(problem: Problem) -> str:
    return "pixels" if problem.input_channels_last else "planes"


def _moved(problem: Problem, least: int) -> float:
    """Elements of input and output, as if all were float32; none counts as fewer than `least` bytes."""
    elements = math.prod(problem.input_shape) + math.prod(problem.output_shape)
    return elements * max(least, problem.dtype.itemsize) / 4
