"""What is launched for a problem, as plain data: kernel, grid, arguments, constants. No tensors, no device.

`plan(problem, op, algorithm)` is all that is needed to run the kernels, and to compile them ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from ...problem import Problem
from . import configs, passes
from .geometry import Strides, geometry, packed_weight_strides, pixel_strides
from .plans import Buffer, Context, Launch, Options, Plan

__all__ = [
    "Buffer",
    "Launch",
    "Layout",
    "Options",
    "Plan",
    "default_layout",
    "innermost",
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
    why = refusal(problem, op, algorithm, options or Options())
    if why is not None:
        raise ValueError(why)
    chosen = layout or default_layout(problem, op, algorithm)
    return _plan(problem, op, algorithm, tuple(chosen.items()), options or Options())


def refusal(problem: Problem, op: str, algorithm: str, options: Options) -> str | None:
    """Why there is no plan, or None: no tile of the tables fits the registers of the architecture."""
    if (op, algorithm) != ("fprop", "fold") or options.config is not None:
        return None
    product = configs.product_of(str(problem.dtype)[6:], options.precision)
    for order in sorted({s.order for s in geometry(problem).segments}):
        if not configs.tiles("fprop_fold", order, problem.dtype.itemsize, options.arch, product):
            return f"no tile of {order} tied axes in {product} fits the registers of {options.arch}"
    return None


@lru_cache(maxsize=4096)
def _plan(
    problem: Problem, op: str, algorithm: str, layout: tuple[tuple[str, Strides], ...], options: Options
) -> Plan:
    context = Context(problem, geometry(problem), layout, options)
    if context.g.depthwise and algorithm == "direct":
        return passes.depthwise(context, op)
    if op == "fprop":
        return passes.fprop_direct(context) if algorithm == "direct" else passes.fprop_fold(context)
    return passes.dgrad(context, algorithm) if op == "dgrad" else passes.wgrad(context, algorithm)


def default_layout(problem: Problem, op: str, algorithm: str) -> dict[str, Strides]:
    """Strides of tensors as the launcher prepares them: channels innermost where there are many, weights packed."""
    p, g = problem, geometry(problem)
    raw = (math.prod(p.weight_shape[1:]), *_weight_tail(p))
    weight = raw if op == "wgrad" or (op, algorithm) == ("fprop", "fold") or g.depthwise else None
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


def _weight_tail(problem: Problem) -> Strides:
    """Strides after the groups of a contiguous weight seen as (G, U, C, D, H, W)."""
    g = geometry(problem)
    d, h, w = (axis[0] for axis in g.axes)
    taps = d * h * w
    ends = (taps, g.rows * taps) if problem.transposed else (g.channels * taps, taps)
    return (*ends, h * w, w, 1)
