"""torch.compile and torch.export: one graph, no recompilation for a repeated shape, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import symconv_fast as sf
from symconv_fast import functional as SF


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Each test counts its own compilations."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


LAYERS = {
    "1d": (lambda: sf.SymmetricConv1d(4, 8, 3, padding=1, symmetry="h"), (2, 4, 9)),
    "2d": (lambda: sf.SymmetricConv2d(4, 8, 3, padding=1, symmetry={"h": 4, "v": 2}), (2, 4, 6, 7)),
    "2d groups shared bias": (
        lambda: sf.SymmetricConv2d(4, 16, 3, 2, groups=2, symmetry="hv", share_bias=True),
        (2, 4, 9, 8),
    ),
    "2d circular same": (
        lambda: sf.SymmetricConv2d(4, 8, 4, padding="same", padding_mode="circular", symmetry="hv"),
        (2, 4, 6, 7),
    ),
    "2d even same": (
        lambda: sf.SymmetricConv2d(4, 8, 4, padding="same", symmetry="hv", bias=False),
        (2, 4, 6, 7),
    ),
    "2d unbatched": (lambda: sf.SymmetricConv2d(4, 8, 3, symmetry={"h": "50%"}), (4, 6, 7)),
    "3d": (lambda: sf.SymmetricConv3d(2, 16, 3, symmetry="hvz"), (2, 2, 4, 5, 4)),
    "transposed": (lambda: sf.SymmetricConvTranspose2d(4, 8, 3, stride=2, symmetry="hv"), (2, 4, 5, 4)),
}


def step(function, layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for u, v in zip(a, b):
        torch.testing.assert_close(u, v)
        assert u.stride() == v.stride()


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [
        (name, last)
        for name, (_, shape) in LAYERS.items()
        for last in (False, True)
        if not last or len(shape) > 3
    ],
)
def test_one_graph_forward_and_backward_without_recompilation(name, channels_last):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    expected = step(layer, layer, x)
    for _ in range(3):
        assert_same(step(compiled, layer, x), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "symmetry",
    [None, "hv", {"hv": 8}, {"h": "50%"}, sf.Symmetry({"hv": 4}), sf.Symmetry("h").resolve(2, 8)],
    ids=str,
)
def test_functions_with_any_form_of_symmetry(symmetry):
    counter = CompileCounterWithBackend("aot_eager")
    weight = torch.randn(4, 4, 3, 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        return SF.symmetric_conv2d(x, weight, padding=1, symmetry=symmetry)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for scale in (1, 2):
        x = scale * torch.randn(2, 4, 6, 7)
        torch.testing.assert_close(compiled(x), function(x))
    assert counter.frame_count == 1


def test_the_graph_holds_our_operator_and_nothing_of_its_inside():
    graphs = []
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="hv")
    x = torch.randn(2, 4, 6, 7)
    torch.compile(layer, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)(
        x
    )
    calls = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert calls == ["symconv_fast.fprop.default"]


def test_dynamic_batch():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="hv")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for batch in (2, 3, 5, 7):
        x = torch.randn(batch, 4, 6, 7)
        assert_same(step(compiled, layer, x), step(layer, layer, x))
    assert counter.frame_count == 1


def test_autocast_inside_compile():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="hv")

    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    x = torch.randn(2, 4, 6, 7)
    y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, function(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_autograd_over_eager_layers(dynamic):
    """It traces the nodes that native code left in the graph, once for graphs that are alike."""
    net = nn.Sequential(
        sf.SymmetricConv2d(2, 8, 3, padding=1, symmetry="hv"),
        sf.SymmetricConvTranspose2d(8, 4, 3, stride=2, symmetry="h"),
        sf.SymmetricConv2d(4, 4, 3, symmetry=None, bias=False),
    )
    counter = CompileCounterWithBackend("aot_eager")
    for batch in (2, 2, 3, 5) if dynamic else (2, 2):
        x = torch.randn(batch, 2, 6, 5)
        expected = step(net, net, x)
        x.requires_grad_()
        y = net(x)
        net.zero_grad()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend=counter, dynamic=dynamic)):
            y.sin().sum().backward()
        assert_same([y.detach(), x.grad, *(p.grad for p in net.parameters())], expected)
    assert counter.frame_count == 1 + dynamic  # a size that changes is a symbol from its second value on


ALIKE = {
    "h": {"padding": 1, "symmetry": "h"},
    "v": {"padding": 1, "symmetry": "v"},
    "dilated": {"padding": 2, "dilation": 2, "symmetry": "v"},
}


def test_compiled_autograd_tells_layers_apart_whose_tensors_have_the_same_sizes():
    """By ties and geometry, by where channels lie, and by the gradients that are wanted."""
    layers = [sf.SymmetricConv2d(2, 8, 3, **options) for options in ALIKE.values()]
    compiled = torch.compile(backend="aot_eager", dynamic=False)
    for form in (torch.contiguous_format, torch.channels_last):
        for layer in layers:
            x = torch.randn(2, 2, 6, 5).contiguous(memory_format=form).requires_grad_()
            every = [x, *layer.parameters()]
            for wanted in (every, [x], [layer.weight])[: 3 if layer is layers[0] else 1]:
                loss = layer(x).sin().sum()
                expected = torch.autograd.grad(loss, wanted, retain_graph=True)
                with torch._dynamo.compiled_autograd._enable(compiled):
                    assert_same(torch.autograd.grad(loss, wanted), expected)


@pytest.mark.parametrize("frozen", ["weight", "input", "weight and bias"])
def test_compiled_autograd_of_tensors_that_want_no_gradient(frozen):
    """What the other one's gradient alone is made of was not even kept."""
    layer, x = (
        sf.SymmetricConv2d(2, 8, 3, padding=1, symmetry="h"),
        torch.randn(2, 2, 6, 5, requires_grad=True),
    )
    tensors = {"input": x, "weight": layer.weight, "bias": layer.bias}
    for name in frozen.split(" and "):
        tensors.pop(name).requires_grad_(False)
    loss = layer(x).sin().sum()
    expected = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", dynamic=False)):
        assert_same(torch.autograd.grad(loss, list(tensors.values())), expected)


def test_inductor_trains_a_network():
    net = nn.Sequential(
        sf.SymmetricConv2d(1, 8, 3, padding=1, symmetry={"h": 4}),
        nn.ReLU(),
        sf.SymmetricConv2d(8, 4, 3, symmetry="hv"),
    )
    x = torch.randn(2, 1, 8, 8)
    compiled = torch.compile(net, fullgraph=True)
    for _ in range(2):
        assert_same(step(compiled, net, x), step(net, net, x))


def test_dispatch_is_at_run_time():
    """The operator is opaque: a pin around the call holds in code that was compiled without it."""
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="hv")
    x = torch.randn(2, 4, 6, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    with sf.backend("reference"):
        torch.testing.assert_close(compiled(x), y)
    asked = []
    choose = sf.dispatch.choose
    sf.ops.forget_plans()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sf.dispatch, "choose", lambda *args: asked.append(sf.dispatch.pinned()) or choose(*args)
        )
        with sf.backend("reference"):
            compiled(x)
    assert [pin.name for pin in asked] == ["reference"]


@pytest.mark.parametrize("name", ["2d", "3d", "transposed"])
def test_export(name):
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    assert any("symconv_fast.fprop" in str(node.target) for node in program.graph.nodes)


def test_export_with_dynamic_sizes():
    layer = sf.SymmetricConv2d(4, 8, 3, padding=1, symmetry="hv")
    n, h = torch.export.Dim("n", min=1, max=64), torch.export.Dim("h", min=4, max=64)
    program = torch.export.export(layer, (torch.randn(2, 4, 6, 7),), dynamic_shapes=({0: n, 2: h},))
    for shape in ((2, 4, 6, 7), (5, 4, 9, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(
    ("name", "value"), [("padding", (2, 0)), ("padding", "valid"), ("dilation", (2, 1)), ("bias", None)]
)
def test_compiled_layers_follow_their_attributes(name, value):
    layer = sf.SymmetricConv2d(4, 8, 3, padding=1, symmetry="h")
    x = torch.randn(2, 4, 7, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    before = layer(x)
    setattr(layer, name, value)
    after = layer(x)
    assert after.shape != before.shape or not torch.equal(after, before)
    torch.testing.assert_close(compiled(x), after)


def test_compiled_layers_refuse_what_eager_ones_refuse():
    layer = sf.SymmetricConv2d(4, 8, 3, symmetry="h")
    compiled = torch.compile(layer, backend="eager")
    for wrong in (torch.randn(2, 5, 7, 6), torch.randn(2, 4, 7, 6, dtype=torch.float64), torch.randn(7, 6)):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            compiled(wrong)


def guards(layer, x):
    """How much torch.compile checks before each call."""
    counts = []

    def keep_all(entries):
        counts.append(len(entries))
        return [True] * len(entries)

    torch.compile(layer, options={"guard_filter_fn": keep_all})(x)
    return counts[-1]


@pytest.mark.parametrize(
    ("cls", "torchs"), [(sf.SymmetricConv2d, nn.Conv2d), (sf.SymmetricConvTranspose2d, nn.ConvTranspose2d)]
)
def test_compiled_layers_check_little_more_than_torchs(cls, torchs):
    x = torch.randn(1, 16, 8, 8)
    ours = guards(cls(16, 16, 3, padding=1, symmetry="h"), x)
    torch._dynamo.reset()
    assert ours <= guards(torchs(16, 16, 3, padding=1), x) + 16, f"{ours} guards"
