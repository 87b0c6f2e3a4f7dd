"""Where a model holds layers outside its submodules: in lists, in other objects, in functions set on it."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

_OF_MODULES = frozenset(vars(nn.Module()))
"""Submodules, parameters, buffers and hooks are no attributes in this sense."""

_PASSED_BY = (str, bytes, int, float, complex, type, ModuleType, torch.Tensor)


def modules_held(model: nn.Module, foreign: Collection[nn.Module] = ()) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of each module that attributes of `model` and of its submodules lead to, hooks left out.

    A module comes as often as it is held. Submodules of what only attributes lead to come too, but not those of
    `foreign`. Objects of torch other than modules are taken as leaves.
    """
    seen = {id(module) for module in foreign} - {id(module) for module in model.modules()}
    waiting: deque[tuple[str, Any]] = deque()

    def enter(path: str, module: nn.Module) -> None:
        for name, child in module.named_modules():
            if id(child) not in seen:
                seen.add(id(child))
                start = ".".join(part for part in (path, name) if part)
                waiting.extend((f"{start}.{key}".lstrip("."), value) for key, value in _attributes(child))

    enter("", model)
    kept = []  # an id belongs to one object only as long as the object is there
    while waiting:
        path, value = waiting.popleft()
        if isinstance(value, nn.Module):
            known = id(value) in seen
            yield from ((path, module) for module in ([value] if known else value.modules()))
            if not known:
                enter(path, value)
        elif id(value) not in seen and not isinstance(value, _PASSED_BY):
            seen.add(id(value))
            kept.append(value)
            waiting.extend(_parts(path, value))


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        if name not in _OF_MODULES:
            yield name, value


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a container, a function or an object holds, one step in."""
    if isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield f"{path} (a key)", key
            yield f"{path}[{key!r:.40}]", item
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, AbstractSet):
        yield from ((path, item) for item in value)
    elif isinstance(value, MethodType):
        yield path, value.__self__
    elif isinstance(value, functools.partial):
        yield from ((path, item) for item in (value.func, value.args, value.keywords))
    elif isinstance(value, FunctionType):
        if not _is_torchs(value.__module__):
            yield from ((path, item) for item in _enclosed(value))
    elif not _is_torchs(type(value).__module__):
        slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
        names = [name for some in slots for name in ([some] if isinstance(some, str) else some)]
        held = {name: getattr(value, name, None) for name in names} | dict(getattr(value, "__dict__", {}))
        yield from ((f"{path}.{name}", item) for name, item in held.items())


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """Variables of outer functions, defaults of arguments, attributes."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a variable without a value yet
            yield cell.cell_contents
    yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)


def _is_torchs(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "torch"
