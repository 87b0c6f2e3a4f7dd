"""Layers with ties on both sides: what is refused and how, what is warned of, and dispatch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import symconv_fast as sf
from symconv_fast import SymmetryWarning, functional, native
from symconv_fast.checks import ShapeError
from symconv_fast.problem import Problem

D = {"dtype": torch.float64}
RC = {"h": (3, 2, 1, 0)}


def regular(**options) -> nn.Module:
    return sf.SymmetricConv2d(8, 12, 3, padding=1, symmetry="hv", **{"input_symmetry": "hv"} | D | options)


def even(**options) -> nn.Module:
    return sf.SymmetricConv2d(8, 5, 3, padding=1, symmetry="h+v+", **{"input_symmetry": "h"} | D | options)


LAYERS = [regular, even]


# --- what is refused -------------------------------------------------------------------------------------------------


def conv2d(*args, **options):
    return lambda: sf.SymmetricConv2d(*args, **options)


REFUSED = [
    (conv2d(4, 4, 3, symmetry="h+v"), "needs? a sign after each letter"),
    (conv2d(4, 4, 3, symmetry="h+h-"), "no letter twice"),
    (conv2d(4, 4, 3, symmetry="z+"), "needs more dimensions than a 2-D layer"),
    (conv2d(4, 4, 3, symmetry={"h+": 2}), r"use two layers, each with filters of one size \(symmetry='h\+'"),
    (conv2d(4, 4, 3, symmetry={"h+": 2, "h-": 2}, bias=False), "these kinds differ in how many"),
    (conv2d(4, 4, 3, symmetry={"h+": 2, "h": 2}, input_symmetry="h"), "use two layers"),
    (conv2d(4, 4, 3, symmetry="h-"), "no bias but 0 goes with that; use bias=False"),
    (conv2d(4, 4, (3, 1), symmetry="h-", bias=False), "an odd filter is zero .* one tap"),
    (conv2d(5, 4, 3, symmetry="h+", input_symmetry="h"), "leaves channel 2 in its place .* use two layers"),
    (
        conv2d(4, 4, 3, symmetry="h+v+", input_symmetry={"h": (1, 0, 3, 2), "v": (1, 0, 3, 2)}),
        "use two layers",
    ),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry={"h": (1, 2, 3, 0)}), "give an involution"),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry={"h": (1, 0, 3)}), "give a permutation of all of them"),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry={"h": (1, 0, 3, 3)}), "must have each of 0 to 3"),
    (
        conv2d(4, 4, 3, symmetry="hv", input_symmetry={"h": (1, 0, 2, 3), "v": (0, 2, 1, 3)}),
        "mirrors commute; give involutions that do",
    ),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry={"hv": (1, 0, 3, 2)}), "one letter is what it can be for"),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry={"z": (1, 0, 3, 2)}), "valid keys: h, v"),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry="z"), "input_symmetry: symmetry key 'z'"),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry={"h": 6}), "input_symmetry: symmetry counts"),
    (conv2d(4, 4, 3, symmetry="h", input_symmetry="h-"), "a mirror negates.* without input_symmetry"),
    (
        conv2d(4, 4, 3, symmetry="h", input_symmetry=sf.SymmetricConv2d(3, 8, 3, symmetry="h").ties),
        "give the ties of the layer that makes them",
    ),
    (
        conv2d(6, 6, 3, groups=3, symmetry="h", input_symmetry="h"),
        "give an input_symmetry whose mirrors take groups",
    ),
    (
        conv2d(8, 8, 3, groups=2, symmetry="h+", input_symmetry="h"),
        "self-symmetric filters read .* own group",
    ),
    (conv2d(8, 12, 3, groups=4, symmetry={"h": 4}, input_symmetry="h"), "whose orbits lie in the groups"),
    (
        conv2d(4, 8, 3, groups=2, symmetry="h", input_symmetry={"h": (1, 0, 2, 3)}),
        "an involution that is the same in each group",
    ),
    (
        lambda: sf.SymmetricConvTranspose2d(8, 8, 3, groups=2, symmetry="h", input_symmetry="h"),
        "transposed layer with groups=2",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_is_refused_with_a_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "given", [3, 1.5, object(), {"h": 4, "v": (1, 0, 3, 2)}, {"h": (1.0, 0.0, 3.0, 2.0)}]
)
def test_other_types_are_refused(given):
    with pytest.raises(TypeError, match="symmetry"):
        sf.SymmetricConv2d(4, 4, 3, symmetry="h", input_symmetry=given)


def test_functions_refuse_what_does_not_fit():
    x, weight = torch.randn(1, 4, 7, 7), torch.randn(2, 4, 3, 2)
    with pytest.raises(ShapeError, match="give kernel_size, or the ties of a layer"):
        functional.symmetric_conv2d(x, weight, symmetry="h+")
    with pytest.raises(ShapeError, match=r"keep a weight of shape \[2, 4, 3, 3\]"):
        functional.symmetric_conv2d(x, weight, symmetry="h+", kernel_size=(3, 5))
    with pytest.raises(ShapeError, match="leave it out"):
        functional.symmetric_conv2d(x, weight, symmetry="h", kernel_size=3)
    with pytest.raises(ShapeError, match="use bias=False"):
        functional.symmetric_conv2d(x, weight, torch.randn(2), symmetry="h-", kernel_size=(3, 5))
    with pytest.raises(TypeError, match="leave input_symmetry and kernel_size out"):
        functional.symmetric_conv2d(x, weight, symmetry=even().ties, kernel_size=3)
    for kernel in (3, (3, 3), (3, 4)):
        y = functional.symmetric_conv2d(x, weight, symmetry="h+", kernel_size=kernel)
        assert y.shape[-1] == 8 - (kernel if isinstance(kernel, int) else kernel[1])


MALFORMED = [
    (-1,),
    (-9, 0, 0, 0, 1, 2),
    (-4, 0, 0, 3, 1, 2),
    (-4, 2, 0, 0, 1, 2),
    (-4, 0, 3, 0, 1, 2),
    (-7, 0, 0, 2, 4, 1, 0, 1, 2),
    (-8, 0, 0, 1, 1, 1, 9, 2, 1, 2),
    (-4, 0, 0, 0, 9, 2),  # self-symmetric without a kernel
    (-6, 0, 2, 3, 3, 0, 8, 2),  # by no letter
    (-6, 0, 2, 3, 3, 0, 9 + 32, 2),  # odd where it is not symmetric
    (-4, 0, 0, 0, 1, 2, 0),
    (-4, 1, 0, 0, 1, 2),  # mirrors that exchange the one group
]


@pytest.mark.parametrize("flat", MALFORMED, ids=str)
def test_operators_refuse_malformed_ties(flat):
    x, w, geometry = torch.randn(1, 4, 5, 5), torch.randn(2, 4, 3, 3), ([1, 1], [0, 0], [1, 1], [0, 0])
    with pytest.raises((ValueError, RuntimeError)):
        sf.ops.fprop(x, w, None, list(flat), *geometry, False, 1, False)


# --- warnings --------------------------------------------------------------------------------------------------------


def test_no_warning_where_one_tap_has_several_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = sf.SymmetricConv2d(8, 8, 1, symmetry="h", input_symmetry="h")
    filters = layer.expanded_weight()
    assert not torch.equal(filters[0], filters[4])
    with pytest.warns(SymmetryWarning, match="one tap"):
        sf.SymmetricConv2d(8, 8, 1, symmetry="h")
    with pytest.warns(SymmetryWarning, match="one tap"):  # that of v moves nothing
        sf.SymmetricConv2d(8, 8, 1, symmetry="v", input_symmetry="h")


def test_letters_that_move_nothing_leave_the_lift():
    lift = sf.SymmetricConv2d(8, 8, 3, symmetry="v")
    for inputs in (None, {}, "h", {"v": tuple(range(8))}):
        layer = sf.SymmetricConv2d(8, 8, 3, symmetry="v", input_symmetry=inputs)
        assert layer.ties == lift.ties
        assert layer.ties.sides is None


# --- dispatch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (conv2d(8, 8, 3, groups=4, symmetry="h", input_symmetry="h", **D), "its mirrors exchange groups"),
        (
            conv2d(8, 8, 3, symmetry="hv", input_symmetry=dict.fromkeys("hv", tuple(range(7, -1, -1))), **D),
            "mirrors along two axes move an input channel alike",
        ),
    ],
)
def test_the_reference_runs_and_says_why(make, reason):
    layer, x = make(), torch.randn(2, 8, 9, 9, **D)
    found = sf.explain(layer, x)
    if found.passes[0].backend == "reference":
        assert "no kernel runs these ties yet" in found.verdict
        assert reason in found.verdict or native.module is None
    saved = 1 if layer.ties.sides.across else layer.expanded_weight().numel() / layer.weight.numel()
    assert found.limit == saved
    for report in found.passes:
        assert report.algorithm == "expand"
        panels = [c.reason for c in report.candidates if (c.backend, c.algorithm) == ("cpu", "fold")]
        assert all(reason in str(why) for why in panels)
    assert found.problem.macs_dense == found.limit * found.problem.macs_folded
    with sf.backend("cpu", "fold"), pytest.raises(RuntimeError, match=f"{reason}|native module"):
        layer(x)


@pytest.mark.parametrize("make", LAYERS)
def test_problems(make):
    layer, x = make(), torch.randn(2, 8, 9, 9, **D)
    problem = layer.problem(x)
    assert isinstance(problem, Problem)
    assert problem.layer_ties == layer.ties
    assert problem.weight_shape == tuple(layer.weight.shape)
    assert problem.expanded_shape == tuple(layer.expanded_weight().shape)
    assert problem.input_shape == tuple(x.shape)
    assert problem.kernel == (3, 3)
