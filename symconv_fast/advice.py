"""What a layer says, as SymmetryWarning, of ties that do nothing or not what was meant."""

from __future__ import annotations

import functools
import operator
import sys
import warnings
from types import FrameType
from typing import TYPE_CHECKING

from torch import Tensor
from torch._guards import detect_fake_mode

from .symmetry import Symmetry, SymmetryWarning
from .ties import Ties, mask_name, orbit_size

if TYPE_CHECKING:
    from .modules import _Symmetric

WORTH_A_WARNING = 0.1
"""Of the filters' energy: a conversion that loses more is not the same layer any more."""


def warn_of_ties(layer: _Symmetric, symmetry: Symmetry, ties: Ties) -> None:
    """Warn of what the ties of a new layer leave undone, and of filters that they make identical."""
    for reason in (_untied(layer, symmetry, ties), _identical(layer, ties)):
        if reason:
            _warn(layer, reason)


def warn_of_loss(layer: _Symmetric, filters: Tensor, dim: int, kept_norm: bool) -> None:
    """Warn if these filters, of an ordinary layer, were far from any that the ties of `layer` allow."""
    if filters.is_meta or detect_fake_mode([filters]) is not None:
        return  # there are no values
    lost = layer.ties.lost_energy(filters, dim)
    if lost > WORTH_A_WARNING:
        random = 1 - layer.weight.numel() / max(1, filters.numel())
        ways = "train the tied layer, or tie fewer filters"
        if not kept_norm:
            ways += "; keep_norm=True keeps the size of activations"
        reason = (
            f"from_conv lost {lost:.0%} of the filters' energy, where random filters lose {random:.0%}: the outputs "
            f"are not those of the ordinary layer; {ways}"
        )
        _warn(layer, reason)


def _warn(layer: _Symmetric, reason: str) -> None:
    cls = type(layer).__name__
    sizes = (
        f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, groups={layer.groups}"
    )
    warnings.warn(f"{cls}({sizes}): {reason}", SymmetryWarning, stacklevel=_outside())


def _outside() -> int:
    """The caller's `stacklevel` for the first line outside this package: that which made or converted the layer."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    return level


def _untied(layer: _Symmetric, symmetry: Symmetry, ties: Ties) -> str | None:
    """Ties that were asked for, of which no filter is left."""
    tied = {key for key, filters in ties.keys if filters}
    lost = [mask for mask, _ in symmetry.counts if mask_name(mask) not in tied]
    if not lost or not layer.out_channels:
        return None
    mask, count = next((m, c) for m, c in symmetry.counts if m == lost[0])
    unit = orbit_size(mask) * layer.groups
    names = ", ".join(repr(mask_name(m)) for m in lost)
    advice = (
        f"give it out_channels of {unit} or more"
        if unit > layer.out_channels
        else f"give a larger share or a number of filters, such as {{{mask_name(mask)!r}: {unit}}}"
    )
    return (
        f"symmetry={symmetry} ties no filter by {names}: {count}% of {layer.out_channels} filters is less than the "
        f"{unit} of one orbit in each group; {advice}, or leave the tie out"
    )


def _identical(layer: _Symmetric, ties: Ties) -> str | None:
    """Ties that mirror an axis along which the kernel has one tap."""
    once = ties.one_tap_axes(layer.kernel_size)
    if ties.sides:  # members may differ in their channels, and self-symmetric filters have none
        return None
    masks = [mask for mask, _ in ties.segments if mask & once]
    if not masks:
        return None
    copies = ties.out_channels - ties.distinct(layer.kernel_size).out_channels
    axes = ", ".join(map(repr, mask_name(once & functools.reduce(operator.or_, masks))))
    alike = "differ in nothing" if layer.bias is None or layer.share_bias else "differ in their bias alone"
    return (
        f"the kernel has one tap along {axes}, so that the tie {', '.join(repr(mask_name(m)) for m in masks)} repeats "
        f"{copies} of the {ties.out_channels} filters as they are (they are computed once, and {alike}); use another "
        "tie or symmetry=None for this layer, or a larger kernel"
    )
