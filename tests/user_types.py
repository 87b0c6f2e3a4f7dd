"""What a user with a strict type checker writes: `make lint` checks these types, nothing runs this file."""

from __future__ import annotations

from torch import nn
from typing_extensions import assert_type

import symconv_fast
from symconv_fast import SymmetricConv1d, SymmetricConv2d, SymmetricConvTranspose3d, to_torch

symconv_fast.allow_winograd = "f4"
symconv_fast.allow_winograd = False
symconv_fast.allow_winograd = "f3"  # type: ignore[assignment]

layer = SymmetricConv2d(4, 8, 3, symmetry={"h": 2, "v": "50%"})
assert_type(layer.to_conv(), nn.Conv2d)
assert_type(SymmetricConv1d(4, 8, 3).to_conv(), nn.Conv1d)
assert_type(SymmetricConvTranspose3d(4, 8, 3).to_conv(), nn.ConvTranspose3d)
assert_type(SymmetricConv2d.from_conv(nn.Conv2d(4, 8, 3), "h"), SymmetricConv2d)
assert_type(to_torch(nn.Sequential(layer)), nn.Sequential)
assert_type(to_torch(layer), nn.Conv2d)
assert_type(to_torch(SymmetricConvTranspose3d(4, 8, 3), inplace=True), nn.ConvTranspose3d)


def tie(conv: nn.Conv2d) -> nn.Conv2d:
    """A tied layer stands wherever an ordinary one does."""
    return SymmetricConv2d.from_conv(conv, "hv")
