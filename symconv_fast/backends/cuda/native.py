"""The native module of the CUDA kernels: loaded when it is first wanted, or why there is none."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..._version import __version__

NAME = "_cuda"
HOW_TO_BUILD = "build it, where nvcc is, with pip install --no-build-isolation . (or make cuda)"

STAND_IN: Any = None
"""In tests: the same module, built for the host. It takes tensors on the CPU instead of those on a GPU."""


def module() -> Any:
    """The native module. Raises ImportError with what to do about it."""
    if STAND_IN is not None:
        return STAND_IN
    loaded = _load()
    if isinstance(loaded, str):
        raise ImportError(f"{loaded}; {HOW_TO_BUILD}")
    return loaded


@cache
def _load() -> Any | str:
    """The module of this installation, or why there is none, as a clause."""
    try:
        loaded = importlib.import_module(f"symconv_fast.{NAME}")
        version = loaded.info()["version"]
        return loaded if version == __version__ else f"the native CUDA module is of symconv_fast {version}"
    except ImportError as error:
        package = Path(__file__).parents[2]
        built = sorted(p.name for p in package.glob(f"{NAME}.*") if p.suffix in (".so", ".pyd"))
        return f"{built[0]} cannot be loaded: {error}" if built else "the native CUDA module was not built"


def architectures() -> str | None:
    """What the module was built for, in torch's syntax; None where there is no module."""
    loaded = STAND_IN or _load()
    return None if isinstance(loaded, str) else str(loaded.info()["architectures"])


def built_for(capability: tuple[int, int]) -> bool:
    """Has the module code for a device: of its generation, or text that the driver can compile for it?"""
    return STAND_IN is not None or covers(architectures() or "", capability)


@cache
def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Do architectures in torch's syntax, such as 8.0;9.0a;10.0+PTX, have code for a compute capability?"""
    for major, minor, alone, text in re.findall(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architectures):
        built = int(major), int(minor)
        older = built[0] == capability[0] and built <= capability
        if built == capability or (not alone and older) or (not alone and text and built <= capability):
            return True
    return False


def observe(reads: tuple[Tensor, ...], writes: tuple[Tensor, ...]) -> None:
    """Tell the stand-in which memory kernels may touch: whatever else they touch is then an error."""
    STAND_IN.clear_buffers()
    for writable, tensors in ((False, reads), (True, writes)):
        for tensor in tensors:
            if tensor.numel():
                reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
                STAND_IN.register_buffer(tensor.data_ptr(), (reach + 1) * tensor.element_size(), writable)
