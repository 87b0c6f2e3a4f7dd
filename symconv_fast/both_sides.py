"""`symmetry` and `input_symmetry` together, resolved into the `Ties` of one layer: what is asked, and what cannot be.

`Asked` is what a call of `symconv_fast.functional` gives; a layer keeps the `Ties`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, Union

import torch

from .checks import ShapeError, ints, is_several
from .sides import Inputs, Involutions, Own, Sides, check_inputs, moves_groups, own_kind, permutation
from .symmetry import KEYS, Symmetry, SymmetryLike, compute_rows, resolve_rows
from .ties import BIT, Ties, mask_name

InputSymmetry = Union[Symmetry, Involutions, Ties, None]
InputSymmetryLike = Union[SymmetryLike, Mapping[str, Sequence[int]], Ties, Involutions]

_Result = TypeVar("_Result")


class Asked(NamedTuple):
    """Of a call: the tie of the filters, that of the input, and the size of kernels of which the weight has a part."""

    symmetry: Symmetry
    inputs: InputSymmetry
    kernel: tuple[int, ...] | None


def parse_input(given: Any, ndim: int) -> InputSymmetry:
    """`input_symmetry` as it was given, checked as far as it can be without the layer; None where it has no mirrors.

    Raises:
        ValueError: unknown keys, as in `symmetry`, or a permutation for a key of several letters. TypeError: it is
        neither a dict, a string, a Symmetry, the Ties of the layer before nor None.
    """
    if given is None or isinstance(given, (Ties, Involutions)):
        return given
    if isinstance(given, Mapping) and any(map(_is_table, given.values())):
        return _parse_tables(given, ndim)
    symmetry = _named(lambda: Symmetry(given, ndim=ndim))
    return symmetry if symmetry.counts else None


def _is_table(value: Any) -> bool:
    return not isinstance(value, str) and is_several(value)


def _parse_tables(given: Mapping[Any, Any], ndim: int) -> Involutions:
    tables = {}
    for letter, table in given.items():
        if letter not in KEYS[ndim][:ndim]:
            raise ValueError(
                f"input_symmetry[{letter!r}] is a permutation of channels, and one letter is what it can be for; valid "
                f"keys: {', '.join(KEYS[ndim][:ndim])}"
            )
        if not _is_table(table):
            raise TypeError(
                f"input_symmetry[{letter!r}] = {table!r} is a number of channels where others are permutations; give "
                "all as permutations, or all as numbers"
            )
        tables[BIT[letter]] = ints(table, f"input_symmetry[{letter!r}]")
    return Involutions(tuple(sorted(tables.items())))


def _named(make: Callable[[], _Result]) -> _Result:
    """What is said of `symmetry`, said of `input_symmetry`."""
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise type(error)(f"input_symmetry: {error}") from None


def show_input(inputs: InputSymmetry) -> str:
    """As it was given, or, of ties, the channels of each key."""
    return repr(dict(inputs.keys)) if isinstance(inputs, Ties) else str(inputs)


def involutions(inputs: Ties | Involutions) -> dict[str, tuple[int, ...]]:
    """The permutations of channels, by letters, that mean the same."""
    found = ((letter, inputs.partners(bit)) for letter, bit in BIT.items())
    return {letter: table for letter, table in found if table is not None}


def resolve_features(given: InputSymmetry, channels: int, ndim: int = 3) -> Inputs:
    """What mirrors do to the `channels` channels of a feature map. Counts are of a layer of one group.

    Raises:
        ValueError: it is of another number of channels.
    """
    if given is None:
        return None
    if isinstance(given, Involutions):
        other = next((table for _, table in given.tables if len(table) != channels), None)
        if other is not None:
            raise ShapeError(
                f"input_symmetry={given} has {len(other)} channels where there are {channels}; give a permutation of "
                "all of them"
            )
        check_inputs(given, 1)
        return given
    ties = given if isinstance(given, Ties) else _named(lambda: given.resolve(ndim, channels))
    if ties.out_channels != channels:
        raise ShapeError(
            f"input_symmetry has the ties of {ties.out_channels} channels where there are {channels}; give the ties of "
            "the layer that makes them"
        )
    return ties


def resolve_inputs(given: InputSymmetry, ndim: int, channels: int) -> Inputs:
    """What mirrors do to the `channels` input channels of a layer.

    Raises:
        ValueError: it is of another number of channels or dims, or has channels that a mirror negates.
    """
    ties = resolve_features(given, channels, ndim)
    if not isinstance(ties, Ties):
        return ties
    if ties.ndim != ndim:
        raise ShapeError(
            f"input_symmetry has the ties of a layer of {ties.ndim} spatial dims for one of {ndim}; give "
            "permutations of channels by letters"
        )
    if ties.sides and ties.sides.odd:
        raise ShapeError(
            "input_symmetry has channels that a mirror negates, as those of odd filters ('h-') are; read them by a "
            "layer of their own, without input_symmetry and with the opposite signs in symmetry"
        )
    return Ties(ndim, ties.groups, ties.segments)


def resolve_both(
    counts: tuple[tuple[int, int | str], ...],
    inputs: Inputs,
    groups: int,
    kernel: tuple[int, ...],
    transposed: bool,
    base: Callable[[int], Ties],
) -> Ties:
    """The ties of a layer: those that `base` makes of `counts` for a number of groups, with what mirrors do beside.

    Where mirrors exchange the groups of the input, orbits lie across groups, and rows and output channels are in the
    order of a layer of one group.

    Raises:
        ValueError: there are no such filters, or no weight can keep their independent numbers in one shape.
    """
    check_inputs(inputs, groups)
    kinds = [own_kind(code) or Own(code, 0) for code, _ in counts]
    letters = functools.reduce(operator.or_, (kind.mask for kind in kinds), 0)
    across = moves_groups(inputs, letters, groups)
    if across and transposed:
        raise ShapeError(
            f"the mirrors exchange the groups of the input of a transposed layer with groups={groups}, which none has "
            "filters for here; use groups=1"
        )
    ties = base(1 if across else groups)
    if across and ties.out_channels % groups:
        raise ShapeError(f"out_channels={ties.out_channels} must be divisible by groups={groups}")
    own = ties.sides.own if ties.sides else (None,) * len(ties.segments)
    if not any(own) and all(
        permutation(inputs, bit & mask) is None for bit in BIT.values() for mask, _ in ties.segments
    ):
        return ties if ties.groups == groups else base(groups)
    sides = Sides(groups, inputs, own, kernel if any(own) else (), across)
    made = Ties(ties.ndim, ties.groups, ties.segments, sides)
    if any(own):
        _check_kept(made, inputs, kernel)
    return made


def _check_kept(ties: Ties, inputs: Inputs, kernel: tuple[int, ...]) -> None:
    """One weight must hold what is kept of all rows."""
    sides = ties.sides
    assert sides is not None
    channels = inputs.out_channels // sides.groups if inputs is not None else 0
    shapes: dict[tuple[int, ...], str] = {}
    for own, (mask, rows) in zip(sides.own, ties.segments):
        name = mask_name(own.code if own else mask)
        if rows:
            shapes.setdefault(sides.kept_of(own, channels, kernel), name)
        if own and 0 in sides.kept_of(own, 1 << len(BIT), kernel):
            raise ShapeError(
                f"symmetry[{name!r}]: an odd filter is zero where the kernel {kernel} has one tap along its axis; give "
                "a larger kernel or a '+'"
            )
    if len(shapes) > 1:
        sizes = ", ".join(
            f"{shape[1:] if inputs is None else shape} of {name!r}" for shape, name in shapes.items()
        )
        raise ShapeError(
            f"a weight keeps the independent numbers of its filters, and these kinds differ in how many there are: "
            f"{sizes} in a row; use two layers, each with filters of one size (symmetry="
            f"'{next(iter(shapes.values()))}' ties all filters of one), and torch.cat their outputs"
        )


def resolve_asked(
    asked: Asked, ndim: int, weight: Sequence[int], channels: int, groups: int, transposed: bool
) -> Ties:
    """The ties of a call, by the shape of its weight and the channels of its input.

    Raises:
        ValueError: as for a layer; or the weight does not say how large the kernel is, and `kernel_size` neither.
    """
    counts, kernel = asked.symmetry.counts, asked.kernel
    rows = weight[1] * groups if transposed else weight[0]
    if kernel is None and asked.symmetry.is_signed:
        raise ShapeError(
            f"weight of shape {list(weight)} has a part of the taps of self-symmetric filters, and kernels of two "
            "sizes have such a part; give kernel_size, or the ties of a layer as symmetry"
        )
    if kernel is not None and kernel != tuple(weight[2:]) and not asked.symmetry.is_signed:
        raise ShapeError(f"kernel_size={kernel} is not that of weight of shape {list(weight)}; leave it out")
    by_rows = compute_rows if torch.compiler.is_compiling() else resolve_rows
    return resolve_both(
        counts,
        resolve_inputs(asked.inputs, ndim, channels),
        groups,
        kernel or tuple(weight[2:]),
        transposed,
        lambda order: by_rows(counts, ndim, rows, order),
    )
