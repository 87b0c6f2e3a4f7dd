"""Questions about tensors that every call asks: answered natively where the module is there, else in Python."""

from __future__ import annotations

import torch
from torch import Tensor

from . import problem

try:
    from . import _cpu as module  # type: ignore[attr-defined]
except ImportError:
    module = None


def suggests_channels_last(tensor: Tensor) -> bool:
    """`problem.suggests_channels_last`, which torch.compile can trace, or the native form, which is quicker."""
    if module is None or torch.compiler.is_compiling():
        return problem.suggests_channels_last(tensor)
    return bool(module.suggests_channels_last(tensor))
