"""torch.fx: tied layers and functions are one node for every tracer, the default one and those of other libraries."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.utils import parametrizations, parametrize, prune

import symconv_fast as sf
from symconv_fast import functional as SF


class NoLeaves(fx.Tracer):
    """A tracer that goes into every module, those of torch too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class NodePaths(fx.Tracer):
    """What torchvision's feature extractor does: leaves by class, and each node named by the module it came from."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=())
        self.paths: list[str] = []
        self.current = ""

    def call_module(self, m: nn.Module, forward, args, kwargs):
        before, self.current = self.current, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.current = before

    def create_proxy(self, kind, target, *args, **kwargs):
        proxy = super().create_proxy(kind, target, *args, **kwargs)
        self.paths.append(self.current if kind == "call_module" else f"{self.current}.{proxy.node.name}")
        return proxy


TRACERS = [fx.Tracer, NoLeaves, NodePaths]

LAYERS = {
    "1d": lambda: (sf.SymmetricConv1d(4, 8, 3, padding=1, symmetry="h"), (2, 4, 9)),
    "mixture": lambda: (sf.SymmetricConv2d(4, 16, 3, 2, groups=2, symmetry={"h": 4, "hv": 8}), (2, 4, 9, 8)),
    "shared bias": lambda: (sf.SymmetricConv2d(4, 8, 3, symmetry="hv", share_bias=True), (2, 4, 6, 7)),
    "circular": lambda: (
        sf.SymmetricConv2d(4, 8, 3, padding="same", padding_mode="circular", symmetry={"v": "50%"}, bias=False),
        (2, 4, 6, 7),
    ),
    "3d": lambda: (sf.SymmetricConv3d(2, 16, 3, symmetry="hvz"), (2, 2, 4, 5, 4)),
    "transposed": lambda: (
        sf.SymmetricConvTranspose2d(4, 8, 3, 2, output_padding=1, groups=2, symmetry={"h": 4}),
        (2, 4, 5, 4),
    ),
}  # fmt: skip


def trace(module: nn.Module, tracer: type[fx.Tracer] = fx.Tracer) -> fx.GraphModule:
    return fx.GraphModule(module, tracer().trace(module))


def kinds(graph_module: fx.GraphModule) -> list[tuple[str, object]]:
    return [(node.op, node.target) for node in graph_module.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_a_model_is_one_call_of_the_layer(name: str, tracer: type[fx.Tracer]) -> None:
    layer, shape = LAYERS[name]()
    net = nn.Sequential(layer, nn.Identity())
    traced, x = trace(net, tracer), torch.randn(shape)
    assert kinds(traced)[0] == ("call_module", "0")
    traced.graph.lint()
    assert torch.equal(traced(x), net(x))


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "transposed"])
def test_a_layer_by_itself_is_a_call_of_the_function(name: str, tracer: type[fx.Tracer]) -> None:
    layer, shape = LAYERS[name]()
    traced, x = trace(layer, tracer), torch.randn(shape)
    target = getattr(SF, f"symmetric_conv{len(shape) - 2}d")
    assert kinds(traced)[-1] == ("call_function", target)
    assert torch.equal(traced(x), layer(x))
    loss = traced(x).sum()
    assert torch.autograd.grad(loss, layer.weight)[0].abs().max() > 0, (
        "the weight must stay the layer's parameter"
    )


def test_a_transposed_layer_by_itself_with_a_known_output_size() -> None:
    layer, shape = LAYERS["transposed"]()
    traced, x = fx.symbolic_trace(layer, concrete_args={"output_size": None}), torch.randn(shape)
    assert kinds(traced)[-1] == ("call_function", SF.symmetric_conv_transpose2d)
    assert torch.equal(traced(x), layer(x))


def test_the_output_size_of_a_transposed_layer_is_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = sf.SymmetricConvTranspose2d(4, 8, 3, 2, symmetry="hv")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x, output_size=[12, 10])

    net, x = Net(), torch.randn(2, 4, 5, 4)
    for tracer in TRACERS:
        y = trace(net, tracer)(x)
        assert y.shape == (2, 8, 12, 10)
        assert torch.equal(y, net(x))


def test_nodes_bear_the_names_of_their_layers() -> None:
    """What torchvision's and timm's extractors find features by."""
    net = nn.Sequential(nn.Sequential(sf.SymmetricConv2d(3, 8, 3, symmetry="h"), nn.ReLU()))
    tracer = NodePaths()
    tracer.trace(net)
    assert tracer.paths == [".input_1", "0.0", "0.1"]


class Doubled(sf.SymmetricConv2d):
    """What a forward of its own adds must be traced once."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * input)


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_subclass_with_its_own_forward_is_traced_through(tracer: type[fx.Tracer]) -> None:
    net, x = nn.Sequential(Doubled(3, 8, 3, symmetry="hv")), torch.randn(1, 3, 6, 6)
    traced = trace(net, tracer)
    assert ("call_function", SF.symmetric_conv2d) in kinds(traced)
    torch.testing.assert_close(traced(x), net(x))


@pytest.mark.parametrize("tracer", TRACERS)
def test_hooks_act_once(tracer: type[fx.Tracer]) -> None:
    net, x = nn.Sequential(sf.SymmetricConv2d(3, 8, 3, symmetry="hv"), nn.ReLU()), torch.randn(1, 3, 6, 6)
    net[0].register_forward_pre_hook(lambda module, args: (3 * args[0],))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    traced = trace(net, tracer)
    expected = net(x)
    net[0]._forward_pre_hooks.clear()
    assert not torch.allclose(net(x), expected), "the hook must matter"
    torch.testing.assert_close(traced(x), expected)


def test_parametrized_layers_are_leaves_of_the_default_tracer_and_refused_elsewhere() -> None:
    net, x = nn.Sequential(sf.SymmetricConv2d(3, 8, 3, symmetry="hv")), torch.randn(1, 3, 6, 6)
    parametrizations.weight_norm(net[0])
    traced = trace(net)
    assert kinds(traced) == [("call_module", "0")]
    assert torch.equal(traced(x), net(x))
    assert torch.equal(trace(net, NoLeaves)(x), net(x))
    with pytest.raises(TypeError, match=r"weight is computed .* symconv_fast\.to_torch\(model\)"):
        trace(net[0], NoLeaves)
    parametrize.remove_parametrizations(net[0], "weight")
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    with pytest.raises(TypeError, match=r"prune\.remove"):
        trace(net, NoLeaves)
    prune.remove(net[0], "weight")
    assert torch.equal(trace(net, NoLeaves)(x), net(x))


@pytest.mark.parametrize(
    "symmetry", ["h", {"h": 4}, sf.Symmetry("h"), sf.Symmetry({"h": 4}).resolve(2, 4), None], ids=str
)
def test_functions_are_one_node(symmetry) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2 if symmetry else 4, 3, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return SF.symmetric_conv2d(x, self.weight, padding=1, symmetry=symmetry, activation="relu")

    net, x = Net(), torch.randn(1, 3, 5, 5)
    traced = fx.symbolic_trace(net)
    assert kinds(traced) == [("call_function", SF.symmetric_conv2d)]
    y = traced(x)
    assert y.shape == (1, 4, 5, 5)
    assert torch.equal(y, net(x))


def test_prepare_fx_leaves_tied_layers_in_floating_point() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), sf.SymmetricConv2d(4, 8, 3, symmetry="hv"), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
    ).eval()
    x = torch.randn(2, 3, 6, 6)
    prepared = prepare_fx(net, get_default_qconfig_mapping(), (x,))
    prepared(x)
    quantized = convert_fx(prepared)
    assert type(quantized.get_submodule("1")) is sf.SymmetricConv2d
    assert (quantized(x) - net(x)).abs().max() < 0.1 * net(x).abs().max()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_prepare_fx_leaves_transposed_layers_too(n: int) -> None:
    """torch checks the observers of every transposed layer, though it would not quantize this one."""
    layer = getattr(sf, f"SymmetricConvTranspose{n}d")(4, 8, 3, symmetry="h")
    net, x = nn.Sequential(layer).eval(), torch.randn(2, 4, *[6] * n)
    prepared = prepare_fx(net, get_default_qconfig_mapping("fbgemm"), (x,))
    prepared(x)
    assert torch.equal(convert_fx(prepared)(x), net(x))
