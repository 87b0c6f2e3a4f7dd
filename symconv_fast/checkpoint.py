"""The record of a layer's tie in a checkpoint, and what is said of one that does not fit.

The record is an entry of the metadata that torch keeps beside a state_dict, module by module, and saves with it. It is
no key of the state_dict: files without a record (of other formats, of CNN-Symmetry, or older ones) load as they are,
and files with one load into anything that loads torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .both_sides import involutions
from .ties import Ties

if TYPE_CHECKING:
    from .modules import _Symmetric

KEY, INPUT = "symmetry", "input_symmetry"


def describe(ties: Ties) -> dict[str, int]:
    """The filters of each tie: {"h": 4, "hv": 8}; {} where nothing is tied."""
    return dict(ties.keys)


def describe_input(ties: Ties) -> dict[str, list[int]]:
    """The input channel that each one changes places with, by letters; {} where mirrors move none."""
    inputs = ties.sides.inputs if ties.sides else None
    return {} if inputs is None else {letter: list(table) for letter, table in involutions(inputs).items()}


def record(layer: _Symmetric[Any], destination: Any, prefix: str) -> None:
    """Note the tie in the metadata of a state_dict that is being made; nothing where it has none."""
    metadata = getattr(destination, "_metadata", None)
    if metadata is not None:
        entry = metadata.setdefault(prefix[:-1], {})
        entry[KEY], moves = describe(layer.ties), describe_input(layer.ties)
        if moves:
            entry[INPUT] = moves


def load(layer: _Symmetric[Any], torchs: Any, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
    """`_load_from_state_dict` of a tied layer: `torchs` where the tie is the same; and messages that name the tie.

    `rest` are torch's strict, missing_keys, unexpected_keys and error_msgs.
    """
    error_msgs: list[str] = rest[-1]
    recorded, moves = metadata.get(KEY), metadata.get(INPUT, {})
    other = recorded is not None and (recorded, moves) != (describe(layer.ties), describe_input(layer.ties))
    recorded = _show(recorded, moves)
    if other and _has_weight(state, prefix) and not _find_misfits(layer, state, prefix):
        error_msgs.append(
            f"{_introduce(layer, prefix)}, but the checkpoint is of a layer with {recorded}, whose weight has "
            "the same shape: make the layer with that symmetry, or, to load the numbers all the same (where they were "
            "put into the checkpoint later, say), pass a plain dict, which has no record of ties: "
            "load_state_dict(dict(state))"
        )
        return
    torchs(state, prefix, metadata, *rest)
    misfits = _find_misfits(layer, state, prefix)
    if misfits:
        error_msgs.append(
            f"{_introduce(layer, prefix)}; {_explain(layer, misfits, recorded if other else None)}"
        )


def _introduce(layer: _Symmetric[Any], prefix: str) -> str:
    rows, filters = layer.ties.unique, layer.ties.out_channels
    return (
        f"{prefix[:-1] or 'this'} is a {type(layer).__name__} with "
        f"{_show(describe(layer.ties), describe_input(layer.ties))} "
        f"({rows} rows of weight for {filters} filters, share_bias={layer.share_bias})"
    )


def _show(symmetry: Any, moves: Any) -> str:
    return f"symmetry={symmetry}" + (f" and input_symmetry={moves}" if moves else "")


def _explain(layer: _Symmetric[Any], misfits: dict[str, tuple[int, ...]], recorded: Any) -> str:
    """Why these shapes of a checkpoint do not fit, as far as can be told."""
    if recorded is not None:
        return f"the checkpoint is of a layer with {recorded}: make the layer with that symmetry"
    if misfits.get("weight") == _expanded_shape(layer):
        return (
            "the checkpoint is of an ordinary layer: load it into one, and make this layer from it with "
            f"{type(layer).__name__}.from_conv(layer, symmetry)"
        )
    if list(misfits) == ["bias"]:
        return (
            f"the bias has {misfits['bias'][0]} values in the checkpoint: share_bias must be as it was there"
        )
    return "the checkpoint is of a layer of another symmetry or size"


def _has_weight(state: Mapping[str, Any], prefix: str) -> bool:
    """Is the layer's weight, or what it is computed from, in a checkpoint?

    The record stays in the metadata of a state_dict whose entries are taken out. torch's parametrizations keep
    `parametrizations.weight.original`; weight_norm, spectral_norm and pruning in their older form keep `weight_v`,
    `weight_orig` and the like.
    """
    return any(key.startswith((f"{prefix}weight", f"{prefix}parametrizations.weight.")) for key in state)


def _find_misfits(
    layer: _Symmetric[Any], state: Mapping[str, Any], prefix: str
) -> dict[str, tuple[int, ...]]:
    """The shapes of the checkpoint's tensors that are not those of the layer's parameters, by name."""
    misfits = {}
    for name, own in layer._parameters.items():
        given = state.get(prefix + name)
        if isinstance(own, Tensor) and isinstance(given, Tensor) and given.shape != own.shape:
            misfits[name] = tuple(given.shape)
    return misfits


def _expanded_shape(layer: _Symmetric[Any]) -> tuple[int, ...]:
    filters, channels = layer.out_channels, layer.in_channels
    sizes = (channels, filters // layer.groups) if layer.transposed else (filters, channels // layer.groups)
    return (*sizes, *layer.kernel_size)
