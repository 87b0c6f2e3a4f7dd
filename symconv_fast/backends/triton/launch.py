"""What is launched for a problem, as plain data: kernel, grid, arguments, constants. No tensors, no device.

`plan(problem, op, algorithm)` is all that is needed to run the kernels, and to compile them ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from ...problem import Problem
from . import configs, letters, passes
from .geometry import Strides, geometry, packed_weight_strides, pixel_strides
from .plans import Buffer, Context, Launch, Options, Plan

__all__ = [
    "Buffer",
    "Launch",
    "Layout",
    "Options",
    "Plan",
    "default_layout",
    "folds_weight",
    "innermost",
    "is_adjoint",
    "plan",
    "refusal",
    "rows_innermost",
]

Layout = Mapping[str, Strides]
"""Strides of the tensors of an operator: x, y (or its gradient) as (N, C, D, H, W), w as (G, U, C, D, H, W)."""


def plan(
    problem: Problem,
    op: str,
    algorithm: str,
    layout: Layout | None = None,
    options: Options | None = None,
) -> Plan:
    """What is launched for `op` of a problem.

    Args:
        problem: the convolution; its dtype is that of the kernels.
        op: "fprop", "dgrad" or "wgrad".
        algorithm: "fold" or "direct".
        layout: strides of the tensors as the kernels are given them; those of `default_layout` if left out.
        options: architecture, precision of float32, activation, tile.

    Raises:
        ValueError: what `refusal` says, unless `options` has a tile.
    """
    chosen = layout or default_layout(problem, op, algorithm)
    return _plan(problem, op, algorithm, tuple(chosen.items()), options or Options())


def refusal(problem: Problem, op: str, algorithm: str, options: Options) -> str | None:
    """Why there is no plan, or None: the ties are not for the kernels, or no tile of the tables fits the registers."""
    why = letters.refusal(problem, algorithm)
    if why is not None:
        return why
    kernel = geometry(problem).name_of("fprop_fold" if folds_weight(problem, op, algorithm) else op)
    if options.config is not None or not kernel.startswith(("fprop_fold", "wgrad_both")):
        return None
    product, g = configs.product_of(str(problem.dtype)[6:], options.precision), geometry(problem)
    for order in sorted({g.order([s]) for s in g.segments}):
        if not configs.tiles(kernel, order, problem.dtype.itemsize, options.arch, product):
            return f"no tile of {order} tied axes in {product} fits the registers of {options.arch}"
    return None


@lru_cache(maxsize=4096)
def _plan(
    problem: Problem, op: str, algorithm: str, layout: tuple[tuple[str, Strides], ...], options: Options
) -> Plan:
    why = refusal(problem, op, algorithm, options)
    if why is not None:
        raise ValueError(why)
    context = Context(problem, geometry(problem), layout, options)
    if context.g.depthwise and algorithm == "direct":
        return passes.depthwise(context, op)
    if is_adjoint(problem, op):
        context = context.of_adjoint()
    if folds_weight(problem, op, algorithm):
        return passes.fprop_fold(context)
    if op == "fprop":
        return passes.fprop_direct(context)
    return passes.dgrad(context, algorithm) if op == "dgrad" else passes.wgrad(context, algorithm)


def is_adjoint(problem: Problem, op: str) -> bool:
    """Is a gradient that of the adjoint layer? The input's is its output, where mirrors move channels or rows are their
    own images; the weight's is its weight's where the same mirrors do both, and positions of the input are folded.
    """
    g = geometry(problem)
    return (op == "dgrad" and g.sided) or (op == "wgrad" and bool(g.moved & g.fixed))


def folds_weight(problem: Problem, op: str, algorithm: str) -> bool:
    """Is the weight folded into memory of its own before the product?"""
    return algorithm == "fold" and (op == "fprop" or (op == "dgrad" and geometry(problem).sided))


def default_layout(problem: Problem, op: str, algorithm: str) -> dict[str, Strides]:
    """Strides of tensors as the launcher prepares them: channels innermost where there are many, weights packed."""
    p, g = problem, geometry(problem)
    weight = _raw_strides(p) if op == "wgrad" or folds_weight(p, op, algorithm) or g.depthwise else None
    return {
        "x": pixel_strides(p.input_shape, p.input_channels_last or innermost(g.channels)),
        "y": pixel_strides(p.output_shape, p.channels_last or innermost(g.filters)),
        "w": weight or packed_weight_strides(g, rows_innermost(p, op)),
    }


def innermost(channels: int) -> bool:
    """Must the channels of a tensor with that many in a group be innermost?"""
    return channels >= configs.COPY_FROM


def rows_innermost(problem: Problem, op: str) -> bool:
    """4-byte matrix units want the contraction innermost on both sides: for dgrad the rows of the weight."""
    return op == "dgrad" and problem.dtype.itemsize > 2


def _raw_strides(problem: Problem) -> Strides:
    """Strides of a contiguous weight seen as (G, U, C, D, H, W)."""
    outer, inner, *kernel = problem.weight_shape
    _, h, w = geometry(problem).kept
    taps = math.prod(kernel)
    ends = (taps, inner * taps) if problem.transposed else (inner * taps, taps)
    return (outer // problem.groups * inner * taps, *ends, h * w, w, 1)
