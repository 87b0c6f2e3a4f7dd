# Reports of equivariance: the analytic formula against what is measured, over all small layers.
"""Reports of where mirrors and shifts stop being exact."""

# Functions are called in the turn of the loop that makes them.
# ruff: noqa: B023

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symconv_fast.analysis import equivariance_report
from symconv_fast.analysis.measuring import Measured, measure

CHANNELS = 24
"""So many that no two windows have their maxima at the same places by chance."""


class Function(nn.Module):
    """A model of one call."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def rows_of(function: Callable[[Tensor], Tensor], *size: int) -> list[Measured]:
    """What is measured of one call; nothing where torch refuses the settings, or a window of a maximum is empty."""
    x = torch.randn(1, CHANNELS, *size, dtype=torch.float64)
    letters = ("h", "v", "z")[: len(size)]
    try:
        found = measure(Function(function), [x], len(size), (*letters, "shift"))
    except RuntimeError:
        return []
    except ValueError as refused:
        if not re.search("inf or NaN|without positions", str(refused)):
            raise
        return []
    return [row for row in found.rows if row.kind != "absorbed"]


def check(function: Callable[[Tensor], Tensor], size: tuple[int, ...], what: object) -> int:
    """The analytic verdict of each mirror is the measured one. A shift that is to be exact is; how many were met."""
    rows = rows_of(function, *size)
    for row in rows:
        for axis, letter in zip(reversed(row.axes), "hvz"):
            fault, error = axis.mirror_fault(), row.alone[letter]
            assert (fault is None) == (error < 1e-9), (what, size, letter, fault, error, axis)
        faults, error = [axis.shift_fault() for axis in row.axes], row.alone["shift"]
        if not any(faults) and not math.isnan(error):
            assert error < 1e-9, (what, size, error, row.axes)
        # Few positions hide a fault: windows that see all of a circle do not tell a shift.
        if any(faults) and row.kind == "windows" and row.type == "convolution" and min(size) > 7:
            assert not error < 1e-9, (what, size, faults, row.axes)
    return len(rows)


# --- every small layer: the formula against the flipped computation --------------------------------------------------


def windows() -> Iterator[tuple[int, int, int, int]]:
    """Kernel, stride, dilation, padding below the extent of a window."""
    for k, s, d in itertools.product(range(1, 5), range(1, 4), (1, 2)):
        yield from ((k, s, d, p) for p in range(d * (k - 1) + 1))


def filters(k: int, outputs: int = 3) -> Tensor:
    return torch.randn(outputs, CHANNELS, k, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 5, 6, pytest.param(8, marks=pytest.mark.full), 9])
def test_convolutions(n):
    met = 0
    for k, s, d, p in windows():
        if n == 1 and p % d:
            continue  # no tap meets the one position: the output is the bias
        w, b = filters(k), torch.randn(3, dtype=torch.float64)
        met += check(lambda x: F.conv1d(x, w, b, s, p, d), (n,), ("conv", k, s, d, p))
    assert met > 20


@pytest.mark.parametrize("n", [5, 6, pytest.param(9, marks=pytest.mark.full)])
def test_padding_before_a_convolution_belongs_to_it(n):
    met = 0
    for (k, s, d, _), (left, right) in itertools.product(windows(), ((0, 1), (1, 0), (2, 1))):
        if max(left, right) > d * (k - 1):
            continue
        w = filters(k)
        for mode in ("constant", "replicate", "circular") if s == 2 else ("constant",):
            pad = lambda x, mode=mode, pads=(left, right): F.pad(x, pads, mode=mode)  # noqa: E731
            met += check(lambda x: F.conv1d(pad(x), w, None, s, 0, d), (n,), (mode, k, s, d, left, right))
    assert met > 100


def test_uneven_padding_repairs_a_mismatch():
    conv = nn.Conv1d(1, 1, 2, stride=1, padding="same")
    assert not equivariance_report(conv, 8, reach=0).exact
    repaired = nn.Sequential(nn.ZeroPad1d((0, 1)), nn.Conv1d(1, 2, 3, 2))
    report = equivariance_report(repaired, 9, reach=0)
    assert report.exact
    assert [row.layer for row in report.layers] == ["1", "output"]
    assert not equivariance_report(repaired, 8, reach=0).exact
    assert not equivariance_report(
        nn.Sequential(repaired[0], nn.ReLU(), nn.AvgPool1d(2, 1)), 9, reach=0
    ).exact


def test_padding_that_more_than_a_convolution_reads():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad, self.conv = nn.ZeroPad1d((0, 1)), nn.Conv1d(1, 2, 3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            padded = self.pad(x)
            return self.conv(padded), padded * 2

    report = equivariance_report(Net(), 9, reach=3)
    assert [row.layer for row in report.layers] == ["pad", "conv", "output", "output"]
    assert [row.lost("h") for row in report.layers] == [True, False, False, True]
    assert report.layers[0].exact["h"] is False
    assert report.nearest == {"h": (None, None)}


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling(n, ceil_mode):
    met = 0
    for k, s, d, p in windows():
        if p > k // 2:
            continue
        met += check(lambda x: F.max_pool1d(x, k, s, p, d, ceil_mode), (n,), ("max", k, s, d, p))
        for counted in (False, True) if d == 1 else ():
            met += check(
                lambda x: F.avg_pool1d(x, k, s, p, ceil_mode, counted), (n,), ("avg", k, s, p, counted)
            )
    assert met > 10


@pytest.mark.parametrize("n", [4, 7])
def test_transposed_convolutions(n):
    met = 0
    for k, s, d, p in windows():
        w = torch.randn(CHANNELS, 3, k, dtype=torch.float64)
        for extra in range(max(s, d)):
            met += check(
                lambda x: F.conv_transpose1d(x, w, None, s, p, extra, 1, d), (n,), (k, s, d, p, extra)
            )
    assert met > 40


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 12, 30])
def test_adaptive_pooling_and_interpolation(n):
    for out in (*range(1, 14), 28, 45):
        for pool in (F.adaptive_avg_pool1d, F.adaptive_max_pool1d):
            assert check(lambda x: pool(x, out), (n,), (pool, out))
        for mode in ("nearest", "nearest-exact", "linear", "area"):
            assert check(lambda x: F.interpolate(x, size=out, mode=mode), (n,), (mode, out))
        assert check(lambda x: F.interpolate(x, size=out, mode="linear", align_corners=True), (n,), out)
    for factor, mode in itertools.product((0.5, 0.75, 1.5, 2, 2.5, 3, 1 / 3, 7), ("nearest", "linear")):
        if int(n * factor) not in (0, n):
            assert check(lambda x: F.interpolate(x, scale_factor=factor, mode=mode), (n,), (mode, factor))


@pytest.mark.parametrize("size", [(4, 7), (5, 6)])
def test_interpolation_in_two_dims(size):
    for mode, antialias, out in itertools.product(("bilinear", "bicubic"), (False, True), (3, 7, 14)):
        for corners in (False, True):
            options = {"mode": mode, "antialias": antialias, "align_corners": corners}
            assert check(lambda x: F.interpolate(x, size=out, **options), size, (options, out))
        for factor in (0.5, 1.5, 2):
            assert check(
                lambda x: F.interpolate(x, scale_factor=factor, mode=mode, antialias=antialias),
                size,
                (mode, factor, antialias),
            )


@pytest.mark.parametrize("n", [4, 5])
def test_slices_and_padding(n):
    for start, step in itertools.product(range(3), (2, 3)):
        assert check(lambda x: x[:, :, start::step], (n,), ("slice", start, step))
    for left, right in itertools.product(range(-1, 3), repeat=2):
        if (left, right) != (0, 0):
            assert check(lambda x: F.pad(x, (left, right)), (n,), ("pad", left, right))


def test_axes_are_told_apart():
    w = torch.randn(2, CHANNELS, 3, 2, 3, dtype=torch.float64)
    assert check(lambda x: F.conv3d(x, w, None, (2, 1, 2), (1, 0, 1)), (5, 4, 6), "3-D")
    w = torch.randn(2, CHANNELS, 3, 2, dtype=torch.float64)
    assert check(lambda x: F.conv2d(x, w, None, (2, 2), (1, 0)), (5, 5), "2-D")
    assert check(lambda x: F.max_pool3d(x, 2), (4, 5, 6), "pool")
