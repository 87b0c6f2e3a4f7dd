# Ties on both sides in the Triton backend, without a GPU: plans, estimates, refusals, known answers.
"""That the kernels are right is checked in triton_sides.py, by the process of triton_grid.py."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import background
import pytest
import torch
from triton_problems import PROBLEMS, orbits, problem

import symconv_fast as sf
from symconv_fast.problem import OPS, Problem
from symconv_fast.sides import Involutions, Own, Sides
from symconv_fast.trial import small

triton = pytest.importorskip("triton", reason="Triton is not installed")

from symconv_fast.backends.cuda import backend as cuda  # noqa: E402
from symconv_fast.backends.triton import backend, launch, letters, model  # noqa: E402

SIDED = [name for name, p in PROBLEMS.items() if p.sides]


def test_products_are_those_of_the_weight() -> None:
    """The contraction has the first channel of each orbit; that of the adjoint layer the rows."""
    p = replace(PROBLEMS["orbits"], unique=96, out_channels=384, ties=((3, 96),))
    for op, depth, columns in (("fprop", 64, 96), ("dgrad", 96, 64)):
        fold, product = launch.plan(p, op, "fold").launches
        assert (fold.kernel, product.kernel) == ("fold_weights", "fprop_fold")
        assert (product.constants["C"], product.constants["SEGS"][0][2]) == (depth, columns)
        assert fold.constants["ADJOINT"] == (op == "dgrad")
    wgrad = launch.plan(p, "wgrad", "fold").launches[0]
    assert (wgrad.kernel, wgrad.constants["C"], wgrad.constants["SIDES"][0]) == ("wgrad", 64, 3)
    odd = launch.plan(PROBLEMS["odd filters"], "wgrad", "fold").launches[0]
    assert odd.constants["SIDES"] == (0, 3, 1, 1, 2, 1)  # letters, and the taps that are kept
    assert [launch.is_adjoint(PROBLEMS["odd filters of orbits"], op) for op in OPS] == [False, True, True]


def test_estimates_count_the_products_of_the_weight() -> None:
    """In float32 in full, where products bind: a quarter of them takes a quarter of the time."""
    sizes = {"channels": 1024, "spatial": (56, 56), "dtype": torch.float32}
    orbit, free = problem(((3, 256),), sides=orbits(3, 1024), **sizes), problem(((0, 1024),), **sizes)
    odd = problem(((0, 1024),), sides=Sides(1, None, (Own(3, 3),), (3, 3)), **sizes)
    for op in OPS:
        whole, less, least = (model.seconds(p, op, "fold", "sm_90", "ieee") for p in (free, orbit, odd))
        assert whole / less == pytest.approx(4, rel=0.05)
        assert whole / least > 6  # one tap of nine, until memory binds
        in_tf32, dense = (model.seconds(p, op, "fold", "sm_90", "tf32") for p in (orbit, free))
        assert in_tf32 < dense


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"symmetry": {"h": 8}, "input_symmetry": {"h": 16}}, "several ties"),
        ({"symmetry": {"h+": 8, "h-": 8}}, "several ties"),
        ({"symmetry": {"h": 16}, "input_symmetry": {"h": 8}}, "leave an input channel in its place"),
        ({"symmetry": {"hv": 16}, "input_symmetry": {"h": tuple(range(15, -1, -1)), "v": tuple(range(15, -1, -1))}},
         "leave an input channel in its place"),
        ({"symmetry": {"h": 16}, "input_symmetry": {"h": 16}, "groups": 2}, "exchange groups"),
        ({"symmetry": {"h+": 16}, "groups": 16}, "depthwise"),
    ],
)  # fmt: skip
def test_other_ties_are_refused_with_the_reason(arguments: dict[str, object], reason: str) -> None:
    layer = sf.SymmetricConv2d(16, 16, 4, bias=False, **arguments)
    p = replace(layer.problem(torch.empty(1, 16, 8, 8)), device="cuda")
    assert reason in str(backend.can_run(p, "fprop", "fold"))
    with pytest.raises(ValueError, match=reason):
        launch.plan(p, "fprop", "fold")


def test_octuples_in_float64_are_refused_where_no_tile_fits() -> None:
    """By the pass that has none: the sums of eight parities are in registers together."""
    p = problem(((7, 16),), channels=128, spatial=(8, 8, 8), dtype=torch.float64, sides=orbits(7, 128, 3))
    found = {
        (arch, op)
        for arch in ("sm_80", "sm_90", "sm_100", "gfx942")
        for op in OPS
        if "no tile of 3 tied axes in float64"
        in str(launch.refusal(p, op, "fold", launch.Options(arch=arch)))
    }
    assert found == {("sm_80", "fprop"), ("sm_80", "dgrad"), *(("sm_90", op) for op in OPS)}


@pytest.mark.parametrize("name", SIDED)
def test_only_the_fold_and_no_cuda_kernel_takes_ties_on_both_sides(name: str) -> None:
    p = PROBLEMS[name]
    reason = "of one parity" if name == "odd filters" else "move input channels"
    for op in OPS:
        assert letters.refusal(p) is None
        assert reason in str(letters.refusal(p, "direct"))
        with pytest.raises(ValueError, match=reason):
            launch.plan(p, op, "direct")
        for algorithm in cuda.ALGORITHMS:
            assert reason in str(cuda.can_run(p, op, algorithm))


@pytest.mark.parametrize("name", SIDED)
@pytest.mark.parametrize("op", OPS)
def test_known_answers_are_of_layers_with_the_same_sides(name: str, op: str) -> None:
    """Fewer channels and rows, and the kernels and answers of the layer's own ties."""
    large = PROBLEMS[name]
    large = replace(large, spatial=(300, 280))
    for p in small.like(large, op):
        assert p.macs_dense <= small.MACS
        assert letters.letters(p)[:3] == letters.letters(large)[:3]
        assert small.features(p, None) == small.features(large, None)
        w, x = torch.randn(p.weight_shape, dtype=torch.float64), torch.zeros(1, p.in_channels, *p.spatial)
        assert p.layer_ties.expand(w).shape == p.expanded_shape
        assert Problem.create(
            ((p.batch, *x.shape[1:]), p.weight_shape),
            (p.layer_ties.flat, p.stride, p.padding, p.dilation, p.output_padding, False, p.groups, True),
            True, p.dtype, "cuda",
        ) == p  # fmt: skip


def test_known_answers_keep_channels_that_are_told_one_by_one() -> None:
    table = Involutions(((1, tuple(range(127, -1, -1))),))
    large = problem(((1, 256),), sides=Sides(1, table, (None,)), spatial=(300, 280))
    found = list(small.like(large, "fprop"))
    assert found
    assert {p.in_channels for p in found} == {128}
    assert {p.sides for p in found} == {large.sides}


@pytest.mark.full
@pytest.mark.parametrize("block", range(6))
def test_random_layers_are_those_of_the_definition(block: int) -> None:
    """In Triton's interpreter, ten layers at a time."""
    script = str(Path(__file__).parent / "triton_sides.py")
    command = [sys.executable, script, str(10 * block), str(10 * block + 10)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=background.environment(TRITON_INTERPRET="1"), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
