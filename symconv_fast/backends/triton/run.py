"""Running the kernels on tensors: layouts that they read well, plans that are kept, working memory, launches.

A call that was seen before plans nothing: tensors of the same strides on the same device find their plan.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...activation import ACTIVATIONS
from ...problem import OPERANDS, Problem, as_result
from ...settings import tf32_allowed
from ...sides import inverse
from .. import gpu_cost
from . import launch
from .geometry import geometry, pixels_view, weight_view
from .launch import Launch, Options, Plan
from .letters import letters

_MAX_PLANS = 64  # of one problem: strides, devices, switches


def architecture(device: torch.device) -> str:
    """The column of the tables for a device; the nearest one that is not newer."""
    return gpu_cost.architecture(device.index) if device.type == "cuda" else "interpreter"


@lru_cache(maxsize=16)
def device_name(device: torch.device) -> str:
    """Under which tiles for a device may have been measured."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def options_for(device: torch.device, **more: Any) -> Options:
    """The options of a plan for tensors on a device."""
    arch, name = architecture(device), device_name(device)
    return Options(arch=arch, device=name, precision=gpu_cost.precision(), **more)


# --- calls -----------------------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """Everything about a call but the tensors.

    `first` and `second` lay an argument out as the kernels read it; None where it is so already. `restore` takes the
    channels of the result back to their places. `rearrange` says that the kernels write the result in another layout
    than that of the problem.
    """

    first: Callable[[Tensor], Tensor] | None
    second: Callable[[Tensor], Tensor] | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    restore: Callable[[Tensor], Tensor] | None
    rearrange: bool
    plan: Plan


@lru_cache(maxsize=4096)
def bind(
    problem: Problem, op: str, algorithm: str, activation: str | None = None, **tiles: Any
) -> Callable[..., Tensor]:
    """The function of the tensors of a pass: (input, weight, bias) for fprop, two tensors else.

    `tiles` are the options of a plan that ask for tiles.
    """
    return Call(problem, op, algorithm, activation, tiles)


class Call:
    """One pass of a problem by one algorithm, with a plan for each kind of tensors that it met."""

    def __init__(
        self, problem: Problem, op: str, algorithm: str, activation: str | None, tiles: dict[str, Any]
    ) -> None:
        self._problem, self._op, self._algorithm = problem, op, algorithm
        self._activation = 0 if activation is None else 1 + list(ACTIVATIONS).index(activation)
        self._tiles = tiles
        self._names = OPERANDS[op]
        self._rounded = problem.dtype == torch.float32
        self._bound: dict[Any, Bound] = {}

    def __call__(self, first: Tensor, second: Tensor, bias: Tensor | None = None) -> Tensor:
        """The result, in the memory format of the problem; bitwise repeatable."""
        rounded = self._rounded and tf32_allowed()
        key = (first.stride(), second.stride(), first.device, bias is not None, rounded)
        bound = self._bound.get(key)
        if bound is None:
            if len(self._bound) >= _MAX_PLANS:
                self._bound.clear()
            bound = self._bound[key] = self._bind(first, second, bias is not None)
        if bound.first is not None:
            first = bound.first(first)
        if bound.second is not None:
            second = bound.second(second)
        result = torch.empty_strided(bound.shape, bound.strides, dtype=first.dtype, device=first.device)
        tensors = dict(zip(self._names, (first, second, result)))
        if bias is not None:
            tensors["bias"] = bias.contiguous()
        execute(bound.plan, tensors)
        if bound.restore is not None:
            result = bound.restore(result)
        return as_result(result, self._problem.channels_last) if bound.rearrange or bound.restore else result

    def _bind(self, first: Tensor, second: Tensor, bias: bool) -> Bound:
        problem, op = self._problem, self._op
        one, two = (self._layout(name, tensor) for name, tensor in zip(self._names, (first, second)))
        result = self._result(first)
        arranged = (one(first) if one else first, two(second) if two else second, result)
        strides = {name: self._view(name, tensor).stride() for name, tensor in zip(self._names, arranged)}
        options = options_for(first.device, activation=self._activation, bias=bias, **self._tiles)
        return Bound(
            first=one,
            second=two,
            shape=tuple(result.shape),
            strides=result.stride(),
            restore=self._restore(first.device),
            rearrange=result.stride() != problem.empty_result(op, result).stride(),
            plan=launch.plan(problem, op, self._algorithm, {n: strides[n] for n in "xwy"}, options),
        )

    def _view(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor with the axes that kernels know; a packed weight has them."""
        if name != "w":
            return pixels_view(tensor)
        return tensor if tensor.dim() == 6 else weight_view(tensor, self._problem)

    def _layout(self, name: str, tensor: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What lays an argument out as the kernels read it, or None where it is so."""
        problem, op, g = self._problem, self._op, geometry(self._problem)
        places = self._places(name)
        if name != "w":
            channels = g.channels if name == "x" else g.filters
            if places:
                index = torch.tensor(places, device=tensor.device)
                return partial(_channels_at, index, launch.innermost(channels))
            return _pixels(tensor, channels)
        if places:
            return partial(
                torch.index_select, dim=self._dim(name), index=torch.tensor(places, device=tensor.device)
            )
        if launch.folds_weight(problem, op, self._algorithm):
            return None
        axis = 1 if launch.rows_innermost(problem, op) else 2
        packed = weight_view(tensor, problem).stride(axis) == 1
        return None if packed else partial(_packed_weight, problem, axis)

    def _places(self, name: str) -> tuple[int, ...]:
        """Where a tensor has the channels that the kernels take for the first, second, ...; empty where they are so."""
        problem, order = self._problem, letters(self._problem).order
        if not order or name == "y" or (name == "w" and not geometry(problem).both):
            return ()
        if name == "w" and not problem.transposed:  # whose channels are those of a group
            return order
        return tuple(group * len(order) + c for group in range(problem.groups) for c in order)

    def _dim(self, name: str) -> int:
        """Along which a tensor has the input channels."""
        return 0 if name == "w" and self._problem.transposed else 1

    def _result(self, like: Tensor) -> Tensor:
        """A result without memory, in the layout in which the kernels write it."""
        problem, op, g = self._problem, self._op, geometry(self._problem)
        nothing = torch.empty(0, dtype=like.dtype, device="meta")
        result = problem.empty_result(op, nothing)
        channels = {"fprop": g.filters, "dgrad": g.channels, "wgrad": 0}[op]
        return result if _pixels(result, channels) is None else _channels_innermost(result)

    def _restore(self, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """What takes the channels of a result back to their places, or None where they are there."""
        name = self._names[2]
        places = self._places(name)
        if not places:
            return None
        index = torch.tensor(inverse(places), device=device)
        return partial(torch.index_select, dim=self._dim(name), index=index)


def _pixels(tensor: Tensor, channels: int) -> Callable[[Tensor], Tensor] | None:
    """What lays (N, C, *spatial) out: its channels must be innermost if there are `channels` or more in a group."""
    return _channels_innermost if tensor.stride(1) != 1 and launch.innermost(channels) else None


def _channels_innermost(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _channels_at(index: Tensor, innermost: bool, tensor: Tensor) -> Tensor:
    """The channels of (N, C, *spatial) in the order of an index, innermost or not, in one copy."""
    if not innermost:
        return tensor.index_select(1, index)
    return tensor.movedim(1, -1).index_select(-1, index).movedim(-1, 1)


def _packed_weight(problem: Problem, axis: int, weight: Tensor) -> Tensor:
    """The reduced weight with axis 1 or 2 of (G, U, C, D, H, W) innermost: the contraction, in 2 bytes the channels."""
    view = weight_view(weight, problem)
    return view.movedim(axis, -1).contiguous().movedim(-1, axis)


# --- launches --------------------------------------------------------------------------------------------------------


def execute(plan: Plan, tensors: dict[str, Tensor]) -> None:
    """Allocate the working memory of a plan and launch its kernels in order, on the device of the tensors."""
    device = next(iter(tensors.values())).device
    for buffer in plan.buffers:
        tensors[buffer.name] = torch.empty(buffer.elements, dtype=buffer.dtype, device=device)
    with _current(device):
        for step in plan.launches:
            _start(step, tensors)


def _current(device: torch.device) -> AbstractContextManager[None]:
    """Makes a GPU the current one for a while: that is where Triton launches, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _start(step: Launch, tensors: dict[str, Tensor]) -> None:
    arguments = {name: tensors[tensor] for name, (tensor, _) in step.pointers.items()}
    step.function[(step.grid,)](
        **arguments, **step.scalars, **step.constants, num_warps=step.warps, num_stages=step.stages
    )
