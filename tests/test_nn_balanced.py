# Spatially balanced pooling and convolutions: both sides against torch's layers, draws, numbers of layers, checkpoints.
from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import symconv_fast as sf
from symconv_fast.nn import (
    SpatiallyBalancedConv2d,
    SpatiallyBalancedPool2d,
    alternate_sides,
    exact_padding,
)
from symconv_fast.nn.exact import unread

F64 = {"dtype": torch.float64}
POOLS = [{"mode": "max"}, {"mode": "avg"}, {"mode": "avg", "count_include_pad": False}]
SIZES = [(3, 2, 1), (2, 2, 0), (3, 3, 1), (5, 4, 2), (1, 2, 0), ((3, 4), (2, 3), (1, 2))]
"""Kernel, stride, padding."""


def torch_pool(kernel, stride, padding, mode="max", count_include_pad=True):
    if mode == "max":
        return nn.MaxPool2d(kernel, stride, padding)
    return nn.AvgPool2d(kernel, stride, padding, count_include_pad=count_include_pad)


def outcomes(layer, x, draws=60):
    """The different outputs of a layer in training, as bytes, with their number."""
    layer.train()
    return Counter(layer(x).detach().numpy().tobytes() for _ in range(draws))


# --- the two sides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", POOLS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_pooling_from_the_left_is_torchs_and_from_the_right_its_mirror_image(sizes, options):
    x = torch.randn(2, 3, 11, 14, **F64)
    differ = False
    for height, width in itertools.product((8, 9, 10, 11), (12, 13, 14)):
        part = x[..., :height, :width]
        left = SpatiallyBalancedPool2d(*sizes, **options, index=4).eval()
        right = SpatiallyBalancedPool2d(*sizes, **options, index=7).eval()
        plain = torch_pool(*sizes, **options)
        assert torch.equal(left(part), plain(part))
        mirrored = plain(part.flip(-1, -2)).flip(-1, -2)
        torch.testing.assert_close(right(part), mirrored, rtol=0, atol=1e-12)
        torch.testing.assert_close(right(part[0]), mirrored[0], rtol=0, atol=1e-12)
        differ |= not torch.allclose(right(part), left(part))
    assert differ


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("symmetry", [None, "h", "hv"])
def test_convolution_from_the_right_is_the_mirror_image_of_that_from_the_left(symmetry, mode):
    """Mirrored along both axes, with the filters mirrored: members of the orbits exchanged, of free ones the weight."""
    options = {"stride": 2, "padding": 1, "padding_mode": mode, "groups": 2, **F64}
    left = SpatiallyBalancedConv2d(4, 8, 3, symmetry=symmetry, **options).eval()
    right = copy.deepcopy(left)
    right.index = 1
    with torch.no_grad():
        right.weight.copy_(right.weight.flip(-1, -2))
    for size in itertools.product((8, 9), (10, 11)):
        x = torch.randn(2, 4, *size, **F64)
        y = left(x)
        mirrored = right(x.flip(-1, -2)).flip(-1, -2)
        torch.testing.assert_close(mirrored, y, rtol=0, atol=1e-12)
        plain = sf.SymmetricConv2d(4, 8, 3, symmetry=symmetry, **options)
        plain.load_state_dict(left.state_dict())
        assert torch.equal(y, plain(x))
        right.index = 0
        moved = (right(x.flip(-1, -2)).flip(-1, -2) - y).abs().max()
        assert (moved > 0.1) == (8 in size or 10 in size)
        right.index = 1


def test_convolutions_of_different_axes():
    sizes = {"kernel_size": (5, 2), "stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)}
    layer = SpatiallyBalancedConv2d(2, 3, **sizes, index=1, **F64).eval()
    for size in itertools.product((8, 9, 10), (9, 10, 11)):
        x = torch.randn(1, 2, *size, **F64)
        mirrored = F.conv2d(
            x.flip(-1, -2), layer.weight.flip(-1, -2), layer.bias, (2, 3), (2, 1), (1, 2)
        ).flip(-1, -2)
        torch.testing.assert_close(layer(x), mirrored, rtol=0, atol=1e-12)


def test_members_are_exchanged_in_the_mean_over_both_sides():
    """What a first layer of a tied network has: in the mean over the draws, the mirror exchanges members exactly."""
    layer = SpatiallyBalancedConv2d(3, 8, 3, 2, 1, symmetry="hv", share_bias=True, **F64).train()
    x = torch.randn(1, 3, 8, 10, **F64)
    exchange = [layer.ties.channel_map.index((row, member ^ 1)) for row, member in layer.ties.channel_map]

    def mean(values, draws=80):
        seen = {(y := layer(values)).detach().numpy().tobytes(): y for _ in range(draws)}
        assert len(seen) == 4
        return sum(seen.values()) / 4

    torch.testing.assert_close(mean(x.flip(-1)).flip(-1)[:, exchange], mean(x), rtol=0, atol=1e-12)


def test_rests_larger_than_the_padding_leave_out_input():
    x = torch.randn(1, 1, 7, 7, **F64)
    assert unread(7, 1, 4, 0) == 2
    assert torch.equal(SpatiallyBalancedPool2d(1, 4, index=1).eval()(x), x[..., 2::4, 2::4])
    assert torch.equal(SpatiallyBalancedPool2d(1, 4, index=0).eval()(x), x[..., ::4, ::4])


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_training_draws_each_axis_by_itself(options):
    layer = SpatiallyBalancedPool2d(3, 2, 1, **options)
    x = torch.randn(1, 2, 8, 10, **F64)
    seen = outcomes(layer, x, 400)
    assert len(seen) == 4
    assert all(60 < count < 140 for count in seen.values())  # 100 expected; 4.6 standard deviations
    for index, side in ((0, ()), (1, (-1, -2))):
        layer.eval().index = index
        plain = torch_pool(3, 2, 1, **options)
        torch.testing.assert_close(layer(x), plain(x.flip(side)).flip(side), rtol=0, atol=1e-12)
        assert layer(x).numpy().tobytes() in seen
    assert len(outcomes(layer, x[..., :9])) == 2  # the width is odd: its padding is consumed


def test_a_seed_repeats_the_draws():
    layers = SpatiallyBalancedPool2d(3, 2, 1), SpatiallyBalancedConv2d(2, 4, 3, 2, 1, symmetry="h")
    x = torch.randn(1, 2, 8, 8)
    for layer in layers:
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            runs.append([layer(x) for _ in range(8)])
        assert all(map(torch.equal, *runs))
        assert len({y.detach().numpy().tobytes() for y in runs[0]}) > 1


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_what_consumes_all_its_padding_is_torchs_layer_and_draws_nothing(options):
    for kernel, stride, dilation in itertools.product((2, 3, 4, 5), (1, 2, 3), (1, 2)):
        for n in (12, 13):
            try:
                pad = exact_padding(n, kernel, stride, dilation)[0]
            except ValueError:
                continue
            x, sizes = torch.randn(2, 4, n, n), {"stride": stride, "padding": pad, "dilation": dilation}
            layer = SpatiallyBalancedConv2d(4, 4, kernel, **sizes, index=1)
            state = torch.get_rng_state()
            with sf.backend("reference"):  # the bits of torch's kernel, whatever is quicker on this machine
                assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, **sizes))
            assert torch.equal(layer.eval()(x), layer.train()(x))
            if dilation == 1 and pad <= kernel // 2:
                layer = SpatiallyBalancedPool2d(kernel, stride, pad, **options, index=1)
                assert torch.equal(layer(x), torch_pool(kernel, stride, pad, **options)(x))
                assert torch.equal(layer.eval()(x), layer.train()(x))
            assert torch.equal(torch.get_rng_state(), state)


def test_dilated_max_pooling():
    x = torch.randn(1, 2, 10, 11, **F64)
    layer = SpatiallyBalancedPool2d(3, 3, 1, 2, index=1).eval()
    plain = nn.MaxPool2d(3, 3, 1, 2)
    assert torch.equal(layer(x), plain(x.flip(-1, -2)).flip(-1, -2))
    assert not torch.equal(layer(x), plain(x))


def test_padding_never_wins_and_nan_stays():
    x = torch.full((1, 1, 8, 8), -5.0)
    layer = SpatiallyBalancedPool2d(3, 2, 1)
    for _ in range(8):
        assert torch.equal(layer(x), torch.full((1, 1, 4, 4), -5.0))
    x[..., 7, 7] = torch.nan
    assert SpatiallyBalancedPool2d(3, 2, 1, index=1).eval()(x).isnan().any()


# --- gradients, types, compilers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_gradients(index):
    x = torch.randn(1, 2, 6, 7, **F64, requires_grad=True)
    for options in POOLS:
        assert torch.autograd.gradcheck(SpatiallyBalancedPool2d(3, 2, 1, **options, index=index).eval(), x)
    layer = SpatiallyBalancedConv2d(2, 4, 3, 2, 1, symmetry="hv", index=index, **F64).eval()

    def compute(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(compute, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(compute, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("index", [0, 1])
def test_dtypes_unbatched_and_empty(dtype, index):
    x = torch.randn(2, 4, 8, 9, dtype=dtype)
    pools = [SpatiallyBalancedPool2d(3, 2, 1, **options, index=index) for options in POOLS]
    conv = SpatiallyBalancedConv2d(4, 8, 3, 2, 1, symmetry="hv", index=index, dtype=dtype)
    for layer in (*pools, conv):
        layer.eval()
        y = layer(x)
        assert y.dtype == dtype
        expected = copy.deepcopy(layer).double()(x.double())
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=10 * torch.finfo(dtype).eps)
        torch.testing.assert_close(layer(x[0]), y[0])
        for training in (False, True):
            empty = x[:0].clone().requires_grad_()
            out = layer.train(training)(empty)
            assert out.shape == (0, *y.shape[1:])
            out.sum().backward()


@pytest.mark.parametrize("training", [False, True])
def test_compile_without_breaks(training):
    x = torch.randn(1, 2, 8, 10, **F64)
    pools = [
        SpatiallyBalancedPool2d(3, 2, 1, **options, index=1) for options in POOLS[:: 2 if training else 3]
    ]
    for layer in (*pools, SpatiallyBalancedConv2d(2, 4, 3, 2, 1, symmetry="hv", index=1, **F64)):
        layer.train(training)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        if training:
            expected = [torch.frombuffer(bytearray(y), **F64) for y in outcomes(layer, x)]
            made = [torch.frombuffer(bytearray(y), **F64) for y in outcomes(compiled, x)]
            assert len(made) == len(expected) == 4
            for y in made:
                assert min((y - other).abs().max() for other in expected) < 1e-12
        else:
            torch.testing.assert_close(compiled(x), layer(x))


def test_export_and_fx():
    x = torch.randn(1, 2, 8, 10)
    net = nn.Sequential(
        SpatiallyBalancedConv2d(2, 4, 3, 2, 1, symmetry="hv", index=1), SpatiallyBalancedPool2d(2, 2)
    )
    traced = torch.fx.symbolic_trace(net.eval())
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2
    torch.testing.assert_close(traced(x), net(x))
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x))


# --- numbers of layers, checkpoints, copies --------------------------------------------------------------------------


def test_alternate_sides_numbers_the_layers_of_a_model():
    pool = SpatiallyBalancedPool2d(2)
    net = nn.Sequential(
        SpatiallyBalancedConv2d(2, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Sequential(pool),
        SpatiallyBalancedPool2d(3, 2),
        pool,
    )
    assert alternate_sides(net) == 3
    assert (net[0].index, pool.index, net[3].index) == (0, 1, 2)
    assert alternate_sides(nn.ReLU()) == 0
    for wrong in (None, [pool], 3):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
            alternate_sides(wrong)


def test_copies_and_checkpoints_evaluate_alike():
    def build():
        return nn.Sequential(
            SpatiallyBalancedConv2d(2, 4, 3, 2, 1, symmetry="hv"), SpatiallyBalancedPool2d(3, 2, 1)
        )

    net, x = build().eval(), torch.randn(1, 2, 14, 14)
    net[0].index, net[1].index = 1, 3
    y = net(x)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    loaded = build().eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    plain = build().eval()
    plain.load_state_dict(dict(net.state_dict()))
    loaded.load_state_dict(dict(net.state_dict()))  # without a record the index stays
    assert [loaded[0].index, loaded[1].index] == [1, 3]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert torch.equal(other(x), y)
    assert plain[0].index == plain[1].index == 0
    assert not torch.equal(plain(x), y)


def test_conversion():
    conv = nn.Conv2d(4, 8, 3, 2, 1)
    layer = SpatiallyBalancedConv2d.from_conv(conv, None)
    other = SpatiallyBalancedConv2d(4, 8, 3, 2, 1, index=1)
    other.load_state_dict(conv.state_dict())
    x = torch.randn(1, 4, 8, 8)
    assert isinstance(layer, nn.Conv2d)
    torch.testing.assert_close(layer.eval()(x), conv(x))
    tied = SpatiallyBalancedConv2d(4, 8, 3, 2, 1, symmetry="hv", index=1).eval()
    model = sf.to_torch(nn.Sequential(tied))
    assert type(model[0]) is SpatiallyBalancedConv2d
    assert model[0].weight.shape == (8, 4, 3, 3)
    torch.testing.assert_close(model(x), tied(x))


def test_repr():
    assert repr(SpatiallyBalancedPool2d(3, 2, 1, index=3)) == (
        "SpatiallyBalancedPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), index=3)"
    )
    assert "mode='avg', count_include_pad=False" in repr(
        SpatiallyBalancedPool2d(2, mode="avg", count_include_pad=False)
    )
    assert repr(SpatiallyBalancedConv2d(2, 4, 3, 2, symmetry="h")).endswith("unique_out_channels=2, index=0)")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SpatiallyBalancedPool2d(0), ValueError, "kernel_size=0 must be an int of at least 1"),
        (lambda: SpatiallyBalancedPool2d(2.0), TypeError, "kernel_size=2.0"),
        (lambda: SpatiallyBalancedPool2d(3, (2, 2, 2)), ValueError, r"stride=\(2, 2, 2\)"),
        (lambda: SpatiallyBalancedPool2d(3, 2, -1), ValueError, "padding=-1 must be an int of at least 0"),
        (
            lambda: SpatiallyBalancedPool2d(3, 2, 2),
            ValueError,
            r"at most half of kernel_size; give at most \(1, 1\)",
        ),
        (lambda: SpatiallyBalancedPool2d(3, mode="mean"), ValueError, "mode='mean' must be 'max' or 'avg'"),
        (lambda: SpatiallyBalancedPool2d(3, 2, 1, 2, mode="avg"), ValueError, "dilation=2 is for mode='max'"),
        (
            lambda: SpatiallyBalancedPool2d(3, count_include_pad=1),
            TypeError,
            "count_include_pad=1 must be True",
        ),
        (lambda: SpatiallyBalancedPool2d(3, index=-1), ValueError, "index=-1 must be an int of at least 0"),
        (lambda: SpatiallyBalancedConv2d(2, 4, 3, index="left"), TypeError, "index='left' must be an int"),
        (lambda: SpatiallyBalancedPool2d(3)(torch.randn(8, 8)), ValueError, "3-D .unbatched. or 4-D"),
        (
            lambda: SpatiallyBalancedPool2d(3)(torch.randn(1, 1, 2, 8)),
            ValueError,
            r"shape \(1, 1, 2, 8\) is too small for a window; give \(H, W\) of at least \(3, 3\)",
        ),
        (lambda: SpatiallyBalancedPool2d(3)(torch.randn(1, 0, 8, 8)), ValueError, "is empty"),
        (
            lambda: SpatiallyBalancedPool2d(3)(torch.ones(1, 1, 8, 8, dtype=torch.int32)),
            TypeError,
            "int32 is not",
        ),
        (lambda: SpatiallyBalancedPool2d(3)(None), TypeError, "input must be a Tensor"),
        (lambda: SpatiallyBalancedConv2d(2, 4, 3, 2)(None), TypeError, "input must be a Tensor"),
        (
            lambda: SpatiallyBalancedConv2d(2, 4, 3, 2)(torch.randn(8, 8)),
            ValueError,
            "3-D .unbatched. or 4-D",
        ),
        (lambda: SpatiallyBalancedConv2d(2, 4, 3, 2)(torch.randn(1, 3, 8, 8)), ValueError, "3"),
        (
            lambda: SpatiallyBalancedConv2d(2, 4, 3, 2)(torch.randn(1, 2, 2, 8)),
            ValueError,
            r"channel: \[2, 8\]",
        ),
        (lambda: SpatiallyBalancedConv2d(2, 4, 3, 2)(torch.randn(1, 2, 0, 8)), ValueError, r"input \[0, 8\]"),
        (lambda: SpatiallyBalancedConv2d(2, 4, 3, symmetry="z"), ValueError, "valid keys: h, v, hv"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
