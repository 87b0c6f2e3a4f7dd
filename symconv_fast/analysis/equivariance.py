"""`equivariance_report`: where in a model mirrors and shifts stop being exact, why, and at which sizes not."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Union

import torch
from torch import Tensor, nn

from ..tables import Report, Table
from .arguments import integer
from .example import LETTERS, check_model, check_values, device_of, example, moved, transform_names
from .measuring import Measured, Measurement, exact_everywhere, measure, mirror_dim
from .recording import RefusedError
from .sizes import Near, Sizes, resized

InputSize = Union[int, Sequence[int], Tensor, Sequence[Any]]

OTHERWISE = (
    "lost before it, by something other than a convolution, pooling, padding or interpolation: a slice, a roll, "
    "a rearrangement of pixels, weights that belong to places"
)


@dataclass(frozen=True)
class LayerEquivariance:
    """One operation of a model with spatial extent, or (type "") what the model returns.

    The keys of the mappings are the transforms: "h", "v", "z", "shift".
    """

    layer: str
    """The module that it runs in; "(model)" if that is the model itself."""
    type: str
    """The module's class, or the operator, such as "max_pool2d", where a function is called."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    size_in: tuple[int, ...]
    """Before padding, the first axis first."""
    size_out: tuple[int, ...]
    total_stride: tuple[Fraction | float, ...]
    """Positions of the model's input a position of the output; inf after pooling over all of them."""
    exact: Mapping[str, bool]
    """Is this operation exact by itself, at this size, whatever its input and its filters?"""
    reason: Mapping[str, str]
    """Why not, for the transforms for which it is not."""
    alone: Mapping[str, float]
    """The measured error of this operation by itself; NaN where the size is such that a shift cannot show it."""
    geometry: Mapping[str, float]
    """The error up to here of the model with mirrored kernels, or of the model on a circle."""
    model: Mapping[str, float]
    """The error up to here of the model as it is."""
    tolerance: float
    """The error up to which `geometry` counts as exact."""

    def lost(self, transform: str) -> bool:
        """Is the geometry of the model up to here not exact?

        What breaks a transform by itself loses it, also where filters of zeros, say, leave nothing to measure.
        """
        return self.geometry[transform] > self.tolerance or not self.exact.get(transform, True)


@dataclass(frozen=True)
class EquivarianceReport(Report):
    """See `equivariance_report`; `print` shows the verdict, then the layers."""

    input_size: tuple[int, ...]
    transforms: tuple[str, ...]
    layers: tuple[LayerEquivariance, ...]
    """In the order of execution; the model's outputs come last."""
    shift: tuple[int, ...]
    """The shift that was measured, in positions along each axis: the least that every layer can follow."""
    nearest: Mapping[str, Near]
    """For each mirror the nearest sizes (below, above) of its axis at which it is exact; None: none within reach."""
    nearest_shift: Mapping[str, Near]
    """The same for shifts on a circle, by the letter of the axis."""
    reach: int
    """How far from the input size these were searched for."""
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Is the geometry exact for every mirror that was asked for, or for shifts if no mirror was?

        What could not be measured, a shift by the whole input, is not.
        """
        asked = self._mirrors() or self.transforms
        return not any(self.first_lost(t) or self._unmeasured(t) for t in asked)

    def _unmeasured(self, transform: str) -> bool:
        return all(math.isnan(row.geometry[transform]) for row in self.layers)

    def first_lost(self, transform: str) -> LayerEquivariance | None:
        """The first layer up to which the geometry is not exact, or None.

        Raises:
            ValueError: the transform was not measured.
        """
        if transform not in self.transforms:
            raise ValueError(
                f"transform={transform!r} was not measured; give one of {', '.join(self.transforms)}"
            )
        return next((row for row in self.layers if row.lost(transform)), None)

    def _mirrors(self) -> tuple[str, ...]:
        return tuple(t for t in self.transforms if t != "shift")

    def verdict(self) -> str:
        """One line for the mirrors, one for shifts."""
        lines = []
        if self._mirrors():
            lines.append(self._verdict_of_mirrors())
        if "shift" in self.transforms:
            lines.append(self._verdict_of_shifts())
        return "\n".join(lines)

    def _verdict_of_mirrors(self) -> str:
        mirrors, size = self._mirrors(), _times(self.input_size)
        lost = [t for t in mirrors if self.first_lost(t)]
        if not lost:
            return (
                f"exact at {size}: sizes, strides and padding keep the mirrors ({', '.join(mirrors)}) in every layer, "
                "whatever the filters"
            )
        row = self.first_lost(lost[0])
        assert row is not None
        along = "" if lost == list(mirrors) else f" along {', '.join(lost)}"
        why = row.reason.get(lost[0], OTHERWISE)
        near = _near({t: self.nearest[t] for t in lost if t in self.nearest}, self.reach)
        return f"not exact at {size}{along}: first lost in {_where(row)} ({why}); {near}"

    def _verdict_of_shifts(self) -> str:
        by = f"shifts by multiples of {_times(self.shift)} on a circle"
        row = self.first_lost("shift")
        if row is None:
            if self._unmeasured("shift"):
                return f"{by}: not measured, since {_times(self.input_size)} is no larger than that"
            return f"{by}: exact"
        why = row.reason.get("shift", OTHERWISE)
        return (
            f"{by}: not exact, first lost in {_where(row)} ({why}); {_near(self.nearest_shift, self.reach)}"
        )

    def table(self) -> Table:
        """A row a layer: sizes, what it breaks by itself, and the errors up to it."""
        columns = ["layer|", "type|", "kernel", "stride", "in", "out", "total stride", "breaks|"]
        columns += [f"{what} {t}" for what in ("geometry", "model") for t in self.transforms]
        rows = []
        for row in self.layers:
            cells = [row.layer, row.type, _times(row.kernel), _times(row.stride), _times(row.size_in)]
            cells += [_times(row.size_out), _times(row.total_stride)]
            cells.append(" ".join(t for t in self.transforms if not row.exact.get(t, True)) or "-")
            cells += [_error(errors[t]) for errors in (row.geometry, row.model) for t in self.transforms]
            rows.append(cells)
        return Table(self.verdict(), columns, rows, self._reasons())

    def _reasons(self) -> list[str]:
        """One line for each layer and reason, with the transforms that it concerns."""
        lines: dict[tuple[str, str], list[str]] = {}
        for row in self.layers:
            for t, why in row.reason.items():
                lines.setdefault((row.layer, why), []).append(t)
        reasons = [f"{layer}, {' '.join(dict.fromkeys(ts))}: {why}" for (layer, why), ts in lines.items()]
        return [*reasons, *self.notes]


def equivariance_report(
    model: nn.Module,
    input_size: InputSize,
    *,
    transforms: Sequence[str] | None = None,
    channels: int | None = None,
    seed: int = 0,
    reach: int = 64,
) -> EquivarianceReport:
    """Where in a model, and why, mirrors and shifts of the input stop mirroring and shifting what the layers give.

    The error of a layer is ||f(T x) - T f(x)|| / ||f(x)|| for a random x, as in Edixhoven, Lengyel and van Gemert,
    "Using and Abusing Equivariance" (2023). It is measured for two models:

    - `geometry`: for a mirror T the left f has all its kernels mirrored as well (and the weights of a linear layer that
      reads a flattened map). No filter need be symmetric then, and the error is rounding just if the sizes, strides and
      padding are exact up to that layer. For a shift both f are on a circle: padding comes from the other end.
    - `model`: the model as it is. What is exact here has symmetric filters too. Output channels of a tied layer are
      compared as they are and with the orbits' members exchanged, and the smaller error counts.

    The mirrors are h (the last axis), v and z. The shift is the least that every layer can follow: the least common
    multiple of the strides up to each layer; by less than its stride no layer can shift. A copy is measured, in eval
    mode and float64, on the model's device (on the CPU where that has no float64). Hooks are copied with the model, and
    called each time that the copy runs.

    Args:
        model: any module; it is neither changed nor run. Operations are seen where torch dispatches them, functional
            calls included.
        input_size: spatial size, such as 224 (on all axes, as many as the first layer named ...1d to ...3d has) or
            (224, 160); or an example: a tensor (N, C, *spatial), or the model's arguments as a tuple, of which those
            with as many dims as the first are transformed. Its values should be random, since an example that a mirror
            does not change, such as zeros, shows nothing.
        transforms: out of "h", "v", "z", "shift"; by default all that the dims allow.
        channels: of the input, with a size; by default `in_channels` of the first convolution, or 3.
        seed: of the random input.
        reach: how far from the input size exact sizes are searched for. What the layers do at other sizes follows from
            shapes alone; the nearest sizes found are measured.

    Raises:
        TypeError: `model` is no module or a TorchScript one, or cannot be copied; an argument is of another type.
        ValueError: an argument has no valid value; parameters or an example are uninitialised or not finite, or a
            mirror does not change the example; the model cannot run at this size, has no operation with spatial extent,
            or gives inf or NaN.
    """
    check_model(model)
    seed, reach = integer(seed, "seed", least=0, most=2**64 - 1), integer(reach, "reach", least=0)
    inputs, ndim = example(model, input_size, channels, seed)
    names = transform_names(transforms, ndim)
    check_values(inputs, ndim, names)
    size = tuple(next(x for x in inputs if isinstance(x, Tensor)).shape[2:])
    try:
        twin = copied(model).eval().double()
    except Exception as failure:
        raise TypeError(f"{type(model).__name__} cannot be copied to float64: {failure}") from failure
    device = device_of(model)
    twin = twin.to(device)
    inputs = [moved(x, device) for x in inputs]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU alone, which is restored
        found = _measure(twin, inputs, ndim, names, size)
        layers = tuple(
            _layer(row, names, ndim) for row in (*found.rows, *found.outputs) if row.kind != "absorbed"
        )
        nearest, shifted, notes = _search(twin, inputs, names, size, reach, layers)
    if found.random:
        notes.append(f"the model draws random numbers in eval mode ({', '.join(sorted(found.random))})")
    return EquivarianceReport(size, names, layers, found.total, nearest, shifted, reach, tuple(notes))


def copied(model: nn.Module) -> nn.Module:
    """torch itself copies no tensor that a forward pass computed, such as the `weight` of its older spectral_norm."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _measure(
    twin: nn.Module, inputs: list[Any], ndim: int, names: Sequence[str], size: tuple[int, ...]
) -> Measurement:
    try:
        found = measure(twin, inputs, ndim, names)
    except RefusedError:
        raise
    except Exception as failure:  # whatever the model raises
        raise ValueError(
            f"the model cannot run on input of shape {tuple(inputs[0].shape)}: {_said(failure)}; give an input_size "
            "that it takes, such as the one it is trained at, or example inputs"
        ) from failure
    if not found.rows:
        raise ValueError(
            f"{type(twin).__name__} has no operation with {len(size)} spatial dims at input_size={_times(size)}: no "
            "convolution, pooling, padding or interpolation; give a model with some"
        )
    return found


def _layer(row: Measured, names: Sequence[str], ndim: int) -> LayerEquivariance:
    exact, reason = {}, {}
    for t in names if row.axes else ():
        why = _fault(row, t)
        if why is None and row.alone[t] > row.tolerance:
            why = f"measured: it is off by {row.alone[t]:.1e} by itself"
        exact[t] = why is None
        if why is not None:
            reason[t] = why
    sizes = tuple(axis.n for axis in row.axes), tuple(axis.out for axis in row.axes)
    if not row.axes:
        sizes = (), tuple(row.output.shape[-ndim:]) if row.output.dim() == ndim + 2 else ()
    errors = row.alone, row.geometry, row.model
    jump = tuple(j for j in row.jump)
    return LayerEquivariance(
        row.layer, row.type, row.kernel, row.stride, *sizes, jump, exact, reason, *errors, row.tolerance
    )


def _fault(row: Measured, transform: str) -> str | None:
    if transform == "shift":
        return next(filter(None, (axis.shift_fault() for axis in row.axes)), None)
    return row.axes[mirror_dim(transform)].mirror_fault()


def _search(
    twin: nn.Module,
    inputs: list[Any],
    names: Sequence[str],
    size: tuple[int, ...],
    reach: int,
    layers: Sequence[LayerEquivariance],
) -> tuple[dict[str, Near], dict[str, Near], list[str]]:
    """Nearest sizes for mirrors and for shifts, and what is to be said about them."""
    ndim, mirrors = len(size), [t for t in names if t != "shift"]
    kinds = ["mirror"] * bool(mirrors) + ["shift"] * ("shift" in names)
    try:
        resized(inputs, size)
    except ValueError as failure:
        return {}, {}, [f"no other sizes were searched for: {failure}"]
    near = Sizes(twin, inputs, ndim).nearest(size, reach, kinds)
    notes: list[str] = []
    mirrored = {t: near["mirror"][mirror_dim(t)] for t in mirrors}
    for side, word in enumerate(("below", "above")):
        sizes = [pair[side] for pair in mirrored.values()]
        if None in sizes or not sizes:
            continue
        at = [
            mirrored[t][side] if (t := LETTERS[ndim - 1 - i]) in mirrored else n for i, n in enumerate(size)
        ]
        why = _inexact(twin, resized(inputs, [int(n or 0) for n in at]), ndim, mirrors)
        if why:
            notes.append(
                f"at {_times(at)}, the nearest size {word} at which all layers of the table are exact, the model is "
                f"not: {why}"
            )
            mirrored = {t: _without(pair, side) for t, pair in mirrored.items()}
    shifted = {LETTERS[ndim - 1 - i]: pair for i, pair in enumerate(near.get("shift", []))}
    return mirrored, shifted, notes


def _inexact(twin: nn.Module, inputs: list[Any], ndim: int, mirrors: Sequence[str]) -> str | None:
    """Why a model is not exact as measured, or None."""
    try:
        exact = exact_everywhere(twin, inputs, ndim, mirrors)
    except Exception as failure:  # shapes alone did not show it
        return f"it cannot be measured, {_said(failure)}"
    return None if exact else "something else than these loses it"


def _without(pair: Near, side: int) -> Near:
    return (None, pair[1]) if side == 0 else (pair[0], None)


# --- words -----------------------------------------------------------------------------------------------------------


def _said(failure: Exception) -> str:
    """What an exception says; with its class where that says more than the text."""
    plain = isinstance(failure, ValueError) or type(failure) is RuntimeError
    return str(failure) if plain and str(failure) else f"{type(failure).__name__}: {failure}".rstrip(": ")


def _times(values: Sequence[Any]) -> str:
    """224 for equal values, 224x160 for others; "all" for what a position of the output sees all of."""
    shown = ["all" if value == math.inf else str(value) for value in values]
    return shown[0] if shown and len(set(shown)) == 1 else "x".join(shown) or "-"


def _where(row: LayerEquivariance) -> str:
    """The module; with the operator where that is not what the module is named for."""
    return f"{row.type} of {row.layer}" if row.type and not row.type[0].isupper() else row.layer


def _error(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _near(pairs: Mapping[str, Near], reach: int) -> str:
    if not pairs or not reach:
        return "no other sizes were searched for"
    shown = {
        t: ", ".join(str(n) for n in pair if n is not None) or f"none within {reach}"
        for t, pair in pairs.items()
    }
    if len(set(shown.values())) == 1:
        return f"nearest exact sizes {next(iter(shown.values()))}"
    return "nearest exact sizes " + "; ".join(f"{t} {sizes}" for t, sizes in shown.items())
