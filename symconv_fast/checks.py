"""What arguments may be: tensors, dtypes, devices, integers; and the exceptions, which are those of torch as well."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMIT = 1 << 63
"""Integers of operators are below it."""


class ShapeError(ValueError, RuntimeError):
    """A shape that does not fit: a ValueError, and a RuntimeError because torch's own layers raise that."""


class DtypeError(TypeError, RuntimeError):
    """A dtype that is not supported: a TypeError, and a RuntimeError because torch raises that where types differ."""


class TooLargeError(ValueError, TypeError):
    """An integer of more than 64 bits: torch raises a ValueError for it, and a TypeError for it in a tuple."""


def check_is_tensor(tensor: Any, name: str) -> None:
    """Raises TypeError, as torch does, for None, arrays and lists."""
    if not isinstance(tensor, Tensor):
        hint = (
            "; torch.as_tensor makes one"
            if hasattr(tensor, "__array__") or hasattr(tensor, "__len__")
            else ""
        )
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}{hint}")


def check_bool(value: Any, name: str) -> bool:
    """`value`, which has to be True or False; else a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
    return value


def check_tensors(first: Tensor, second: Tensor, bias: Tensor | None, out_channels: int) -> None:
    """Dtypes and devices of the two tensors of an operator and its bias.

    Raises:
        DtypeError: a dtype that is not supported. RuntimeError: dtypes or devices differ, as torch's layers say it.
        ShapeError: bias is not (out_channels,).
    """
    for tensor in (first, second):
        if tensor.dtype not in SUPPORTED_DTYPES or tensor.is_quantized:
            names = ", ".join(str(dtype)[6:] for dtype in SUPPORTED_DTYPES)
            way_out = "; quantize symconv_fast.to_torch(model), whose layers are torch's"
            hint = way_out if tensor.is_quantized else ""
            raise DtypeError(
                f"dtype {str(tensor.dtype)[6:]} is not supported; supported dtypes: {names}{hint}"
            )
    others = (("weight", second),) if bias is None else (("weight", second), ("bias", bias))
    for name, other in others:
        if other.dtype != first.dtype:
            raise RuntimeError(
                f"Input type ({str(first.dtype)[6:]}) and {name} type ({str(other.dtype)[6:]}) should be the same"
            )
        if other.device != first.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {first.device} and "
                f"{name} is on {other.device}"
            )
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ShapeError(f"expected bias of shape ({out_channels},), got {tuple(bias.shape)}")


def ints(value: Any, name: str) -> tuple[int, ...]:
    """The argument `name`, an int or a sequence of them, as a tuple of whatever length.

    Raises:
        TypeError: it is something else, floats, bools and text included. TooLargeError: it does not fit into 64 bits.
    """
    if isinstance(value, (tuple, list)) and all(type(v) is int and -LIMIT <= v < LIMIT for v in value):
        return tuple(value)
    try:
        values = tuple(map(_integer, _each(value)))
    except TypeError:
        text = ", 'same' or 'valid'" if name == "padding" else ""
        raise TypeError(
            f"{name}={value!r:.80} must be an int or a tuple of ints, such as {name}=1{text}"
        ) from None
    if any(isinstance(v, int) and not -LIMIT <= v < LIMIT for v in values):
        raise TooLargeError(f"{name}={value!r} does not fit into 64 bits; give something like {name}=1")
    return values


def is_several(value: Any) -> bool:
    """Is it a sequence of some kind? A tensor or array of no dims is a number."""
    return isinstance(value, Iterable) and getattr(value, "ndim", None) != 0


def _each(value: Any) -> Iterable[Any]:
    return value if is_several(value) else (value,)


def _integer(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError
    return value if isinstance(value, (int, torch.SymInt)) else operator.index(value)
