"""Problems as the native module knows them, and what it selects for them: kept, since a choice asks for dozens."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ... import native
from ...problem import Problem
from . import rates

_cpu: Any = native.module
_ALGORITHMS: dict[str, Any] = dict(_cpu.Algorithm.__members__)
_OPS: dict[str, Any] = dict(_cpu.Op.__members__)
_ISAS: dict[str, Any] = dict(_cpu.Isa.__members__)


@lru_cache(maxsize=1024)
def describe(problem: Problem) -> Any:
    """The `_cpu.Problem` of a problem."""
    p, spatial = problem, problem.ndim > 1  # a line has one layout
    return _cpu.Problem(
        ties=p.layer_ties.flat,
        stride=p.stride, padding=p.padding, dilation=p.dilation, transposed=p.transposed, groups=p.groups,
        input=p.input_shape, weight=p.weight_shape, output=p.output_shape, type=p.dtype,
        source_last=spatial and p.input_channels_last, result_last=spatial and p.channels_last,
    )  # fmt: skip


def select(problem: Problem, op: str, algorithm: str, relayout: bool = False) -> Any:
    """The `_cpu.Selection` for an algorithm by its native name ("fold_f2"), with the instructions in use or assumed."""
    return _select(problem, op, algorithm, relayout, rates.isa())


@lru_cache(maxsize=8192)
def _select(problem: Problem, op: str, algorithm: str, relayout: bool, isa: str) -> Any:
    return _cpu.select(describe(problem), _OPS[op], _ALGORITHMS[algorithm], relayout=relayout, isa=_ISAS[isa])
