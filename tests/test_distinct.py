# Filters that a tie repeats as they are, computed once: the backend `distinct`, and the ties that it runs with.
"""Kernels with one tap along a tied axis, against the oracle, and through every order of derivatives."""

from __future__ import annotations

import itertools
import math

import cases
import pytest
import torch
from oracle import OPS, check, problem_of
from torch import Tensor

import symconv_fast as sf
from symconv_fast import Symmetry, dispatch, ops
from symconv_fast.backends import distinct
from symconv_fast.ties import mirror

pytestmark = pytest.mark.filterwarnings("ignore::symconv_fast.SymmetryWarning")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MORE = {
    "contiguous": {},
    "channels last": cases.LAST,
    "groups": {"groups": 2},
    "stride": {"stride": 2, "padding": 1, "result_last": True},
    "transposed": {"transposed": True, "stride": 2, "bias": False},
    "one value": {"layouts": ("scalar", "expanded", "scalar")},
}
KERNELS = {1: (1,), 2: (1, (3, 1), (1, 2)), 3: (1, (3, 1, 1), (1, 3, 2), (2, 1, 3))}
TIES = {1: ({1: 4}, {1: 2, 0: 3}), 2: (cases.MIXED_2D, {3: 4}, {2: 2, 3: 4}), 3: (cases.MIXED_3D, {7: 2})}


def _cases():
    for ndim in (1, 2, 3):
        for ties, kernel, more in itertools.product(TIES[ndim], KERNELS[ndim], MORE):
            options = MORE[more] | ({"result_last": False} if ndim == 1 else {})
            rows = {mask: n * options.get("groups", 1) for mask, n in ties.items()}
            case = cases._case(rows, 4, (6, 5, 7)[:ndim], kernel, **options)
            if distinct.can_run(problem_of(case, torch.float32, "fprop"), "fprop", "copy") is None:
                yield pytest.param(case, id=f"{ties} {kernel} {more}")


@pytest.mark.parametrize("case", list(_cases()))
def test_against_the_oracle(case):
    for op, dtype in itertools.product(OPS, DTYPES):
        if distinct.can_run(problem_of(case, dtype, op), op, "copy") is not None:
            assert (op, dtype.itemsize) == ("fprop", 2)
            continue
        check(case, dtype, op, "distinct", "copy")


@pytest.mark.parametrize("algorithm", ["fold", "direct", "scatter", "relayout"])
def test_whatever_runs_the_distinct_filters(algorithm, monkeypatch):
    """Their ties come in an order of their own: free rows may lie before tied ones."""

    def first(problem, op):
        able = [
            c for c in dispatch.candidates(problem, op) if c.seconds is not None and c.backend != "distinct"
        ]
        return next((c for c in able if algorithm in (c.algorithm, c.backend)), able[0])

    monkeypatch.setattr(dispatch, "_quickest", first)
    sf.ops.forget_plans()
    for kernel, more in itertools.product(KERNELS[2], ({}, cases.LAST, {"groups": 2})):
        rows = {mask: n * more.get("groups", 1) for mask, n in cases.MIXED_2D.items()}
        for op in OPS:
            check(cases._case(rows, 18, (6, 7), kernel, **more), torch.float32, op, "distinct", "copy")
    sf.ops.forget_plans()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "kernel", [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3), (3, 1, 3), (2, 2, 1), (3, 3, 3)]
)
def test_channels_are_copies_of_the_distinct_ones(kernel, groups):
    """By the map of channels to rows and members, which the runs must repeat, filter by filter."""
    counts = {"h": 4, "v": 4, "z": 4, "hv": 8, "vz": 8, "hvz": 16}
    ties = Symmetry({k: n * groups for k, n in counts.items()}).resolve(3, 50 * groups, groups)
    weight = torch.randn(ties.unique, 2, *kernel)
    full, few = ties.expand(weight), ties.distinct(kernel).expand(weight)
    per_group = len(few) // groups
    rebuilt = torch.empty_like(full)
    for g, (first, begin, length) in itertools.product(range(groups), ties.copied_from(kernel)):
        at, source = g * (len(full) // groups) + first, g * per_group + begin
        rebuilt[at : at + length] = few[source : source + length]
    assert torch.equal(rebuilt, full)
    distinct_filters = {
        (row, mirror(weight[row], member).numpy().tobytes()) for row, member in ties.channel_map
    }
    assert len(few) == len(distinct_filters)
    assert (kernel == (3, 3, 3)) == (len(few) == len(full))


def test_multiplications_are_those_of_the_distinct_filters():
    """Of a 1 x 1 layer half, or a quarter, of what torch does; and an estimate says when that pays."""
    for symmetry, share in (("h", 2), ("hv", 4)):
        layer, x = sf.SymmetricConv2d(256, 256, 1, symmetry=symmetry), torch.empty(8, 256, 14, 14)
        problem = sf.explain(layer, x).problem
        assert problem.macs_dense == share * distinct._inner(problem, "fprop").macs_dense
        assert distinct._inner(problem, "fprop").layer_ties.segments == ((0, 256 // share),)
    assert 0 < distinct.estimate(problem, "fprop", "copy") < math.inf
    tiny = sf.explain(sf.SymmetricConv2d(4, 8, 1, symmetry="h"), torch.empty(1, 4, 5, 5)).problem
    assert dispatch.choose(tiny, "fprop").backend.NAME != "distinct"


def test_chosen_where_nothing_native_runs(monkeypatch):
    """torch's convolution of all filters costs more than that of the distinct ones and the copies."""
    monkeypatch.setattr(dispatch, "BACKENDS", ("distinct", "reference"))
    dispatch._choose.cache_clear()
    sf.ops.forget_plans()
    layer, x = sf.SymmetricConv2d(256, 256, 1, symmetry="hv"), torch.randn(8, 256, 14, 14, requires_grad=True)
    assert {p.backend for p in sf.explain(layer, x).passes} == {"distinct"}
    y, expected = layer(x), layer.to_conv()(x)
    torch.testing.assert_close(y, expected)
    gy = torch.randn_like(y)
    mine, theirs = torch.autograd.grad(y, [x, layer.bias], gy), torch.autograd.grad(expected, x, gy)
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine[1], gy.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    dispatch._choose.cache_clear()
    sf.ops.forget_plans()


def test_it_says_why_not():
    problem = sf.explain(sf.SymmetricConv2d(4, 8, (3, 1), symmetry="v"), torch.empty(1, 4, 5, 5)).problem
    assert (
        distinct.can_run(problem, "fprop", "copy")
        == "no tie mirrors an axis along which the kernel has one tap"
    )
    with (
        sf.backend("distinct"),
        pytest.raises(
            RuntimeError, match=r"pins backend='distinct'.*cannot run fprop here: distinct/copy: no tie"
        ),
    ):
        sf.SymmetricConv2d(4, 8, 3, symmetry="h")(torch.randn(1, 4, 5, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_said_to_run_runs(monkeypatch, dtype, bias):
    """An output in 16 bits is no copy, since a bias added to copies would be their second rounding."""
    copied = []
    monkeypatch.setattr(distinct, "_copy", lambda *args, f=distinct._copy: copied.append(1) or f(*args))
    monkeypatch.setattr(distinct, "estimate", lambda *_: 0.0)  # the quickest wherever it can run
    monkeypatch.setattr(dispatch, "BACKENDS", ("distinct", "reference"))
    dispatch._choose.cache_clear()
    ops.forget_plans()
    layer = sf.SymmetricConvTranspose3d(64, 32, (1, 3, 1), symmetry="hv", bias=bias, dtype=dtype)
    x = torch.randn(1, 64, 8, 24, 24, dtype=dtype)
    wide = dtype.itemsize > 2
    assert sf.explain(layer, x).passes[0].backend == ("distinct" if wide else "reference")
    layer(x)
    assert len(copied) == wide
    with sf.backend("distinct", "copy"):
        if wide:
            layer(x)
            assert len(copied) == 2
        else:
            with pytest.raises(RuntimeError, match="16 bits would be rounded twice"):
                layer(x)
    dispatch._choose.cache_clear()
    ops.forget_plans()


# --- through the operators -----------------------------------------------------------------------------------------


def _layer(**more) -> sf.SymmetricConv2d:
    return sf.SymmetricConv2d(3, 12, (2, 1), symmetry={"h": 2, "hv": 8}, dtype=torch.float64, **more)


def test_every_order_of_derivatives():
    layer, x = _layer(), torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    with sf.backend("distinct"):
        for share in (layer, _layer(share_bias=True)):
            weight, bias = share.weight.detach().requires_grad_(), share.bias.detach().requires_grad_()

            def run(x: Tensor, weight: Tensor, bias: Tensor, ties=share.ties) -> Tensor:
                return sf.functional.symmetric_conv2d(x, weight, bias, symmetry=ties)

            assert torch.autograd.gradcheck(run, (x, weight, bias))
            assert torch.autograd.gradgradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("last", [False, True])
def test_operators_keep_their_contract(last):
    layer, x = _layer(), torch.randn(2, 3, 4, 3, dtype=torch.float64)
    static = (layer.ties.flat, [1, 1], [0, 0], [1, 1], [0, 0], False, 1, last)
    gy = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    with sf.backend("distinct"):
        torch.library.opcheck(ops.fprop, (x.requires_grad_(), weight.requires_grad_(), bias, *static))
        torch.library.opcheck(ops.dgrad, (gy, weight, list(x.shape), *static))
        torch.library.opcheck(ops.wgrad, (gy, x, list(weight.shape), *static))


def test_compiled_batched_and_repeated():
    layer, x = _layer(), torch.randn(4, 2, 3, 5, 4, dtype=torch.float64)
    expected = torch.stack([layer.to_conv()(v) for v in x])
    with sf.backend("distinct"):
        torch.testing.assert_close(torch.vmap(layer)(x), expected)
        torch.testing.assert_close(
            torch.compile(layer, fullgraph=True, backend="aot_eager")(x[0]), expected[0]
        )
        for _ in range(3):  # the second and third time by what is remembered
            y = layer(x[0].requires_grad_())
            torch.testing.assert_close(y, expected[0])
            y.sum().backward()
    theirs = layer.to_conv()
    theirs(x[0]).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 3 * layer.ties.adjoint(theirs.weight.grad))
    torch.testing.assert_close(layer.bias.grad, 3 * theirs.bias.grad)
