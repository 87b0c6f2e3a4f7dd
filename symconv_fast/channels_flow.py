"""Follows channels through the graphs of a model, and finds which layers must have theirs in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from . import channels_maps as maps_
from .channels_calls import (
    FOREIGN_FUNCTIONS,
    FUNCTIONS,
    METHODS,
    POOLING,
    READ_ATTRIBUTES,
    is_arithmetic,
    is_tied,
    kind_of,
    name_of,
)
from .channels_maps import Block, Foreign, Maps, Number, Sizes, Unknown
from .channels_trace import Traced, is_hooked, seen_by_hook, why_spoiled


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


def _values(value: Any) -> Iterator[Any]:
    """All that arguments hold, in tuples, lists, dicts and slices."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _values(item)
    elif isinstance(value, dict):
        yield from _values(list(value.values()))
    elif isinstance(value, slice):
        yield from _values((value.start, value.stop, value.step))
    else:
        yield value


def _maps_in(value: Any) -> list[Maps]:
    return [item for item in _values(value) if isinstance(item, Maps)]


class Flow:
    """Constraints on the channels of a model's layers, gathered graph by graph with `add`, then `finish`.

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
        self._names = {module: name for name, module in model.named_modules()}
        self._holders: dict[int, list[nn.Module]] = {}
        for module in self._names:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                self._holders.setdefault(id(tensor), []).append(module)

    # --- graphs ------------------------------------------------------------------------------------------------

    def add(self, traced: Traced) -> None:
        """Follow one graph from its inputs to its outputs."""
        self._tensors = traced.tensors
        known: dict[fx.Node, Any] = {}
        for node in traced.graph.nodes:
            args = fx.node.map_arg(node.args, known.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
            try:
                known[node] = self._evaluate(node, tuple(args), dict(kwargs))
            except Unknown as unknown:
                why = str(unknown)
                self.fix(_maps_in((args, kwargs)), why)
                known[node] = Foreign(why, node)
        for where, node in traced.kept:
            self.fix(_maps_in(known.get(node)), f"kept as {where}")

    def _evaluate(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "placeholder":
            return Foreign(f"model input {node.target}", node)
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op == "output":
            self.fix(_maps_in(args), "model output")
            return None
        if node.op == "call_module":
            return self._call_module(node, args, kwargs)
        return self._call(node, args, kwargs)

    def _attribute(self, node: fx.Node) -> Any:
        tensor = self._tensors[str(node.target)]
        for module in self._holders.get(id(tensor), ()):
            self.spoil(module, f"{node.target} is used apart from its layer")
        if isinstance(tensor, Tensor) and tensor.numel() == 1:
            return Number()
        return Foreign(f"combined with {node.target}", node)

    def finish(self, shared: dict[nn.Module, str]) -> None:
        """Fix what layers have that cannot be permuted, whatever they are used for."""
        for module, why in shared.items():
            self.spoil(module, why)
        for module in (*self.produced, *self.read):
            spoiled = why_spoiled(module)
            if spoiled:
                self.spoil(module, f"{self._names[module]} is {spoiled}".replace(" is with ", " has "))
        for module, why in self._spoiled.items():
            self.fix(self._touched(module), why)

    def spoil(self, module: nn.Module, why: str) -> None:
        """What this layer produces and reads must stay as it is."""
        self._spoiled.setdefault(module, why)

    def fix_output(self, module: Any, why: str) -> None:
        """The order of what it produces stays as it is."""
        size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        self.partition.fix(self._produce(module, size).space, self._spoiled.get(module, why))

    def _touched(self, module: nn.Module) -> Iterator[Maps]:
        if module in self.produced:
            yield Maps((self.produced[module],), 0)
        if module in self.read:
            yield self.read[module]

    # --- constraints -------------------------------------------------------------------------------------------

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

    def _follow(self, module: nn.Module, value: Maps | Foreign) -> None:
        """The input channels or own parameters of `module` follow a value, in each of its calls."""
        if isinstance(value, Foreign):
            self._foreign.setdefault(module, f"{self._names[module]} reads others too: {value.why}")
        elif module in self.read:
            self.unify([self.read[module], value], f"{self._names[module]} is called with values")
        else:
            self.read[module] = value
        if module in self.read and module in self._foreign:
            self.fix([self.read[module]], self._foreign[module])
            if isinstance(value, Maps):
                self.fix([value], self._foreign[module])

    # --- layers ------------------------------------------------------------------------------------------------

    def _call_module(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self._modules[str(node.target)]
        name, kind = str(node.target), kind_of(module)
        given = args or tuple(kwargs.values())
        value, rest = (given[0], given[1:]) if given else (None, ())
        if kind is None or not isinstance(value, (Maps, Foreign)) or _maps_in((rest, kwargs) if args else rest):
            self._out_of_reach(module)
            raise Unknown(f"{type(module).__name__} {name}")
        what, ndim = kind
        if isinstance(value, Maps) and ndim and (value.ndim != ndim or value.flat):
            wanted = 0 if what == "batch_norm" and ndim == 1 else ndim
            if value.ndim != wanted:
                self.fix([value], f"{type(module).__name__} {name} on other dims")
                value = Foreign(f"{type(module).__name__} {name} on other dims", node)
        return getattr(self, f"_run_{what}")(module, name, value, node)

    def _out_of_reach(self, module: nn.Module) -> None:
        """It is called in a way that is not followed."""
        self.spoil(module, f"{self._names[module]} is called in a way that is not followed")

    def _run_unary(self, module: nn.Module, name: str, value: Any, node: fx.Node) -> Any:
        return value

    def _run_pool(self, module: nn.Module, name: str, value: Any, node: fx.Node) -> Any:
        if getattr(module, "return_indices", False):
            raise Unknown(f"indices of {type(module).__name__} {name}")
        return value

    def _run_resize(self, module: nn.Module, name: str, value: Any, node: fx.Node) -> Any:
        if isinstance(value, Maps) and not value.ndim:
            raise Unknown(f"{type(module).__name__} {name} on other dims")
        return value

    def _run_flatten(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        if isinstance(value, Foreign):
            return value
        return maps_.flatten(value, module.start_dim, module.end_dim)

    def _run_prelu(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        return value if module.num_parameters == 1 else self._own(module, module.num_parameters, value)

    def _run_batch_norm(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        return self._own(module, module.num_features, value)

    def _run_instance_norm(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        return self._own(module, module.num_features, value)

    def _own(self, module: nn.Module, channels: int, value: Any) -> Any:
        """A layer with parameters for each channel."""
        if isinstance(value, Maps) and not (value.batched and _fits(value, channels)):
            self._out_of_reach(module)
            raise Unknown(f"{type(module).__name__} {self._names[module]} of {channels} channels")
        self._follow(module, value)
        return value

    def _produce(self, module: nn.Module, size: int) -> Block:
        if module not in self.produced:
            self.produced[module] = Block(self.partition.new(), size)
        return self.produced[module]

    def _run_linear(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        if isinstance(value, Maps) and (value.ndim or not _fits(value, module.in_features)):
            self.fix([value], f"Linear {name} of {module.in_features} features")
            value = Foreign(f"Linear {name} of {module.in_features} features", node)
        self._follow(module, value)
        block = self._produce(module, module.out_features)
        batched = isinstance(value, Maps) and value.batched
        return Maps((block,), 0, batched=batched, origin=value.origin if batched else None)

    def _run_conv(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        """Depthwise filters follow their input; else the output has channels of its own."""
        grouped, tied = module.groups > 1, is_tied(module)
        if isinstance(value, Maps) and value.total != module.in_channels:
            self.fix([value], f"{name} of {module.in_channels} channels")
            value = Foreign(f"{name} of {module.in_channels} channels", node)
        if grouped and not tied and module.groups == module.in_channels == module.out_channels:
            if isinstance(value, Maps):
                self._follow(module, value)
                return value
            self._foreign.setdefault(module, f"depthwise convolution {name} of others: {value.why}")
            self._follow(module, value)
            return value
        block = self._produce(module, module.out_channels)
        if grouped:
            self.partition.fix(block.space, f"grouped convolution {name}")
            if isinstance(value, Maps):
                self.fix([value], f"grouped convolution {name}")
        else:
            self._follow(module, value)
        if tied:
            self.partition.fix(block.space, "tied already")
        return Maps((block,), len(module.kernel_size), origin=value.origin)

    # --- functions and methods ---------------------------------------------------------------------------------

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if target is seen_by_hook:
            why = f"hook on {args[1]}"
            self.fix(_maps_in(args), why)
            return Foreign(why, node) if _maps_in(args) else args[0]
        if node.op == "call_method":
            kind = METHODS.get(target) if isinstance(args[0], (Maps, Number)) else None
        elif target in POOLING:
            return self._pool(POOLING[target], name_of(target), args, kwargs)
        elif (getattr(target, "__module__", ""), name_of(target)) in FOREIGN_FUNCTIONS:
            kind = "unary"
        else:
            kind = FUNCTIONS.get(target)
        if not _maps_in((args, kwargs)):
            return self._without_maps(node, kind, args, kwargs)
        if kind is None:
            raise Unknown(f"operation {name_of(target)}")
        handle: Callable[..., Any] = getattr(self, f"_do_{kind}")
        return handle(node, *args, **kwargs)

    def _without_maps(self, node: fx.Node, kind: str | None, args: Any, kwargs: Any) -> Any:
        """What becomes of tensors that are not followed, and of numbers."""
        values = list(_values((args, kwargs)))
        foreign = next((value for value in values if isinstance(value, Foreign)), None)
        if node.op == "call_method" and isinstance(args[0], (Foreign, Sizes, Number)):
            if node.target == "size":
                sizes = Sizes(None, args[0].origin if isinstance(args[0], Foreign) else None)
                return sizes if len(args) == 1 and not kwargs else _pick(sizes, (*args[1:], *kwargs.values())[0])
            if node.target in ("dim", "numel", "ndimension", "item", "stride"):
                return Number()
        if node.target is getattr and isinstance(args[0], Foreign):
            if args[1] == "shape":
                return Sizes(None, args[0].origin)
            return Number() if args[1] in READ_ATTRIBUTES else Foreign(args[0].why, node)
        if node.target is _GETITEM and isinstance(args[0], Sizes):
            return _pick(args[0], args[1])
        if foreign is not None:
            return Foreign(foreign.why, node)
        if kind in ("unary", "joining", "view") or is_arithmetic(node.target):
            return Number()
        return Foreign(f"operation {name_of(node.target)}", node)

    def _pool(self, ndim: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs.get("input")
        if isinstance(value, Foreign):
            return value
        others = [v for key, v in kwargs.items() if key != "input"]
        if (
            not isinstance(value, Maps)
            or _maps_in((args[1:], others))
            or value.ndim != ndim
            or value.flat
            or any(v is True for v in (*args[6:], kwargs.get("return_indices")))
        ):
            raise Unknown(f"operation {name}")
        return value

    def _do_unary(self, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        return self._join_all(node, args, kwargs)

    def _do_joining(self, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        return self._join_all(node, args, kwargs)

    def _join_all(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Element by element: all have the same channels, or one channel for all of them."""
        name = name_of(node.target)
        values = [*args, *kwargs.values()]
        maps = [value for value in values if isinstance(value, Maps)]
        foreign = next((value for value in values if isinstance(value, Foreign)), None)
        if len(maps) != len(_maps_in(values)):
            raise Unknown(f"operation {name}")
        if foreign is not None:
            raise Unknown(f"{name} with {foreign.why}")
        if len({value.ndim for value in maps}) > 1:
            raise Unknown(f"{name} of tensors of other dims")
        full = [value for value in maps if value.flat or value.total != 1] or maps[:1]
        if any(value.flat for value in full) and len(full) < len(maps):
            raise Unknown(f"{name} of flattened channels and of one channel")
        self.unify(full, name)
        origins = {id(value.origin) for value in maps}
        batched = all(value.batched for value in maps)
        return replace(full[0], batched=batched, origin=full[0].origin if len(origins) == 1 else None)

    def _do_reduction(self, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("dtype", None)
        if not isinstance(input, Maps) or input.flat or len(args) > 2 or kwargs.keys() - {"dim", "keepdim"}:
            raise Unknown(f"operation {name_of(node.target)}")
        return maps_.reduce(input, *args, **kwargs)

    def _do_cat(self, node: fx.Node, tensors: Any, dim: Any = 0, **kwargs: Any) -> Any:
        values = [*tensors] if isinstance(tensors, (tuple, list)) else []
        dim = kwargs.pop("axis", dim)
        maps = [value for value in values if isinstance(value, Maps)]
        foreign = next((value for value in values if not isinstance(value, Maps)), None)
        if foreign is not None or not maps or kwargs:
            raise Unknown(f"concatenated with {foreign.why}" if isinstance(foreign, Foreign) else "operation cat")
        first = maps[0]
        if len({(v.ndim, v.batched) for v in maps}) > 1 or any(v.flat for v in maps):
            raise Unknown("concatenation of flattened channels or other dims")
        if not maps_.is_channel_dim(first, dim):
            raise Unknown("concatenation along another dim")
        origin = first.origin if len({id(v.origin) for v in maps}) == 1 else None
        return replace(first, blocks=tuple(block for v in maps for block in v.blocks), origin=origin)

    def _do_flatten(self, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
        names = dict(zip(("start", "end"), args)) | {key.removesuffix("_dim"): v for key, v in kwargs.items()}
        if not isinstance(input, Maps) or names.keys() - {"start", "end"}:
            raise Unknown("operation flatten")
        return maps_.flatten(input, **names)

    def _do_unsqueeze(self, node: fx.Node, input: Any, dim: Any) -> Any:
        return maps_.unsqueeze(input, dim)

    def _do_view(self, node: fx.Node, input: Any, *shape: Any, **kwargs: Any) -> Any:
        if kwargs or not isinstance(input, Maps):
            raise Unknown("view")
        return maps_.view(input, shape)

    def _do_getitem(self, node: fx.Node, value: Any, key: Any) -> Any:
        if not isinstance(value, Maps) or _maps_in(key):
            raise Unknown("indexing by a tensor")
        return maps_.index(value, key)

    def _do_getattr(self, node: fx.Node, value: Any, name: str, *default: Any) -> Any:
        if name == "shape":
            return Sizes(value, value.origin if value.batched else None)
        if name in READ_ATTRIBUTES:
            return Number()
        raise Unknown(f"attribute {name}")

    def _do_reading(self, node: fx.Node, value: Maps, *args: Any, **kwargs: Any) -> Any:
        name = str(node.target)
        if _maps_in((args, kwargs)):
            raise Unknown(f"operation {name}")
        if name.startswith("new_"):
            return Foreign(f"operation {name}", node)
        if name == "size":
            sizes = Sizes(value, value.origin if value.batched else None)
            picked = (*args, *kwargs.values())
            return _pick(sizes, picked[0]) if picked else sizes
        return Number()

    def _do_assert(self, node: fx.Node, *args: Any) -> Any:
        raise Unknown("an assertion about values")

    def _do_resize(self, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Maps) or not input.ndim or _maps_in((args, kwargs)):
            raise Unknown(f"operation {name_of(node.target)}")
        return input

    def _do_pad(self, node: fx.Node, input: Any, pad: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Maps) or not isinstance(pad, (tuple, list)) or len(pad) > 2 * input.ndim:
            raise Unknown("padding of channels")
        if _maps_in((pad, args, kwargs)):
            raise Unknown("operation pad")
        return input


_GETITEM = next(function for function, kind in FUNCTIONS.items() if kind == "getitem")


def _fits(value: Maps, channels: int) -> bool:
    """Are these its channels, or, flattened, its channels at each of some positions?"""
    return channels % value.total == 0 and channels > 0 if value.flat else channels == value.total


def _pick(sizes: Sizes, key: Any) -> Any:
    """An entry of a shape."""
    if not isinstance(key, int):
        return Number()
    if key == 0:
        return Number(batch_of=sizes.origin)
    maps = sizes.maps
    if maps is not None and maps.batched and not maps.flat and key in (1, -(maps.ndim + 1)):
        return Number(known=maps.total)
    return Number()
