"""Whole models from tied layers to ordinary ones: `to_torch`, for tools that know no ties."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from .modules import _Symmetric

Model = TypeVar("Model", bound=nn.Module)

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


def to_torch(model: Model, *, inplace: bool = False) -> Model:
    """`model` with each tied layer replaced by torch's layer with the expanded filters (`to_conv`): the same outputs.

    For tools that know no ties: quantization, fusion with batch norm, TorchScript, and whatever else reads `weight`
    of a convolution. The filters are then ordinary parameters: training goes on without ties.

    Training mode, `requires_grad`, dtype, device and hooks around forward and backward carry over. A layer that is used
    in several places is replaced by one layer, and tied layers of equal ties that share a parameter by layers that
    share theirs. Parametrizations and pruning are made permanent in the new weights.

    Args:
        model: any module, one tied layer included.
        inplace: replace the layers in `model` itself, instead of in a copy. The result must be used in either case: a
            tied layer by itself cannot become another object.

    Returns:
        The copy, or `model`; where `model` is a tied layer, its `to_conv()`.

    Raises:
        TypeError: `model` is no module, or a subclass of a tied layer has a forward of its own, and no `to_conv`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"to_torch needs a torch.nn.Module, got {type(model).__name__}; for example a whole model"
        )
    layers = [module for module in model.modules() if isinstance(module, _Symmetric)]
    convs = _convert(layers)
    if not inplace:
        # Whatever `deepcopy` meets of the layers, in submodules, lists or hooks, it takes from here.
        memo: dict[int, Any] = {id(layer): conv for layer, conv in zip(layers, convs)}
        result = copy.deepcopy(model, memo)
        for layer, conv in zip(layers, convs):
            _give_hooks(conv, {name: copy.deepcopy(getattr(layer, name), memo) for name in _HOOKS})
        return result
    replaced = dict(zip(layers, convs))
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
    for layer, conv in replaced.items():
        _give_hooks(conv, {name: copy.copy(getattr(layer, name)) for name in _HOOKS})
    return replaced.get(model, model)  # type: ignore[call-overload]


def _convert(layers: list[_Symmetric[Any]]) -> list[nn.Module]:
    """`to_conv` of each; one parameter for each that is shared by layers of the same ties."""
    shared: dict[Any, Any] = {}
    convs = []
    for layer in layers:
        _compute_weight(layer)
        conv = layer.to_conv()
        for name in ("weight", "bias"):
            source = layer._parameters.get(name)
            if source is not None:
                key = id(source), layer.ties, layer.transposed, name, layer.share_bias
                conv.register_parameter(name, shared.setdefault(key, getattr(conv, name)))
        convs.append(conv)
    return convs


def _computes_weight(hook: object) -> bool:
    """Is this what torch's pruning and older normalisations have in place of a hook?"""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _compute_weight(layer: _Symmetric[Any]) -> None:
    """Bring a weight up to date that such hooks compute, as the next call would; eval mode iterates nothing."""
    training, layer.training = layer.training, False
    for hook in layer._forward_pre_hooks.values():
        if _computes_weight(hook):
            hook(layer, ())
    layer.training = training


def _give_hooks(conv: nn.Module, hooks: dict[str, Any]) -> None:
    for name, value in hooks.items():
        setattr(conv, name, value)
    for key in [key for key, hook in conv._forward_pre_hooks.items() if _computes_weight(hook)]:
        del conv._forward_pre_hooks[key]
