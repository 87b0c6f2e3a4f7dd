# The problems that are tried: a list by hand for what is known to go wrong, and random ones from the whole space.
"""`SPECIAL` is the list by hand, `draw` makes any problem of the space, `sample` draws seeded ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from oracle import LAYOUTS, Case

Choose = Callable[[Sequence[Any]], Any]

MASKS = (1, 2, 4, 3, 5, 6, 7, 0)  # h, v, z, hv, hz, vz, hvz, free: the canonical order
GUARDED = range(
    1000, 1100
)  # numbers of the random problems that .ci/run tries with guard pages and sanitizers
MAX_MACS = 1_500_000  # of the expanded convolution: keeps one problem at milliseconds

# The space. The simplest value of each comes first, which is where a failing example shrinks to.
ROWS = (1, 2, 3, 4, 5, 8, 16, 17)  # of one group
CHANNELS = (1, 3, 2, 4, 5, 16, 19, 33, 7, 8, 9, 15, 17, 31, 32)  # of one group: below, at and above vectors
FEW, FULL = (1, 3, 2, 4), (16, 32, 8)
"""Channels and rows of a stem, which has kernels of its own where the filters of a group fill vectors."""
GROUPS = (1, 2, 3)
DEPTHWISE = (4, 9, 18)  # groups of a depthwise layer
KERNEL = (3, 1, 2, 4, 5, 7)
STRIDE = (1, 2, 3)
DILATION = (1, 2, 3)
PADDING = (0, 1, 2, 3)
EXTENT = {1: (1, 2, 5, 12, 37, 300), 2: (1, 2, 5, 7, 12, 23), 3: (1, 2, 3, 5, 8)}
BATCH = (1, 2, 3, 5)
THREADS = (1, 2, 3)
STRIDES = (*LAYOUTS, "channels_last", "channels_last")  # which only this one, and some slices, are like


def draw(choose: Choose) -> Case:
    """Any problem: `choose` picks one of a sequence (random.choice, or a strategy that shrinks to the first)."""
    ndim = choose((2, 1, 3))
    kind = choose(("any", "any", "stem", "depthwise"))
    transposed = kind != "stem" and choose((False, False, True))
    groups = choose(DEPTHWISE) if kind == "depthwise" else choose((*GROUPS, 1, 1))
    of_group = 1 if kind == "depthwise" else choose(FEW if kind == "stem" else CHANNELS)
    channels = groups * of_group
    rows = {"depthwise": (1, 2), "stem": FULL}.get(kind, ROWS)
    usual = choose((False, False, False, True))
    geometry = [_axis(choose, ndim, transposed, usual) for _ in range(ndim)]
    spatial, kernel, stride, padding, dilation, output_padding = (tuple(v) for v in zip(*geometry))
    case = Case(
        ndim=ndim, ties=_ties(choose, ndim, groups, rows), channels=channels, spatial=spatial, kernel=kernel,
        stride=stride, padding=padding, dilation=dilation, output_padding=output_padding, transposed=transposed,
        groups=groups, batch=choose(BATCH), bias=choose((False, True)),
        layouts=(choose(STRIDES), choose(STRIDES), choose(STRIDES)), result_last=ndim > 1 and choose((False, True)),
        threads=choose(THREADS), seed=choose(range(1000)),
    )  # fmt: skip
    return _shrink_to_fit(case)


def _ties(choose: Choose, ndim: int, groups: int, rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Each segment is left out half of the time, and at least one is there."""
    masks = [mask for mask in MASKS if mask < 1 << ndim]
    ties = tuple((mask, groups * choose(rows)) for mask in masks if choose((False, True)))
    return ties or ((choose(masks), groups * choose(rows)),)


def _axis(choose: Choose, ndim: int, transposed: bool, usual: bool) -> tuple[int, int, int, int, int, int]:
    """(extent, kernel, stride, padding, dilation, output padding) of one axis, with an output of at least 1."""
    kernel, stride, dilation = (3, 1, 1) if usual else (choose(KERNEL), choose(STRIDE), choose(DILATION))
    padding = choose(PADDING)
    if ndim == 3:
        kernel = min(kernel, 5)
    extent, reach = choose(EXTENT[ndim]), dilation * (kernel - 1) + 1
    if not transposed:
        return max(extent, reach - 2 * padding, 1), kernel, stride, padding, dilation, 0
    output_padding = choose(range(max(stride, dilation)))
    while (extent - 1) * stride - 2 * padding + reach + output_padding < 1:
        extent += 1
    return extent, kernel, stride, padding, dilation, output_padding


def dense_macs(case: Case) -> int:
    """Multiply-accumulates of the expanded convolution, one pass."""
    macs = case.batch * case.out_channels * case.channels // case.groups
    for n, k in zip(case.spatial if case.transposed else case.output_shape[2:], case.kernel):
        macs *= n * k
    return macs


def _shrink_to_fit(case: Case) -> Case:
    """Fewer images, then fewer channels, until the problem costs milliseconds."""
    if dense_macs(case) > MAX_MACS:
        case = replace(case, batch=1)
    while dense_macs(case) > MAX_MACS and case.channels > case.groups:
        case = replace(case, channels=max(1, case.channels // case.groups // 2) * case.groups)
    if dense_macs(case) > MAX_MACS and len(case.ties) > 1:
        return _shrink_to_fit(replace(case, ties=case.ties[:-1]))
    return case


def sample(count: int, start: int = 0) -> list[Case]:
    """`count` seeded random problems; number i is the same for everybody."""
    return [draw(random.Random(i).choice) for i in range(start, start + count)]


def _case(
    ties: dict[int, int], channels: int, spatial: tuple[int, ...], kernel: int | tuple[int, ...], **more: Any
) -> Case:
    """A case with the same value on every axis where one is given."""
    ndim = len(spatial)
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
        value = more.get(name, default)
        more[name] = (value,) * ndim if isinstance(value, int) else value
    sizes = (kernel,) * ndim if isinstance(kernel, int) else kernel
    return Case(ndim=ndim, ties=tuple(ties.items()), channels=channels, spatial=spatial, kernel=sizes, **more)


LAST = {"layouts": ("channels_last",) * 3, "result_last": True}
MIXED_2D = {1: 3, 2: 2, 3: 5, 0: 4}
MIXED_3D = {1: 2, 2: 1, 4: 3, 3: 2, 5: 1, 6: 2, 7: 3, 0: 2}

SPECIAL: dict[str, Case] = {
    "free": _case({0: 6}, 5, (6, 7), 3, padding=1),
    "h": _case({1: 6}, 5, (6, 7), 3, padding=1),
    "v": _case({2: 6}, 5, (6, 7), 3, padding=1, **LAST),
    "hv": _case({3: 6}, 5, (6, 7), 3, padding=1, **LAST),
    "mixed 2-D": _case(MIXED_2D, 7, (9, 8), 3, padding=1, threads=2),
    "mixed 2-D, channels last": _case(MIXED_2D, 7, (9, 8), 3, padding=1, threads=2, **LAST),
    "mixed 3-D": _case(MIXED_3D, 5, (5, 4, 6), 3, padding=1, threads=2),
    "mixed 3-D, channels last": _case(MIXED_3D, 5, (5, 4, 6), (3, 2, 3), padding=1, **LAST),
    "octuple, every axis another size": _case({7: 4}, 3, (5, 6, 7), (2, 3, 5), padding=(0, 1, 2)),
    "1-D": _case({1: 9, 0: 2}, 4, (50,), 5, padding=2, stride=2),
    "even kernels": _case({3: 5, 1: 3}, 6, (8, 9), (4, 2), padding=(1, 0)),
    "one pixel": _case({3: 5, 2: 2}, 6, (1, 1), 3, padding=1, **LAST),
    "one output pixel, kernel = input": _case({3: 5, 2: 2}, 6, (4, 5), (4, 5)),
    "kernel 1": _case({3: 5, 0: 2}, 16, (5, 6), 1, stride=2, **LAST),
    "stem, C = 3": _case({1: 8, 3: 4}, 3, (17, 19), 7, stride=2, padding=3),
    "stem, C = 1, wide": _case({3: 16}, 1, (28, 28), 5, padding=2, **LAST),
    "stem, C = 3, channels last": _case({1: 20, 3: 17}, 3, (40, 37), 7, stride=2, padding=3, threads=2, **LAST),
    "stem, C = 2, stride 3": _case({1: 20, 2: 3}, 2, (23, 29), 5, stride=3, padding=2, **LAST),
    "stem, C = 4, groups": _case({1: 36, 0: 4}, 8, (9, 21), 3, padding=1, groups=2, **LAST),
    "few orbits, octuple": _case({7: 4}, 20, (5, 6, 19), 3, padding=1, threads=2, **LAST),
    "few orbits, filtered": _case({1: 5, 2: 6}, 20, (9, 35), 3, padding=1, **LAST),
    "short lines": _case({1: 20, 3: 18}, 36, (7, 7), 3, padding=1, threads=2),
    "padding beyond the kernel": _case({1: 2, 3: 2}, 2, (2, 3), 2, padding=3),
    "dilation": _case({1: 2, 3: 2}, 5, (11, 12), 3, dilation=(3, 2), padding=2),
    "stride 3 and dilation 2": _case({2: 2, 3: 2}, 5, (11, 12), 3, stride=3, dilation=2, padding=2, **LAST),
    "stride past the kernel": _case({3: 3}, 5, (9, 9), 2, stride=3),
    "groups": _case({1: 6, 3: 3, 0: 9}, 15, (6, 7), 3, padding=1, groups=3),
    "groups, channels last": _case({1: 6, 3: 3, 0: 9}, 15, (6, 7), 3, padding=1, groups=3, **LAST),
    "depthwise": _case({1: 18}, 18, (9, 11), 7, padding=3, groups=18),
    "depthwise, channels last, all ties": _case({1: 8, 2: 8, 3: 8}, 8, (9, 11), 5, padding=2, groups=8, **LAST),
    "depthwise, stride 2": _case({3: 16}, 16, (9, 11), 3, padding=1, stride=2, groups=16),
    "depthwise, 31 x 31": _case({1: 7}, 7, (33, 35), 31, padding=15, groups=7, threads=2, **LAST),
    "depthwise, more channels than lanes": _case({3: 35, 0: 35}, 35, (9, 12), 5, padding=2, groups=35, **LAST),
    "depthwise 3-D": _case({7: 4, 5: 4}, 4, (4, 5, 6), 3, padding=1, groups=4),
    "depthwise 3-D, channels last": _case({7: 4}, 4, (1, 3, 3), 3, padding=(1, 0, 0), groups=4, **LAST),
    "narrow groups": _case({1: 32}, 64, (9, 11), 3, padding=1, groups=16, threads=2),
    "narrow groups, channels last": _case({1: 32}, 64, (9, 11), 3, padding=1, groups=16, threads=2, **LAST),
    "narrow groups, one orbit each": _case({3: 36}, 144, (12, 10), 3, padding=1, groups=36, threads=3, **LAST),
    "narrow groups, stride 2": _case({2: 32}, 64, (9, 12), (5, 3), padding=1, stride=2, groups=16, **LAST),
    "narrow groups, lanes left over": _case({3: 33}, 33, (7, 12), 5, padding=2, groups=11, batch=1, **LAST),
    "narrow groups, more filters": _case({1: 64}, 32, (7, 15), 3, padding=1, groups=16, **LAST),
    "narrow groups, no tie": _case({0: 128}, 128, (7, 15), 3, padding=1, groups=32, **LAST),
    "narrow groups, octuple": _case({7: 32}, 32, (4, 5, 6), 3, padding=1, groups=16, **LAST),
    "narrow groups, far taps": _case({1: 64}, 64, (19, 8), (4, 3), padding=2, dilation=(1, 2), groups=32),
    "transposed": _case({1: 4, 3: 3}, 6, (5, 4), 3, transposed=True, padding=1),
    "transposed, stride 2": _case({2: 4, 3: 3}, 6, (5, 4), 4, transposed=True, padding=1, stride=2, **LAST),
    "transposed, output padding": _case(
        {1: 4, 3: 2}, 6, (5, 4), 3, transposed=True, stride=3, output_padding=(2, 1), groups=2
    ),
    "transposed, dilation past stride": _case(
        {3: 2}, 3, (5, 4), 3, transposed=True, stride=2, dilation=3, output_padding=2
    ),
    "transposed 3-D": _case({7: 2, 6: 2}, 3, (3, 2, 4), 3, transposed=True, stride=(2, 1, 2), padding=1),
    "many channels": _case({3: 9}, 1100, (5, 6), 3, padding=1, **LAST),
    "many channels, contiguous": _case({3: 9}, 1100, (5, 6), 3, padding=1),
    "many channels, large kernel": _case({3: 3, 1: 3}, 400, (6, 7), 5, padding=2, batch=1, threads=2),
    "many pixels": _case({1: 3}, 4, (47, 61), 3, padding=1, threads=2, **LAST),
    "many pixels, contiguous": _case({2: 3, 3: 2}, 4, (61, 47), 3, padding=1, threads=3),
    "many pixels in one line": _case({1: 3, 0: 2}, 3, (2600,), 3, padding=1, threads=2),
    "many orbits": _case({1: 70, 2: 33}, 20, (5, 6), 3, padding=1, threads=3, **LAST),
    "many orbits, contiguous": _case({3: 67}, 18, (5, 6), 3, padding=1, threads=2),
    "winograd, h": _case({1: 20}, 18, (9, 11), 3, padding=1, **LAST),
    "winograd, v, no padding": _case({2: 20, 0: 5}, 18, (10, 9), 3, threads=2),
    "winograd, 3-D": _case({1: 4, 3: 4, 6: 3}, 8, (5, 6, 7), 3, padding=1, threads=2),
    "mirrored axis, two chunks": _case({3: 20, 2: 17}, 180, (17, 21), 3, padding=1, threads=2),
    "mirrored axis, tiles": _case({3: 38, 2: 17}, 18, (67, 37), 3, padding=1, batch=1, threads=2),
    "mirrored axis, even kernel": _case({3: 18, 2: 17}, 20, (19, 23), (4, 5), padding=3, dilation=(2, 1)),
    "mirrored axis, large kernel": _case({3: 17, 2: 16}, 16, (12, 18), (7, 2), padding=(3, 0), stride=(1, 2)),
    "mirrored axis, transposed": _case({3: 18, 2: 20}, 17, (9, 19), 3, transposed=True, padding=1),
    "mirrored axis, one line": _case({3: 16}, 16, (1, 33), 3, padding=1),
    "mirrored axis, 3-D": _case({7: 17, 6: 16, 5: 16, 4: 16}, 17, (5, 4, 18), (3, 3, 2), padding=1),
    "mirrored axis below a strided one": _case({7: 16, 6: 3}, 16, (5, 6, 18), 3, padding=1, stride=(2, 1, 1)),
    "mirrored axis, turned": _case({7: 3, 3: 2}, 20, (5, 6, 19), 3, padding=1, threads=2, **LAST),
    "scatter, two blocks of orbits": _case({3: 50, 1: 36}, 130, (9, 30), 3, padding=1, batch=1, threads=2, **LAST),
    "scatter, two blocks of orbits, contiguous": _case({3: 50, 1: 36}, 130, (9, 30), 3, padding=1, batch=1, threads=2),
    "scatter, stride 2": _case({1: 20, 3: 17, 2: 5}, 18, (17, 20), 3, padding=1, stride=2, threads=2, **LAST),
    "scatter, stride 2, contiguous": _case({1: 20, 3: 17, 2: 5}, 18, (17, 20), (5, 3), padding=1, stride=2),
    "scatter, stride 3 past the map": _case({3: 17, 1: 16}, 18, (2, 40), 3, padding=4, stride=3, **LAST),
    "scatter, dilation and padding": _case({3: 17, 1: 18}, 18, (13, 20), (3, 5), padding=5, dilation=(3, 2), **LAST),
    "scatter, dilation, contiguous": _case({3: 17, 1: 18}, 18, (13, 20), (3, 5), padding=5, dilation=(3, 2)),
    "scatter, even kernel": _case({3: 17, 1: 18, 2: 16}, 17, (13, 20), (4, 2), padding=1, **LAST),
    "scatter, many lines": _case({3: 4, 1: 3}, 6, (70, 7), 3, padding=1, batch=1, threads=3),
    "scatter, groups": _case({3: 36, 1: 8}, 34, (9, 12), 3, padding=1, groups=2, threads=2, **LAST),
    "scatter, lines across": _case({2: 34}, 19, (13, 40), (3, 5), padding=(1, 2), threads=2, **LAST),
    "scatter, lines across, tiles": _case({2: 50}, 130, (4, 170), (5, 2), padding=(2, 3), batch=1, threads=2, **LAST),
    "scatter, lines across, stride": _case(
        {2: 20}, 18, (17, 20), 3, padding=4, stride=2, dilation=(1, 2), **LAST
    ),
    "scatter, lines across, 3-D": _case({4: 17, 2: 16, 6: 16}, 17, (5, 4, 18), 3, padding=(1, 1, 0), groups=1, **LAST),
    "scatter, 3-D": _case({7: 17, 6: 16, 5: 18, 3: 16, 1: 16}, 17, (5, 4, 18), (3, 3, 2), padding=1, **LAST),
    "scatter, 3-D, turned": _case({7: 3, 5: 2, 1: 1}, 20, (5, 6, 19), 3, padding=(2, 1, 1), threads=2, **LAST),
    "scatter, 3-D, stride": _case({7: 17, 3: 3}, 16, (6, 5, 18), 3, padding=1, stride=(2, 1, 2)),
    "direct": _case({1: 10, 3: 3}, 3, (17, 19), 3, padding=1, threads=2, **LAST),
    "direct, stride 2": _case({3: 8}, 1, (40, 37), 7, padding=3, stride=2, threads=2, **LAST),
    "direct, dilation and groups": _case({1: 16, 2: 16}, 8, (20, 31), (3, 2), padding=2, dilation=2, groups=2, **LAST),
    "direct, large map": _case({1: 16}, 2, (71, 80), 3, padding=(0, 5), batch=1, threads=3, **LAST),
    "direct, mixed": _case({1: 5, 2: 4, 3: 3, 0: 2}, 2, (19, 23), (3, 4), padding=2, threads=2, **LAST),
    "direct, 3-D": _case({7: 4}, 3, (5, 6, 9), 3, padding=(1, 0, 2), stride=(2, 1, 1), threads=2, **LAST),
    "direct, contiguous": _case({1: 5, 2: 4, 3: 3, 0: 2}, 3, (9, 133), 3, padding=1, threads=2),
    "direct, contiguous, stride": _case({3: 8}, 2, (21, 40), (5, 4), padding=2, stride=2, threads=2),
    "direct, contiguous, 3-D": _case({7: 4}, 3, (5, 6, 9), 3, padding=(1, 0, 2), dilation=(1, 2, 1), threads=2),
    "direct, 3-D, mixed": _case(
        {5: 2, 6: 1, 7: 2, 0: 4}, 4, (6, 5, 11), (3, 2, 3), padding=1, dilation=(1, 2, 1), threads=2, **LAST
    ),
    "direct, one value": _case({1: 8}, 3, (9, 21), 3, padding=1, layouts=("scalar", "expanded", "scalar")),
    "direct, one value, channels last": _case({3: 4}, 3, (9, 21), 3, layouts=("expanded",) * 3, result_last=True),
    "direct, patches": _case({3: 8, 1: 16}, 3, (20, 27), 4, stride=4, threads=2, **LAST),
    "direct, patches, contiguous": _case({3: 8}, 3, (40, 70), (5, 16), stride=(5, 16), threads=2),
    "direct, strides beyond taps": _case({3: 8}, 2, (14, 23), (2, 3), stride=(5, 4), padding=1, threads=3, **LAST),
    "direct, even taps, stride 2": _case({1: 16}, 3, (15, 44), 6, padding=2, stride=2, threads=2, **LAST),
    "direct, 4 taps, stride 2, contiguous": _case({1: 8, 2: 4, 0: 8}, 3, (12, 41), 4, padding=1, stride=2, threads=2),
    "direct, digits": _case({3: 8}, 1, (12, 28), 5, padding=2, batch=3, threads=2, **LAST),
    "direct, stem of volumes": _case({7: 8}, 1, (9, 8, 21), 7, padding=3, stride=2, batch=1, threads=2, **LAST),
    "direct, stem of volumes, mixed": _case(
        {7: 3, 5: 2, 2: 4, 0: 8}, 3, (6, 7, 11), (5, 3, 4), padding=(2, 1, 3), stride=(2, 1, 3), batch=3, threads=2
    ),
    "direct, fewer orbits than lanes": _case({3: 2, 1: 4}, 3, (9, 21), 5, padding=1, bias=True, threads=2, **LAST),
    "direct, far taps": _case({1: 16}, 2, (300,), 9, padding=30, dilation=16, stride=2, threads=2),
    "direct, more orbits than a chain": _case({1: 400}, 1, (18,), 3, padding=1, batch=1),
    "direct, 1-D, one channel": _case({1: 16}, 1, (150,), 25, padding=12, threads=2),
    "relayout, images in parts": _case({2: 20, 1: 12}, 40, (32, 30), 3, padding=1, batch=4, threads=2),
    "relayout, lines in parts": _case({2: 20, 1: 12}, 40, (67, 60), 3, padding=1, batch=2, threads=2),
    "relayout, lines, stride": _case({3: 12}, 64, (63, 70), (5, 3), padding=2, stride=(2, 1), threads=2),
    "relayout, lines, dilation": _case({1: 32}, 48, (70, 60), 3, padding=(1, 2), stride=3, dilation=(3, 1), threads=2),
    "pair, contiguous": _case({1: 6}, 18, (9, 10), 3, padding=1, layouts=("contiguous",) * 3),
    "pair, 16 channels": _case({1: 16}, 16, (21,), 3, padding=1),
    "octuple, weights of one value": _case(
        {7: 4, 3: 2}, 6, (5, 6, 7), 3, padding=1, layouts=("contiguous", "scalar", "contiguous")
    ),
    "sums along the depth": _case({7: 2}, 3, (13, 18, 19), 3, padding=1, batch=1, threads=2, **LAST),
    "sums along the depth, contiguous": _case(
        {7: 3}, 4, (11, 20, 19), 3, padding=(3, 1, 2), dilation=(3, 1, 2), batch=1, threads=2
    ),
    "sums along the depth, absent sources": _case(
        {7: 2, 5: 1}, 3, (9, 22, 21), (4, 3, 3), padding=(2, 1, 1), stride=(2, 1, 2), batch=1, **LAST
    ),
    "sums along the depth, filtered": _case({6: 3}, 4, (9, 20, 23), 3, padding=1, batch=1),
    "sums along the depth, transposed": _case(
        {7: 2, 6: 1}, 3, (5, 6, 9), (3, 2, 3), transposed=True, padding=1, stride=(2, 1, 2), **LAST
    ),
    "sums along the depth, groups": _case({7: 4}, 4, (6, 26, 27), 3, padding=1, groups=2, threads=2, **LAST),
    "scatter, 3-D, planes together": _case({7: 3}, 10, (17, 6, 19), 3, padding=1, threads=2, **LAST),
    "scatter, 3-D, planes together, far apart": _case(
        {7: 2}, 9, (18, 6, 11), 3, padding=(3, 1, 1), dilation=(3, 1, 1), threads=2, **LAST
    ),
    "scatter, 3-D, planes together, stride": _case(
        {7: 2}, 9, (19, 7, 11), (5, 3, 3), padding=2, stride=2, **LAST
    ),
    "scatter, 3-D, planes of other images": _case({7: 2}, 10, (3, 6, 19), 3, padding=1, batch=5, threads=2, **LAST),
    "scatter, 3-D, planes of other images, across": _case(
        {7: 2}, 10, (19, 6, 3), 3, padding=1, batch=5, threads=2, **LAST
    ),
    "planes in turns": _case({7: 3}, 10, (11, 14, 19), 3, padding=1, batch=2, threads=2, **LAST),
    "planes in turns, stride": _case({7: 3}, 9, (11, 15, 18), 3, padding=1, stride=2, batch=3, threads=2, **LAST),
    "planes in turns, strides, contiguous": _case(
        {7: 2, 5: 1}, 6, (10, 13, 17), (5, 3, 3), padding=(2, 1, 1), stride=(3, 2, 2), batch=2, threads=2
    ),
    "planes in turns, far apart": _case(
        {7: 2}, 5, (13, 12, 9), 3, padding=(2, 1, 1), dilation=(2, 1, 1), batch=2, **LAST
    ),
    "planes in turns, one tie, stride": _case({1: 4}, 6, (9, 8, 21), 3, padding=1, stride=2, threads=2, **LAST),
    "planes in turns, strides beyond taps": _case({7: 2}, 5, (13, 10, 11), (3, 2, 1), stride=(4, 3, 3), **LAST),
    "planes in turns, groups": _case({7: 4}, 6, (8, 7, 12), 3, padding=1, stride=2, groups=2, batch=2, **LAST),
    "planes in turns, transposed": _case(
        {7: 3}, 9, (7, 6, 9), 3, transposed=True, padding=1, stride=2, batch=2, threads=2, **LAST
    ),
    "relayout, 3-D, lines in parts": _case({3: 16}, 32, (18, 16, 17), 3, padding=(2, 1, 0), threads=2),
    "far taps, 1-D": _case({1: 16, 0: 3}, 16, (100,), 3, padding=24, dilation=24, threads=2),
    "far taps, 1-D, long line": _case({1: 17}, 18, (900,), 3, padding=200, dilation=200, batch=1, threads=2),
    "far taps, 1-D, five, odd padding": _case({1: 16}, 17, (150,), 5, padding=31, dilation=29, threads=2),
    "far taps, lines between": _case({1: 18, 0: 5}, 19, (13, 14), 3, padding=5, dilation=5, threads=2, **LAST),
    "far taps, lines between, contiguous": _case({1: 18, 0: 5}, 19, (13, 14), 3, padding=5, dilation=5, threads=2),
    "far taps, columns between": _case({2: 18}, 19, (13, 14), 3, padding=(6, 4), dilation=(6, 5), threads=2, **LAST),
    "far taps, past the map": _case({1: 17, 2: 16, 3: 16}, 17, (5, 6), 3, padding=9, dilation=9, threads=2, **LAST),
    "far taps, past the map on one side": _case({1: 16, 2: 16}, 16, (7, 6), 3, padding=(2, 9), dilation=5, **LAST),
    "far taps, few lines": _case({1: 5, 3: 3}, 6, (7, 19), (4, 3), padding=(8, 4), dilation=(5, 4), threads=2),
    "far taps, groups": _case({1: 36}, 38, (11, 12), 3, padding=4, dilation=4, groups=2, threads=2, **LAST),
    "far taps, transposed": _case({1: 18}, 17, (9, 12), 3, transposed=True, padding=4, dilation=4, threads=2, **LAST),
    "far taps, stride": _case({1: 18, 3: 5}, 17, (15, 18), 3, padding=5, stride=2, dilation=5, threads=2, **LAST),
    "far taps, 3-D": _case({1: 17, 6: 4}, 17, (7, 5, 9), 3, padding=3, dilation=3, threads=2, **LAST),
    "far taps, five of one layer": _case({1: 16}, 16, (23, 9), (5, 3), padding=(13, 4), dilation=(6, 4), **LAST),
    "far taps, four, untied": _case({0: 20}, 17, (19, 8), (4, 3), padding=(8, 3), dilation=(5, 3), threads=2, **LAST),
    "far taps, gradient of a sum": _case(
        {1: 17}, 18, (13, 12), 3, padding=4, dilation=4, layouts=("contiguous", "contiguous", "scalar")
    ),
    "one tap, stride": _case({3: 17}, 18, (9, 12), (1, 2), stride=(2, 3), padding=(0, 1), bias=False, **LAST),
    "one tap on one axis": _case({1: 20, 3: 17}, 18, (13, 12), (3, 1), padding=(1, 0), threads=2, **LAST),
    "one tap on one axis, contiguous": _case({1: 20, 3: 17}, 18, (13, 12), (3, 1), padding=(1, 0), threads=2),
    "one tap on one axis, few orbits": _case({1: 5, 3: 3}, 18, (13, 12), (1, 3), padding=(0, 1), threads=2, **LAST),
    "one tap, groups": _case({3: 34, 2: 8, 0: 2}, 36, (9, 13), 1, groups=2, threads=2, **LAST),
    "one tap, many channels": _case({1: 17}, 9500, (3, 4), 1, batch=1, **LAST),
    "one tap, 3-D": _case({7: 17, 5: 3}, 18, (5, 4, 9), (3, 1, 1), padding=(1, 0, 0), threads=2, **LAST),
    "one tap, transposed": _case({3: 18}, 17, (9, 12), (1, 3), transposed=True, stride=2, threads=2, **LAST),
    "gradient of a sum": _case({3: 4, 1: 2}, 6, (9, 8), 3, padding=1, layouts=("contiguous", "contiguous", "scalar")),
    "stride 0 everywhere": _case({3: 4, 1: 2}, 6, (9, 8), 3, padding=1, layouts=("expanded", "scalar", "expanded")),
    "slices among NaN": _case({3: 4, 1: 2}, 6, (9, 8), 3, padding=1, layouts=("sliced",) * 3),
    "slices among NaN, odd": _case({3: 3, 1: 2}, 5, (9, 8), 3, padding=2, layouts=("sliced",) * 3, result_last=True),
    "batch innermost": _case({3: 4, 1: 2}, 6, (9, 8), 3, padding=1, layouts=("transposed",) * 3, batch=3),
}  # fmt: skip

# From layout to layout: random problems rarely fit kernels of one layout, dtype and geometry. There are four of each
# kind, so that every pass meets each dtype where these take turns.
WAYS = {
    "channels_last": LAST,
    "to channels_last": {"result_last": True},
    "from channels_last": {"layouts": ("channels_last",) * 3},
}
CPU_PLANS = (
    "narrow groups", "direct, patches", "direct, strides beyond", "direct, even taps, stride", "direct, 4 taps",
    "direct, digits", "direct, stem of", "direct, fewer orbits", "direct, far taps", "direct, more orbits",
    "sums along", "scatter, 3-D, planes", "planes in turns", "far taps", "one tap",
)  # fmt: skip
"""How the names of cases begin that are kinds of their own for plans of the CPU alone."""

SPECIAL |= {
    f"{kind}, {way}, {taps} taps": _case(ties, channels, (9, 12), (3, taps), padding=1, batch=1, **more)
    for kind, ties, channels in (("direct", {1: 16, 3: 8}, 3), ("winograd", {1: 6, 0: 3}, 18))
    for way, more in WAYS.items()
    for taps in (2, 3, 4, 5)
}
