"""What a pass costs on the CPU, in seconds: counted work times fitted rates, for the native kernels and for torch's.

The counts mirror csrc/cpu: panel stores and loads, vector multiply-adds with their padding, packed weights, tensors
moved. The rates in `cpu_rates.csv` were fitted to measurements by `python -m bench.fit_cost`, which also stores them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from ..problem import Problem
from ..symmetry import orbit_size
from . import cpu_direct, cpu_scatter
from .cpu_rates import FACTORS, RATES
from .cpu_scatter import FILTERING
from .torch_conv import asked_in

try:
    from .. import _cpu  # type: ignore[attr-defined]
except ImportError:
    _cpu = None

_CAPABILITIES = {"avx512_bf16": "AVX512", "avx512": "AVX512", "avx2": "AVX2", "baseline": "DEFAULT"}

TORCH_CAPABILITY = torch.backends.cpu.get_cpu_capability()
"""Vectors of torch's own kernels (ATEN_CPU_CAPABILITY lowers them), which decide on its counts and rates."""
CAPABILITY = TORCH_CAPABILITY if _cpu is None else _CAPABILITIES[_cpu.isa()]
"""The same of the native kernels (SYMCONV_FAST_ISA lowers them), by torch's names."""

_VECTOR_BYTES = {"AVX512": 64, "AVX2": 32}
_NEAREST = "AVX2"  # to a capability that was not measured
_COLD_WEIGHT_SECONDS = 0.5e-9
# torch's convolution in a wider type (one Zen 3 core, 2026-11-21): three conversions, an element of each, and float64
# beside float32, where 2 to 10 was seen.
_WIDEN_CALL_SECONDS, _WIDEN_ELEMENT_SECONDS = 10e-6, 0.3e-9
_WIDE = {torch.float32: 1.0, torch.float64: 4.0}
_PASS = ("pass", "multiply_adds", "products", "results", "panel", "runs", "weights")
LAYOUTS = (
    "pixels", "planes", "staged", "turned", "mirrored", "mirrored turned",
    "scatter", "scatter planes", "scatter turned", "scatter relaid",
)  # fmt: skip
FEATURES = ("call", "activations", *(f"{layout}/{name}" for layout in LAYOUTS for name in _PASS))

SERIAL = ("call", *(f"{layout}/pass" for layout in LAYOUTS))  # whatever the threads


def forget() -> None:
    """Forget estimates: the tables of rates have changed."""
    _torch_seconds.cache_clear()


def assume(capability: str) -> None:
    """Count and estimate as on a CPU with such vectors, whatever this one has: the fit does, for the rows it fits."""
    global CAPABILITY, TORCH_CAPABILITY
    CAPABILITY = TORCH_CAPABILITY = capability


@cache
def say_if_unmeasured() -> None:
    """One warning a process where rates are those of another kind of CPU: SSE2, NEON and whatever comes."""
    kernels = (
        () if _cpu is None or CAPABILITY in RATES else (f"native kernels with {_cpu.isa()} instructions",)
    )
    torchs = () if TORCH_CAPABILITY in RATES else (f"torch's with {TORCH_CAPABILITY}",)
    if kernels or torchs:
        warnings.warn(
            f"symconv_fast: nothing was measured of {' and '.join((*kernels, *torchs))}. Estimates are those for "
            f"{_NEAREST}, so that the quickest may not be chosen; symconv_fast.backend() pins what you find quicker",
            stacklevel=2,
        )


class Contraction(NamedTuple):
    """One multiplication of a pass: one a segment forward, one for all of them backward."""

    mask: int  # tied axes
    run: int  # channels that lie together in a slot of the panel
    contracted: int  # channels of a slot, all together
    columns: int
    sources: float  # orbit members that a sum reads, in the mean


def contractions(problem: Problem, op: str) -> list[Contraction]:
    """The multiplications of a pass, counted inside one group of the layer."""
    groups, channels = problem.groups, problem.in_channels // problem.groups
    if op == "fprop":
        return [Contraction(mask, channels, channels, rows // groups, 1) for mask, rows in problem.ties]
    union = 0
    for mask, _ in problem.ties:
        union |= mask
    run = min(rows for _, rows in problem.ties) // groups
    sources = problem.out_channels / problem.unique
    return [Contraction(union, run, problem.unique // groups, channels, sources)]


def lanes(problem: Problem) -> int:
    """Sums in a vector of the native kernels; those of 16-bit types are float32."""
    return _lanes(problem, CAPABILITY)


def torch_lanes(problem: Problem) -> int:
    """The same of torch's kernels."""
    return _lanes(problem, TORCH_CAPABILITY)


def _lanes(problem: Problem, capability: str) -> int:
    return _VECTOR_BYTES.get(capability, 16) // max(4, problem.dtype.itemsize)


def own_kind(problem: Problem, op: str, kind: str, dtype: str) -> str:
    """Under which a 16-bit type with rates of its own has them: as `factor_kind`, with a stride apart as well."""
    if kind.startswith("torch"):
        return f"{dtype} {kind}"
    return f"{dtype} {kind}{_narrow(problem, op, kind)}"


def has_own_rates(problem: Problem, op: str, kind: str) -> bool:
    """Has a 16-bit type rates of its own for a kind, or those of float32 times a factor?"""
    return _own(problem, op, kind) is not None


def _own(problem: Problem, op: str, kind: str) -> dict[str, float] | None:
    if problem.dtype.itemsize > 2:
        return None
    return _table(RATES, kind).get(own_kind(problem, op, kind, dtype_name(problem.dtype)))


def rates(problem: Problem, op: str, kind: str) -> dict[str, float]:
    """Nanoseconds a unit, by the names in FEATURES; empty where nothing was measured."""
    own = _own(problem, op, kind)
    return _table(RATES, kind).get(kind, {}) if own is None else own


def _table(tables: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    """That of the vectors which a kind runs with, or of the nearest ones that were measured."""
    capability = TORCH_CAPABILITY if kind.startswith("torch") else CAPABILITY
    return tables[capability if capability in tables else _NEAREST]


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in the tables of rates. bfloat16 without instructions of its own is another one."""
    widened = dtype == torch.bfloat16 and _cpu is not None and _cpu.isa() != "avx512_bf16"
    return str(dtype)[6:] + (" widened" if widened else "")


def layout(problem: Problem, op: str, c: Contraction) -> str:
    """How panel and results lie, as choose_layout in csrc/cpu/native.cpp has it.

    pixels: [pixel][row], orbits are the lanes. planes: [row][pixel], pixels are the lanes. staged: [row][pixel] from a
    stage, orbits are the lanes. turned: the same, pixels are the lanes; in the weight gradient pixels are contracted.
    """
    planes = not problem.input_channels_last
    staged_width = lanes(problem) * (4 if problem.ndim == 3 else 1)
    if op == "wgrad":
        short = planes and problem.spatial[-1] <= staged_width
        unstaged = problem.dtype.itemsize > 2 and any(mask == 7 for mask, _ in problem.ties)
        if (c.run < lanes(problem) or short) and not unstaged:
            return "turned"
    else:
        width = problem.out_spatial[-1] if op == "fprop" else problem.spatial[-1]
        few = min(c.run, c.columns) < lanes(problem)
        if few or (planes and width <= staged_width):
            pixel_lanes = c.columns < lanes(problem) or not problem.channels_last
            return "turned" if pixel_lanes else "staged"
    return "planes" if planes else "pixels"


def offset_axis(problem: Problem, op: str, c: Contraction) -> int | None:
    """The axis whose taps are shifts of the panel, as choose_offset_axis in csrc/cpu/geometry.cpp has it."""
    ndim = problem.ndim
    planes = layout(problem, op, c) != "pixels"
    steps_through = (op == "fprop") != problem.transposed
    best = None
    for axis in range(ndim):
        tied = c.mask >> (ndim - 1 - axis) & 1
        strided = steps_through and problem.stride[axis] != 1
        if tied or strided or problem.kernel[axis] < 2 or (planes and axis == ndim - 1):
            continue
        if best is None or problem.kernel[axis] > problem.kernel[best]:
            best = axis
    return best


def mirror_axis(problem: Problem, op: str, c: Contraction) -> int | None:
    """The tied axis that the matrix kernel folds, as mirror_axis in csrc/cpu/native.cpp has it."""
    no_kernel = CAPABILITY != "AVX512" or dtype_name(problem.dtype) == "bfloat16"
    if no_kernel or op != "fprop" or layout(problem, op, c) not in ("planes", "turned"):
        return None
    if offset_axis(problem, op, c) is not None:
        return None
    ndim = problem.ndim
    for axis in range(ndim - 1):
        if c.mask >> (ndim - 1 - axis) & 1 and problem.stride[axis] == 1 and problem.kernel[axis] > 1:
            return axis
    return None


def kind_of(problem: Problem, op: str, c: Contraction) -> str:
    """The layout, and whether the matrix kernel folds an axis: what the rates of a multiplication go by."""
    kind = layout(problem, op, c)
    if mirror_axis(problem, op, c) is None:
        return kind
    return "mirrored" if kind == "planes" else "mirrored turned"


def filtered_axis(problem: Problem, op: str, c: Contraction, filtering: str) -> int | None:
    """The axis that a panel is filtered along: that whose taps are its shifts, or for the gradient of the input the
    outer one of two tied axes, as choose_sum_axis in csrc/cpu/geometry.cpp has it."""
    axis = offset_axis(problem, op, c)
    if axis is None and op == "dgrad" and filtering == cpu_scatter.PARITIES and len(problem.ties) == 1:
        tied = [at for at in range(problem.ndim) if c.mask >> (problem.ndim - 1 - at) & 1]
        axis = tied[0] if len(tied) == 2 else None
    return axis if axis is not None and cpu_scatter.filters(problem, axis) else None


def native_counts(problem: Problem, op: str, algorithm: str) -> dict[str, float]:
    """Work of one pass by a native algorithm, by the names in FEATURES.

    That is "fold", "f2", "f4" or one of `cpu_direct`, or forward "scatter", "scatter_f2" or "scatter_f4", where
    segments that cannot be scattered are folded.
    """
    counts = dict.fromkeys(FEATURES, 0.0)
    counts["call"] = 1
    counts["activations"] = _activations(problem)
    if algorithm in cpu_direct.ALGORITHMS:
        direct = cpu_direct.work(problem, op, algorithm, lanes(problem))
        last = problem.channels_last if op == "fprop" else problem.input_channels_last
        results = "pixels" if last else "turned"
        return counts | {f"{results}/{name}": value for name, value in direct.items()}
    scatter, filtering = scatters(algorithm), algorithm.removeprefix("scatter").removeprefix("_")
    for c in contractions(problem, op):
        if scatter:
            work = cpu_scatter.counts(problem, c.mask, c.columns, filtering or None, lanes(problem))
            if work is not None:
                for name, value in work.items():
                    counts[name] += value
                continue
        _add(counts, problem, op, filtering if scatter else algorithm, c)
    return counts


def scatters(algorithm: str) -> bool:
    """Is that a way to scatter, by the native name of an algorithm?"""
    return algorithm.startswith("scatter")


def _add(counts: dict[str, float], problem: Problem, op: str, algorithm: str, c: Contraction) -> None:
    """Add the work of one multiplication."""
    width, kind = lanes(problem), kind_of(problem, op, c)
    groups, taps = problem.groups, math.prod(problem.kernel)
    spatial = problem.out_spatial if op == "fprop" else problem.spatial
    pixels = problem.batch * math.prod(spatial)
    axis = mirror_axis(problem, op, c) if "mirrored" in kind else offset_axis(problem, op, c)
    along = filtered_axis(problem, op, c, algorithm) if algorithm in FILTERING else None
    parities, axis = axis is None and along is not None, axis if along is None else along
    shifts = problem.kernel[axis] if axis is not None else 1
    saving, stored = 1.0, 1.25 if axis is not None else 1.0  # halo lines of the panel
    if along is not None:
        products, results = FILTERING[algorithm]
        products += cpu_scatter.ODD_PRODUCTS if parities else 0
        tiles = -(-spatial[along] // results)
        saving, stored = tiles * products / (3 * spatial[along]), tiles * products / spatial[along]
    strides = math.prod(problem.stride) if (op == "fprop") == problem.transposed else 1
    slots = taps // shifts / strides
    by_pixel = -(-pixels // width)
    # In the weight gradient pixels are contracted: channels fill the vectors, or stand beside vectors of slots.
    pixel_lanes = kind not in ("pixels", "staged")
    by_column = -(-c.columns // width)
    stores = c.columns * by_pixel if pixel_lanes and op != "wgrad" else by_column * pixels
    if kind == "pixels":
        panel = slots * pixels * (c.contracted / width if c.run >= width else c.contracted)
        runs = slots * pixels
    else:
        panel = slots * c.contracted * pixels / width
        runs = (
            slots
            * pixels
            / spatial[-1]
            * (2 * c.contracted if kind in ("planes", "mirrored") else c.contracted / c.run)
        )
    work = {
        "pass": 1,
        "multiply_adds": groups * stores * c.contracted * taps / strides * saving,
        "results": groups * stores * (orbit_size(c.mask) if op == "fprop" else 1),
        "panel": groups * panel * stored * (1 + c.sources) / 2,
        "runs": groups * runs * stored,
        "weights": groups * c.contracted * c.columns * taps,
    }
    for name, value in work.items():
        counts[f"{kind}/{name}"] += value


def torch_counts(problem: Problem) -> dict[str, float]:
    """Work of one pass by expanding the filters and torch's convolution."""
    counts = dict.fromkeys(FEATURES, 0.0)
    counts["call"] = 1
    counts["pixels/multiply_adds"] = problem.macs_dense / torch_lanes(problem)
    counts["pixels/weights"] = math.prod(problem.expanded_shape)
    counts["activations"] = _activations(problem)
    return counts


def _activations(problem: Problem) -> float:
    return math.prod(problem.input_shape) + math.prod(problem.output_shape)


def native_kind(problem: Problem, op: str, algorithm: str) -> str:
    """Which rates hold for a native algorithm.

    Panels of three axes have rates of their own: a tile reads lines around it on two of them. So has F(4,3) where it
    was measured.
    """
    family, _, filtering = algorithm.rpartition("_")
    kind = f"{family + '_' if family else ''}winograd" if filtering in FILTERING else algorithm
    deep = "/3d" if problem.ndim == 3 and kind in ("fold", "winograd") else ""
    place = f"{kind}/{op}{'/strided' if _is_strided(problem, op, algorithm) else deep}"
    own = place.replace("winograd", filtering)
    return own if own in _table(RATES, own) else place


def _is_strided(problem: Problem, op: str, algorithm: str) -> bool:
    """Does a stride change what a unit of work costs?

    Its adjoint has a phase for each residue of a position, with a panel of its own, and a scatter with positions as the
    lanes makes products of one line at a time. With a handful of channels these are short.
    """
    if problem.transposed or max(problem.stride) == 1:
        return False
    few = problem.in_channels <= cpu_direct.MOST_CHANNELS * problem.groups
    return (
        algorithm == "scatter" and (few or not problem.channels_last)
        if op == "fprop"
        else algorithm == "fold"
    )


def is_measured(problem: Problem, op: str, algorithm: str) -> bool:
    """Are there rates for a native algorithm on this kind of CPU, and for the layouts that it works in?"""
    of = rates(problem, op, native_kind(problem, op, algorithm))
    measured = {name.partition("/")[0] for name in of}
    counts = native_counts(problem, op, algorithm)
    return bool(of) and all(name in measured for name in LAYOUTS if counts[f"{name}/multiply_adds"])


def torch_kind(problem: Problem, op: str) -> str:
    """Which rates hold for torch's convolution; it has other kernels by dimension and for few channels."""
    channels, few = problem.in_channels // problem.groups, ""
    if _is_small_to_torch(problem):
        few = "/small"
    elif problem.ndim < 3 and channels < 8:
        few = "/few"
    elif problem.ndim == 2:
        least = min(channels, problem.out_channels // problem.groups)
        few = "/below16" if least < 16 else "/16" if least == 16 else ""
    return f"torch{problem.ndim}d/{'pixels' if problem.input_channels_last else 'planes'}/{op}{few}"


def _is_small_to_torch(problem: Problem) -> bool:
    """Does torch leave a problem to its own kernels, which are far slower in 3-D, instead of oneDNN?

    That is the rule of aten/src/ATen/native/Convolution.cpp (torch 2.13) for float32; it looks at the first two spatial
    dimensions alone, and a 1-D problem has one of size 1 before its own.
    """
    p = problem
    if p.dtype != torch.float32 or p.batch > 1 or p.groups > 1:
        return False
    outer = p.spatial[0] * (p.spatial[1] if p.ndim > 1 else 1)
    return p.in_channels * outer <= 20480 and not (p.ndim > 1 and min(p.kernel[-2:]) > 3)


def native_seconds(problem: Problem, op: str, algorithm: str) -> float:
    """Estimate for a native algorithm."""
    counts = native_counts(problem, op, algorithm)
    seconds = _seconds(counts, native_kind(problem, op, algorithm), problem, op)
    filtering = algorithm.removeprefix("scatter_")
    if filtering in FILTERING:
        # The rates were measured with warm caches. In a network the weights come from memory, and filtering packs
        # more of them: 512 channels on a 7 x 7 map took 0.6 ms with the fold and 0.7 to 1.1 ms with F(2,3).
        extra = FILTERING[filtering][0] / 3 - 1
        seconds += extra * math.prod(problem.weight_shape) * _COLD_WEIGHT_SECONDS
    return seconds


def call_seconds(problem: Problem, op: str, algorithm: str) -> float:
    """What a native algorithm costs where there is nothing to compute."""
    return rates(problem, op, native_kind(problem, op, algorithm)).get("call", 0.0) * 1e-9


def torch_seconds(problem: Problem, op: str) -> float:
    """Estimate for the reference: expanded filters and torch's convolution, in the type in which it is asked."""
    return _torch_seconds(problem, op, TORCH_CAPABILITY, torch.get_num_threads())


@lru_cache(maxsize=64)
def _torch_seconds(problem: Problem, op: str, capability: str, threads: int) -> float:
    # Three backends go by this estimate for one choice. The last two arguments are part of the key alone.
    asked = asked_in(problem, op)
    wide = 1.0 if asked == problem.dtype else _WIDE[asked]
    inner = replace(problem, dtype=asked)
    seconds = _seconds(torch_counts(problem), torch_kind(inner, op), inner, op)
    return wide * seconds + widening_seconds(problem, op)


def widening_seconds(problem: Problem, op: str) -> float:
    """What it takes to bring tensors into the type in which torch is asked, and the result back."""
    if asked_in(problem, op) == problem.dtype:
        return 0.0
    elements = _activations(problem) + math.prod(problem.expanded_shape)
    return _WIDEN_CALL_SECONDS + elements * _WIDEN_ELEMENT_SECONDS / max(1, torch.get_num_threads())


def factor_kind(problem: Problem, op: str, kind: str, dtype: str) -> str:
    """Which factor holds for a kind in a 16-bit type that has no rates of its own for it."""
    if kind.startswith("torch"):
        return f"{dtype} {kind}"
    family = kind.removesuffix("/strided").removesuffix("/3d")
    layout = "pixels" if problem.input_channels_last else "planes"
    return f"{dtype} {family}/{layout}{_narrow(problem, op, kind)}"


def _narrow(problem: Problem, op: str, kind: str) -> str:
    """Natively, runs that fill no vector cost 16-bit types more, the shorter the more; so do columns, folded."""
    found = contractions(problem, op)
    run, columns = min(c.run for c in found), min(c.columns for c in found)
    if run < lanes(problem):
        return "/narrow" if run > cpu_direct.MOST_CHANNELS else "/handful" if run > 1 else "/single"
    return "/few" if columns < lanes(problem) and kind.startswith("fold") else ""


def _seconds(counts: dict[str, float], kind: str, problem: Problem, op: str) -> float:
    """Calls and passes cost the same whatever the threads; the rest is shared by the threads."""
    serial, shared = parts(counts, rates(problem, op, kind))
    factor, call = 1.0, 0.0
    if problem.dtype.itemsize == 2 and not has_own_rates(problem, op, kind):
        place = factor_kind(problem, op, kind, dtype_name(problem.dtype))
        factor, call = _table(FACTORS, kind).get(place, (1.0, 0.0))
    return (serial + call + factor * shared / max(1, torch.get_num_threads())) * 1e-9


def parts(counts: dict[str, float], of: dict[str, float]) -> tuple[float, float]:
    """Nanoseconds that do not depend on the number of threads, and those that they share, with the rates `of`."""
    serial = sum(of.get(name, 0.0) * counts[name] for name in SERIAL)
    return serial, sum(of.get(name, 0.0) * counts[name] for name in FEATURES if name not in SERIAL)
