"""The convolutions of a model: where each is, and why some cannot be replaced."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Union

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ..channels.trace import has_hook
from ..checks import SUPPORTED_DTYPES
from ..holders import modules_held
from ..modules import (
    SymmetricConv1d,
    SymmetricConv2d,
    SymmetricConv3d,
    SymmetricConvTranspose1d,
    SymmetricConvTranspose2d,
    SymmetricConvTranspose3d,
    _Symmetric,
)

TIED: dict[type[_ConvNd], type[_Symmetric[Any]]] = {
    nn.Conv1d: SymmetricConv1d,
    nn.Conv2d: SymmetricConv2d,
    nn.Conv3d: SymmetricConv3d,
    nn.ConvTranspose1d: SymmetricConvTranspose1d,
    nn.ConvTranspose2d: SymmetricConvTranspose2d,
    nn.ConvTranspose3d: SymmetricConvTranspose3d,
}
"""The tied class of each of torch's."""

_OF_MODULES = frozenset(vars(nn.Module()))

Skip = Union[Iterable[str], Callable[[str, nn.Module], bool]]


@dataclass(frozen=True, eq=False)
class Site:
    """One convolution of a model, under its first name. `reason` is why it is left alone; None where it can be tied."""

    name: str
    conv: nn.Module
    reason: str | None


def find_sites(model: nn.Module, min_channels: int, skip: Skip) -> list[Site]:
    """Every convolution of `model` in the order of its modules, each once.

    Raises:
        ValueError: there is none; or `skip` has a pattern that no convolution's name fits.
    """
    found = [(name, module) for name, module in model.named_modules() if _is_convolution(module)]
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has no convolutions (nn.Conv1d/2d/3d, nn.ConvTranspose1d/2d/3d)"
        )
    skips = _read_skip(skip, [name for name, _ in found])
    elsewhere = {**dict(_parameters_held(model)), **dict(_bound_elsewhere(model))}
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    sites = []
    for name, module in found:
        reason = "skip names it" if skips(name, module) else elsewhere.get(module)
        reason = reason or _why_not(module, min_channels) or _shares(module, uses)
        sites.append(Site(name, module, reason))
    return sites


def _is_convolution(module: nn.Module) -> bool:
    """Quantised and scripted convolutions are no subclasses of torch's ordinary ones."""
    quantised = type(module).__module__.startswith("torch.ao.nn.quantized")
    if isinstance(module, torch.jit.ScriptModule):
        return "Conv" in str(module.original_name)
    return isinstance(module, _ConvNd) or (quantised and "Conv" in type(module).__name__)


def _read_skip(skip: Skip, names: list[str]) -> Callable[[str, nn.Module], bool]:
    if callable(skip):
        return skip
    wrong = TypeError(f"skip={skip!r} must be names such as 'features.0' or 'head.*', or a function")
    if not isinstance(skip, Iterable):
        raise wrong
    patterns = [skip] if isinstance(skip, str) else list(skip)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise wrong
        if not any(_fits(name, pattern) for name in names):
            raise ValueError(
                f"skip has {pattern!r}, which no convolution is called; there are {', '.join(names[:8])}"
                + (", ..." if len(names) > 8 else "")
            )
    return lambda name, _: any(_fits(name, pattern) for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    """Is it this layer, or one inside of a module that is called so?"""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _bound_elsewhere(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules that more than submodules of ordinary modules lead to, and what does; it would go on calling them."""
    for path, module in modules_held(model):
        yield module, f"more than a submodule: {path} holds it"
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    for name, module in model.named_modules():
        if isinstance(module, compiled):
            yield (
                module._orig_mod,
                f"torch.compile made {name or 'the model'} of it; convert before compiling",
            )
        elif isinstance(module, torch.jit.ScriptModule):
            for child in module.modules():
                yield child, "TorchScript; convert before scripting"
        elif type(module).__module__.startswith("torch.ao.nn.intrinsic"):
            for child in module.children():
                yield child, f"fused into {type(module).__name__}; convert before fusing"


def _parameters_held(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules with parameters that lists and other containers in attributes hold as well, and which do."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(module)
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _OF_MODULES:
                where = f"{name}.{key}".lstrip(".")
                for tensor in _tensors_in(value):
                    for holder in holders.get(id(tensor), ()):
                        yield holder, f"more than a parameter of its own: {where} holds it"


def _tensors_in(value: object, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, set, dict)) and depth < 4:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item, depth + 1)


def _why_not(module: nn.Module, min_channels: int) -> str | None:
    """What the layer itself says against a tie."""
    if isinstance(module, _Symmetric):
        return "a layer of this package already"
    if not isinstance(module, _ConvNd) or type(module).__module__.startswith("torch.ao."):
        return "quantised; convert before quantising"
    if isinstance(module, LazyModuleMixin):
        return "lazy, its sizes are not known yet; call the model once first"
    computed = _is_computed(module)
    if computed:
        return computed
    if type(module) not in TIED or "forward" in vars(module) or "_conv_forward" in vars(module):
        return f"{type(module).__qualname__} has a forward or attributes of its own"
    if getattr(module, "qconfig", None) is not None:
        return "prepared for quantisation; convert before that"
    if module.weight.dtype not in SUPPORTED_DTYPES:
        return f"{str(module.weight.dtype)[6:]} filters cannot be tied"
    for name, parameter in module._parameters.items():
        if parameter is not None and has_hook(parameter):
            return f"a hook on its {name} sees gradients; remove it first"
    if max(module.kernel_size) == 1:
        return "one tap: nothing to mirror"
    if min(module.in_channels, module.out_channels) < min_channels:
        return f"fewer channels than min_channels={min_channels}"
    return None


def _is_computed(module: nn.Module) -> str | None:
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"{names} is parametrized; parametrize.remove_parametrizations first"
    if "weight" not in module._parameters or ("bias" not in module._parameters and hasattr(module, "bias")):
        return (
            "its weight is computed by a hook (weight_norm, spectral_norm, pruning); make it permanent first"
        )
    return None


def _shares(module: nn.Module, uses: Counter[int]) -> str | None:
    for name, parameter in module._parameters.items():
        if parameter is not None and uses[id(parameter)] > 1:
            return f"its {name} is also a parameter of another module"
    return None
