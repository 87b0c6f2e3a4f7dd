"""Layers between equivariant convolutions, for feature maps whose channels a mirror exchanges.

`symmetry` says which channels these are, as `input_symmetry` of a convolution does: a key or counts in the order of an
ungrouped layer, the `ties` of the layer that makes the map, or an involution of channels for each letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..both_sides import InputSymmetryLike, parse_input, resolve_features, show_input
from ..checks import ShapeError, check_is_tensor
from ..sides import Involutions, inverse, select
from ..symmetry import Symmetry
from ..ties import BIT, Segment, Ties, mirrored_dims

Features = Union[Ties, Involutions, None]


def mirror(x: Tensor, letters: str, symmetry: InputSymmetryLike = None, dim: int = 1) -> Tensor:
    """The mirror image of a feature map: positions along the axes of `letters`, channels, and their signs.

    A layer or network `f` is equivariant where `f(mirror(x, letters, symmetry_in))` is
    `mirror(f(x), letters, symmetry_out)`.

    Args:
        x: (N, C, *spatial); any other shape whose last dims are spatial, as far as `letters` say.
        letters: out of h (the last axis), v and z, such as "hv"; "" for none.
        symmetry: what mirrors do to the channels, `None` for nothing. Those of odd filters ("h-") change their sign.
        dim: that of the channels.

    Raises:
        ValueError: letters of more dims than there are after `dim`, or another number of channels than `symmetry` has.
    """
    check_is_tensor(x, "x")
    ndim = x.dim() - 1 - dim % x.dim()
    if not isinstance(letters, str) or any(c not in BIT or letters.count(c) > 1 for c in letters):
        raise ValueError(f"letters={letters!r} must be some of h, v and z, each once, such as 'h'")
    mask = sum(BIT[c] for c in letters)
    if mask >> ndim:
        raise ShapeError(
            f"letters={letters!r} mirror more than the {ndim} dims after dim={dim} of shape {tuple(x.shape)}"
        )
    features = resolve_features(parse_input(symmetry, 3), x.shape[dim])
    x = x.flip(mirrored_dims(mask)) if mask else x
    partners, signs = channel_action(features, mask)
    if partners is not None:
        x = select(x, dim, partners)
    if signs is not None:
        shape = [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
        x = x * torch.tensor(signs, dtype=x.dtype, device=x.device).view(shape)
    return x


def channel_action(features: Features, mask: int) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The partners of channels and their signs when an input is mirrored along the axes of `mask`."""
    if isinstance(features, Ties):
        return features.partners(mask), features.signs(mask)
    result: tuple[int, ...] | None = None
    for bit in BIT.values():
        table = features.partners(bit) if features is not None and mask & bit else None
        if table is not None:
            result = table if result is None else tuple(table[c] for c in result)
    return result, None


def orbit_cat(maps: Sequence[Tensor], symmetry: Any = None, dim: int = 1) -> Tensor:
    """`torch.cat` of feature maps along their channels, in the order of one layer: orbit by orbit.

    `torch.cat` itself puts all members of the first map's orbits before those of the second, which is the order of no
    layer. Here the result has the channels of each tie together, member by member, and in each member those of all maps
    in turn, so that `input_symmetry` and `OrbitBatchNorm` take it by the same key, or by the sums of counts.

        y = conv(orbit_cat([kept, enlarged], "hv"))  # conv has input_symmetry="hv"

    Args:
        maps: tensors that differ in `dim` alone.
        symmetry: what mirrors do to the channels of each map, as `input_symmetry` of a convolution; or a list of that,
            with an entry for each map. `None` is `torch.cat`.
        dim: that of the channels.

    Raises:
        ValueError: no map, a list of another length, a symmetry of other channels, or permutations of channels: these
            are of no order that could be kept.
    """
    if not maps:
        raise ValueError("maps is empty; give at least one feature map")
    for i, each in enumerate(maps):
        check_is_tensor(each, f"maps[{i}]")
    several = symmetry if isinstance(symmetry, (list, tuple)) else [symmetry] * len(maps)
    if len(several) != len(maps):
        raise ValueError(
            f"symmetry has {len(several)} entries for {len(maps)} maps; give one for each, or one for all"
        )
    counts = tuple(each.shape[dim] for each in maps)
    found = tuple(resolve_features(parse_input(one, 3), count) for one, count in zip(several, counts))
    slices = _joined(found, counts)
    return torch.cat([maps[i].narrow(dim, start, length) for i, start, length in slices], dim)


@lru_cache(maxsize=1024)
def _joined(found: tuple[Features, ...], counts: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Slices of maps with these features and channels, in the order of one layer: (map, first channel, channels)."""
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    total: dict[str, int] = {}
    for i, (features, count) in enumerate(zip(found, counts)):
        if isinstance(features, Involutions):
            raise ValueError(
                f"symmetry={features} has permutations of channels, in which no order of orbits can be kept; use "
                "torch.cat, and for the result permutations of all its channels"
            )
        ties = features or Ties(3, 1, (Segment(0, count),))
        for channel, (code, (_, member)) in enumerate(zip(ties.channel_codes, ties.channel_map)):
            places.setdefault((code, member), []).append((i, channel))
        for key, channels in ties.keys:
            total[key] = total.get(key, 0) + channels
    layer = Symmetry(total).resolve(3, sum(counts))
    order = dict.fromkeys(zip(layer.channel_codes, (member for _, member in layer.channel_map)))
    slices: list[tuple[int, int, int]] = []
    for i, channel in (place for pair in order for place in places[pair]):
        if slices and slices[-1][0] == i and slices[-1][1] + slices[-1][2] == channel:
            _, first, length = slices.pop()
            slices.append((i, first, length + 1))
        else:
            slices.append((i, channel, 1))
    return tuple(slices)


@lru_cache(maxsize=1024)
def orbits(features: Features, channels: int) -> tuple[tuple[int, ...], ...]:
    """Channels that mirrors exchange, by the first of each orbit."""
    images = [channel_action(features, mask)[0] for mask in range(8)]
    found = {tuple(sorted({image[c] if image else c for image in images})) for c in range(channels)}
    return tuple(sorted(found))


def rc_symmetry(alphabet: str = "ACGT") -> dict[str, tuple[int, ...]]:
    """`input_symmetry` of one-hot DNA or RNA, channels in the order of `alphabet`: the complement goes with h.

        conv = SymmetricConv1d(4, 64, 21, symmetry="h", input_symmetry=rc_symmetry())

    The complement of A is T, or U, and that of C is G; N and other letters are their own.

    Raises:
        ValueError: a letter twice, or one of a pair without the other.
    """
    pairs = {"A": "TU", "T": "A", "U": "A", "C": "G", "G": "C"}
    upper = alphabet.upper()
    if len(set(upper)) != len(upper):
        raise ValueError(f"alphabet={alphabet!r} must have each letter once, such as 'ACGT'")
    table = []
    for letter in upper:
        partner = next((c for c in pairs.get(letter, letter) if c in upper), None)
        if partner is None:
            raise ValueError(
                f"alphabet={alphabet!r} has {letter!r} without its complement; give one such as 'ACGT'"
            )
        table.append(upper.index(partner))
    return {"h": tuple(table)}


def _orbits_of(symmetry: Any, channels: int, what: str) -> tuple[tuple[int, ...], ...]:
    """`orbits`, of channels that no mirror negates."""
    features = resolve_features(symmetry, channels)
    if isinstance(features, Ties) and features.sides and features.sides.odd:
        raise ShapeError(
            f"{what} cannot take channels that a mirror negates, as those of odd filters are; apply it to "
            "the others alone"
        )
    return orbits(features, channels)


def _classes(found: tuple[tuple[int, ...], ...]) -> Iterator[tuple[list[int], tuple[int, ...]]]:
    """Orbits of one size at a time: their places among all, and their channels, member by member."""
    for size in sorted({len(orbit) for orbit in found}):
        places = [i for i, orbit in enumerate(found) if len(orbit) == size]
        yield places, tuple(found[i][member] for member in range(size) for i in places)


def _is_channels_last(x: Tensor) -> bool:
    """Do the channels of a position lie side by side, and other values not?"""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return layout is not None and not x.is_contiguous() and x.is_contiguous(memory_format=layout)


def _as_channels(x: Tensor, orbits: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """All members of an orbit as one channel, and the way back; neither copies where `x` is dense.

    Members are so many images, or where a position's channels lie side by side so many positions along the last axis.
    """
    count = x.shape[1] // orbits
    if not _is_channels_last(x):
        return x.unflatten(1, (count, orbits)).flatten(0, 1), lambda y: y.unflatten(0, (-1, count)).flatten(
            1, 2
        )
    wide = x.movedim(1, -1).unflatten(-1, (count, orbits)).flatten(-3, -2)

    def together(y: Tensor) -> Tensor:
        return y.movedim(1, -1).unflatten(-2, (-1, count)).flatten(-2).movedim(-1, 1)

    return wide.movedim(-1, 1), together


class _OrbitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the three layers share; `num_features` is the number of orbits."""

    _dims: tuple[int, ...]

    def __init__(
        self,
        channels: int,
        symmetry: InputSymmetryLike,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        given = parse_input(symmetry, 3)
        found = _orbits_of(given, channels, type(self).__name__)
        options = {"device": device, "dtype": dtype}
        super().__init__(len(found), eps, momentum, affine, track_running_stats, **options)
        self.channels, self.symmetry, self._orbits = channels, given, found

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in self._dims or input.shape[1] != self.channels:
            dims = " or ".join(f"{d}-D" for d in self._dims)
            raise ShapeError(
                f"expected {dims} input with {self.channels} channels to {type(self).__name__}, got shape "
                f"{tuple(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *spatial), of the same shape."""
        self._check_input_dim(input)
        factor = self._count_batch()
        own_statistics = self.training or self.running_mean is None
        kept = self.running_mean, self.running_var, self.weight, self.bias
        if self.training and not self.track_running_stats:
            kept = None, None, self.weight, self.bias
        parts: list[Tensor] = []
        order: list[int] = []
        several = len({len(orbit) for orbit in self._orbits}) > 1
        for places, members in _classes(self._orbits):
            apart, together = _as_channels(select(input, 1, members), len(places))
            index = torch.tensor(places, device=input.device) if several else None
            own = [t if t is None or index is None else t.index_select(0, index) for t in kept]
            mean, var, weight, bias = own
            parts.append(
                together(F.batch_norm(apart, mean, var, weight, bias, own_statistics, factor, self.eps))
            )
            order += members
            for whole, part in zip(kept[:2], own[:2]):
                if own_statistics and index is not None and whole is not None and part is not None:
                    whole.index_copy_(0, index, part)
        return select(torch.cat(parts, 1) if several else parts[0], 1, inverse(order))

    def _count_batch(self) -> float:
        """Count a batch, and give its share in the running statistics."""
        if not self.training or self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def extra_repr(self) -> str:
        """The channels and their symmetry, then torch's fields with the number of orbits."""
        return f"{self.channels}, symmetry={show_input(self.symmetry)}, orbits={super().extra_repr()}"


class OrbitBatchNorm1d(_OrbitBatchNorm):
    """`OrbitBatchNorm2d` for (N, C) or (N, C, L)."""

    _dims = (2, 3)


class OrbitBatchNorm2d(_OrbitBatchNorm):
    """`nn.BatchNorm2d` whose statistics, weight and bias are those of orbits: over batch, positions and members.

    Mirror its input and its output comes mirrored, in training too. With one statistic for each channel it would not.

    Args:
        channels: of the input.
        symmetry: what mirrors do to them, as `input_symmetry` of a convolution: "hv", {"h": 8}, `layer.ties`.
        eps, momentum, affine, track_running_stats, device, dtype: as for `nn.BatchNorm2d`.

    `weight`, `bias`, `running_mean` and `running_var` have an entry for each orbit, by its first channel.

    Raises:
        ValueError: `symmetry` is of other channels, or has some that a mirror negates.
    """

    _dims = (4,)


class OrbitBatchNorm3d(_OrbitBatchNorm):
    """`OrbitBatchNorm2d` for (N, C, D, H, W)."""

    _dims = (5,)


class OrbitPool(nn.Module):
    """One channel for each orbit, the mean or the maximum of its members: what mirrors exchange becomes invariant.

    (N, C, *spatial) to (N, orbits, *spatial), by the first channel of each orbit. Mirror the input and the output comes
    mirrored, no channel exchanged.

    Args:
        symmetry: as `input_symmetry` of a convolution.
        mode: "mean" or "max".

    Raises:
        ValueError: no such mode; when called, `symmetry` is of other channels, or has some that a mirror negates.
    """

    def __init__(self, symmetry: InputSymmetryLike, mode: str = "mean") -> None:
        super().__init__()
        if mode not in ("mean", "max"):
            raise ValueError(f"mode={mode!r} is not valid; give 'mean' or 'max'")
        self.symmetry, self.mode = parse_input(symmetry, 3), mode

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *spatial) to (N, orbits, *spatial)."""
        found = _orbits_of(self.symmetry, input.shape[1], "OrbitPool")
        parts: list[Tensor] = []
        order: list[int] = []
        for places, members in _classes(found):
            parts.append(self._pool(select(input, 1, members), len(places)))
            order += places
        return select(torch.cat(parts, 1) if len(parts) > 1 else parts[0], 1, inverse(order))

    def _pool(self, x: Tensor, orbits: int) -> Tensor:
        """Over the members, in the memory format of `x`."""
        if _is_channels_last(x):
            return self._reduce(x.movedim(1, -1).unflatten(-1, (-1, orbits)), -2).movedim(-1, 1)
        return self._reduce(x.unflatten(1, (-1, orbits)), 1)

    def _reduce(self, apart: Tensor, dim: int) -> Tensor:
        return apart.mean(dim) if self.mode == "mean" else apart.amax(dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"symmetry={show_input(self.symmetry)}, mode={self.mode!r}"


class OrbitDropout(nn.Module):
    """Dropout of whole channels, all members of an orbit together, as `nn.Dropout2d` does it of single channels.

    So the network that a training step sees is as equivariant as the whole one.

    Args:
        p: the share of orbits that are set to 0; the others are multiplied by 1 / (1 - p).
        symmetry: as `input_symmetry` of a convolution.

    Raises:
        ValueError: `p` is not from 0 to 1; when called, `symmetry` is of other channels.
    """

    def __init__(self, p: float, symmetry: InputSymmetryLike) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p!r} must be a share from 0 to 1, such as 0.5")
        self.p, self.symmetry = p, parse_input(symmetry, 3)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *spatial), of the same shape."""
        if not self.training or self.p == 0:
            return input
        found = orbits(resolve_features(self.symmetry, input.shape[1]), input.shape[1])
        place = {channel: i for i, orbit in enumerate(found) for channel in orbit}
        kept = F.dropout(input.new_ones(input.shape[0], len(found)), self.p)
        index = torch.tensor([place[c] for c in range(input.shape[1])], device=input.device)
        return input * kept.index_select(1, index).view(*input.shape[:2], *[1] * (input.dim() - 2))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}, symmetry={show_input(self.symmetry)}"
