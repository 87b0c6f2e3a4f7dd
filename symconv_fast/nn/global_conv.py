"""Layers over positions whose order means nothing: GlobalConv1d, TopKPool1d."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import SUPPORTED_DTYPES, DtypeError, ShapeError, check_bool, check_is_tensor, ints


class GlobalConv1d(nn.Module):
    """Every position sees itself with one matrix and the sum of all others with another: permutation-equivariant.

    With c (`center`) and s (`surround`), matrices (in_channels, out_channels), and b (`bias`):

        y_i = c^T x_i + s^T (sum of x_j over j != i) + b = (c - s)^T x_i + s^T (sum of x_j over all j) + b

    It is the convolution over the whole length with c in the middle of the kernel and s everywhere else
    (`dense_kernel`), in O(L) instead of O(L^2). All linear maps of a set of vectors that commute with permutations are
    of this form (Zaheer et al. 2017, "Deep Sets"). It is the layer published as GlobalConv1D with CNN-Symmetry, whose
    weights `symconv_fast.compat.global_from_tf` loads. It sums and does not average, as there: outputs grow with L
    where the mean of x is not 0; divide `surround` by the length where that is not wanted.

    Args:
        in_channels: C of the input.
        out_channels: channels of the output.
        bias: has it b, (out_channels,)?
        device, dtype: of the parameters.

    Shape:
        (N, in_channels, L) to (N, out_channels, L), or both without N. L may differ from call to call.

    Raises:
        ValueError, TypeError: sizes that are no ints of 1 or more; a dtype that is not floating. In `forward`, an input
        of other dims or channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = _size(in_channels, "in_channels")
        self.out_channels = _size(out_channels, "out_channels")
        check_bool(bias, "bias")
        if dtype is not None and dtype not in SUPPORTED_DTYPES:
            names = ", ".join(str(d)[6:] for d in SUPPORTED_DTYPES)
            raise TypeError(f"dtype={dtype!r} is not supported; supported dtypes: {names}")
        shape = (self.in_channels, self.out_channels)
        self.center = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.surround = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the published layer: both matrices uniform after Glorot and Bengio (2010), the bias 0."""
        nn.init.xavier_uniform_(self.center)
        nn.init.xavier_uniform_(self.surround)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, L) or (in_channels, L) to the same with out_channels."""
        _check_input(input)
        if input.shape[-2] != self.in_channels:
            raise ShapeError(
                f"expected input with {self.in_channels} channels, (N, {self.in_channels}, L) or "
                f"({self.in_channels}, L), got shape {tuple(input.shape)}"
            )
        self._check_dtype(input)
        own = (self.center - self.surround).t()
        others = self._of_all(input).unsqueeze(-1).to(own.dtype)
        if input.dim() == 2:
            return torch.addmm(others, own, input)
        return torch.baddbmm(others, own.expand(input.shape[0], -1, -1), input)  # adds where it multiplies

    def _check_dtype(self, input: Tensor) -> None:
        """Autocast is left to bring floating dtypes together."""
        if input.dtype not in SUPPORTED_DTYPES:
            names = ", ".join(str(d)[6:] for d in SUPPORTED_DTYPES)
            raise DtypeError(f"dtype {str(input.dtype)[6:]} is not supported; supported dtypes: {names}")
        device = input.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if input.dtype != self.center.dtype and not mixed:
            raise RuntimeError(
                f"Input type ({str(input.dtype)[6:]}) and weight type ({str(self.center.dtype)[6:]}) should be the same"
            )

    def _of_all(self, input: Tensor) -> Tensor:
        """s^T (sum of all x_j) + b, (N, out_channels); long sums of 16-bit values are kept in float32."""
        wide = torch.promote_types(self.surround.dtype, torch.float32)
        total = input.sum(-1, dtype=torch.promote_types(input.dtype, torch.float32))
        bias = None if self.bias is None else self.bias.to(wide)
        return F.linear(total, self.surround.t().to(wide), bias)

    def dense_kernel(self, length: int) -> Tensor:
        """The kernel of the same ordinary convolution, (out_channels, in_channels, 2 length - 1), differentiable.

        `layer(x)` is `F.conv1d(x, layer.dense_kernel(L), layer.bias, padding=L - 1)` for x of length L.

        Raises:
            ValueError, TypeError: `length` is no int of 1 or more.
        """
        taps = 2 * _size(length, "length") - 1
        middle = torch.zeros(taps, device=self.center.device, dtype=torch.bool)
        middle[taps // 2] = True
        return torch.where(middle, self.center.t().unsqueeze(-1), self.surround.t().unsqueeze(-1))

    def extra_repr(self) -> str:
        """The sizes, and `bias` where there is none."""
        return f"{self.in_channels}, {self.out_channels}" + (", bias=False" if self.bias is None else "")


class TopKPool1d(nn.Module):
    """The k largest values of each channel along the length, the largest first: invariant to permutations.

    With k = 1 it is max pooling over the whole length. It is the layer published as TopKPool with CNN-Symmetry, but
    with the channels in front of the length, as torch has them. A NaN counts as larger than all numbers, as in
    `torch.topk`. The gradient of an output goes to the one value that it is.

    Args:
        k: how many, 1 or more, and at most the length.

    Shape:
        (N, C, L) to (N, C, k), or both without N.

    Raises:
        ValueError, TypeError: `k` is no int of 1 or more. In `forward`, an input of other dims, or shorter than k.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = _size(k, "k")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to the same with k for L."""
        _check_input(input)
        if input.is_complex() or input.dtype is torch.bool:
            raise DtypeError(
                f"dtype {str(input.dtype)[6:]} has no order to pool by; give real numbers, as float32"
            )
        if input.shape[-1] < self.k:
            raise ShapeError(
                f"k={self.k} is more than the length of the input, {input.shape[-1]}; give k={max(input.shape[-1], 1)} "
                "or less, or longer inputs"
            )
        return torch.topk(input, self.k, dim=-1, sorted=True).values

    def extra_repr(self) -> str:
        """K."""
        return f"k={self.k}"


def _check_input(input: Tensor) -> None:
    check_is_tensor(input, "input")
    if input.dim() not in (2, 3):
        raise ShapeError(f"expected input (N, C, L) or (C, L), got shape {tuple(input.shape)}")


def _size(value: int, name: str) -> int:
    (size, *rest) = ints(value, name) or (0,)
    if rest or size < 1:
        raise ValueError(f"{name}={value!r} must be one int of 1 or more, such as {name}=8")
    return operator.index(size)
