"""Filters that a tie repeats as they are, computed once: ties along axes where the kernel has one tap.

Mirroring one tap changes nothing, so that members of an orbit coincide. The problem with the distinct members alone is
run by whatever is quickest for it; its output channels are copied (each with its own bias), and the gradients of the
copies are added up before the other two passes, which are linear in them. This is torch's own work around a smaller
problem, and pays where that saves more than the copies take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem, allocate, suggests_channels_last
from . import gpu_cost

NAME = "distinct"
ALGORITHMS = ("copy",)

# Two Zen 5 threads, 2026-11-29: a call of torch from Python and what it allocates, elements of 4 bytes that are read
# or written, and lines of channels, one a position, that are copied by themselves.
_CALL_SECONDS, _ELEMENT_SECONDS, _LINE_SECONDS = 8e-6, 0.25e-9, 6e-9
_MARGIN = 1.1


class _Others(NamedTuple):
    """What dispatch knows of the other backends."""

    seconds: Callable[[Problem, str], float]
    bind: Callable[[Problem, str], Callable[..., Tensor]]


_others: list[_Others] = []


def connect(
    seconds: Callable[[Problem, str], float], bind: Callable[[Problem, str], Callable[..., Tensor]]
) -> None:
    """Called by dispatch: the quickest way that another backend has for a problem, its estimate and its function."""
    _others[:] = [_Others(seconds, bind)]


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None: some tie must mirror an axis along which the kernel has one tap."""
    if problem.sides:
        return problem.sides.why_not
    once = problem.layer_ties.one_tap_axes(problem.kernel)
    if not any(mask & once for mask, _ in problem.ties):
        return "no tie mirrors an axis along which the kernel has one tap"
    if op == "fprop" and problem.dtype.itemsize == 2:
        return "beside a bias, which is added to the copies, 16 bits would be rounded twice"
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds: the smaller problem, and the copies."""
    inner = _inner(problem, op)
    return _MARGIN * (_others[0].seconds(inner, op) + _copy_seconds(problem, inner))


def _copy_seconds(problem: Problem, inner: Problem) -> float:
    elements = math.prod(problem.output_shape) + math.prod(inner.output_shape)
    runs = len(_runs(problem))
    if problem.device != "cpu":
        return gpu_cost.copy_seconds(elements * problem.dtype.itemsize, launches=runs)
    lines = 0
    if problem.channels_last or problem.input_channels_last:
        lines = problem.batch * problem.groups * math.prod(problem.out_spatial) * runs
    copied = elements * problem.dtype.itemsize / 4 * _ELEMENT_SECONDS + lines * _LINE_SECONDS
    return (runs + 1) * _CALL_SECONDS + copied / max(1, torch.get_num_threads())


def bind(problem: Problem, op: str, algorithm: str) -> Callable[..., Tensor]:
    """The function of `op` with all but its tensors bound."""
    inner, runs = _inner(problem, op), _runs(problem)
    run = _others[0].bind(inner, op)
    if op != "fprop":
        return lambda grad_output, other: run(_sum_copies(inner, runs, grad_output), other)
    return lambda input, weight, bias: _copy(problem, runs, run(input, weight, None), bias)


@lru_cache(maxsize=1024)
def _inner(problem: Problem, op: str) -> Problem:
    """The problem of the distinct filters."""
    ties = problem.layer_ties.distinct(problem.kernel)
    inner = replace(
        problem, ties=tuple((mask, rows) for mask, rows in ties.segments), out_channels=ties.out_channels
    )
    if op == "fprop":
        return inner
    # The sums of the gradients lie as `_sum_copies` lays them.
    like = torch.empty(0, dtype=problem.dtype, device="meta")
    last = suggests_channels_last(allocate(inner.output_shape, like, problem.input_channels_last))
    return replace(inner, input_channels_last=last)


@lru_cache(maxsize=1024)
def _runs(problem: Problem) -> tuple[tuple[int, int, int], ...]:
    return tuple(problem.layer_ties.copied_from(problem.kernel))


def _by_group(tensor: Tensor, groups: int) -> tuple[Tensor, int]:
    """View with the channels of one group along the dim that is given beside it."""
    return (tensor, 1) if groups == 1 else (tensor.unflatten(1, (groups, -1)), 2)


def _copy(
    problem: Problem, runs: tuple[tuple[int, int, int], ...], distinct: Tensor, bias: Tensor | None
) -> Tensor:
    """The output from that of the distinct filters."""
    output = allocate(problem.output_shape, distinct, problem.channels_last)
    target, dim = _by_group(output, problem.groups)
    source, _ = _by_group(distinct, problem.groups)
    if bias is not None:
        bias = bias.view(*target.shape[1 : dim + 1], *[1] * problem.ndim)
    for first, begin, length in runs:
        into, read = target.narrow(dim, first, length), source.narrow(dim, begin, length)
        if bias is None:
            into.copy_(read)
        else:
            torch.add(read, bias.narrow(dim - 1, first, length), out=into)
    return output


def _sum_copies(inner: Problem, runs: tuple[tuple[int, int, int], ...], grad_output: Tensor) -> Tensor:
    """The gradients of the distinct filters' outputs: those of their copies, added in one order, rounded once."""
    result = allocate(inner.output_shape, grad_output, inner.input_channels_last)
    target, dim = _by_group(result, inner.groups)
    source, _ = _by_group(grad_output, inner.groups)
    wide = torch.promote_types(inner.dtype, torch.float32)
    for begin, parts in _pieces(runs):
        length = parts[0][1]
        into = target.narrow(dim, begin, length)
        terms = [source.narrow(dim, first, length) for first, _ in parts]
        if len(terms) == 1:
            into.copy_(terms[0])
        elif len(terms) == 2:
            torch.add(*terms, out=into)
        elif inner.dtype == wide:
            torch.add(terms[0], terms[1], out=into)
            for term in terms[2:]:
                into += term
        else:
            into.copy_(torch.stack(terms).sum(0, dtype=wide))
    return result


@lru_cache(maxsize=1024)
def _pieces(runs: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
    """(first distinct channel, ((first channel of a copy, length), ...)): all copies of each run of distinct ones."""
    edges = sorted({edge for _, begin, length in runs for edge in (begin, begin + length)})
    pieces = []
    for begin, end in pairwise(edges):
        copies = tuple(
            (first + begin - start, end - begin)
            for first, start, length in runs
            if start <= begin < start + length
        )
        if copies:
            pieces.append((begin, copies))
    return tuple(pieces)
