"""What the planners of the kernels know of a device, and how a problem's dtype is named to the kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from ...settings import tf32_allowed
from . import native

LEAST_CAPABILITY = (8, 0)

DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""The field `dtype` of every family."""

# Bytes of shared memory that one block of threads can ask for, by compute capability: the CUDA programming guide.
_SHARED = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 7): 163 << 10, (8, 9): 99 << 10, (12, 0): 99 << 10}
_SHARED_HOPPER = 227 << 10


@dataclass(frozen=True)
class Limits:
    """A device as the planners see it: `arch` like "sm_90", bytes of shared memory that one CTA can have.

    `tf32` says whether float32 may be multiplied as TF32 at this moment.
    """

    arch: str
    capability: tuple[int, int]
    shared_bytes: int
    multiprocessors: int
    tf32: bool


STAND_IN = Limits("sm_90", (9, 0), _SHARED_HOPPER, 4, True)
"""What the stand-in of the tests stands for; tests put others in its place."""


def of(device: int | None = None) -> Limits:
    """The limits of a device by its index, of the current device if None."""
    if native.STAND_IN is not None:
        return replace(STAND_IN, tf32=tf32_allowed())
    index = torch.cuda.current_device() if device is None else device
    return _limits(index, tf32_allowed())


@cache
def _limits(index: int, tf32: bool) -> Limits:
    found = torch.cuda.get_device_properties(index)
    capability = (found.major, found.minor)
    shared = getattr(found, "shared_memory_per_block_optin", 0) or _SHARED.get(capability, _SHARED_HOPPER)
    arch = f"sm_{found.major}{found.minor}"
    return Limits(arch, capability, shared, found.multi_processor_count, tf32)
