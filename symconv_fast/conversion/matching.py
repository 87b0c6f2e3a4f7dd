"""The order of a layer's filters in which tying them loses the least energy: `match_filters`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checks import SUPPORTED_DTYPES, DtypeError, ShapeError, check_is_tensor, ints
from ..ties import Segment, Ties, mirror

_KICKS, _EFFORT = 64, 1024
"""Random disturbances of what was found: 64 for up to 16 filters, 8 for 128, 2 for 512 (groups count together)."""

_DRAWN = 256
"""Filters of a random layer: of more, as many of its groups are drawn, since all are alike."""


@dataclass(frozen=True, eq=False)
class Distances:
    """What matching needs to know of one layer, or of several that must share one order of their channels.

    Both are fractions of the layer's total energy (squared norm), so that layers count alike whatever their size:
    `a + b` is for two layers whose output channel i must stay the same channel, and `sum([a, b, c])` for more.

    `|f_i - J_g f_j|^2 = energies[i] + energies[j] - 2 products[g - 1][i, j]`.
    """

    products: Tensor
    """(2^ndim - 1, groups, N, N) float64: [g - 1, group, i, j] is <f_i, J_g f_j>, N filters in each group."""
    energies: Tensor
    """(groups, N) float64: the squared norm of each filter."""

    @property
    def out_channels(self) -> int:
        """Filters of the layer, over all groups."""
        return self.energies.numel()

    def __add__(self, other: object) -> Distances:
        if not isinstance(other, Distances):
            return NotImplemented
        if self.products.shape != other.products.shape:
            raise ShapeError(
                f"layers that share an order need the same dims, groups and filters, got {self} and {other}"
            )
        return Distances(self.products + other.products, self.energies + other.energies)

    def __radd__(self, other: object) -> Distances:
        return self if type(other) is int and other == 0 else NotImplemented  # where `sum` starts

    def __repr__(self) -> str:
        masks, groups, each, _ = self.products.shape
        ndim = (masks + 1).bit_length() - 1
        return f"Distances(ndim={ndim}, groups={groups}, filters={groups * each})"


def mirror_distances(filters: Tensor, ndim: int, dim: int = 0, groups: int = 1) -> Distances:
    """The inner products of filters with one another's mirror images, computed in float64.

    Args:
        filters: (out_channels, C/groups, *K); with dim=1, of a transposed layer, (C_in, out_channels/groups, *K).
            Any supported dtype.
        ndim: spatial dims, 1 to 3.
        dim: the one along which the filters lie.
        groups: of the layer.

    Raises:
        TypeError: `filters` is no tensor of a supported dtype. ValueError: its shape does not fit; it is on the meta
            device, or holds NaN or infinity.
    """
    _check(filters, ndim, dim, groups)
    wide = filters.detach().to(torch.float64)
    largest = wide.abs().amax() if wide.numel() else wide.new_zeros(())
    if not bool(largest.isfinite()):
        raise ValueError("filters hold NaN or infinity; give the finite weights of a trained layer")
    if largest > 0:
        # Squares of what float64 holds must not overflow; by a power of two nothing is rounded.
        wide = torch.ldexp(wide, -torch.frexp(largest).exponent)
    if dim == 1:
        grouped = wide.unflatten(0, (groups, wide.shape[0] // groups)).transpose(1, 2)
    else:
        grouped = wide.unflatten(0, (groups, wide.shape[0] // groups))
    flat = grouped.flatten(2)
    energies = flat.square().sum(2)
    whole = energies.sum()
    whole = whole if whole > 0 else torch.ones_like(whole)
    products = []
    for mask in range(1, 1 << ndim):
        product = flat @ mirror(grouped, mask).flatten(2).transpose(1, 2)
        products.append((product + product.transpose(1, 2)) / 2)  # exactly symmetric
    return Distances((torch.stack(products) / whole).cpu(), (energies / whole).cpu())


def match_filters(distances: Distances, ties: Ties) -> Tensor:
    """The order of the filters in which a tied layer can keep the most of their energy.

    `ties.lost_energy(reorder_filters(filters, order))` is then least. One tie of one letter is matched exactly, by
    Edmonds' maximum-weight matching; other ties by a heuristic that starts from such matchings (docs/conversion.md).
    No order is returned that is worse than the given one, which is kept where none is better. Orbits are led by their
    lowest filter and stand in the order of their leaders, the free filters in that in which they came.

    Args:
        distances: of `mirror_distances`, or a sum of them for layers that share the order.
        ties: of the tied layer.

    Returns:
        (out_channels,) int64: output channel i of the tied layer is filter order[i] of the ordinary one. A filter
        stays in its group.

    Raises:
        ValueError: `distances` are of other dims, groups or numbers of filters than `ties`.
        ModuleNotFoundError: rustworkx or scipy is missing.
    """
    if not isinstance(distances, Distances):
        raise TypeError(
            f"distances must be of mirror_distances(filters, ndim), got {type(distances).__name__}"
        )
    _check_ties(ties)
    groups, each = distances.energies.shape
    masks = (1 << ties.ndim) - 1
    if (groups, groups * each, len(distances.products)) != (ties.groups, ties.out_channels, masks):
        raise ShapeError(
            f"distances are of another layer than ties: {distances}, and ties of ndim={ties.ndim}, "
            f"groups={ties.groups}, {ties.out_channels} filters"
        )
    if all(mask == 0 or rows == 0 for mask, rows in ties.segments):
        return torch.arange(ties.out_channels)
    from .orbits import Bank, arrange

    products, energies = distances.products.numpy(), distances.energies.numpy()
    kicks = min(_KICKS, _EFFORT // max(ties.out_channels, 1))
    order = []
    for group in range(groups):
        found = arrange(Bank(products[:, group], energies[group], ties), kicks)
        order.append(torch.from_numpy(found) + group * each)
    return torch.cat(order)


def reorder_filters(filters: Tensor, order: Tensor, dim: int = 0, groups: int = 1) -> Tensor:
    """The filters in the order of `match_filters`; along dim 1 of a transposed layer, within each group.

    Args:
        filters: as for `mirror_distances`.
        order: (out_channels,) int64, of `match_filters`.
        dim: the one along which the filters lie.
        groups: of the layer.

    Raises:
        ValueError: `order` is of another number of filters.
    """
    count = filters.shape[0] if dim == 0 else filters.shape[1] * groups
    if tuple(order.shape) != (count,):
        raise ShapeError(
            f"order must be ({count},), an index for each filter, got shape {tuple(order.shape)}"
        )
    order = order.to(filters.device)
    if dim == 0:
        return filters.index_select(0, order)
    each = filters.shape[1]
    parts = filters.unflatten(0, (groups, filters.shape[0] // groups))
    local = order.view(groups, each) - torch.arange(groups, device=order.device)[:, None] * each
    return torch.stack([part.index_select(1, o) for part, o in zip(parts, local)]).flatten(0, 1)


@dataclass(frozen=True)
class RandomLoss:
    """The part of the energy, 0 to 1, that tying random filters loses once they are matched."""

    mean: float
    spread: float
    """The standard deviation between layers; nan of one draw."""
    draws: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f} ({self.draws} draws)"


def random_loss(
    shape: Sequence[int], ties: Ties, *, dim: int = 0, seed: int = 0, draws: int | None = None
) -> RandomLoss:
    """What matching alone buys: the lost energy of Gaussian filters of this size, matched as `match_filters` does it.

    Without matching they lose 1 - U/out_channels. A layer whose filters lose less than this has symmetries of its own.
    Remembered for each shape and ties. Of a layer of many groups as many are drawn as have 256 filters together.

    Args:
        shape: of the filters, as for `mirror_distances`.
        ties: of the tied layer.
        dim: the one along which the filters lie.
        seed: of a generator of its own.
        draws: how many layers are drawn; by default 5 up to 128 filters, 3 up to 256 and 2 above.

    Raises:
        ValueError: `shape` does not fit `ties`, or `draws` is below 1.
    """
    _check_ties(ties)
    sizes = ints(shape, "shape")
    expected = (ties.out_channels, ties.out_channels // ties.groups)[dim] if dim in (0, 1) else None
    if len(sizes) != ties.ndim + 2 or sizes[dim] != expected or min(sizes) < 0 or sizes[0] % ties.groups:
        raise ShapeError(
            f"shape={sizes} with dim={dim!r} is not of filters for ties of ndim={ties.ndim}, groups={ties.groups}, "
            f"{ties.out_channels} filters, such as {(ties.out_channels, 16, *[3] * ties.ndim)} with dim=0"
        )
    if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int) or draws < 1):
        raise ValueError(f"draws={draws!r} must be an int of at least 1, such as 5")
    return _random_loss(sizes, ties, dim, seed, draws)


def _check_ties(ties: Any) -> None:
    if not isinstance(ties, Ties):
        raise TypeError(f"ties must be the Ties of a tied layer, such as layer.ties, got {ties!r}")
    if ties.sides:
        raise ValueError(
            f"ties have orbits of filters alone to be matched, but {ties.sides.why_not}; give those of a layer without "
            "input_symmetry and self-symmetric filters"
        )


@lru_cache(maxsize=1024)
def _random_loss(shape: tuple[int, ...], ties: Ties, dim: int, seed: int, draws: int | None) -> RandomLoss:
    groups = min(ties.groups, max(1, _DRAWN * ties.groups // max(ties.out_channels, 1)))
    drawn = Ties(
        ties.ndim, groups, tuple(Segment(mask, rows // ties.groups * groups) for mask, rows in ties.segments)
    )
    sizes = (shape[0] // ties.groups * groups, *shape[1:])
    generator = torch.Generator().manual_seed(seed)
    if draws is None:
        draws = 5 if drawn.out_channels <= 128 else 3 if drawn.out_channels <= 256 else 2
    losses = []
    for _ in range(draws):
        filters = torch.randn(sizes, generator=generator, dtype=torch.float64)
        order = match_filters(mirror_distances(filters, ties.ndim, dim, groups), drawn)
        losses.append(drawn.lost_energy(reorder_filters(filters, order, dim, groups), dim))
    spread = statistics.stdev(losses) * math.sqrt(groups / ties.groups) if draws > 1 else math.nan
    return RandomLoss(statistics.fmean(losses), spread, draws)


def _check(filters: Any, ndim: int, dim: int, groups: int) -> None:
    check_is_tensor(filters, "filters")
    if filters.dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(dtype)[6:] for dtype in SUPPORTED_DTYPES)
        raise DtypeError(f"filters of dtype {str(filters.dtype)[6:]} cannot be matched; supported: {names}")
    if ndim not in (1, 2, 3):
        raise ValueError(f"ndim={ndim!r} is not supported; a layer has 1, 2 or 3 spatial dims")
    if dim not in (0, 1):
        raise ValueError(f"dim={dim!r} must be 0, or 1 for the weight of a transposed layer")
    if filters.dim() != ndim + 2:
        raise ShapeError(
            f"filters must have {ndim + 2} dims for ndim={ndim}, such as (out_channels, C, *K), "
            f"got shape {tuple(filters.shape)}"
        )
    if not isinstance(groups, int) or groups < 1 or filters.shape[0] % groups:
        raise ShapeError(
            f"groups={groups!r} must divide dim 0 of filters, whose shape is {tuple(filters.shape)}"
        )
    if filters.is_meta:
        raise ValueError("filters are on the meta device and have no values; load the weights first")
