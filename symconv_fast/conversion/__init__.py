"""Whole models into tied layers and back; see `symconv_fast.to_torch`."""

from .expand import to_torch

__all__ = ["to_torch"]
