"""What a model's symmetry looks like: of its filters, of its features, of its predictions, of the whole network."""

from .consistency import Consistency, flip_consistency, shift_consistency
from .equivariance import EquivarianceReport, LayerEquivariance, equivariance_report
from .kernels import KernelSymmetry, SymmetryScore, kernel_symmetry
from .mirrored import MirroredReport, MirroredRow, SpaceMatch, match_mirrored
from .null import SymmetryNull, symmetry_null
from .profile import LayerSymmetry, SymmetryProfile, symmetry_profile

__all__ = [
    "Consistency",
    "EquivarianceReport",
    "KernelSymmetry",
    "LayerEquivariance",
    "LayerSymmetry",
    "MirroredReport",
    "MirroredRow",
    "SpaceMatch",
    "SymmetryNull",
    "SymmetryProfile",
    "SymmetryScore",
    "equivariance_report",
    "flip_consistency",
    "kernel_symmetry",
    "match_mirrored",
    "shift_consistency",
    "symmetry_null",
    "symmetry_profile",
]
