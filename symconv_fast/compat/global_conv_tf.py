"""Weights of the TensorFlow 1 layer published as GlobalConv1D with CNN-Symmetry, as dicts of arrays, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..nn.global_conv import GlobalConv1d
from .cnn_symmetry import CheckpointError
from .tf_arrays import Order, as_array, check_names, check_shape, permutation, read

if TYPE_CHECKING:
    from numpy.typing import NDArray


def global_from_tf(
    arrays: Mapping[str, Any], *, scope: str | None = None, input_order: Order = None
) -> GlobalConv1d:
    """The layer of a published TensorFlow GlobalConv1D.

    Its arrays are `kernel` (c) and `surround` (s), (1, in_channels, out_channels), and `bias` (1, 1, out_channels) or
    none. The layer there takes (N, L, C), and (N, L) for one channel; here it is (N, C, L). `scope` and `input_order`
    are as for `from_tf`; the output channels have the same order.

    Raises:
        CheckpointError: names missing or unknown, shapes that do not fit, values that are not finite. TypeError: no
            dict of arrays, or not all of one floating dtype.
    """
    named = read(arrays, scope, "global_from_tf(arrays)")
    check_names(named, {"kernel", "surround", "bias"}, "a GlobalConv1D")
    for name in ("kernel", "surround"):
        if name not in named:
            raise CheckpointError(
                f"arrays lack {name!r}; a GlobalConv1D has 'kernel', 'surround' and mostly 'bias'"
            )
    shape = named["kernel"].shape
    if len(shape) != 3 or shape[0] != 1 or 0 in shape:
        raise CheckpointError(f"kernel has shape {shape}, want (1, in_channels, out_channels)")
    check_shape(named, "surround", shape)
    if "bias" in named:
        check_shape(named, "bias", (1, 1, shape[2]))
    inputs = permutation(input_order, shape[1])
    dtype = torch.from_numpy(named["kernel"][:0]).dtype
    layer = GlobalConv1d(shape[1], shape[2], bias="bias" in named, dtype=dtype)
    with torch.no_grad():
        layer.center.copy_(torch.from_numpy(named["kernel"][0][inputs]))
        layer.surround.copy_(torch.from_numpy(named["surround"][0][inputs]))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(named["bias"][0, 0]))
    return layer


def global_to_tf(layer: GlobalConv1d, *, input_order: Order = None) -> dict[str, NDArray[Any]]:
    """The arrays of the published TensorFlow GlobalConv1D, the inverse of `global_from_tf`, for its `set_weights`.

    Raises:
        TypeError: no GlobalConv1d, or a dtype that numpy has not (bfloat16). CheckpointError: values are not finite.
    """
    if not isinstance(layer, GlobalConv1d):
        raise TypeError(f"global_to_tf needs a GlobalConv1d, got {type(layer).__name__}")
    inputs = permutation(input_order, layer.in_channels).argsort()
    arrays = {
        "kernel": np.ascontiguousarray(as_array(layer.center, "center")[inputs][None]),
        "surround": np.ascontiguousarray(as_array(layer.surround, "surround")[inputs][None]),
    }
    if layer.bias is not None:
        arrays["bias"] = as_array(layer.bias, "bias")[None, None]
    return arrays
