"""What torch's own convolution costs on a CPU: what every backend there is weighed against."""

from __future__ import annotations

from ..problem import Problem
from . import cpu_cost, cpu_depthwise


def seconds(problem: Problem, op: str) -> float:
    """Estimate for one pass with filters that are expanded natively; depthwise layers have a model of their own."""
    model = cpu_depthwise if cpu_depthwise.applies(problem) else cpu_cost
    return model.torch_seconds(problem, op)
