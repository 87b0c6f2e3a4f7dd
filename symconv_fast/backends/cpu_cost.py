"""What a pass costs on the CPU, in seconds: counted work times fitted rates, for the native kernels and for torch's.

The counts mirror csrc/cpu: panel stores and loads, vector multiply-adds with their padding, packed weights, tensors
moved. The rates in `cpu_rates.py` were fitted to measurements by `python -m bench.fit_cost`, which also stores them.
"""

from __future__ import annotations

import math

import torch

from ..problem import Problem
from ..symmetry import orbit_size
from .cpu_rates import RATES

_VECTOR_BYTES = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16)
_FILTERING = {"f2": (4, 2), "f4": (6, 4)}  # products and results of minimal filtering with three taps
_COLD_WEIGHT_SECONDS = 0.5e-9
FEATURES = ("call", "pass", "multiply_adds", "panel", "runs", "weights", "activations")


def contractions(problem: Problem, op: str) -> list[int]:
    """Tie masks of the separate multiplications: one a segment forward, one for all of them backward."""
    masks = [mask for mask, _ in problem.ties]
    if op == "fprop":
        return masks
    union = 0
    for mask in masks:
        union |= mask
    return [union]


def planes(problem: Problem) -> bool:
    """Are panels packed plane by plane (contiguous source), or pixel by pixel?"""
    return not problem.input_channels_last


def offset_axis(problem: Problem, op: str, mask: int) -> int | None:
    """The axis whose taps are shifts of the panel, as choose_offset_axis in csrc/cpu/geometry.cpp has it."""
    ndim = problem.ndim
    steps_through = (op == "fprop") != problem.transposed
    best = None
    for axis in range(ndim):
        tied = mask >> (ndim - 1 - axis) & 1
        strided = steps_through and problem.stride[axis] != 1
        if tied or strided or problem.kernel[axis] < 2 or (planes(problem) and axis == ndim - 1):
            continue
        if best is None or problem.kernel[axis] > problem.kernel[best]:
            best = axis
    return best


def filtered(problem: Problem, op: str, mask: int) -> bool:
    """Has that axis three taps that can be filtered with fewer products?"""
    axis = offset_axis(problem, op, mask)
    if axis is None:
        return False
    return problem.kernel[axis] == 3 and problem.stride[axis] == 1 and problem.dilation[axis] == 1


def native_counts(problem: Problem, op: str, algorithm: str) -> dict[str, float]:
    """Work of one pass by a native algorithm ("fold", "f2" or "f4"), by the names in FEATURES."""
    counts = dict.fromkeys(FEATURES, 0.0)
    counts["call"] = 1
    counts["activations"] = _activations(problem)
    if op == "fprop":
        for mask, rows in problem.ties:
            _add(counts, problem, op, algorithm, mask, rows // problem.groups, 1)
    else:
        rows = problem.unique // problem.groups
        sources = max(orbit_size(mask) for mask, _ in problem.ties)
        _add(counts, problem, op, algorithm, contractions(problem, op)[0], rows, sources)
    return counts


def _add(
    counts: dict[str, float], problem: Problem, op: str, algorithm: str, mask: int, rows: int, sources: int
) -> None:
    """Add the work of one multiplication over `rows` orbits of each group."""
    lanes = _VECTOR_BYTES // problem.dtype.itemsize
    groups, channels, taps = problem.groups, problem.in_channels // problem.groups, math.prod(problem.kernel)
    spatial = problem.out_spatial if (op == "fprop") != problem.transposed else problem.spatial
    if op != "fprop" and not problem.transposed:
        spatial = problem.spatial
    pixels = problem.batch * math.prod(spatial)
    axis = offset_axis(problem, op, mask)
    shifts = problem.kernel[axis] if axis is not None else 1
    saving, stored = 1.0, 1.25 if axis is not None else 1.0  # halo lines of the panel
    if algorithm in _FILTERING and filtered(problem, op, mask) and axis is not None:
        products, results = _FILTERING[algorithm]
        tiles = -(-spatial[axis] // results)
        saving, stored = tiles * products / (3 * spatial[axis]), tiles * products / spatial[axis]
    strides = math.prod(problem.stride) if (op == "fprop") == problem.transposed else 1
    packed, other = (channels, rows) if op == "fprop" else (rows, channels)
    slots = taps // shifts / strides
    if planes(problem):
        vectors = other * packed * (-(-pixels // lanes) if op != "wgrad" else pixels / lanes)
        panel = slots * packed * pixels / lanes
        runs = slots * packed * pixels / max(1, spatial[-1]) * 2
    else:
        across = -(-other // lanes) if op != "wgrad" else other / lanes
        vectors = packed * across * pixels
        panel = slots * pixels * (packed / lanes if packed >= lanes else packed)
        runs = slots * pixels
    counts["pass"] += 1
    counts["multiply_adds"] += groups * vectors * taps / strides * saving
    counts["panel"] += groups * panel * stored * (1 + sources) / 2
    counts["runs"] += groups * runs * stored
    counts["weights"] += groups * rows * channels * taps


def torch_counts(problem: Problem) -> dict[str, float]:
    """Work of one pass by expanding the filters and torch's convolution."""
    lanes = _VECTOR_BYTES // problem.dtype.itemsize
    counts = dict.fromkeys(FEATURES, 0.0)
    counts["call"] = 1
    counts["multiply_adds"] = problem.macs_dense / lanes
    counts["weights"] = math.prod(problem.expanded_shape)
    counts["activations"] = _activations(problem)
    return counts


def _activations(problem: Problem) -> float:
    return math.prod(problem.input_shape) + math.prod(problem.output_shape)


def native_kind(problem: Problem, op: str, algorithm: str) -> str:
    """Which rates hold for a native algorithm."""
    family = "winograd" if algorithm in _FILTERING else algorithm
    return f"{family}/{'planes' if planes(problem) else 'pixels'}/{op}"


def torch_kind(problem: Problem, op: str) -> str:
    """Which rates hold for torch's convolution; it has other kernels by dimension and for few channels."""
    few = "/few" if problem.ndim == 2 and problem.in_channels // problem.groups < 8 else ""
    return f"torch{problem.ndim}d/{'planes' if planes(problem) else 'pixels'}/{op}{few}"


def native_seconds(problem: Problem, op: str, algorithm: str) -> float:
    """Estimate for a native algorithm."""
    counts = native_counts(problem, op, algorithm)
    seconds = _seconds(counts, RATES[native_kind(problem, op, algorithm)], problem)
    if algorithm in _FILTERING:
        # The rates were measured with warm caches. In a network the weights come from memory, and filtering packs
        # more of them: 512 channels on a 7 x 7 map took 0.6 ms with the fold and 0.7 to 1.1 ms with F(2,3).
        extra = _FILTERING[algorithm][0] / 3 - 1
        seconds += extra * math.prod(problem.weight_shape) * _COLD_WEIGHT_SECONDS
    return seconds


def torch_seconds(problem: Problem, op: str) -> float:
    """Estimate for the reference: expanded filters and torch's convolution."""
    return _seconds(torch_counts(problem), RATES[torch_kind(problem, op)], problem)


def _seconds(counts: dict[str, float], rates: dict[str, float], problem: Problem) -> float:
    """Calls and passes cost the same whatever the threads; the rest is shared by them. Rates are nanoseconds."""
    threads = max(1, torch.get_num_threads())
    serial = sum(rates[name] * counts[name] for name in ("call", "pass"))
    shared = sum(rates[name] * counts[name] for name in FEATURES if name not in ("call", "pass"))
    return (serial + shared / threads) * 1e-9
