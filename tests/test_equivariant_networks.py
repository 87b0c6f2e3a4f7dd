"""Whole equivariant networks of the examples: mirrors before and after training, sizes, both strands, checkpoints."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from symconv_fast.nn import check_equivariance, mirror, rc_symmetry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import equivariant_layers as layers
from equivariant_genome import ReverseComplementNet, one_hot, other_strand, reverse_complement
from equivariant_resnet import ResNet18, is_exact
from equivariant_unet import UNet3d

D = {"dtype": torch.float64}
EXACT = 1e-12
RC = rc_symmetry("ACGT")


@dataclass(frozen=True)
class Case:
    """A network and its input; what mirrors do to the channels of the input, and to those of its outputs."""

    make: Any
    symmetry: str
    shape: tuple[int, ...]
    inputs: Any = None
    outputs: tuple[Any, ...] = (None,)
    free: int = 0  # numbers that no tie saves: biases of the last layer
    positions: tuple[bool, ...] = (True,)  # has an output positions to mirror?

    def network(self) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no layer has a tie that does nothing
            return self.make(self.symmetry).to(**D)

    def input(self) -> Tensor:
        return torch.randn(self.shape, **D)

    def expected(self, outputs: tuple[Tensor, ...], letter: str) -> list[Tensor]:
        """Those of the mirrored input, by what they are of the input."""
        return [
            mirror(y, letter, features) if has_positions else y
            for y, features, has_positions in zip(outputs, self.outputs, self.positions)
        ]


resnet = partial(ResNet18, width=8, classes=5)
CASES = {
    "resnet h": Case(resnet, "h", (2, 3, 33, 33), free=5, positions=(False,)),
    "resnet hv": Case(resnet, "hv", (2, 3, 33, 65), free=5, positions=(False,)),
    "genome": Case(
        partial(ReverseComplementNet, width=8, dilations=(2, 4, 8)),
        "h",
        (2, 4, 50),
        inputs=RC,
        outputs=("h", None),
        free=1,
        positions=(True, False),
    ),
    "unet hvz": Case(partial(UNet3d, width=8), "hvz", (1, 1, 4, 8, 12), free=2),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def several(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@torch.no_grad()
def errors(case: Case, net: nn.Module, x: Tensor) -> dict[str, float]:
    """||f(T x) - T f(x)|| / ||f(x)||, the larger of all outputs, by letter."""
    outputs, found = several(net(x)), {}
    for letter in case.symmetry:
        turned = several(net(mirror(x, letter, case.inputs)))
        found[letter] = max(
            float((a - b).norm() / b.norm()) for a, b in zip(turned, case.expected(outputs, letter))
        )
    return found


@each_case
def test_mirrors_before_and_after_training(case):
    net, x = case.network(), case.input()
    assert max(errors(case, net.eval(), x).values()) < EXACT
    before = [y.clone() for y in several(net(x))]
    step = layers.training_step(net.train(), case.input(), rate=0.1)
    for _ in range(3):
        step()
    assert max(errors(case, net.eval(), x).values()) < EXACT
    assert all((a - b).norm() > 1e-3 * b.norm() for a, b in zip(several(net(x)), before))
    assert max(errors(case, net.train(), x).values()) < EXACT  # with the statistics of this batch
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@each_case
def test_parameters_are_those_of_the_ordinary_network_divided_by_the_orbits(case):
    ordinary = case.make("")
    members = 2 ** len(case.symmetry)
    saved = layers.parameters(ordinary) - case.free
    assert layers.parameters(case.network()) == saved // members + case.free
    assert saved % members == 0
    net = ordinary.to(**D).eval()
    assert min(errors(case, net, case.input()).values()) > 1e-3
    for a, b in zip(several(net(case.input())), several(case.network()(case.input()))):
        assert a.shape == b.shape


@each_case
def test_checkpoints(case):
    net, other, x = case.network(), case.network(), case.input()
    layers.training_step(net.train(), x)()
    state = net.state_dict()
    assert other.load_state_dict(state) is not None
    for a, b in zip(several(net.eval()(x)), several(other.eval()(x))):
        assert torch.equal(a, b)
    assert max(errors(case, other, x).values()) < EXACT


# --- ResNet ----------------------------------------------------------------------------------------------------------


def test_the_stride_that_an_inexact_size_breaks_is_named():
    # 49, 25, 13, 7 and 4 positions: the first four strides are exact, and the last one meets an even number.
    report = check_equivariance(resnet("hv"), torch.randn(1, 3, 49, 49), letters="hv")
    assert not report.exact
    assert not is_exact(49)
    assert [report.first_lost(letter).layer for letter in "hv"] == ["blocks.6.conv1"] * 2
    assert "first lost in blocks.6.conv1 (SymmetricConv2d)" in report.verdict()
    assert "nearest exact sizes 33, 65" in report.verdict()


def test_sizes_of_the_resnet():
    assert [size for size in range(1, 230) if is_exact(size)] == [1, 33, 65, 97, 129, 161, 193, 225]


# --- both strands ----------------------------------------------------------------------------------------------------


def test_both_strands_get_the_same_answer():
    net = ReverseComplementNet(width=8, dilations=(2, 4)).eval()
    strand = "ACGTTGCAAGGTCCATNACGGGTATTTCACC"
    other = "".join({"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}[base] for base in reversed(strand))
    x, turned = one_hot(strand)[None], one_hot(other)[None]
    assert torch.equal(reverse_complement(x), turned)
    (profile, count), (turned_profile, turned_count) = net(x), net(turned)
    torch.testing.assert_close(turned_count, count)
    torch.testing.assert_close(turned_profile, other_strand(profile))
    torch.testing.assert_close(turned_profile[0, 0], profile[0, 1].flip(0))
    assert not torch.allclose(net(x.flip(-1))[1], count)  # read backwards it is another sequence


def test_the_report_of_the_reverse_complement_network():
    net = ReverseComplementNet(width=8, dilations=(2,))
    for head, features in ((net.profile, "h"), (net.count, None)):
        whole = nn.Sequential(net.trunk, head)
        assert check_equivariance(whole, torch.randn(2, 4, 31), RC, features, letters="h").exact
        assert not check_equivariance(whole, torch.randn(2, 4, 31), None, features, letters="h").exact


# --- U-Net -----------------------------------------------------------------------------------------------------------


def test_the_report_of_the_unet():
    report = check_equivariance(UNet3d(width=8, depth=1), torch.randn(1, 1, 2, 4, 6), letters="hvz")
    assert report.exact
    assert {"enlarge.0", "decoder.0.0", "head.0", "output"} <= {row.layer for row in report.layers}


def test_the_unet_refuses_sizes_that_it_cannot_halve():
    with pytest.raises(ValueError, match=r"sizes \(4, 6, 4\) must be multiples of 4"):
        UNet3d(width=8)(torch.randn(1, 1, 4, 6, 4))


def test_joined_maps_are_in_the_order_of_a_layer():
    make = layers.Layers(2, "hv")
    a, b = torch.randn(1, 8, 3, 4), torch.randn(1, 12, 3, 4)
    for letters in ("h", "v", "hv"):
        turned = make.join(mirror(a, letters, "hv"), mirror(b, letters, "hv"))
        assert torch.equal(turned, mirror(make.join(a, b), letters, "hv"))


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "verdicts"),
    [
        ("resnet", ["--width", "4"], 1),
        ("genome", ["--width", "8", "--length", "60", "--dilations", "2"], 2),
        ("unet", ["--width", "8", "--size", "4", "--depth", "1"], 1),
    ],
)
def test_what_the_examples_print(name, options, verdicts, capsys):
    __import__(f"equivariant_{name}").main(options)
    said = capsys.readouterr().out
    assert said.count(": equivariant along h") == verdicts
    assert " parameters: " in said
    assert " ms, the ordinary network " in said
