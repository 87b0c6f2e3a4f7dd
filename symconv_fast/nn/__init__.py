"""Layers beside the tied ones: what networks with symmetric filters are built and repaired with."""

from .global_conv import GlobalConv1d, TopKPool1d

__all__ = ["GlobalConv1d", "TopKPool1d"]
