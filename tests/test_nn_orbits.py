"""Layers between equivariant convolutions, the mirror of a feature map, and `check_equivariance`."""

from __future__ import annotations

import copy
import math

import pytest
import sides_oracle as oracle
import torch
from torch import nn

import symconv_fast as sf
from symconv_fast.nn import (
    OrbitBatchNorm1d,
    OrbitBatchNorm2d,
    OrbitBatchNorm3d,
    OrbitDropout,
    OrbitPool,
    check_equivariance,
    mirror,
    orbit_cat,
    rc_symmetry,
)

D = {"dtype": torch.float64}
NORM = {1: OrbitBatchNorm1d, 2: OrbitBatchNorm2d, 3: OrbitBatchNorm3d}
TABLES = {"h": (3, 2, 1, 0, 4, 5), "v": (0, 1, 2, 3, 5, 4)}
# symmetry, channels, spatial dims, and the orbits of channels by hand
FEATURES = [
    (None, 3, 1, [(0,), (1,), (2,)]),
    ("h", 6, 1, [(0, 3), (1, 4), (2, 5)]),
    ("hv", 8, 2, [(0, 2, 4, 6), (1, 3, 5, 7)]),
    ({"h": 2, "hv": 4}, 7, 2, [(0, 3), (1, 4, 5, 6), (2,)]),
    (TABLES, 6, 2, [(0, 3), (1, 2), (4, 5)]),
    ({"z": 4}, 5, 3, [(0, 3), (1, 4), (2,)]),
    ("h+", 2, 2, [(0,), (1,)]),
]


def maps(channels: int, ndim: int) -> torch.Tensor:
    return torch.randn(4, channels, *(3, 4, 5)[:ndim], **D)


# --- the action ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symmetry", "channels", "ndim", "orbits"), FEATURES, ids=str)
def test_mirror(symmetry, channels, ndim, orbits):
    x = maps(channels, ndim)
    letters = "hvz"[:ndim]
    for some in oracle.subsets(letters):
        y = mirror(x, some, symmetry)
        assert torch.equal(mirror(y, some, symmetry), x)
        assert torch.equal(y, mirror(x, some[::-1], symmetry))
        for c in range(channels):
            (source,) = [
                d
                for d in range(channels)
                if torch.equal(y[:, c], x[:, d].flip([oracle.AXIS[a] for a in some]))
            ]
            assert any(c in orbit and source in orbit for orbit in orbits)
    for a in oracle.subsets(letters):
        for b in oracle.subsets(letters):
            both = mirror(mirror(x, a, symmetry), b, symmetry)
            assert torch.equal(both, mirror(x, oracle.exchange(a, b), symmetry))
    assert torch.equal(
        mirror(x.movedim(1, 0), letters, symmetry, dim=0), mirror(x, letters, symmetry).movedim(1, 0)
    )


def test_mirror_of_odd_channels_negates():
    ties = sf.SymmetricConv2d(2, 4, 4, symmetry={"h+v-": 1, "h-v-": 3}, bias=False).ties
    x = maps(4, 2)
    signs = torch.tensor([1.0, -1, -1, -1]).view(4, 1, 1)  # of h
    torch.testing.assert_close(mirror(x, "h", ties), signs * x.flip(-1), check_dtype=False)
    torch.testing.assert_close(mirror(x, "v", ties), -x.flip(-2))
    torch.testing.assert_close(mirror(x, "hv", ties), -signs * x.flip(-1, -2), check_dtype=False)
    for layer in (OrbitPool(ties), lambda x: OrbitBatchNorm2d(4, ties)):
        with pytest.raises(ValueError, match="cannot take channels that a mirror negates"):
            layer(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mirror(x, "hh"), "letters='hh' must be some of h, v and z"),
        (lambda x: mirror(x, "z"), "mirror more than the 2 dims after dim=1"),
        (lambda x: mirror(x, "h", {"h": (1, 0)}), "has 2 channels where there are 4"),
        (lambda x: mirror(x, "h", sf.SymmetricConv2d(2, 6, 3, symmetry="h").ties), "ties of 6 channels"),
        (lambda x: orbit_cat([], "h"), "maps is empty; give at least one feature map"),
        (lambda x: orbit_cat([x, x], ["h"]), "symmetry has 1 entries for 2 maps; give one for each"),
        (lambda x: orbit_cat([x, x], {"h": (1, 0, 2, 3)}), "has permutations of channels, in which no order"),
        (lambda x: orbit_cat([x[:, :3]], {"h": 4}), "more than out_channels=3"),
        (lambda x: OrbitPool("h", "sum"), "mode='sum' is not valid; give 'mean' or 'max'"),
        (lambda x: OrbitDropout(2, "h"), "p=2 must be a share from 0 to 1"),
        (lambda x: OrbitBatchNorm2d(6, "h")(x), "expected 4-D input with 6 channels"),
        (lambda x: OrbitBatchNorm1d(4, "h")(x), "expected 2-D or 3-D input with 4 channels"),
        (lambda x: rc_symmetry("ACG"), "has 'A' without its complement"),
        (lambda x: rc_symmetry("AACG"), "each letter once"),
        (lambda x: check_equivariance(nn.Identity(), x[0, 0]), r"input must be \(N, C, \*spatial\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(maps(4, 2))


def test_reverse_complement_alphabets():
    assert rc_symmetry() == {"h": (3, 2, 1, 0)}
    assert rc_symmetry("ATCGN") == {"h": (1, 0, 3, 2, 4)}
    assert rc_symmetry("acgu") == {"h": (3, 2, 1, 0)}


# --- joining ---------------------------------------------------------------------------------------------------------


def channels_of(maps: list[torch.Tensor], joined: torch.Tensor) -> list[tuple[int, int]]:
    """(map, channel) that each channel of the joined map is."""
    where = [(i, c) for i, each in enumerate(maps) for c in range(each.shape[1])]
    return [
        next((i, c) for i, c in where if torch.equal(maps[i][:, c], joined[:, d]))
        for d in range(joined.shape[1])
    ]


@pytest.mark.parametrize("symmetry", ["h", "hv", {"v": "50%"}, None])
def test_maps_are_joined_orbit_by_orbit(symmetry):
    maps_ = [maps(8, 2), maps(4, 2), maps(12, 2)]
    joined = orbit_cat(maps_, symmetry)
    assert sorted(channels_of(maps_, joined)) == [(i, c) for i, n in enumerate((8, 4, 12)) for c in range(n)]
    for some in oracle.subsets("hv"):
        turned = [mirror(each, some, symmetry) for each in maps_]
        assert torch.equal(orbit_cat(turned, symmetry), mirror(joined, some, symmetry))
    assert torch.equal(orbit_cat([x.movedim(1, 0) for x in maps_], symmetry, dim=0), joined.movedim(1, 0))
    assert torch.equal(orbit_cat(maps_, symmetry, dim=-3), joined)


def test_joined_maps_have_the_order_of_a_layer():
    a, b = maps(4, 2), maps(8, 2)
    order = channels_of([a, b], orbit_cat([a, b], "hv"))
    # Members h, v and hv of the row of the first map, and of the two rows of the second.
    assert order == [
        (i, c) for member in range(4) for i, c in ((0, member), (1, 2 * member), (1, 2 * member + 1))
    ]
    assert channels_of([a, b], orbit_cat([a, b])) == [(0, c) for c in range(4)] + [(1, c) for c in range(8)]


def test_maps_of_different_symmetries_are_joined():
    """Counts are added; self-symmetric and free channels keep what mirrors do to them, and groups lose their order."""
    grouped = sf.SymmetricConv2d(4, 8, 3, groups=2, symmetry="h").ties
    signed = sf.SymmetricConv2d(2, 4, 4, symmetry={"h+v-": 1, "h-v-": 3}, bias=False).ties
    each = [grouped, signed, {"h": 2, "hv": 4}, None]
    maps_ = [maps(8, 2), maps(4, 2), maps(7, 2), maps(2, 2)]
    joined = orbit_cat(maps_, each)
    together = sf.Symmetry({"h": 10, "hv": 4, "h+v-": 1, "h-v-": 3}).resolve(2, 21)
    for some in oracle.subsets("hv"):
        turned = [mirror(x, some, one) for x, one in zip(maps_, each)]
        assert torch.equal(orbit_cat(turned, each), mirror(joined, some, together))


def test_joining_keeps_the_memory_format_and_gradients():
    a, b = (maps(n, 2).to(memory_format=torch.channels_last).requires_grad_() for n in (4, 8))
    joined = orbit_cat([a, b], "hv")
    assert joined.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(joined)
    found = torch.autograd.grad((joined * weight).sum(), (a, b))
    assert torch.equal(orbit_cat(found, "hv"), weight)
    compiled = torch.compile(lambda x, y: orbit_cat([x, y], "hv"), backend="eager", fullgraph=True)
    assert torch.equal(compiled(a, b), joined)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("symmetry", "channels", "ndim", "orbits"), FEATURES, ids=str)
def test_batch_norm(symmetry, channels, ndim, orbits, momentum, affine):
    norm = NORM[ndim](channels, symmetry, momentum=momentum, affine=affine, **D)
    assert norm.num_features == len(orbits)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    dims = [0, 1, *range(2, 2 + ndim)]
    mean, var = torch.zeros(len(orbits), **D), torch.ones(len(orbits), **D)
    for step in range(1, 4):
        x = (maps(channels, ndim) * 3 + 1).requires_grad_()
        y = norm(x)
        expected = torch.empty_like(x)
        share = 1 / step if momentum is None else momentum
        for i, orbit in enumerate(orbits):
            part = x[:, list(orbit)]
            own, spread = part.mean(dims), part.var(dims, unbiased=False)
            value = (part - own) / (spread + norm.eps).sqrt()
            value = value * norm.weight[i] + norm.bias[i] if affine else value
            expected = expected.index_copy(1, torch.tensor(orbit), value)
            mean[i] = (1 - share) * mean[i] + share * own.detach()
            var[i] = (1 - share) * var[i] + share * part.detach().var(dims)
        torch.testing.assert_close(y, expected)
        gy = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, gy), torch.autograd.grad(expected, x, gy))
        for some in oracle.subsets("hvz"[:ndim]):
            still = copy.deepcopy(norm)
            torch.testing.assert_close(still(mirror(x, some, symmetry)), mirror(y, some, symmetry))
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked == 3
    x = maps(channels, ndim)
    place = torch.tensor([next(i for i, orbit in enumerate(orbits) if c in orbit) for c in range(channels)])
    torchs = getattr(nn, f"BatchNorm{ndim}d")(channels, affine=affine, **D).eval()
    torchs.load_state_dict({k: v if v.dim() == 0 else v[place] for k, v in norm.state_dict().items()})
    torch.testing.assert_close(norm.eval()(x), torchs(x))
    assert f"{channels}, symmetry=" in repr(norm)


@pytest.mark.parametrize(("symmetry", "channels", "ndim", "orbits"), FEATURES, ids=str)
def test_batch_norm_of_channels_that_lie_side_by_side(symmetry, channels, ndim, orbits):
    layout = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[ndim]
    norm = NORM[ndim](channels, symmetry, **D)
    nn.init.normal_(norm.weight)
    other = copy.deepcopy(norm)
    x = maps(channels, ndim).requires_grad_()
    y, expected = norm(x.to(memory_format=layout)), other(x)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=layout) or symmetry not in ("h", "hv")  # other orders are copied
    gy = torch.randn_like(y)
    for upstream in (gy, gy.contiguous()):
        found, wanted = (torch.autograd.grad(z, x, upstream, retain_graph=True) for z in (y, expected))
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(norm.state_dict(), other.state_dict())
    torch.testing.assert_close(norm.eval()(x.to(memory_format=layout)), other.eval()(x))


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize(("symmetry", "channels", "ndim", "orbits"), FEATURES, ids=str)
def test_pooling_keeps_the_memory_format(symmetry, channels, ndim, orbits, mode):
    layout = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[ndim]
    pool, x = OrbitPool(symmetry, mode), maps(channels, ndim)
    y = pool(x.to(memory_format=layout))
    torch.testing.assert_close(y, pool(x))
    assert y.is_contiguous(memory_format=layout) or symmetry not in ("h", "hv")  # other orders are copied


def test_batch_norm_without_running_statistics():
    norm, x = OrbitBatchNorm2d(4, {"h": 2}, track_running_stats=False, **D), maps(4, 2)
    assert torch.equal(norm(x), norm.eval()(x))
    assert norm(x)[:, [0, 3]].mean().abs() < 1e-12
    assert norm(x)[:, 0].mean().abs() > 1e-4


@pytest.mark.parametrize(("symmetry", "channels", "ndim", "orbits"), FEATURES, ids=str)
def test_pool_and_dropout(symmetry, channels, ndim, orbits):
    x = maps(channels, ndim)
    for mode in ("mean", "max"):
        y = OrbitPool(symmetry, mode)(x)
        parts = [x[:, list(orbit)] for orbit in orbits]
        expected = torch.stack([p.mean(1) if mode == "mean" else p.amax(1) for p in parts], 1)
        torch.testing.assert_close(y, expected)
        for some in oracle.subsets("hvz"[:ndim]):
            torch.testing.assert_close(OrbitPool(symmetry, mode)(mirror(x, some, symmetry)), mirror(y, some))
    drop = OrbitDropout(0.5, symmetry)
    assert drop.eval()(x) is x
    kept = (drop.train()(torch.ones(400, *x.shape[1:], **D)) > 0).double()
    for orbit in orbits:
        assert all(torch.equal(kept[:, orbit[0]], kept[:, c]) for c in orbit)
        assert 0.4 < kept[:, orbit[0]].mean() < 0.6
    assert len({tuple(kept[:, orbit[0]].flatten().tolist()) for orbit in orbits}) == len(orbits)
    assert torch.equal(OrbitDropout(0.0, symmetry)(x), x)


# --- check_equivariance ----------------------------------------------------------------------------------------------


def network(stride: int = 1, broken: bool = False) -> nn.Module:
    again = {"symmetry": "hv", "input_symmetry": "hv"}
    return nn.Sequential(
        sf.SymmetricConv2d(3, 8, 3, padding=1, symmetry="hv", share_bias=True),
        OrbitBatchNorm2d(8, "hv"),
        nn.ReLU(),
        sf.SymmetricConv2d(
            8, 12, 3, stride, 1, **(again | {"input_symmetry": None} if broken else again), share_bias=True
        ),
        nn.ReLU(),
        OrbitPool("hv", "max"),
        sf.SymmetricConv2d(3, 4, 3, padding=1, symmetry="hv", share_bias=True),
    )


def test_an_equivariant_network():
    net = network()
    before = copy.deepcopy(net.state_dict())
    report = check_equivariance(net, torch.randn(2, 3, 12, 12), None, "hv")
    assert report.exact
    assert report.letters == "hv"
    assert [row.layer for row in report.layers] == ["0", "1", "2", "3", "4", "5", "6", "output"]
    assert max(report.worst("h"), report.worst("v")) < 1e-12
    assert "equivariant along h, v" in str(report)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_layer_that_breaks_it_is_named():
    report = check_equivariance(network(stride=2), torch.randn(1, 3, 12, 12), None, "hv")
    assert not report.exact
    assert report.first_lost("h").layer == "3"
    assert "first lost in 3 (SymmetricConv2d)" in report.verdict()
    assert "nearest exact sizes 11, 13" in report.verdict()
    assert check_equivariance(network(stride=2), torch.randn(1, 3, 13, 13), None, "hv").exact
    report = check_equivariance(network(broken=True), torch.randn(1, 3, 12, 12), None, "hv", letters="v")
    assert report.letters == "v"
    assert report.first_lost("v").layer == "3"
    assert "so it is by filters, statistics or channels" in report.verdict()


def test_ordinary_layers_are_left_out():
    net = nn.Sequential(network(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    report = check_equivariance(net, torch.randn(1, 3, 9, 9))
    assert not report.exact
    assert [row.layer for row in report.layers if math.isnan(row.error["h"])] == ["1", "2", "3", "4"]
    invariant = nn.Sequential(
        network(), OrbitPool("hv"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    assert check_equivariance(invariant, torch.randn(1, 3, 9, 9)).exact


def test_reverse_complement_network():
    net = nn.Sequential(
        sf.SymmetricConv1d(4, 8, 7, symmetry="h", input_symmetry=rc_symmetry(), share_bias=True),
        OrbitBatchNorm1d(8, "h"),
        nn.ReLU(),
        OrbitPool("h"),
    )
    assert check_equivariance(net, torch.randn(2, 4, 30), rc_symmetry()).exact
    assert not check_equivariance(net, torch.randn(2, 4, 30), letters="h").exact


def test_layers_that_work_in_place_change_nothing_that_was_seen():
    """The first layer loses the mirror along its own size; an in-place activation behind it does not hide that."""
    lost = nn.Sequential(
        sf.SymmetricConv2d(2, 4, 3, 2, padding=1, symmetry="h", bias=False), nn.Threshold(1e9, 0.0, True)
    )
    found = check_equivariance(lost, torch.randn(1, 2, 9, 8), None, "h")
    first = found.first_lost("h")
    assert first is not None
    assert first.layer == "0"
