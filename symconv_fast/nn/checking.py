"""`check_equivariance`: does a network do to its output what mirrors do to its input, layer by layer?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..both_sides import InputSymmetry, InputSymmetryLike, parse_input, resolve_features
from ..checks import ShapeError, check_is_tensor
from ..modules import _Symmetric
from ..sides import Involutions
from ..tables import Report, Table
from ..ties import BIT, Ties, mask_name
from .orbits import OrbitPool, mirror

if TYPE_CHECKING:
    from ..analysis import EquivarianceReport


@dataclass(frozen=True)
class LayerError:
    """One call of a layer: the error of its output for each letter, NaN where nothing says what its channels are."""

    layer: str
    type: str
    size: tuple[int, ...]
    error: Mapping[str, float]


@dataclass(frozen=True)
class EquivarianceCheck(Report):
    """See `check_equivariance`; `print` shows the verdict, then the layers."""

    letters: str
    layers: tuple[LayerError, ...]
    """In the order of their calls; the output of the network comes last."""
    tolerance: float
    geometry: EquivarianceReport | None
    """What sizes, strides and padding do, whatever the filters are; None where that cannot be told. Other sizes are
    searched for only where a layer loses a mirror."""

    @property
    def exact(self) -> bool:
        """Is the output of the network what the mirrors should make of it?"""
        return all(self.layers[-1].error[letter] <= self.tolerance for letter in self.letters)

    def worst(self, letter: str) -> float:
        """The largest error of a layer, or of the output."""
        return max(row.error[letter] for row in self.layers if not math.isnan(row.error[letter]))

    def first_lost(self, letter: str) -> LayerError | None:
        """The first layer whose output is not what the mirror should make of it, or None."""
        return next((row for row in self.layers if row.error[letter] > self.tolerance), None)

    def verdict(self) -> str:
        """In a line whether it is exact, or where it is lost, why, and which sizes would do."""
        lost = next(((c, row) for c in self.letters if (row := self.first_lost(c)) is not None), None)
        if lost is None:
            return f"equivariant along {', '.join(self.letters)}: no error is above {self.tolerance:.0e}"
        letter, row = lost
        where = (
            f"not equivariant along {letter}: first lost in {row.layer} ({row.type}), {row.error[letter]:.1e}"
        )
        if self.geometry is None:
            return where
        if self.geometry.first_lost(letter) is None:
            return f"{where}; sizes and strides are exact, so it is by filters, statistics or channels"
        return f"{where}; {self.geometry.verdict().splitlines()[0]}"

    def table(self) -> Table:
        """A row a layer."""
        rows = [
            [row.layer, row.type, "x".join(map(str, row.size)) or "-"]
            + ["-" if math.isnan(row.error[c]) else f"{row.error[c]:.1e}" for c in self.letters]
            for row in self.layers
        ]
        return Table(self.verdict(), ["layer|", "type|", "out", *self.letters], rows)


@dataclass
class _Seen:
    name: str
    type: str
    output: Tensor
    features: Any  # of its channels: (given, known?)


_UNKNOWN = object()


def check_equivariance(
    module: nn.Module,
    input: Tensor,
    symmetry_in: InputSymmetryLike = None,
    symmetry_out: InputSymmetryLike = None,
    *,
    letters: str | None = None,
    tolerance: float = 1e-9,
) -> EquivarianceCheck:
    """Compare what a network makes of mirrored inputs with the mirror images of what it makes of the input.

    The error is ||f(T x) - T f(x)|| / ||f(x)||. A copy is measured, in eval mode and float64. Layers of this package
    say what their channels are; others keep the channels of their input as long as these are as many, and are left out
    where nothing is known of them.

    Args:
        module: any module that takes one tensor; it is neither changed nor run.
        input: (N, C, *spatial), random values, of the size that counts.
        symmetry_in, symmetry_out: what mirrors do to the channels of input and output, as `input_symmetry` of a
            convolution; None where they stay.
        letters: those to check; by default those of both symmetries, or all where they have none.
        tolerance: the error up to which an output counts as exact.

    Returns:
        An `EquivarianceCheck`: errors by layer and letter, the layer where each mirror is first lost, and what
        `symconv_fast.analysis.equivariance_report` says of sizes, strides and padding.

    Raises:
        ValueError: symmetries are of other channels, or letters of more dims than the input has.
    """
    check_is_tensor(input, "input")
    ndim = input.dim() - 2
    if not 1 <= ndim <= 3:
        raise ShapeError(f"input must be (N, C, *spatial) with 1 to 3 spatial dims, got {tuple(input.shape)}")
    given_in, given_out = parse_input(symmetry_in, 3), parse_input(symmetry_out, 3)
    names = (
        letters or "".join(c for c in "hvz" if BIT[c] & (_mask(given_in) | _mask(given_out))) or "hvz"[:ndim]
    )
    twin, x = _copy(module), input.detach().to(torch.float64)
    plain = _run(twin, x, given_in, given_out)
    errors: list[dict[str, float]] = [{} for _ in plain]
    for letter in names:
        turned = _run(twin, mirror(x, letter, given_in), given_in, given_out)
        if [row.name for row in turned] != [row.name for row in plain]:
            raise ValueError(
                "the module calls other layers for a mirrored input, so that they cannot be compared"
            )
        for row, other, error in zip(plain, turned, errors):
            error[letter] = _error(row, other.output, letter, ndim)
    rows = (
        LayerError(row.name, row.type, tuple(row.output.shape[2:]), error)
        for row, error in zip(plain, errors)
    )
    found = EquivarianceCheck(names, tuple(rows), tolerance, None)
    lost = any(found.first_lost(letter) for letter in names)
    return replace(found, geometry=_geometry(module, input, names, search=lost))


def _mask(given: InputSymmetry) -> int:
    if given is None:
        return 0
    if isinstance(given, Involutions):
        return sum(bit for bit, _ in given.tables)
    keys = (
        [key for key, _ in given.keys] if isinstance(given, Ties) else [mask_name(c) for c, _ in given.counts]
    )
    return sum(BIT[c] for c in set("".join(keys)) & set(BIT))


def _copy(module: nn.Module) -> nn.Module:
    from ..analysis.equivariance import copied

    return copied(module).eval().double()


def _geometry(module: nn.Module, input: Tensor, letters: str, search: bool) -> EquivarianceReport | None:
    """With sizes that are exact, if they are to be searched for: that takes a run of the network a size."""
    from ..analysis import equivariance_report

    further = {} if search else {"reach": 0}
    try:
        return equivariance_report(module, (input,), transforms=tuple(letters), **further)
    except ValueError:  # it has no operation with a spatial extent, say
        return None


def _run(twin: nn.Module, x: Tensor, given_in: InputSymmetry, given_out: InputSymmetry) -> list[_Seen]:
    """All calls of layers without layers in them, and the output."""
    seen: list[_Seen] = []
    known: dict[int, Any] = {x.shape[1]: given_in}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() < 2:
                return
            channels = output.shape[1]
            if isinstance(layer, _Symmetric):
                known[channels] = layer.ties
            elif isinstance(layer, OrbitPool):
                known[channels] = None
            elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
                known.pop(channels, None)
            features = known.get(channels, _UNKNOWN)
            # A later layer may work in place.
            seen.append(_Seen(name, type(layer).__name__, output.detach().clone(), features))

        return hook

    leaves = [(name, m) for name, m in twin.named_modules() if next(m.children(), None) is None and name]
    handles = [leaf.register_forward_hook(watch(name)) for name, leaf in leaves]
    try:
        with torch.no_grad():
            output = twin(x)
    finally:
        for handle in handles:
            handle.remove()
    check_is_tensor(output, "the output of the module")
    resolve_features(given_out, output.shape[1])
    return [*seen, _Seen("output", "", output, given_out)]


def _error(row: _Seen, turned: Tensor, letter: str, ndim: int) -> float:
    """Of an output for the mirrored input; without spatial dims, of a linear layer, say, channels alone are moved."""
    if row.features is _UNKNOWN or turned.shape != row.output.shape:
        return math.nan
    if row.output.dim() == ndim + 2:
        expected = mirror(row.output, letter, row.features)
    else:
        shape = (*row.output.shape[:2], *[1] * ndim)
        if row.output.dim() != 2:
            return math.nan
        expected = mirror(row.output.reshape(shape), letter, row.features).reshape(row.output.shape)
    size = float(torch.linalg.vector_norm(expected))
    difference = float(torch.linalg.vector_norm(turned - expected))
    return difference / size if difference else 0.0
