"""Handlers for programs that count multiply-adds: ptflops, thop and fvcore. torch's own counter needs none.

Without them these leave tied layers out. All count the multiply-adds of the reduced weight, which the fold computes: a
half, a quarter or an eighth of those of an ordinary layer. No program is imported here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import modules
from .problem import macs

LAYERS: tuple[type[nn.Module], ...] = (
    modules.SymmetricConv1d,
    modules.SymmetricConv2d,
    modules.SymmetricConv3d,
    modules.SymmetricConvTranspose1d,
    modules.SymmetricConvTranspose2d,
    modules.SymmetricConvTranspose3d,
)


def layer_macs(layer: Any, input: Tensor, output: Tensor) -> int:
    """Multiply-adds of one call of a tied layer: one for each tap of the reduced weight at each position, no bias."""
    ndim = len(layer.kernel_size)
    batch = input.shape[0] if input.dim() == ndim + 2 else 1
    size = (batch, layer.in_channels, *input.shape[-ndim:])
    return macs(size, layer.weight.shape, output.shape[-ndim:], layer.transposed)


def ptflops_hooks() -> dict[Any, Callable[..., Any]]:
    """`custom_modules_hooks` of `ptflops.get_model_complexity_info`, for both of its backends.

    As ptflops does for torch's layers, an addition for each output is counted where there is a bias.
    """
    operator = torch.ops.symconv_fast.fprop
    return dict.fromkeys(LAYERS, _ptflops_layer) | {operator: _ptflops_operator}


def _ptflops_layer(layer: Any, inputs: Sequence[Tensor], output: Tensor) -> None:
    additions = output.numel() if layer.bias is not None else 0
    layer.__flops__ += layer_macs(layer, inputs[0], output) + additions


def _ptflops_operator(inputs: Sequence[Any], outputs: Sequence[Tensor]) -> int:
    input, weight, bias = inputs[:3]
    output = outputs[0]
    transposed = inputs[8]
    additions = output.numel() if bias is not None else 0
    return macs(input.shape, weight.shape, output.shape[2:], transposed) + additions


def thop_ops() -> dict[type[nn.Module], Callable[..., None]]:
    """`custom_ops` of `thop.profile`."""
    return dict.fromkeys(LAYERS, _thop_layer)


def _thop_layer(layer: Any, inputs: Sequence[Tensor], output: Tensor) -> None:
    layer.total_ops += torch.DoubleTensor([layer_macs(layer, inputs[0], output)])


def fvcore_handles() -> dict[str, Callable[..., Counter[str]]]:
    """Operators for `fvcore.nn.FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles())`; counted as "conv"."""
    return {"symconv_fast::fprop": _fvcore_operator}


def _fvcore_operator(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    input, weight, output = (value.type().sizes() for value in (inputs[0], inputs[1], outputs[0]))
    return Counter({"conv": macs(input, weight, output[2:], inputs[8].toIValue())})
