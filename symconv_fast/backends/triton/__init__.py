"""Triton kernels for GPUs. What is here tells whether they can run, and does not import Triton, which takes 0.1 s."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from types import ModuleType

import torch

_TRUE = ("1", "true", "yes", "on", "y")


@cache
def missing() -> str | None:
    """Why no problem can run on this backend here, or None."""
    if _interpreting():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA and ROCm"
    return None if torch.cuda.is_available() else "torch finds no GPU"


def misplaced(device: str) -> str | None:
    """Why this backend runs nothing on this type of device, or None."""
    if device == "cuda":
        return None
    if device != "cpu":
        return f"the tensors are on {device}, not on a CUDA or ROCm GPU"
    if _interpreting():
        return None
    return "the tensors are on the CPU (set TRITON_INTERPRET=1 to run the kernels there, slowly, for tests)"


def load() -> ModuleType:
    """The backend itself. Raises ImportError without Triton."""
    return importlib.import_module(f"{__name__}.backend")


def listing() -> tuple[tuple[str, str], ...]:
    """(name, architectures) of every kernel; which tiles there are of it depends on the device."""
    names = (
        "fprop_fold",
        "fprop_direct",
        "dgrad",
        "wgrad",
        "fprop_depthwise",
        "dgrad_depthwise",
        "wgrad_depthwise",
    )
    return tuple((name, "compiled when it is first used") for name in names)


def _interpreting() -> bool:
    """Do the kernels run in Triton's interpreter? That is decided for good when they are imported."""
    kernels = sys.modules.get(f"{__name__}.interpreted")
    if kernels is not None:
        return bool(kernels.ACTIVE)
    knobs = getattr(sys.modules.get("triton"), "knobs", None)
    if knobs is not None:
        return bool(knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE
