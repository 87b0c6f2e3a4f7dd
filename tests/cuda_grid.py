# Problems of the CUDA kernels on the stand-in: grown to whole vectors of channels, and what each algorithm must take.
"""`GRID` has every special case that is not transposed, as it is and grown, and random ones; `must_run` says, from the
case alone, what an algorithm has to take; `MAY` says for which reasons it may refuse the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import prod
from unittest import mock

import cases
import oracle
import torch
from oracle import OPS, Case, expected, make_tensors, problem_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (BF16, FP16, FP32)
ALGORITHMS = ("tile", "patch", "hopper", "depthwise")
VECTOR = 8  # channels of 16 bytes, of 16-bit types; of float32 it is two vectors

# What is large for the native kernels, which cut it into parts; here a few tiles are enough.
SMALLER = {
    "depthwise, 31 x 31": {"spatial": (19, 17), "kernel": (31, 31)},
    "many pixels": {"spatial": (23, 31)},
    "many pixels, contiguous": {"spatial": (31, 23)},
    "many pixels in one line": {"spatial": (300,)},
    "many channels": {"channels": 144},
    "many channels, contiguous": {"channels": 144},
    "many channels, large kernel": {"channels": 72},
    "mirrored axis, two chunks": {"spatial": (7, 9), "channels": 72},
    "mirrored axis, tiles": {"spatial": (27, 19)},
    "scatter, two blocks of orbits": {"spatial": (5, 12), "channels": 72},
    "scatter, two blocks of orbits, contiguous": {"spatial": (5, 12), "channels": 72},
    "scatter, lines across, tiles": {"spatial": (4, 37), "channels": 40},
    "scatter, many lines": {"spatial": (37, 7)},
    "direct, large map": {"spatial": (19, 33)},
    "direct, contiguous": {"spatial": (5, 40)},
    "relayout, images in parts": {"spatial": (9, 7), "batch": 3},
    "relayout, lines in parts": {"spatial": (19, 7)},
    "relayout, lines, stride": {"spatial": (13, 11), "channels": 40},
    "relayout, lines, dilation": {"spatial": (16, 12), "channels": 24},
    "relayout, 3-D, lines in parts": {"spatial": (5, 4, 9), "channels": 16},
    "stem, C = 3, channels last": {"spatial": (21, 19)},
    "direct, stride 2": {"spatial": (21, 19)},
}
SAMPLE = 24


def _large(mask: int, rows: int, channels: int, spatial: tuple[int, int], batch: int = 2) -> Case:
    ties, layouts = ((mask, rows),), ("channels_last",) * 3
    sizes = {"spatial": spatial, "batch": batch, "padding": (1, 1)}
    return Case(ties=ties, channels=channels, layouts=layouts, result_last=True, **sizes)


# Large tiles, and tiles of several images, are chosen where there is something to fill them with.
LARGE = {
    "large, h": _large(1, 64, 40, (31, 15)),
    "large, h, few channels": _large(1, 64, 8, (31, 15)),
    "large, h, few orbits": _large(1, 8, 8, (31, 31)),
    "large, v": _large(2, 56, 72, (15, 31)),
    "large, hv": _large(3, 32, 40, (31, 15)),
    "large, hv, many stages": _large(3, 8, 136, (24, 24), batch=1),
    "large, hv, whole stages": _large(3, 56, 128, (16, 8)),
    "small image, h, many stages": _large(1, 8, 136, (7, 7), batch=1),
    "small images, hv, two stages": _large(3, 8, 40, (7, 7), batch=3),
    "strips, h": _large(1, 8, 8, (4, 31), batch=5),
    "strips, hv": _large(3, 8, 8, (4, 31), batch=5),
    "small images, h, many channels": _large(1, 16, 128, (8, 7), batch=16),
    "small images, hv, many channels": _large(3, 16, 128, (7, 8), batch=16),
    "strips, h, many channels": _large(1, 16, 128, (4, 31), batch=5),
    "strips, hv, many channels": _large(3, 32, 128, (4, 31), batch=5),
    "small images, h": _large(1, 8, 8, (15, 7), batch=9),
    "small images, hv": _large(3, 8, 8, (15, 7), batch=9),
}


def depthwise(case: Case) -> bool:
    """One input channel in each of several groups."""
    return case.channels == case.groups > 1


def grown(case: Case) -> Case:
    """The same with whole vectors of channels and of rows in every group; depthwise layers as they are."""
    if depthwise(case):
        return case

    def fill(number: int) -> int:
        return -(-number // (case.groups * VECTOR)) * case.groups * VECTOR

    ties = tuple((mask, fill(rows)) for mask, rows in case.ties)
    return replace(case, channels=fill(case.channels), ties=ties)


@lru_cache(maxsize=1)
def grid() -> dict[str, Case]:
    """By name; what is the same grown and as it is, once."""
    special = {name: replace(case, **SMALLER.get(name, {})) for name, case in cases.SPECIAL.items()}
    random = {f"random {i}": case for i, case in enumerate(cases.sample(SAMPLE))}
    found = {}
    for name, case in (special | LARGE | random).items():
        if not case.transposed:
            case = replace(case, threads=1)
            found[name] = case
            if grown(case) != case:
                found[f"{name}, grown"] = grown(case)
    return found


# --- what must run, and what may be refused --------------------------------------------------------------------------


def _vectors(number: int, dtype: torch.dtype) -> bool:
    return number * dtype.itemsize % 16 == 0


def _three_by_three(case: Case) -> bool:
    p = problem_of(case, BF16, "fprop")
    axes = (p.kernel, p.stride, p.dilation, p.padding)
    inner = tuple(tuple(values[-2:]) for values in axes)
    outer = tuple(values[:-2] for values in axes)
    return (
        case.ndim > 1
        and inner == ((3, 3), (1, 1), (1, 1), (1, 1))
        and outer in (((),) * 4, ((1,), (1,), (1,), (0,)))
    )


def _patches(case: Case, dtype: torch.dtype, op: str) -> bool:
    """3 x 3 forward, one tie along one axis or two."""
    return op == "fprop" and _one_tie(case, dtype)


def _one_tie(case: Case, dtype: torch.dtype) -> bool:
    masks = [mask for mask, rows in case.ties if rows]
    one_tie = len(masks) == 1 and masks[0] in (1, 2, 3)
    whole = _vectors(case.channels // case.groups, dtype)
    return dtype.itemsize == 2 and one_tie and whole and _three_by_three(case)


def _warp_groups(case: Case, dtype: torch.dtype, op: str) -> bool:
    """What patches are, in one plane; several groups, or members, start at whole stages."""
    if case.ndim == 3 and case.spatial[0] > 1:
        return False
    if op == "wgrad":
        return _patches(case, dtype, "fprop") and _filters(case) % VECTOR == 0
    return _one_tie(case, dtype) and not (_cut_stages if op == "fprop" else _cut_rows)(case)


def _filters(case: Case) -> int:
    return problem_of(case, BF16, "fprop").out_channels


def _cut_stages(case: Case) -> bool:
    return case.groups > 1 and case.channels // case.groups % 64 != 0


def _cut_rows(case: Case) -> bool:
    return any(rows // case.groups % 16 for _, rows in case.ties)


MOST_CLASSES = 64
"""Residues of pixels at a stride, each a launch of its own."""


def most_taps(dtype: torch.dtype) -> int:
    """Of a filter whose gradient has room in shared memory."""
    return 256 if dtype == FP32 else 384


def _tiles(case: Case, dtype: torch.dtype, op: str) -> bool:
    """Any geometry: whole vectors of channels of whatever is read."""
    channels = _vectors(case.channels // case.groups, dtype)
    rows = all(_vectors(rows // case.groups, dtype) for _, rows in case.ties)
    return {
        "fprop": channels,
        "dgrad": rows and prod(case.stride) <= MOST_CLASSES,
        "wgrad": channels and rows and prod(case.kernel) <= most_taps(dtype),
    }[op]


def _channel_by_channel(case: Case, dtype: torch.dtype, op: str) -> bool:
    return depthwise(case) and case.ndim < 3


MUST: dict[str, Callable[[Case, torch.dtype, str], bool]] = {
    "tile": _tiles,
    "patch": _patches,
    "hopper": _warp_groups,
    "depthwise": _channel_by_channel,
}


def must_run(case: Case, dtype: torch.dtype, op: str, algorithm: str) -> bool:
    """Does the algorithm take this, and nothing else of the grid?"""
    return algorithm in MUST and MUST[algorithm](case, dtype, op)


# --- checks ----------------------------------------------------------------------------------------------------------


def check(case: Case, dtype: torch.dtype, op: str, algorithm: str, device: str = "cpu") -> None:
    """`oracle.check`; float32 that is multiplied as TF32 gets whole numbers, of which no rounding loses anything."""
    if dtype != FP32 or algorithm == "depthwise":
        oracle.check(case, dtype, op, "cuda", algorithm, device)
        return
    with mock.patch.object(oracle, "make_tensors", lambda case, dtype: make_tensors(case, BF16)):
        result = oracle.run(case, FP32, op, "cuda", algorithm, device).cpu()
    wrong = result.double() != expected(case, BF16)[op]
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} values of {case!r} are wrong"


def refused(case: Case, reason: str, dtype: torch.dtype, op: str) -> bool:
    """Is a reason right, by the conditions of MAY?"""
    for pattern, may in MAY.items():
        found = re.fullmatch(pattern, reason)
        if found:
            return may(case, dtype, op, *found.groups())
    return False


def _rows_of_a_tie(case: Case, dtype: torch.dtype) -> bool:
    """Do the rows of some tie not fill vectors?"""
    return not all(_vectors(rows // case.groups, dtype) for _, rows in case.ties)


MAY: dict[str, Callable[..., bool]] = {
    "it has the passes fprop alone": lambda case, dtype, op: op != "fprop",
    # patch
    "its patches are for kernels of 3 x 3 with stride 1, dilation 1 and padding 1": lambda case, dtype, op: (
        not _three_by_three(case)
    ),
    "it is for layers with one tie, h, v or hv, and no free rows": lambda case, dtype, op: (
        len([rows for _, rows in case.ties if rows]) != 1 or case.ties[0][0] not in (1, 2, 3)
    ),
    "its patches are of bfloat16 or float16": lambda case, dtype, op: dtype == FP32,
    # hopper
    r"8 does not divide the (\d+) output channels": lambda case, dtype, op, filters: (
        op == "wgrad" and int(filters) == _filters(case) and int(filters) % VECTOR != 0
    ),
    "its maps have no planes": lambda case, dtype, op: case.ndim == 3 and case.spatial[0] > 1,
    r"64 does not divide the \d+ input channels of a group, and there are several": lambda case, dtype, op: (
        op == "fprop" and _cut_stages(case)
    ),
    r"16 does not divide the \d+ rows of a group": lambda case, dtype, op: op == "dgrad" and _cut_rows(case),
    # tile
    r"(\d+) does not divide the (\d+) input channels of a group": lambda case, dtype, op, vector, channels: (
        int(channels) == case.channels // case.groups and int(channels) % (16 // dtype.itemsize) != 0
    ),
    r"(\d+) does not divide the rows of each tie in a group": lambda case, dtype, op, vector: (
        op != "fprop" and _rows_of_a_tie(case, dtype)
    ),
    "the channels of a group must fill whole 16 bytes": lambda case, dtype, op: (
        op == "wgrad" and not _vectors(case.channels // case.groups, dtype)
    ),
    "(pixels must lie|the members of each tie must start) at multiples of 16 bytes": lambda case, dtype, op, what: (
        op == "wgrad" and _rows_of_a_tie(case, dtype)
    ),
    "the filters of a group must fill whole 16 bytes": lambda case, dtype, op: (
        op == "wgrad" and _rows_of_a_tie(case, dtype)
    ),
    "a filter has more than 384 taps, or none": lambda case, dtype, op: (
        op == "wgrad" and prod(case.kernel) > 384
    ),
    "its strides make more than 64 classes of pixels": lambda case, dtype, op: (
        op == "dgrad" and prod(case.stride) > MOST_CLASSES
    ),
    r"no tile fits the \d+ KB of shared memory(?: of sm_\w+)?": lambda case, dtype, op: (
        op == "wgrad" and prod(case.kernel) > most_taps(dtype)
    ),
    # depthwise
    "it is for depthwise layers, of one input channel in each of several groups": lambda case, dtype, op: (
        not depthwise(case)
    ),
    "it has no kernels of three dims": lambda case, dtype, op: case.ndim == 3,
}
"""Conditions by reasons, which are regular expressions; groups of these are arguments."""

__all__ = ["ALGORITHMS", "DTYPES", "OPS", "check", "grid", "grown", "must_run", "refused"]
