"""Switches that every room can read: what exactness may be traded for speed (TF32 is torch's), what is timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import torch

WINOGRAD_LEVELS = ("f2", "f4", False)
BENCHMARK_LEVELS = (True, False, "auto")

ENV_BENCHMARK = "SYMCONV_FAST_BENCHMARK"
ENV_KNOWN_ANSWERS = "SYMCONV_FAST_KNOWN_ANSWERS"
_WORDS: dict[str, str | bool] = {
    "": "auto", "auto": "auto",
    "1": True, "true": True, "on": True, "yes": True,
    "0": False, "false": False, "off": False, "no": False,
}  # fmt: skip

_winograd: str | bool = "f2"
_benchmark: str | bool | None = None  # None: what the environment says, read when first asked
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
    global _winograd
    if not _is_one_of(level, WINOGRAD_LEVELS):
        raise ValueError(f'allow_winograd={level!r} is not a level; give "f2" (the default), "f4" or False')
    _winograd = level
    changed()


def benchmark() -> str | bool:
    """Are candidates timed: True, False or "auto"; see `symconv_fast.benchmark`.

    Raises:
        ValueError: the environment variable says none of these.
    """
    global _benchmark
    if _benchmark is None:
        _benchmark = _flag(ENV_BENCHMARK)
    return _benchmark


def set_benchmark(level: str | bool) -> None:
    """Set what `benchmark` returns; choices are made anew, what was measured is kept.

    Raises:
        ValueError: not one of the three levels.
    """
    global _benchmark
    if not _is_one_of(level, BENCHMARK_LEVELS):
        raise ValueError(f'benchmark={level!r} is not a level; give True, False or "auto" (the default)')
    _benchmark = level
    changed()


@contextmanager
def benchmarking(level: str | bool = True) -> Iterator[None]:
    """`benchmark` set for the whole process inside the `with`, and as it was after it."""
    before = benchmark()
    set_benchmark(level)
    try:
        yield
    finally:
        set_benchmark(before)


def known_answers() -> bool:
    """Must a kernel on a GPU give a known answer before it is used? Not where the environment variable says 0."""
    return _flag(ENV_KNOWN_ANSWERS) is not False


def on_change(forget: Callable[[], object]) -> None:
    """Have `forget` called whenever choices are to be made anew: it frees caches, whose keys have a `version`."""
    _on_change.append(forget)


def changed() -> None:
    """Have choices made anew: called after a switch was set or times were measured, which a reader then sees."""
    global _version
    _version = next(_numbers)
    for forget in _on_change:
        forget()


def _is_one_of(level: object, levels: tuple[str | bool, ...]) -> bool:
    """1 is not True here, nor 0 False."""
    return any(level is known or (isinstance(level, str) and level == known) for known in levels)


def _flag(name: str) -> str | bool:
    """The level that a variable of the environment names."""
    word = os.environ.get(name, "").strip().lower()
    if word not in _WORDS:
        raise ValueError(f"{name}={word!r} is not a level; give 1, 0 or auto")
    return _WORDS[word]
