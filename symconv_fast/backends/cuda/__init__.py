"""Native CUDA kernels. What is here tells whether they can run, and loads neither them nor what plans for them."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from . import native


def missing() -> str | None:
    """Why no problem can run on this backend here, or None."""
    if native.STAND_IN is not None:
        return None
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if torch.cuda.is_available() else "torch finds no GPU"


def misplaced(device: str) -> str | None:
    """Why this backend runs nothing on this type of device, or None."""
    if device == "cuda":
        return (
            None if native.STAND_IN is None else "the kernels are those of the stand-in, which run on the CPU"
        )
    if device != "cpu":
        return f"the tensors are on {device}, not on a CUDA GPU"
    return None if native.STAND_IN is not None else "the tensors are on the CPU"


def listing() -> tuple[tuple[str, str], ...]:
    """(name, architectures) of every kernel of the native module; none where there is no module."""
    try:
        variants = native.module().variants()
    except ImportError:
        return ()
    return tuple(
        (f"{v['family']} {v['name']}", f"sm_{v['arch']}{'a' if v['arch'] == 90 else ' and up'}")
        for v in variants
    )


def load() -> ModuleType:
    """The backend itself. Raises ImportError without the native module."""
    native.module()
    return importlib.import_module(f"{__name__}.backend")
