"""Follows channels through the graphs of a model, and finds which layers must have theirs in one order."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from .channels_functions import Functions
from .channels_layers import Layers
from .channels_maps import Foreign, Number, UnknownError, maps_in
from .channels_trace import Traced


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
        tensor = self._tensors[str(node.target)]
        for module in self._holders.get(id(tensor), ()):
            self.spoil(module, f"{node.target} is used apart from its layer")
        if isinstance(tensor, Tensor) and tensor.numel() == 1:
            return Number(rank=tensor.dim())
        return Foreign(f"combined with {node.target}", node)
