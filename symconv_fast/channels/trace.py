"""Graphs of a model for `channels`: traced in training and in eval mode, with nothing of the model changed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.lazy import LazyModuleMixin

from ..modules import _Symmetric

_WRAPPERS = frozenset(
    {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "OptimizedModule"}
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OWN = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
"""Parameters and buffers of the layers that are followed."""


class CannotTraceError(Exception):
    """Why torch.fx gives no graph of a model."""


@dataclass(frozen=True)
class Traced:
    """One graph; the tensors that it reads as attributes; (where, node) of what its run leaves in the model."""

    graph: fx.Graph
    tensors: dict[str, Any]
    kept: list[tuple[str, fx.Node]]


def seen_by_hook(value: Any, name: str) -> Any:
    """Stands in a graph for what a hook on the module `name` sees, and may change."""
    return value


def is_hooked(module: nn.Module) -> bool:
    """Has it hooks of its own that see inputs, outputs or their gradients?"""
    return any(not is_of_torch(hook) for kind in _HOOKS for hook in getattr(module, kind).values())


def is_of_torch(hook: object) -> bool:
    """Is this what torch's pruning and older normalisations have in place of a hook? It computes a weight."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def why_spoiled(module: nn.Module, is_layer: bool) -> str | None:
    """Why the parameters of a layer cannot be permuted, whatever it is used for.

    Other than in a layer of torch (`is_layer`), whatever else a subclass has is seen where its forward uses it.
    """
    if isinstance(module, LazyModuleMixin):
        return "not initialised yet"
    if module._modules.get("parametrizations") is not None:
        return "parametrized"
    if any(is_of_torch(hook) for hook in module._forward_pre_hooks.values()):
        return "pruned or normalised by a hook"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if name not in _OWN and is_layer:
            return f"with an attribute {name} that such a layer does not have"
        if tensor is not None and (
            tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None)
        ):
            return f"with a hook on its {name}"
    if module._modules and is_layer:
        return f"with a submodule {next(iter(module._modules))}"
    return None


class _Tracer(fx.Tracer):
    """Layers of torch, and subclasses that compute the same, are nodes; hooks are not run, but leave a node each."""

    proxy_buffer_attributes = True  # in-place updates of buffers are recorded instead of done

    def __init__(self, is_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._is_layer = is_layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whatever torch has, and what `channels` knows."""
        return self._is_layer(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Around a module with hooks, nodes that say so."""
        if not is_hooked(m):
            return super().call_module(m, m.forward, args, kwargs)
        name = self.path_of_module(m)

        def see(value: Any) -> Any:
            if isinstance(value, fx.Proxy):
                return self.create_proxy("call_function", seen_by_hook, (value, name), {})
            if value is not None and not isinstance(
                value, (bool, int, float, str, torch.dtype, torch.device)
            ):
                raise CannotTraceError(f"a hook on {name} sees a {type(value).__name__}")
            return value

        arguments, options = map_aggregate(tuple(args), see), map_aggregate(dict(kwargs), see)
        return map_aggregate(super().call_module(m, m.forward, arguments, options), see)


def trace(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> list[Traced]:
    """The graphs of a model in training mode, in eval mode, and in its own where that is a mixture.

    Raises:
        CannotTraceError: there is none; the message is one sentence.
    """
    for name, module in model.named_modules():
        kinds = {
            cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch.")
        } & _WRAPPERS
        if kinds or isinstance(module, torch.jit.ScriptModule):
            kind = min(kinds, default="a ScriptModule")
            raise CannotTraceError(f"{name or 'the model'} is {kind}: take the module that it was made from")
    replaced = type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule)
    if replaced or "forward" in vars(model):
        raise CannotTraceError(
            f"{type(model).__name__} does more when it is called than the forward of its class"
        )
    modes = {module.training for module in model.modules()}
    return [_trace(model, is_layer, mode) for mode in (True, False, *([None] if len(modes) > 1 else []))]


def _trace(model: nn.Module, is_layer: Callable[[nn.Module], bool], training: bool | None) -> Traced:
    with _unchanged(model):
        for module in model.modules():
            if training is not None:
                module.training = training
        try:
            graph = _Tracer(is_layer).trace(model)
        except CannotTraceError:
            raise
        except Exception as error:  # whatever the model's own code does with a Proxy
            first = (str(error).strip().splitlines() or [""])[0]
            raise CannotTraceError(
                f"torch.fx cannot trace {type(model).__name__}: {type(error).__name__}: {first}"
            ) from error
        targets = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        return Traced(graph, {target: _attribute(model, target) for target in targets}, list(_kept(model)))


def _attribute(model: nn.Module, path: str) -> Any:
    value: Any = model
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _kept(model: nn.Module) -> Iterator[tuple[str, fx.Node]]:
    """What the run of `forward` stored in attributes, and code outside of it can read."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found: list[fx.Node] = []
            _find_proxies(value, found)
            yield from ((f"{name}.{key}".lstrip("."), node) for node in found)


def _find_proxies(value: Any, found: list[fx.Node], depth: int = 0) -> None:
    if isinstance(value, fx.Proxy):
        found.append(value.node)
    elif isinstance(value, (list, tuple, set, deque, dict)) and depth < 4:
        for item in value.values() if isinstance(value, dict) else value:
            _find_proxies(item, found, depth + 1)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Attributes of all modules, modes and random numbers are afterwards as they were."""
    before: list[tuple[Any, Any]] = [(vars(module), dict(vars(module))) for module in model.modules()]
    for _, attributes in list(before):
        before += [(v, v.copy()) for v in attributes.values() if isinstance(v, (list, dict, set, deque))]
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        for now, then in before:
            _restore(now, then)


def _restore(now: Any, then: Any) -> None:
    """Give a container the items that its copy has."""
    pairs = zip(now.items(), then.items()) if isinstance(now, dict) else zip(zip(now), zip(then))
    if len(now) == len(then) and all(a is b for one, other in pairs for a, b in zip(one, other)):
        return
    now.clear()
    (now.extend if isinstance(now, (list, deque)) else now.update)(then)


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Does it compute what `cls`, a layer of torch that it is or derives from, computes?"""
    if isinstance(module, _Symmetric):
        return module._has_plain_forward()
    names = ("forward", "_conv_forward") if hasattr(cls, "_conv_forward") else ("forward",)
    return all(getattr(type(module), n) is getattr(cls, n) and n not in vars(module) for n in names)


def shared_tensors(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that hold a parameter or buffer which another one holds as well, each with the reason in words."""
    holders: dict[object, list[tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                holders.setdefault(_identity(tensor), []).append((module, f"{path}.{name}".lstrip(".")))
    return {
        module: f"{places[0][1]} is {places[1][1]} as well"
        for places in holders.values()
        if len(places) > 1
        for module, _ in places
    }


def _identity(tensor: Tensor) -> object:
    """Equal for tensors that begin at the same place in memory."""
    try:
        address = tensor.data_ptr() if tensor.numel() else 0
    except (RuntimeError, ValueError, NotImplementedError):  # it has no memory: lazy, fake, wrapped
        address = 0
    return ("memory", tensor.device, address) if address else id(tensor)
