"""What functions and methods of torch do with the channels of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

from . import maps as maps_
from .calls import (
    FOREIGN_FUNCTIONS,
    FUNCTIONS,
    METHODS,
    POOLING,
    READ_ATTRIBUTES,
    is_arithmetic,
    name_of,
)
from .constraints import Constraints
from .maps import Foreign, Maps, Number, Sizes, UnknownError, maps_in, values_in
from .trace import seen_by_hook

_GETITEM = next(function for function, kind in FUNCTIONS.items() if kind == "getitem")


class Functions(Constraints):
    """Calls of functions and methods: each `_do_*` is one of the kinds of `calls.FUNCTIONS`."""

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a node that calls a function or a method."""
        target: Any = node.target
        if target is seen_by_hook:
            why = f"hook on {args[1]}"
            self.fix(maps_in(args), why)
            return Foreign(why, node) if maps_in(args) else args[0]
        if node.op == "call_method":
            kind = METHODS.get(target) if isinstance(args[0], (Maps, Number)) else None
        elif target in POOLING:
            return self._pool(POOLING[target], name_of(target), args, kwargs)
        elif (getattr(target, "__module__", ""), name_of(target)) in FOREIGN_FUNCTIONS:
            kind = "unary"
        else:
            kind = FUNCTIONS.get(target)
        if not maps_in((args, kwargs)):
            return self._without_maps(node, kind, args, kwargs)
        if kind is None:
            raise UnknownError(f"operation {name_of(target)}")
        handle: Callable[..., Any] = getattr(self, f"_do_{kind}")
        return handle(node, *args, **kwargs)

    def _without_maps(self, node: fx.Node, kind: str | None, args: Any, kwargs: Any) -> Any:
        """What becomes of tensors that are not followed, and of numbers."""
        values = list(values_in((args, kwargs)))
        foreign = next((value for value in values if isinstance(value, Foreign)), None)
        if node.op == "call_method" and isinstance(args[0], (Foreign, Sizes, Number)):
            if node.target == "size":
                sizes = Sizes(None, args[0].origin if isinstance(args[0], Foreign) else None)
                return (
                    sizes if len(args) == 1 and not kwargs else _pick(sizes, (*args[1:], *kwargs.values())[0])
                )
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
        if kind in ("unary", "joining") or is_arithmetic(node.target):
            return Number(rank=max((value.rank for value in values if isinstance(value, Number)), default=0))
        return Foreign(f"operation {name_of(node.target)}", node)

    def _pool(self, ndim: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0] if args else kwargs.get("input")
        if isinstance(value, Foreign):
            return value
        others = [v for key, v in kwargs.items() if key != "input"]
        if (
            not isinstance(value, Maps)
            or maps_in((args[1:], others))
            or value.ndim != ndim
            or any(v is True for v in (*args[6:], kwargs.get("return_indices")))
        ):
            raise UnknownError(f"operation {name}")
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
        if len(maps) != len(maps_in(values)):
            raise UnknownError(f"operation {name}")
        if foreign is not None:
            raise UnknownError(f"{name} with", foreign)
        ranks = [value.rank for value in values if isinstance(value, Number)]
        if len({value.ndim for value in maps}) > 1 or max(ranks, default=0) > maps[0].ndim + 2:
            raise UnknownError(f"{name} of tensors of other dims")
        full = [value for value in maps if value.flat or value.total != 1] or maps[:1]
        if any(value.flat for value in full) and len(full) < len(maps):
            raise UnknownError(f"{name} of flattened channels and of one channel")
        self.unify(full, name)
        origins = {id(value.origin) for value in maps}
        batched = all(value.batched for value in maps)
        return replace(full[0], batched=batched, origin=full[0].origin if len(origins) == 1 else None)

    def _do_reduction(self, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("dtype", None)
        if not isinstance(input, Maps) or input.flat or len(args) > 2 or kwargs.keys() - {"dim", "keepdim"}:
            raise UnknownError(f"operation {name_of(node.target)}")
        return maps_.reduce(input, *args, **kwargs)

    def _do_cat(self, node: fx.Node, tensors: Any, dim: Any = 0, **kwargs: Any) -> Any:
        values = [*tensors] if isinstance(tensors, (tuple, list)) else []
        dim = kwargs.pop("axis", dim)
        maps = [value for value in values if isinstance(value, Maps)]
        foreign = next((value for value in values if not isinstance(value, Maps)), None)
        if isinstance(foreign, Foreign):
            raise UnknownError("concatenated with", foreign)
        if foreign is not None or not maps or kwargs:
            raise UnknownError("operation cat")
        first = maps[0]
        if len({(v.ndim, v.batched) for v in maps}) > 1 or any(v.flat for v in maps):
            raise UnknownError("concatenation of flattened channels or other dims")
        if not maps_.is_channel_dim(first, dim):
            raise UnknownError("concatenation along another dim")
        origin = first.origin if len({id(v.origin) for v in maps}) == 1 else None
        return replace(first, blocks=tuple(block for v in maps for block in v.blocks), origin=origin)

    def _do_flatten(self, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
        names = dict(zip(("start", "end"), args)) | {key.removesuffix("_dim"): v for key, v in kwargs.items()}
        if not isinstance(input, Maps) or names.keys() - {"start", "end"}:
            raise UnknownError("operation flatten")
        return maps_.flatten(input, **names)

    def _do_unsqueeze(self, node: fx.Node, input: Any, dim: Any) -> Any:
        return maps_.unsqueeze(input, dim)

    def _do_view(self, node: fx.Node, input: Any, *shape: Any, **kwargs: Any) -> Any:
        if kwargs or not isinstance(input, Maps):
            raise UnknownError("view")
        return maps_.view(input, shape)

    def _do_getitem(self, node: fx.Node, value: Any, key: Any) -> Any:
        if not isinstance(value, Maps) or maps_in(key):
            raise UnknownError("indexing by a tensor")
        return maps_.index(value, key)

    def _do_getattr(self, node: fx.Node, value: Any, name: str, *default: Any) -> Any:
        if name == "shape":
            return Sizes(value, value.origin if value.batched else None)
        if name in READ_ATTRIBUTES:
            return Number()
        raise UnknownError(f"attribute {name}")

    def _do_reading(self, node: fx.Node, value: Maps, *args: Any, **kwargs: Any) -> Any:
        name = str(node.target)
        if maps_in((args, kwargs)):
            raise UnknownError(f"operation {name}")
        if name.startswith("new_"):
            return Foreign(f"operation {name}", node)
        if name == "size":
            sizes = Sizes(value, value.origin if value.batched else None)
            picked = (*args, *kwargs.values())
            return _pick(sizes, picked[0]) if picked else sizes
        return Number()

    def _do_assert(self, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        raise UnknownError("an assertion about values")

    def _do_resize(self, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Maps) or not input.ndim or maps_in((args, kwargs)):
            raise UnknownError(f"operation {name_of(node.target)}")
        return input

    def _do_pad(self, node: fx.Node, input: Any, pad: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(input, Maps) or not isinstance(pad, (tuple, list)) or len(pad) > 2 * input.ndim:
            raise UnknownError("padding of channels")
        if maps_in((pad, args, kwargs)):
            raise UnknownError("operation pad")
        return input


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
