# Reports of equivariance of whole models: where mirrors and shifts stop being exact, and how far that goes.

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_equivariance import CHANNELS, Function, rows_of
from torch import Tensor, nn

import symconv_fast as sf
from bench import networks
from symconv_fast.analysis import EquivarianceReport, equivariance_report


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
