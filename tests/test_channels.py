"""Spaces of channels: what is free can be permuted without a trace in the outputs, and what is not says why."""

from __future__ import annotations

import copy
import os
import pickle
import random

import pytest
import random_nets
import torch
import zoo
from channel_checks import assert_same, free_of, shuffled
from torch import fx, nn

from symconv_fast.channels import Space, find_spaces
from symconv_fast.channels.constraints import Constraints

FUZZ = int(os.environ.get("SYMCONV_FAST_FUZZ", "30"))


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


def two_convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


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
    spaces = find_spaces(fx.symbolic_trace(two_convs()))
    assert [spaces.of(name).fixed for name in "024"] == [None, None, "model output"]
