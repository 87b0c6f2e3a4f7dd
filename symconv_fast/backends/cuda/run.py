"""Running the kernels on tensors: layouts, plans that are kept, memory for results, errors in words.

A call that was seen before costs some microseconds: tensors of the same strides find their plan, whose native object
has every number of the launch but the addresses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...activation import ACTIVATIONS
from ...problem import OPERANDS, Problem, allocate, as_result, memory_format
from ...settings import tf32_allowed
from ..triton.geometry import pixels_view, weight_view
from . import families, limits, native

ALIGNMENT = 16
"""Bytes that divide the address of every tensor that kernels read or write."""

_MAX_PLANS = 64  # of one problem: strides, devices, switches


class Plan(NamedTuple):
    """Everything about a call but the tensors: the native launch, working memory, result, and what must be copied.

    `first` and `second` lay an argument out as the kernels read it; None where it is so already.
    """

    launch: Callable[..., str]
    workspace: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    rearrange: bool
    first: Callable[[Tensor], Tensor] | None
    second: Callable[[Tensor], Tensor] | None
    bias_is_dense: bool
    device: int
    stream: Callable[[int], int]


@lru_cache(maxsize=4096)
def bind(problem: Problem, op: str, algorithm: str, activation: str | None = None) -> Call:
    """The function of the tensors of a pass: (input, weight, bias) for fprop, two tensors else."""
    return Call(problem, op, algorithm, activation)


class Call:
    """One pass of a problem by one algorithm, with a plan for each kind of tensors that it met."""

    def __init__(self, problem: Problem, op: str, algorithm: str, activation: str | None) -> None:
        self.problem, self.op, self.algorithm, self.activation = problem, op, algorithm, activation
        self.rounded = problem.dtype == torch.float32
        self.plans: dict[Any, Plan] = {}

    def __call__(self, first: Tensor, second: Tensor, bias: Tensor | None = None) -> Tensor:
        """The result, in the memory format of the problem."""
        place = first.get_device()
        with_bias = None if bias is None else bias.stride()
        key = (first.stride(), second.stride(), place, with_bias, self.rounded and tf32_allowed())
        plan = self.plans.get(key)
        if plan is None:
            plan = self._keep(key, first, second, bias)
        if plan.first is not None:
            first = plan.first(first)
        if plan.second is not None:
            second = plan.second(second)
        a, b, c = first.data_ptr(), second.data_ptr(), 0
        if bias is not None:
            bias = bias if plan.bias_is_dense else bias.contiguous()
            c = bias.data_ptr()
        if (a | b | c) % ALIGNMENT:
            return self(_aligned(first), _aligned(second), None if bias is None else _aligned(bias))
        device = first.device
        result = torch.empty_strided(plan.shape, plan.strides, dtype=first.dtype, device=device)
        work = torch.empty(plan.workspace, dtype=torch.uint8, device=device) if plan.workspace else None
        if self.op == "wgrad":  # the kernels take the layer's input first
            a, b = b, a
        if native.STAND_IN is not None:
            _observe((first, second, bias), (result, work))
        written = result.data_ptr(), 0 if work is None else work.data_ptr()
        error = plan.launch(a, b, c, *written, plan.stream(place), plan.device)
        if error:
            raise RuntimeError(self._complaint(error))
        return as_result(result, self.problem.channels_last) if plan.rearrange else result

    def _keep(self, key: Any, first: Tensor, second: Tensor, bias: Tensor | None) -> Plan:
        """A new plan, kept for the next call with the same key."""
        if len(self.plans) >= _MAX_PLANS:
            self.plans.clear()
        plan = self.plans[key] = self._plan(first, second, bias)
        return plan

    def _plan(self, first: Tensor, second: Tensor, bias: Tensor | None) -> Plan:
        problem, op = self.problem, self.op
        device = limits.of(first.get_device() if first.is_cuda else None)
        why = families.refusal(problem, op, self.algorithm, device)
        if why is not None:
            raise RuntimeError(self._complaint(why))
        family = families.planner(self.algorithm, op)
        arrangement = _arrangement(problem, family.LAYOUT)
        one = arrangement.needs(first)
        two = arrangement.needs(second) if op == "wgrad" else None
        arranged = (one(first) if one else first, two(second) if two else second)
        result = arrangement.result(problem, op, first)
        strides = _strides(problem, op, *arranged, result, arrangement.last)
        number = 0 if self.activation is None else 1 + list(ACTIVATIONS).index(self.activation)
        call = families.Request(problem, op, strides, device, number, bias is not None)
        parameters = families.native_class(self.algorithm, op)(**family.parameters(call))
        error = parameters.check()
        if error:
            raise RuntimeError(self._complaint(error))
        on_gpu = first.is_cuda
        return Plan(
            launch=parameters.launch,
            workspace=parameters.workspace(),
            shape=tuple(result.shape),
            strides=result.stride(),
            rearrange=result.stride() != problem.empty_result(op, _meta(first)).stride(),
            first=one,
            second=two,
            bias_is_dense=bias is None or bias.is_contiguous(),
            device=first.get_device() if on_gpu else 0,
            stream=_stream if on_gpu else _no_stream,
        )

    def _complaint(self, error: str) -> str:
        return (
            f"the CUDA kernels of symconv_fast (cuda/{self.algorithm}, {self.op}) cannot run: {error}; "
            f"the problem: {self.problem}; another backend runs it: SYMCONV_FAST_BACKEND=triton, or =reference"
        )


# --- layouts -------------------------------------------------------------------------------------------------------


class _ChannelsLast(NamedTuple):
    """Channels innermost, pixels apart by multiples of 16 bytes and not by 0: copied where it is otherwise.

    (Whether the copy engine takes maps of expanded tensors is not documented.)
    """

    last: bool = True

    def needs(self, tensor: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What lays a tensor out, or None where it is so."""
        size, strides = tensor.element_size(), tensor.stride()
        apart = [s * size for i, s in enumerate(strides) if i != 1 and tensor.shape[i] > 1]
        whole = all(distance and distance % ALIGNMENT == 0 for distance in apart)
        if (strides[1] == 1 or tensor.shape[1] == 1) and whole:
            return None
        dense = tensor.movedim(1, -1).is_contiguous()
        return None if dense else _channels_innermost

    def result(self, problem: Problem, op: str, like: Tensor) -> Tensor:
        """A result without memory: dense; that of the weight in the format of the problem."""
        if op == "wgrad":
            return problem.empty_result(op, _meta(like))
        shape = problem.result_shape(op)
        inner = torch.empty((shape[0], *shape[2:], shape[1]), dtype=like.dtype, device="meta").movedim(-1, 1)
        as_wanted = problem.empty_result(op, inner)
        return as_wanted if as_wanted.movedim(1, -1).is_contiguous() else inner


class _AsItIs(NamedTuple):
    """Dense, and all in one layout: that of the first argument."""

    last: bool
    ndim: int

    def needs(self, tensor: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What lays a tensor out, or None where it is so."""
        fmt = memory_format(self.ndim, self.last)
        if tensor.is_contiguous(memory_format=fmt):
            return None
        return _channels_innermost if self.last else _contiguous

    def result(self, problem: Problem, op: str, like: Tensor) -> Tensor:
        """A result without memory: in that layout too, but for the weight's, in the format of the problem."""
        if op == "wgrad":
            return problem.empty_result(op, _meta(like))
        return allocate(problem.result_shape(op), _meta(like), self.last)


def _arrangement(problem: Problem, layout: str) -> _ChannelsLast | _AsItIs:
    if layout == families.CHANNELS_LAST:
        return _ChannelsLast()
    return _AsItIs(problem.input_channels_last and problem.ndim > 1, problem.ndim)


def copied_bytes(problem: Problem, op: str, layout: str) -> int:
    """Bytes read and written to lay tensors out as a family wants them."""
    x, y = math.prod(problem.input_shape), math.prod(problem.output_shape)
    first, other = (x, y) if op == "fprop" else (y, x)
    if layout == families.CHANNELS_LAST:
        # What the second tensor of wgrad is like is not known: like the first.
        copied = [first, other] if op == "wgrad" else [first]
        sizes = copied if not problem.input_channels_last else []
        if op != "wgrad" and not problem.channels_last:
            sizes = [*sizes, other]
    else:
        sizes = [other] if op != "wgrad" and problem.channels_last != problem.input_channels_last else []
    return 2 * problem.dtype.itemsize * sum(sizes)


def _channels_innermost(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def _aligned(tensor: Tensor) -> Tensor:
    """The same in memory of its own where it does not start at a multiple of 16 bytes."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _meta(tensor: Tensor) -> Tensor:
    """No memory, of the same dtype: what results are described with."""
    return torch.empty(0, dtype=tensor.dtype, device="meta")


def _strides(
    problem: Problem, op: str, first: Tensor, second: Tensor, result: Tensor, last: bool
) -> dict[str, tuple[int, ...]]:
    """The strides that planners are given, by the names of the layer's tensors; `last`: channels are innermost."""
    views = {
        name: weight_view(tensor, problem) if name == "w" else pixels_view(tensor)
        for name, tensor in zip(OPERANDS[op], (first, second, result))
    }
    inner = {"x": 1 if last else -1, "w": 2 if views["w"].stride(2) == 1 else -1, "y": 1 if last else -1}
    return {name: _plain(view, inner[name]) for name, view in views.items()}


def _plain(view: Tensor, inner: int) -> tuple[int, ...]:
    """Strides, where those of axes of size 1, which may be anything, are what a tensor without gaps would have.

    `inner` is the axis that comes before all others there.
    """
    axes = list(range(view.dim()))
    order = [axes.pop(inner), *reversed(axes)]
    strides, dense = list(view.stride()), 1
    for axis in order:
        if view.shape[axis] == 1:
            strides[axis] = dense
        dense = max(dense, strides[axis] * view.shape[axis])
    return tuple(strides)


# --- where a call runs ---------------------------------------------------------------------------------------------


def _no_stream(place: int) -> int:
    return 0


def _current_stream(place: int) -> int:
    return int(torch.cuda.current_stream(place).cuda_stream)


_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)
"""The handle of the current stream of a device."""


def _observe(reads: tuple[Tensor | None, ...], writes: tuple[Tensor | None, ...]) -> None:
    given = [tuple(tensor for tensor in tensors if tensor is not None) for tensors in (reads, writes)]
    native.observe(*given)
