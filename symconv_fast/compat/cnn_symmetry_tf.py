"""Weights of the TensorFlow 1 layers published as CNN-Symmetry, as dicts of arrays, in and out.

Their SymmetricConv2D keeps one kernel for each tie, (height, width, in_channels, rows), and these lists of channels:

- output channels: h rows, mirrored h rows, v rows, mirrored v rows, hv rows, along W, along H, along both, free ones.
  Here all rows come first and then the mirrored ones, so that the channels of a layer that is loaded stand in another
  order: `tf_channel_order` has it. With `h` the mirrored axis is W, with `v` it is H, in both.
- shared biases (share_bias=True, which was the default there): theirs are put together in the order v, h, hv, free, and
  added to the kernels' order h, v, hv, free. Where a layer has as many h filters as v filters, each orbit of h has a
  bias by the name of v and the other way round. Where it has other numbers of both, members of an orbit have different
  biases. `from_tf` loads what these layers computed.

Their SymmetricConv2DTranspose ran with equally many input and output channels alone, since its kernel had these two
axes in the wrong places, and it tied the input channels. Nothing here is like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import describe
from ..checks import check_bool
from ..functional import IntOrInts
from ..modules import SymmetricConv2d
from ..ties import Segment, Ties, mask_name, orbit_size
from .cnn_symmetry import CheckpointError
from .tf_arrays import Order, as_array, check_names, check_shape, listed, permutation, read
from .tf_layers import check_layer, pair, tf_channel_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KERNELS = {1: "kernel_sym_h", 2: "kernel_sym_v", 3: "kernel_sym_hv", 0: "kernel_nonsym"}
"""By the mask of the tie, in the order of the kernels."""
_BIASES = {2: "bias_v", 1: "bias_h", 3: "bias_hv", 0: "bias_nonsym"}
"""In the order in which shared biases were put together."""


def from_tf(
    arrays: Mapping[str, Any],
    *,
    stride: IntOrInts = 1,
    padding: str = "valid",
    dilation: IntOrInts = 1,
    scope: str | None = None,
    input_order: Order = None,
) -> tuple[SymmetricConv2d, Tensor]:
    """The tied layer that computes what a published TensorFlow layer did, and the order of its output channels.

    Channel i of the result is channel `order[i]` of theirs. To convert a network at no cost, pass the order on: to the
    next tied layer as `input_order`, and to everything else that has a value for each channel as an index:
    `gamma[order]` of a batch norm, `kernel[:, :, order]` of an ordinary kernel (height, width, in, out). The
    `weight` of a dense layer behind a flattened (H, W, C) image is
    `kernel.reshape(H, W, C, units)[:, :, order].transpose(3, 2, 0, 1).reshape(units, -1)`. Where that is in the way,
    `TFOrdered(layer)` puts the channels into their order. Their `activation` is not in the arrays: put it behind the
    layer.

    Biases are shared here, `share_bias=True`, where theirs were and came to one bias for each orbit. Where theirs were
    shared by other channels (see the head of this file) they are whole here: the outputs are the same, but training
    does not keep them equal.

    Args:
        arrays: name -> array: `kernel_sym_h`, `kernel_sym_v`, `kernel_sym_hv`, `kernel_nonsym`, each of shape (height,
            width, in_channels, rows), those that the layer had; `bias` (filters,) or `bias_v`, `bias_h`, `bias_hv`,
            `bias_nonsym`, each (rows,), or none. What stands before the last "/" of a name, and ":0" behind it, is cut
            off, so that {v.name: v for v in layer.weights} will do, with the arrays for v.
        stride, dilation: as the layer had them, an int or (along H, along W).
        padding: "valid" or "same", in either case. "same" with a stride above 1 depends on the size of the input and
            adds more at the end than at the start: give "valid" then, and put `TFSamePad2d` in front of the layer.
        scope: take only names that begin with this, such as "symmetric_conv2d_1": for dicts of whole networks.
        input_order: `order` of the layer in front, a permutation of the input channels; None if they are as there.

    Returns:
        (layer, order): a SymmetricConv2d in the dtype of the arrays on the CPU, and (out_channels,), int64.

    Raises:
        CheckpointError: names that are missing, unknown or there twice; shapes that do not fit each other; values that
            are not finite. TypeError: no dict of arrays, or not all of one floating dtype. ValueError: other arguments.
    """
    named = read(arrays, scope, "from_tf(arrays)")
    strides, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    kernels = _kernels(named)
    first = next(iter(kernels.values()))
    kernel_size, in_channels = first.shape[:2], first.shape[2]
    pads = _padding(padding, kernel_size, strides, dilations)
    segments = [Segment(mask, kernels[mask].shape[3]) for mask in (1, 2, 3, 0) if mask in kernels]
    ties = Ties(2, 1, tuple(segments))
    order = tf_channel_order(ties)
    bias, shared = _whole_bias(named, ties)
    inputs = permutation(input_order, in_channels)

    # (H, W, C, rows) to (rows, C, H, W), segment by segment.
    weight = np.concatenate([kernels[mask][:, :, inputs].transpose(3, 2, 0, 1) for mask, _ in segments])
    layer = SymmetricConv2d(
        in_channels,
        ties.out_channels,
        kernel_size,
        strides,
        pads,
        dilations,
        bias=bias is not None,
        symmetry={mask_name(mask): rows * orbit_size(mask) for mask, rows in segments if mask},
        share_bias=shared,
        dtype=torch.from_numpy(weight[:0]).dtype,
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if bias is not None and layer.bias is not None:
            mine = torch.from_numpy(bias)[order]
            layer.bias.copy_(mine[: ties.unique] if shared else mine)
    return layer, order


def to_tf(
    layer: SymmetricConv2d, *, share_bias: bool | None = None, input_order: Order = None
) -> dict[str, NDArray[Any]]:
    """The arrays of the published TensorFlow layer that computes what a tied layer does, in their order of channels.

    The inverse of `from_tf`. The values in this order are what `set_weights` of their layer takes:
    `theirs.set_weights(list(to_tf(layer).values()))`.

    Args:
        layer: a SymmetricConv2d without groups, on any device. Its stride, padding and dilation are not in the arrays.
        share_bias: write `bias_v`, `bias_h`, `bias_hv` and `bias_nonsym`, for a layer made there with share_bias=True,
            instead of one `bias`. None: if this layer shares its biases in a way that theirs can.
        input_order: the order that `from_tf` was given for this layer's input channels, which is undone.

    Raises:
        CheckpointError: `share_bias=True`, and the biases are not equal where theirs are shared; values that are not
            finite. TypeError: no SymmetricConv2d, or a dtype that numpy has not (bfloat16). ValueError: it has groups,
            or `input_order` is no permutation.
    """
    check_layer(layer, "to_tf")
    if share_bias is not None:
        check_bool(share_bias, "share_bias")
    ties = layer.ties
    inputs = permutation(input_order, layer.in_channels).argsort()
    weight = as_array(layer.weight, "weight")[:, inputs].transpose(2, 3, 1, 0)
    arrays, row = {}, 0
    for mask, rows in ties.segments:
        if rows:
            arrays[_KERNELS[mask]] = np.ascontiguousarray(weight[..., row : row + rows])
        row += rows
    bias = layer.expanded_bias()
    if bias is None:
        if share_bias:
            raise ValueError("share_bias=True needs a layer with a bias, got one with bias=False")
        return arrays
    theirs = as_array(bias, "bias")[tf_channel_order(ties).argsort().numpy()]
    if share_bias is None:
        share_bias = layer.share_bias and _shares_orbits(ties)
    return arrays | (_shared_biases(theirs, ties) if share_bias else {"bias": theirs})


def _kernels(named: Mapping[str, NDArray[Any]]) -> dict[int, NDArray[Any]]:
    """The kernels by mask, of shapes that fit each other."""
    check_names(named, {*_KERNELS.values(), *_BIASES.values(), "bias"}, "a SymmetricConv2D")
    kernels = {mask: named[name] for mask, name in _KERNELS.items() if name in named}
    if not kernels:
        raise CheckpointError(
            f"arrays have none of the kernels {', '.join(_KERNELS.values())}; names: {listed(named)}"
        )
    leading: tuple[str, tuple[int, ...]] | None = None
    for mask, kernel in kernels.items():
        name = _KERNELS[mask]
        if kernel.ndim != 4 or 0 in kernel.shape:
            raise CheckpointError(
                f"{name} has shape {kernel.shape}, want 4 dims (height, width, in_channels, rows), none of them 0"
            )
        leading = leading or (name, kernel.shape[:3])
        if kernel.shape[:3] != leading[1]:
            raise CheckpointError(
                f"{name} has shape {kernel.shape}, want {(*leading[1], kernel.shape[3])}, since {leading[0]} is of a "
                f"layer with kernel size {leading[1][:2]} and {leading[1][2]} input channels"
            )
    return kernels


def _whole_bias(named: Mapping[str, NDArray[Any]], ties: Ties) -> tuple[NDArray[Any] | None, bool]:
    """The bias of each channel of theirs, (filters,) or None; and whether it is one for each orbit by construction."""
    found = [name for name in _BIASES.values() if name in named]
    if "bias" in named:
        if found:
            raise CheckpointError(f"arrays have both 'bias' and shared ones: {listed(found)}; give either")
        filters = (ties.out_channels,)
        if named["bias"].shape != filters:
            raise CheckpointError(
                f"bias has shape {named['bias'].shape}, want {filters}: the kernels are of a layer of {filters[0]} "
                f"filters with symmetry={describe(ties)}"
            )
        return named["bias"], False
    if not found:
        return None, False
    rows = dict(ties.segments)
    wanted = {name: (rows[mask],) for mask, name in _BIASES.items() if mask in rows}
    missing, extra = [n for n in wanted if n not in named], [n for n in found if n not in wanted]
    if missing or extra:
        raise CheckpointError(
            f"shared biases must be those of the kernels, {listed(wanted)}; "
            + (f"missing: {listed(missing)}" if missing else f"without a kernel: {listed(extra)}")
        )
    for name, shape in wanted.items():
        check_shape(named, name, shape)
    whole = [np.tile(named[_BIASES[mask]], orbit_size(mask)) for mask in _BIASES if mask in rows]
    return np.concatenate(whole), _shares_orbits(ties)


def _shares_orbits(ties: Ties) -> bool:
    """Do shared biases, whose order is not that of the kernels, come to one for each orbit?"""
    rows = {mask: rows for mask, rows in ties.segments if rows}
    return 1 not in rows or 2 not in rows or rows[1] == rows[2]


def _shared_biases(theirs: NDArray[Any], ties: Ties) -> dict[str, NDArray[Any]]:
    """The biases that make up `theirs`, the bias of each of their channels.

    Raises:
        CheckpointError: none do.
    """
    rows = {mask: rows for mask, rows in ties.segments if rows}
    shared, start = {}, 0
    for mask, name in _BIASES.items():
        if mask in rows:
            copies = theirs[start : start + rows[mask] * orbit_size(mask)].reshape(
                orbit_size(mask), rows[mask]
            )
            if not (copies == copies[0]).all():
                raise CheckpointError(
                    f"the biases differ where {name} of the published layer is shared; give share_bias=False"
                )
            shared[name] = copies[0].copy()
            start += copies.size
    return shared


def _padding(
    padding: str, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]
) -> str | int | tuple[int, int]:
    mode = padding.lower() if isinstance(padding, str) else padding
    if mode not in ("valid", "same"):
        raise ValueError(f"padding={padding!r} is not one of the published layer's; give 'valid' or 'same'")
    if mode == "valid":
        return 0
    if max(stride) == 1:
        return "same"
    totals = [d * (k - 1) for k, d in zip(kernel, dilation)]  # right for an axis of stride 1, or of one tap
    if any((s > 1 and total) or total % 2 for s, total in zip(stride, totals)):
        raise ValueError(
            f"padding={padding!r} with stride={stride} depends on the size of the input, and adds more at its end: "
            f"give padding='valid', and put symconv_fast.compat.TFSamePad2d(kernel_size={tuple(kernel)}, "
            f"stride={stride}, dilation={dilation}) in front of the layer"
        )
    return totals[0] // 2, totals[1] // 2
