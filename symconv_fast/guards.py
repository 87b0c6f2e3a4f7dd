"""Tools of torch that take `weight` of any nn.ConvNd for its filters: a tied layer is refused, with the way out.

They test with `isinstance`, or not at all, and would leave filters out without a word or stop at a shape that says
nothing. A tied layer has no say in what they do, so they are wrapped, once: when this package is imported, or when
their module is. For everything else they are what they were.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn

from . import modules
from .conversion import to_torch
from .modules import _Symmetric

_FUSER_TABLE = "torch.ao.quantization.fuser_method_mappings"
_TOOLS = {
    "torch.nn.utils": ("fuse_conv_bn_weights", "fuse_conv_bn_weights"),
    "torch.nn.utils.fusion": ("fuse_conv_bn_weights", "fuse_conv_bn_weights"),
    "torch.utils.mkldnn": ("_MkldnnConvNd.__init__", "to_mkldnn"),
    "torch.ao.nn.qat.modules.conv": ("_ConvNd.from_float", "from_float of torch.ao.nn.qat"),
    "torch.ao.nn.quantized.modules.conv": ("_ConvNd.from_float", "from_float of torch.ao.nn.quantized"),
    "torch.ao.nn.quantized.reference.modules.conv": (
        "_ConvNd.from_float",
        "from_float of torch.ao.nn.quantized.reference",
    ),
    "torch.ao.quantization.qconfig": ("_assert_valid_qconfig", "prepare_fx"),
    _FUSER_TABLE: ("_DEFAULT_OP_LIST_TO_FUSER_METHOD", "fuse_modules"),
}
"""Modules, what is wrapped in each, and the tool that it belongs to. All of it is looked up when the tool is called, so
that it does not matter when the tool itself was imported."""


def check(tool: str, value: object) -> None:
    """Raises TypeError where `value` is a layer with tied filters."""
    if isinstance(value, _Symmetric) and not value.ties.holds_filters:
        raise TypeError(
            f"{tool} reads weight of a convolution as its filters, but {type(value).__name__} has {_held(value)}; "
            f"use symconv_fast.to_torch(model), whose layers are torch's"
        )


def _held(layer: _Symmetric[Any]) -> str:
    if layer.ties.unique == layer.ties.out_channels:
        return f"a part of each of its {layer.ties.unique} filters"
    return f"{layer.ties.unique} rows for {layer.ties.out_channels} filters"


def install() -> None:
    """Wrap what is listed here, now and whenever it is imported; what this torch does not have is left out."""
    for name in _TOOLS:
        if name in sys.modules:
            _wrap(sys.modules[name])
    if not any(isinstance(finder, _Later) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Later())


class _Later(MetaPathFinder):
    """Wraps modules right after they were executed, by an import or a reload."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the finders after this one have for a listed module; its execution ends with `_wrap`."""
        if fullname not in _TOOLS:
            return None
        later = itertools.dropwhile(lambda finder: finder is not self, list(sys.meta_path))
        found = (finder.find_spec(fullname, path, target) for finder in itertools.islice(later, 1, None))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_wrap(module: ModuleType) -> None:
                execute(module)
                _wrap(module)

            spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


_WRAPPERS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Of each function, by the function: what two modules share stays one object, and nothing is wrapped twice."""


def _wrap(module: ModuleType) -> None:
    """Wrap what belongs to the tool of one module."""
    path, tool = _TOOLS[module.__name__]
    owner: Any = module
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part, None)
    found = inspect.getattr_static(owner, name, None)
    if isinstance(found, dict):
        _refuse_in_fuse_modules(found)
    elif isinstance(found, staticmethod):
        setattr(owner, name, staticmethod(_wrapper(found.__func__, tool)))
    elif inspect.isfunction(found):
        setattr(owner, name, _wrapper(found, tool))


def _wrapper(function: Callable[..., Any], tool: str) -> Callable[..., Any]:
    """The one wrapper of a function; a wrapper's is itself."""
    if function in _WRAPPERS.values():
        return function
    if function not in _WRAPPERS:
        makers = {"fuse_conv_bn_weights": _guard_weights, "_assert_valid_qconfig": _spare}
        _WRAPPERS[function] = makers.get(function.__name__, _guard)(function, tool)
    return _WRAPPERS[function]


def _guard(function: Callable[..., Any], tool: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        for value in (*arguments, *options.values()):
            check(tool, value)
        return function(*arguments, **options)

    return guarded


def _spare(function: Callable[..., Any], tool: str) -> Callable[..., Any]:
    """A check of observers that tied layers do not get: `prepare_fx` leaves them in floating point."""

    @functools.wraps(function)
    def spared(qconfig: Any, layer: nn.Module) -> Any:
        return None if isinstance(layer, _Symmetric) else function(qconfig, layer)

    return spared


def _guard_weights(function: Callable[..., Any], tool: str) -> Callable[..., Any]:
    """What `fuse_conv_bn_eval` calls is given tensors alone: those of a tied layer have too few filters."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options).arguments
        filters = given["conv_w"].shape[1 if given.get("transpose") else 0]
        channels = given["bn_rm"].shape[0]
        if filters != channels:
            raise TypeError(
                f"{tool}: weight has {filters} filters for a batch norm of {channels} channels; if it is that of a "
                "layer with tied filters, use symconv_fast.to_torch(model), whose layers are torch's"
            )
        return function(*arguments, **options)

    return guarded


def _refuse_in_fuse_modules(table: dict[Any, Any]) -> None:
    """It looks sequences of exact types up in a table."""
    tied = [c for c in vars(modules).values() if isinstance(c, type) and issubclass(c, _Symmetric)]
    for types, fuse in list(table.items()):
        for cls in tied:
            if types[0] in cls.__bases__:
                table.setdefault((cls, *types[1:]), functools.partial(_fuse, fuse))


def _fuse(fuse: Callable[..., nn.Module], is_qat: bool, layer: nn.Module, *others: nn.Module) -> nn.Module:
    """What `fuse_modules` calls for a layer of this package and what follows it."""
    check("fuse_modules", layer)
    return fuse(is_qat, to_torch(layer, inplace=True), *others)
