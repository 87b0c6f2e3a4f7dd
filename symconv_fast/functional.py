"""symmetric_conv*d: validation, padding, autocast, bias and layout, written once above all backends."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activation as activations
from . import eager, export, ops
from .both_sides import Asked, InputSymmetryLike, parse_input, resolve_asked
from .checks import LIMIT, ShapeError, check_is_tensor, check_tensors, ints
from .native import autocast_to, suggests_channels_last
from .problem import Problem
from .symmetry import Symmetry, SymmetryLike, compute_rows, resolve_rows
from .ties import Ties
from .tracing import is_traced, record_call

IntOrInts = Union[int, Sequence[int]]
TiesLike = Union[SymmetryLike, Ties]

# Asked once: torch.compile would put the question into every graph. torch raises for devices without autocast ("meta").
_AUTOCAST_DEVICES = frozenset(
    device
    for device in ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")
    if torch.amp.is_autocast_available(device)
)


class Call(NamedTuple):
    """The arguments of one fprop, and what was made of those of the layer.

    `unbatched`: the input came without a batch dimension. `as_given`: tensors are those that were given, or their casts
    by autocast.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    static: tuple[Any, ...]
    unbatched: bool
    as_given: bool

    def run(self) -> Tensor:
        """The layer's output."""
        if export.is_scripting_onnx():
            output = export.expand_and_convolve(self.input, self.weight, self.bias, *self.static)
            return output.squeeze(0) if self.unbatched else output
        output = eager.fprop(self.input, self.weight, self.bias, self.static)
        return output.squeeze(0) if self.unbatched else output

    def run_activated(self, activation: str) -> Tensor:
        """The same with an activation, in one kernel where a backend has that."""
        output = ops.fprop_activated(self.input, self.weight, self.bias, activation, *self.static)
        return output.squeeze(0) if self.unbatched else output

    def problem(self) -> Problem:
        """The same as a `Problem`, computing nothing; raises what the operator would."""
        x, layout = self.input, suggests_channels_last(self.input)
        problem = Problem.create((x.shape, self.weight.shape), self.static, layout, x.dtype, x.device.type)
        check_tensors(x, self.weight, self.bias, problem.out_channels)
        return problem


def symmetric_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    symmetry: TiesLike,
    input_symmetry: InputSymmetryLike = None,
    kernel_size: IntOrInts | None = None,
    activation: str | None = None,
) -> Tensor:
    """`symmetric_conv2d` in one dimension: input (N, C, L) or (C, L), weight (U, C/groups, K)."""
    ties = _both(1, symmetry, input_symmetry, kernel_size)
    return run(1, input, weight, bias, stride, padding, dilation, groups, ties, activation=activation)


def symmetric_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    symmetry: TiesLike,
    input_symmetry: InputSymmetryLike = None,
    kernel_size: IntOrInts | None = None,
    activation: str | None = None,
) -> Tensor:
    """`F.conv2d(input, expanded weight, bias, stride, padding, dilation, groups)` from the reduced weight.

    Args:
        input: (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64, any strides.
        weight: the reduced weight (U, C/groups, KH, KW), rows in the order h, v, z, hv, hz, vz, hvz, free.
        bias: (out_channels,), or (U,), which the members of an orbit then share.
        stride, padding, dilation, groups: as for `torch.nn.functional.conv2d`, "same" and "valid" included.
        symmetry: which rows are tied. Counts fix out_channels; a string or a percentage is taken for the largest
            out_channels that U rows can have (a string ties every row); the `ties` of a layer are exact.
        input_symmetry: what mirrors do to the input channels, as for `SymmetricConv2d`; the `ties` of a layer have it.
        kernel_size: of self-symmetric filters ("h+", "h-"), of which the weight keeps about half of the taps.
        activation: "relu", "silu", "gelu" (the exact one) or None. What torch's function of that name makes of the
            output, in the kernel that writes it where there is one (Triton, where no gradient is wanted; then before
            the output is rounded), else in place after it, or out of place where a gradient is wanted.

    Returns:
        (N, out_channels, OH, OW): per group first the rows as they are, then the mirrored copies of each segment.

    Raises:
        ValueError: weight, bias or symmetry do not fit each other, or there is no such activation. RuntimeError:
        dtypes or devices differ, or the kernel is larger than the padded input. TypeError: unsupported dtype.
    """
    ties = _both(2, symmetry, input_symmetry, kernel_size)
    return run(2, input, weight, bias, stride, padding, dilation, groups, ties, activation=activation)


def symmetric_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    *,
    symmetry: TiesLike,
    input_symmetry: InputSymmetryLike = None,
    kernel_size: IntOrInts | None = None,
    activation: str | None = None,
) -> Tensor:
    """`symmetric_conv2d` in three dimensions: input ([N,] C, D, H, W), weight (U, C/groups, KD, KH, KW)."""
    ties = _both(3, symmetry, input_symmetry, kernel_size)
    return run(3, input, weight, bias, stride, padding, dilation, groups, ties, activation=activation)


def symmetric_conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    symmetry: TiesLike,
    input_symmetry: InputSymmetryLike = None,
    kernel_size: IntOrInts | None = None,
    activation: str | None = None,
) -> Tensor:
    """`symmetric_conv_transpose2d` in one dimension: input (N, C, L) or (C, L), weight (C, U/groups, K)."""
    ties = _both(1, symmetry, input_symmetry, kernel_size)
    sizes = (stride, padding, dilation, groups, ties, output_padding)
    return run(1, input, weight, bias, *sizes, transposed=True, activation=activation)


def symmetric_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    symmetry: TiesLike,
    input_symmetry: InputSymmetryLike = None,
    kernel_size: IntOrInts | None = None,
    activation: str | None = None,
) -> Tensor:
    """`F.conv_transpose2d` with the weight (C, U/groups, KH, KW) expanded along dim 1.

    Arguments in the order of `torch.nn.functional.conv_transpose2d`; otherwise as `symmetric_conv2d`.
    """
    ties = _both(2, symmetry, input_symmetry, kernel_size)
    sizes = (stride, padding, dilation, groups, ties, output_padding)
    return run(2, input, weight, bias, *sizes, transposed=True, activation=activation)


def symmetric_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
    *,
    symmetry: TiesLike,
    input_symmetry: InputSymmetryLike = None,
    kernel_size: IntOrInts | None = None,
    activation: str | None = None,
) -> Tensor:
    """`symmetric_conv_transpose2d` in three dimensions: weight (C, U/groups, KD, KH, KW)."""
    ties = _both(3, symmetry, input_symmetry, kernel_size)
    sizes = (stride, padding, dilation, groups, ties, output_padding)
    return run(3, input, weight, bias, *sizes, transposed=True, activation=activation)


def run(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *arguments: Any,
    transposed: bool = False,
    activation: str | None = None,
) -> Tensor:
    """The layer's output: of `prepare` with the same arguments, which calls like an earlier one go past."""
    if is_traced(input, weight):
        return _trace(ndim, input, weight, bias, *arguments, transposed=transposed, activation=activation)
    if activation is not None:
        activations.check(activation)
        check_is_tensor(input, "input")
        if input.device.type != "cpu":  # no kernel for CPUs applies activations
            call = prepare(ndim, input, weight, bias, *arguments, transposed=transposed)
            return call.run_activated(activation)
    spec, taken = (ndim, transposed, *arguments), eager.takes(input)
    output = eager.recall(input, weight, bias, *spec) if taken else None
    if output is None:
        call = prepare(ndim, input, weight, bias, *arguments, transposed=transposed)
        output = call.run()
        if taken and call.as_given:
            eager.remember(input, weight, bias, spec, call.static)
    return output if activation is None else activations.activate(output, activation)


_PUBLIC: dict[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): symmetric_conv1d,
    (2, False): symmetric_conv2d,
    (3, False): symmetric_conv3d,
    (1, True): symmetric_conv_transpose1d,
    (2, True): symmetric_conv_transpose2d,
    (3, True): symmetric_conv_transpose3d,
}


def _both(
    ndim: int, symmetry: TiesLike, input_symmetry: InputSymmetryLike, kernel_size: IntOrInts | None
) -> Any:
    """What `run` takes as the symmetry: it as it is, or all three together."""
    if input_symmetry is None and kernel_size is None:
        return symmetry
    if isinstance(symmetry, Ties):
        raise TypeError(
            "symmetry is the ties of a layer, which say what mirrors do to its input and how large its kernel is; "
            "leave input_symmetry and kernel_size out"
        )
    kernel = None if kernel_size is None else _tuple(kernel_size, ndim, "kernel_size")
    make = _make_asked if torch.compiler.is_compiling() else _asked
    return make(Symmetry(symmetry, ndim=ndim), parse_input(input_symmetry, ndim), kernel)


def _make_asked(symmetry: Symmetry, inputs: Any, kernel: tuple[int, ...] | None) -> Asked:
    return Asked(symmetry, inputs, kernel)


_asked = functools.lru_cache(maxsize=1024)(_make_asked)
"""One object for equal arguments, since calls are remembered by identity."""


def _trace(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts | str,
    dilation: IntOrInts,
    groups: int,
    symmetry: TiesLike | Asked,
    output_padding: IntOrInts = 0,
    *,
    transposed: bool,
    activation: str | None,
) -> Any:
    """The node of torch.fx that calls the public function with these arguments."""
    sizes = (output_padding, groups, dilation) if transposed else (dilation, groups)
    options: dict[str, Any] = {"activation": activation} if activation else {}
    arguments = (input, weight, bias, stride, padding, *sizes)
    return record_call(_PUBLIC[ndim, transposed], symmetry, *arguments, **options)


def prepare(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts | str,
    dilation: IntOrInts,
    groups: int,
    symmetry: TiesLike | Asked,
    output_padding: IntOrInts = 0,
    *,
    transposed: bool = False,
) -> Call:
    """Check the arguments of a layer and turn them into those of the operator; nothing is computed but padding."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None or name != "bias":
            check_is_tensor(tensor, name)
    groups, given = _positive(groups), (input, bias)
    unbatched = input.dim() == ndim + 1
    _check_dims(ndim, input, weight, unbatched)
    if unbatched:
        input = input.unsqueeze(0)
    ties = (
        symmetry
        if isinstance(symmetry, Ties)
        else _resolve(symmetry, ndim, weight, input, groups, transposed)
    )
    _check_weight(ties, weight, groups, transposed)
    if unbatched:
        _check_unbatched(input[0], weight, ties, transposed)
    stride, dilation = _tuple(stride, ndim, "stride"), _tuple(dilation, ndim, "dilation")
    if isinstance(padding, str):
        if transposed:
            raise TypeError(
                f"padding={padding!r} must be an int or a tuple of ints in a transposed convolution"
            )
        input, padding = _named_padding(input, padding, ties.kernel(weight.shape[2:]), stride, dilation)
    else:
        padding = _tuple(padding, ndim, "padding")
    if bias is not None:
        check_bias(ties)
        bias = _full_bias(bias, ties)
    as_given = input is given[0] and bias is given[1]
    device = input.device.type
    if device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        input, weight, bias = _autocast(input, weight, bias)
    channels_last = suggests_channels_last(input) or suggests_channels_last(weight)
    extra = _tuple(output_padding, ndim, "output_padding")
    static = (ties.flat, stride, padding, dilation, extra, transposed, groups, channels_last)
    return Call(input, weight, bias, static, unbatched, as_given)


def _check_dims(ndim: int, input: Tensor, weight: Tensor, unbatched: bool) -> None:
    if not unbatched and input.dim() != ndim + 2:
        raise ShapeError(
            f"expected {ndim + 1}-D (unbatched) or {ndim + 2}-D (batched) input to a {ndim}-D convolution, "
            f"but got input of shape {list(input.shape)}"
        )
    if weight.dim() != ndim + 2:
        raise ShapeError(
            f"expected weight with {ndim + 2} dims for a {ndim}-D convolution, got shape {list(weight.shape)}"
        )


def _check_unbatched(input: Tensor, weight: Tensor, ties: Ties, transposed: bool) -> None:
    """The operator checks channels too, but would name a shape with a batch dimension that nobody gave."""
    groups = ties.layer_groups
    channels = ties.in_channels(weight.shape, transposed)
    if input.shape[0] != channels:
        raise ShapeError(
            f"given groups={groups} and weight of shape {list(weight.shape)}, expected unbatched input of shape "
            f"({channels}, ...), but got {list(input.shape)} with {input.shape[0]} channels instead"
        )


def _check_weight(ties: Ties, weight: Tensor, groups: int, transposed: bool) -> None:
    """The operator checks sizes; ties made for another layer are caught here, where symmetry can be named."""
    if ties.layer_groups != groups:
        raise ValueError(
            f"symmetry was resolved for groups={ties.layer_groups}, but groups={groups} was given"
        )
    if ties.ndim != weight.dim() - 2:
        raise ValueError(
            f"symmetry was resolved for {ties.ndim} dims, but weight has shape {list(weight.shape)}"
        )
    rows, dim = (ties.unique // groups, 1) if transposed else (ties.unique, 0)
    if weight.shape[dim] != rows:
        raise ShapeError(
            f"symmetry needs weight with {rows} rows along dim {dim} "
            f"(for {ties.out_channels} output channels), got weight of shape {list(weight.shape)}"
        )


def check_bias(ties: Ties) -> None:
    """Raises ShapeError where a mirror negates filters: what a bias adds is not negated."""
    if ties.sides and ties.sides.odd:
        keys = ", ".join(repr(key) for key, _ in ties.keys if "-" in key)
        raise ShapeError(
            f"a mirror negates the outputs of the filters {keys}, and no bias but 0 goes with that; use bias=False"
        )


def _resolve(
    symmetry: SymmetryLike | Asked, ndim: int, weight: Tensor, input: Tensor, groups: int, transposed: bool
) -> Ties:
    rows = weight.shape[1] * groups if transposed else weight.shape[0]
    given = Symmetry(symmetry, ndim=ndim) if not isinstance(symmetry, Asked) else symmetry
    if isinstance(given, Symmetry) and given.is_signed:
        given = Asked(given, None, None)
    if isinstance(given, Asked):
        return resolve_asked(given, ndim, weight.shape, input.shape[1], groups, transposed)
    if rows % groups:
        raise ShapeError(f"weight has {rows} rows, which must be divisible by groups={groups}")
    resolve = compute_rows if torch.compiler.is_compiling() else resolve_rows
    return resolve(given.counts, ndim, rows, groups)


def _positive(groups: Any) -> int:
    """`groups`, checked; NumPy's integers are integers."""
    if isinstance(groups, bool) or not hasattr(groups, "__index__"):
        raise TypeError(f"groups={groups!r} must be a positive int, such as 1")
    if groups < 1:
        raise ShapeError(f"groups={groups!r} must be a positive int, such as 1")
    return groups if isinstance(groups, int) else operator.index(groups)


def _tuple(value: Any, ndim: int, name: str) -> tuple[int, ...]:
    """An int for all dims, or one a dim, as torch's functions take them."""
    if type(value) is int and -LIMIT <= value < LIMIT:
        return (value,) * ndim
    values = ints(value, name)
    if len(values) == 1:
        return values * ndim
    if len(values) != ndim:
        raise ShapeError(f"{name}={value} must be an int or {ndim} ints")
    return values


def _named_padding(
    input: Tensor, padding: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Resolve "same" and "valid"; where "same" is one longer on the right, as torch's, that row is padded here."""
    if padding == "valid":
        return input, (0,) * len(stride)
    if padding != "same":
        raise ShapeError(f"padding={padding!r} is not valid; give ints, 'same' or 'valid'")
    if any(s != 1 for s in stride):
        raise ShapeError(
            f"padding='same' is not supported for strided convolutions, got stride={tuple(stride)}"
        )
    total = [d * (k - 1) for k, d in zip(kernel, dilation)]
    if any(t % 2 for t in total):
        input = F.pad(input, [side for t in reversed(total) for side in (0, t % 2)])
    return input, tuple(t // 2 for t in total)


def _full_bias(bias: Tensor, ties: Ties) -> Tensor:
    shape = tuple(bias.shape)
    if shape == (ties.out_channels,):
        return bias
    if shape == (ties.unique,):
        return ties.expand_bias(bias)
    raise ShapeError(
        f"expected bias of shape ({ties.out_channels},), or ({ties.unique},) shared within orbits, got {shape}"
    )


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does for convolutions: floating tensors but float64 go to the autocast dtype."""
    dtype = torch.get_autocast_dtype(input.device.type)
    return (
        autocast_to(input, dtype),
        autocast_to(weight, dtype),
        None if bias is None else autocast_to(bias, dtype),
    )
