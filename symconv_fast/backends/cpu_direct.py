"""Where the native CPU kernels for a few input channels can run, and how much work that is.

Mirrors csrc/cpu/direct.cpp and direct_fold.cpp. `direct` multiplies each filter by itself; forward, `direct_fold` adds
and subtracts whole input lines along the tied axes first, and `direct_lines` does so along height and depth alone,
which leaves a window of a line in one piece. 16-bit types are widened as lines are copied, and multiplied in float32.
"""

from __future__ import annotations

import math

from ..problem import Problem

FOLDS = ("direct_fold", "direct_lines")
ALGORITHMS = ("direct", *FOLDS)
MOST_CHANNELS = 4  # as kDirectChannels in csrc/cpu/direct.h


def why_not(problem: Problem, op: str, algorithm: str, lanes: int) -> str | None:
    """Why an algorithm cannot run with so many sums in a vector, or None. Depthwise layers are left to others."""
    if problem.transposed:
        return "a transposed layer"
    if problem.in_channels > MOST_CHANNELS * problem.groups:
        return f"more than {MOST_CHANNELS} input channels in a group"
    if op == "fprop" and algorithm == "direct" and (problem.ndim == 1 or not problem.channels_last):
        return "the output is not channels_last"
    if op == "fprop" and algorithm == "direct" and problem.dtype.itemsize == 2:
        return f"forward float32 and float64 alone, not {str(problem.dtype)[6:]}"
    if problem.out_channels // problem.groups % lanes:
        return f"the filters of a group do not fill vectors of {lanes}"
    return None if algorithm == "direct" else _why_no_fold(problem, op, algorithm)


def _why_no_fold(problem: Problem, op: str, algorithm: str) -> str | None:
    if op == "dgrad" or (op == "wgrad" and algorithm == "direct_lines"):
        return "lines are not folded for this gradient"
    masks = [mask for mask, _ in problem.ties]
    if not any(masks):
        return "no axis is tied"
    if algorithm == "direct_lines" and not any(mask & 1 and mask > 1 for mask in masks):
        return "no orbit is tied along the width and along another axis"
    return None


def work(problem: Problem, op: str, algorithm: str, width: int) -> dict[str, float]:
    """Vectors of `width` multiplied, stored and folded, lines listed, and weights, by names of `cpu_cost`."""
    return (
        _each_filter(problem, op, width) if algorithm == "direct" else _folded(problem, op, algorithm, width)
    )


def _each_filter(problem: Problem, op: str, width: int) -> dict[str, float]:
    """Columns are filters, but taps in the gradient of the input, which adds them one by one."""
    taps = problem.in_channels // problem.groups * math.prod(problem.kernel)
    pixels = problem.batch * problem.groups * math.prod(problem.out_spatial)
    filters = problem.out_channels // problem.groups
    columns, rows = (-(-taps // width), filters) if op == "dgrad" else (filters / width, taps)
    return {
        "multiply_adds": pixels * columns * rows,
        "results": pixels * columns if op != "wgrad" else 0.0,
        "panel": pixels * taps if op == "dgrad" else 0.0,
        "runs": pixels / problem.out_spatial[-1] * math.prod(problem.kernel[:-1]),
        "weights": math.prod(problem.expanded_shape),
    }


def _folded(problem: Problem, op: str, algorithm: str, width: int) -> dict[str, float]:
    """Folded axes divide the columns; a tile of results of each parity is one product.

    In the weight gradient results are upstream gradients, read and folded.
    """
    groups, (*outer, last) = problem.groups, problem.kernel
    channels, lines_of_kernel = problem.in_channels // groups, math.prod(outer)
    lines = problem.batch * groups * math.prod(problem.out_spatial[:-1])
    line = problem.spatial[-1] * channels / width
    counts = dict.fromkeys(("multiply_adds", "products", "results", "panel", "runs", "weights"), 0.0)
    for mask, rows in problem.ties:
        along = mask & 1 if algorithm == "direct_fold" else 0
        members, parities = 1 << mask.bit_count(), 1 << (mask & 6 | along).bit_count()
        vectors = lines * problem.out_spatial[-1] * -(-rows // groups // width)
        counts["multiply_adds"] += vectors * (members // parities) * channels * lines_of_kernel * last
        counts["products"] += vectors * members
        counts["results"] += vectors * members
        # Lines folded along the width alone are kept for the results below them.
        folded = lines * (lines_of_kernel if mask & 6 or not outer else problem.stride[-2])
        counts["panel"] += line * (folded * (along * (last - 1) + (mask > 1)))
        counts["runs"] += lines * lines_of_kernel * last * channels
        counts["weights"] += math.prod(problem.weight_shape) * (members // parities)
    return counts
