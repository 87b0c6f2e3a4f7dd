"""Layers beside the tied ones: what networks with symmetric filters are built and repaired with."""

from .balanced import SpatiallyBalancedConv2d, SpatiallyBalancedPool2d, alternate_sides
from .blur import BlurPool1d, BlurPool2d, BlurPool3d
from .checking import check_equivariance
from .exact import exact_padding, is_exact
from .global_conv import GlobalConv1d, TopKPool1d
from .orbits import (
    OrbitBatchNorm1d,
    OrbitBatchNorm2d,
    OrbitBatchNorm3d,
    OrbitDropout,
    OrbitPool,
    mirror,
    orbit_cat,
    rc_symmetry,
)
from .partial import PartialConv1d, PartialConv2d, PartialConv3d

__all__ = [
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "GlobalConv1d",
    "OrbitBatchNorm1d",
    "OrbitBatchNorm2d",
    "OrbitBatchNorm3d",
    "OrbitDropout",
    "OrbitPool",
    "PartialConv1d",
    "PartialConv2d",
    "PartialConv3d",
    "SpatiallyBalancedConv2d",
    "SpatiallyBalancedPool2d",
    "TopKPool1d",
    "alternate_sides",
    "check_equivariance",
    "exact_padding",
    "is_exact",
    "mirror",
    "orbit_cat",
    "rc_symmetry",
]
