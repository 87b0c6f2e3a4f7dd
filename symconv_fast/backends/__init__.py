"""Backends: modules with the functions that `dispatch` lists, and what is known of them before they are imported."""

from __future__ import annotations

import os
import sys
from functools import cache

import torch

from .. import native

_TRUE = ("1", "true", "yes", "on", "y")


@cache
def missing(name: str) -> str | None:
    """Why no problem can run on a backend here, or None: asked first, since importing Triton takes 0.1 s."""
    if name == "cpu":
        return native.missing()
    if name != "triton" or _interpreting():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA and ROCm"
    return None if torch.cuda.is_available() else "torch finds no GPU"


def misplaced(name: str, device: str) -> str | None:
    """Why a backend runs nothing on this type of device, or None: asked before it is imported for a problem there."""
    if name != "triton" or device == "cuda":
        return None
    if device != "cpu":
        return f"the tensors are on {device}, not on a CUDA or ROCm GPU"
    if _interpreting():
        return None
    return "the tensors are on the CPU (set TRITON_INTERPRET=1 to run the kernels there, slowly, for tests)"


def _interpreting() -> bool:
    """Do the kernels run in Triton's interpreter? That is decided for good when they are imported."""
    kernels = sys.modules.get(f"{__name__}.triton.interpreted")
    if kernels is not None:
        return bool(kernels.ACTIVE)
    knobs = getattr(sys.modules.get("triton"), "knobs", None)
    if knobs is not None:
        return bool(knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE
