# Layers with ties on both sides: what they are, their conversion, and what tools of torch do with them.

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from test_sides_layers import LAYERS, RC, D, even, regular
from torch import nn
from torch.fx import symbolic_trace

import symconv_fast as sf
from symconv_fast import SymmetryWarning, channels, functional, guards
from symconv_fast.conversion.matching import random_loss
from symconv_fast.ties import Ties

# --- conversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "spec", [("hv", "hv"), ("h+v-", "h"), ("h-", None), ("h", {"h": (1, 0, 3, 2, 4, 5, 6, 7)})]
)
def test_from_conv_is_the_nearest(spec, transposed):
    cls = sf.SymmetricConvTranspose2d if transposed else sf.SymmetricConv2d
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 12, 3, bias="-" not in spec[0], **D)
    with pytest.warns(SymmetryWarning, match="lost"):
        layer = cls.from_conv(conv, spec[0], input_symmetry=spec[1])
    weight = layer.weight.detach().clone().requires_grad_()
    distance = (layer.ties.expand(weight, int(transposed)) - conv.weight.detach()).square().sum()
    (slope,) = torch.autograd.grad(distance, weight)
    assert slope.abs().max() < 1e-12
    again = cls.from_conv(layer.to_conv(), spec[0], input_symmetry=spec[1])
    torch.testing.assert_close(again.weight, layer.weight)
    assert again.input_symmetry == layer.input_symmetry


def test_a_layer_from_the_ties_of_another():
    first = sf.SymmetricConv2d(4, 8, 3, groups=2, symmetry="h", **D)  # orbits inside of groups
    layer = sf.SymmetricConv2d(8, 4, 3, symmetry="h", input_symmetry=first.ties, **D)
    assert layer.ties.sides.inputs.partners(1) == (2, 3, 0, 1, 6, 7, 4, 5)
    torch.testing.assert_close(
        layer.expanded_weight()[2:], layer.weight.flip(-1)[:, [2, 3, 0, 1, 6, 7, 4, 5]]
    )
    same = {"h": torch.tensor([2, 3, 0, 1, 6, 7, 4, 5])}
    other = sf.SymmetricConv2d(8, 4, 3, symmetry="h", input_symmetry=same, **D)
    torch.testing.assert_close(other.ties.expand(layer.weight), layer.expanded_weight())


def test_convert_finds_orbits_alone():
    net = nn.Sequential(nn.Conv2d(16, 16, 3))
    for wish in ("h+", {"h-": 4}, lambda name, conv: "h+v-"):
        with pytest.raises(
            ValueError, match=r"self-symmetric filters, but convert finds orbits .* from_conv"
        ):
            sf.convert(net, wish)
    with pytest.raises(ValueError, match="its mirrors move input channels; give those of a layer without"):
        random_loss((12, 8, 3, 3), regular().ties)


@pytest.mark.parametrize("make", LAYERS)
def test_to_torch_and_the_guards(make):
    net = nn.Sequential(make(), nn.ReLU())
    x = torch.randn(2, 8, 6, 6, **D)
    plain = sf.to_torch(net)
    assert type(plain[0]) is nn.Conv2d
    torch.testing.assert_close(plain(x), net(x))
    with pytest.raises(TypeError, match="to_torch"):
        guards.check("a tool", net[0])


def test_spaces_leave_the_input_of_such_layers():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), sf.SymmetricConv2d(8, 8, 3, symmetry="h", input_symmetry="h")
    )
    fixed = {space.producers[0]: space.fixed for space in channels.find_spaces(net).spaces}
    assert "mirrors move the input channels of 2" in str(fixed["0"])


# --- what it is ------------------------------------------------------------------------------------------------------


def test_repr():
    assert "symmetry='hv', input_symmetry='hv', unique_out_channels=3)" in repr(regular())
    assert "symmetry='h+v+', input_symmetry='h', unique_out_channels=5)" in repr(even())
    layer = sf.SymmetricConv1d(4, 4, 3, symmetry="h", input_symmetry=RC)
    assert "input_symmetry={'h': (3, 2, 1, 0)}" in repr(layer)
    after = sf.SymmetricConv2d(12, 4, 3, symmetry="h", input_symmetry=regular().ties)
    assert "input_symmetry={'hv': 12}" in repr(after)
    for name in ("symmetry", "input_symmetry", "ties"):
        with pytest.raises(AttributeError, match="read-only"):
            setattr(layer, name, None)


@pytest.mark.parametrize("make", LAYERS)
def test_copies(make):
    layer, x = make(), torch.randn(1, 8, 5, 5, **D)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    others = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False))
    for other in others:
        assert other.ties == layer.ties
        assert repr(other) == repr(layer)
        assert torch.equal(other(x), layer(x))


def test_ties_of_earlier_pickles():
    old = Ties.__new__(Ties)
    made = sf.Symmetry("h").resolve(2, 4)
    old.__setstate__(
        [made.ndim, made.groups, made.segments, made.unique, made.out_channels, made.flat, made._blocks]
    )
    assert old == made
    assert old.sides is None


@pytest.mark.parametrize("make", LAYERS)
def test_state_dicts_know_the_input(make):
    layer, file = make(), io.BytesIO()
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"]
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    make().load_state_dict(loaded)
    other = {"h": (1, 0, 3, 2, 5, 4, 7, 6)} | ({"v": (2, 3, 0, 1, 6, 7, 4, 5)} if make is regular else {})
    with pytest.raises(
        RuntimeError, match=r"input_symmetry=.* checkpoint is of a layer with symmetry=.* and input"
    ):
        make(input_symmetry=other).load_state_dict(loaded)
    make(input_symmetry=other).load_state_dict(dict(loaded))
    assert "input_symmetry" not in sf.SymmetricConv2d(8, 4, 3, symmetry="h").state_dict()._metadata[""]


def test_initialisation():
    torch.manual_seed(0)
    layer = sf.SymmetricConv2d(256, 64, 5, symmetry="h+v+", input_symmetry="hv", bias=False)
    assert sf.init.calculate_fans(layer) == (256 * 25, 64 * 25)
    bound = (256 * 25) ** -0.5
    assert 0.98 * bound < layer.weight.abs().max() <= bound
    sf.init.kaiming_normal_(layer, nonlinearity="linear")
    assert abs(layer.weight.std() * 80 - 1) < 0.02
    with pytest.raises(ValueError, match="self-symmetric"):
        sf.init.orthogonal_(layer)


# --- torch's tools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS)
def test_autocast_and_channels_last(make):
    layer, x = make(dtype=torch.float32), torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("make", LAYERS)
def test_vmap_and_per_sample_gradients(make):
    layer = make(bias=False)
    x, ws = torch.randn(3, 2, 8, 5, 5, **D), torch.randn(3, *layer.weight.shape, **D)

    def call(w, x):
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    found = torch.vmap(call)(ws, x)
    torch.testing.assert_close(found, torch.stack([call(w, one) for w, one in zip(ws, x)]))
    grads = torch.vmap(torch.func.grad(lambda w, x: call(w, x).square().sum()), (None, 0))(layer.weight, x)
    for one, grad in zip(x, grads):
        (expected,) = torch.autograd.grad(call(layer.weight, one).square().sum(), layer.weight)
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("make", LAYERS)
def test_compile(make):
    torch._dynamo.reset()
    layer, x = make(), torch.randn(2, 8, 6, 6, **D, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    gy = torch.randn_like(layer(x))
    inputs = [x, layer.weight]
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x), inputs, gy), torch.autograd.grad(layer(x), inputs, gy)
    )


def test_compiled_functions():
    torch._dynamo.reset()
    x, w = torch.randn(2, 8, 6, 6, **D), torch.randn(3, 8, 3, 3, **D)

    def call(x, w):
        return functional.symmetric_conv2d(x, w, symmetry="h", input_symmetry="h")

    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(x, w), call(x, w))


@pytest.mark.parametrize("make", LAYERS)
def test_export_and_decomposition(make):
    layer, x = make(), torch.randn(2, 8, 6, 6, **D)
    program = torch.export.export(nn.Sequential(layer), (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    from symconv_fast.export import DECOMPOSITIONS

    plain = program.run_decompositions(DECOMPOSITIONS)
    assert not any("symconv" in str(node.target) for node in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(x), layer(x))


def scattered_pairs(channels: int) -> tuple[int, ...]:
    """An involution of channels that no few slices make."""
    order, table = torch.randperm(channels).tolist(), [0] * channels
    for a, b in zip(order[::2], order[1::2]):
        table[a], table[b] = b, a
    return tuple(table)


@pytest.mark.parametrize("key", ["h", "h-"])
def test_export_of_a_table_of_many_runs(key):
    table = scattered_pairs(64)
    layer = sf.SymmetricConv1d(64, 4, 3, symmetry=key, input_symmetry={"h": table}, bias=False, **D)
    w, filters, x = layer.weight, layer.expanded_weight(), torch.randn(1, 64, 6, **D)
    if key == "h":
        assert torch.equal(filters[2:], w.flip(-1)[:, list(table)])
    else:
        assert torch.equal(filters[:, list(table)], -filters.flip(-1))
    program = torch.export.export(layer, (x,))
    from symconv_fast.export import DECOMPOSITIONS

    torch.testing.assert_close(program.run_decompositions(DECOMPOSITIONS).module()(x), layer(x))


@pytest.mark.parametrize("make", LAYERS)
def test_fx(make):
    layer, x = make(), torch.randn(2, 8, 6, 6, **D)
    net = nn.Sequential(layer, nn.ReLU())
    traced = symbolic_trace(net)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    torch.testing.assert_close(traced(x), net(x))
    whole = symbolic_trace(layer)  # the layer itself is traced through, and its code names all of the tie
    torch.testing.assert_close(whole(x), layer(x))


@pytest.mark.parametrize("make", LAYERS)
def test_the_report_on_equivariance_takes_channels_and_signs(make):
    from symconv_fast.analysis import equivariance_report

    net = nn.Sequential(
        sf.SymmetricConv2d(3, 8, 3, padding=1, symmetry="hv", share_bias=True, **D),
        nn.ReLU(),
        make(share_bias=True, input_symmetry="hv"),
        sf.SymmetricConv2d(
            12 if make is regular else 5,
            4,
            3,
            symmetry="h-v-",
            bias=False,
            **D,
            input_symmetry="hv" if make is regular else None,
        ),
    )
    report = equivariance_report(net, 9, channels=3)
    assert report.exact
    for row in report.layers[:-1]:
        assert max(row.model["h"], row.model["v"]) < 1e-12, row.layer


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = even(bias=False), torch.randn(1, 8, 6, 6, **D)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * layer.weight.numel() * 36
