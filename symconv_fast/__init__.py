"""Convolutions whose filters are tied by reflection: fewer weights, and as many multiplications as weights."""

import sys as _sys
from types import ModuleType as _ModuleType
from typing import Literal as _Literal

from . import functional, init, ops, settings
from . import guards as _guards
from . import nn as nn  # not in __all__: `from symconv_fast import *` must not replace torch's nn
from ._version import __version__
from .conversion import convert, revert, to_torch
from .dispatch import backend
from .explanation import explain
from .modules import (
    SymmetricConv1d,
    SymmetricConv2d,
    SymmetricConv3d,
    SymmetricConvTranspose1d,
    SymmetricConvTranspose2d,
    SymmetricConvTranspose3d,
)
from .settings import benchmarking
from .symmetry import Symmetry, SymmetryWarning

allow_winograd: _Literal["f2", "f4", False]
benchmark: bool | _Literal["auto"]
"""For type checkers; `_Package` below has the switches themselves."""


class _Package(_ModuleType):
    """This module, with two attributes that are checked when they are set."""

    @property
    def allow_winograd(self) -> str | bool:
        """How far float32 layers may trade rounding for speed, as torch's TF32 switch does: "f2", "f4" or False.

        "f2" (the default) allows F(2,3) along an axis that is not tied: 1.5 times fewer multiplications, errors of
        the order of torch's own channels_last convolution. "f4" allows F(4,3), 2 times fewer, with errors about
        twice those, and along one of two tied axes too, 1.2 times fewer. False allows neither.
        """
        return settings.winograd()

    @allow_winograd.setter
    def allow_winograd(self, level: str | bool) -> None:
        settings.set_winograd(level)

    @property
    def benchmark(self) -> str | bool:
        """Are the candidates for a layer timed at its first call, as `torch.backends.cudnn.benchmark` does?

        "auto" (the default) times where nothing was measured: on models of GPU, and for types on CPUs, without rates.
        True times everywhere, False nowhere: estimates choose. See docs/trust.md.
        """
        return settings.benchmark()

    @benchmark.setter
    def benchmark(self, level: str | bool) -> None:
        settings.set_benchmark(level)

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), "allow_winograd", "benchmark"])


_sys.modules[__name__].__class__ = _Package
_guards.install()

__all__ = [
    "SymmetricConv1d",
    "SymmetricConv2d",
    "SymmetricConv3d",
    "SymmetricConvTranspose1d",
    "SymmetricConvTranspose2d",
    "SymmetricConvTranspose3d",
    "Symmetry",
    "SymmetryWarning",
    "__version__",
    "backend",
    "benchmarking",
    "convert",
    "explain",
    "functional",
    "init",
    "ops",
    "revert",
    "to_torch",
]
