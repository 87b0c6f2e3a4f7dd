"""What a native pass costs, in seconds: the work that was selected times its rates, which stand beside this file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ...problem import Problem
from . import rates
from .rates import Place

# Losing against torch is worse than leaving a small gain. On held-out rows margins of 1.1 lose 0.3 % more.
# Panels of 16-bit types pack few orbits or channels one by one, and there the estimates are worse.
_MARGIN, _MARGIN_NARROW, _NARROW = 1.05, 1.5, 8
# Forward passes of stems. The rows with AVX-512 are those of AMD: on an Intel Xeon 6 x 6 taps at stride 2, said to gain
# 1.16, had 0.86 of torch's speed.
_STEMS, _MARGIN_STEM = ("direct/fprop", "direct_fold/fprop"), 1.15
# Most rows of the fit are older than what a pass keeps from call to call: an 8 x 8 x 8 input then took 7.7 us, now 5.3.
_KEPT_SECONDS = 2.4e-6
# Two Zen 5 threads, 2026-11-29: three rounds of them for each part, and 16 x 16 elements through registers.
_PART_SECONDS, _ELEMENT_SECONDS = 6e-6, 0.25e-9
# Input gradients whose channels are sorted, beside those of blocks (Zen 4: 64 channels, 3 taps, float32 and bfloat16).
_SORTED_SECONDS = 0.1e-6
# Weights that filtering makes of three taps. The rates were measured with warm caches; in a network the weights come
# from memory: 512 channels on a 7 x 7 map took 0.6 ms with the fold and 0.7 to 1.1 ms with F(2,3).
_PACKED = {"f2": 4, "f4": 6}
_COLD_WEIGHT_SECONDS = 0.5e-9

_MOST_PHASES = 16
_HANDFUL = 4  # channels for which units of work have prices of their own


def seconds(problem: Problem, op: str, algorithm: str, selection: Any) -> float:
    """A cautious estimate for an algorithm by its native name; infinite where nothing was measured.

    One between copies is that in channels_last, once for each part, and the copies.
    """
    if not selection.number:
        return _seconds(problem, op, algorithm, selection)
    inner = replace(problem, channels_last=True, input_channels_last=True)
    times = 1 if op == "wgrad" else selection.number  # a weight gradient has one accumulator
    share = problem.dtype.itemsize / 4 / max(1, torch.get_num_threads())
    copies = selection.number * _PART_SECONDS + selection.copied * share * _ELEMENT_SECONDS
    return times * _seconds(inner, op, algorithm, selection) + copies


def _seconds(problem: Problem, op: str, algorithm: str, selection: Any) -> float:
    if selection.depthwise:
        return _MARGIN * bare_seconds(problem, op, algorithm, selection)
    counts, where = selection.counts, place(problem, op, algorithm, selection)
    if not is_measured(counts, where) or _has_narrow_panels(problem, op, algorithm, selection):
        return math.inf
    call = rates.find(where).get("call", 0.0) * 1e-9  # is known well, and all of the time of a tiny layer
    kept = _KEPT_SECONDS if _is_fold(algorithm) and op != "wgrad" else 0.0
    guessed = problem.dtype.itemsize == 2 and not where.is_own
    narrow = (
        guessed and min(selection.run, selection.columns) < _NARROW and not algorithm.startswith("direct")
    )
    margin = _MARGIN_NARROW if narrow else _MARGIN
    if where.kind in _STEMS:
        margin = _MARGIN_STEM
    return call - kept + margin * (bare_seconds(problem, op, algorithm, selection) - call)


def bare_seconds(problem: Problem, op: str, algorithm: str, selection: Any) -> float:
    """The estimate for an algorithm where the tensors lie, without a margin."""
    if selection.depthwise:
        return _depthwise_seconds(problem, op, selection)
    where = place(problem, op, algorithm, selection)
    sorting = selection.sorted * _SORTED_SECONDS / max(1, torch.get_num_threads())
    return rates.seconds(selection.counts, where) + _cold_seconds(problem, algorithm) + sorting


def is_measured(counts: dict[str, float], where: Place) -> bool:
    """Are there rates of a kind on this CPU, and for the layouts that it works in?"""
    if where.dtype.itemsize == 2 and where.kind == "direct/fprop":
        return False  # neither rates of its own nor a factor
    of = rates.find(where)
    measured = {unit.partition("/")[0] for unit in of}
    layouts = {unit.partition("/")[0] for unit in counts if unit.endswith("/multiply_adds")}
    return bool(of) and layouts <= measured


def _has_narrow_panels(problem: Problem, op: str, algorithm: str, selection: Any) -> bool:
    """Has each of several groups a panel of a handful of channels or orbits, or a block of the input few of them?

    Rates are those of layers of one group, whose units these took 2 to 10 times (Zen 3: groups of 4 and 8, stride 2).
    Input gradients of blocks of two channels took 1.7 times as long as was said (Zen 4: 4 to 64 channels, 21 taps).
    """
    by_blocks = problem.sides is not None and op == "dgrad" and not algorithm.startswith("direct")
    return (by_blocks and selection.columns < _HANDFUL) or (
        problem.groups > 1 and min(selection.run, selection.columns) <= _HANDFUL
    )


def _cold_seconds(problem: Problem, algorithm: str) -> float:
    packed = _PACKED.get(algorithm.rpartition("_")[2], 3)
    return (packed / 3 - 1) * math.prod(problem.weight_shape) * _COLD_WEIGHT_SECONDS


def depthwise_key(problem: Problem, op: str) -> tuple[str, str, str]:
    """Where the rates of the depthwise kernels stand; groups of several channels and ties on both sides have their
    own."""
    whose = "native"
    if problem.groups < problem.in_channels:
        whose = "groups AVX512" if rates.capability() == "AVX512" else "groups AVX2"
    if problem.sides:
        whose = "across" if problem.sides.across else "own"
    return whose, "pixels" if problem.input_channels_last else "planes", op


def _depthwise_seconds(problem: Problem, op: str, selection: Any) -> float:
    of = rates.DEPTHWISE[depthwise_key(problem, op)]
    counts = selection.counts
    elements = counts["activations"] * max(4, problem.dtype.itemsize) / 4
    shared = elements * of["elements"] + sum(
        counts.get(f"depthwise/{unit}", 0.0) * of.get(unit, 0.0) for unit in ("windows", "lines", "shared")
    )
    return (of["call"] + shared / max(1, torch.get_num_threads())) * 1e-9


# --- where rates stand ---------------------------------------------------------------------------------------------


def place(problem: Problem, op: str, algorithm: str, selection: Any) -> Place:
    """Where the rates of a native algorithm stand.

    Panels of three axes have rates of their own: a tile reads lines around it on two of them. So has F(4,3) where it
    was measured, and a stride where that changes what a unit costs.
    """
    family, _, filtering = algorithm.rpartition("_")
    kind = algorithm
    if filtering in _PACKED:
        kind = "winograd" if family == "fold" else f"{family}_winograd"
    deep = "/3d" if problem.ndim == 3 and kind in ("fold", "winograd") else ""
    where = "/strided" if _is_strided(problem, op, algorithm) else deep
    if where == "/strided":
        where += _beyond(problem, op)
    elif op == "wgrad" and kind in ("fold", "winograd") and selection.columns < selection.lanes:
        where += "/few"  # input channels, which are the columns and fill no vector
    shared = f"{kind}/{op}{where}"
    alone = shared.replace("winograd", filtering)
    kind = alone if rates.is_known(alone) else shared
    return of_kind(kind, problem, selection)


def of_kind(kind: str, problem: Problem, selection: Any) -> Place:
    """The same for a kind by its name: 16-bit types have rates by how narrow a panel is, or factors by its layout."""
    dtype, narrow = rates.dtype_name(problem.dtype, kind), _narrow(selection, kind)
    family = kind.removesuffix("/few").removesuffix("/strided").removesuffix("/3d")
    layout = "pixels" if problem.input_channels_last else "planes"
    return Place(kind, f"{dtype} {kind}{narrow}", f"{dtype} {family}/{layout}{narrow}", problem.dtype)


def _is_fold(algorithm: str) -> bool:
    return algorithm.startswith("fold")


def _beyond(problem: Problem, op: str) -> str:
    """Of strided passes that are unlike others: those of volumes, forward, and gradients of more phases than a stride
    of 4 has in two dimensions."""
    if op == "fprop":
        return "/3d" if problem.ndim == 3 else ""
    return "/phases" if math.prod(problem.stride) > _MOST_PHASES else ""


def _is_few(problem: Problem) -> bool:
    return problem.in_channels <= _HANDFUL * problem.groups


def _is_strided(problem: Problem, op: str, algorithm: str) -> bool:
    """Does a stride change what a unit of work costs?

    Its adjoint has a phase for each residue of a position, with a panel of its own, and a scatter with positions as the
    lanes makes products of one line at a time. With a handful of channels these are short, and in volumes many. What
    a fold of a volume stages is for the most part reading, of eight times as many positions as it has results.
    """
    if problem.transposed or max(problem.stride) == 1:
        return False
    if op != "fprop":
        return algorithm == "fold"
    if algorithm == "fold":
        return problem.ndim == 3
    return algorithm == "scatter" and (_is_few(problem) or problem.ndim == 3 or not problem.channels_last)


def _narrow(selection: Any, kind: str) -> str:
    """Runs that fill no vector cost 16-bit types more, the shorter the more; so do columns, folded."""
    run, columns = selection.run, selection.columns
    if run < selection.lanes:
        return "/narrow" if run > _HANDFUL else "/handful" if run > 1 else "/single"
    return "/few" if columns < selection.lanes and kind.startswith("fold") else ""
