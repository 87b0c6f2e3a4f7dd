"""Plans the gradient of the reduced weight on matrix units: any ties, kernel, stride and dilation.

Tiles, warps and splits are chosen by csrc/cuda/wgrad/plan.h, and what cannot run is what its check says: the native
module is asked, so nothing is known twice. The estimates are a model: clocks by counting, and a share of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ...problem import Problem
from ..gpu_cost import LAUNCH_SECONDS
from ..triton.geometry import geometry, pixel_strides
from . import families, native
from .limits import DTYPES, Limits

LAYOUT = families.CHANNELS_LAST

AXES = ("depth", "height", "width")

CLOCK = {8: 1.2e9, 9: 1.75e9}
"""Clocks a second by generation; of 8, less than the real ones, since a product takes more of them there."""
CLOCK_OF_OTHERS = 1.8e9

SHARE = 0.7
"""Of the model's rate that is expected: bench/micro's kernels of the same instructions reached 0.45 to 0.8."""


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """What the native check says of dense tensors, channels last."""
    if problem.is_empty:
        return "there is nothing to multiply"
    vector, channels = 16 // problem.dtype.itemsize, geometry(problem).channels
    if channels % vector:
        return f"{vector} does not divide the {channels} input channels of a group"
    if problem.out_channels % vector:
        return f"{vector} does not divide the rows of each tie in a group"
    try:
        return _native(problem, limits).check() or None
    except TypeError as error:  # other fields: sources that are newer than the module that was built in place
        return f"the native CUDA module is not of this version ({error}); {native.HOW_TO_BUILD}"


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of WgradParams."""
    problem, strides, limits = call.problem, call.strides, call.limits
    g = geometry(problem)
    values = {
        "dtype": DTYPES[problem.dtype],
        "batch": g.batch,
        "groups": g.groups,
        "channels": g.channels,
        "rows": g.rows,
        "filters": g.filters,
        "shared_bytes": limits.shared_bytes,
        "multiprocessors": limits.multiprocessors,
        "segments": len(g.segments),
    }
    for name, x, y, (kernel, stride, dilation, padding) in zip(AXES, g.x, g.y, g.axes):
        values |= {f"x_{name}": x, f"y_{name}": y, f"kernel_{name}": kernel, f"stride_{name}": stride}
        values |= {f"dilation_{name}": dilation, f"padding_{name}": padding}
    for name in ("x", "y"):
        n, _, z, y, x = strides[name]
        values |= {f"{name}_stride_{axis}": s for axis, s in zip("nzyx", (n, z, y, x))}
    ends = ("group", "row", "channel", "z", "y", "x")
    values |= {f"w_stride_{end}": s for end, s in zip(ends, strides["w"])}
    for i in range(families.MOST_SEGMENTS):
        s = g.segments[i] if i < len(g.segments) else None
        place = (s.mask, s.row, s.rows, s.copy) if s else (0, 0, 0, 0)
        values |= {f"{name}_{i}": v for name, v in zip(("mask", "row", "rows", "copy"), place)}
    return values


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """Products by number of tied axes, and sums, of every segment."""
    return tuple(dict.fromkeys(_native(problem, limits).plan()[1]))


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    clocks, launched = _native(problem, limits).plan()
    rate = SHARE * CLOCK.get(limits.capability[0], CLOCK_OF_OTHERS)
    return float(len(launched) * LAUNCH_SECONDS + clocks / rate)


def _native(problem: Problem, limits: Limits) -> Any:
    """The native parameters of a problem with dense tensors."""
    return _of(families.native_class("tile", "wgrad"), problem, limits)


@lru_cache(maxsize=4096)
def _of(native_class: Any, problem: Problem, limits: Limits) -> Any:
    g = geometry(problem)
    d, h, w = (axis[0] for axis in g.axes)
    row = g.channels * d * h * w
    strides = {
        "x": pixel_strides(problem.input_shape, True),
        "y": pixel_strides(problem.output_shape, True),
        "w": (g.rows * row, row, d * h * w, h * w, w, 1),
    }
    return native_class(**parameters(families.Request(problem, "wgrad", strides, limits)))
