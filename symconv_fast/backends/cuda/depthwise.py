"""Plans the depthwise kernels: one input channel in each group, one or two dims, all three passes, any strides."""

from __future__ import annotations

from ...problem import Problem
from ..gpu_cost import LAUNCH_SECONDS
from ..triton.geometry import geometry
from . import families
from .depthwise_tiles import choose, layer
from .depthwise_tiles import seconds as kernel_seconds
from .limits import DTYPES, Limits

LAYOUT = families.AS_IT_IS

# What the kernels count with; csrc/cuda/depthwise checks the same.
_MOST = {"sizes and paddings": 1 << 20, "strides and dilations": 1 << 10, "kernels": 1 << 12}
_MOST_INT = (1 << 31) - 1
_OPS = ("fprop", "dgrad", "wgrad")


def refusal(problem: Problem, op: str, limits: Limits) -> str | None:
    """Why the kernels cannot run a problem, as a clause, or None."""
    g = geometry(problem)
    if not g.depthwise:
        return "it is for depthwise layers, of one input channel in each of several groups"
    if problem.ndim == 3:
        return "it has no kernels of three dims"
    values = {
        "sizes and paddings": (
            *g.x,
            *g.y,
            *problem.padding,
            g.rows,
            g.filters,
            problem.batch if problem.ndim == 1 else 1,
        ),
        "strides and dilations": (*problem.stride, *problem.dilation),
        "kernels": problem.kernel,
    }
    for name, most in _MOST.items():
        if max(values[name]) > most:
            return f"its {name} go up to {most}"
    if (
        g.taps >= 1 << 16
        or g.taps * g.rows * g.groups > _MOST_INT
        or problem.batch > _MOST_INT
        or problem.is_empty
    ):
        return "its weights or images are not counted in 32 bits"
    if choose(problem, op, limits) is None:
        return f"no tile fits the {limits.shared_bytes >> 10} KB of shared memory of {limits.arch}"
    return None


def parameters(call: families.Request) -> dict[str, int]:
    """The fields of DepthwiseParams."""
    problem, op, strides, limits, activation, bias = call
    g, a, tile = geometry(problem), layer(problem, op), choose(problem, op, limits)
    assert tile is not None, "refused without a tile"
    values = {"op": _OPS.index(op), "dtype": DTYPES[problem.dtype], "batch": a.batch, "channels": a.channels}
    values |= {"rows": a.rows, "filters": g.filters, "bias": int(bias), "activation": activation}
    values |= {"swap": int(a.swap), "shared_bytes": limits.shared_bytes, "segments": len(g.segments)}
    for name, axis in (("height", a.height), ("width", a.width)):
        values |= {f"x_{name}": axis.x, f"y_{name}": axis.y, f"kernel_{name}": axis.taps}
        values |= {
            f"stride_{name}": axis.stride,
            f"dilation_{name}": axis.dilation,
            f"padding_{name}": axis.padding,
        }
    for name in ("x", "y"):
        n, c, _, y, x = strides[name]
        # Images of one-dimensional layers are rows.
        values |= {f"{name}_stride_n": 0 if problem.ndim == 1 else n, f"{name}_stride_c": c}
        values |= {f"{name}_stride_y": n if problem.ndim == 1 else y, f"{name}_stride_x": x}
    group, row, _, _, y, x = strides["w"]
    values |= {"w_stride_group": group, "w_stride_row": row, "w_stride_y": y, "w_stride_x": x}
    values |= {
        "block": tile.block,
        "images": tile.images,
        "tile_height": tile.height,
        "tile_width": tile.width,
    }
    values |= {"pairs": tile.pairs, "chunks": tile.chunks}
    for i in range(families.MOST_SEGMENTS):
        s = g.segments[i] if i < len(g.segments) else None
        numbers = (s.mask, s.row, s.rows, s.copy) if s is not None else (0, 0, 0, 0)
        values |= {f"{field}_{i}": n for field, n in zip(("mask", "row", "rows", "copy"), numbers)}
    return values


def kernels(problem: Problem, op: str, limits: Limits) -> tuple[str, ...]:
    """Each pass has a kernel; the gradient of the weight is summed by another one."""
    return (op, "sum") if op == "wgrad" else (op,)


def seconds(problem: Problem, op: str, limits: Limits) -> float:
    """An estimate, of the kernels alone."""
    launches = 1 + len(geometry(problem).segments) if op == "wgrad" else 1
    return launches * LAUNCH_SECONDS + kernel_seconds(problem, op, limits)
