"""Symmetry: what the user asks for, parsed, and resolved into the `Ties` of one layer.

Three things are kept apart:

- `Symmetry` is what was written ({"h": 2, "hv": "50%"}). It knows no layer and can be given to many.
- `Ties` is a `Symmetry` resolved for one layer: how many rows of the reduced weight carry which tie.
- the reduced weight itself, a plain tensor, which the methods of `Ties` expand and reduce.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Union

from .checks import ShapeError
from .sides import Own, Sides, own_kind
from .ties import BIT, COPIES, Segment, Ties, mask_name, orbit_size

# Canonical order of the segments, and which of them a layer of 1, 2 or 3 dims can have.
KEYS: dict[int, tuple[str, ...]] = {
    1: ("h",),
    2: ("h", "v", "hv"),
    3: ("h", "v", "z", "hv", "hz", "vz", "hvz"),
}
_MASKS: dict[str, int] = {key: sum(BIT[c] for c in key) for key in KEYS[3]}
_ORDER: tuple[int, ...] = tuple(_MASKS.values())

_SIGNED = re.compile(r"(?:[hvz][+-])+")
_PERCENT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")

SymmetryLike = Union[str, Mapping[str, Union[int, str]], "Symmetry", None]


class SymmetryWarning(UserWarning):
    """A tie that can be meant, but that does nothing here or not what one would expect.

    Given when a layer is made, once for each reason, with the layer, the reason and what to do:

    - a tie mirrors an axis along which the kernel has one tap: its filters are the same again (they are computed once);
    - a share of the filters (a percentage, or a key alone, which is 100 %) rounds to none: the layer is left untied, as
      a depthwise layer of multiplier 1 always is;
    - `from_conv` loses more than a tenth of the energy of the filters, their squared norm.

    What cannot be meant raises ValueError instead: unknown keys, counts of no whole orbits, and counts or percentages
    that add up to more filters than there are. The functions of `symconv_fast.functional` give no warnings: they are
    called again and again, with the ties of a layer that gave its own.
    """


class Symmetry:
    """What was asked for, apart from any layer: immutable, hashable, picklable, prints as it was given.

    Args:
        spec: a dict {key: count} with counts of output channels (int, or "50%" of them), a key such as "hv"
            (as many filters as fit), another Symmetry, or None (an ordinary convolution). A key with signs, such as
            "h+" or "h+v-", is of self-symmetric filters: each its own mirror image (+) or the negative of it (-).
        ndim: spatial dims of the layer that it is meant for; limits the keys. None allows all.

    Raises:
        ValueError: unknown key, repeated letter or key, negative count, a bad percentage, or percentages that add up
            to more than 100.
        TypeError: `spec` or a count is of another type (bool and float included).
    """

    __slots__ = ("_hash", "_spec", "counts")

    _hash: int
    _spec: str | dict[str, int | str] | None
    counts: tuple[tuple[int, int | str], ...]
    """(mask, count) in canonical order; a percentage is kept as its text without the sign.

    In place of a mask, a self-symmetric kind has its code (`sides.Own`).
    """

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
                raise ValueError(
                    f"symmetry={spec!r} names the tie {mask_name(mask)!r} twice; give one count a tie"
                )
            counts[mask] = _parse_count(key, value)
        _check_shares(counts, spec)
        canonical = tuple((m, counts[m]) for m in sorted(counts, key=_place) if counts[m] != 0)
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

    @property
    def is_signed(self) -> bool:
        """Are there self-symmetric filters in it?"""
        return any(own_kind(code) for code, _ in self.counts)

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


def _place(code: int) -> tuple[int, int]:
    """Where a tie stands among the segments: by its letters, self-symmetric kinds after all orbits."""
    own = own_kind(code)
    return (len(_ORDER) + _ORDER.index(own.mask), own.parity) if own else (_ORDER.index(code), 0)


def _parse_key(key: object, ndim: int | None) -> int:
    keys = KEYS[ndim or 3]
    if not isinstance(key, str):
        raise TypeError(f"symmetry keys must be strings, got {key!r}; valid keys: {', '.join(keys)}")
    if "+" in key or "-" in key:
        return _parse_signed(key, ndim)
    mask = sum({BIT.get(c, 8) for c in key})
    if mask not in COPIES or mask == 0 or len(set(key)) != len(key):
        raise ValueError(
            f"symmetry key {key!r} is not valid; valid keys: {', '.join(keys)} (letters in any order)"
        )
    _check_dims(mask, ndim)
    return mask


def _parse_signed(key: str, ndim: int | None) -> int:
    """The code of a self-symmetric kind: letters with a sign each."""
    letters, signs = key[::2], key[1::2]
    if _SIGNED.fullmatch(key) is None or len(set(letters)) != len(letters):
        raise ValueError(
            f"symmetry key {key!r} is not valid: self-symmetric filters need a sign after each letter, such as 'h+' or "
            "'h+v-', and no letter twice; keys of orbits have no signs"
        )
    code = Own(
        sum(map(BIT.__getitem__, letters)), sum(BIT[c] for c, sign in zip(letters, signs) if sign == "-")
    ).code
    _check_dims(code, ndim)
    return code


def _check_dims(mask: int, ndim: int | None) -> None:
    own = own_kind(mask)
    if ndim is not None and (own.mask if own else mask) >> ndim:
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


def _check_shares(counts: Mapping[int, int | str], spec: object) -> None:
    total = sum((Fraction(count) for count in counts.values() if isinstance(count, str)), Fraction(0))
    if total > 100:
        raise ValueError(
            f"symmetry={spec!r} adds up to {float(total):g}% of the filters; give at most 100% in all"
        )


def _asked(counts: Sequence[tuple[int, int | str]], out_channels: int) -> Fraction:
    """Filters that counts and percentages ask for, before these are rounded."""
    return sum(
        (Fraction(c) if isinstance(c, int) else Fraction(c) * out_channels / 100 for _, c in counts),
        Fraction(0),
    )


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


def _compute(counts: tuple[tuple[int, int | str], ...], ndim: int, out_channels: int, groups: int) -> Ties:
    if ndim not in KEYS:
        raise ValueError(f"ndim={ndim} is not supported; a layer has 1, 2 or 3 spatial dims")
    if groups < 1 or out_channels < 0 or out_channels % groups:
        raise ValueError(f"out_channels={out_channels} must be divisible by groups={groups} (both positive)")
    segments: list[Segment] = []
    own: list[Own | None] = []
    total = 0
    for mask, count in counts:
        _check_dims(mask, ndim)
        filters = _filters(mask, count, out_channels, groups)
        if filters <= out_channels:
            _check_count(mask, filters, out_channels, groups)
        total += filters
        if filters:
            own.append(own_kind(mask))
            segments.append(Segment(0 if own[-1] else mask, filters // orbit_size(mask)))
    if total > out_channels or _asked(counts, out_channels) > out_channels:
        spec = {mask_name(m): _filters(m, c, out_channels, groups) for m, c in counts}
        asked = float(max(Fraction(total), _asked(counts, out_channels)))
        raise ValueError(
            f"symmetry counts {spec} add up to {asked:g} filters, more than out_channels={out_channels}; "
            f"give at most {out_channels} in all"
        )
    if total < out_channels or not segments:
        segments.append(Segment(0, out_channels - total))
        own.append(None)
    return Ties(ndim, groups, tuple(segments), Sides(groups, None, tuple(own)) if any(own) else None)


_resolve = lru_cache(maxsize=4096)(_compute)


def compute_rows(counts: tuple[tuple[int, int | str], ...], ndim: int, rows: int, groups: int) -> Ties:
    """`Symmetry.resolve_rows` on the bare counts, without a cache, as torch.compile wants to trace it."""
    if rows % groups:
        raise ShapeError(f"weight has {rows} rows, which must be divisible by groups={groups}")
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
        return _compute(counts, ndim, rows + sum(c - c // orbit_size(m) for m, c in fixed), groups)
    largest = rows * max(orbit_size(mask) for mask, _ in counts)
    for out_channels in range(largest, rows - 1, -groups):
        sizes = [(m, _filters(m, c, out_channels, groups)) for m, c in counts]
        saved = sum(n - n // orbit_size(m) for m, n in sizes)
        fits = sum(n for _, n in sizes) <= out_channels and _asked(counts, out_channels) <= out_channels
        if fits and out_channels - saved == rows:
            return _compute(counts, ndim, out_channels, groups)
    raise ValueError(f"no number of output channels has {rows} rows of weight for symmetry counts {counts}")


resolve_rows = lru_cache(maxsize=4096)(compute_rows)
"""`compute_rows`, remembered."""
