"""Where the native CPU kernels can run a forward pass as a scatter, and how much work that is.

Mirrors csrc/cpu/scatter_plan.cpp: every tap's product is computed once with the raw weights and added to each member
at its own mirrored position.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..problem import Problem

_MOST_PRODUCTS, _MOST_TAPS = 49, 16
_CHUNK = 112  # positions that are multiplied together, about
FILTERING = {"f2": (4, 2), "f4": (6, 4)}
"""Products and results of minimal filtering of three taps."""
PARITIES, ODD_PRODUCTS = "f4", 4
"""Which one filters along a tied axis, and its products for the odd part beside those for the even one."""


class Roles(NamedTuple):
    """Which axis does what in the scatter of one segment; `outer` and `deep` are None where there is no such axis."""

    inner: int  # lines run along it
    outer: int | None
    deep: int | None
    summed: bool  # the inner axis is tied, else contracted
    ring: bool  # the outer axis is tied
    folded: bool  # the deep axis is tied


def roles(problem: Problem, mask: int, pixels: bool, filtering: str | None = None) -> Roles | None:
    """The axes of the scatter of a segment, or None: it is not tied, or it needs products that tied members do not
    share, or more of them than can be kept. With `pixels` orbits are the lanes (`arrangement`)."""
    if problem.transposed or not mask:
        return None
    ndim = problem.ndim
    tied = [axis for axis in reversed(range(ndim)) if mask >> (ndim - 1 - axis) & 1]
    free = _free_axis(problem, tied[0], filtering)
    filtered = filtering is not None and free is not None and len(tied) == 1 and filters(problem, free)
    parities = _filters_parities(problem, tied, filtering)
    summed = not (pixels and len(tied) == 1 and tied[0] != ndim - 1 and not filtered)
    ring = (len(tied) > 1 and not parities) or not summed
    inner = tied[0] if summed else ndim - 1
    outer = tied[0] if not summed else tied[1] if len(tied) > 1 else free
    rest = [axis for axis in range(ndim) if axis not in (inner, outer)]
    scattered = [*([inner] if summed else []), *([outer] if ring and outer is not None else [])]
    taps = math.prod(problem.kernel[axis] for axis in scattered)
    if taps > _MOST_PRODUCTS or not all(_shares_products(problem, axis) for axis in scattered):
        return None
    if problem.input_channels_last != problem.channels_last or not (
        problem.channels_last or inner == ndim - 1
    ):
        return None
    return Roles(inner, outer, rest[0] if rest else None, summed, ring, len(tied) > 2)


def arrangement(problem: Problem, orbits: int, lanes: int) -> str:
    """What the lanes of a segment are, as run_scatter in csrc/cpu/native.cpp has it.

    pixels, relaid: orbits; planes, turned: positions. turned and relaid transpose lines on their way in and out.
    """
    if problem.channels_last:
        return "turned" if orbits < lanes else "pixels"
    few = min(orbits, problem.in_channels // problem.groups) < lanes
    return "planes" if few or problem.ndim == 3 else "relaid"


def applies(problem: Problem, mask: int, orbits: int, lanes: int) -> bool:
    """Can a segment be scattered, without minimal filtering?"""
    return roles(problem, mask, arrangement(problem, orbits, lanes) in ("pixels", "relaid")) is not None


def _filters_parities(problem: Problem, tied: list[int], filtering: str | None) -> bool:
    """Is the second of two tied axes filtered, both of its parities at once?"""
    return filtering == PARITIES and len(tied) == 2 and filters(problem, tied[1])


def can_filter(problem: Problem, mask: int, filtering: str) -> bool:
    """Has the scatter of a segment an outer axis whose three taps can be filtered with fewer products?"""
    found = roles(problem, mask, problem.channels_last, filtering)
    return found is not None and not found.ring and found.outer is not None and filters(problem, found.outer)


def _free_axis(problem: Problem, inner: int, filtering: str | None) -> int | None:
    others = [axis for axis in reversed(range(problem.ndim)) if axis != inner]
    if filtering:
        others.sort(key=lambda axis: not filters(problem, axis))
        if others and filters(problem, others[0]):
            return others[0]
    if inner == problem.ndim - 1:
        return inner - 1 if problem.ndim > 1 else None
    return 1 if problem.ndim == 3 and inner == 0 else problem.ndim - 1


def filters(problem: Problem, axis: int) -> bool:
    """Has that axis three taps that can be filtered with fewer products?"""
    return (problem.kernel[axis], problem.stride[axis], problem.dilation[axis]) == (3, 1, 1)


def _shares_products(problem: Problem, axis: int) -> bool:
    taps, stride = problem.kernel[axis], problem.stride[axis]
    apart = [problem.dilation[axis] * (taps - 1 - 2 * k) % stride for k in range(taps)]
    return 1 < taps <= _MOST_TAPS and not any(apart)


def _filled(problem: Problem, inner: int, outer: int | None, lines: float, lanes: int) -> float:
    """Lanes in use where positions are the lanes: lines of a chunk follow each other, unless they are strided."""
    line = -(-problem.spatial[inner] // problem.stride[inner])
    together = outer is not None and problem.stride[outer] == 1
    positions = line * (min(lines, max(1, _CHUNK // line)) if together else 1)
    return positions / lanes / -(-positions // lanes)


def counts(
    problem: Problem, mask: int, orbits: int, filtering: str | None, lanes: int
) -> dict[str, float] | None:
    """Work of one segment by the names of `cpu_cost.FEATURES`, or None where it is not scattered."""
    how = arrangement(problem, orbits, lanes)
    pixels = how in ("pixels", "relaid")
    found = roles(problem, mask, pixels, filtering)
    if found is None:
        return None
    inner, outer, deep, summed, ring, folded = found
    kernel, stride, channels = problem.kernel, problem.stride, problem.in_channels // problem.groups
    filtered = filtering if outer is not None and not ring and filters(problem, outer) else None
    made, results = FILTERING[filtered] if filtered else (1, 1)
    lines, contracted = 1.0, 1.0
    if outer is not None:
        lines = problem.spatial[outer] if ring else -(-problem.out_spatial[outer] // results)
        contracted = 1.0 if ring or filtered else kernel[outer]
    planes = problem.out_spatial[deep] if deep is not None else 1
    depth = kernel[deep] if deep is not None else 1
    taps = 1.0
    if summed:
        taps, along = kernel[inner] / stride[inner], problem.spatial[inner]
    else:
        contracted, along = kernel[inner], problem.out_spatial[inner]
    if ring and outer is not None:
        taps *= kernel[outer] / stride[outer]
    kind = "scatter" if how == "pixels" else f"scatter {how}"
    positions = problem.batch * problem.groups * planes * lines * along
    if pixels:
        columns = -(-taps * orbits // lanes)
    else:
        columns = taps * orbits / lanes / _filled(problem, inner, outer, lines, lanes)
    packed = not pixels or not summed or folded or filtered is not None or inner != problem.ndim - 1
    lines_in = made
    parities = filtered is not None and mask.bit_count() == 2
    if parities:
        made += ODD_PRODUCTS
    members = 2 ** mask.bit_count()
    outputs = problem.batch * problem.groups * math.prod(problem.out_spatial) * members
    calls = problem.batch * problem.groups * planes * lines
    turned = math.prod(problem.input_shape) / lanes if how == "relaid" else 0.0
    work = {
        "pass": 1,
        "multiply_adds": positions * columns * channels * depth * contracted * made,
        "products": positions * columns * made * (2 if folded else 1),
        "results": outputs * (-(-orbits // lanes) if pixels else orbits / lanes),
        "panel": turned + (positions * channels * depth * lines_in / lanes if packed else 0.0),
        "runs": calls if pixels else calls * (channels * depth + members * orbits),
        "weights": problem.groups * channels * orbits * math.prod(kernel),
    }
    return {f"{kind}/{name}": value for name, value in work.items()}
