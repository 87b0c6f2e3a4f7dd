"""Questions about tensors that every call asks: answered natively where the module is there, else in Python."""

from __future__ import annotations

import torch
from torch import Tensor

from . import problem

try:
    from . import _cpu  # type: ignore[attr-defined]
except ImportError:
    _cpu = None

_KINDS = (Tensor, torch.nn.Parameter)  # subclasses may want to see the operator


def suggests_channels_last(tensor: Tensor) -> bool:
    """`problem.suggests_channels_last`, which torch.compile can trace, or the native form, which is quicker."""
    if _cpu is None or torch.compiler.is_compiling():
        return problem.suggests_channels_last(tensor)
    return bool(_cpu.suggests_channels_last(tensor))


def is_plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Would the dispatcher do nothing but call the kernel: CPU tensors, no gradient, mode, subclass or transform?

    Without the native module nothing is plain: there, the trip through the dispatcher is the least of the costs.
    """
    if _cpu is None or type(input) not in _KINDS or type(weight) not in _KINDS:
        return False
    return (bias is None or type(bias) in _KINDS) and bool(_cpu.is_plain(input, weight, bias))
