# Reports of equivariance: analytic against measured over all small layers, whole models, sizes, errors, the command.
"""Reports of where mirrors and shifts stop being exact."""

# Functions are called in the turn of the loop that makes them.
# ruff: noqa: B023

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import symconv_fast as sf
from bench import networks
from symconv_fast.analysis import EquivarianceReport, equivariance_report
from symconv_fast.analysis.__main__ import main
from symconv_fast.analysis.measuring import Measured, measure
from symconv_fast.nn import SpatiallyBalancedPool2d

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


# --- whole models ----------------------------------------------------------------------------------------------------


def conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2)


def test_resnet_at_224_and_225():
    narrow = nn.Sequential(
        conv(3, 4, 7, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        networks.Residual(conv, 4, 4, 1), networks.Residual(conv, 4, 8, 2),
        networks.Residual(conv, 8, 8, 2), networks.Residual(conv, 8, 8, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    report = equivariance_report(narrow, 224)
    assert not report.exact
    assert str(report).startswith(
        "not exact at 224: first lost in 0 (224 positions with padding 3 and 3 in windows of 7"
    )
    assert "nearest exact sizes 193, 225" in report.verdict()
    assert report.nearest == {"h": (193, 225), "v": (193, 225)}
    assert report.nearest_shift == {"h": (192, 256), "v": (192, 256)}
    assert report.first_lost("shift") is None
    assert report.shift == (32, 32)
    assert all(row.lost("h") and row.lost("v") for row in report.layers)

    report = equivariance_report(narrow, 225)
    assert report.exact
    assert report.nearest == {"h": (193, 257), "v": (193, 257)}
    assert report.first_lost("h") is report.first_lost("v") is None
    assert report.first_lost("shift").layer == "0"
    for row in report.layers:
        assert max(row.geometry["h"], row.geometry["v"]) < 1e-12
        assert min(row.model["h"], row.model["v"]) > 1e-3
    assert "225" in report.table().title


def test_where_an_axis_is_lost():
    net = nn.Sequential(conv(3, 4, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    report = equivariance_report(net, (9, 8), transforms=("v", "h"), reach=5)
    assert report.first_lost("h") is None
    lost = report.first_lost("v")
    assert (lost.layer, lost.type, lost.size_in, lost.size_out) == ("1.1", "MaxPool2d", (9, 8), (4, 4))
    assert lost.exact == {"v": False, "h": True}
    assert "8 or 10 positions here would do" in lost.reason["v"]
    assert report.verdict().startswith(
        "not exact at 9x8 along v: first lost in 1.1 (9 positions in windows of 2 every 2"
    )
    assert report.nearest == {"v": (8, 10), "h": (6, 10)}


def test_functional_calls_are_seen():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.interpolate(F.relu(self.conv(x)), scale_factor=1.5)
            return F.max_pool1d(x, 3, 2)

    report = equivariance_report(Net(), 10, reach=0)
    assert [(row.layer, row.type) for row in report.layers[:-1]] == [
        ("conv", "Conv1d"), ("(model)", "upsample_nearest1d"), ("(model)", "max_pool2d"),
    ]  # fmt: skip
    assert report.first_lost("h").type == "upsample_nearest1d"
    assert report.verdict().startswith(
        "not exact at 10: first lost in upsample_nearest1d of (model) (10 positions"
    )
    assert "no other sizes were searched for" in report.verdict()


def test_exported_graphs_and_functions_of_tied_layers():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    graph = torch.export.export(net, (torch.randn(1, 1, 16, 17),)).module()
    for t in ("h", "v"):
        one, two = (equivariance_report(m, (16, 17), channels=1, reach=0).first_lost(t) for m in (net, graph))
        assert (one.geometry, one.reason) == (two.geometry, two.reason)
    weight = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    tied = lambda x: sf.functional.symmetric_conv2d(x, weight, symmetry="h", stride=2)  # noqa: E731
    (row,) = rows_of(tied, 9, 9)
    assert max(row.geometry.values()) == row.geometry["shift"]
    assert max(row.geometry["h"], row.geometry["v"], row.model["h"]) < 1e-12
    assert row.model["v"] > 1e-2


def test_numbers_that_decide_and_random_ones():
    net = Function(lambda x: F.max_pool2d(x / x.abs().max().item(), 2))  # does not run on the meta device
    assert equivariance_report(net, 9, reach=2).nearest == {"h": (8, 10), "v": (8, 10)}
    report = equivariance_report(Function(lambda x: F.max_pool2d(F.dropout(x, 0.5, True), 2)), 8, reach=0)
    assert "draws random numbers in eval mode (bernoulli_)" in report.notes[-1]


def test_what_torch_compile_made_is_seen():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU())
    report = equivariance_report(torch.compile(net), 8, reach=1)
    assert report.first_lost("h").layer == "_orig_mod.0"


def test_a_layer_that_loses_and_is_no_spatial_operation():
    net = nn.Sequential(conv(1, 2, 3), Function(lambda x: x[..., :-1]), conv(2, 2, 3))
    report = equivariance_report(net, 8)
    assert report.first_lost("v") is None or report.first_lost("v").layer == "2"
    assert "something other than a convolution" in report.verdict()
    assert report.nearest["h"] == (None, None)
    assert "something else than these loses it" in str(report)


def test_a_flattened_map_is_read_by_mirrored_weights():
    net = nn.Sequential(conv(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    report = equivariance_report(net, 8, reach=0)
    assert report.exact
    assert report.layers[-1].model["h"] > 1e-3
    assert report.first_lost("shift").layer == "2"


def test_symmetric_filters_show_in_the_model_itself():
    even = nn.Conv2d(1, 3, 3, 2, 1)
    with torch.no_grad():
        even.weight += even.weight.flip(-1)
    report = equivariance_report(nn.Sequential(even, nn.ReLU()), (9, 9), reach=0)
    assert report.layers[0].model["h"] < 1e-12
    assert report.layers[0].model["v"] > 1e-2


@pytest.mark.parametrize("bias", [False, True])
def test_members_of_orbits_are_exchanged(bias):
    tied = sf.SymmetricConv2d(2, 8, 3, 2, 1, symmetry={"hv": 4, "h": 2}, bias=bias, share_bias=bias)
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter[[0, 2, 3]] = 0  # of "h" and of the free filters: no mirror along v leads to them
    report = equivariance_report(tied, (9, 9), reach=0)
    assert report.exact
    assert max(report.layers[0].model["h"], report.layers[0].model["v"]) < 1e-12
    assert report.layers[-1].model["h"] > 1e-2  # without the exchange
    assert not equivariance_report(tied, (8, 9), reach=0).exact


def test_circular_padding_shifts_exactly():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1, padding_mode="circular"), nn.ReLU(), nn.AvgPool2d(2))
    report = equivariance_report(net, (16, 12), reach=4)
    assert report.shift == (4, 4)
    assert report.first_lost("shift") is None
    assert max(row.model["shift"] for row in report.layers) < 1e-12
    zeros = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2))
    report = equivariance_report(zeros, (16, 12), reach=4)
    assert report.first_lost("shift") is None
    assert min(row.model["shift"] for row in report.layers) > 1e-3
    assert (
        equivariance_report(zeros, 4, transforms=["shift"], reach=0).verdict().endswith("no larger than that")
    )


def test_the_model_is_left_alone_and_seeded():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    one, two = (equivariance_report(net, 8, seed=3, reach=2) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert net[0].weight.dtype == torch.float32
    assert not net[0]._forward_hooks
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert str(one) == str(two) != str(equivariance_report(net, 8, seed=4, reach=2))
    assert one.exact


def test_one_and_three_dims_and_several_inputs():
    assert equivariance_report(nn.Conv1d(1, 2, 3, 2), 8, reach=1).nearest == {"h": (7, 9)}
    assert equivariance_report(nn.Conv3d(1, 2, 3, 2), (7, 7, 8), reach=1).first_lost("z") is None

    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
            return F.avg_pool2d(a * scale + b, 2)

    maps = torch.randn(2, 1, 8, 6)
    report = equivariance_report(Two(), (maps, maps.clone(), torch.ones(1, 1)), reach=3)
    assert report.exact
    assert report.nearest == {"h": (4, 8), "v": (6, 10)}
    report = equivariance_report(Function(lambda x: F.avg_pool2d(x, 2)), maps)
    assert isinstance(report, EquivarianceReport)


# --- bad input -------------------------------------------------------------------------------------------------------

NAN = nn.Conv2d(1, 1, 1)
nn.init.constant_(NAN.weight, math.nan)
HUGE = nn.Sequential(nn.Conv2d(1, 1, 1), Function(lambda x: x / 0), nn.MaxPool2d(2))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (3, {}, TypeError, "needs a torch.nn.Module, got int"),
        (NAN, {}, ValueError, "weight holds inf or NaN"),
        (HUGE, {}, ValueError, r"2 \(MaxPool2d\) gives inf or NaN"),
        (nn.LazyConv2d(3, 3), {}, ValueError, "weight is not initialised yet; run the model once"),
        (nn.Conv2d(1, 1, 1, device="meta"), {}, ValueError, "on the meta device"),
        (nn.Linear(8, 2), {}, ValueError, "no operation with 2 spatial dims at input_size=8"),
        (nn.Conv2d(1, 1, 9), {}, ValueError, "cannot run on input of shape"),
        (nn.MaxPool2d(2), {"input_size": 1}, ValueError, "give an input_size that it takes"),
        (nn.Conv2d(1, 1, 1), {"input_size": 0}, ValueError, "must be 1 to 3 positive ints"),
        (nn.Conv2d(1, 1, 1), {"input_size": (8, 8, 8, 8)}, ValueError, "must be 1 to 3 positive ints"),
        (nn.Conv2d(1, 1, 1), {"input_size": "8"}, TypeError, "must be an int or a tuple of ints"),
        (nn.Conv2d(1, 1, 1), {"input_size": torch.zeros(3, 3)}, ValueError, r"tensor \(N, C, \*spatial\)"),
        (nn.Conv2d(1, 1, 1), {"transforms": ("h", "z")}, ValueError, "some of h, v, shift"),
        (nn.Conv2d(1, 1, 1), {"transforms": ()}, ValueError, "some of h, v, shift"),
        (nn.Conv2d(1, 1, 1), {"transforms": "hv"}, TypeError, "must be a sequence"),
        (nn.Conv2d(1, 1, 1), {"transforms": [["h"]]}, TypeError, "must be a sequence of names"),
        (nn.Conv2d(1, 1, 1), {"channels": 0}, ValueError, "channels=0 must be 1 to"),
        (nn.Conv2d(1, 1, 1), {"channels": (1, 2)}, TypeError, r"channels=\(1, 2\) must be an int"),
        (nn.Conv2d(1, 1, 1), {"channels": 2**64}, ValueError, "channels=18446744073709551616 must be 1 to"),
        (nn.Conv2d(1, 1, 1), {"reach": -1}, ValueError, "reach=-1 must be at least 0"),
        (nn.Conv2d(1, 1, 1), {"reach": (5,)}, TypeError, r"reach=\(5,\) must be an int"),
        (nn.Conv2d(1, 1, 1), {"seed": (1, 2)}, TypeError, r"seed=\(1, 2\) must be an int"),
        (nn.Conv2d(1, 1, 1), {"seed": "a", "input_size": torch.randn(1, 1, 8, 8)}, TypeError, "seed='a'"),
        (nn.Conv2d(1, 1, 1), {"seed": 2**64}, ValueError, "must be 0 to 18446744073709551615"),
        (nn.Conv2d(1, 1, 1), {"input_size": np.zeros((1, 1, 8, 8))}, TypeError, "torch.as_tensor makes one"),
        (
            nn.Conv2d(1, 1, 1),
            {"input_size": torch.zeros(1, 1, 8, 8)},
            ValueError,
            "unchanged by 'h'.*size alone",
        ),
        (
            nn.Conv2d(1, 1, 1),
            {"input_size": torch.arange(8.0).expand(1, 1, 8, 8)},
            ValueError,
            "unchanged by 'v'",
        ),
        (nn.Conv2d(1, 1, 1), {"input_size": torch.randn(1, 1, 8, 8) / 0}, ValueError, "holds inf or NaN"),
        (
            nn.Conv2d(1, 1, 1),
            {"input_size": torch.randn(1, 1, 8, 8).to("meta")},
            ValueError,
            "on the meta device",
        ),
    ],
)
def test_bad_input(model, options, error, message):
    with pytest.raises(error, match=message):
        equivariance_report(model, **{"input_size": 8, **options})


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (KeyError("k"), "KeyError: 'k'"),
        (AttributeError("no a"), "AttributeError: no a"),
        (ValueError("v"), ": v;"),
    ],
)
def test_whatever_a_model_raises_is_said(failure, said):
    def fails(x: Tensor) -> Tensor:
        raise failure

    with pytest.raises(ValueError, match=f"cannot run on input of shape .*{said}.*give an input_size"):
        equivariance_report(Function(fails), 8)


def test_sizes_that_a_model_refuses_are_passed_over():
    def fixed(x: Tensor) -> Tensor:
        if x.shape[-1] not in (8, 10):
            raise KeyError(x.shape[-1])
        return F.max_pool2d(x, 2)

    assert equivariance_report(Function(fixed), 8, reach=4).nearest == {"h": (None, 10), "v": (None, 10)}


def test_a_size_that_runs_for_shapes_alone_is_not_named():
    def refuses(x: Tensor) -> Tensor:
        return F.max_pool2d(x if x.is_meta or x.shape[-1] == 8 else x / 0, 2)

    report = equivariance_report(Function(refuses), 8, reach=2)
    assert report.exact
    assert report.nearest == {"h": (None, None), "v": (None, None)}
    assert "it cannot be measured, (model) (max_pool2d) gives inf or NaN" in report.notes[0]


class Inferring(nn.Sequential):
    """It goes into inference mode by itself."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("inside", [False, True])
def test_inference_mode_hides_nothing(inside):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 2))
    plain = equivariance_report(net, 17, reach=2)
    with torch.inference_mode(not inside):
        found = equivariance_report(Inferring(*net) if inside else net, 17, reach=2)
    assert str(found) == str(plain)


def test_what_breaks_a_mirror_is_lost_though_zeros_hide_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    report = equivariance_report(net, 8, reach=1)
    assert not report.exact
    assert report.first_lost("h").layer == "0"
    assert "leave 1 over at the right end" in report.verdict()
    assert equivariance_report(net, 9, reach=1).exact


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, torch.nn.utils.weight_norm])
def test_weights_that_a_training_step_computed(norm):
    net = nn.Sequential(norm(nn.Conv2d(3, 4, 3, 2, 1)), nn.ReLU())
    fresh = equivariance_report(net, 9, reach=1)
    assert fresh.exact
    net[0].eval()
    net(torch.randn(1, 3, 9, 9)).sum().backward()
    weight = net[0].weight
    assert str(equivariance_report(net, 9, reach=1)) == str(fresh)
    assert net[0].weight is weight


def test_sizes_may_be_an_array():
    assert equivariance_report(nn.MaxPool2d(2), np.array([8, 6]), reach=0).input_size == (8, 6)


def test_what_was_not_measured():
    report = equivariance_report(nn.Conv2d(1, 1, 1), 8, transforms=["h"], reach=0)
    with pytest.raises(ValueError, match="transform='v' was not measured; give one of h"):
        report.first_lost("v")


# --- the command -----------------------------------------------------------------------------------------------------

MODELS = """
from torch import nn
def strided(): return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
def nothing(): return 3
def fails(): raise KeyError("weights")
def leaves(): raise SystemExit(0)
class Lost(nn.Module):
    def forward(self, x): return self.nothing
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "models_of_a_test.py").write_text(MODELS)
    (tmp_path / "script_of_a_test.py").write_text("import sys; sys.exit('usage')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_command_as_a_process(folder):
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "symconv_fast.analysis", "models_of_a_test:strided", "--size", "16x17"]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("not exact at 16x17 along v: first lost in 0 (16 positions")
    assert "Conv2d" in done.stdout


def test_the_command_says_exact(folder, capsys):
    assert main([" models_of_a_test: strided", "--size", "17", "--transforms", "h, v", "--reach", "2"]) == 0
    assert capsys.readouterr().out.startswith("exact at 17")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models_of_a_test", "--size", "8"], "is not MODULE:FUNCTION"),
        (["no_such_module:f", "--size", "8"], "no module no_such_module"),
        (["models_of_a_test:other", "--size", "8"], "has no other; it has Lost, fails, leaves, nothing"),
        (["models_of_a_test:nothing", "--size", "8"], "returns int; give a function that returns"),
        (["models_of_a_test:fails", "--size", "8"], "fails: KeyError"),
        (["models_of_a_test:leaves", "--size", "8"], "fails: SystemExit"),
        (["script_of_a_test:f", "--size", "8"], "importing script_of_a_test fails: SystemExit: usage"),
        (
            ["models_of_a_test:Lost", "--size", "8"],
            "cannot run on input of shape (1, 3, 8, 8): AttributeError",
        ),
        (["./models_of_a_test.py:strided", "--size", "8"], "give something like models_of_a_test:strided"),
        (["models of:strided", "--size", "8"], "is no name of a module"),
        (["models_of_a_test:strided", "--size", "8", "--seed", "-1"], "seed=-1 must be 0 to"),
        (["models_of_a_test:strided", "--size", "8", "--seed", str(2**64)], "must be 0 to"),
        (["models_of_a_test:strided", "--size", "8y"], "'8y' is no size; give something like 224 or 224x160"),
        (["models_of_a_test:strided"], "--size"),
        (["models_of_a_test:strided", "--size", "8", "--transforms", "q"], "some of h, v, shift"),
        (["models_of_a_test:strided", "--size", "8", "--channels", "5"], "cannot run on input of shape"),
    ],
)
def test_the_command_refuses(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(re.escape(message), capsys.readouterr().err)


def test_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "exit status" in text
    assert "--transforms" in text


def test_maxima_that_are_padded_with_minus_infinity() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), SpatiallyBalancedPool2d(3, 2, 1, index=1))
    report = equivariance_report(net, 32, transforms=("h",))
    assert not report.exact
    assert equivariance_report(net, 33, transforms=("h",)).exact
