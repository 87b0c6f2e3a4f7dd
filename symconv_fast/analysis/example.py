"""What `equivariance_report` is given, checked: the model, its size or example, the transforms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import ints, is_several
from .arguments import integer
from .measuring import mirror_dim

LETTERS = "hvz"


def check_model(model: object) -> None:
    """Raises TypeError or ValueError for what cannot be measured, with the parameter that is the reason."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"equivariance_report needs a torch.nn.Module, got {type(model).__name__}; for example a whole model"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{name or 'the model'} is TorchScript, whose operations cannot be seen; give the module that it was "
                "made from"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name} is not initialised yet; run the model once, so that lazy layers know their sizes"
            )
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device; give a model with values, for example model.to_empty(...)"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds inf or NaN; give a model with finite parameters and buffers")


def example(model: nn.Module, given: Any, channels: int | None, seed: int) -> tuple[list[Any], int]:
    """The model's arguments, on the CPU, and the number of spatial dims."""
    if isinstance(given, Tensor) or (
        isinstance(given, Sequence) and any(isinstance(value, Tensor) for value in given)
    ):
        inputs = [given] if isinstance(given, Tensor) else list(given)
        first = inputs[0]
        if not isinstance(first, Tensor) or first.dim() not in (3, 4, 5) or 0 in first.shape:
            shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(
                f"the first example input must be a tensor (N, C, *spatial) with 1 to 3 spatial dims, none empty, got "
                f"{shape}; for example torch.randn(1, 3, 224, 224)"
            )
        return inputs, first.dim() - 2
    convs = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    if getattr(given, "ndim", 0) > 1:
        raise TypeError(
            f"input_size of type {type(given).__name__} is neither a size nor a Tensor; torch.as_tensor makes one"
        )
    sizes = ints(given, "input_size")
    if not is_several(given):
        named = (re.search(r"([123])d$", type(module).__name__) for module in model.modules())
        sizes *= next((int(match[1]) for match in named if match), 2)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(f"input_size={given!r} must be 1 to 3 positive ints, such as 224 or (224, 160)")
    if channels is None:
        channels = convs[0].in_channels if convs else 3
    wide = integer(channels, "channels", least=1, most=2**31 - 1)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, wide, *sizes, dtype=torch.float64, generator=random, device="cpu")
    return [x], len(sizes)


def check_values(inputs: Sequence[Any], ndim: int, names: Sequence[str]) -> None:
    """Can the inputs show whether a model is exact?"""
    maps = [x for x in inputs if isinstance(x, Tensor) and x.dim() == ndim + 2]
    for x in maps:
        if x.is_meta:
            raise ValueError(
                "an example input is on the meta device; give one with values, or its size alone"
            )
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("an example input holds inf or NaN; give finite values, or the size alone")
    for t in names:
        dims = range(-ndim, 0) if t == "shift" else (mirror_dim(t),)
        if any(_shows(x, dim, t) for x in maps for dim in dims) or all(
            x.shape[dim] == 1 for x in maps for dim in dims
        ):
            continue
        raise ValueError(
            f"the example input is unchanged by {t!r}, so that it cannot show what a layer makes of that; give random "
            f"values, such as torch.randn{tuple(maps[0].shape)}, or the size alone"
        )


def _shows(x: Tensor, dim: int, transform: str) -> bool:
    return not torch.equal(x, x.roll(1, dim) if transform == "shift" else x.flip(dim))


def transform_names(given: Sequence[str] | None, ndim: int) -> tuple[str, ...]:
    """The transforms asked for; None is all that `ndim` dims have."""
    valid = (*LETTERS[:ndim], "shift")
    if given is None:
        return valid
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"transforms={given!r} must be a sequence, such as {valid}")
    names = tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"transforms={given!r} must be a sequence of names, such as {valid}")
    if not names or len(set(names)) != len(names) or not set(names) <= set(valid):
        raise ValueError(
            f"transforms={given!r} must be some of {', '.join(valid)} for {ndim} spatial dims, each once"
        )
    return names


def device_of(model: nn.Module) -> torch.device:
    """Where a model is measured: its device, or the CPU for one that has no float64."""
    first = next((t for t in (*model.parameters(), *model.buffers())), None)
    device = torch.device("cpu") if first is None else first.device
    return torch.device("cpu") if device.type == "mps" else device


def moved(x: Any, device: torch.device) -> Any:
    """An argument of the model, in float64 if it is floating-point."""
    if not isinstance(x, Tensor):
        return x
    return x.detach().to(device, torch.float64 if x.is_floating_point() else x.dtype)
