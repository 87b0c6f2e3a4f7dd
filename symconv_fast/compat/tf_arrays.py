"""Dicts of arrays of TensorFlow layers: read, checked, named in errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from ..checks import ints
from .cnn_symmetry import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Order = Union[Tensor, Sequence[int], None]


def read(arrays: Any, scope: str | None, call: str) -> dict[str, NDArray[Any]]:
    """The arrays by the last part of their names, in native byte order."""
    if not isinstance(arrays, Mapping) or not arrays:
        raise TypeError(f"{call} needs a dict of arrays by name, got {arrays!r:.60}")
    if not isinstance(scope, (str, type(None))):
        raise TypeError(f"scope={scope!r} must be text or None, such as scope='symmetric_conv2d_1'")
    named: dict[str, NDArray[Any]] = {}
    scopes: dict[str, None] = {}
    for full, value in arrays.items():
        if not isinstance(full, str):
            raise TypeError(f"{call}: names must be text such as 'kernel_sym_h', got {full!r}")
        if scope is not None and not full.startswith(scope.rstrip("/") + "/"):
            continue
        prefix, _, name = full.rpartition("/")
        name = name.split(":", 1)[0]
        scopes.setdefault(prefix)
        if len(scopes) > 1:
            raise CheckpointError(
                f"arrays are of several layers; name one, scope={' or scope='.join(map(repr, scopes))}"
            )
        if name in named:
            raise CheckpointError(f"arrays have {name!r} twice, the second time as {full!r}")
        named[name] = as_array(value, full)
    if not named:
        raise CheckpointError(f"no name begins with scope={scope!r}; names: {listed(arrays)}")
    dtypes = sorted({str(array.dtype) for array in named.values()})
    if len(dtypes) > 1:
        raise TypeError(f"arrays must have one dtype, got {', '.join(dtypes)}")
    return named


def as_array(value: Any, name: str) -> NDArray[Any]:
    """A copy, in native byte order; of one of the dtypes of numpy and torch."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bfloat16:
            raise TypeError(f"{name} is of dtype bfloat16, which numpy has not; convert it with .float()")
        if value.is_meta:
            raise CheckpointError(
                f"{name} has no values, it is on the meta device; load it with values first"
            )
        value = value.detach().cpu().numpy()
    if not hasattr(value, "__array__"):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}; numpy.asarray makes one")
    array = np.array(value)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} is of dtype {array.dtype}, want float16, float32 or float64")
    if not np.isfinite(array).all():
        bad = array.size - int(np.isfinite(array).sum())
        raise CheckpointError(f"{name} has {bad} of {array.size} values that are NaN or infinite")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_names(named: Mapping[str, Any], known: set[str], layer: str) -> None:
    """Raises CheckpointError for names that `layer` has not, with what they are of."""
    unknown = [name for name in named if name not in known]
    if not unknown:
        return
    if "surround" in named and "surround" not in known:
        hint = "'surround' is of a GlobalConv1D: use global_from_tf"
    elif "kernel" in named and "kernel" not in known:
        hint = "'kernel' is of an ordinary layer, which nn.Conv2d is for: kernel.transpose(3, 2, 0, 1) is its weight"
    else:
        hint = f"{layer} has {', '.join(sorted(known))}"
    raise CheckpointError(f"arrays have unknown names {listed(unknown)}; {hint}")


def check_shape(named: Mapping[str, NDArray[Any]], name: str, wanted: tuple[int, ...]) -> None:
    """Raises CheckpointError for an array of another shape."""
    if named[name].shape != wanted:
        raise CheckpointError(f"{name} has shape {named[name].shape}, want {wanted}")


def listed(names: Iterable[Any]) -> str:
    """The first few, for errors."""
    shown = list(map(repr, names))
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def permutation(order: Order, length: int) -> NDArray[np.int64]:
    """An `input_order` as an index; None is as it is.

    Raises:
        TypeError: no integers. ValueError: no permutation of range(length).
    """
    if order is None:
        return np.arange(length)
    try:
        values = ints(order.tolist() if isinstance(order, Tensor) else order, "input_order")
    except TypeError:
        raise TypeError(
            f"input_order must be a permutation of the input channels, got {order!r:.60}"
        ) from None
    if sorted(values) != list(range(length)):
        raise ValueError(
            f"input_order must be a permutation of the {length} input channels, 0 to {length - 1}, got {order!r:.60}"
        )
    return np.array(values, dtype=np.int64)
