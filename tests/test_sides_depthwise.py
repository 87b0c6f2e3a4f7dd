"""Depthwise layers with ties on both sides: filters that are their own images, and orbits that lie across groups.

Every pass of the kernels against torch's convolution on expanded filters in float64; widths around those of the
register windows, channels around the lanes of a vector, several rows a channel, strides and transposed layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sides_oracle import Case
from sides_problems import PASSES, draw_depthwise, exact, format_of, input_of, layer_of, passes

import symconv_fast as sf
from symconv_fast import dispatch, native
from symconv_fast.backends import cpu

pytestmark = pytest.mark.skipif(native.module is None, reason="the native module was not built")

ERROR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", ERROR, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("across", [False, True], ids=["own", "across"])
@pytest.mark.parametrize("block", range(4))
def test_every_pass_is_that_of_the_expansion(dtype: torch.dtype, across: bool, block: int) -> None:
    for number in range(20 * block, 20 * block + 20):
        case, geometry, extents = draw_depthwise(number, across)
        last = number % 3 != 0
        torch.manual_seed(number)
        layer = layer_of(case, dtype, last, **geometry)
        x = input_of(case, extents, dtype, last)
        y, gx, gw, up = exact(case, layer, x, geometry)
        up = up.contiguous(memory_format=format_of(case.ndim, last))
        problem = layer.problem(x)
        assert all(cpu.can_run(problem, op, "fold") is None for op in PASSES), (case, geometry)
        for op, got, true in zip(PASSES, passes(layer, x, up, list(PASSES), "fold"), (y, gx, gw)):
            assert got is not None
            error = (got.double() - true).norm()
            assert error <= ERROR[dtype] * true.norm(), f"{op} of {number}: {error:.2g}, {case}, {geometry}"


def measured(kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Layers of ConvNeXt, 7 x 7."""
    across = kind == "across"
    layer = sf.SymmetricConv2d(
        64, 64, 7, padding=3, groups=64, bias="-" not in kind, symmetry="hv" if across else kind,
        input_symmetry="hv" if across else None,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    return layer, torch.randn(2, 64, 14, 14).to(memory_format=torch.channels_last)


KINDS = ("h+", "h-", "h+v+", "h+v-", "h-v-", "v-", "across")


@pytest.mark.parametrize(
    ("dtype", "threads"),
    [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 1), (torch.float16, 1)],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_as_exact_as_torch(kind: str, dtype: torch.dtype, threads: int) -> None:
    """Error at most twice that of torch's own convolution in the type."""
    layer, x = measured(kind)
    layer, x = layer.to(dtype), x.to(dtype)
    geometry = {"padding": 3}
    case = Case({}, None, 64, 64, (7, 7), groups=64)
    y, gx, gw, up = exact(case, layer, x, geometry)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = passes(layer, x, up, list(PASSES), "fold")
        with sf.backend("reference"):
            x = x.requires_grad_()
            out = layer(x)
            ordinary = [out, *torch.autograd.grad(out, (x, layer.weight), up)]
    finally:
        torch.set_num_threads(before)
    for op, got, torchs, true in zip(PASSES, found, ordinary, (y, gx, gw)):
        error, allowed = ((each.double() - true).norm() / true.norm() for each in (got, torchs))
        assert error <= 2 * allowed + 2.0**-24, f"{op}: {error:.2g} where torch has {allowed:.2g}"


@pytest.mark.parametrize("op", PASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_dispatch_leaves_them_to_these_kernels(kind: str, op: str) -> None:
    layer, x = measured(kind)
    problem = layer.problem(x)
    chosen = dispatch.choose(problem, op)
    assert (chosen.backend.NAME, chosen.algorithm) == ("cpu", "fold")
    selection = cpu.select(problem, op, "fold")
    assert selection.depthwise
    assert "no kernel" not in sf.explain(layer, x).verdict


@pytest.mark.parametrize(
    ("kind", "taps"), [("h+", 28), ("h-", 21), ("v-", 21), ("h+v+", 16), ("h+v-", 12), ("across", 49)]
)
def test_products_are_those_of_what_is_kept(kind: str, taps: int) -> None:
    """Counted by hand: 2 x 14 x 14 results of 64 channels; lines outside of the map are left out."""
    layer, x = measured(kind)
    problem = layer.problem(x)
    inside = 14 * 7 - 2 * (1 + 2 + 3)  # lines of the kernel in the map, over all lines of results
    for op in PASSES:
        selection = cpu.select(problem, op, "fold")
        counts = selection.counts
        assert counts["depthwise/windows"] * selection.lanes == 2 * 14 * 14 * 64 * taps
        done = selection.exact["products"]
        assert done <= 2 * 14 * 14 * 64 * taps * (1 if selection.lanes == 16 else 1.2)
        if kind in ("h+", "across") and selection.lanes == 16:
            assert done == 2 * 64 * 14 * inside * (taps // 7)


@pytest.fixture
def kernels_that_count() -> Iterator[None]:
    native.module.count_kernels(True)
    native.module.take_done()
    yield
    native.module.count_kernels(False)


@pytest.mark.parametrize("across", [False, True], ids=["own", "across"])
def test_what_is_selected_runs_and_is_counted(across: bool, kernels_that_count: None) -> None:
    """One depthwise pass each, whose products are those that the plan says without tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(100, 130):
            case, geometry, extents = draw_depthwise(number, across)
            layer = layer_of(case, torch.float32, True, **geometry)
            x = input_of(case, extents, torch.float32, True)
            problem = layer.problem(x)
            weight = layer.weight.detach()
            up = torch.randn(problem.output_shape).contiguous(memory_format=format_of(case.ndim, True))
            given = {"fprop": (x, weight, None), "dgrad": (up, weight), "wgrad": (up, x)}
            for op in PASSES:
                native.module.reset_counters()
                cpu.bind(problem, op, "fold")(*given[op])
                assert {name: n for name, n in native.module.counters().items() if n} == {"depthwise": 1}
                done, exact_counts = native.module.take_done(), cpu.select(problem, op, "fold").exact
                assert done == exact_counts, (op, case, geometry)
                assert done["products"] > 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["h+", "h-v+"])
def test_nan_at_the_border_stays_where_it_is(kind: str) -> None:
    """The zeros that fill the last chunk of a line must not meet a NaN of the other tensor."""
    layer = sf.SymmetricConv2d(32, 32, 7, padding=3, groups=32, symmetry=kind, bias=False).double()
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(1, 32, 13, 12, dtype=torch.float64).to(memory_format=torch.channels_last)
    x[0, 5, 4, -1] = float("nan")
    found = {}
    for backend in (("cpu", "fold"), ("reference",)):
        with sf.backend(*backend):
            (found[backend[0]],) = torch.autograd.grad(layer(x).sum(), layer.weight)
    assert found["reference"][5].isnan().any()
    assert torch.equal(found["cpu"].isnan(), found["reference"].isnan())


def test_groups_of_several_channels_are_still_expanded() -> None:
    layer = sf.SymmetricConv2d(16, 16, 3, padding=1, groups=4, symmetry="h", input_symmetry="h")
    reason = cpu.can_run(layer.problem(torch.empty(1, 16, 8, 8)), "fprop", "fold")
    assert "exchange groups" in str(reason)


@pytest.mark.parametrize("op", PASSES)
@pytest.mark.parametrize("kind", ["h+", "across"])
def test_other_algorithms_are_refused_with_the_reason(kind: str, op: str) -> None:
    """None of them becomes the fold; orbits across groups have no filters that were expanded natively."""
    layer, x = measured(kind)
    problem = layer.problem(x)
    reasons = {a: cpu.can_run(problem, op, a) for a in cpu.ALGORITHMS}
    assert reasons.pop("fold") is None
    expand = reasons.pop("expand")
    if kind == "across":
        assert expand == "the reference expands filters of orbits that lie across groups"
        with sf.backend("cpu", "expand"), pytest.raises(RuntimeError, match="that lie across groups"):
            layer(x)
    else:
        assert expand is None
    scatter = {reasons.pop("scatter"), reasons.pop("scatter_winograd")}
    own = "a depthwise layer (one input channel in each group) has kernels of its own"
    assert scatter == {own if op == "fprop" else "gradients are gathered, not scattered"}
    assert set(reasons.values()) == {own}
