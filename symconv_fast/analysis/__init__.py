"""What a model's symmetry looks like: of its filters, of its features, of its predictions."""

from .consistency import Consistency, flip_consistency, shift_consistency
from .kernels import KernelSymmetry, SymmetryScore, kernel_symmetry
from .null import SymmetryNull, symmetry_null
from .profile import LayerSymmetry, SymmetryProfile, symmetry_profile

__all__ = [
    "Consistency",
    "KernelSymmetry",
    "LayerSymmetry",
    "SymmetryNull",
    "SymmetryProfile",
    "SymmetryScore",
    "flip_consistency",
    "kernel_symmetry",
    "shift_consistency",
    "symmetry_null",
    "symmetry_profile",
]
