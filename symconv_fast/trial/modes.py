"""What a call may do now beside computing its result: nothing, prove kernels, or also time candidates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import settings
from ..problem import Problem
from . import rates

DEVICES = {"cuda"}
"""Types of devices on which kernels are proven before they are used. (On a CPU they are as they were tested.)"""

NOTHING, PROVE, TIME = range(3)

LOCK = threading.RLock()
"""Held by the one thread that proves or times; a smaller problem inside of a candidate may do so in the same thread."""


class _Paused(threading.local):
    count = 0


_paused = _Paused()


@contextmanager
def paused() -> Iterator[None]:
    """Nothing is proven or timed in this thread: inside torch.vmap."""
    _paused.count += 1
    try:
        yield
    finally:
        _paused.count -= 1


def proven(kind: str) -> bool:
    """Must kernels be proven on this type of device, and is there one?"""
    return kind in DEVICES and (kind != "cuda" or torch.cuda.is_available())


def is_host(kind: str) -> bool:
    """Is this a CPU, whose kernels are timed where estimates are guesses, but used without proof?"""
    return kind == "cpu" and not proven(kind)


def tried(problem: Problem) -> bool:
    """Are there trials of such problems, here and now?

    On a CPU where candidates are timed: what needs no time there needs no trial either.
    """
    return proven(problem.device) or (is_host(problem.device) and _timed_on_host(problem.dtype))


def _timed_on_host(dtype: torch.dtype) -> bool:
    level = settings.benchmark()
    wanted = level is True or (level == "auto" and rates.why_none(dtype) is not None)
    return wanted and not torch.are_deterministic_algorithms_enabled()


def allowed(device: torch.device, tensors: tuple[Tensor | None, ...]) -> int:
    """NOTHING, PROVE or TIME.

    Nothing where a call is not simply run on its tensors: while compiling, under transforms and dispatch modes, with
    subclasses, and while a CUDA graph is captured, which may not wait for the device. With deterministic algorithms
    kernels are proven, which comes out the same each time, and nothing is timed.
    """
    plain = all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    transformed = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0
    if _paused.count or transformed or not plain or torch.compiler.is_compiling() or capturing(device):
        return NOTHING
    return PROVE if torch.are_deterministic_algorithms_enabled() else TIME


def capturing(device: torch.device) -> bool:
    """Is the current stream being captured into a CUDA graph?"""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
