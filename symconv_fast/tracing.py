"""What torch.fx records of a tied layer and of the functions: one node, whichever tracer asks.

torch.fx decides by `Tracer.is_leaf_module` what becomes a node, and by default only modules of torch.nn do. Everything
else is run with a `Proxy` for an input, and other tracers (of torchvision, timm, torch.ao, Hugging Face or the user)
have rules of their own. So nothing is registered with any tracer: what is run with a `Proxy` records itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.fx import Proxy

from .both_sides import Asked, InputSymmetry, involutions
from .symmetry import Symmetry
from .ties import Ties

if TYPE_CHECKING:
    from .modules import _Symmetric


def is_traced(input: Any, weight: Any = None) -> bool:
    """Does torch.fx trace, with a `Proxy` for one of these?"""
    return isinstance(input, Proxy) or isinstance(weight, Proxy)


def record_call(function: Callable[..., Tensor], symmetry: Any, *arguments: Any, **options: Any) -> Any:
    """The `Proxy` of a node that calls one of the functions of `symconv_fast.functional`."""
    tracer = next(value.tracer for value in arguments if isinstance(value, Proxy))
    return tracer.create_proxy("call_function", function, arguments, _plain(symmetry) | options)


def record_layer(layer: _Symmetric[Any], input: Any, *arguments: Any) -> Any:
    """The `Proxy` of a node that calls `layer`, or None where its forward must be traced through.

    That is so where calling the layer does more than its `forward`, which is already being traced: in a subclass with
    a `forward` of its own, with forward hooks, and where the layer is what is traced.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    path = "" if hooked or not layer._has_plain_forward() else _path(layer, input)
    if path:
        return input.tracer.create_proxy("call_module", path, (input, *arguments), {})
    for name in ("weight", "bias"):
        if layer._parameters.get(name) is None and getattr(layer, name) is not None:
            raise TypeError(
                f"torch.fx cannot trace {type(layer).__name__} whose {name} is computed by a hook or parametrization: "
                "make that permanent first (prune.remove, parametrize.remove_parametrizations), convert the model "
                "with symconv_fast.to_torch(model), or make the layer a leaf (Tracer.is_leaf_module)"
            )
    return None


def _path(layer: nn.Module, input: Any) -> str:
    """The layer's name in the model that is traced; "" for the model itself and for what is no part of it."""
    try:
        return str(input.tracer.path_of_module(layer))
    except (AttributeError, NameError):
        return ""


def _plain(symmetry: Any) -> dict[str, Any]:
    """The same tie, and that of the input, in types that torch.fx can write into code."""
    if isinstance(symmetry, Asked):
        both = {"symmetry": symmetry.symmetry._spec, "input_symmetry": _plain_input(symmetry.inputs)}
        return both | {"kernel_size": symmetry.kernel}
    if not isinstance(symmetry, Ties):
        return {"symmetry": symmetry._spec if isinstance(symmetry, Symmetry) else symmetry}
    plain: dict[str, Any] = {"symmetry": dict(symmetry.keys)}
    if symmetry.sides:
        plain |= {
            "input_symmetry": _plain_input(symmetry.sides.inputs),
            "kernel_size": symmetry.sides.kernel or None,
        }
    return plain


def _plain_input(inputs: InputSymmetry) -> Any:
    if isinstance(inputs, Symmetry):
        return inputs._spec
    return None if inputs is None else involutions(inputs)
