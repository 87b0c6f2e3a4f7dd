"""Running a plan on tensors: layouts that the kernels read well, working memory, launches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...activation import ACTIVATIONS
from ...problem import Problem, as_result
from ...settings import tf32_allowed
from . import launch
from .geometry import geometry, pixels_view, weight_view
from .launch import Launch, Options, Plan


def precision() -> str:
    """How float32 is multiplied: as torch multiplies it in convolutions."""
    return "tf32" if tf32_allowed() else "ieee"


@lru_cache(maxsize=16)
def architecture(device: torch.device) -> str:
    """The column of the tables for a device; the nearest one that is not newer."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_80" if major < 9 else "sm_90" if major < 10 else "sm_100"


@lru_cache(maxsize=16)
def device_name(device: torch.device) -> str:
    """Under which tiles for a device may have been measured."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def options_for(tensor: Tensor, **more: Any) -> Options:
    """The options of a plan for tensors on the device of `tensor`."""
    where = tensor.device
    return Options(arch=architecture(where), device=device_name(where), precision=precision(), **more)


def pixels(tensor: Tensor, channels: int) -> Tensor:
    """(N, C, D, H, W) as the kernels read it: copied if there are `channels` or more in a group, not innermost."""
    view = pixels_view(tensor)
    if view.stride(1) != 1 and launch.innermost(channels):
        view = view.movedim(1, -1).contiguous().movedim(-1, 1)
    return view


def packed_weight(problem: Problem, op: str, weight: Tensor) -> Tensor:
    """(G, U, C, D, H, W) with the contraction, or for 2-byte types the channels, innermost."""
    view, inner = weight_view(weight, problem), 1 if launch.rows_innermost(problem, op) else 2
    if view.stride(inner) == 1:
        return view
    return view.movedim(inner, -1).contiguous().movedim(-1, inner)


def result_like(problem: Problem, op: str, like: Tensor, channels: int) -> Tensor:
    """A tensor of the shape of the result, in the layout in which the kernels write it."""
    result = problem.empty_result(op, like)
    if pixels_view(result).stride(1) == 1 or not launch.innermost(channels):
        return result
    shape = problem.result_shape(op)
    return torch.empty((shape[0], *shape[2:], shape[1]), dtype=like.dtype, device=like.device).movedim(-1, 1)


def finish(problem: Problem, result: Tensor) -> Tensor:
    """The result in the memory format of the problem."""
    return as_result(result, problem.channels_last)


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


def fprop(
    problem: Problem,
    algorithm: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    **options: Any,
) -> Tensor:
    """Output of the layer, with the bias added and the activation applied before the one rounding.

    Other `options` are those of a plan that ask for tiles; the gradients have them too.
    """
    g = geometry(problem)
    result = result_like(problem, "fprop", input, g.filters)
    w = weight_view(weight, problem)
    if algorithm == "direct":
        w = packed_weight(problem, "fprop", weight)
    tensors = {"x": pixels(input, g.channels), "w": w, "y": pixels_view(result)}
    if bias is not None:
        tensors["bias"] = bias.contiguous()
    number = 0 if activation is None else 1 + list(ACTIVATIONS).index(activation)
    _run(problem, "fprop", algorithm, tensors, activation=number, bias=bias is not None, **options)
    return finish(problem, result)


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Gradient of the layer's input."""
    g = geometry(problem)
    result = result_like(problem, "dgrad", weight, g.channels)
    w = packed_weight(problem, "dgrad", weight)
    tensors = {"x": pixels_view(result), "w": w, "y": pixels(grad_output, g.filters)}
    _run(problem, "dgrad", algorithm, tensors, **options)
    return finish(problem, result)


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor, **options: Any) -> Tensor:
    """Gradient of the reduced weight; bitwise repeatable."""
    g = geometry(problem)
    result = problem.empty_result("wgrad", input)
    tensors = {
        "x": pixels(input, g.channels),
        "w": weight_view(result, problem),
        "y": pixels(grad_output, g.filters),
    }
    _run(problem, "wgrad", algorithm, tensors, **options)
    return finish(problem, result)


def _run(problem: Problem, op: str, algorithm: str, tensors: dict[str, Tensor], **options: Any) -> None:
    layout = {name: tensors[name].stride() for name in ("x", "w", "y")}
    execute(launch.plan(problem, op, algorithm, layout, options_for(tensors["x"], **options)), tensors)
