"""Questions about tensors that every call asks: answered natively where the module is there, else in Python."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import problem

try:
    from . import _cpu as module  # type: ignore[attr-defined]

    _failure = None
except ImportError as _error:
    module, _failure = None, str(_error)

ENV_ISA = "SYMCONV_FAST_ISA"
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16")
"""What that variable may name, as in csrc/cpu/microkernels/kernels.cpp: the best instructions that kernels may use."""


HOW_TO_BUILD = "build it, where a C++ compiler is, with pip install --no-build-isolation . (or make build)"
"""What to do about `missing`: in the folder of the sources, with the torch that is used."""

NAMES = frozenset(
    """
    Algorithm Isa Op Pass Problem Selection UNITS autocast_to build_info clear_workspace connect count_kernels
    counters cpu_maker forget isa recall recall_layer remember remembered reset_counters select
    suggests_channels_last take_done
    """.split()  # noqa: SIM905 (a column of quoted names is longer)
)
"""What the native module has; another set is that of other sources."""


def check_age(found: Any) -> None:
    """Refuse a native module `found` beside Python files of another version: calls would fail somewhere later.

    Raises:
        ImportError: its names differ from `NAMES`.
    """
    names = {name for name in vars(found) if not name.startswith("__")}
    if names != NAMES:
        other = sorted(names ^ NAMES)[0]
        raise ImportError(
            f"{found.__file__} was built from other sources than the Python files beside it ({other!r} is "
            f"{'missing' if other in NAMES else 'unknown'}): {HOW_TO_BUILD}"
        )


def missing() -> str | None:
    """Why there is no native module in this installation, as a clause; None if there is."""
    if module is not None:
        return None
    built = sorted(
        path.name for path in Path(__file__).parent.glob("_cpu.*") if path.suffix in (".so", ".pyd")
    )
    return f"{built[0]} cannot be loaded: {_failure}" if built else "the native module was not built"


@cache
def say_if_missing() -> None:
    """One warning a process where CPU layers run without the native module: slow is not wrong, but not silent."""
    reason = missing()
    if reason is not None:
        warnings.warn(
            f"symconv_fast: CPU layers run on the reference backend, correct but no faster than torch: {reason}; "
            f"{HOW_TO_BUILD}",
            stacklevel=2,
        )


def _check_isa() -> None:
    """Native code takes no notice of what it does not know, so that a misspelt test would test nothing."""
    name = os.environ.get(ENV_ISA)
    if name and name not in ISAS:
        warnings.warn(
            f"symconv_fast: {ENV_ISA}={name!r} has no effect; give one of {', '.join(ISAS)}", stacklevel=2
        )


if module is not None:
    check_age(module)
    _check_isa()


def suggests_channels_last(tensor: Tensor) -> bool:
    """`problem.suggests_channels_last`, which torch.compile can trace, or the native form, which is quicker."""
    if module is None or torch.compiler.is_compiling():
        return problem.suggests_channels_last(tensor)
    return bool(module.suggests_channels_last(tensor))


def autocast_to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What autocast makes of an argument: floating types but float64 go to `dtype`.

    Native code uses autocast's cache, so that a weight is cast once for as long as autocast is on.
    """
    if module is not None and not torch.compiler.is_compiling():
        cast: Tensor = module.autocast_to(tensor, dtype)
        return cast
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if eligible else tensor
