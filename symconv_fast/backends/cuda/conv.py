"""Plans the general matrix kernels: forward pass and gradient of the input, any ties, kernel, stride and dilation."""

from __future__ import annotations

import functools
import math
import operator
from functools import lru_cache

from ...problem import Problem
from ..triton.geometry import Segment, geometry
from . import families
from .conv_tiles import MOST_PLACES, Pass, Plan, tiles_for
from .limits import DTYPES, Limits

LAYOUT = families.CHANNELS_LAST

MOST = 1 << 30
"""Of what the kernels count in 32 bits."""

MOST_TAPS, MOST_CLASSES, MOST_PARTS, MOST_STEP, MOST_PADDING = 4095, 64, 16, 1 << 10, 1 << 20


@lru_cache(maxsize=4096)
def choose(problem: Problem, op: str, limits: Limits) -> Plan | None:
    """The quickest plan by the model, or None if none fits."""
    masks = {segment.mask for segment in geometry(problem).segments}
    union = functools.reduce(operator.or_, masks)
    # Members along y or z, and along both where three axes are tied, may be contracted separately; along all axes only
    # if nothing else fits.
    some = {0, 2 & union, 4 & union, *({6} if 7 in masks else ())} if op == "dgrad" else {0}
    best = _quickest(problem, op, limits, some)
    return best or (_quickest(problem, op, limits, {union}) if op == "dgrad" else None)


def _quickest(problem: Problem, op: str, limits: Limits, unfolded: set[int]) -> Plan | None:
    best: Plan | None = None
    for axes in sorted(unfolded):
        work = Pass(problem, op == "dgrad", axes)
        if len(work.parts) > MOST_PARTS:
            continue
        for tile in tiles_for(work):
            plan = Plan(work, tile, limits)
            if plan.resident and _counted(plan) and (best is None or plan.seconds < best.seconds):
                best = plan
    return best


def _counted(plan: Plan) -> bool:
    """Is everything small enough to be counted in 32 bits?"""
    return plan.tiles <= MOST and plan.weight_pieces + 1024 <= MOST and plan.places <= MOST_PLACES


# --- the planner ---------------------------------------------------------------------------------------------------


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    if op not in ("fprop", "dgrad"):
        return "it has the forward pass and the gradient of the input alone"
    g, vector = geometry(problem), 16 // problem.dtype.itemsize
    if op == "fprop" and g.channels % vector:
        return f"{vector} does not divide the {g.channels} input channels of a group"
    if op == "dgrad" and any(
        n % vector for s in g.segments for n in (s.row, s.rows, s.copy if s.mask else 0)
    ):
        return f"{vector} does not divide the rows of each tie in a group"
    if g.taps > MOST_TAPS:
        return f"a filter has more than {MOST_TAPS} taps"
    if (
        max(problem.stride) > MOST_STEP
        or max(problem.dilation) > MOST_STEP
        or max(problem.padding) > MOST_PADDING
    ):
        return "its stride, dilation or padding is too large"
    if op == "dgrad" and math.prod(problem.stride) > MOST_CLASSES:
        return f"its strides make more than {MOST_CLASSES} classes of pixels"
    pieces = [math.prod(shape) // vector for shape in (problem.input_shape, problem.output_shape)]
    if max(pieces) >= MOST or g.groups * (g.channels + 8 * g.rows) * g.taps >= MOST:
        return "a tensor is too large for offsets of 32 bits"
    if choose(problem, op, limits) is None:
        return f"no tile fits the {limits.shared_bytes >> 10} KB of shared memory of {limits.arch}"
    return None


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of ConvParams."""
    problem, op, strides, limits, activation, _ = call
    plan, g = choose(problem, op, limits), geometry(problem)
    assert plan is not None
    values = {"op": int(op == "dgrad"), "dtype": DTYPES[problem.dtype], "batch": g.batch, "groups": g.groups}
    values |= {"channels": g.channels, "rows": g.rows, "filters": g.filters, "activation": activation}
    names = ("kernel", "stride", "dilation", "padding")
    for i, axis in enumerate("zyx"):
        values |= {f"x_{axis}": g.x[i], f"y_{axis}": g.y[i]}
        values |= {f"{name}_{axis}": g.axes[i][k] for k, name in enumerate(names)}
    for tensor in "xy":
        n, _, *rest = strides[tensor]
        values |= {f"{tensor}s_n": n} | {f"{tensor}s_{axis}": s for axis, s in zip("zyx", rest)}
    keys = ("group", "row", "channel", "z", "y", "x")
    values |= {f"ws_{key}": s for key, s in zip(keys, strides["w"])}
    values["segments"] = len(g.segments)
    for i in range(families.MOST_SEGMENTS):
        s = g.segments[i] if i < len(g.segments) else Segment(0, 0, 0, 0)
        values |= {f"mask{i}": s.mask, f"row{i}": s.row, f"rows{i}": s.rows, f"copy{i}": s.copy}
    return values | tile_fields(plan)


def tile_fields(plan: Plan) -> dict[str, int]:
    """Those of the fields that say how it is run."""
    values = {f"tile_{axis}": n for axis, n in zip("nzyx", plan.tile.size)}
    values |= {"pixels": plan.tile.pixels, "warps": plan.tile.warps, "columns": plan.tile.columns}
    values |= {"stages": plan.stages, "weight_bytes": plan.weight_bytes, "unfolded": plan.work.unfolded}
    return values | {"shared_bytes": plan.shared_bytes, "resident": plan.resident}


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """One that packs the weights and one that multiplies."""
    dtype = ("bf16", "fp16", "tf32")[DTYPES[problem.dtype]]
    return f"prepare_{dtype}", f"{'gradient' if op == 'dgrad' else 'forward'}_{dtype}"


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    plan = choose(problem, op, limits)
    return plan.seconds if plan is not None else math.inf
