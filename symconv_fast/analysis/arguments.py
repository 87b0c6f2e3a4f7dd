"""Arguments of the analysis: whole numbers, and letters of mirrored axes as a mask."""

from __future__ import annotations

import operator
from typing import Any

from ..ties import BIT


def integer(value: Any, name: str, *, least: int, most: int | None = None) -> int:
    """The argument `name` as an int.

    Raises:
        ValueError: it is below `least` or above `most`. TypeError: it is no int; bool is none here.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be an int, such as {name}={least}")
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}={number} must be {bounds}")
    return number


def axis_mask(axis: Any, ndim: int) -> int:
    """The mask of `axis`, letters of the mirrored axes of a kernel or of an input.

    Raises:
        ValueError: it names no axis, one twice, or one that `ndim` dims have not. TypeError: it is no text.
    """
    if not isinstance(axis, str):
        raise TypeError(f"axis must be letters, such as 'h', got {axis!r}")
    letters = "hvz"[:ndim]
    if not axis or set(axis) - set(letters) or len(set(axis)) < len(axis):
        valid = ", ".join(letters)
        raise ValueError(f"axis={axis!r} is not valid with {ndim} spatial dims; valid letters: {valid}")
    return sum(BIT[letter] for letter in axis)
