# Partial convolutions: against loops over windows, holes that leak nothing, mirrored masks, tied and not.
from __future__ import annotations

import copy
import itertools
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import symconv_fast as sf
from symconv_fast.nn import PartialConv1d, PartialConv2d, PartialConv3d

PARTIAL = {1: PartialConv1d, 2: PartialConv2d, 3: PartialConv3d}
F64 = {"dtype": torch.float64}
SPECS = {1: {"h": 4}, 2: "hv", 3: {"z": 4, "hvz": 8}}


def by_loops(layer, x, mask=None):
    """The papers' formula, window by window and tap by tap: (output, updated mask), of a batch, in float64."""
    ndim, batch, channels = len(layer.kernel_size), x.shape[0], x.shape[1]
    many = mask is not None and mask.shape[1] > 1
    valid = torch.ones(batch, channels, *x.shape[2:]) if mask is None else (mask > 0).double().expand(x.shape)
    pad = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    values = F.pad(torch.where(valid > 0, x, 0.0), pad, mode=mode)
    valid = F.pad(valid, pad, mode=mode)
    filters, bias = layer.expanded_weight(), layer.expanded_bias()
    out, per_group = filters.shape[0], filters.shape[1]
    sizes = [
        (values.shape[2 + i] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1) // layer.stride[i] + 1
        for i in range(ndim)
    ]
    y = torch.zeros(batch, out, *sizes, **F64)
    updated = torch.zeros(batch, out, *sizes, **F64)
    for at, g in itertools.product(itertools.product(*map(range, sizes)), range(layer.groups)):
        channel = slice(g * per_group, (g + 1) * per_group)
        filter_ = slice(g * out // layer.groups, (g + 1) * out // layer.groups)
        raw, seen, whole = torch.zeros(batch, out // layer.groups, **F64), torch.zeros(batch, **F64), 0
        for tap in itertools.product(*map(range, layer.kernel_size)):
            place = tuple(a * s + t * d for a, s, t, d in zip(at, layer.stride, tap, layer.dilation))
            raw = raw + values[(slice(None), channel, *place)] @ filters[(filter_, slice(None), *tap)].T
            seen = seen + valid[(slice(None), channel, *place)].sum(1)
            whole += per_group
        scaled = raw * (whole / seen)[:, None] + (0.0 if bias is None else bias[filter_])
        y[(slice(None), filter_, *at)] = torch.where(seen[:, None] > 0, scaled, 0.0)
        updated[(slice(None), filter_, *at)] = (seen > 0).double()[:, None]
    return y, updated if many else updated[:, :1]


def holes(shape, share=0.4):
    """A mask with single holes and one whole corner, so that some windows see nothing."""
    mask = torch.rand(shape) > share
    mask[(..., *[slice(0, 4)] * (len(shape) - 2))] = False
    return mask


OPTIONS = [
    {},
    {"padding": 1},
    {"padding": 1, "bias": False},
    {"padding": 2, "stride": 2, "groups": 2},
    {"padding": 2, "dilation": 2, "share_bias": True},
    {"padding": "same", "kernel_size": 4},
    {"padding": 1, "padding_mode": "reflect", "stride": 3},
    {"padding": 2, "padding_mode": "circular"},
    {"padding": 3, "padding_mode": "replicate"},
    {"padding": 4, "groups": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ndim", [1, 2])
def test_formula_of_the_papers(ndim, options):
    for symmetry in (None, SPECS[ndim]):
        layer = PARTIAL[ndim](
            4, 8, **{"kernel_size": 3} | options, symmetry=symmetry, return_mask=True, **F64
        )
        x = torch.randn(2, 4, *(5, 6)[-ndim:], **F64)
        for channels in (None, 1, 4):
            mask = None if channels is None else holes((2, channels, *x.shape[2:]))
            y, updated = layer(x, mask)
            expected, valid = by_loops(layer, x, mask)
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
            with torch.no_grad():  # where it computes in place
                assert torch.equal(layer(x, mask)[0], y)
                assert torch.equal(layer(x, mask)[0], y)
            assert torch.equal(updated.double(), valid)
            assert updated.dtype == (torch.float64 if mask is None else torch.bool)


@pytest.mark.parametrize("channels", [None, 1, 2])
def test_formula_in_three_dimensions(channels):
    layer = PartialConv3d(2, 12, (2, 3, 3), (1, 2, 1), (1, 0, 2), symmetry=SPECS[3], return_mask=True, **F64)
    x = torch.randn(1, 2, 5, 6, 7, **F64)
    mask = None if channels is None else holes((1, channels, 5, 6, 7))
    (y, updated), (expected, valid) = layer(x, mask), by_loops(layer, x, mask)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert torch.equal(updated.double(), valid)


def test_a_hole_everywhere_gives_zero_without_bias():
    layer = PartialConv2d(2, 4, 3, padding=1, return_mask=True)
    y, updated = layer(torch.randn(1, 2, 5, 5), torch.zeros(1, 1, 5, 5))
    assert layer.bias.abs().min() > 0
    assert not y.any()
    assert not updated.any()
    assert updated.dtype == torch.float32


@pytest.mark.parametrize("symmetry", [None, "hv"])
def test_zero_padding_does_not_darken_the_border(symmetry):
    """Of a constant image every output is the same: with zero padding they are not."""
    layer = PartialConv2d(3, 8, 5, padding=2, symmetry=symmetry, **F64)
    with torch.no_grad():
        layer.weight.fill_(1)
    y = layer(torch.full((1, 3, 9, 9), 2.0, **F64))
    assert y.flatten(2).std(2).max() < 1e-12
    assert layer.to_conv().weight.shape == (8, 3, 5, 5)
    assert F.conv2d(torch.full((1, 3, 9, 9), 2.0, **F64), layer.expanded_weight(), padding=2).std() > 1


def test_everything_valid_without_padding_is_the_convolution():
    for symmetry in (None, "hv"):
        layer = PartialConv2d(3, 8, 3, stride=2, symmetry=symmetry)
        conv = sf.SymmetricConv2d(3, 8, 3, stride=2, symmetry=symmetry)
        conv.load_state_dict(layer.state_dict())
        x = torch.randn(2, 3, 8, 9)
        assert torch.equal(layer(x), conv(x))
        torch.testing.assert_close(layer(x, torch.ones(2, 1, 8, 9)), conv(x))
        torch.testing.assert_close(layer(x, torch.ones_like(x)), conv(x))


@pytest.mark.parametrize("symmetry", [None, {"h": 4, "hv": 4}])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_in_a_hole_does_not_leak(symmetry, channels, bad):
    layer = PartialConv2d(2, 8, 3, padding=1, symmetry=symmetry, **F64)
    mask = holes((2, channels, 6, 7))
    x = torch.randn(2, 2, 6, 7, **F64)
    spoilt = torch.where(mask, x, bad).requires_grad_()
    y = layer(spoilt, mask)
    assert torch.equal(y, layer(x, mask))
    y.square().sum().backward()
    assert spoilt.grad.isfinite().all()
    assert not spoilt.grad[~mask.expand_as(x)].any()
    assert layer.weight.grad.isfinite().all()
    assert spoilt.grad[mask.expand_as(x)].any()


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-1, -2)])
@pytest.mark.parametrize("channels", [None, 1, 2])
def test_mirrored_input_and_mask_give_mirrored_output(axes, channels):
    """With the members of each orbit exchanged: quadruples (row, mirrored in h, in v, in both)."""
    layer = PartialConv2d(
        2, 12, 3, stride=2, padding=1, symmetry="hv", share_bias=True, return_mask=True, **F64
    )
    x, mask = torch.randn(1, 2, 7, 9, **F64), None if channels is None else holes((1, channels, 7, 9))
    y, updated = layer(x, mask)
    flipped, turned = layer(x.flip(axes), None if mask is None else mask.flip(axes))
    bits = sum({-1: 1, -2: 2}[axis] for axis in axes)
    exchange = [layer.ties.channel_map.index((row, member ^ bits)) for row, member in layer.ties.channel_map]
    torch.testing.assert_close(flipped.flip(axes)[:, exchange], y, rtol=0, atol=1e-12)
    assert torch.equal(turned.flip(axes), updated)
    assert (y - flipped.flip(axes)).abs().max() > 0.1


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("symmetry", [None, "h"])
def test_gradients(ndim, symmetry):
    layer = PARTIAL[ndim](2, 2, 2, stride=2, padding=1, symmetry=symmetry, **F64)
    x = torch.randn(1, 2, *[4, 3, 3][:ndim], **F64, requires_grad=True)
    for mask in (None, torch.rand(1, 1, *x.shape[2:]) > 0.5, torch.rand(x.shape) > 0.5):

        def compute(x, weight, bias, mask=mask):
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, mask))

        assert torch.autograd.gradcheck(compute, (x, layer.weight, layer.bias))
        if ndim == 1:
            assert torch.autograd.gradgradcheck(compute, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetry", [None, "hv"])
def test_sixteen_bit(dtype, symmetry):
    layer = PartialConv2d(16, 8, 5, padding=2, symmetry=symmetry, return_mask=True).to(dtype)
    exact = copy.deepcopy(layer).double()
    x, mask = torch.randn(2, 16, 9, 9, dtype=dtype), holes((2, 16, 9, 9))
    for given in (None, mask):
        y, _ = layer(x, given)
        assert y.dtype == dtype
        expected, _ = exact(x.double(), given)
        rmse = (y.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert rmse < 4 * torch.finfo(dtype).eps
    # 3 x 5 x 5 x 16 values are more than bfloat16 can count.
    many = PartialConv2d(16, 1, 7, bias=False).to(dtype)
    nn.init.ones_(many.weight)
    half = torch.ones(1, 16, 7, 7, dtype=torch.bool)
    half[0, 0, 0, 0] = False
    assert many(torch.ones(1, 16, 7, 7, dtype=dtype), half).item() == pytest.approx(784, rel=1e-2)


def test_counts_of_more_than_eleven_bits_are_exact():
    layer = PartialConv1d(4099, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    mask = torch.ones(1, 4099, 1)
    mask[0, 0] = 0
    counts, window = layer._count(mask > 0, torch.bfloat16)
    assert (counts.item(), window) == (4098, 4099)


def test_unbatched_and_empty_and_shared_mask():
    layer = PartialConv2d(2, 4, 3, padding=1, symmetry="hv", return_mask=True, **F64)
    x, mask = torch.randn(3, 2, 5, 6, **F64), holes((3, 1, 5, 6))
    y, updated = layer(x, mask)
    alone, turned = layer(x[1], mask[1])
    torch.testing.assert_close(alone, y[1])
    assert torch.equal(turned, updated[1])
    one, shared = layer(x, mask[:1])
    torch.testing.assert_close(one, layer(x, mask[:1].expand(3, 1, 5, 6))[0])
    assert shared.shape == (1, 1, 5, 6)
    alone, turned = layer(x[1])
    torch.testing.assert_close(alone, layer(x)[0][1])
    assert turned.shape == (1, 5, 6)
    empty = torch.zeros(0, 2, 5, 6, **F64, requires_grad=True)
    for given in (None, mask[:0], mask[:1], torch.ones(0, 2, 5, 6)):
        y, updated = layer(empty, given)
        assert y.shape == (0, 4, 5, 6)
        y.sum().backward()
    assert updated.shape == (0, 4, 5, 6)


def test_masks_of_any_real_type_and_layout():
    layer = PartialConv2d(2, 4, 3, padding=1, return_mask=True)
    x, mask = torch.randn(2, 2, 5, 6), holes((2, 1, 5, 6))
    y, _ = layer(x, mask)
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float64):
        other, updated = layer(x, mask.to(dtype))
        assert torch.equal(other, y)
        assert updated.dtype == dtype
    unset = torch.where(mask, 1.0, torch.nan)  # NaN is not above 0: a hole
    assert torch.equal(layer(x, unset)[0], y)
    wide = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(wide, mask.transpose(2, 3).contiguous().transpose(2, 3))[0], y)


def test_a_stack_passes_its_masks_on():
    """A hole of 5 x 5 closes by one pixel on each side with each layer."""
    layers = [PartialConv2d(1, 1, 3, padding=1, return_mask=True) for _ in range(3)]
    x, mask = torch.randn(1, 1, 9, 9), torch.ones(1, 1, 9, 9)
    mask[..., 2:7, 2:7] = 0
    left = []
    for layer in layers:
        x, mask = layer(x, mask)
        left.append(int((mask == 0).sum()))
    assert left == [9, 1, 0]


def test_saved_copied_converted():
    layer = PartialConv2d(4, 8, 3, padding=1, symmetry="hv", return_mask=True)
    x, mask = torch.randn(1, 4, 6, 6), holes((1, 4, 6, 6))
    expected, _ = layer(x, mask)
    assert list(layer.state_dict()) == ["weight", "bias"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, mask)[0], expected)
    fresh = PartialConv2d(4, 8, 3, padding=1, symmetry="hv")
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x, mask), expected)
    untied = layer.to_conv()
    assert type(untied) is PartialConv2d
    assert not untied.symmetry.counts
    torch.testing.assert_close(untied(x, mask)[0], expected)
    model = sf.to_torch(nn.Sequential(layer))
    assert model[0].weight.shape == (8, 4, 3, 3)
    torch.testing.assert_close(model(x)[0], layer(x)[0])
    conv = nn.Conv2d(4, 8, 3, padding=1)
    plain = PartialConv2d(4, 8, 3, padding=1)
    plain.load_state_dict(conv.state_dict())
    assert torch.equal(PartialConv2d.from_conv(conv, None)(x), plain(x))


def test_repr():
    layer = PartialConv2d(2, 4, 3, symmetry="h", return_mask=True)
    assert repr(layer) == (
        "PartialConv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), symmetry='h', unique_out_channels=2, return_mask=True)"
    )
    layer.return_mask = False
    assert "return_mask" not in repr(layer)


@pytest.mark.parametrize("symmetry", [None, "hv"])
def test_compile_and_export(symmetry):
    layer = PartialConv2d(2, 4, 3, padding=1, symmetry=symmetry, return_mask=True)
    x, mask = torch.randn(2, 2, 6, 6), holes((2, 1, 6, 6))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for given, gradients in ((None, True), (mask, True), (mask.expand(2, 2, 6, 6).float(), False)):
        with torch.set_grad_enabled(gradients):
            for made, expected in zip(compiled(x, given), layer(x, given)):
                torch.testing.assert_close(made, expected)
    many = torch.export.Dim("many", min=2, max=64)
    program = torch.export.export(layer, (x, mask), dynamic_shapes=({0: many}, {0: many}))
    more = torch.randn(5, 2, 6, 6), holes((5, 1, 6, 6))
    for made, expected in zip(program.module()(*more), layer(*more)):
        torch.testing.assert_close(made, expected)
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({0: many, 2: torch.export.Dim("height", min=3)},)
    )
    more = torch.randn(3, 2, 9, 6)
    torch.testing.assert_close(program.module()(more)[0], layer(more)[0])


def test_transforms_of_functions():
    layer = PartialConv2d(2, 4, 3, padding=1, symmetry="hv", **F64).requires_grad_(False)
    x, mask = torch.randn(3, 2, 5, 6, **F64), holes((3, 1, 5, 6))
    y = layer(x, mask)
    torch.testing.assert_close(torch.func.vmap(layer)(x, mask), y)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    for names in (["weight", "bias"], ["bias"], ["weight"]):
        given = {name: torch.stack([getattr(layer, name)] * 2) for name in names}
        made = torch.func.vmap(lambda values: torch.func.functional_call(layer, values, (x, mask)))(given)
        torch.testing.assert_close(made, torch.stack([y, y]))
        with torch.no_grad():
            made = torch.func.vmap(lambda values: torch.func.functional_call(layer, values, (x, mask)))(given)
        torch.testing.assert_close(made, torch.stack([y, y]))
    gradient = torch.func.grad(lambda x: layer(x, mask).square().sum())(x)
    x.requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(x, mask).square().sum(), x)[0])


def test_autocast_and_fx():
    layer = PartialConv2d(2, 4, 3, padding=1, symmetry="hv")
    x, mask = torch.randn(2, 2, 6, 6), holes((2, 2, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, mask)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x, mask), rtol=0.05, atol=0.05)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer

        def forward(self, x, mask):
            return self.conv(x, mask).relu()

    traced = torch.fx.symbolic_trace(Net())
    assert [node.op for node in traced.graph.nodes].count("call_module") == 1
    torch.testing.assert_close(traced(x, mask), layer(x, mask).relu())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(2, 3, 5, 6),
            r"(2, 3, 5, 6) does not fit input of shape (2, 2, 5, 6); give one of shape (2, 1, 5, 6)",
        ),
        (torch.ones(2, 1, 6, 5), "or (2, 2, 5, 6) for a mask of each channel"),
        (torch.ones(3, 1, 5, 6), "does not fit"),
        (torch.ones(1, 5, 6), "does not fit"),
        (torch.ones(5, 6), "does not fit"),
        (torch.ones(()), "does not fit"),
        (torch.ones(0, 1, 5, 6), "does not fit"),
    ],
)
def test_bad_masks(mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PartialConv2d(2, 4, 3)(torch.randn(2, 2, 5, 6), mask)


def test_what_a_fast_convolution_leaves_in_an_empty_window_is_removed(monkeypatch):
    layer = PartialConv2d(2, 4, 3, return_mask=True)
    exactly = layer._convolve
    monkeypatch.setattr(layer, "_convolve", lambda x: exactly(x) + 1e-6)
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 4:] = 0
    with torch.no_grad():
        output, updated = layer(torch.randn(1, 2, 8, 8), mask)
    assert output[(updated == 0).expand_as(output)].eq(0).all()
    assert (updated == 0).any()


def test_bad_arguments():
    layer = PartialConv2d(2, 4, 3)
    x = torch.randn(2, 2, 5, 6)
    for mask in ([1.0], "all", 1):
        with pytest.raises(TypeError, match="mask must be a Tensor"):
            layer(x, mask)
    with pytest.raises(TypeError, match="mask is complex64; give real numbers"):
        layer(x, torch.ones(2, 1, 5, 6, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="mask is on meta"):
        layer(x, torch.ones(2, 1, 5, 6, device="meta"))
    for mask in (None, torch.ones(2, 1, 5, 6)):
        with pytest.raises(ValueError, match="3"):
            layer(torch.randn(2, 3, 5, 6), mask)  # channels
        with pytest.raises(TypeError, match="input must be a Tensor"):
            layer(None, mask)
        with pytest.raises(ValueError, match=r"3-D .unbatched. or 4-D"):
            layer(torch.randn(5, 6), mask)
        with pytest.raises(TypeError, match="supported dtypes"):
            layer(torch.ones(2, 2, 5, 6, dtype=torch.int64), mask)
    with pytest.raises(RuntimeError, match="kernel"):
        layer(torch.randn(2, 2, 2, 2), torch.ones(2, 1, 2, 2))
    with pytest.raises(TypeError, match="return_mask=1 must be True or False"):
        PartialConv2d(2, 4, 3, return_mask=1)
    with pytest.raises(ValueError, match="valid keys"):
        PartialConv1d(2, 4, 3, symmetry="v")
    with pytest.raises(TypeError, match="kernel_size"):
        PartialConv2d(2, 4, 3.0)
