"""What the symmetry of a model looks like: `equivariance_report`, where mirrors and shifts stop being exact."""

from .equivariance import EquivarianceReport, LayerEquivariance, equivariance_report

__all__ = ["EquivarianceReport", "LayerEquivariance", "equivariance_report"]
