"""Tools of torch that take `weight` of any nn.ConvNd for its filters: a tied layer is refused, with the way out.

They test with `isinstance`, or not at all, and would leave filters out without a word or stop at a shape that says
nothing. A tied layer has no say in what they do, so they are wrapped, once, when the package is imported. For
everything else they are what they were.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from . import modules
from .modules import _Symmetric

_ENTRIES = (
    ("torch.nn.utils", "fuse_conv_bn_eval"),
    ("torch.nn.utils.fusion", "fuse_conv_bn_eval"),
    ("torch.utils.mkldnn", "to_mkldnn"),
    ("torch.ao.nn.qat.modules.conv", "_ConvNd.from_float"),
    ("torch.ao.nn.quantized.modules.conv", "_ConvNd.from_float"),
    ("torch.ao.nn.quantized.reference.modules.conv", "_ConvNd.from_float"),
)
"""Where a tool is found: a module, and a function in it or a method of one of its classes."""


def check(tool: str, value: object) -> None:
    """Raises TypeError where `value` is a tied layer, or a module that has one."""
    if isinstance(value, nn.Module):
        for name, module in value.named_modules():
            if isinstance(module, _Symmetric) and module.ties.unique < module.ties.out_channels:
                where = f" ({name})" if name else ""
                raise TypeError(
                    f"{tool} reads weight of a convolution as its filters, but {type(module).__name__}{where} has "
                    f"{module.ties.unique} rows for {module.ties.out_channels} filters; use "
                    "symconv_fast.to_torch(model), whose layers are torch's"
                )


def _guard(function: Callable[..., Any]) -> Callable[..., Any]:
    tool = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        for value in (*arguments, *options.values()):
            check(tool, value)
        return function(*arguments, **options)

    return guarded


def _wrap(module: str, path: str) -> None:
    """Wrap one entry, if this torch has it."""
    try:
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        found = inspect.getattr_static(owner, name)
    except (ImportError, AttributeError):
        return
    static = isinstance(found, (staticmethod, classmethod))
    guarded = _guard(found.__func__ if static else found)
    setattr(owner, name, type(found)(guarded) if static else guarded)


def _refuse_fusion(is_qat: bool, *fused: nn.Module) -> nn.Module:
    """What `fuse_modules` calls for a tied layer and what follows it."""
    for module in fused:
        if isinstance(module, _Symmetric):
            raise TypeError(
                f"fuse_modules cannot fuse {type(module).__name__} with what follows it, since the result would have a filter "
                "of its own for each output channel; use symconv_fast.to_torch(model), whose layers are torch's"
            )
    raise AssertionError("unreachable: registered for tied layers alone")


def _refuse_in_fuse_modules() -> None:
    """`fuse_modules` looks sequences of exact types up in a table."""
    try:
        from torch.ao.quantization import fuser_method_mappings
    except ImportError:
        return
    table = fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    tied = [c for c in vars(modules).values() if isinstance(c, type) and issubclass(c, _Symmetric)]
    for types in list(table):
        for cls in tied:
            if types[0] in cls.__bases__:
                table.setdefault((cls, *types[1:]), _refuse_fusion)


def install() -> None:
    """Wrap what is listed here."""
    for entry in _ENTRIES:
        _wrap(*entry)
    _refuse_in_fuse_modules()
