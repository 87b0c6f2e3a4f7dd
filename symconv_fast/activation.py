"""The activations that a call may apply to its output: their names, torch's form of each, and the check."""

from __future__ import annotations

from torch import Tensor
from torch.ops import aten

ACTIVATIONS = {
    "relu": (aten.relu.default, aten.relu_.default),
    "silu": (aten.silu.default, aten.silu_.default),
    "gelu": (aten.gelu.default, aten.gelu_.default),
}
"""torch's operators, the second in place; GELU is the exact one, with erf. Kernels number them from 1 on, in order."""


def check(name: object) -> None:
    """Raises ValueError for what is not one of the names."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not valid; give None, 'relu', 'silu' or 'gelu'")


def activate(output: Tensor, name: str) -> Tensor:
    """The activation of an output that nobody else has seen: in place where no gradient is wanted."""
    function, in_place = ACTIVATIONS[name]
    # Results of an autograd.Function may be views, which autograd does not let anybody change.
    activated: Tensor = (function if output.requires_grad else in_place)(output)
    return activated
