"""Layers beside the tied ones: what networks with symmetric filters are built and repaired with."""

from .balanced import SpatiallyBalancedConv2d, SpatiallyBalancedPool2d, alternate_sides
from .blur import BlurPool1d, BlurPool2d, BlurPool3d
from .exact import exact_padding, is_exact
from .global_conv import GlobalConv1d, TopKPool1d
from .partial import PartialConv1d, PartialConv2d, PartialConv3d

__all__ = [
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "GlobalConv1d",
    "PartialConv1d",
    "PartialConv2d",
    "PartialConv3d",
    "SpatiallyBalancedConv2d",
    "SpatiallyBalancedPool2d",
    "TopKPool1d",
    "alternate_sides",
    "exact_padding",
    "is_exact",
]
