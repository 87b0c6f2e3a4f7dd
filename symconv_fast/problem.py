"""One convolution, frozen: sizes, stride, dtype, layout and ties; its output shape, memory format and cost.

Everything that a backend, a fake kernel or a user must agree on is computed here and only here. The size functions
also take the symbolic integers of torch.compile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .checks import ShapeError
from .flat_ties import is_sided
from .sides import Sides
from .ties import COPIES, Segment, Ties, decode, orbit_size

OPERANDS = {"fprop": ("x", "w", "y"), "dgrad": ("y", "w", "x"), "wgrad": ("y", "x", "w")}
"""Both arguments and the result of each pass, by the names of the layer's tensors, which their gradients have too."""
OPS = tuple(OPERANDS)
FAR = 1 << 14
"""Strides (those of all axes multiplied), paddings and dilations above this are another kind of problem: see
`Problem.is_far`."""


def suggests_channels_last(tensor: Tensor) -> bool:
    """c10's suggest_memory_format != contiguous: are the strides of a (N, C, *spatial) tensor like channels last?

    Only 4-D and 5-D tensors can be. Where a tensor is both (C = 1, or one pixel) the answer is that of c10.
    """
    ndim = tensor.dim()
    if ndim != 4 and ndim != 5:
        return False
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    smallest = 0
    for d in (1, 3, 2, 0) if ndim == 4 else (1, 4, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < smallest:
            return False
        # N111 with equal strides is both; contiguous wins.
        if d == 0 and smallest == strides[1]:
            return False
        smallest = strides[d]
        if sizes[d] > 1:
            smallest *= sizes[d]
    return True


def memory_format(ndim: int, channels_last: bool) -> torch.memory_format:
    """torch's memory format of a tensor with `ndim` spatial dims."""
    if not channels_last or ndim == 1:
        return torch.contiguous_format
    return torch.channels_last if ndim == 2 else torch.channels_last_3d


def format_of(tensor: Tensor) -> torch.memory_format:
    """The memory format that the strides of a (N, C, *spatial) tensor, or of a weight, suggest."""
    return memory_format(tensor.dim() - 2, suggests_channels_last(tensor))


def allocate(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    """An uninitialised result (N, C, *spatial) with the dtype and device of `like`; real and fake kernels use it."""
    fmt = memory_format(len(shape) - 2, channels_last)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=fmt)


def as_result(tensor: Tensor, channels_last: bool) -> Tensor:
    """`tensor` with exactly the strides that `allocate` gives, copied only if its layout differs."""
    fmt = memory_format(tensor.dim() - 2, channels_last)
    if not tensor.is_contiguous(memory_format=fmt):
        return tensor.contiguous(memory_format=fmt)
    if 1 not in tensor.shape:
        return tensor
    # Dimensions of size 1 may carry any stride; torch.compile compares them all the same.
    expected = torch.empty(tensor.shape, device="meta", memory_format=fmt).stride()
    return tensor if tensor.stride() == expected else tensor.as_strided(tensor.shape, expected)


def out_spatial(
    spatial: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    transposed: bool,
) -> list[int]:
    """Spatial output sizes of a convolution, as torch.nn.Conv2d and ConvTranspose2d document them."""
    if transposed:
        return [
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, k, s, p, d, o in zip(spatial, kernel, stride, padding, dilation, output_padding)
        ]
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(spatial, kernel, stride, padding, dilation)
    ]


def output_size(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    ties: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    transposed: bool,
    groups: int,
) -> list[int]:
    """Shape (N, out_channels, *out_spatial) of the layer's output; checks that everything fits.

    Args:
        input_size: (N, C, *spatial) of the layer's input.
        weight_size: (U, C/groups, *K) of the reduced weight, (C, U/groups, *K) if transposed; of self-symmetric filters
            fewer taps and channels.
        ties: as in `Ties.flat`.

    Raises:
        ShapeError: (a ValueError and a RuntimeError) naming the expected and the given shape.
    """
    ndim = len(weight_size) - 2
    _check_geometry(ndim, stride, padding, dilation, output_padding, groups)
    sided = decode(ndim, groups, ties) if is_sided(ties) else None
    unique = sided.unique if sided else _check_ties(ndim, ties, groups)
    if len(input_size) != ndim + 2:
        raise ShapeError(f"expected input of shape (N, C, {ndim} spatial sizes), got {list(input_size)}")
    rows = weight_size[1] * groups if transposed else weight_size[0]
    if rows != unique:
        raise ShapeError(f"symmetry needs {unique} rows of weight, got weight of shape {list(weight_size)}")
    channels = weight_size[0] if transposed else weight_size[1] * groups
    if sided:
        channels = sided.in_channels(weight_size, transposed)
    if input_size[1] != channels:
        raise ShapeError(
            f"given groups={groups} and weight of shape {list(weight_size)}, expected input of shape "
            f"(N, {channels}, ...), but got {list(input_size)} with {input_size[1]} channels instead"
        )
    if weight_size[0] < groups and (sided is None or sided.groups == groups):
        raise ShapeError(
            f"given groups={groups}, expected weight with at least {groups} along dim 0, got {list(weight_size)}"
        )
    if sided:
        _check_sides(sided, channels, weight_size, transposed)
    kernel, spatial = sided.kernel(weight_size[2:]) if sided else weight_size[2:], input_size[2:]
    out = out_spatial(spatial, kernel, stride, padding, dilation, output_padding, transposed)
    _check_extent(input_size[0], spatial, kernel, padding, dilation, out, transposed)
    filters = sided.out_channels if sided else sum(r * orbit_size(m) for m, r in zip(ties[::2], ties[1::2]))
    return [input_size[0], filters, *out]


def _check_sides(ties: Ties, channels: int, weight_size: Sequence[int], transposed: bool) -> None:
    """The channels that mirrors move must be those of the layer, and the weight what is kept of its filters."""
    sides = ties.sides
    assert sides is not None
    if sides.inputs is not None and sides.inputs.out_channels != channels:
        raise ShapeError(
            f"input_symmetry is of {sides.inputs.out_channels} channels, but weight of shape {list(weight_size)} is "
            f"for {channels} input channels"
        )
    if transposed and ties.groups != ties.layer_groups:
        raise ShapeError(f"mirrors exchange the groups of a transposed layer with groups={ties.layer_groups}")
    kept = ties.weight_shape(channels // ties.layer_groups, ties.kernel(weight_size[2:]), transposed)
    if list(weight_size) != list(kept) or (sides.is_packed and not sides.kernel):
        raise ShapeError(
            f"self-symmetric filters of kernel {list(sides.kernel)} with {channels} input channels keep a weight of "
            f"shape {list(kept)}, got {list(weight_size)}"
        )


def _bounded_stride(
    spatial: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    transposed: bool,
) -> tuple[int, ...]:
    """The smallest strides that do the same: where no step is made, any is as good, and kernels count its phases."""
    bounded = []
    for n, o, k, s, p, d, extra in zip(spatial, out, kernel, stride, padding, dilation, output_padding):
        if transposed:
            bounded.append(min(s, extra + 1) if n == 1 else s)
        else:
            bounded.append(min(s, n + 2 * p - d * (k - 1)) if o == 1 else s)
    return tuple(bounded)


def _check_ties(ndim: int, ties: Sequence[int], groups: int) -> int:
    """U of flat ties; a kernel indexes memory by them, so nothing malformed may pass."""
    if len(ties) % 2 or not ties:
        raise ShapeError(f"ties must be [mask, rows, ...], got {list(ties)}")
    for mask, rows in zip(ties[::2], ties[1::2]):
        if mask not in COPIES or mask >> ndim or rows < 0 or rows % groups:
            raise ShapeError(
                f"ties {list(ties)} do not fit {ndim} dims and groups={groups}: each mask must be below {1 << ndim} "
                f"and each number of rows divisible by groups"
            )
    return sum(ties[1::2])


def _check_geometry(
    ndim: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> None:
    """Lengths and ranges of the integer arguments; `ndim` values each."""
    if ndim not in (1, 2, 3):
        raise ShapeError(f"weight must have 3, 4 or 5 dims (1-D, 2-D or 3-D convolution), got {ndim + 2}")
    named = (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
        ("output_padding", output_padding, 0),
    )
    for name, values, least in named:
        if len(values) != ndim or any(v < least for v in values):
            valid = [least] * ndim
            raise ShapeError(
                f"{name}={list(values)} must be {ndim} values of at least {least}, such as {valid}"
            )
    if groups < 1:
        raise ShapeError(f"groups={groups} must be at least 1")
    for o, s, d in zip(output_padding, stride, dilation):
        if o > 0 and o >= s and o >= d:
            raise ShapeError(
                f"output_padding={list(output_padding)} must be smaller than stride={list(stride)} or "
                f"dilation={list(dilation)}"
            )


def _check_extent(
    batch: int,
    spatial: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out: Sequence[int],
    transposed: bool,
) -> None:
    # As torch, which takes maps without a position where there are none of them either.
    if any(k < 1 for k in kernel) or (any(n < 1 for n in spatial) and batch > 0):
        raise ShapeError(
            f"kernel and spatial sizes must be at least 1, got kernel {list(kernel)} and input {list(spatial)}"
        )
    if any(isinstance(n, int) and n >= 1 << 62 for n in out):
        raise ShapeError(
            f"the output size would be {list(out)}, which no memory can hold; padding={list(padding)}"
        )
    if all(n > 0 for n in out):
        return
    if transposed:
        raise ShapeError(f"input of {list(spatial)} is too small: the output size would be {list(out)}")
    padded = [n + 2 * p for n, p in zip(spatial, padding)]
    effective = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    raise ShapeError(
        f"padded input size per channel: {padded}; kernel size (dilated): {effective}. "
        "Kernel size can't be greater than actual input size"
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """One convolution with tied filters, frozen and hashable: what an operator computes.

    `spatial` are the sizes of the layer's input, `kernel` those of a filter, `ties` is ((mask, rows), ...) with rows
    counted over all groups. `channels_last` is the memory format of the result, `input_channels_last` that of the
    operator's first tensor argument (the input for fprop, the output gradient for dgrad and wgrad). `sides` are
    those of the ties; where there are any, a backend whose kernels know nothing of them says so in `can_run`.
    """

    batch: int
    in_channels: int
    spatial: tuple[int, ...]
    unique: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    groups: int
    ties: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: str
    channels_last: bool
    input_channels_last: bool
    sides: Sides | None = None
    out_spatial: tuple[int, ...] = field(init=False, compare=False, repr=False)
    """Spatial sizes of the layer's output; kept, since estimates ask for them dozens of times."""

    def __post_init__(self) -> None:
        sizes = (self.spatial, self.kernel, self.stride, self.padding, self.dilation, self.output_padding)
        object.__setattr__(self, "out_spatial", tuple(out_spatial(*sizes, self.transposed)))

    @classmethod
    def create(
        cls,
        sizes: tuple[Sequence[int], Sequence[int]],
        static: Sequence[Any],
        input_channels_last: bool,
        dtype: torch.dtype,
        device: str,
    ) -> Problem:
        """From (input_size, weight_size) and the static arguments of an operator, `ties` to `channels_last`.

        Raises ShapeError as `output_size` does.
        """
        input_size, weight_size = sizes
        ties, _, padding, dilation, output_padding, transposed, groups, channels_last = static
        out = output_size(input_size, weight_size, *static[:7])
        own = decode(len(weight_size) - 2, groups, ties)
        kernel = own.kernel(weight_size[2:])
        return cls(
            batch=input_size[0],
            in_channels=input_size[1],
            spatial=tuple(input_size[2:]),
            unique=own.unique,
            out_channels=out[1],
            kernel=kernel,
            stride=_bounded_stride(input_size[2:], out[2:], kernel, *static[1:6]),
            padding=tuple(padding),
            dilation=tuple(dilation),
            output_padding=tuple(output_padding),
            transposed=transposed,
            groups=groups,
            ties=tuple((mask, rows) for mask, rows in own.segments),
            dtype=dtype,
            device=device,
            channels_last=channels_last,
            input_channels_last=input_channels_last,
            sides=own.sides,
        )

    @property
    def ndim(self) -> int:
        """Spatial dims: 1, 2 or 3."""
        return len(self.kernel)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, *spatial)."""
        return (self.batch, self.in_channels, *self.spatial)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, out_channels, *out_spatial)."""
        return (self.batch, self.out_channels, *self.out_spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the reduced weight: (U, C/groups, *K), or (C, U/groups, *K) if transposed; `Ties.weight_shape`."""
        if self.sides:
            return self.layer_ties.weight_shape(self.in_channels // self.groups, self.kernel, self.transposed)
        return self._filters_shape(self.unique)

    @property
    def expanded_shape(self) -> tuple[int, ...]:
        """Of the ordinary filters: (out_channels, C/groups, *K), or (C, out_channels/groups, *K) if transposed."""
        return self._filters_shape(self.out_channels)

    def _filters_shape(self, rows: int) -> tuple[int, ...]:
        if self.transposed:
            return (self.in_channels, rows // self.groups, *self.kernel)
        return (rows, self.in_channels // self.groups, *self.kernel)

    @property
    def is_empty(self) -> bool:
        """Is there nothing to multiply? Sums of nothing are zeros."""
        return any(0 in shape for shape in (self.input_shape, self.weight_shape, self.output_shape))

    @property
    def is_far(self) -> bool:
        """Do taps or outputs lie so far apart that counting what is between them, as kernels do, would take for ever?

        (torch's own gradients crash there.) The reference gathers what the taps read and goes on from that.
        """
        return max(*self.stride, *self.padding, *self.dilation, math.prod(self.stride)) > FAR

    @property
    def layer_ties(self) -> Ties:
        """The ties with the methods that expand and reduce filters."""
        return _layer_ties(len(self.kernel), self.groups, self.ties, self.sides)

    @property
    def macs_folded(self) -> int:
        """Multiply-accumulates of one pass with the fold: those of the reduced weight (any of the three passes).

        Where mirrors exchange groups every filter reads channels of its own, and none is saved.
        """
        if self.sides and self.sides.across:
            return self.macs_dense
        return macs(self.input_shape, self.weight_shape, self.out_spatial, self.transposed)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates of one pass of the ordinary convolution with expanded filters."""
        return macs(self.input_shape, self.expanded_shape, self.out_spatial, self.transposed)

    @property
    def bytes(self) -> int:
        """Bytes of input, output and reduced weight, each moved once."""
        shapes = (self.input_shape, self.output_shape, self.weight_shape)
        return self.dtype.itemsize * sum(math.prod(shape) for shape in shapes)

    def result_shape(self, op: str) -> tuple[int, ...]:
        """Shape of what `op` returns: "fprop" the output, "dgrad" the input's gradient, "wgrad" the weight's."""
        return {"fprop": self.output_shape, "dgrad": self.input_shape, "wgrad": self.weight_shape}[op]

    def empty_result(self, op: str, like: Tensor) -> Tensor:
        """An uninitialised tensor of the shape and memory format of the result of `op`, on the device of `like`."""
        return allocate(self.result_shape(op), like, self.channels_last)


@lru_cache(maxsize=1024)
def _layer_ties(ndim: int, groups: int, ties: tuple[tuple[int, int], ...], sides: Sides | None) -> Ties:
    segments = tuple(Segment(*segment) for segment in ties)
    return Ties(ndim, 1 if sides and sides.across else groups, segments, sides)


def macs(input_size: Sequence[int], weight_size: Sequence[int], out: Sequence[int], transposed: bool) -> int:
    """Multiply-accumulates of a convolution with filters of `weight_size`: each filter tap once a position."""
    positions = math.prod(input_size[2:]) if transposed else math.prod(out)
    return input_size[0] * positions * math.prod(weight_size)
