"""Constraints on the channels of a model's layers: which share an order, and which must keep the one they have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from .calls import is_layer
from .maps import Block, Foreign, Maps
from .trace import why_spoiled


class Partition:
    """Sets of channels that must keep one order (a forest of parents), and why some must keep the one they have."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._why: dict[int, str] = {}

    def new(self) -> int:
        """A set of its own."""
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def find(self, item: int) -> int:
        """The one that stands for the whole set."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        """Make two sets one; it is fixed if one of them was."""
        a, b = sorted((self.find(a), self.find(b)))
        if a != b:
            self._parent[b] = a
            why = self._why.pop(b, None)
            if why is not None:
                self._why.setdefault(a, why)

    def fix(self, item: int, why: str) -> None:
        """The set must stay as it is; the first reason is kept."""
        self._why.setdefault(self.find(item), why)

    def why_fixed(self, item: int) -> str | None:
        """The reason, or None."""
        return self._why.get(self.find(item))


class Constraints:
    """What is found out about the layers of one model.

    `produced` has the space of each layer's output, `read` what each layer's inputs or own parameters follow.
    """

    def __init__(self, model: nn.Module) -> None:
        self.partition = Partition()
        self.produced: dict[nn.Module, Block] = {}
        self.read: dict[nn.Module, Maps] = {}
        self._foreign: dict[nn.Module, str] = {}
        self._spoiled: dict[nn.Module, str] = {}
        self._tensors: dict[str, Any] = {}
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self.names = {module: name for name, module in model.named_modules()}
        self._holders: dict[int, list[nn.Module]] = {}
        for module in self.names:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                self._holders.setdefault(id(tensor), []).append(module)

    def fix(self, several: Iterable[Maps], why: str) -> None:
        """All these channels must stay in their order."""
        for maps in several:
            for block in maps.blocks:
                self.partition.fix(block.space, why)

    def unify(self, several: list[Maps], what: str) -> None:
        """All these must have one order, block by block; if that cannot be, each the one it has."""
        first, *rest = several
        for other in rest:
            if other.sizes != first.sizes or other.flat != first.flat:
                self.fix(several, f"{what} of other runs of channels")
                return
        for other in rest:
            for a, b in zip(first.blocks, other.blocks):
                self.partition.join(a.space, b.space)

    def follow(self, module: nn.Module, value: Maps | Foreign) -> None:
        """The input channels or own parameters of `module` follow a value, in each of its calls."""
        if isinstance(value, Foreign):
            self._foreign.setdefault(module, f"{self.names[module]} reads others too: {value.why}")
        elif module in self.read:
            self.unify([self.read[module], value], f"{self.names[module]} is called with values")
        else:
            self.read[module] = value
        if module in self.read and module in self._foreign:
            self.fix([self.read[module]], self._foreign[module])
            if isinstance(value, Maps):
                self.fix([value], self._foreign[module])

    def produce(self, module: nn.Module, size: int) -> Block:
        """The output channels of a layer, the same in each of its calls."""
        if module not in self.produced:
            self.produced[module] = Block(self.partition.new(), size)
        return self.produced[module]

    def finish(self, shared: dict[nn.Module, str]) -> None:
        """Fix what layers have that cannot be permuted, whatever they are used for."""
        for module, why in shared.items():
            self.spoil(module, why)
        for module in (*self.produced, *self.read):
            spoiled = why_spoiled(module, is_layer(module))
            if spoiled:
                self.spoil(module, f"{self.names[module]} is {spoiled}".replace(" is with ", " has "))
        for module, why in self._spoiled.items():
            self.fix(self._touched(module), why)

    def spoil(self, module: nn.Module, why: str) -> None:
        """What this layer produces and reads must stay as it is."""
        self._spoiled.setdefault(module, why)

    def fix_output(self, module: Any, why: str | None) -> None:
        """The order of what it produces stays as it is: `why`, or what else is known of it."""
        size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        known = self._spoiled.get(module, self._foreign.get(module))
        uncalled = f"{self.names[module] or 'the model'} is not called as a layer in forward"
        self.partition.fix(self.produce(module, size).space, why or known or uncalled)

    def _touched(self, module: nn.Module) -> Iterator[Maps]:
        if module in self.produced:
            yield Maps((self.produced[module],), 0)
        if module in self.read:
            yield self.read[module]
