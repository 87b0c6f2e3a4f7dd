"""Which tie each convolution is to have, from what `convert` was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from torch.nn.modules.conv import _ConvNd

from ..symmetry import KEYS, Symmetry, SymmetryLike
from ..ties import BIT, Ties, mask_name, orbit_size
from .sites import Site

Wish = Union[SymmetryLike, Callable[[str, _ConvNd], SymmetryLike]]


def check_wish(symmetry: Any) -> None:
    """Raises TypeError or ValueError where `symmetry` is nothing that `convert` takes."""
    if callable(symmetry) or symmetry == "auto":
        return
    if symmetry is None:
        raise TypeError(
            "symmetry=None ties nothing; give a key such as 'hv', a dict, a function of name and layer, or 'auto'"
        )
    given = Symmetry(symmetry)
    if not given.counts:
        raise ValueError(f"symmetry={symmetry!r} ties nothing; give a key such as 'hv' or {{'h': '50%'}}")
    _refuse_signed(given)


def wanted(symmetry: Wish, site: Site) -> tuple[Symmetry, Ties] | str:
    """The tie of one convolution, resolved, or why it gets none.

    Raises:
        ValueError, TypeError: a function gave what does not fit the layer; the message names it.
    """
    conv: Any = site.conv
    if callable(symmetry):
        try:
            given = symmetry(site.name, conv)
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"convert called symmetry(name, conv), with name={site.name!r}")
            raise
        if given is None:
            return "symmetry(name, conv) gave None"
        try:
            tie = Symmetry(given, ndim=len(conv.kernel_size))
            if not tie.counts:
                raise ValueError("it ties nothing; return None to leave the layer alone")
            return _resolve(tie, conv)
        except (ValueError, TypeError) as error:
            raise type(error)(f"symmetry(name={site.name!r}, conv) gave {given!r}: {error}") from None
    if isinstance(symmetry, str):
        return fitted(symmetry, conv)
    try:
        return _resolve(Symmetry(symmetry, ndim=len(conv.kernel_size)), conv)
    except ValueError as error:
        return str(error)


def fitted(key: str, conv: _ConvNd) -> tuple[Symmetry, Ties] | str:
    """The tie `key` with the letters of which `conv` has an axis with more than one tap: "hv" is "h" in 1-D."""
    kernel = conv.kernel_size
    letters = "".join(c for c, bit in BIT.items() if c in key and has_axis(kernel, bit))
    if not letters:
        return f"no axis of {key!r} has more than one tap"
    return _resolve(Symmetry(letters, ndim=len(kernel)), conv)


def has_axis(kernel: tuple[int, ...], bit: int) -> bool:
    """Has the kernel an axis of this letter, with more than one tap?"""
    axis = len(kernel) - bit.bit_length()
    return axis >= 0 and kernel[axis] > 1


def keys_of(conv: _ConvNd) -> list[str]:
    """Every key that ties this convolution by axes with more than one tap."""
    kernel = conv.kernel_size
    return [key for key in KEYS[len(kernel)] if all(has_axis(kernel, BIT[letter]) for letter in key)]


def _refuse_signed(symmetry: Symmetry) -> None:
    if symmetry.is_signed:
        raise ValueError(
            f"symmetry={symmetry} is of self-symmetric filters, but convert finds orbits of filters; give a key such "
            "as 'h', or make single layers with from_conv(conv, symmetry)"
        )


def _resolve(symmetry: Symmetry, conv: _ConvNd) -> tuple[Symmetry, Ties] | str:
    _refuse_signed(symmetry)
    ties = symmetry.resolve(len(conv.kernel_size), conv.out_channels, conv.groups)
    if any(mask and rows for mask, rows in ties.segments):
        return symmetry, ties
    mask = symmetry.counts[0][0]
    width = conv.out_channels // conv.groups
    where = f"each of its {conv.groups} groups has" if conv.groups > 1 else "it has"
    return f"{where} {width} filters, an orbit of {mask_name(mask)!r} takes {orbit_size(mask)}"
