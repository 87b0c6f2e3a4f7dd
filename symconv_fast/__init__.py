"""Convolutions whose filters are tied by reflection: fewer weights, and as many multiplications as weights."""

from . import functional, ops
from ._version import __version__
from .dispatch import backend, explain
from .modules import (
    SymmetricConv1d,
    SymmetricConv2d,
    SymmetricConv3d,
    SymmetricConvTranspose1d,
    SymmetricConvTranspose2d,
    SymmetricConvTranspose3d,
)
from .symmetry import Symmetry

__all__ = [
    "SymmetricConv1d",
    "SymmetricConv2d",
    "SymmetricConv3d",
    "SymmetricConvTranspose1d",
    "SymmetricConvTranspose2d",
    "SymmetricConvTranspose3d",
    "Symmetry",
    "__version__",
    "backend",
    "explain",
    "functional",
    "ops",
]
