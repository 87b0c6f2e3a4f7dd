"""The layers: equal to torch's on expanded filters, published checkpoints, conversion, pickling, initialisation."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import symconv_fast as sf
from symconv_fast import Symmetry

CONV = {1: sf.SymmetricConv1d, 2: sf.SymmetricConv2d, 3: sf.SymmetricConv3d}
TRANSPOSED = {1: sf.SymmetricConvTranspose1d, 2: sf.SymmetricConvTranspose2d, 3: sf.SymmetricConvTranspose3d}
SPECS = {1: {"h": 4}, 2: {"h": 4, "hv": "50%"}, 3: {"z": 4, "hvz": "50%"}}
F64 = {"dtype": torch.float64}


def assert_equal_layers(layer: nn.Module, conv: nn.Module, x: torch.Tensor, *args) -> None:
    """Same outputs and same input gradient."""
    x = x.detach().requires_grad_()
    y, expected = layer(x, *args), conv(x, *args)
    torch.testing.assert_close(y, expected)
    gy = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(y, x, gy), torch.autograd.grad(expected, x, gy))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2, "same"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_padding_mode(ndim, padding, mode):
    layer = CONV[ndim](
        4, 16, (3, 4, 3)[-ndim:], padding=padding, padding_mode=mode, symmetry=SPECS[ndim], **F64
    )
    x = torch.randn(2, 4, *(5, 6, 7)[-ndim:], **F64)
    assert_equal_layers(layer, layer.to_conv(), x)
    assert_equal_layers(layer, layer.to_conv(), x[0])


@pytest.mark.parametrize("kwargs", [{}, {"stride": 2, "groups": 2}, {"dilation": 2, "bias": False}], ids=str)
@pytest.mark.parametrize("share_bias", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_layer_equals_the_one_line_that_defines_it(ndim, share_bias, kwargs):
    layer = CONV[ndim](4, 16, 3, padding=1, symmetry=SPECS[ndim], share_bias=share_bias, **kwargs, **F64)
    x = torch.randn(2, 4, *[7] * ndim, **F64)
    rest = {k: v for k, v in kwargs.items() if k != "bias"}
    bias = layer.bias
    if share_bias and bias is not None:
        bias = torch.stack([bias[row] for row, _ in layer.ties.channel_map])
    expected = getattr(F, f"conv{ndim}d")(x, layer.expanded_weight(), bias, padding=1, **rest)
    torch.testing.assert_close(layer(x), expected)
    assert_equal_layers(layer, layer.to_conv(), x)


@pytest.mark.parametrize("share_bias", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed_layer(ndim, share_bias):
    layer = TRANSPOSED[ndim](
        4,
        32,
        3,
        stride=2,
        padding=1,
        output_padding=1,
        groups=2,
        symmetry=SPECS[ndim],
        share_bias=share_bias,
        **F64,
    )
    x = torch.randn(2, 4, *(3, 4, 5)[:ndim], **F64)
    assert layer.weight.shape == (4, layer.unique_out_channels // 2, *[3] * ndim)
    assert_equal_layers(layer, layer.to_conv(), x)
    assert_equal_layers(layer, layer.to_conv(), x[0])


@pytest.mark.parametrize("size", [7, 8])
def test_transposed_output_size(size):
    layer = sf.SymmetricConvTranspose2d(2, 8, 3, stride=2, padding=1, symmetry="hv", **F64)
    x = torch.randn(1, 2, 4, 4, **F64)
    assert layer(x, [size, size]).shape[2:] == (size, size)
    assert_equal_layers(layer, layer.to_conv(), x, [size, size])
    with pytest.raises(ValueError, match="output size"):
        layer(x, [20, 20])


# --- what it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_is_a_torch_layer_with_two_parameters_and_no_buffers(ndim):
    layer, up = CONV[ndim](4, 16, 3, symmetry=SPECS[ndim]), TRANSPOSED[ndim](4, 16, 3, symmetry=SPECS[ndim])
    assert isinstance(layer, getattr(nn, f"Conv{ndim}d"))
    assert isinstance(up, getattr(nn, f"ConvTranspose{ndim}d"))
    for module in (layer, up):
        assert isinstance(module.symmetry, Symmetry)
        assert sorted(dict(module.named_parameters())) == ["bias", "weight"]
        assert not list(module.buffers())
        assert list(module.train().state_dict()) == list(module.eval().state_dict()) == ["weight", "bias"]
    rows = layer.ties.unique
    assert rows == layer.unique_out_channels < 16
    assert layer.weight.shape == (rows, 4, *[3] * ndim)
    assert up.weight.shape == (4, rows, *[3] * ndim)
    assert layer.bias.shape == (16,)
    assert CONV[ndim](4, 16, 3, symmetry=SPECS[ndim], share_bias=True).bias.shape == (rows,)
    assert CONV[ndim](4, 16, 3, bias=False, symmetry=SPECS[ndim]).bias is None


def test_repr_shows_symmetry_and_free_filters():
    layer = sf.SymmetricConv2d(4, 16, 3, padding=1, symmetry={"h": 4, "vh": "50%"}, share_bias=True)
    assert repr(layer) == (
        "SymmetricConv2d(4, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), "
        "symmetry={'h': 4, 'vh': '50%'}, unique_out_channels=8, share_bias=True)"
    )
    assert "symmetry='h', unique_out_channels=8)" in repr(sf.SymmetricConvTranspose1d(4, 16, 3, symmetry="h"))
    assert "symmetry=None, unique_out_channels=16" in repr(sf.SymmetricConv1d(4, 16, 3))


def test_device_dtype_and_memory_format():
    meta = sf.SymmetricConv2d(4, 16, 3, symmetry="hv", device="meta", dtype=torch.bfloat16)
    assert meta.weight.is_meta
    assert meta(torch.empty(2, 4, 8, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 16, 6, 6)
    with torch.device("meta"):
        assert sf.SymmetricConv2d(4, 16, 3, symmetry="hv").bias.is_meta
    layer = sf.SymmetricConv2d(4, 16, 3, symmetry="hv").to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    y = layer(torch.randn(2, 4, 8, 8))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("cls", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 4])
def test_initial_weights_have_the_distribution_of_torch(cls, groups):
    """Uniform within torch's own bound, for the transposed layer too, whose reduced weight has another fan-in."""
    layer = cls(32, 64, 3, groups=groups, symmetry="hv")
    plain = layer.to_conv()
    plain.reset_parameters()
    bound = 1 / math.sqrt((64 if plain.transposed else 32) // groups * 9)
    for ours, torchs in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
        for values in (ours, torchs):
            assert 0.9 * bound < values.abs().max() <= bound
        # The standard deviation of a uniform distribution, within five standard errors of the smaller sample.
        tolerance = 5 / math.sqrt(ours.numel())
        assert ours.std().item() / (bound / math.sqrt(3)) == pytest.approx(1, abs=tolerance)


def test_two_layers_differ_and_reset_draws_again():
    a, b = sf.SymmetricConv2d(4, 16, 3, symmetry="hv"), sf.SymmetricConv2d(4, 16, 3, symmetry="hv")
    assert not torch.equal(a.weight, b.weight)
    before = a.weight.detach().clone()
    a.reset_parameters()
    assert not torch.equal(a.weight, before)


# --- checkpoints and copies ----------------------------------------------------------------------------------------


def published_filters(w: torch.Tensor) -> torch.Tensor:
    """h: 4, v: 2, hv: 8 of 16 filters, written out channel by channel in the published order."""
    # rows: 0, 1 h | 2 v | 3, 4 hv | 5, 6 free
    channels = [w[i] for i in range(7)]
    channels += [w[0].flip(2), w[1].flip(2)]
    channels += [w[2].flip(1)]
    channels += [
        w[3].flip(2),
        w[4].flip(2),
        w[3].flip(1),
        w[4].flip(1),
        w[3].flip(1).flip(2),
        w[4].flip(1).flip(2),
    ]
    return torch.stack(channels)


def test_published_checkpoint_loads_and_gives_the_same_outputs():
    state = {"weight": torch.randn(7, 3, 3, 5, **F64), "bias": torch.randn(16, **F64)}
    layer = sf.SymmetricConv2d(3, 16, (3, 5), padding=1, symmetry={"h": 4, "v": 2, "hv": 8}, **F64)
    assert layer.unique_out_channels == 7
    assert str(layer.load_state_dict(state)) == "<All keys matched successfully>"
    x = torch.randn(2, 3, 6, 7, **F64)
    torch.testing.assert_close(
        layer(x), F.conv2d(x, published_filters(state["weight"]), state["bias"], padding=1)
    )


def test_published_checkpoint_in_three_dims():
    state = {"weight": torch.randn(2, 2, 3, 3, 3, **F64), "bias": torch.randn(16, **F64)}
    layer = sf.SymmetricConv3d(2, 16, 3, symmetry="hvz", **F64)
    layer.load_state_dict(state)
    flips = [(), (4,), (3,), (2,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]  # W, H, D, DH, DW, HW, DHW
    filters = torch.cat([state["weight"].flip(dims) if dims else state["weight"] for dims in flips])
    x = torch.randn(2, 2, 5, 4, 6, **F64)
    torch.testing.assert_close(layer(x), F.conv3d(x, filters, state["bias"]))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("cls", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
def test_copies(cls, how):
    layer = cls(4, 16, 3, stride=2, groups=2, symmetry={"h": 4, "hv": "50%"}, share_bias=True)
    if how == "deepcopy":
        other = copy.deepcopy(layer)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    x = torch.randn(2, 4, 7, 7)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x), layer(x))
    assert other.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize("name", ["symmetry", "ties"])
@pytest.mark.parametrize("cls", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
def test_ties_cannot_be_assigned(cls, name):
    """The weight is made for them; `symmetry` would no longer say what the layer computes."""
    layer = cls(4, 16, 3, symmetry="hv")
    before, x = getattr(layer, name), torch.randn(1, 4, 5, 5)
    y = layer(x)
    for value in (getattr(cls(4, 16, 3, symmetry="h"), name), before):
        with pytest.raises(
            AttributeError, match=rf"{cls.__name__}\.{name} is read-only.*{cls.__name__}\.from_conv\("
        ):
            setattr(layer, name, value)
    with pytest.raises(AttributeError):
        delattr(layer, name)
    for other in (layer, copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert getattr(other, name) == before
        assert torch.equal(other(x), y)


def test_the_switch_of_the_package_can_be_found():
    assert "allow_winograd" in dir(sf)
    assert {"SymmetricConv2d", "explain", "__version__"} <= set(dir(sf))


def test_state_dict_saves_and_loads_with_weights_only():
    layer, other = (sf.SymmetricConv2d(4, 16, 3, symmetry="hv") for _ in range(2))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.weight, layer.weight)


# --- from and to ordinary layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share_bias", [False, True])
@pytest.mark.parametrize("cls", [sf.SymmetricConv2d, sf.SymmetricConvTranspose2d])
def test_from_conv_undoes_to_conv(cls, share_bias):
    layer = cls(
        4, 16, (3, 2), 2, 1, groups=2, dilation=2, symmetry={"h": 4, "v": 4}, share_bias=share_bias, **F64
    )
    layer.weight.requires_grad_(False)
    conv = layer.eval().to_conv()
    assert type(conv) is (nn.ConvTranspose2d if conv.transposed else nn.Conv2d)
    assert not conv.weight.requires_grad
    assert conv.bias.requires_grad
    assert not conv.training
    back = cls.from_conv(conv, {"h": 4, "v": 4}, share_bias=share_bias)
    assert repr(back) == repr(layer)
    assert not back.training
    assert not back.weight.requires_grad
    torch.testing.assert_close(back.weight, layer.weight)
    torch.testing.assert_close(back.bias, layer.bias)


def test_from_conv_is_the_nearest_tied_layer():
    conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", bias=False, **F64)
    layer = sf.SymmetricConv2d.from_conv(conv, "hv")
    assert (layer.padding, layer.padding_mode, layer.bias, layer.weight.dtype) == (
        (1, 1),
        "reflect",
        None,
        torch.float64,
    )
    # Gradient descent in the reduced weight cannot come nearer.
    distance = (layer.expanded_weight() - conv.weight).pow(2).sum()
    gradient = torch.autograd.grad(distance, layer.weight)[0]
    assert gradient.abs().max() < 1e-12
    assert distance > 0.01
    layer.weight.data.add_(1)
    assert not torch.equal(layer.weight, conv.weight[:2])


def test_from_conv_refuses_other_layers():
    with pytest.raises(TypeError, match="needs an ordinary Conv2d, got Conv1d"):
        sf.SymmetricConv2d.from_conv(nn.Conv1d(2, 4, 3), "h")
    with pytest.raises(TypeError, match="got SymmetricConv2d"):
        sf.SymmetricConv2d.from_conv(sf.SymmetricConv2d(2, 4, 3), "h")
    with pytest.raises(ValueError, match="nearest valid: 0 and 4"):
        sf.SymmetricConv2d.from_conv(nn.Conv2d(2, 4, 3), {"hv": 3})


# --- symmetry of the outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["h", "v", "z", "hv", "hz", "vz", "hvz"])
def test_mirrored_input_gives_mirrored_and_exchanged_outputs(key):
    """The members of an orbit change places as the reflections multiply: g of J_a x is the mirror of (g xor a) of x."""
    layer = sf.SymmetricConv3d(2, 16, (3, 2, 3), padding=1, symmetry=key, share_bias=True, **F64)
    x = torch.randn(2, 2, 4, 5, 6, **F64)
    y = layer(x)
    place = {pair: channel for channel, pair in enumerate(layer.ties.channel_map)}
    tied = sum({"h": 1, "v": 2, "z": 4}[c] for c in key)
    for axes in range(1, 8):
        if axes & ~tied:
            continue
        dims = [-1 - bit for bit in range(3) if axes >> bit & 1]
        mirrored = layer(x.flip(dims))
        partner = [place[row, member ^ axes] for row, member in layer.ties.channel_map]
        torch.testing.assert_close(mirrored, y[:, partner].flip(dims))
        assert not torch.allclose(mirrored, y.flip(dims))


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
def test_a_network_trains_in_train_and_eval_mode(autocast):
    """Torch's own machinery around the layers: batch norm, optimiser, weight decay, autocast, clipping, EMA copies."""
    net = nn.Sequential(
        sf.SymmetricConv2d(1, 8, 3, padding=1, symmetry="h"), nn.BatchNorm2d(8), nn.ReLU(),
        sf.SymmetricConv2d(8, 8, 3, stride=2, groups=2, symmetry={"hv": 8}, share_bias=True), nn.ReLU(),
        sf.SymmetricConvTranspose2d(8, 4, 2, symmetry="v"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    x, target = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    x[target == 1, :, 4:] += 1.0
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.02)
    average = torch.optim.swa_utils.AveragedModel(net)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(net(x).float(), target)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(net)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert net(x).isfinite().all()
        assert average(x).isfinite().all()


def test_parametrizations_and_hooks_of_torch_work():
    layer = nn.utils.parametrizations.weight_norm(sf.SymmetricConv2d(2, 8, 3, symmetry="hv"))
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    y = layer(torch.randn(1, 2, 5, 5))
    y.sum().backward()
    assert seen == [y.shape]
    assert layer.parametrizations.weight.original1.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["parametrized", "pruned", "attribute"])
def test_a_weight_that_is_no_parameter(kind: str) -> None:
    """Normalised, pruned or set by hand: the layer runs on what `layer.weight` is now."""
    layer, x = sf.SymmetricConv2d(3, 8, 3, symmetry="hv"), torch.randn(2, 3, 6, 6)
    for _ in range(2):
        layer(x)
    if kind == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data.mul_(2)
    elif kind == "pruned":
        prune.l1_unstructured(layer, "weight", amount=0.5)
    else:
        weight = layer.weight.detach() * 3
        del layer.weight
        layer.weight = weight
    for _ in range(2):
        y = layer(x)
        torch.testing.assert_close(y, F.conv2d(x, layer.ties.expand(layer.weight), layer.bias))
    if kind != "attribute":
        y.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
