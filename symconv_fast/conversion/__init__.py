"""Whole models into tied layers and back; see `symconv_fast.convert` and `symconv_fast.revert`."""

from .expand import to_torch
from .report import ConversionReport, LayerReport
from .tie import convert

revert = to_torch
"""The way back from `convert`: the same function as `to_torch`."""

__all__ = ["ConversionReport", "LayerReport", "convert", "revert", "to_torch"]
