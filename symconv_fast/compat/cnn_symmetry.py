"""Checkpoints of the PyTorch layers published as CNN-Symmetry, in and out, and how its layers counted filters.

Their layers SymmetricConv2d and SymmetricConv3d keep `weight` (U, C, *K) and `bias` (out_channels,), in the order of
rows and channels that this package has. Three things are to be known:

- Their argument `share_bias` was never applied: the bias is whole, whatever it was.
- They have no groups (an argument above 1 is refused), no 1-D and no transposed layers.
- Their files have no record of the tie, and "h" and "v" have the same shapes: the model that loads a file must be made
  with the ties of the model that wrote it. Where shapes differ, errors name what they would fit.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import KEY, describe
from ..checks import check_bool, ints
from ..modules import SymmetricConv2d, SymmetricConv3d, _Symmetric
from ..symmetry import KEYS, Symmetry

_TF_KEYS = KEYS[2]
_DEFAULTS_2019 = {"h": "30%", "v": "20%", "hv": "20%"}


class CheckpointError(ValueError, RuntimeError):
    """A checkpoint that does not fit: a ValueError, and a RuntimeError as torch's `load_state_dict` raises it."""


def load_cnn_symmetry(state_dict: Mapping[str, Any], model: nn.Module, strict: bool = True) -> Any:
    """Load a checkpoint of the published PyTorch layers into a model, or a layer, with those of this package instead.

    Weights and biases load as they are stored. Everything is checked before anything is loaded: a model keeps all of
    its values where this raises. A layer made with `share_bias=True` gets the biases of its rows if those of each orbit
    are equal in the checkpoint, as `to_cnn_symmetry` writes them; else they cannot be shared, and this raises.

    Args:
        state_dict: what their `state_dict()` held, whole: torch.load("net.pt", weights_only=True).
        model: any module with the keys of the checkpoint, a tied layer by itself included.
        strict: keys that are missing or too many raise; else they are left alone, and returned. Shapes and values are
            checked in either case.

    Returns:
        What `model.load_state_dict` returns: (missing_keys, unexpected_keys).

    Raises:
        CheckpointError: missing or extra keys; a shape that does not fit, with the symmetry that it would fit; values
            of a parameter that are not finite; biases that cannot be shared; a tied layer that the published ones do
            not have (1-D, transposed, with groups). TypeError: no dict of tensors, or `model` is no module.
    """
    _check_types(state_dict, model, "load_cnn_symmetry(state_dict, model)")
    check_bool(strict, "strict")
    own = model.state_dict()
    problems = _key_problems(state_dict, own) if strict else []
    loaded = OrderedDict(state_dict)
    if hasattr(state_dict, "_metadata"):
        loaded._metadata = state_dict._metadata  # type: ignore[attr-defined]
    tied: set[str] = set()
    for prefix, layer in _tied_layers(model):
        names = [prefix + name for name in ("weight", "bias") if prefix + name in state_dict]
        tied.update(names)
        found = _layer_problems(layer, prefix, state_dict) if names else []
        problems += found
        if not found and _shares(layer) and prefix + "bias" in names:
            rows = layer.ties.unique  # which lead their orbits: the first output channels
            loaded[prefix + "bias"] = state_dict[prefix + "bias"][:rows]
    problems += _other_problems(state_dict, own, tied)
    problems += _value_problems(state_dict, dict(model.named_parameters(remove_duplicate=False)))
    if problems:
        raise CheckpointError("this checkpoint does not fit the model:\n\t" + "\n\t".join(problems))
    return model.load_state_dict(loaded, strict=strict)


def to_cnn_symmetry(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The `state_dict` of a model, or of a tied layer, for the same model made of the published PyTorch layers.

    The biases of layers with `share_bias=True` are written whole, one for each output channel. Values are copies on
    the device of the model; the record of ties that this package keeps in the metadata is left out.

    Raises:
        CheckpointError: a tied layer that the published ones do not have: 1-D, transposed, with groups, or with a
            weight that a parametrization computes. TypeError: `model` is no module.
    """
    _check_types({}, model, "to_cnn_symmetry(model)")
    state = OrderedDict(
        (key, value.detach().clone() if isinstance(value, Tensor) else value)
        for key, value in model.state_dict().items()
    )
    problems = []
    for prefix, layer in _tied_layers(model):
        reason = _not_published(layer)
        if reason:
            problems.append(f"{prefix[:-1] or 'this'} is a {type(layer).__name__} {reason}")
        elif _shares(layer):
            state[prefix + "bias"] = layer.ties.expand_bias(state[prefix + "bias"])
    if problems:
        raise CheckpointError("the published layers cannot load this model:\n\t" + "\n\t".join(problems))
    return state


def cnn_symmetry_counts(
    out_channels: int, symmetry: Mapping[str, int | str], *, defaults: bool = False
) -> dict[str, int]:
    """The filters of each tie that the published layers made of `symmetry`, as the dict that this package takes.

    Their PyTorch layers took numbers alone: a percentage ended in a TypeError there. Their TensorFlow layer took
    percentages of h, v and hv, `round(float(percent) * filters / 100)`, half to even, then down to whole orbits. That
    is the rule of this package, but for two things which are kept here. Their product is a float: 16.4 % of 375 came to
    61.49999999999999 and 60 filters of h, where this package has 61.5 and 62; whole percents give the same in both. And
    percentages may add up to more than 100 as long as the rounded counts fit.

    Args:
        out_channels: filters of the layer.
        symmetry: their argument: {"h": 8}, {"h": "50%", "hv": "25%"}.
        defaults: as their first file did it (custom_layers.py, 2019): h, v and hv that are not given are "30%", "20%"
            and "20%". That file also wrote the counts into the dict that it was given: a second layer that was given
            the same dict has the counts of the first, whatever its size; pass those.

    Returns:
        {key: filters}, whole orbits, without ties of no filter; {} is an ordinary layer.

    Raises:
        ValueError: a key that they had not (they ignored some); a percentage that is no number of 0 or more, or of a
            key of 3-D layers; counts that are negative, of no whole orbits, or add up to more than `out_channels`.
        TypeError: something else than an int or text.
    """
    (size, *rest) = ints(out_channels, "out_channels")
    if rest or size < 1:
        raise ValueError(
            f"out_channels={out_channels!r} must be one int of 1 or more, such as out_channels=64"
        )
    if not isinstance(symmetry, Mapping):
        raise TypeError(
            f"symmetry must be a dict such as {{'h': 8}}, as the published layers took it, got {symmetry!r}"
        )
    given = {**(_DEFAULTS_2019 if defaults else {}), **symmetry}
    known = _TF_KEYS if defaults else KEYS[3]
    for key in given:
        if key not in known:
            raise ValueError(
                f"symmetry key {key!r} is not one of the published layers'; theirs: {', '.join(known)}"
            )
    counts = {key: _published_count(key, given[key], size) for key in known if key in given}
    ties = Symmetry(counts).resolve(3, size)
    return describe(ties)


def _published_count(key: str, value: object, filters: int) -> int:
    if not isinstance(value, str):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(
                f"symmetry[{key!r}] = {value!r} must be a whole number of filters or text such as '50%'"
            )
        return operator.index(value)
    text = value.removesuffix("%")
    try:
        percent = float(text) if text != value else math.nan
    except ValueError:
        percent = math.nan
    if not 0 <= percent < math.inf:
        raise ValueError(
            f"symmetry[{key!r}] = {value!r} is not a share of the filters; give something like '50%'"
        )
    if key not in _TF_KEYS:
        raise ValueError(
            f"symmetry[{key!r}] = {value!r}: the published 3-D layer took no percentages; give a number of filters"
        )
    unit = 2 ** len(key)
    return round(percent * filters / 100) // unit * unit


def _check_types(state_dict: Any, model: Any, call: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{call} needs a torch.nn.Module as model, got {type(model).__name__}")
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{call} needs a dict of tensors as state_dict, got {type(state_dict).__name__}")
    for key, value in state_dict.items():
        if isinstance(value, Tensor) or str(key).endswith("_extra_state"):
            continue
        inner = isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())
        hint = (
            f"; pass what is in it: state_dict[{key!r}]"
            if inner
            else "; torch.as_tensor makes one of an array"
        )
        raise TypeError(f"state_dict[{key!r}] must be a tensor, got {type(value).__name__}{hint}")


def _tied_layers(model: nn.Module) -> Iterator[tuple[str, _Symmetric[Any]]]:
    """(prefix of its keys, layer) of each tied layer, of one in several places each time."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _Symmetric):
            yield f"{name}." if name else "", module


def _key_problems(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    missing, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    problems = []
    for what, keys in (("lacks the keys", missing), ("has keys that the model has not:", extra)):
        if keys:
            more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
            problems.append(f"it {what} {', '.join(map(repr, keys[:8]))}{more}")
    if missing and all(f"module.{key}" in state for key in missing):
        problems.append("its keys begin with 'module.', of DataParallel: take that off")
    return problems


def _not_published(layer: _Symmetric[Any]) -> str | None:
    """Why no published layer is like this one."""
    if not isinstance(layer, (SymmetricConv2d, SymmetricConv3d)):
        return "and they have none but SymmetricConv2d and SymmetricConv3d"
    if layer.groups != 1:
        return f"with groups={layer.groups}, and they have groups=1"
    if layer._parameters.get("weight") is None:
        return "whose weight a parametrization computes; remove that first"
    return None


def _shares(layer: _Symmetric[Any]) -> bool:
    return layer.share_bias and layer.bias is not None


def _layer_problems(layer: _Symmetric[Any], prefix: str, state: Mapping[str, Any]) -> list[str]:
    name = prefix[:-1] or "this"
    reason = _not_published(layer)
    if reason:
        return [f"{name} is a {type(layer).__name__} {reason}"]
    weight, bias = state.get(prefix + "weight"), state.get(prefix + "bias")
    made = f"{type(layer).__name__} with symmetry={describe(layer.ties)}"
    problems = []
    if weight is not None and weight.shape != layer.weight.shape:
        problems.append(
            f"{prefix}weight has shape {tuple(weight.shape)}, want {tuple(layer.weight.shape)} for a {made}; "
            + _explain(layer, weight, bias)
        )
    wanted = (layer.out_channels,)
    if bias is not None and layer.bias is not None and tuple(bias.shape) != wanted:
        problems.append(
            f"{prefix}bias has shape {tuple(bias.shape)}, want {wanted}: the published layers have one for each output "
            f"channel, share_bias or not"
        )
    if problems:
        return problems
    recorded = getattr(state, "_metadata", {}).get(prefix[:-1], {}).get(KEY)
    if recorded is not None and recorded != describe(layer.ties):
        return [f"{name} is a {made}, and the checkpoint has the record of symmetry={recorded}"]
    if bias is not None and _shares(layer):
        return _sharing_problems(layer, prefix + "bias", bias)
    return []


def _sharing_problems(layer: _Symmetric[Any], key: str, bias: Tensor) -> list[str]:
    whole = layer.ties.expand_bias(bias[: layer.ties.unique])
    if bias.is_meta or torch.equal(whole, bias) or not bias.isfinite().all():
        return []
    worst = float((whole - bias).abs().max())
    return [
        f"{key} differs by up to {worst:.3g} within an orbit and cannot be shared: make the layer with "
        "share_bias=False (the published layers never applied theirs)"
    ]


def _explain(layer: _Symmetric[Any], weight: Tensor, bias: Tensor | None) -> str:
    """What a weight of another shape is of."""
    cls = type(layer).__name__
    if weight.dim() != layer.weight.dim():
        dims = weight.dim() - 2
        return f"it is of a {dims}-D layer" if 1 <= dims <= 3 else "no convolution has that many dims"
    if weight.shape[1:] != layer.weight.shape[1:]:
        shape = tuple(weight.shape)
        return f"it is of a layer with in_channels={shape[1]}, kernel_size={shape[2:]}"
    known = bias is not None and bias.dim() == 1
    filters = len(bias) if known and bias is not None else layer.out_channels
    rows = weight.shape[0]
    if rows == filters:
        return (
            f"it would fit symmetry=None, an ordinary layer: load it into one and make this layer from that with "
            f"{cls}.from_conv(conv, symmetry)"
        )
    fits = _fitting(rows, filters, weight.dim() - 2)
    if not fits:
        return f"no symmetry of {filters} filters has {rows} rows"
    mixture = "a mixture such as " if len(fits[0]) > 1 else ""
    size = f" and out_channels={filters}" if filters != layer.out_channels else ""
    return f"it would fit {mixture}symmetry={' or '.join(map(str, fits))}{size}"


def _fitting(rows: int, filters: int, ndim: int) -> list[dict[str, int]]:
    """Ties with which `filters` filters have `rows` rows: all of one key, else one mixture, else none."""
    saved = filters - rows
    fits = []
    for key in KEYS[ndim]:
        orbit = 2 ** len(key)
        orbits, rest = divmod(saved, orbit - 1)
        if orbits > 0 and not rest and orbits * orbit <= filters:
            fits.append({key: orbits * orbit})
    if fits or saved <= 0:
        return fits
    for octuples in range(saved // 7 + 1 if ndim == 3 else 1):
        for quadruples in range((saved - 7 * octuples) // 3 + 1):
            pairs = saved - 7 * octuples - 3 * quadruples
            if 8 * octuples + 4 * quadruples + 2 * pairs <= filters:
                counts = {"h": 2 * pairs, "hv": 4 * quadruples, "hvz": 8 * octuples}
                return [{key: count for key, count in counts.items() if count}]
    return []


def _other_problems(state: Mapping[str, Any], own: Mapping[str, Any], tied: set[str]) -> list[str]:
    """Shapes of what is of no tied layer."""
    problems = []
    for key, value in state.items():
        mine = own.get(key)
        if key in tied or not isinstance(mine, Tensor) or not isinstance(value, Tensor):
            continue
        if value.shape != mine.shape:
            problems.append(f"{key} has shape {tuple(value.shape)}, want {tuple(mine.shape)}")
    return problems


def _value_problems(state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> list[str]:
    """Parameters must be real and finite; buffers may hold what they like."""
    problems = []
    for key, value in state.items():
        if key not in parameters or not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided:
            problems.append(f"{key} is sparse; give it with .to_dense()")
            continue
        if value.is_meta:
            if not parameters[key].is_meta:
                problems.append(f"{key} has no values, it is on the meta device, and the model is not")
            continue
        if not value.is_floating_point():
            problems.append(f"{key} is of dtype {str(value.dtype)[6:]}, want a floating one such as float32")
        elif not value.isfinite().all():
            bad = int((~value.isfinite()).sum())
            problems.append(f"{key} has {bad} of {value.numel()} values that are NaN or infinite")
    return problems
