"""What a pass costs on a GPU, in seconds: the one scale on which backends estimate there.

Rates are the vendors' data sheets (dense matrix FLOP/s, bytes/s). What share of them torch's convolution reaches was
measured for bfloat16 on an H200 (docs/gpu.md); all else is NOT MEASURED. Estimates rank ways to run a layer against
each other, and everything that is not torch's own has a margin on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ..problem import Problem
from ..settings import tf32_allowed
from ..ties import orbit_size

# A kernel behind others in the queue; what Python takes to launch one is not in it.
LAUNCH_SECONDS = 6e-6
# Bytes that the second-level cache gives a multiprocessor in a clock: measured on an H200.
CACHE_BYTES = 28
# Of the nominal rate: cuDNN's best on an H200. With few channels the rest of its time weighs more.
_LIBRARY_SHARE, _LIBRARY_CHANNELS = 0.78, 24
_SCALAR_SHARE = 0.7  # float32 and float64 without tensor cores
_DEPTHWISE_SHARES = (0.15, 0.25)  # of the memory bandwidth and of the scalar units, for depthwise layers
_EXPAND_SECONDS = 4e-6  # for each member of the largest orbits, by copies that torch launches


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


def architecture(index: int | None = None) -> str:
    """A key of RATES: the generation of a device, or the nearest older one; "sm_90" where there is no device.

    `index` is that of the device among torch's, None the current one.
    """
    if not torch.cuda.is_available():
        return "sm_90"
    return _architecture(torch.cuda.current_device() if index is None else index)


@cache
def _architecture(index: int) -> str:
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(index)[0]
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


def precision() -> str:
    """How float32 is multiplied, as Triton calls it: as torch multiplies it in convolutions."""
    return "tf32" if tf32_allowed() else "ieee"


def products(dtype: torch.dtype, arch: str, precision: str) -> tuple[float, bool]:
    """(multiply-adds a second, by matrix units in full?); `precision` is that of float32."""
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


def copy_seconds(moved: float, launches: int, arch: str | None = None) -> float:
    """Kernels that only copy or add: bytes that they read and write."""
    return launches * LAUNCH_SECONDS + moved / RATES[arch or architecture()].bandwidth


def expand_seconds(problem: Problem) -> float:
    """Expanding the filters with torch's operators: of self-symmetric ones the images that one filter holds."""
    own = problem.sides.own if problem.sides else (None,) * len(problem.ties)
    tied = [kind.mask if kind else mask for kind, (mask, rows) in zip(own, problem.ties) if rows]
    return _EXPAND_SECONDS * max(map(orbit_size, tied))


def torch_seconds(problem: Problem, arch: str | None = None, float32: str | None = None) -> float:
    """Torch's convolution, in any pass, with filters that are there already; `float32` as in `precision`."""
    arch = arch or architecture()
    rate, units = products(problem.dtype, arch, float32 or precision())
    groups, channels = problem.groups, problem.in_channels // problem.groups
    if channels == 1 and groups > 1:
        return LAUNCH_SECONDS + depthwise_seconds(problem, arch, _DEPTHWISE_SHARES)
    share = _LIBRARY_SHARE * channels / (channels + _LIBRARY_CHANNELS) if units else _SCALAR_SHARE
    moved = problem.bytes / RATES[arch].bandwidth
    return LAUNCH_SECONDS + max(problem.macs_dense / (rate * share), moved)
