"""Whole models from tied layers to ordinary ones: `to_torch`, for tools that know no ties."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

import torch
from torch import nn

from ..holders import modules_held
from ..modules import _Conv, _Symmetric, still
from .carry import computes_weight, give
from .reordered import join_orders, replace_modules

Model = TypeVar("Model", bound=nn.Module)


@overload
def to_torch(model: _Symmetric[_Conv], *, inplace: bool = False) -> _Conv: ...
@overload
def to_torch(model: Model, *, inplace: bool = False) -> Model: ...
def to_torch(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """`model` with each tied layer replaced by torch's layer with the expanded filters (`to_conv`): the same outputs.

    For tools that know no ties: quantization, fusion with batch norm, TorchScript, and whatever else reads `weight`
    of a convolution. The filters are then ordinary parameters: training goes on without ties.

    Training mode, `requires_grad`, dtype, device, hooks around forward and backward, and attributes that were set on a
    layer carry over. A layer that is used in several places is replaced by one layer. Layers that share a parameter
    share it still, where it means the same filters or biases to them. Parametrizations and pruning are made permanent
    in the new weights, with the value that they have in eval mode. Where `convert` put an index on the output of a
    layer, its filters are brought into that order and the index goes.

    Args:
        model: any module, one tied layer included.
        inplace: replace the layers in `model` itself, instead of in a copy. The result must be used in either case: a
            tied layer by itself cannot become another object.

    Returns:
        The copy, or `model`; where `model` is a tied layer, its `to_conv()`.

    Raises:
        TypeError: `model` is no module; or a subclass of a tied layer has a forward of its own, and no `to_conv`; or
            copying the model leaves layers tied. ValueError: `inplace`, and more than submodules leads to a layer:
            a list or a function that an attribute holds, or what torch.compile made of the layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"to_torch needs a torch.nn.Module, got {type(model).__name__}; for example a whole model"
        )
    return join_orders(_replace(model) if inplace else _copy(model))


def _copy(model: nn.Module) -> nn.Module:
    found = [*model.modules(), *(module for _, module in modules_held(model))]
    layers = list(dict.fromkeys(module for module in found if isinstance(module, _Symmetric)))
    sources = set(layers)
    # Whatever `deepcopy` meets of layers and parameters, in submodules, lists or hooks, it takes from here.
    memo: dict[int, Any] = {}
    convs = _convert(layers, lambda parameter: copy.deepcopy(parameter, memo))
    memo.update((id(layer), conv) for layer, conv in zip(layers, convs))
    result = copy.deepcopy(model, memo)
    for layer, conv in zip(layers, convs):
        give(conv, layer, lambda value: copy.deepcopy(value, memo))
    made = {module for conv in convs for module in conv.modules()}
    left = [name for name, m in result.named_modules() if isinstance(m, _Symmetric) and m not in made]
    left += [path for path, module in modules_held(result, found) if module in sources]
    if left:
        raise TypeError(
            f"copying {type(model).__name__} leaves layers tied, at {', '.join(left[:3])}; let __deepcopy__ pass "
            "its memo on and functions take layers as arguments, or use to_torch(model, inplace=True)"
        )
    return result


def _replace(model: nn.Module) -> nn.Module:
    layers = [module for module in model.modules() if isinstance(module, _Symmetric)]
    _refuse_what_else_leads_to(set(layers), model)
    convs = _convert(layers, lambda parameter: parameter)
    replaced: dict[nn.Module | None, nn.Module] = dict(zip(layers, convs))
    replace_modules(model, replaced)
    for layer, conv in zip(layers, convs):
        give(conv, layer)
    return replaced.get(model, model)


def _refuse_what_else_leads_to(layers: set[Any], model: nn.Module) -> None:
    """Raises ValueError: it would go on calling the tied layers, whose parameters are no longer those of the model."""
    held = [path for path, module in modules_held(model) if module in layers]
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    for name, module in model.named_modules():
        if isinstance(module, compiled) and module._orig_mod in layers:
            held.append(f"{name or type(model).__name__} (of torch.compile)")
    if held:
        raise ValueError(
            f"inplace=True cannot replace a tied layer that is more than a submodule: {', '.join(held[:3])} would go "
            "on calling it; use the copy that to_torch(model) returns"
        )


def _convert(layers: list[_Symmetric[Any]], keep: Callable[[Any], Any]) -> list[nn.Module]:
    """`to_conv` of each; one parameter for what layers share; `keep` of one that means the same without ties."""
    shared: dict[Any, nn.Parameter] = {}
    convs = []
    for layer in layers:
        with still(layer):
            _compute_weight(layer)
            conv = layer.to_conv()
        for name in ("weight", "bias"):
            new = conv._parameters.get(name)
            if new is not None:
                conv.register_parameter(name, _share(layer, name, new, shared, keep))
        convs.append(conv)
    return convs


def _share(
    layer: _Symmetric[Any], name: str, new: nn.Parameter, shared: dict[Any, nn.Parameter], keep: Any
) -> nn.Parameter:
    """`new`, or the parameter that stands for the same sources already."""
    cls, source = type(layer), layer._parameters.get(name)
    makers = cls.to_conv, cls.expanded_weight, cls.expanded_bias
    plain = makers == (_Symmetric.to_conv, _Symmetric.expanded_weight, _Symmetric.expanded_bias)
    whole = not layer.share_bias if name == "bias" else layer.ties.holds_filters
    if whole and plain and source is not None:
        return keep(source)
    tie = None if whole else (layer.ties, layer.transposed)
    sources = tuple(id(parameter) for parameter in _sources(layer, name))
    first = shared.setdefault((name, makers, tie, sources), new) if sources else new
    # Two parametrizations of the same originals may differ in what they compute.
    return first if source is not None or first is new or _equal(first, new) else new


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (a.is_meta or torch.equal(a, b))


def _sources(layer: _Symmetric[Any], name: str) -> Iterator[nn.Parameter]:
    """The parameters that a weight or a bias is, or is computed from."""
    if layer._parameters.get(name) is not None:
        yield layer._parameters[name]  # type: ignore[misc]
        return
    parametrizations = layer._modules.get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict) and name in parametrizations:
        yield from parametrizations[name].parameters()
    # Of torch's pruning (`weight_orig`) and older normalisations (`weight_g`, `weight_v`).
    yield from (p for key, p in layer._parameters.items() if key.startswith(f"{name}_") and p is not None)


def _compute_weight(layer: _Symmetric[Any]) -> None:
    """Bring a weight up to date that such hooks compute, as the next call would; eval mode iterates nothing."""
    training, layer.training = layer.training, False
    try:
        for hook in layer._forward_pre_hooks.values():
            if computes_weight(hook):
                hook(layer, ())
    finally:
        layer.training = training
