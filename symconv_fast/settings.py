"""Switches that trade exactness for speed, readable by every room: this package's own, and torch's for TF32."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch

WINOGRAD_LEVELS = ("f2", "f4", False)

_winograd: str | bool = "f2"
_on_change: list[Callable[[], object]] = []
_numbers = count(1)
_version = 0


def winograd() -> str | bool:
    """How far float32 may trade rounding for speed: "f2", "f4" or False; see `symconv_fast.allow_winograd`."""
    return _winograd


def tf32_allowed() -> bool:
    """May float32 convolutions on a GPU be rounded to TF32? On AMD torch 2.13 never does, whatever its switch says.

    `torch.backends.cudnn.allow_tf32` raises where torch's newer switches tell convolutions and recurrent layers apart.
    """
    precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return bool(precision == "tf32") and not torch.version.hip


def version() -> int:
    """Another number after each change: part of the key of what is remembered of a choice, read before the switches.

    What a thread chose by a switch that another one changed meanwhile is then stored where nobody looks.
    """
    return _version


def set_winograd(level: str | bool) -> None:
    """Set what `winograd` returns; choices made so far are forgotten.

    Raises:
        ValueError: not one of the three levels.
    """
    global _winograd, _version
    if not any(level is known or (isinstance(level, str) and level == known) for known in WINOGRAD_LEVELS):
        raise ValueError(f'allow_winograd={level!r} is not a level; give "f2" (the default), "f4" or False')
    _winograd = level
    _version = next(_numbers)  # after the level: who reads the new number reads the new level too
    for forget in _on_change:
        forget()


def on_change(forget: Callable[[], object]) -> None:
    """Have `forget` called whenever a switch changed: frees caches of choices, whose keys have a `version`."""
    _on_change.append(forget)
