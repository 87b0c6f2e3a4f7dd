"""match_mirrored against networks whose mirror image is known, and against a computation of its own."""

from __future__ import annotations

import copy
import math
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import symconv_fast as sf
from symconv_fast.analysis import match_mirrored
from symconv_fast.analysis.merging import mirror_filters
from symconv_fast.analysis.mirrored import _goals, _match
from symconv_fast.analysis.moments import Pair
from symconv_fast.channels import Space, Spaces, find_spaces


def three_convs(width: int = 6, norm: bool = False, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for cin in (2, width, width):
        layers += [
            nn.Conv2d(cin, width, 3, padding=1, bias=bias),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
        ]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)).double()


def closed(norm: bool) -> tuple[nn.Sequential, list[Tensor]]:
    """A network that is its own mirror image up to permutations, which are drawn; and the permutations."""
    model = three_convs(norm=norm)
    partner, orders = torch.arange(2), []
    with torch.no_grad():
        for conv in (m for m in model if isinstance(m, nn.Conv2d)):
            order = torch.randperm(6)
            swap = torch.empty(6, dtype=torch.int64)
            swap[order], swap[order.roll(3)] = order.roll(3), order  # three pairs
            # Channel swap[o] is the mirror image of channel o, of mirrored inputs.
            conv.weight += conv.weight.flip(-1)[swap][:, partner]
            conv.bias += conv.bias[swap]
            at = list(model).index(conv) + 1
            if norm:
                for tensor in (
                    model[at].weight,
                    model[at].bias,
                    model[at].running_mean,
                    model[at].running_var,
                ):
                    nn.init.uniform_(tensor, 0.5, 1.5)
                    tensor += tensor[swap]
            orders.append(swap)
            partner = swap
        model[-1].weight += model[-1].weight[:, partner]
    return model, orders


def batches(
    count: int = 3, size: int = 9, channels: int = 2, classes: int = 4
) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(8, channels, size, size, dtype=torch.float64), torch.randint(classes, (8,)))
        for _ in range(count)
    ]


# --- networks whose mirror image is known --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
def test_a_network_that_is_its_own_mirror_image(norm: bool) -> None:
    model, planted = closed(norm)
    before = copy.deepcopy(model.state_dict())
    report = match_mirrored(model, batches(), progress=False, keep_models=True)
    found = [report.orders[find_spaces(model).of(n)] for n in "036"]
    for order, expected in zip(found, planted):
        assert torch.equal(order, expected)
    for match in report.matches[:3]:
        assert match.correlation == pytest.approx(1, abs=1e-9)
        assert match.moved == 6
        assert match.before < 0.9
    aligned = dict(report.models["aligned"].named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, aligned[name], rtol=0, atol=1e-12)
    rows = {row.network: row for row in report.rows}
    assert rows["merged, aligned"].loss == pytest.approx(rows["original"].loss, rel=1e-12)
    assert rows["merged, aligned"].loss_barrier == pytest.approx(0, abs=1e-12)
    assert rows["merged, aligned"].accuracy_barrier == 0
    assert rows["merged, not aligned"].loss != pytest.approx(rows["original"].loss, rel=1e-6)
    assert ("merged, aligned, reset" in rows) == norm
    if not norm:  # nothing is left to repair, but for statistics that differ from batch to batch
        assert rows["merged, aligned, REPAIR"].loss == pytest.approx(rows["original"].loss, rel=1e-4)
        one = match_mirrored(model, batches(1), progress=False).rows
        assert one[-1].loss == pytest.approx(one[0].loss, rel=1e-9)
    assert report.mirror_error < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert model.training


def test_a_tied_lift_is_its_own_mirror_image() -> None:
    tied = sf.SymmetricConv2d(2, 4, 3, padding=1, symmetry="h", share_bias=True)
    model = nn.Sequential(tied, *three_convs(4)[1:]).double()
    report = match_mirrored(model, batches(), progress=False, keep_models=True)
    assert report.mirror_error < 1e-12
    # The members of both orbits are exchanged.
    order = next(order for space, order in report.orders.items() if space.producers == ("0",))
    assert order.tolist() == [2, 3, 0, 1]
    assert report.matches[0].correlation == pytest.approx(1)
    assert torch.allclose(report.models["aligned"][0].weight, tied.expanded_weight())
    assert isinstance(model[0], sf.SymmetricConv2d)


def test_activations_in_place_change_nothing() -> None:
    model, data = three_convs(5), batches()
    expected = match_mirrored(model, data, progress=False)
    for module in model:
        if isinstance(module, nn.ReLU):
            module.inplace = True
    report = match_mirrored(model, data, progress=False)
    assert report.rows == expected.rows
    assert report.matches == expected.matches


@pytest.mark.parametrize(
    ("name", "size", "axis"),
    [
        ("resnet18", 33, "h"),
        ("resnet18", 33, "v"),
        ("resnet18", 33, "vh"),
        ("vgg16_bn", 32, "h"),
        ("vgg16_bn", 32, "hv"),
        ("mobilenet_v2", 33, "h"),
        ("unet", 16, "v"),
        ("unet3d", 16, "z"),
        ("se_resnet18_linear", 33, "h"),
    ],
)
def test_mirrored_filters_compute_the_network_of_mirrored_inputs(name: str, size: int, axis: str) -> None:
    make, shape = zoo.INPUTS[name]
    model = zoo.randomise_norms(make()).double().eval()
    for module in model.modules():  # so that outputs depend on the input
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    x = torch.randn(1, shape[1], *[size] * (len(shape) - 2), dtype=torch.float64)
    mask = sum({"h": 1, "v": 2, "z": 4}[letter] for letter in axis)
    mirrored = mirror_filters(model, mask, find_spaces(model), x)
    dims = [{"h": -1, "v": -2, "z": -3}[letter] for letter in axis]
    expected = model(x.flip(dims))
    expected = expected.flip(dims) if expected.dim() == x.dim() else expected
    with torch.no_grad():
        assert float((mirrored(x) - expected).abs().max() / expected.abs().max()) < 1e-12
        assert float((mirrored(x) - model(x)).abs().max() / expected.abs().max()) > 1e-4


def test_shared_filters_are_mirrored_once() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    mirrored = mirror_filters(model, 1, find_spaces(model), torch.zeros(1, 2, 9, 9))
    assert torch.equal(mirrored[1].weight, model[1].weight.flip(-1))
    assert mirrored[0].weight is mirrored[1].weight


def test_where_mirroring_is_not_exact_the_report_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 4)).double()
    report = match_mirrored(model, batches(size=8), progress=False)
    assert report.mirror_error > 0.01
    assert "is not quite the network of mirrored inputs" in report.notes[0]
    assert "is not quite" in str(report)
    exact = match_mirrored(model, batches(size=7), progress=False)
    assert exact.mirror_error < 1e-12


# --- against a computation of its own ------------------------------------------------------------------------------


def plain_features(weights: list[tuple[Tensor, Tensor]], x: Tensor) -> list[np.ndarray]:
    """Outputs of the convolutions of `three_convs`, as (channels, samples and positions)."""
    found = []
    for weight, bias in weights:
        x = F.conv2d(x, weight, bias, padding=1)
        found.append(x.transpose(0, 1).flatten(1).numpy())
        x = x.relu()
    return found


class Residual(nn.Module):
    """Two convolutions of one stream, whose outputs are best matched by the sum of both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.end = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.end((x + self.second(x.relu())).relu().mean((2, 3)))


def best_order(correlations: np.ndarray) -> list[int]:
    count = len(correlations)
    return list(
        max(permutations(range(count)), key=lambda p: sum(correlations[i, p[i]] for i in range(count)))
    )


def test_matching_is_that_of_a_plain_computation() -> None:
    model, data = three_convs(5), batches()
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    ours = [(m.weight.detach(), m.bias.detach()) for m in convs]
    theirs = [(w.flip(-1), b) for w, b in ours]
    x = torch.cat([batch[0] for batch in data])
    report = match_mirrored(model, data, progress=False)
    for name, a, b, match in zip("036", plain_features(ours, x), plain_features(theirs, x), report.matches):
        correlation = np.corrcoef(a, b)[:5, 5:]
        best = best_order(correlation)
        assert report.orders[find_spaces(model).of(name)].tolist() == best
        assert match.correlation == pytest.approx(correlation[range(5), best].mean(), abs=1e-12)
        assert match.before == pytest.approx(np.diag(correlation).mean(), abs=1e-12)


def test_orders_say_where_partners_are() -> None:
    # Permutations with a mirror image are mostly their own inverses, so that a network does not tell directions apart.
    space, pair = Space(4, ("a",), ("b",), None), Pair()
    a, order = torch.randn(50, 4, dtype=torch.float64), torch.tensor([1, 2, 0, 3])
    b = torch.empty_like(a)
    b[:, order] = a
    pair.add(a, b)
    orders, (match,) = _match({space: ("a",)}, {"a": pair}, linear_sum_assignment)
    assert torch.equal(orders[space], order)
    assert match.correlation == pytest.approx(1)
    goals = _goals(["a"], {"a": pair}, orders, Spaces((space,)))
    assert torch.allclose(goals["a"][0], a.mean(0))


def test_a_stream_is_matched_by_the_sum_over_its_points() -> None:
    singly = 0
    for seed in range(4):
        torch.manual_seed(seed)
        model, data = Residual(5).double(), batches()
        x = torch.cat([batch[0] for batch in data])
        found = []
        for flip in (False, True):
            weights = [
                m.weight.detach().flip(-1) if flip else m.weight.detach() for m in (model.first, model.second)
            ]
            first = F.conv2d(x, weights[0], model.first.bias.detach(), padding=1)
            second = F.conv2d(first.relu(), weights[1], model.second.bias.detach(), padding=1)
            found.append([y.transpose(0, 1).flatten(1).numpy() for y in (first, second)])
        points = [np.corrcoef(a, b)[:5, 5:] for a, b in zip(*found)]
        report = match_mirrored(model, data, progress=False)
        order = report.orders[find_spaces(model).of("first")].tolist()
        assert order == best_order(points[0] + points[1])
        singly += order != best_order(points[0])
    assert singly, "the first point alone says the same"


def test_merged_networks_are_those_of_a_plain_computation() -> None:
    model, data = three_convs(5), batches()
    nn.init.normal_(model[-1].weight, std=1000)
    data = [
        (x, model(x).argmax(1)) for x, _ in data
    ]  # so that the two networks are right, and merged ones less so
    report = match_mirrored(model, data, progress=False, keep_models=True)
    orders = [report.orders[find_spaces(model).of(n)] for n in "036"]
    rows = {row.network: row for row in report.rows}

    def loss_of(permuted: bool) -> tuple[float, float]:
        before, weights = torch.arange(2), []
        for conv, order in zip((m for m in model if isinstance(m, nn.Conv2d)), orders):
            order = order if permuted else torch.arange(5)
            other = conv.weight.flip(-1)[order][:, before], conv.bias[order]
            weights.append(((conv.weight + other[0]) / 2, (conv.bias + other[1]) / 2))
            before = order
        last = (model[-1].weight + model[-1].weight[:, before]) / 2
        losses, right = [], []
        for x, target in data:
            for weight, bias in weights:
                x = F.conv2d(x, weight, bias, padding=1).relu()
            output = F.linear(x.mean((2, 3)), last, model[-1].bias)
            losses.append(float(F.cross_entropy(output, target)))
            right.append(float((output.argmax(1) == target).double().mean()))
        return float(np.mean(losses)), float(np.mean(right))

    with torch.no_grad():
        for name, permuted in (("merged, not aligned", False), ("merged, aligned", True)):
            loss, accuracy = loss_of(permuted)
            assert (rows[name].loss, rows[name].accuracy) == pytest.approx((loss, accuracy), rel=1e-12)
    ends = [rows["original"], rows["mirrored"]]
    mean_loss, mean_accuracy = (sum(getattr(r, k) for r in ends) / 2 for k in ("loss", "accuracy"))
    for row in report.rows[2:]:
        assert row.loss_barrier == pytest.approx(row.loss - mean_loss)
        assert row.accuracy_barrier == pytest.approx(mean_accuracy - row.accuracy)
    assert {r.loss_barrier for r in ends} == {None}
    assert max(row.accuracy_barrier for row in report.rows[2:]) > 0


def test_a_residual_stream_has_one_permutation() -> None:
    model = zoo.resnet18(4).double()
    report = match_mirrored(model, batches(1, 33, 3, 10), progress=False)
    streams = [match for match in report.matches if len(match.producers) > 1]
    assert [match.channels for match in streams] == [4, 8, 16, 32]
    assert streams[0].producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    spaces = find_spaces(model)
    assert spaces.points(spaces.of("conv1")) == (*streams[0].producers, "bn1", "layer1.0.bn2", "layer1.1.bn2")


def test_correlations() -> None:
    a, b = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    a[:, 1] = 1e6 + 1e-3 * b[:, 2]  # far from 0, and small
    b[:, 0] = 0.1  # constant
    pair = Pair()
    for start in (0, 7, 30):
        stop = {0: 7, 7: 30, 30: 50}[start]
        pair.add(a[start:stop], b[start:stop])
    expected = np.corrcoef(a.numpy(), b[:, 1:].numpy(), rowvar=False)[:3, 3:]
    found = pair.correlation()
    assert torch.equal(found[:, 0], torch.zeros(3, dtype=torch.float64))
    assert np.allclose(found[:, 1:].numpy(), expected, atol=1e-6)
    assert torch.allclose(pair.moments[0].mean, a.mean(0))
    assert torch.allclose(pair.moments[0].std, a.std(0, unbiased=False), rtol=1e-6)


def test_dead_channels_are_matched_with_what_is_left() -> None:
    model, planted = closed(False)
    with torch.no_grad():
        first = model[0]
        first.weight[planted[0][0]] = 0
        first.weight[0] = 0
    report = match_mirrored(model, batches(), progress=False)
    order = report.orders[find_spaces(model).of("0")]
    alive = [i for i in range(6) if i not in (0, int(planted[0][0]))]
    assert order[alive].tolist() == planted[0][alive].tolist()
    assert all(math.isfinite(row.loss) for row in report.rows)
