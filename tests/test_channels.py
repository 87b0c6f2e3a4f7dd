"""Spaces of channels: what is free can be permuted without a trace in the outputs, and what is not says why."""

from __future__ import annotations

import copy
import os
import pickle
import random

import pytest
import random_nets
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

import symconv_fast as sf
from symconv_fast.channels import Space, Spaces, find_spaces
from symconv_fast.channels_constraints import Constraints

FUZZ = int(os.environ.get("SYMCONV_FAST_FUZZ", "30"))


def free_of(spaces: Spaces) -> list[Space]:
    return [space for space in spaces.spaces if space.fixed is None]


def shuffled(model: nn.Module, spaces: Spaces | None = None) -> nn.Module:
    """A copy with every free space in a random order that is not its own."""
    spaces = spaces or find_spaces(model)
    orders = {space: torch.randperm(space.size) for space in free_of(spaces)}
    for space, order in orders.items():
        if space.size > 1 and torch.equal(order, torch.arange(space.size)):
            orders[space] = order.roll(1)
    other = copy.deepcopy(model)
    spaces.permute(other, orders)
    return other


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = model(x)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def difference(a: Tensor, b: Tensor, least: float = 1e-5) -> float:
    """Relative, but for what is zero up to rounding: below `least`."""
    return float(((a - b).abs().max() / a.abs().max().clamp_min(least)).detach())


def assert_same(
    model: nn.Module, other: nn.Module, x: Tensor, tolerance: float = 1e-12, least: float = 1e-5
) -> None:
    """Outputs and input gradients in eval and in training mode, running statistics put back."""
    for training in (False, True):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        results = []
        for net, value in zip((model, other), inputs):
            torch.manual_seed(1)
            found = outputs(net.train(training), value)
            weights = [torch.randn(y.shape, dtype=y.dtype) for y in found]
            sum(((y * w).sum() for y, w in zip(found, weights)), torch.zeros(())).backward()
            results.append(found)
        for a, b in zip(*results):
            assert difference(a, b) < tolerance
        assert difference(inputs[0].grad, inputs[1].grad, least) < tolerance
        for net in (model, other):
            net.zero_grad()


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


# --- known architectures -------------------------------------------------------------------------------------------

# Larger than need be: batch norm over two positions has no gradient to speak of, which leaves rounding alone.
LARGE = {
    name: shape if name == "unet3d" else (4, shape[1], *(2 * s for s in shape[2:]))
    for name, (_, shape) in zoo.INPUTS.items()
}

FREE = {
    # The stem with the first stage, two inner spaces of a stage, one stream for each later stage.
    "resnet18": 12,
    "vgg16_bn": 15,
    "mobilenet_v2": 25,
    # The stem, two convolutions a layer of a block, and the transitions.
    "densenet121": 1 + 2 * 58 + 3,
    "unet": 22,
    "unet3d": 17,
    "se_resnet18": 20,
    "se_resnet18_linear": 20,
}


@pytest.mark.parametrize("name", zoo.INPUTS)
def test_known_networks_are_free_but_for_their_output(name: str) -> None:
    model = zoo.INPUTS[name][0]()
    spaces = find_spaces(model)
    fixed = [space for space in spaces.spaces if space.fixed is not None]
    assert spaces.error is None
    assert len(free_of(spaces)) == FREE[name]
    last = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))][-1]
    assert [(space.producers, space.fixed) for space in fixed] == [((last,), "model output")]
    made = [n for space in spaces.spaces for n in space.producers]
    assert len(made) == len(set(made))
    for n, m in model.named_modules():
        if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)):
            assert spaces.of(n).size == (m.out_features if isinstance(m, nn.Linear) else m.out_channels)


@pytest.mark.parametrize("name", zoo.INPUTS)
def test_known_networks_permuted_compute_the_same(name: str) -> None:
    model = without_dropout(zoo.randomise_norms(zoo.INPUTS[name][0]())).double()
    other = shuffled(model)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert_same(model, other, torch.randn(LARGE[name], dtype=torch.float64), 3e-12)
    for a, b in zip(model.buffers(), other.buffers()):  # running statistics of the last call, permuted too
        assert torch.allclose(a.double().sort(0)[0], b.double().sort(0)[0], rtol=1e-9)


def test_spaces_of_resnet18() -> None:
    spaces = find_spaces(zoo.resnet18())
    stem, stage = spaces.of("conv1"), spaces.of("layer2.0.conv2")
    assert stem.producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    assert stage.producers == ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2")
    assert set(stage.readers) == {
        "layer2.0.bn2",
        "layer2.0.downsample.1",
        "layer2.1.conv1",
        "layer2.1.bn2",
        "layer3.0.conv1",
        "layer3.0.downsample.0",
    }
    inner = spaces.of("layer1.0.conv1")
    assert (inner.producers, inner.readers) == (("layer1.0.conv1",), ("layer1.0.bn1", "layer1.0.conv2"))
    assert spaces.of("layer4.1.conv2").readers[-1] == "fc"
    assert spaces.of("bn1") is stem


def test_spaces_of_depthwise_convolutions_are_those_of_their_inputs() -> None:
    spaces = find_spaces(zoo.mobilenet_v2())
    space = spaces.of("features.2.conv.1.0")
    assert space is spaces.of("features.2.conv.0.0")
    assert space.producers == ("features.2.conv.0.0",)
    assert "features.2.conv.1.0" in space.readers


def test_what_cannot_be_traced_is_fixed_with_the_reason() -> None:
    spaces = find_spaces(zoo.control_flow())
    assert spaces.error is not None
    assert spaces.error.startswith(
        "torch.fx cannot trace ControlFlow: TraceError: symbolically traced variables"
    )
    assert [space.fixed for space in spaces.spaces] == [spaces.error] * 3
    assert spaces.of("conv2").size == 4


# --- random networks -----------------------------------------------------------------------------------------------


def check_random(seed: int) -> tuple[int, int]:
    torch.manual_seed(seed)
    model, x = random_nets.draw(seed)
    spaces = find_spaces(model)
    assert spaces.error is None
    assert_same(model, shuffled(model, spaces), x, 1e-10, 1e-3)  # norms of constants have no gradient
    return len(free_of(spaces)), len(spaces.spaces)


def test_random_networks_permuted_compute_the_same() -> None:
    start = random.randrange(10**6) if "SYMCONV_FAST_FUZZ" in os.environ else 0
    counts = [check_random(seed) for seed in range(start, start + FUZZ)]
    free, total = map(sum, zip(*counts))
    assert free > total / 4, "too little is free for this to mean anything"


@pytest.mark.parametrize("name", ["fix", "unify"])
def test_random_networks_notice_a_constraint_that_is_missing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Constraints, name, lambda self, several, what: None)

    def check() -> None:
        for seed in range(20):
            check_random(seed)

    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check()


# --- what fixes an order -------------------------------------------------------------------------------------------


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(
        self, function=None, layer: nn.Module | None = None, channels: int = 4, after: int = 4
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.layer = layer
        self.second = nn.Conv2d(after, 3, 3, padding=1)
        self.function = function
        self.weight = nn.Parameter(torch.randn(channels, 1, 1))
        self.number = nn.Parameter(torch.randn(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.function is not None:
            x = self.function(self, x)
        elif self.layer is not None:
            x = self.layer(x)
        return self.second(x)


FIXING = {
    "group norm": (Between(layer=nn.GroupNorm(2, 4)), "GroupNorm layer"),
    "layer norm": (Between(layer=nn.LayerNorm((4, 6, 6))), "LayerNorm layer"),
    "local response": (Between(layer=nn.LocalResponseNorm(2)), "LocalResponseNorm layer"),
    "shuffle": (Between(layer=nn.PixelShuffle(2), after=1), "PixelShuffle layer"),
    "grouped": (Between(layer=nn.Conv2d(4, 4, 1, groups=2)), "grouped convolution layer"),
    "multiplied": (Between(layer=nn.Conv2d(4, 8, 1, groups=4), after=8), "grouped convolution layer"),
    "grouped up": (Between(layer=nn.ConvTranspose2d(4, 4, 1, groups=2)), "grouped convolution layer"),
    "permute": (Between(lambda m, x: x.permute(0, 1, 3, 2)), "operation permute"),
    "split": (Between(lambda m, x: torch.cat(x.split(2, 1), 1)), "operation split"),
    "chunk": (Between(lambda m, x: torch.cat(torch.chunk(x, 2, 1)[::-1], 1)), "operation chunk"),
    "channels": (Between(lambda m, x: x[:, 1:], after=3), "indexing of channels"),
    "last channels": (Between(lambda m, x: x[..., 1:, :, :], after=3), "indexing of channels"),
    "one sample": (Between(lambda m, x: x[0]), "indexing of channels"),
    "view": (Between(lambda m, x: x.view(-1, 4, 6, 6)), "view"),
    "flatten all": (
        Between(lambda m, x: x + x.flatten().sum()),
        "flatten of other dims than channels and positions",
    ),
    "mean of all": (Between(lambda m, x: x + x.mean()), "a reduction over all dims"),
    "mean of channels": (Between(lambda m, x: x + x.mean(1, keepdim=True)), "a reduction over channels"),
    "concatenated rows": (Between(lambda m, x: torch.cat([x, x], 2)), "concatenation along another dim"),
    "concatenated samples": (Between(lambda m, x: torch.cat([x, x])), "concatenation along another dim"),
    "parameter": (Between(lambda m, x: x * m.weight), "mul with combined with weight"),
    "own weight": (Between(lambda m, x: x + m.first.weight.sum()), "add with combined with first.weight"),
    "softmax": (Between(lambda m, x: x.softmax(1)), "operation softmax"),
    "padding": (Between(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 0)), after=5), "padding of channels"),
    "indices": (
        Between(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        "operation max_pool2d_with_indices",
    ),
    "data": (Between(lambda m, x: x.data + 0), "attribute data"),
    "other dims": (Between(lambda m, x: x + x.mean(2)), "add of tensors of other dims"),
    "linear": (Between(layer=nn.Linear(6, 6)), "Linear layer of 6 features"),
    "pool of rows": (Between(lambda m, x: F.max_pool1d(x[:, :, 0], 1)[:, :, None] + x[:, :, :, 0]), None),
}


@pytest.mark.parametrize("name", FIXING)
def test_operations_that_are_not_followed_fix_what_they_touch(name: str) -> None:
    model, why = FIXING[name]
    space = find_spaces(model).of("first")
    if why is None:
        assert space.fixed is not None
    else:
        assert space.fixed == why


def test_own_weight_fixes_its_layer_both_ways() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), Between(lambda m, x: x + m.second.weight.mean()))
    spaces = find_spaces(model)
    assert spaces.of("0").fixed is None
    assert spaces.of("1.first").fixed == "add with combined with 1.second.weight"


KEPT_FREE = {
    "depthwise": Between(layer=nn.Conv2d(4, 4, 3, padding=1, groups=4)),
    "instance norm": Between(layer=nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "prelu": Between(layer=nn.PReLU(4, init=0.3)),
    "upsample": Between(layer=nn.Upsample(scale_factor=2)),
    "pads": Between(layer=nn.ReflectionPad2d(1)),
    "one number": Between(lambda m, x: x * 2.0 + m.number),
    "gate of one channel": Between(lambda m, x: x * m.layer(x).sigmoid() + m.layer(x), nn.Conv2d(4, 1, 1)),
    "crop": Between(lambda m, x: x[:, :, 1:-1, ::2]),
    "pixels": Between(lambda m, x: x + x[:, :, 0, 0][:, :, None, None]),
    "view of sizes": Between(lambda m, x: x * x.mean((2, 3)).view(x.shape[0], x.shape[1], 1, 1)),
    "positions": Between(lambda m, x: x + x.flatten(2).mean(-1).unsqueeze(-1).unsqueeze(-1)),
    "half": Between(lambda m, x: x.float().to(x.dtype).contiguous(memory_format=torch.channels_last)),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT_FREE)
def test_operations_that_are_followed(name: str) -> None:
    model = zoo.randomise_norms(KEPT_FREE[name]).double()
    assert find_spaces(model).of("first").fixed is None
    tolerance = 1e-6 if name == "half" else 1e-12  # rounded to float32 between
    assert_same(model, shuffled(model), torch.randn(2, 2, 6, 6, dtype=torch.float64), tolerance)


def two_convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def fixed_of(model: nn.Module) -> list[str | None]:
    spaces = find_spaces(model)
    return [spaces.of(name).fixed for name in ("0", "2", "4")]


def test_hooks_see_the_order() -> None:
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        model = two_convs()
        getattr(model[2], register)(lambda *_: None)
        assert fixed_of(model) == ["hook on 2", "hook on 2", "model output"]
    model = two_convs()
    model[1].register_forward_hook(lambda *_: None)
    assert fixed_of(model) == ["hook on 1", None, "model output"]
    model = nn.Sequential(two_convs(), *two_convs())
    model[0].register_forward_hook(lambda *_: None)
    spaces = find_spaces(model)
    assert spaces.of("0.0").fixed is None
    assert spaces.of("0.4").fixed == "hook on 0"


def test_hooks_are_not_run() -> None:
    seen: list[object] = []
    model = two_convs()
    for module in model.modules():
        module.register_forward_hook(lambda *args: seen.append(args))
    find_spaces(model)
    assert not seen


def test_hooks_on_parameters_see_the_order() -> None:
    model = two_convs()
    model[2].weight.register_hook(lambda grad: grad)
    assert fixed_of(model) == ["2 has a hook on its weight"] * 2 + ["model output"]


def test_shared_parameters_are_fixed() -> None:
    model = two_convs()
    model[4].weight = model[2].weight
    assert fixed_of(model) == ["2.weight is 4.weight as well"] * 2 + ["model output"]
    model = two_convs()
    model[4].weight.data = model[2].weight.data
    assert fixed_of(model)[:2] == ["2.weight is 4.weight as well"] * 2
    model = Between()
    model.others = nn.ParameterList([model.second.weight])
    assert find_spaces(model).of("first").fixed == "second.weight is others.0 as well"


def test_computed_parameters_are_fixed() -> None:
    for change, word in (
        (lambda m: parametrizations.weight_norm(m), "2 is parametrized"),
        (lambda m: parametrizations.spectral_norm(m), "2 is parametrized"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "2 is pruned or normalised by a hook"),
        (lambda m: m.register_buffer("mask", torch.ones(4)), "2 has an attribute mask that such a layer does not have"),
    ):  # fmt: skip
        model = two_convs()
        change(model[2])
        assert fixed_of(model) == [word, word, "model output"]


def test_lazy_layers_are_fixed() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.LazyConv2d(4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    fixed = fixed_of(model)
    assert None not in fixed


def test_tied_layers_read_in_any_order_and_produce_in_their_own() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        sf.SymmetricConv2d(6, 8, 3, symmetry={"h": 4, "hv": 4}),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        sf.SymmetricConvTranspose2d(6, 4, 3, symmetry="h"),
        nn.Conv2d(4, 2, 1),
    ).double()
    spaces = find_spaces(model)
    assert [spaces.of(n).fixed for n in "0246"] == [None, "tied already", None, "tied already"]
    assert_same(model, shuffled(model), torch.randn(2, 2, 9, 9, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_wrappers_are_named() -> None:
    scripted = torch.jit.script(nn.Conv2d(1, 2, 1))
    for wrapped, word in (
        (nn.DataParallel(two_convs()), "the model is DataParallel"),
        (torch.compile(two_convs()), "the model is OptimizedModule"),
        (nn.Sequential(scripted), "0 is a ScriptModule"),
    ):
        error = find_spaces(wrapped).error
        assert error is not None
        assert error.startswith(word)


def test_models_that_are_called_otherwise() -> None:
    model = two_convs()
    model.forward = lambda x: x
    assert "does more when it is called" in str(find_spaces(model).error)


def test_a_layer_is_a_model_too() -> None:
    for layer in (nn.Conv2d(2, 3, 1), nn.Linear(2, 3), sf.SymmetricConv2d(2, 4, 3, symmetry="h")):
        (space,) = find_spaces(layer).spaces
        assert space.producers == ("",)
        assert space.fixed is not None
    assert find_spaces(nn.ReLU()).spaces == ()


class Kept(nn.Module):
    """Stores a value, counts calls, and branches on its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = two_convs()
        self.other = nn.Conv2d(2, 4, 3)
        self.calls = 0
        self.kept: list[Tensor] = []
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.kept.append(self.convs[0](x))
        y = self.convs[2](F.relu(self.kept[-1]))
        if self.training:
            y = y + self.other(x)[:, :, 1:-1, 1:-1]
        return self.convs[4](y)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Kept()
    model.convs.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = set(vars(model))
    spaces = find_spaces(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert (model.calls, model.kept, set(vars(model))) == (0, [], attributes)
    assert torch.equal(rng, torch.get_rng_state())
    assert spaces.of("convs.0").fixed == "kept as kept"
    # Both modes count: the sum is there in training alone.
    assert spaces.of("convs.2").producers == ("convs.2", "other")


def test_layers_that_are_never_called_are_fixed() -> None:
    model = Between()
    model.unused = nn.Conv2d(1, 2, 1)
    assert find_spaces(model).of("unused").fixed == "unused is not called as a layer in forward"


class Late(nn.Module):
    """One of the two that are added is fixed before they meet."""

    def __init__(self, fixed: str) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)
        self.norm, self.fixed = nn.GroupNorm(2, 4), fixed

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = self.norm({"a": a, "b": b}[self.fixed])
        return self.end(a + b) + self.end(c).mean()


@pytest.mark.parametrize("fixed", ["a", "b"])
def test_what_joins_a_fixed_space_is_fixed(fixed: str) -> None:
    spaces = find_spaces(Late(fixed))
    assert spaces.of("a").producers == ("a", "b")
    assert spaces.of("a").fixed == "GroupNorm norm"


class Reuse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.shared = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.norm(self.a(x))) * self.shared(self.b(x))


def test_a_layer_that_is_called_twice_reads_one_order() -> None:
    spaces = find_spaces(Reuse())
    assert spaces.of("a").producers == ("a", "b")
    assert spaces.of("a").fixed is None
    model = zoo.randomise_norms(Reuse()).double()
    assert_same(model, shuffled(model), torch.randn(2, 1, 6, 6, dtype=torch.float64))


def test_subclasses_are_followed_if_they_compute_the_same() -> None:
    class Same(nn.Conv2d):
        pass

    class Other(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1)

    model = nn.Sequential(Same(2, 4, 3), nn.ReLU(), Other(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert fixed_of(model) == [None, "operation flip", "model output"]
    model[2] = Same(4, 4, 3)
    assert fixed_of(model) == [None, None, "model output"]
    model[2] = nn.Conv2d(4, 4, 3)
    model[2].forward = lambda x: x.flip(1)
    assert fixed_of(model)[0] == "Conv2d 2"


class NormAct(nn.BatchNorm2d):
    """As several libraries have it: a norm of its own forward, with an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return self.act(
            F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
            )
        )


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, groups=self.groups)


def test_subclasses_that_call_functions_with_their_parameters() -> None:
    model = nn.Sequential(
        Padded(2, 4, 3),
        NormAct(4),
        Padded(4, 4, 3, groups=4),
        NormAct(4),
        Padded(4, 6, 3),
        nn.Conv2d(6, 2, 1),
    )
    assert [find_spaces(model).of(n).fixed for n in "0245"] == [None, None, None, "model output"]
    model = zoo.randomise_norms(model).double()
    assert_same(model, shuffled(model), torch.randn(3, 2, 6, 6, dtype=torch.float64))
    assert int(model[1].num_batches_tracked) == 1
    model = nn.Sequential(nn.Conv2d(2, 4, 3), Standardised(4, 4, 3), nn.Conv2d(4, 2, 1))
    spaces = find_spaces(model)
    assert spaces.of("0").fixed == "operation conv2d"
    assert "1.weight is used apart from its layer" in str(spaces.of("1").fixed)


# --- permute -------------------------------------------------------------------------------------------------------


def test_permute_keeps_parameters_and_moves_gradients() -> None:
    model = two_convs().double()
    spaces = find_spaces(model)
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    model(x).square().sum().backward()
    before = {name: (p, p.grad.clone()) for name, p in model.named_parameters()}
    spaces.permute(model, {spaces.of("0"): torch.tensor([2, 0, 3, 1])})
    for name, p in model.named_parameters():
        assert p is before[name][0]
    moved = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for p, grad in zip(model.parameters(), moved):
        assert torch.allclose(p.grad, grad)
    assert torch.equal(moved[1], before["0.bias"][1][[2, 0, 3, 1]])


def test_permute_says_where_channels_come_from() -> None:
    model = two_convs()
    bias, weight = model[0].bias.detach().clone(), model[2].weight.detach().clone()
    spaces = find_spaces(model)
    order = torch.tensor([3, 1, 0, 2])
    spaces.permute(model, {spaces.of("0"): order})
    assert torch.equal(model[0].bias, bias[order])
    assert torch.equal(model[2].weight, weight[:, order])
    spaces.permute(model, {spaces.of("0"): torch.argsort(order)})
    assert torch.equal(model[2].weight, weight)


def test_permute_keeps_the_memory_format() -> None:
    model = two_convs().to(memory_format=torch.channels_last)
    strides = [p.stride() for p in model.parameters()]
    other = shuffled(model)
    assert [p.stride() for p in other.parameters()] == strides


def test_flattened_columns_move_by_position() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.Flatten(), nn.BatchNorm1d(12), nn.PReLU(12), nn.Linear(12, 2)
    )
    model = zoo.randomise_norms(model)
    nn.init.uniform_(model[3].weight)
    assert_same(model.double(), shuffled(model), torch.randn(3, 1, 2, 2, dtype=torch.float64))
    spaces, columns = find_spaces(model), model[4].weight.detach().clone()
    spaces.permute(model, {spaces.of("0"): torch.tensor([1, 2, 0])})
    assert torch.equal(model[4].weight, columns[:, [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]])


@pytest.mark.parametrize(
    ("order", "error", "match"),
    [
        ([1, 0, 2, 3], TypeError, r"must be a Tensor, got list; such as torch\.randperm\(4\)"),
        (torch.tensor([0, 1, 2]), ValueError, "must hold each of 0 to 3 once"),
        (torch.tensor([0, 1, 2, 2]), ValueError, "must hold each of 0 to 3 once"),
        (torch.tensor([0, 1, 2, -1]), ValueError, "must hold each of 0 to 3 once"),
        (torch.tensor([[0, 1, 2, 3]]), ValueError, r"shape \(1, 4\)"),
        (torch.tensor([0.0, 1, 2, 3]), ValueError, "torch.float32"),
        (torch.tensor([0.0, 1, 2, float("nan")]), ValueError, "torch.float32"),
        (torch.empty(0, dtype=torch.int64), ValueError, "must hold each of 0 to 3 once"),
    ],
)
def test_bad_orders(order: object, error: type[Exception], match: str) -> None:
    model = two_convs()
    spaces = find_spaces(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        spaces.permute(model, {spaces.of("2"): torch.randperm(4), spaces.of("0"): order})
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"find_spaces needs a torch.nn.Module, got Tensor"):
        find_spaces(torch.ones(1))
    model = two_convs()
    spaces = find_spaces(model)
    with pytest.raises(
        KeyError, match="'nothing' is no layer with output channels of its own; such layers are"
    ):
        spaces.of("nothing")
    with pytest.raises(ValueError, match=r"the space of 4 is fixed \(model output\)"):
        spaces.permute(model, {spaces.of("4"): torch.randperm(4)})
    with pytest.raises(KeyError, match="is no space of this model"):
        spaces.permute(model, {Space(4, ("x",), (), None): torch.randperm(4)})
    with pytest.raises(TypeError, match=r"permute needs a torch.nn.Module, got dict"):
        spaces.permute({}, {})
    with pytest.raises(
        ValueError, match="the model has no layer 2; it must be the model of find_spaces, or a copy"
    ):
        spaces.permute(nn.Sequential(nn.Conv2d(2, 4, 3)), {spaces.of("0"): torch.randperm(4)})
    other = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    with pytest.raises(ValueError, match="the model has 5 channels where 4 were found"):
        spaces.permute(other, {spaces.of("0"): torch.randperm(4)})


def test_spaces_are_plain_data() -> None:
    spaces = find_spaces(zoo.resnet18())
    assert pickle.loads(pickle.dumps(spaces)) == spaces
    assert len({spaces.of("conv1"), spaces.of("layer1.0.conv2")}) == 1


def test_a_graph_module_is_a_model() -> None:
    traced = fx.symbolic_trace(two_convs())
    assert fixed_of(traced) == [None, None, "model output"]
