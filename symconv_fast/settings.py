"""Switches that trade exactness for speed, readable by every room; today there is one."""

from __future__ import annotations

from collections.abc import Callable

WINOGRAD_LEVELS = ("f2", "f4", False)

_winograd: str | bool = "f2"
_on_change: list[Callable[[], object]] = []


def winograd() -> str | bool:
    """How far float32 may trade rounding for speed: "f2", "f4" or False; see `symconv_fast.allow_winograd`."""
    return _winograd


def set_winograd(level: str | bool) -> None:
    """Set what `winograd` returns; choices made so far are forgotten.

    Raises:
        ValueError: not one of the three levels.
    """
    global _winograd
    if not any(level is known or (isinstance(level, str) and level == known) for known in WINOGRAD_LEVELS):
        raise ValueError(f'allow_winograd={level!r} is not a level; give "f2" (the default), "f4" or False')
    _winograd = level
    for forget in _on_change:
        forget()


def on_change(forget: Callable[[], object]) -> None:
    """Have `forget` called whenever a switch changes: for caches of choices."""
    _on_change.append(forget)
