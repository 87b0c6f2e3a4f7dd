"""Questions about tensors that every call asks: answered natively where the module is there, else in Python."""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor

from . import problem

try:
    from . import _cpu as module  # type: ignore[attr-defined]
except ImportError:
    module = None

ENV_ISA = "SYMCONV_FAST_ISA"
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16")
"""What that variable may name, as in csrc/cpu/kernels_baseline.cpp: the best instructions that kernels may use."""


def _check_isa() -> None:
    """Native code takes no notice of what it does not know, so that a misspelt test would test nothing."""
    name = os.environ.get(ENV_ISA)
    if name and name not in ISAS:
        warnings.warn(
            f"symconv_fast: {ENV_ISA}={name!r} has no effect; give one of {', '.join(ISAS)}", stacklevel=2
        )


if module is not None:
    _check_isa()


def suggests_channels_last(tensor: Tensor) -> bool:
    """`problem.suggests_channels_last`, which torch.compile can trace, or the native form, which is quicker."""
    if module is None or torch.compiler.is_compiling():
        return problem.suggests_channels_last(tensor)
    return bool(module.suggests_channels_last(tensor))
