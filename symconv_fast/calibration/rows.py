"""The rows of the CPU cost model's tables: which one an estimate rests on, what it says, and how one is scaled.

The only place beside `backends` that knows these tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import torch

from ..backends.cpu import cost, rates, torch_cost
from ..backends.cpu.backend import selected
from ..backends.torch_conv import asked_in
from ..problem import Problem

_DEPTHWISE = {
    "native": "depthwise",
    "groups AVX2": "narrow groups",
    "groups AVX512": "narrow groups",
    "own": "depthwise self-symmetric",
    "across": "depthwise across groups",
    "torch single": "torch depthwise single",
    "torch multiple": "torch depthwise multiple",
    "torch groups AVX512": "torch narrow groups",
}


def row(problem: Problem, op: str, algorithm: str) -> str | None:
    """The row that the estimate for an algorithm of the CPU backend rests on.

    None where it is made of others, or nothing was measured.
    """
    if algorithm == "relayout":
        return None
    if algorithm == "expand":
        if (key := torch_cost.depthwise_key(problem, op)) is not None:
            return _depthwise_name(key)
        return torch_cost.place(replace(problem, dtype=asked_in(problem, op)), op).row
    name, selection = selected(problem, op, algorithm)
    if selection.depthwise:
        return _depthwise_name(cost.depthwise_key(problem, op))
    where = cost.place(problem, op, name, selection)
    return where.row if cost.is_measured(selection.counts, where) else None


def _depthwise_name(key: tuple[str, str, str]) -> str:
    return "/".join((_DEPTHWISE[key[0]], *key[1:]))


def seconds(problem: Problem, op: str, algorithm: str) -> float:
    """The estimate, without a margin; infinite where nothing was measured."""
    if algorithm == "expand":
        return torch_cost.seconds(problem, op)
    name, selection = selected(problem, op, algorithm)
    if not selection.depthwise and row(problem, op, algorithm) is None:
        return math.inf
    return cost.bare_seconds(problem, op, name, selection)


def is_torchs(name: str) -> bool:
    """Is a row about torch's convolution?"""
    return "torch" in name.partition("/")[0]


def names() -> list[str]:
    """Every row that estimates on this CPU may rest on."""
    return [name for name, _, _ in _entries()]


def dtype_of(name: str) -> str:
    """The type that a row is for: bfloat16, float16, or float32, by which wider types are estimated too."""
    first = name.split(" ", 1)[0]
    return first if first in ("bfloat16", "float16") else "float32"


def _entries() -> Iterator[tuple[str, MutableMapping[Any, Any], Any]]:
    """(name, table, key in it) of every row."""
    for torchs in (False, True):
        for rows in _tables(torchs):
            yield from ((name, rows, name) for name in rows if is_torchs(name) == torchs and _is_used(name))
    yield from (
        (_depthwise_name(key), rates.DEPTHWISE, key) for key in rates.DEPTHWISE if _has_vectors(key[0])
    )


def _has_vectors(whose: str) -> bool:
    """Not where a row is for vectors that the kernels do not have here."""
    here = rates.torch_capability() if whose.startswith("torch") else rates.capability()
    return not whose.endswith(("AVX2", "AVX512")) or whose.endswith(" AVX512") == (here == "AVX512")


def _is_used(name: str) -> bool:
    """Not where a row is for bfloat16 as other CPUs multiply it."""
    if not name.startswith("bfloat16 "):
        return True
    kind = name.rpartition(" ")[2]
    return name == f"{rates.dtype_name(torch.bfloat16, kind)} {kind}"


def _tables(torchs: bool) -> tuple[MutableMapping[str, Any], MutableMapping[str, Any]]:
    """Rates and factors by name for the vectors of the native kernels here, or for those of torch's."""
    kind = "torch" if torchs else ""
    return rates.table(rates.RATES, kind), rates.table(rates.FACTORS, kind)


class Tables:
    """The tables as they are in the package, and scaled."""

    def __init__(self) -> None:
        self._original = [(name, rows, key, rows[key]) for name, rows, key in _entries()]
        self._added: list[tuple[MutableMapping[Any, Any], str]] = []

    def scale(self, factors: dict[str, float]) -> None:
        """Every row times its factor, 1 where there is none; a 16-bit row that is missing is added."""
        for rows, name in self._added:
            del rows[name]
        self._added = []
        for name, rows, key, value in self._original:
            rows[key] = _times(value, factors.get(name, 1.0))
        known = {name for name, *_ in self._original}
        for name in factors.keys() - known:
            if dtype_of(name) != "float32":
                _, rows = _tables(is_torchs(name))
                rows[name] = (factors[name], 0.0)
                self._added.append((rows, name))
        torch_cost.forget()


def _times(value: Any, factor: float) -> Any:
    """A row of rates by unit, or a tuple of numbers, times a factor."""
    if isinstance(value, dict):
        return {unit: rate * factor for unit, rate in value.items()}
    return tuple(number * factor for number in value)
