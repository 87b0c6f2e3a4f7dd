"""Follows channels through the graphs of a model, and finds which layers must have theirs in one order."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from .calls import OWN_FUNCTIONS
from .functions import Functions
from .layers import Layers
from .maps import Foreign, Number, UnknownError, maps_in, values_in
from .trace import Traced


class Flow(Layers, Functions):
    """The constraints of a model, gathered graph by graph with `add`, then `finish`."""

    def add(self, traced: Traced) -> None:
        """Follow one graph from its inputs to its outputs."""
        self._tensors = traced.tensors
        known: dict[fx.Node, Any] = {}
        for node in traced.graph.nodes:
            args = fx.node.map_arg(node.args, known.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
            try:
                known[node] = self._evaluate(node, tuple(args), dict(kwargs))
            except UnknownError as unknown:
                why = str(unknown)
                self.fix(maps_in((args, kwargs)), why)
                known[node] = Foreign(unknown.source, node)
        for where, node in traced.kept:
            self.fix(maps_in(known.get(node)), f"kept as {where}")

    def _evaluate(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owned = [v for v in values_in((args, kwargs)) if isinstance(v, Foreign) and v.owner is not None]
        if owned and node.target in OWN_FUNCTIONS:
            result = self.call_own(node, args, kwargs)
            if result is not None:
                return result
        for value in owned:
            self._spoil_owner(value.owner)
        if node.op == "placeholder":
            return Foreign(f"model input {node.target}", node)
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            self.fix(maps_in(args), "model output")
            return None
        if node.op == "call_module":
            return self.call_module(node, args, kwargs)
        return self.call(node, args, kwargs)

    def _attribute(self, node: fx.Node) -> Any:
        """A parameter or buffer: no order of channels changes one element; others may yet be those of a layer."""
        tensor = self._tensors[str(node.target)]
        if isinstance(tensor, Tensor) and tensor.numel() == 1:
            return Number(rank=tensor.dim())
        holders = self._holders.get(id(tensor), [])
        owner = (holders[0], str(node.target).rpartition(".")[2]) if len(holders) == 1 else None
        for module in holders if owner is None else ():
            self._spoil_owner((module, str(node.target)))
        return Foreign(f"combined with {node.target}", node, owner)

    def _spoil_owner(self, owner: Any) -> None:
        module, name = owner
        self.spoil(module, f"{self.names[module]}.{name} is used apart from its layer".lstrip("."))
