"""Layers beside the tied ones: what networks with symmetric filters are built and repaired with."""

from .exact import exact_padding, is_exact

__all__ = ["exact_padding", "is_exact"]
