"""The errors behind an equivariance report: a model, its mirrored twin and its circular one, run and compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..symmetry import Ties
from ..ties import BIT
from .calls import Call
from .geometry import Axis
from .recording import Jump, Names, Recorder, RefusedError

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""The error up to which a layer of this dtype counts as exact. The model runs in float64; it may cast inside."""


@dataclass
class Measured:
    """One operation of the model, as the unchanged model runs it."""

    layer: str
    type: str
    kind: str
    axes: tuple[Axis, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    jump: Jump
    output: Tensor
    ties: Ties | None = None
    token: object = None
    alone: dict[str, float] = field(default_factory=dict)
    geometry: dict[str, float] = field(default_factory=dict)
    model: dict[str, float] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """The error up to which the output counts as exact."""
        return TOLERANCE.get(self.output.dtype, TOLERANCE[torch.float64])


@dataclass
class Measurement:
    """All operations in the order of execution, then the outputs of the model; `total` is the stride of the model."""

    rows: list[Measured]
    outputs: list[Measured]
    total: tuple[int, ...]
    random: set[str]


def mirror_dim(letter: str) -> int:
    """-1 of h, -2 of v, -3 of z."""
    return -BIT[letter].bit_length()


def error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; 0 where both vanish, and infinite values where both have them count as 0."""
    if found.shape != expected.shape:
        return math.inf
    same = found == expected
    difference = float(torch.linalg.vector_norm((found - expected).masked_fill(same, 0)))
    size = torch.linalg.vector_norm(expected.masked_fill(expected.isinf(), 0))
    return difference / float(size) if difference else 0.0


class Comparison:
    """A transform of the input, and of what the layers make of it."""

    def __init__(self, transform: str, ndim: int, total: Sequence[int]) -> None:
        self.transform, self.ndim, self.total = transform, ndim, total
        self.dims = () if transform == "shift" else (mirror_dim(transform),)

    def of_input(self, x: Any) -> Any:
        """An argument of the model, transformed if it has spatial dims."""
        if not isinstance(x, Tensor) or x.dim() != self.ndim + 2:
            return x
        return self.of_features(x, (Fraction(1),) * self.ndim)

    def of_features(self, x: Tensor, jump: Jump) -> Tensor | None:
        """An output that the transform of the input should give; None where a shift is no whole number of positions."""
        if x.dim() < self.ndim + 2:
            return x
        if self.dims:
            return x.flip(self.dims)
        shifts = [0 if j == math.inf else Fraction(total) / Fraction(j) for total, j in zip(self.total, jump)]
        if any(Fraction(s).denominator != 1 for s in shifts):
            return None
        return x.roll([int(s) for s in shifts], list(range(-self.ndim, 0)))

    def error(self, found: Tensor, plain: Tensor, jump: Jump) -> float:
        """Of the output for the transformed input, given that for the input; NaN where it cannot be told."""
        expected = self.of_features(plain, jump)
        return math.nan if expected is None else error(found, expected)


def measure(model: nn.Module, inputs: Sequence[Any], ndim: int, transforms: Sequence[str]) -> Measurement:
    """Run the model, already a float64 copy in eval mode, as often as the transforms need it.

    Raises:
        ValueError: a layer gives inf or NaN, or a transformed input takes another way through the model.
    """
    names = Names(model)
    with names.follow():
        base = _record(model, names, inputs, ndim, transforms)
        for transform in transforms:
            way = Comparison(transform, ndim, base.total)
            if transform == "shift" and _moves_nothing(base.total, inputs, ndim):
                _fill(base, transform, math.nan)
                continue
            moved = [way.of_input(x) for x in inputs]
            if transform == "shift":
                reference = _circular_outputs(base, model, inputs, ndim)
                _follow(base, model, moved, ndim, _keep("geometry", way, iter(reference)), circle=True)
            else:
                _follow(base, model, moved, ndim, _keep("geometry", way), mirror=way.dims)
            _follow(base, model, moved, ndim, _keep("model", way))
    return base


def _circular_outputs(base: Measurement, model: nn.Module, inputs: Sequence[Any], ndim: int) -> list[Tensor]:
    outputs: list[Tensor] = []
    _follow(base, model, inputs, ndim, lambda row, output: outputs.append(output.clone()), circle=True)
    return outputs


def _moves_nothing(total: Sequence[int], inputs: Sequence[Any], ndim: int) -> bool:
    """Is the smallest shift that all layers can follow the whole input?"""
    first = next(x for x in inputs if isinstance(x, Tensor) and x.dim() == ndim + 2)
    return all(s % n == 0 for s, n in zip(total, first.shape[-ndim:]))


def _fill(base: Measurement, transform: str, value: float) -> None:
    for row in (*base.rows, *base.outputs):
        row.geometry[transform] = row.model[transform] = value


def _keep(what: str, way: Comparison, references: Iterator[Tensor] | None = None) -> Any:
    """Stores the error of each output, in the row that it belongs to and under `what`."""

    def keep(row: Measured, output: Tensor) -> None:
        plain = row.output if references is None else next(references)
        found = way.error(output, plain, row.jump)
        if what == "model" and row.ties is not None and way.dims:
            exchanged = _exchange(row.ties, way, output)
            found = min(found, way.error(exchanged, plain, row.jump))
        getattr(row, what)[way.transform] = found

    return keep


def _exchange(ties: Ties, way: Comparison, output: Tensor) -> Tensor:
    """The output with its channels where a mirror of the input takes them, and with the signs that it gives them."""
    bit, shape = BIT[way.transform], [-1, *[1] * way.ndim]
    partners, signs = ties.partners(bit), ties.signs(bit)
    if partners is not None:
        output = output.index_select(-way.ndim - 1, torch.tensor(partners, device=output.device))
    return output if signs is None else output * torch.tensor(signs, device=output.device).view(shape)


def _record(
    model: nn.Module, names: Names, inputs: Sequence[Any], ndim: int, transforms: Sequence[str]
) -> Measurement:
    rows: list[Measured] = []
    absorbed: set[object] = set()

    def watch(call: Call, output: Tensor, operation: str) -> None:
        layer, kind = names.here(operation)
        # Maxima are padded with -inf, which no layer after them sees.
        if not bool(torch.isfinite(output).all()) and not (
            call.kind == "padded" and not output.isnan().any()
        ):
            raise RefusedError(
                f"{layer} ({kind}) gives inf or NaN for random input of variance 1; give a model with finite "
                "outputs, such as one whose weights are initialised"
            )
        if call.kind == "windows":
            absorbed.update(call.absorbs)
        jump = output._symconv_jump  # type: ignore[attr-defined]
        row = Measured(layer, kind, call.kind, call.axes, call.kernel, call.stride, jump, output.clone())
        row.ties, row.token = call.ties, call.token
        row.alone = {t: _alone(call, output, t, ndim) for t in transforms}
        rows.append(row)

    recorder = Recorder(ndim, watch)
    result = recorder.run(model, inputs)
    leaves = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
    one = (Fraction(1),) * ndim
    outputs = [
        Measured("output", "", "output", (), (), (), getattr(x, "_symconv_jump", one), x.clone())
        for x in leaves
    ]
    for row in rows:
        if row.token in absorbed - recorder.read_otherwise:
            row.kind = "absorbed"
    jumps = [row.jump for row in (*rows, *outputs)]
    total = tuple(
        math.lcm(1, *(Fraction(jump[i]).numerator for jump in jumps if jump[i] != math.inf))
        for i in range(ndim)
    )
    return Measurement(rows, outputs, total, recorder.random)


def _alone(call: Call, output: Tensor, transform: str, ndim: int) -> float:
    """The error of one operation by itself, on what it is given in the model; NaN where a shift cannot show it."""
    if transform != "shift":
        dims: tuple[int, ...] = (mirror_dim(transform),)
        found = call.mirrored(call.source.flip(dims), dims)
        flat = call.kind == "flattened" or output.dim() < call.input.dim()
        return error(found, output if flat else output.flip(dims))
    steps = [Fraction(1, 1) if axis.step is None else axis.step for axis in call.axes]
    outs = [0 if axis.step is None else step.denominator for axis, step in zip(call.axes, steps)]
    still = [step.numerator % axis.n == 0 for axis, step in zip(call.axes, steps)]
    if all(still) or any(axis.shift_fault() for axis, same in zip(call.axes, still) if same):
        return math.nan
    dims = tuple(range(-ndim, 0))
    found = call.on_circle(call.source.roll([step.numerator for step in steps], dims))
    expected = call.on_circle(call.source)
    gone = call.kind == "flattened" or output.dim() < call.input.dim()
    return error(found, expected if gone else expected.roll(outs, dims))


def _follow(
    base: Measurement,
    model: nn.Module,
    inputs: Sequence[Any],
    ndim: int,
    keep: Any,
    **way: Any,
) -> None:
    """Run the model again and hand each output to `keep` with the row that it belongs to."""
    rows = iter(base.rows)

    def watch(call: Call, output: Tensor, operation: str) -> None:
        row = next(rows, None)
        if row is None or row.output.shape != output.shape:
            raise RefusedError(
                "the model does other operations on a transformed input than on the input itself; "
                "equivariance_report needs one whose operations depend on sizes alone"
            )
        keep(row, output)

    result = Recorder(ndim, watch, **way).run(model, inputs)
    leaves = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
    for row, output in zip(base.outputs, leaves):
        keep(row, output)


def exact_everywhere(model: nn.Module, inputs: Sequence[Any], ndim: int, mirrors: Sequence[str]) -> bool:
    """Is the geometry of every layer and output exact for these mirrors?"""
    base = _record(model, Names(model), inputs, ndim, ())
    for letter in mirrors:
        way = Comparison(letter, ndim, base.total)
        _follow(base, model, [way.of_input(x) for x in inputs], ndim, _keep("geometry", way), mirror=way.dims)
    return all(
        row.geometry[letter] <= row.tolerance for row in (*base.rows, *base.outputs) for letter in mirrors
    )
