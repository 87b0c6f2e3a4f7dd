"""Contiguous tensors in channels_last for one pass: copied there, and the result back.

Channels are the long side of a small map: 512 channels of 7 x 7 positions fill vectors, lines of 7 do not. Copying
takes a hundredth of such a layer. What is copied at a time is small: as many images as stay within 1 MiB, or all of
them where the reduced weight is larger than they are. A weight gradient is a sum over all images, which are copied
together or not at all.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..problem import Problem

NAME = "relayout"
_MOST_BYTES = 1 << 20
# One Zen 3 core, 2026-11-28: 0.7 to 1.8 ns an element one way or the other.
_CALL_SECONDS, _ELEMENT_SECONDS = 3e-6, 1.3e-9


def images(problem: Problem, op: str) -> int:
    """How many are copied at a time, in equal parts of the batch; 0 where one would be too many."""
    batch, size = problem.batch, _activations(problem)
    if size <= math.prod(problem.weight_shape):
        return batch
    most = _MOST_BYTES * batch // (size * problem.dtype.itemsize)
    if op == "wgrad":
        return batch if batch <= most else 0
    return next((part for part in range(min(most, batch), 0, -1) if batch % part == 0), 0)


def relaid(problem: Problem, op: str) -> Problem:
    """The same problem in channels_last, of the images that are copied together."""
    return replace(problem, batch=images(problem, op), channels_last=True, input_channels_last=True)


def _activations(problem: Problem) -> int:
    return math.prod(problem.input_shape) + math.prod(problem.output_shape)


def why_not(problem: Problem, op: str) -> str | None:
    """Why copies would not do, or None."""
    if problem.ndim == 1:
        return "a line has one layout"
    if problem.channels_last or problem.input_channels_last:
        return "it is channels_last already"
    if images(problem, op) == 0:
        return f"input and output, more than {_MOST_BYTES >> 20} MiB and than the weight, would be copied"
    return None


def seconds(problem: Problem, op: str) -> float:
    """What the copies take; in the weight gradient that is one of the result as well."""
    elements, copies = _activations(problem), 2
    if op == "wgrad":
        elements, copies = elements + math.prod(problem.weight_shape), 3
    share = problem.dtype.itemsize / 4 / max(1, torch.get_num_threads())
    parts = problem.batch // images(problem, op)
    return copies * parts * _CALL_SECONDS + elements * share * _ELEMENT_SECONDS
