"""What fixes an order of channels, and what does not: operations, hooks, shared and computed parameters, tracing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import zoo
from channel_checks import assert_same, shuffled
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import symconv_fast as sf
from symconv_fast.channels import find_spaces

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
    "assertion of maps": (
        Between(lambda m, x: [x, torch._assert(x > -9, message="")][0]),
        "an assertion about values",
    ),
    "weight as input": (
        Between(lambda m, x: x + F.linear(m.second.weight, x.new_ones(1, 3)).sum()),
        "add with combined with second.weight",
    ),
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
    # Both modes count, whatever the model's is: the sum is there in training alone.
    for mode in (None, False, True):
        spaces = find_spaces(model if mode is None else model.train(mode))
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


class Again(nn.Module):
    """One layer reads the input of the model in one call, and its own output in another, in either order."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.start, self.twice, self.end = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(x) if self.first else self.start(x)
        y = self.twice(F.relu(y))
        return self.end(y if self.first else y + self.twice(x))


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_that_reads_the_input_too_is_fixed(first: bool) -> None:
    spaces = find_spaces(Again(first))
    read = spaces.of("twice" if first else "start")
    assert read.fixed == "twice reads others too: model input x"


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
