"""What a layer takes over from the one that it replaces: hooks, and what users and tools set on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
)
"""What nn.Module keeps of hooks around forward and backward."""

_KNOWN = frozenset(
    {"weight", "bias", "symmetry", "ties", "share_bias", "forward", "_conv_forward", "_compiled_call_impl"}
    | vars(nn.Conv2d(1, 1, 1, device="meta")).keys()
)
"""Attributes that every convolution has a value of its own for, or has no use for."""


def computes_weight(hook: object) -> bool:
    """Is this what torch's pruning and older normalisations have in place of a hook?"""
    return type(hook).__module__.startswith("torch.nn.utils.")


def give(new: nn.Module, layer: nn.Module, pick: Callable[[Any], Any] = lambda value: value) -> None:
    """Everything of `layer` that is not the convolution itself, each part as `pick` returns it.

    By default the very objects are taken: what the handle of a hook removes it from is a dict of the layer's.
    """
    for name in _HOOKS:
        setattr(new, name, pick(getattr(layer, name)))
    for key in [key for key, hook in new._forward_pre_hooks.items() if computes_weight(hook)]:
        del new._forward_pre_hooks[key]
    for name, value in vars(layer).items():
        if name not in _KNOWN:
            new.__dict__.setdefault(name, pick(value))
    for kind in ("_modules", "_buffers", "_parameters"):
        for name, value in getattr(layer, kind).items():
            own = name in ("weight", "bias", "parametrizations") or _is_source(layer, name)
            if not own and not hasattr(new, name):
                getattr(new, kind)[name] = pick(value)
                new._non_persistent_buffers_set.update(layer._non_persistent_buffers_set & {name})


def _is_source(layer: nn.Module, name: str) -> bool:
    """Is it of torch's pruning or older normalisations, such as `weight_orig` where `weight` is computed?"""
    return any(computed in vars(layer) and name.startswith(f"{computed}_") for computed in ("weight", "bias"))
