"""Contiguous tensors in channels_last for one pass: copied there, and the result back (csrc/cpu/relay.cpp).

Channels are the long side of a small map: 512 channels of 7 x 7 positions fill vectors, lines of 7 do not; and most
gradients of the input are quicker in channels_last by more than copies take. What is copied at a time is small: as many
images as stay within 1 MiB with their results, or some lines of one, with those around them that their taps read; or
all of them, where the reduced weight is larger than they are. A weight gradient is a sum over all images, with one
accumulator; lines of one gained nothing there (1 x 64 @ 224: 0.7 to 1.05 of the speed without copies).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from ..problem import Problem

NAME = "relayout"
_MOST_BYTES = 1 << 20
_MOST_HALO = 1.5  # source lines that are copied, over those that there are
# Two Zen 5 threads, 2026-11-29: three rounds of them for each part, and 16 x 16 elements through registers.
_PART_SECONDS, _ELEMENT_SECONDS = 6e-6, 0.25e-9


class Parts(NamedTuple):
    """What is copied together."""

    images: int
    lines: int  # of the result, along its outermost dimension; 0: all


def number(problem: Problem, op: str) -> int:
    """How many parts there are."""
    part = parts(problem, op)
    assert part is not None
    lines = _result(problem, op)[2]
    return problem.batch // part.images * (-(-lines // part.lines) if part.lines else 1)


def parts(problem: Problem, op: str) -> Parts | None:
    """Equal parts of the batch, or of an image; None where these would be too many or too large."""
    batch, size = problem.batch, _activations(problem)
    if size <= math.prod(problem.weight_shape):
        return Parts(batch, 0)
    most = _MOST_BYTES * batch // (size * problem.dtype.itemsize)
    images = next((part for part in range(min(most, batch), 0, -1) if batch % part == 0), 0)
    if images:
        return Parts(images, 0)
    return None if op == "wgrad" else _some_lines(problem, op)


def _some_lines(problem: Problem, op: str) -> Parts | None:
    if problem.transposed:
        return None
    source, result = _source(problem, op), _result(problem, op)
    stride = problem.stride[0] if op == "dgrad" else 1
    line = math.prod(source[1:2] + source[3:]), math.prod(result[1:2] + result[3:])

    def copied(lines: int) -> int:
        return line[0] * _source_lines(problem, op, lines) + line[1] * lines

    lines = result[2]
    while lines > stride and copied(lines) * problem.dtype.itemsize > _MOST_BYTES:
        lines = -(-lines // 2 // stride) * stride
    even = -(-result[2] // lines)
    lines = -(-result[2] // even // stride) * stride
    halo = -(-result[2] // lines) * _source_lines(problem, op, lines) / source[2]
    fits = copied(lines) * problem.dtype.itemsize <= _MOST_BYTES and halo <= _MOST_HALO
    return Parts(1, lines) if fits and lines < result[2] else None


def _source_lines(problem: Problem, op: str, lines: int) -> int:
    """What so many results read, along the outermost dimension."""
    stride, reach = problem.stride[0], problem.dilation[0] * (problem.kernel[0] - 1)
    if op == "fprop":
        return (lines - 1) * stride + reach + 1
    padding = problem.padding[0]
    return (lines - 1 + padding - stride * -((reach - padding) // stride)) // stride + 1


def relaid(problem: Problem, op: str) -> Problem:
    """A problem in channels_last that costs what one part does."""
    part = parts(problem, op)
    assert part is not None
    inner = replace(problem, batch=part.images, channels_last=True, input_channels_last=True)
    if not part.lines:
        return inner
    if op == "dgrad":
        return replace(inner, spatial=(part.lines, *problem.spatial[1:]))
    outer = _source_lines(problem, op, part.lines)
    return replace(inner, spatial=(outer, *problem.spatial[1:]), padding=(0, *problem.padding[1:]))


def work(problem: Problem, op: str) -> tuple[Problem, int]:
    """What costs as much as the passes in channels_last, and how often: a weight gradient has one accumulator."""
    if op == "wgrad":
        return replace(problem, channels_last=True, input_channels_last=True), 1
    return relaid(problem, op), number(problem, op)


def _activations(problem: Problem) -> int:
    return math.prod(problem.input_shape) + math.prod(problem.output_shape)


def _source(problem: Problem, op: str) -> tuple[int, ...]:
    return problem.input_shape if op == "fprop" else problem.output_shape


def _result(problem: Problem, op: str) -> tuple[int, ...]:
    return problem.output_shape if op == "fprop" else problem.input_shape


def why_not(problem: Problem, op: str) -> str | None:
    """Why copies would not do, or None."""
    if problem.ndim == 1:
        return "a line has one layout"
    if problem.channels_last or problem.input_channels_last:
        return "it is channels_last already"
    if parts(problem, op) is None:
        return f"input and output, more than {_MOST_BYTES >> 20} MiB and than the weight, would be copied"
    return None


def seconds(problem: Problem, op: str) -> float:
    """What the copies take."""
    part = parts(problem, op)
    assert part is not None
    elements, count = _activations(problem), number(problem, op)
    if part.lines:
        source = _source(problem, op)
        halo = count * _source_lines(problem, op, part.lines) - problem.batch * source[2]
        elements += halo * math.prod(source[1:2] + source[3:])
    share = problem.dtype.itemsize / 4 / max(1, torch.get_num_threads())
    return count * _PART_SECONDS + elements * share * _ELEMENT_SECONDS
