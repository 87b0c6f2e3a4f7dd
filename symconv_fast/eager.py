"""Calls that were seen before, in one native call: neither checks nor the choice of kernels are made twice.

Python's way from a layer to its operator takes as long as a tiny convolution. Native code
(csrc/cpu/python/layer_calls.cpp) remembers what the checks made of calls, by the identity of the arguments that
cannot change and by the shapes of the tensors, and goes on as the operator does. Whatever the dispatcher has work
with (modes, subclasses, transforms, a profiler, torch.compile) is left to the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import dispatch, ops
from .native import module as _cpu
from .symmetry import Symmetry
from .ties import Ties

_MAX_SPECS = 8192
_CONSTANT = (int, str, type(None), Symmetry, Ties)  # what can be told apart by identity, and tuples of ints

_specs: dict[tuple[Any, ...], tuple[Any, ...]] = {}

if _cpu is not None:
    _cpu.connect(Tensor, torch.nn.Parameter, dispatch.PINNED, ops.plan)


recall_layer: Callable[[torch.nn.Module, Tensor], Tensor | None] | None = getattr(_cpu, "recall_layer", None)
"""`recall` with what an ordinary layer calls `functional.run` with, read from it natively. Not while compiling."""


def takes(input: Any) -> bool:
    """May a call with this input be remembered? Asked before all else here: on other devices there is nothing to do."""
    if _cpu is None or torch.compiler.is_compiling():
        return False
    return (type(input) is Tensor or isinstance(input, Tensor)) and input.is_cpu


def recall(input: Tensor, weight: Tensor, bias: Tensor | None, *spec: Any) -> Tensor | None:
    """The output of a call with the same objects in `spec` and tensors of the same kind, if one was remembered.

    `takes` is true of the input.
    """
    output: Tensor | None = _cpu.recall(input, weight, bias, *spec)
    return output


def remember(
    input: Tensor, weight: Tensor, bias: Tensor | None, spec: tuple[Any, ...], static: tuple[Any, ...]
) -> None:
    """Have `recall` call the operator with `static` for such tensors; nothing where `spec` could change.

    `takes` is true of the input.
    """
    if all(map(_is_constant, spec)):
        _cpu.remember(input, weight, bias, spec, static)


def fprop(input: Tensor, weight: Tensor, bias: Tensor | None, static: tuple[Any, ...]) -> Tensor:
    """`ops.fprop`, remembered."""
    if not takes(input):
        return ops.fprop(input, weight, bias, *static)
    if len(_specs) >= _MAX_SPECS:
        _specs.clear()
    spec = (_specs.setdefault(static, static),)
    output = recall(input, weight, bias, *spec)
    if output is None:
        output = ops.fprop(input, weight, bias, *static)
        remember(input, weight, bias, spec, static)
    return output


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(type(v) in (int, bool) or _is_constant(v) for v in value)
    return isinstance(value, _CONSTANT)
