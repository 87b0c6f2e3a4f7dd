"""The way of a layer under torch.compile and torch.export, short on purpose.

torch.compile guards what Python reads on its way to the operator (attributes, globals, code of functions) and checks
all guards before each call. Those of `functional.run` are three times as many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, is_autocast_enabled

from .ops import fprop
from .problem import suggests_channels_last

if TYPE_CHECKING:
    from .modules import _Symmetric


def straight(layer: _Symmetric[Any], input: Tensor, transposed: bool) -> Tensor | None:
    """The output of a layer whose arguments `functional.run` would hand to the operator as they are, or None.

    The operator checks tensors and sizes as `run` does.
    """
    weight, bias, padding = layer.weight, layer.bias, layer.padding
    if (
        input.dim() != weight.dim()
        or layer.padding_mode != "zeros"
        or padding.__class__ is not tuple
        or layer.share_bias
        or is_autocast_enabled(input.device.type)
    ):
        return None
    ties = layer.__dict__["ties"]
    if bias is not None and ties.sides:  # a bias may not go with what a mirror negates
        return None
    last = suggests_channels_last(input) or suggests_channels_last(weight)
    sizes = (layer.stride, padding, layer.dilation, layer.output_padding)
    return fprop(input, weight, bias, ties.flat, *sizes, transposed, layer.groups, last)
