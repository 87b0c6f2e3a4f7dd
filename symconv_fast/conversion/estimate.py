"""What layers cost: the calls that a model makes of its convolutions, and the dispatch's estimate for each tie."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from ..channels.trace import is_plain
from ..checks import SUPPORTED_DTYPES
from ..explanation import explain
from ..modules import _settings, _Symmetric, still
from ..problem import suggests_channels_last
from ..symmetry import Symmetry
from .sites import TIED


class Call(NamedTuple):
    """One call of a layer in a forward pass: its input, without values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Cost:
    """Of all calls of a layer: multiply-accumulates of one pass, and estimated seconds (forward; training step).

    `ordinary_*` is the same of torch's layer. Seconds are infinite where nothing is known of the device.
    """

    macs: int
    forward: float
    step: float
    ordinary_macs: int
    ordinary_forward: float
    ordinary_step: float

    @property
    def forward_ratio(self) -> float:
        """How many times as fast as torch's layer forward; nan where that is not estimated."""
        return _ratio(self.ordinary_forward, self.forward)

    @property
    def step_ratio(self) -> float:
        """How many times as fast in a training step (three passes); nan where that is not estimated."""
        return _ratio(self.ordinary_step, self.step)

    @property
    def untied(self) -> Cost:
        """That of torch's layer in place of this one."""
        own = (self.ordinary_macs, self.ordinary_forward, self.ordinary_step)
        return Cost(*own, *own)


def _ratio(ordinary: float, tied: float) -> float:
    known = math.isfinite(ordinary) and math.isfinite(tied) and tied > 0
    return ordinary / tied if known else math.nan


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of some costs."""
    columns = list(zip(*(vars(cost).values() for cost in costs)))
    return Cost(*map(sum, columns)) if columns else Cost(0, 0.0, 0.0, 0, 0.0, 0.0)


def record_calls(
    model: nn.Module, example_input: Any, layers: Iterable[nn.Module]
) -> dict[nn.Module, list[Call]]:
    """The calls of `layers` while the model runs once on `example_input`, in eval mode and without gradients.

    Args:
        example_input: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        Whatever the model raises, with a note that says what was run.
    """
    calls: dict[nn.Module, list[Call]] = defaultdict(list)

    def record(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = inputs[0] if inputs else named.get("input")
        if isinstance(x, Tensor):
            calls[module].append(Call(x.shape, x.stride(), x.dtype))

    handles = [
        layer.register_forward_pre_hook(record, with_kwargs=True)
        for layer in layers
        if not isinstance(layer, torch.jit.ScriptModule)
    ]
    modes = {module: module.training for module in model.modules()}
    positional, named = _as_arguments(example_input)
    try:
        model.eval()
        with torch.no_grad():
            model(*positional, **named)
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note("this happened while convert ran the model once on example_input")
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return dict(calls)


def _as_arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, Tensor):
        return (example_input,), {}
    if isinstance(example_input, dict):
        return (), example_input
    sizes = isinstance(example_input, (tuple, list)) and all(isinstance(size, int) for size in example_input)
    if isinstance(example_input, (tuple, list)) and not (sizes and example_input):
        return tuple(example_input), {}
    given = example_input if sizes else type(example_input).__name__
    raise TypeError(
        f"example_input={given} must be a tensor such as torch.zeros(1, 3, 224, 224), a tuple of arguments or a dict "
        "of named ones"
    )


def cost_of(conv: _ConvNd, symmetry: Symmetry | None, calls: Iterable[Call]) -> Cost:
    """Of the layer that `conv` becomes with `symmetry`; of `conv` itself with None. Nothing is allocated."""
    layer = meta_layer(conv, symmetry)
    last = suggests_channels_last(conv.weight)
    found = []
    for call in calls:
        x = torch.empty_strided(call.shape, call.stride, dtype=layer.weight.dtype, device="meta")
        problem = layer.problem(x)
        problem = replace(
            problem,
            dtype=call.dtype,
            device=conv.weight.device.type,
            channels_last=problem.channels_last or last,
        )
        passes = explain(problem).passes
        ordinary = [p.torch_seconds for p in passes]
        seconds = ordinary if symmetry is None else [p.seconds for p in passes]
        found.append(
            Cost(
                problem.macs_folded, seconds[0], sum(seconds), problem.macs_dense, ordinary[0], sum(ordinary)
            )
        )
    return total(found)


def present_cost(conv: nn.Module, calls: Iterable[Call]) -> Cost | None:
    """Of a layer as it is, tied or not; None where it computes something else than its sizes tell."""
    base = next((base for base in type(conv).__mro__ if base in TIED), None)
    lazy = isinstance(conv, (LazyModuleMixin, torch.jit.ScriptModule))
    if base is None or lazy or not isinstance(conv, _ConvNd) or not is_plain(conv, base):
        return None
    with still(conv):
        if conv.weight.dtype not in SUPPORTED_DTYPES:
            return None
        return cost_of(conv, conv.symmetry if isinstance(conv, _Symmetric) else None, calls)


def count_parameters(module: nn.Module) -> int:
    """Values of its parameters; torch's lazy ones have none yet."""
    return sum(0 if nn.parameter.is_lazy(p) else p.numel() for p in module.parameters())


def meta_layer(conv: _ConvNd, symmetry: Symmetry | None) -> _Symmetric[Any]:
    """The tied layer of the sizes of `conv`, without values."""
    cls = next(TIED[base] for base in type(conv).__mro__ if base in TIED)
    settings = _settings(conv) | {"bias": conv.bias is not None}
    return cls(**settings, symmetry=symmetry, device="meta", dtype=conv.weight.dtype)  # type: ignore[call-arg]
