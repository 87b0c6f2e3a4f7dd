# What a backend may refuse, by its reason: each with a condition that is worked out here, from the case alone.
"""A refusal that is not right would be a test that does not run. Conditions are those that make a refusal right; some
are wider than the backend's own, never so wide that whole kinds of layers pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from oracle import Case, arrange

from symconv_fast.problem import suggests_channels_last


class Asked(NamedTuple):
    """What `can_run` was asked about."""

    case: Case
    dtype: torch.dtype
    op: str
    where: str

    @property
    def masks(self) -> list[int]:
        """Ties of the segments; backward all of them are summed together."""
        found = [mask for mask, _ in self.case.ties]
        if self.op == "fprop":
            return found
        union = 0
        for mask in found:
            union |= mask
        return [union]

    @property
    def source_last(self) -> bool:
        """Is the first argument channels_last?"""
        case = self.case
        shape, layout = (
            (case.input_shape, case.layouts[0])
            if self.op == "fprop"
            else (case.output_shape, case.layouts[2])
        )
        return suggests_channels_last(arrange(torch.zeros(shape), layout, torch.float32))

    @property
    def result_last(self) -> bool:
        return self.case.result_last and self.case.ndim > 1

    def tied(self, mask: int) -> list[int]:
        """Tied axes, the innermost first."""
        ndim = self.case.ndim
        return [axis for axis in reversed(range(ndim)) if mask >> (ndim - 1 - axis) & 1]

    def free(self, mask: int) -> list[int]:
        return [axis for axis in range(self.case.ndim) if axis not in self.tied(mask)]

    def filters(self, axis: int) -> bool:
        """Has an axis three neighbouring taps at stride 1?"""
        case = self.case
        return (case.kernel[axis], case.stride[axis], case.dilation[axis]) == (3, 1, 1)


def _depthwise(a: Asked) -> bool:
    return a.case.channels == a.case.groups > 1


def _shares(a: Asked, axis: int) -> bool:
    """Do mirrored taps read positions of the same residue?"""
    taps, stride, dilation = a.case.kernel[axis], a.case.stride[axis], a.case.dilation[axis]
    mirrored = pairwise(tap * dilation for tap in range(taps))
    apart = {(dilation * (taps - 1) - 2 * at) % stride for pair in mirrored for at in pair}
    return 1 < taps <= 16 and apart == {0}


def _scatters(a: Asked, mask: int) -> bool:
    """Must the scatter take a tie? Its two innermost axes share products, and lines run along the width."""
    tied = a.tied(mask)
    if not tied or a.source_last != a.result_last or not (a.result_last or tied[0] == a.case.ndim - 1):
        return False
    if _crosses_tiles(a, tied[0]):
        return False
    return prod(a.case.kernel[axis] for axis in tied[:2]) <= 49 and all(_shares(a, axis) for axis in tied[:2])


def _crosses_tiles(a: Asked, axis: int) -> bool:
    """Is a line cut into tiles, of which taps reach across more than one?"""
    case = a.case
    reach = case.dilation[axis] * (case.kernel[axis] - 1) // case.stride[axis]
    return case.output_shape[2 + axis] > 160 and reach > 128


def _filtered_panel(a: Asked, mask: int) -> bool:
    """Must a panel be filtered? Some axis but the width is free, and every free axis of so many taps can be."""
    free = a.free(mask)
    wide = [axis for axis in free if a.case.kernel[axis] >= 3]
    return any(axis < a.case.ndim - 1 for axis in wide) and all(a.filters(axis) for axis in wide)


def _filtered_scatter(a: Asked, mask: int) -> bool:
    """Must a scatter be filtered? One axis is tied, and another one can be."""
    return len(a.tied(mask)) == 1 and _scatters(a, mask) and any(map(a.filters, a.free(mask)))


def _no_filtering(a: Asked) -> bool:
    return not any((_filtered_scatter if "scatter" in a.where else _filtered_panel)(a, m) for m in a.masks)


def _do_not_fill(a: Asked, lanes: str) -> bool:
    sizes = {size // max(4, a.dtype.itemsize) for size in (16, 32, 64)}
    return int(lanes) in sizes and a.case.out_channels // a.case.groups % int(lanes) != 0


def _one_image_is_large(a: Asked) -> bool:
    case = a.case
    return (prod(case.input_shape) + prod(case.output_shape)) // case.batch * a.dtype.itemsize > 1 << 20


MAY: dict[str, Callable[..., bool]] = {
    "a depthwise layer .* has kernels of its own": _depthwise,
    "a transposed layer( gathers forward)?": lambda a, *_: a.case.transposed,
    "more than 4 input channels in a group": lambda a: a.case.channels > 4 * a.case.groups,
    r"the filters of a group do not fill vectors of (\d+)": _do_not_fill,
    "no axis is tied": lambda a: not any(mask for mask, _ in a.case.ties),
    "a line has one layout": lambda a: a.case.ndim == 1,
    "it is channels_last already": lambda a: a.source_last or a.result_last,
    "input and output, more than 1 MiB and than the weight, would be copied": _one_image_is_large,
    "gradients are gathered, not scattered": lambda a: a.op != "fprop",
    "no tie whose mirrored taps share their products .*": lambda a: not any(_scatters(a, m) for m in a.masks),
    "minimal filtering is for float32, not for .*": lambda a: a.dtype != torch.float32,
    "no axis is free of ties and has three taps, .*": _no_filtering,
    "no tie mirrors an axis along which the kernel has one tap": lambda a: (
        not any(a.case.kernel[axis] == 1 for mask, _ in a.case.ties for axis in a.tied(mask))
    ),
    "beside a bias, .* 16 bits would be rounded twice": lambda a: a.op == "fprop" and a.dtype.itemsize == 2,
    "the tensors are on the CPU( .*)?": lambda a, *_: a.where.startswith(("cuda", "triton")),
}
"""Conditions by reasons, which are regular expressions; groups of these are arguments."""

NEVER = {
    *(
        (f"cpu/{way}", op)
        for way in ("scatter", "scatter_winograd f2", "scatter_winograd f4")
        for op in ("dgrad", "wgrad")
    ),
}
"""Passes that an algorithm has not at all."""
FLOAT32_ALONE = {f"cpu/{way} {level}" for way in ("winograd", "scatter_winograd") for level in ("f2", "f4")}
FORWARD_32_BITS = {"distinct/copy"}
"""Algorithms whose forward pass is not for 16-bit types."""


def has_pass(where: str, op: str, dtype: torch.dtype) -> bool:
    """Is there a pass of an algorithm in a dtype?"""
    if (where, op) in NEVER or (where in FLOAT32_ALONE and dtype != torch.float32):
        return False
    return not (where in FORWARD_32_BITS and op == "fprop" and dtype.itemsize == 2)


def has_layouts(where: str, op: str, source_last: bool, result_last: bool) -> bool:
    """Does a pass of an algorithm go from one layout to another? Both are channels_last or not."""
    if where.startswith("cpu/scatter"):
        return source_last == result_last
    if where == "cpu/relayout":
        return not source_last and not result_last
    return True


def is_right(case: Case, dtype: torch.dtype, op: str, where: str, reason: str) -> bool:
    """May an algorithm refuse a case for that reason?"""
    for pattern, may in MAY.items():
        found = re.fullmatch(pattern, reason)
        if found:
            return may(Asked(case, dtype, op, where), *found.groups())
    return False


ON_A_GPU = (
    # of a device
    "its instructions are those of compute capability 9.0, not of sm_.*",
    r"no tile fits the \d+ KB of shared memory of sm_.*",
    r"its strips do not fit the \d+ KB of shared memory of sm_.*",
    "no tile of 3 tied axes in float64 fits the registers of .*",
    # of an installation
    "the native CUDA module was not built(;| for sm_| without these kernels;).*",
    "the cuda backend is not available .* [(](the native CUDA module was not built|this torch|torch finds no GPU).*",
    "the triton backend is not available .* [(]No module named 'triton'.*",
    "there is one CUDA device",
    # of a layer: each algorithm of the CUDA kernels is for some
    "it has the passes .* alone",
    "it is for (layers with one tie, h, v or hv, and no free rows|depthwise layers, .*)",
    "its patches are (of bfloat16 or float16|for kernels of 3 x 3 .*)",
    "its maps have no planes",
    "it has no kernels (in float64|of three dims)",
    "its kernels round float32 to TF32, which .* does not allow",
)
"""Why a test on a GPU may have nothing to run, as regular expressions; with any other reason it fails."""


def may_skip(reason: str) -> bool:
    """May a test on a GPU be skipped for that reason?"""
    return any(re.fullmatch(known, reason) for known in ON_A_GPU)
