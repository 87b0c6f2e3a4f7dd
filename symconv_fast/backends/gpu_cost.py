"""What a pass costs on a GPU, in seconds, by torch's convolution or composed of torch's operators: a model.

NOT MEASURED, but for the library's share of its rate. Rates are the vendors' data sheets (dense matrix FLOP/s,
bytes/s); what share of them a convolution reaches, and what a launch costs, are guesses on the careful side. They only
rank ways to run a layer against each other, and everything that is not torch's own has a margin on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from ..problem import Problem
from ..settings import tf32_allowed

# A kernel behind others in the queue, in every model of a GPU; what Python takes to launch one is not in it.
LAUNCH_SECONDS = 6e-6
# Of the data sheet: cuDNN's best 3 x 3 convolutions in bfloat16 (600 to 720 of 989 TFLOP/s), and elementwise kernels.
_CONVOLUTION_SHARE = 0.65
_BANDWIDTH_SHARE = 0.8
# A convolution's tiles are whole: so many filters and contracted channels are computed where there are fewer.
_FILTERS, _CHANNELS = 64, 16


@dataclass(frozen=True)
class Rates:
    """Nominal FLOP/s of matrix products by type ("tf32": float32 where TF32 is allowed), and bytes/s of memory."""

    half: float
    tf32: float
    single: float
    double: float
    bandwidth: float


RATES: dict[str, Rates] = {
    "sm_80": Rates(312e12, 156e12, 19.5e12, 9.7e12, 2.0e12),
    "sm_90": Rates(989e12, 494e12, 67e12, 34e12, 4.8e12),
    "sm_100": Rates(2250e12, 1125e12, 75e12, 37e12, 8.0e12),
    "gfx942": Rates(1307e12, 653e12, 163e12, 81e12, 5.3e12),
}


class Work(NamedTuple):
    """What a pass does: multiply-accumulates with tiles filled up, bytes moved, kernels launched."""

    macs: float = 0.0
    bytes: float = 0.0
    launches: int = 0

    @staticmethod
    def total(parts: Iterable[Work]) -> Work:
        """All of them together."""
        macs, moved, launches = 0.0, 0.0, 0
        for part in parts:
            macs, moved, launches = macs + part.macs, moved + part.bytes, launches + part.launches
        return Work(macs, moved, launches)


@cache
def architecture() -> str:
    """A key of RATES: the current device's generation, or the nearest older one; "sm_90" where there is no device."""
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability()[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


def flops(dtype: torch.dtype, arch: str | None = None) -> float:
    """Nominal FLOP/s of a convolution in this type; for float32 as `tf32_allowed` says."""
    rates = RATES[arch or architecture()]
    if dtype.itemsize == 2:
        return rates.half
    if dtype == torch.float64:
        return rates.double
    return rates.tf32 if tf32_allowed() else rates.single


def seconds(work: Work, dtype: torch.dtype, arch: str | None = None) -> float:
    """Time of some work: products and memory one after the other, since separate kernels do not overlap."""
    arch = arch or architecture()
    products = 2 * work.macs / (_CONVOLUTION_SHARE * flops(dtype, arch))
    return work.launches * LAUNCH_SECONDS + products + work.bytes / (_BANDWIDTH_SHARE * RATES[arch].bandwidth)


def filled(rows: int, channels: int) -> float:
    """Products of a filter bank of `rows` filters over `channels` channels, its tiles filled up."""
    return -(-rows // _FILTERS) * _FILTERS * (-(-channels // _CHANNELS) * _CHANNELS)


def torch_seconds(problem: Problem, op: str, arch: str | None = None) -> float:
    """Torch's convolution with filters that are there already: the greater of its products and its memory traffic."""
    arch = arch or architecture()
    rows, channels = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    columns = (channels, rows) if op == "dgrad" else (rows, channels)
    macs = problem.macs_dense / (rows * channels) * filled(*columns)
    shapes = (problem.input_shape, problem.output_shape, problem.expanded_shape)
    moved = problem.dtype.itemsize * sum(math.prod(shape) for shape in shapes)
    products = seconds(Work(macs=macs), problem.dtype, arch)
    return LAUNCH_SECONDS + max(products, seconds(Work(bytes=moved), problem.dtype, arch))


# --- the model that measurements of kernels are held against --------------------------------------------------------

# Of the nominal rate: cuDNN's best on an H200. With few channels the rest of its time weighs more.
_LIBRARY_SHARE, _LIBRARY_CHANNELS = 0.78, 24
_SCALAR_SHARE = 0.7  # float32 and float64 without tensor cores
_DEPTHWISE_SHARES = (0.15, 0.25)  # of the memory bandwidth and of the scalar units, for depthwise layers
_EXPAND_SECONDS = 4e-6  # for each member of the largest orbits, by copies that torch launches


def products(dtype: torch.dtype, arch: str, precision: str) -> tuple[float, bool]:
    """(multiply-adds a second, by matrix units in full?); the precision of float32 is as Triton calls it."""
    rates = RATES[arch]
    if dtype.itemsize == 2:
        return rates.half / 2, True
    if dtype == torch.float64:
        return rates.double / 2, False
    if precision == "ieee":
        return rates.single / 2, False
    return rates.tf32 / (6 if precision == "tf32x3" else 2), True


def depthwise_seconds(problem: Problem, arch: str, shares: tuple[float, float]) -> float:
    """Of a depthwise layer that multiplies every filter: whichever of the memory and the scalar units binds.

    `shares` of the bandwidth and of the rate of float32 (in float64 its own) are what the kernels reach.
    """
    rates = RATES[arch]
    rate = (rates.double if problem.dtype == torch.float64 else rates.single) / 2
    return max(problem.bytes / (rates.bandwidth * shares[0]), problem.macs_dense / (rate * shares[1]))


def library_seconds(problem: Problem, arch: str, precision: str) -> float:
    """Expanding the filters, then the library's convolution, on the scale of the models of kernels."""
    rate, units = products(problem.dtype, arch, precision)
    groups, channels = problem.groups, problem.in_channels // problem.groups
    expanding = _EXPAND_SECONDS * max(1 << mask.bit_count() for mask, rows in problem.ties if rows)
    moved = problem.bytes / RATES[arch].bandwidth
    if channels == 1 and groups > 1:
        return expanding + depthwise_seconds(problem, arch, _DEPTHWISE_SHARES)
    share = _LIBRARY_SHARE * channels / (channels + _LIBRARY_CHANNELS) if units else _SCALAR_SHARE
    return expanding + LAUNCH_SECONDS + max(problem.macs_dense / (rate * share), moved)
