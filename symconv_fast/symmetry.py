"""Ties between the filters of a layer: parse, resolve, expand, reduce, project. Knows no kernels.

Three things are kept apart:

- `Symmetry` is what the user wrote ({"h": 2, "hv": "50%"}). It knows no layer and can be given to many.
- `Ties` is a `Symmetry` resolved for one layer: how many rows of the reduced weight carry which tie.
- the reduced weight itself, a plain tensor, which the methods of `Ties` expand and reduce.

A mask is a set of mirrored axes: bit 0 is `h` (the last dim, W), bit 1 is `v` (H), bit 2 is `z` (D).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, Union

import torch
from torch import Tensor

# Canonical order of the segments, and which of them a layer of 1, 2 or 3 dims can have.
KEYS: dict[int, tuple[str, ...]] = {
    1: ("h",),
    2: ("h", "v", "hv"),
    3: ("h", "v", "z", "hv", "hz", "vz", "hvz"),
}
_BIT = {"h": 1, "v": 2, "z": 4}
_MASKS: dict[str, int] = {key: sum(_BIT[c] for c in key) for key in KEYS[3]}
_ORDER: tuple[int, ...] = tuple(_MASKS.values())

# The mirrored copies of a tie, in the published order of the output channels.
COPIES: dict[int, tuple[int, ...]] = {
    0: (),
    1: (1,),
    2: (2,),
    4: (4,),
    3: (1, 2, 3),
    5: (1, 4, 5),
    6: (2, 4, 6),
    7: (1, 2, 4, 6, 5, 3, 7),
}

_PERCENT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")

SymmetryLike = Union[str, Mapping[str, Union[int, str]], "Symmetry", None]


def orbit_size(mask: int) -> int:
    """Number of filters that one row of tie `mask` stands for: 1, 2, 4 or 8."""
    return 1 << mask.bit_count()


def mask_name(mask: int) -> str:
    """The key of a mask: 3 -> "hv", 0 -> "free"."""
    return "".join(c for c, bit in _BIT.items() if mask & bit) or "free"


def mirror(filters: Tensor, mask: int) -> Tensor:
    """`filters` (..., *K) with tap k replaced by K-1-k on the axes in `mask` (J_g of the algebra)."""
    dims = [-1 - bit for bit in range(3) if mask >> bit & 1]
    return filters.flip(dims) if dims else filters


def parity_sign(parity: int, member: int) -> int:
    """Character of the reflection group: (-1)^|parity and member|."""
    return -1 if (parity & member).bit_count() & 1 else 1


def parity_parts(rows: Tensor, mask: int) -> dict[int, Tensor]:
    """Split rows (..., *K) of one tie into their parity parts.

    Part p is `2^-|A| sum_g sign(p, g) J_g w` over the members g of the tie: even along the tied axes that
    are not in p, odd along those that are. `J_g w = sum_p sign(p, g) part[p]`.
    Returns one tensor of the shape of `rows` per subset of `mask`, keyed by the subset.
    """
    members = (0, *COPIES[mask])
    mirrored = {g: mirror(rows, g) for g in members}
    parts = {}
    for parity in members:
        total = mirrored[0]
        for g in members[1:]:
            total = torch.add(total, mirrored[g], alpha=parity_sign(parity, g))
        parts[parity] = total / len(members)
    return parts


class Segment(NamedTuple):
    """All orbits of a layer that share a tie: the tie and the number of rows of the reduced weight."""

    mask: int
    rows: int


class _Block(NamedTuple):
    """A run of output channels inside a group: `rows` rows from `start`, mirrored along `member`."""

    segment: int
    start: int
    rows: int
    member: int


class Symmetry:
    """What was asked for, apart from any layer: immutable, hashable, picklable, prints as it was given.

    Args:
        spec: a dict {key: count} with counts of output channels (int, or "50%" of them), a key such as "hv"
            (as many filters as fit), another Symmetry, or None (an ordinary convolution).
        ndim: spatial dims of the layer that it is meant for; limits the keys. None allows all.

    Raises:
        ValueError: unknown key, repeated letter or key, negative count, bad or too large percentage.
        TypeError: `spec` or a count is of another type (bool and float included).
    """

    __slots__ = ("_hash", "_spec", "counts")

    counts: tuple[tuple[int, int | str], ...]
    """(mask, count) in canonical order; a percentage is kept as its text without the sign."""

    def __init__(self, spec: SymmetryLike = None, *, ndim: int | None = None) -> None:
        given: object = spec
        items: dict[str, int | str] = {}
        counts: dict[int, int | str] = {}
        if isinstance(spec, Symmetry):
            given, counts = spec._spec, dict(spec.counts)
            for mask in counts:
                _check_dims(mask, ndim)
        elif spec is None or isinstance(spec, str):
            items = {} if spec is None else {spec: "100%"}
        elif isinstance(spec, Mapping):
            given = items = dict(spec)
        else:
            raise TypeError(
                f"symmetry must be a dict, a string, a Symmetry or None, got {spec!r}; for example {{'h': 2}} or 'h'"
            )
        for key, value in items.items():
            mask = _parse_key(key, ndim)
            if mask in counts:
                raise ValueError(f"symmetry={spec!r} names the tie {mask_name(mask)!r} twice; give one count a tie")
            counts[mask] = _parse_count(key, value)
        canonical = tuple((m, counts[m]) for m in _ORDER if m in counts and counts[m] != 0)
        object.__setattr__(self, "_spec", given)
        object.__setattr__(self, "counts", canonical)
        object.__setattr__(self, "_hash", hash(canonical))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Symmetry is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Symmetry is immutable: cannot delete {name}")

    def __eq__(self, other: object) -> bool:
        return self.counts == other.counts if isinstance(other, Symmetry) else NotImplemented

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Symmetry], tuple[SymmetryLike]]:
        return Symmetry, (self._spec,)

    def __str__(self) -> str:
        return repr(self._spec)

    def __repr__(self) -> str:
        return f"Symmetry({self._spec!r})"

    def resolve(self, ndim: int, out_channels: int, groups: int = 1) -> Ties:
        """The ties of a layer with `ndim` spatial dims, `out_channels` filters and `groups` groups.

        Raises:
            ValueError: a key of more dimensions than the layer, a count that is not divisible by the orbit
                size times groups, or counts that add up to more than `out_channels`.
        """
        return _resolve(self.counts, ndim, out_channels, groups)

    def resolve_rows(self, ndim: int, rows: int, groups: int = 1) -> Ties:
        """The ties of a layer whose reduced weight has `rows` rows, when its out_channels are not known.

        Counts determine out_channels; percentages need not (3 rows of "h" are 5 or 6 filters), and then the
        largest out_channels that fits is meant. Pass the `Ties` of a layer where that matters.

        Raises:
            ValueError: no out_channels gives this number of rows, or as for `resolve`.
        """
        return resolve_rows(self.counts, ndim, rows, groups)


@dataclass(frozen=True, slots=True)
class Ties:
    """The ties of one layer: `segments` of (mask, rows over all groups) in canonical order, free rows last.

    Output channels of a group: all its rows as they are, then segment by segment the mirrored copies, member by
    member. Groups are outermost in the rows and in the channels. Immutable, hashable, picklable.
    """

    ndim: int
    groups: int
    segments: tuple[Segment, ...]
    unique: int = field(init=False, compare=False)
    """U, the rows of the reduced weight."""
    out_channels: int = field(init=False, compare=False)
    flat: tuple[int, ...] = field(init=False, compare=False)
    """[mask, rows, mask, rows, ...], the form in which the operators take ties."""
    _blocks: tuple[_Block, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        blocks, start = [], 0
        for i, (_, rows) in enumerate(self.segments):
            blocks.append(_Block(i, start, rows // self.groups, 0))
            start += rows // self.groups
        for i, (mask, _) in enumerate(self.segments):
            blocks += [blocks[i]._replace(member=member) for member in COPIES[mask]]
        derived = {
            "unique": sum(rows for _, rows in self.segments),
            "out_channels": sum(rows * orbit_size(mask) for mask, rows in self.segments),
            "flat": tuple(v for segment in self.segments for v in segment),
            "_blocks": tuple(blocks),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def channel_map(self) -> tuple[tuple[int, int], ...]:
        """(row, member) of every output channel: the filter is row `row` mirrored along the mask `member`."""
        per_group = self.unique // self.groups
        return tuple(
            (g * per_group + block.start + i, block.member)
            for g in range(self.groups)
            for block in self._blocks
            for i in range(block.rows)
        )

    def expand(self, weight: Tensor, dim: int = 0) -> Tensor:
        """The ordinary filters of a reduced weight: (U, C, *K) -> (out_channels, C, *K).

        With dim=1, for transposed layers: (C_in, U/groups, *K) -> (C_in, out_channels/groups, *K).
        Differentiable; any dtype. Returns `weight` itself when nothing is tied.
        """
        return self._spread(weight, dim, reflect=True)

    def expand_bias(self, bias: Tensor) -> Tensor:
        """(U,) -> (out_channels,): every member of an orbit gets the bias of its row."""
        return self._spread(bias, 0, reflect=False)

    def adjoint(self, filters: Tensor, dim: int = 0) -> Tensor:
        """Transpose of `expand`: sums the filters of an orbit, mirrored back, into its row."""
        return self._reduce(filters, dim, reflect=True, mean=False)

    def project(self, filters: Tensor, dim: int = 0) -> Tensor:
        """The reduced weight whose expansion is nearest to `filters` in least squares: adjoint / orbit size."""
        return self._reduce(filters, dim, reflect=True, mean=True)

    def project_bias(self, bias: Tensor) -> Tensor:
        """(out_channels,) -> (U,): the mean over the members of each orbit."""
        return self._reduce(bias, 0, reflect=False, mean=True)

    def _spread(self, rows: Tensor, dim: int, reflect: bool) -> Tensor:
        copies = self._blocks[len(self.segments) :]
        rows, dim, grouped = self._by_group(rows, dim, self.unique, "rows")
        if not copies:
            return rows.flatten(0, 1) if grouped else rows
        parts = [rows]
        for block in copies:
            part = rows.narrow(dim, block.start, block.rows)
            parts.append(mirror(part, block.member) if reflect else part)
        full = torch.cat(parts, dim)
        return full.flatten(0, 1) if grouped else full

    def _reduce(self, full: Tensor, dim: int, reflect: bool, mean: bool) -> Tensor:
        full, dim, grouped = self._by_group(full, dim, self.out_channels, "filters")
        pieces = full.split([block.rows for block in self._blocks], dim)
        sums = list(pieces[: len(self.segments)])
        for block, piece in zip(self._blocks[len(sums) :], pieces[len(sums) :]):
            sums[block.segment] = sums[block.segment] + (mirror(piece, block.member) if reflect else piece)
        if mean:
            sums = [s / orbit_size(mask) if mask else s for s, (mask, _) in zip(sums, self.segments)]
        reduced = torch.cat(sums, dim) if len(sums) > 1 else sums[0]
        return reduced.flatten(0, 1) if grouped else reduced

    def _by_group(self, tensor: Tensor, dim: int, total: int, what: str) -> tuple[Tensor, int, bool]:
        """View along one group's channels: rows first (dim 0) holds all groups, dim 1 of a transposed weight one."""
        expected = total if dim == 0 else total // self.groups
        if tensor.shape[dim] != expected:
            raise ValueError(
                f"expected {expected} {what} along dim {dim} for ties {self.segments}, got shape {tuple(tensor.shape)}"
            )
        if dim == 0 and self.groups > 1:
            return tensor.unflatten(0, (self.groups, total // self.groups)), 1, True
        return tensor, dim, False


def _parse_key(key: object, ndim: int | None) -> int:
    keys = KEYS[ndim or 3]
    if not isinstance(key, str):
        raise TypeError(f"symmetry keys must be strings, got {key!r}; valid keys: {', '.join(keys)}")
    mask = sum({_BIT.get(c, 8) for c in key})
    if mask not in COPIES or mask == 0 or len(set(key)) != len(key):
        raise ValueError(f"symmetry key {key!r} is not valid; valid keys: {', '.join(keys)} (letters in any order)")
    _check_dims(mask, ndim)
    return mask


def _check_dims(mask: int, ndim: int | None) -> None:
    if ndim is not None and mask >> ndim:
        raise ValueError(
            f"symmetry key {mask_name(mask)!r} needs more dimensions than a {ndim}-D layer has; "
            f"valid keys: {', '.join(KEYS[ndim])}"
        )


def _parse_count(key: str, value: object) -> int | str:
    """An int as it is, a percentage as its text without the sign (hashable, and a constant for torch.compile)."""
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value)
        if match is None or Fraction(match[1]) > 100:
            raise ValueError(
                f"symmetry[{key!r}] = {value!r} is not a share of the filters; give '0%' to '100%', "
                f"for example {{{key!r}: '50%'}}, or a whole number of filters"
            )
        percent = Fraction(match[1])
        return str(percent) if percent else 0
    if isinstance(value, (bool, float)) or not hasattr(value, "__index__"):
        raise TypeError(
            f"symmetry[{key!r}] = {value!r} must be a whole number of filters or a percentage such as '50%'"
        )
    count = operator.index(value)
    if count < 0:
        raise ValueError(f"symmetry[{key!r}] = {count} is negative; give 0 or more filters")
    return count


def _filters(mask: int, count: int | str, out_channels: int, groups: int) -> int:
    """Filters of a tie: a count as given, a share rounded half to even, then down to whole orbits in each group."""
    if isinstance(count, int):
        return count
    unit = orbit_size(mask) * groups
    return round(Fraction(count) * out_channels / 100) // unit * unit


def _check_count(mask: int, filters: int, out_channels: int | None, groups: int) -> None:
    unit = orbit_size(mask) * groups
    if filters % unit == 0:
        return
    lower = filters // unit * unit
    upper = lower + unit
    if out_channels is not None and upper > out_channels:
        # Above out_channels nothing is valid: name the two nearest below.
        near = [c for c in (lower - unit, lower) if 0 <= c <= out_channels]
    else:
        near = [lower, upper]
    raise ValueError(
        f"symmetry[{mask_name(mask)!r}] = {filters} is not divisible by {unit} "
        f"(orbit size {orbit_size(mask)} times groups={groups}); nearest valid: {' and '.join(map(str, near))}"
    )


@lru_cache(maxsize=4096)
def _resolve(counts: tuple[tuple[int, int | str], ...], ndim: int, out_channels: int, groups: int) -> Ties:
    if ndim not in KEYS:
        raise ValueError(f"ndim={ndim} is not supported; a layer has 1, 2 or 3 spatial dims")
    if groups < 1 or out_channels < 0 or out_channels % groups:
        raise ValueError(f"out_channels={out_channels} must be divisible by groups={groups} (both positive)")
    segments, total = [], 0
    for mask, count in counts:
        _check_dims(mask, ndim)
        filters = _filters(mask, count, out_channels, groups)
        if filters <= out_channels:
            _check_count(mask, filters, out_channels, groups)
        total += filters
        if filters:
            segments.append(Segment(mask, filters // orbit_size(mask)))
    if total > out_channels:
        spec = {mask_name(m): _filters(m, c, out_channels, groups) for m, c in counts}
        raise ValueError(
            f"symmetry counts {spec} add up to {total} filters, more than out_channels={out_channels}; "
            f"give at most {out_channels} in all"
        )
    if total < out_channels or not segments:
        segments.append(Segment(0, out_channels - total))
    return Ties(ndim, groups, tuple(segments))


@lru_cache(maxsize=4096)
def resolve_rows(counts: tuple[tuple[int, int | str], ...], ndim: int, rows: int, groups: int) -> Ties:
    """`Symmetry.resolve_rows` on the bare counts, which torch.compile can take as a constant."""
    if rows % groups:
        raise ValueError(f"weight has {rows} rows, which must be divisible by groups={groups}")
    fixed = [(mask, count) for mask, count in counts if isinstance(count, int)]
    for mask, count in fixed:
        _check_dims(mask, ndim)
        _check_count(mask, count, None, groups)
    tied = sum(count // orbit_size(mask) for mask, count in fixed)
    if tied > rows:
        raise ValueError(
            f"symmetry counts { {mask_name(m): c for m, c in fixed} } need at least {tied} rows of weight, got {rows}"
        )
    if len(fixed) == len(counts):
        return _resolve(counts, ndim, rows + sum(c - c // orbit_size(m) for m, c in fixed), groups)
    largest = rows * max(orbit_size(mask) for mask, _ in counts)
    for out_channels in range(largest, rows - 1, -groups):
        sizes = [(m, _filters(m, c, out_channels, groups)) for m, c in counts]
        if sum(n for _, n in sizes) <= out_channels and out_channels - sum(n - n // orbit_size(m) for m, n in sizes) == rows:
            return _resolve(counts, ndim, out_channels, groups)
    raise ValueError(f"no number of output channels has {rows} rows of weight for symmetry counts {counts}")
