"""torch's initialisers that count fans, over the fans of the expanded filters: for tied layers, and any others.

`torch.nn.init` reads the fans from the shape of the tensor that it is given. That of a tied layer is reduced: with "hv"
it has a quarter of the filters, so that kaiming_normal_(mode="fan_out") makes the weights 2 times and xavier_normal_ up
to 1.6 times too large. The functions here take the layer instead, and draw the reduced weight so that the expanded
filters have the distribution that torch gives an ordinary layer of the same sizes. Any other layer with a `weight` gets
what torch gives it, so that one function serves a whole model.

Not here, since they count no fans: uniform_, normal_, trunc_normal_, constant_, zeros_ and ones_ of torch are right on
`layer.weight`. Not here, since tied filters cannot be it: dirac_ (the mirrored copy of a filter that hands channel i on
hands the same channel on), eye_ and sparse_ (for matrices).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .modules import _Symmetric
from .ties import Ties, orbit_size, parity_parts


def calculate_fans(layer: nn.Module) -> tuple[int, int]:
    """(fan_in, fan_out) of a layer, as torch counts them in the expanded weight: its sizes 1 and 0, times its taps.

    (For a transposed layer torch's fan_in is what the output channels read, and so it is here.)

    Raises:
        TypeError: `layer` is no module with a weight. ValueError: its weight has fewer than two dims.
    """
    weight = _weight(layer)
    if weight.dim() < 2:
        raise ValueError(f"fans need a weight with 2 dims or more, got shape {tuple(weight.shape)}")
    rows, columns = weight.shape[:2]
    if isinstance(layer, _Symmetric):
        rows, columns = (
            (layer.in_channels, layer.out_channels // layer.groups)
            if layer.transposed
            else (layer.out_channels, layer.in_channels // layer.groups)
        )
        return columns * math.prod(layer.kernel_size), rows * math.prod(layer.kernel_size)
    taps = math.prod(weight.shape[2:])
    return columns * taps, rows * taps


def kaiming_uniform_(
    layer: nn.Module,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`torch.nn.init.kaiming_uniform_` over the expanded fans (He et al. 2015): U(-b, b), b = gain sqrt(3 / fan).

    Args:
        layer: a tied layer, or any module with a `weight`; its bias is left alone.
        a, mode, nonlinearity, generator: as torch's.

    Returns:
        `layer.weight`, filled in place.

    Raises:
        TypeError: `layer` is no module with a weight. ValueError: as torch's.
    """
    bound = math.sqrt(3.0) * _kaiming_std(layer, a, mode, nonlinearity)
    return _fill(layer, lambda weight: nn.init.uniform_(weight, -bound, bound, generator=generator))


def kaiming_normal_(
    layer: nn.Module,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`torch.nn.init.kaiming_normal_` over the expanded fans: std = gain / sqrt(fan). See `kaiming_uniform_`."""
    std = _kaiming_std(layer, a, mode, nonlinearity)
    return _fill(layer, lambda weight: nn.init.normal_(weight, 0.0, std, generator=generator))


def xavier_uniform_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """`torch.nn.init.xavier_uniform_` over the expanded fans (Glorot and Bengio 2010). See `kaiming_uniform_`.

    U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)).
    """
    bound = math.sqrt(3.0) * _xavier_std(layer, gain)
    return _fill(layer, lambda weight: nn.init.uniform_(weight, -bound, bound, generator=generator))


def xavier_normal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """`torch.nn.init.xavier_normal_` over the expanded fans: std = gain sqrt(2 / (fan_in + fan_out)).

    See `kaiming_uniform_`.
    """
    std = _xavier_std(layer, gain)
    return _fill(layer, lambda weight: nn.init.normal_(weight, 0.0, std, generator=generator))


def orthogonal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """`torch.nn.init.orthogonal_` of the expanded filters, for a layer with one tie for all of its filters.

    Each parity part of the rows (`ties.parity_parts`) is drawn semi-orthogonal in its own space, which makes the
    mirrored copies of a filter orthogonal to it and to all others. The expanded filters are orthonormal, times `gain`,
    if U is at most what each space has: C/groups times the free taps of that parity (3 x 3 with "hv": 4, 2, 2 and 1).
    Beyond that the parts have orthonormal columns, as torch's have where there are more filters than taps. Filters that
    a tie along a one-tap axis repeats are repeated.

    Args:
        layer: a tied layer, or any module with a `weight`; its bias is left alone.
        gain: a factor. generator: of random numbers.

    Raises:
        TypeError: `layer` is no module with a weight. ValueError: the layer has several ties, or some free filters:
        orthogonal to each other these can be only where no mirrored copy leaves its own space.
    """
    if isinstance(layer, _Symmetric) and layer.ties.sides:
        raise ValueError(
            "orthogonal_ is for layers whose mirrors move no input channels and whose filters are not self-symmetric, "
            f"got symmetry={layer.symmetry}, input_symmetry={layer.input_symmetry}; use kaiming_normal_ or "
            "xavier_normal_"
        )
    if not isinstance(layer, _Symmetric) or not any(mask for mask, _ in layer.ties.segments):
        return _fill(layer, lambda weight: nn.init.orthogonal_(weight, gain, generator=generator))
    if len(layer.ties.segments) > 1:
        raise ValueError(
            f"orthogonal_ needs one tie for all filters, such as symmetry='h', got symmetry={layer.symmetry}; "
            "use kaiming_normal_ or xavier_normal_"
        )
    ties, kernel, dim = layer.ties, layer.kernel_size, 1 if layer.transposed else 0
    return _fill(
        layer, lambda weight: weight.copy_(_orthogonal_rows(ties, weight, kernel, dim, generator).mul_(gain))
    )


def _orthogonal_rows(
    ties: Ties, weight: Tensor, kernel: tuple[int, ...], dim: int, generator: torch.Generator | None
) -> Tensor:
    """A reduced weight of the shape of `weight` whose parity parts are semi-orthogonal, one row for each orbit."""
    mask = ties.distinct(kernel).segments[0].mask
    wide = torch.promote_types(weight.dtype, torch.float32)
    drawn = torch.empty(weight.shape, dtype=wide, device=weight.device).normal_(generator=generator)
    drawn = drawn.movedim(dim, 0)
    total = torch.zeros_like(drawn)
    for part in parity_parts(drawn, mask).values():
        left, sizes, right = torch.linalg.svd(part.flatten(1), full_matrices=False)
        # The nearest semi-orthogonal matrix inside of the space of this parity, which the others do not touch.
        kept = sizes > sizes.max() * 1e-4
        total += ((left * kept) @ right).view_as(part)
    return (total / math.sqrt(orbit_size(mask))).movedim(0, dim)


def _kaiming_std(layer: nn.Module, a: float, mode: str, nonlinearity: str) -> float:
    fans = dict(zip(("fan_in", "fan_out"), calculate_fans(layer)))
    if not isinstance(mode, str) or mode.lower() not in fans:
        raise ValueError(f"mode={mode!r} is not valid; give 'fan_in' or 'fan_out'")
    gain = nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    return gain / math.sqrt(max(1, fans[mode.lower()]))


def _xavier_std(layer: nn.Module, gain: float) -> float:
    return gain * math.sqrt(2.0 / max(1, sum(calculate_fans(layer))))


def _weight(layer: nn.Module) -> Tensor:
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Module) or not isinstance(weight, Tensor):
        raise TypeError(
            f"symconv_fast.init takes the layer (a tied one, nn.Conv2d, nn.Linear, ...), got {type(layer).__name__}; "
            "a weight alone does not say how its rows are tied"
        )
    return weight


def _fill(layer: nn.Module, fill: Callable[[Tensor], Tensor]) -> Tensor:
    weight = _weight(layer)
    with torch.no_grad():
        if weight.numel():
            fill(weight)
    return weight
