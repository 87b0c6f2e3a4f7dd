"""What a pass would cost on a GPU, by arithmetic: products at a share of the nominal rate, bytes, launches.

NOT MEASURED. The shares are cautious: they come from counting instructions and cache traffic of compiled kernels, and a
layer goes to these kernels only where even so they win by a margin.
"""

from __future__ import annotations

import math

import torch

from ...problem import Problem
from .. import reference
from ..gpu_cost import RATES
from . import configs
from .geometry import Geometry, geometry

INTERPRETED_SECONDS = 1e6

# Shares of the nominal rate. Ours by number of tied axes: what is left when loads through the second-level cache bind.
SHARE = {"fold": (0.50, 0.40, 0.29, 0.20), "direct": (0.45,) * 4}
TORCH_SHARE = 0.65
# float32 and float64 without tensor cores are far from their rate in Triton, and close to it in torch's libraries.
SCALAR_SHARE, TORCH_SCALAR_SHARE = 0.3, 0.7
# Of the memory bandwidth, for depthwise layers.
DEPTHWISE_SHARE, TORCH_DEPTHWISE_SHARE = 0.4, 0.15
LAUNCH_SECONDS = 30e-6
EXPAND_SECONDS = 60e-6
MARGIN = 1.15


def seconds(problem: Problem, op: str, algorithm: str, arch: str, precision: str) -> float:
    """Estimate on the scale of the reference backend: its own figure times the ratio of the two models."""
    ours = MARGIN * _ours(problem, op, algorithm, arch, precision)
    return reference.estimate(problem, op, "expand") * ours / _torch(problem, arch, precision)


def _rate(problem: Problem, arch: str, precision: str) -> tuple[float, bool]:
    """(multiply-adds a second, by matrix units in full?)."""
    rates, size = RATES[arch], problem.dtype.itemsize
    if size == 2:
        return rates.half / 2, True
    if problem.dtype == torch.float64:
        return rates.double / 2, False
    if precision == "ieee":
        return rates.single / 2, False
    return rates.tf32 / (6 if precision == "tf32x3" else 2), True


def _torch(problem: Problem, arch: str, precision: str) -> float:
    """Expanding the filters, then the library's convolution."""
    rate, units = _rate(problem, arch, precision)
    g = geometry(problem)
    share = TORCH_SHARE if units else TORCH_SCALAR_SHARE
    moved = problem.bytes / RATES[arch].bandwidth
    if g.depthwise:
        return EXPAND_SECONDS + moved / TORCH_DEPTHWISE_SHARE
    return EXPAND_SECONDS + max(problem.macs_dense / (rate * share), moved)


def _ours(problem: Problem, op: str, algorithm: str, arch: str, precision: str) -> float:
    g = geometry(problem)
    moved = problem.bytes / RATES[arch].bandwidth
    if g.depthwise:
        return LAUNCH_SECONDS + moved / DEPTHWISE_SHARE
    rate, units = _rate(problem, arch, precision)
    total = 0.0
    for s in g.segments:
        members = 1 if algorithm == "fold" else 1 << s.order
        share = SHARE[algorithm][s.order] if units else SCALAR_SHARE
        total += members * _padded_share(g, s.rows) * s.rows / g.rows * problem.macs_folded / (rate * share)
    copies = sum(2 * n for n in _copied(problem)) * problem.dtype.itemsize / RATES[arch].bandwidth
    launches = 2 + (len({s.order for s in g.segments}) if op == "fprop" else 1)
    return launches * LAUNCH_SECONDS + max(total, moved) + copies


def _padded_share(g: Geometry, rows: int) -> float:
    """Multiply-adds on zeros that fill matrix tiles, as a factor: at least 16 orbits and 16 channels."""

    def fill(n: int) -> float:
        return -(-n // 16) * 16 / n

    channels = 1.3 if g.channels < configs.PACK_BELOW else fill(g.channels)  # integer work of packed taps
    return fill(rows) * channels


def _copied(problem: Problem) -> list[int]:
    """Elements of the tensors that are copied to have their channels innermost."""
    sizes = []
    if not problem.input_channels_last:
        sizes.append(problem.batch * problem.in_channels * math.prod(problem.spatial))
    if not problem.channels_last:
        sizes.append(problem.batch * problem.out_channels * math.prod(problem.out_spatial))
    return sizes
