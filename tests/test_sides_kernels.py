"""The CPU's kernels for ties on both sides: every pass, by every algorithm that takes it, against the expansion.

The expansion itself is held against the definition in test_sides.py.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from sides_oracle import Case
from sides_problems import DTYPES, KINDS, PASSES, SIZES, TORCH_ERROR, draw, exact, format_of, layer_of, passes

import symconv_fast as sf
from symconv_fast import native
from symconv_fast.backends import cpu

pytestmark = pytest.mark.skipif(native.module is None, reason="the native module was not built")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("block", range(8))
def test_every_pass_is_that_of_the_expansion(dtype: torch.dtype, block: int) -> None:
    ran = dict.fromkeys(PASSES, 0)
    for number in range(block * 21, block * 21 + 21):
        case, geometry = draw(number)
        last = number % 3 == 0
        torch.manual_seed(number)
        layer = layer_of(case, dtype, last, **geometry)
        x = (
            torch.randn(2, case.channels, *SIZES[case.ndim])
            .to(dtype)
            .contiguous(memory_format=format_of(case.ndim, last))
        )
        y, gx, gw, up = exact(case, layer, x, geometry)
        up = up.contiguous(memory_format=format_of(case.ndim, last))
        problem = layer.problem(x)
        for algorithm in cpu.ALGORITHMS:
            able = [op for op in PASSES if cpu.can_run(problem, op, algorithm) is None]
            for op, got, true in zip(PASSES, passes(layer, x, up, able, algorithm), (y, gx, gw)):
                if op not in able:
                    continue
                error = (got.double() - true).norm() / true.norm()
                assert error <= TORCH_ERROR[dtype], f"{op} by {algorithm}: {error:.2g}, {case}, {geometry}"
                ran[op] += algorithm == "fold"
    assert min(ran.values()) >= 12, f"too few of them ran by panels: {ran}"


# The tie of both sides, batch, channels, filters, kernel, size, and the rest of the geometry: blocks that fill vectors,
# halves of them and neither; lines that fill vectors, and those that follow each other where they would not; more of
# them than are folded together, and than a tile has; contractions of several chains; a stride.
LINES = {
    "lines of 16": ("hvz", 2, 64, 64, (3, 3, 3), (6, 5, 16), {"padding": 1}),
    "wide blocks": ("hvz", 1, 128, 192, (3, 3, 3), (5, 4, 9), {"padding": 1}),
    "odd blocks": ("hvz", 3, 24, 40, (3, 2, 3), (4, 6, 5), {"padding": 1}),
    "long lines": ("hvz", 1, 16, 64, (1, 3, 5), (2, 3, 70), {"padding": (0, 1, 2)}),
    "some tiles": ("hvz", 1, 16, 8, (3, 3, 3), (20, 19, 18), {"padding": 1}),
    "a stride": ("hvz", 1, 64, 128, (3, 3, 3), (9, 7, 11), {"padding": 1, "stride": 2}),
    "far taps": ("hvz", 1, 64, 64, (3, 3, 3), (7, 8, 9), {"padding": 2, "dilation": 2}),
    "transposed": ("hvz", 2, 64, 48, (3, 3, 3), (5, 4, 6), {"padding": 1}),
    "a plane": ("hv", 2, 64, 64, (3, 3), (9, 56), {"padding": 1}),
    "short lines of a plane": ("hv", 3, 20, 28, (3, 3), (11, 7), {"padding": 1}),
    "many tiles of a plane": ("hv", 1, 16, 32, (5, 3), (70, 37), {"padding": (2, 1)}),
    "even taps of a plane": ("hv", 2, 32, 16, (2, 4), (8, 34), {"padding": (1, 2), "stride": (1, 2)}),
    "transposed plane": ("hv", 2, 32, 48, (3, 3), (9, 17), {"padding": 1}),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LINES)
def test_lines_are_folded_along_the_width_by_the_matrix_kernel(
    name: str, last: bool, dtype: torch.dtype
) -> None:
    tie, batch, channels, filters, kernel, size, geometry = LINES[name]
    case = Case({tie: filters}, {tie: channels}, channels, filters, kernel, transposed="transposed" in name)
    torch.manual_seed(0)
    layer = layer_of(case, dtype, last, **geometry)
    ndim = len(kernel)
    x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=format_of(ndim, last))
    y, gx, gw, up = exact(case, layer, x, geometry)
    up = up.contiguous(memory_format=format_of(ndim, last))
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            for op, got, true in zip(PASSES, passes(layer, x, up, list(PASSES), "fold"), (y, gx, gw)):
                error = (got.double() - true).norm() / true.norm()
                assert error <= TORCH_ERROR[dtype], f"{op}, {number} threads: {error:.2g}"
    finally:
        torch.set_num_threads(threads)


# Batch, kernel, size, the rest of the geometry, and the case: pieces of a line, orbits of two products, signs and a tap
# that is its own negative, strides along which no tap is apart from its image, groups; channels that are exchanged.
FEW_CHANNELS = {
    "a bank of filters": (2, (200,), {}, Case({"h+": 80}, None, 1, 80, (31,))),
    "odd taps": (2, (61,), {"stride": 2, "padding": 3}, Case({"h-": 16}, None, 3, 16, (9,))),
    "no tap in the middle": (1, (70,), {"padding": 2}, Case({"h+": 32, "h-": 32}, None, 2, 64, (4,))),
    "many orbits": (1, (50,), {"padding": 3}, Case({"h+": 800}, None, 1, 800, (7,))),
    "both axes": (2, (12, 19), {"stride": (2, 1), "padding": 2}, Case({"h+v-": 32}, None, 3, 32, (5, 3))),
    "far taps": (1, (17, 40), {"padding": 3, "dilation": (2, 3)}, Case({"h-v-": 16}, None, 2, 16, (3, 3))),
    "groups": (1, (9, 40), {"padding": 1}, Case({"v-": 64}, None, 4, 64, (3, 5), groups=2)),
    "volumes": (1, (6, 5, 20), {"padding": 1, "stride": 2}, Case({"h-v-z+": 16}, None, 2, 16, (3, 3, 3))),
    "bases": (2, (150,), {"padding": 4}, Case({"h": 64}, {"h": (3, 2, 1, 0)}, 4, 64, (21,))),
    "a base that stays": (1, (90,), {"stride": 2}, Case({"h": 32}, {"h": (0, 2, 1)}, 3, 32, (8,))),
    "pairs of pairs": (2, (12, 35), {"padding": 1}, Case({"hv": 64}, {"hv": 4}, 4, 64, (3, 4))),
    "a letter that stays": (1, (9, 21), {"padding": 2}, Case({"hv": 64}, {"v": 2}, 3, 64, (5, 3))),
    "one letter of two": (1, (9, 21), {"stride": (1, 2)}, Case({"h": 32}, {"hv": 4}, 4, 32, (3, 3))),
    "groups of pairs": (
        1,
        (70,),
        {"padding": 2},
        Case({"h": 64}, {"h": (1, 0, 3, 2)}, 4, 64, (5,), groups=2),
    ),
    "octuples of pairs": (1, (5, 6, 19), {"padding": 1}, Case({"hvz": 128}, {"hz": 4}, 4, 128, (3, 3, 3))),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", FEW_CHANNELS)
def test_gradients_of_few_channels_are_made_of_the_products_of_kept_taps(
    name: str, last: bool, dtype: torch.dtype
) -> None:
    batch, size, geometry, case = FEW_CHANNELS[name]
    torch.manual_seed(0)
    layer = layer_of(case, dtype, last, **geometry)
    x = (
        torch.randn(batch, case.channels, *size)
        .to(dtype)
        .contiguous(memory_format=format_of(case.ndim, last))
    )
    _, gx, _, up = exact(case, layer, x, geometry)
    up = up.contiguous(memory_format=format_of(case.ndim, last))
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            (got,) = passes(layer, x, up, ["dgrad"], "direct_fold")[1:2]
            error = (got.double() - gx).norm() / gx.norm()
            assert error <= TORCH_ERROR[dtype], f"{number} threads: {error:.2g}"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_what_is_selected_runs_and_is_what_was_counted(kind: int) -> None:
    """Multiplications by their kind, and products and panels as the plan has them without tensors."""
    from symconv_fast import _cpu

    compared = 0
    _cpu.count_kernels(True)
    try:
        for number in range(kind, 12 * len(KINDS), len(KINDS)):
            case, geometry = draw(number)
            layer = layer_of(case, torch.float32, False, **geometry)
            x = torch.randn(2, case.channels, *SIZES[case.ndim])
            problem = layer.problem(x)
            up, weight = torch.randn(problem.output_shape), layer.weight.detach()
            for op, arguments in zip(PASSES, ((x, weight, None), (up, weight), (up, x))):
                selection = cpu.select(problem, op, "fold")
                if selection.reason is not None or selection.depthwise:
                    continue
                _cpu.take_done(), _cpu.reset_counters()
                cpu.bind(problem, op, "fold")(*arguments)
                done, counters = _cpu.take_done(), _cpu.counters()
                assert selection.exact == done, f"{op}, {case}, {geometry}"
                how = {"sum": "sum" if op == "dgrad" else "weight sum"}
                wanted = Counter(how.get(m["how"], m["how"]) for m in selection.plan)
                assert {name: n for name, n in counters.items() if n and name != "copy"} == wanted
                compared += 1
    finally:
        _cpu.count_kernels(False)
    assert compared >= 12


@pytest.mark.parametrize("op", PASSES)
@pytest.mark.parametrize(
    ("symmetry", "inputs", "share"),
    [
        ("h", "h", 2),
        ("hv", "hv", 4),
        ("hv", "h", 4),
        ("h", "hv", 2),
        ("h", {"h": tuple(range(63, -1, -1))}, 2),
        ("h+", "h", 2),
        ("h-v+", "hv", 4),
    ],
)
def test_products_are_those_of_the_weight(op: str, symmetry: str, inputs: object, share: int) -> None:
    """An axis of four taps has none in the middle, and 64 channels and orbits leave no lane empty."""
    layer = sf.SymmetricConv2d(64, 256, 4, symmetry=symmetry, input_symmetry=inputs, bias=False)
    x = torch.empty(1, 64, 19, 32)
    selection = cpu.select(layer.problem(x), op, "fold")
    dense = 256 * 64 * 16 * 16 * 29  # those of the gradient of the input have more positions
    assert dense / share <= selection.exact["products"] <= 2 * dense / share
    counted = sum(n for unit, n in selection.counts.items() if unit.endswith("/multiply_adds"))
    assert 0.6 <= counted * selection.lanes / selection.exact["products"] <= 1.3


REVERSED = {"h": tuple(range(15, -1, -1))}


@pytest.mark.parametrize(
    ("symmetry", "inputs", "ops"),
    [
        ({"h": 16}, {"h": 16}, PASSES),
        ({"hv": 16}, {"hv": 16}, PASSES),
        ({"h+": 16}, None, PASSES),
        ({"h-v+": 16}, None, PASSES),
        ({"h": 16}, REVERSED, PASSES),
        ({"h-": 16}, REVERSED, PASSES),
        ({"h": 16}, {"h": (1, 0, *range(2, 16))}, PASSES),
        ({"h+v-": 16}, {"hv": 16}, PASSES),
        ({"hv": 16}, {"h": 16}, PASSES),
        ({"h": 16}, {"hv": 16}, PASSES),
        ({"h": 16}, {"h": 8}, PASSES),
        ({"h": 8}, {"h": 16}, ("fprop", "wgrad")),
        ({"h+": 8, "h-": 8}, None, ("fprop", "wgrad")),
        ({"h-v+": 16}, {"h": 16}, ("fprop", "wgrad")),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_panels_take_these_ties(symmetry, inputs, ops, dtype: torch.dtype) -> None:
    layer = sf.SymmetricConv2d(16, 16, 4, padding=1, symmetry=symmetry, input_symmetry=inputs, bias=False)
    problem = layer.to(dtype).problem(torch.empty(1, 16, 14, 14, dtype=dtype))
    assert tuple(op for op in PASSES if cpu.can_run(problem, op, "fold") is None) == ops
    assert all(cpu.can_run(problem, op, "expand") is None for op in PASSES)


@pytest.mark.parametrize(
    ("symmetry", "inputs", "groups", "op", "reason"),
    [
        ({"h": 8}, {"h": 16}, 1, "dgrad", "several ties, whose gradients are folded one by one"),
        ({"h+": 8, "h-": 8}, None, 1, "dgrad", "several ties, whose gradients are folded one by one"),
        ({"h-v+": 16}, {"h": 16}, 1, "dgrad", "along others none"),
        ({"hv": 16}, REVERSED | {"v": REVERSED["h"]}, 1, "fprop", "move an input channel alike"),
        ({"h": 16}, {"h": 16}, 4, "fprop", "exchange groups"),
    ],
)
def test_what_panels_do_not_take_is_refused_with_the_reason(symmetry, inputs, groups, op, reason) -> None:
    layer = sf.SymmetricConv2d(
        16, 16, 4, padding=1, symmetry=symmetry, input_symmetry=inputs, groups=groups, bias=False
    )
    x = torch.randn(1, 16, 8, 8)
    problem = layer.problem(x)
    assert reason in str(cpu.can_run(problem, op, "fold"))
    with sf.backend("reference"):
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", PASSES)
@pytest.mark.parametrize("algorithm", ["scatter", "scatter_winograd", "direct", "direct_fold"])
@pytest.mark.parametrize(
    ("symmetry", "inputs", "reason"),
    [
        ("h", "h", "mirrors of its filters move input channels"),
        ("h+", "h", "mirrors of its filters move input channels"),
        ("h+", None, "its filters are their own images"),
    ],
)
def test_panels_alone_are_made_for_them(symmetry, inputs, reason: str, algorithm: str, op: str) -> None:
    """Stems that the other algorithms would take without: what is pinned is refused, and nothing else runs."""
    layer = sf.SymmetricConv2d(4, 32, 3, padding=1, symmetry=symmetry, input_symmetry=inputs, bias=False)
    x = torch.randn(1, 4, 12, 12, requires_grad=True)
    if (symmetry, inputs) != ("h+", "h") and (algorithm, op) == (
        "direct_fold",
        "dgrad",
    ):  # products of kept taps
        assert cpu.can_run(layer.problem(x), op, algorithm) is None
        return
    assert cpu.can_run(layer.problem(x), op, algorithm) == reason
    plain = sf.SymmetricConv2d(4, 32, 3, padding=1, symmetry="h", bias=False)
    assert (cpu.can_run(plain.problem(x), op, algorithm) is None) == (op == "fprop" or "direct" in algorithm)
    y, (leaf,) = layer(x), {"dgrad": [x], "wgrad": [layer.weight], "fprop": [None]}[op]
    with sf.backend("cpu", algorithm), pytest.raises(RuntimeError, match=f"cannot run {op} here: .*{reason}"):
        layer(x) if op == "fprop" else torch.autograd.grad(y.sum(), leaf)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ((1, 0, 3, 2), None),
        ((1, 0, 2, 3), "its mirrors move input channels of one group otherwise than those of another"),
        ((2, 3, 0, 1), "its mirrors exchange groups"),
        ((0, 2, 1, 3), "its mirrors exchange groups"),
    ],
)
def test_groups_move_their_own_channels_alike(table: tuple[int, ...], reason: str | None) -> None:
    from symconv_fast import _cpu

    known = _cpu.Problem(
        ties=[-10, 0, 0, 2, 4, 1, *table, 1, 6], stride=(1,), padding=(0,), dilation=(1,), transposed=False, groups=2,
        input=(1, 4, 9), weight=(6, 2, 3), output=(1, 12, 7), type=torch.float32, source_last=False, result_last=False,
    )  # fmt: skip
    for op in (_cpu.Op.fprop, _cpu.Op.dgrad, _cpu.Op.wgrad):
        for algorithm in _cpu.Algorithm.__members__.values():
            found = _cpu.select(known, op, algorithm).reason
            assert found == reason or (
                reason is None and algorithm not in (_cpu.Algorithm.fold, _cpu.Algorithm.expand)
            )


def test_channels_that_lie_together_are_not_sorted_in_a_stage() -> None:
    layer = sf.SymmetricConv2d(16, 16, 3, padding=1, symmetry="h", input_symmetry=REVERSED, bias=False)
    layer, x = layer.to(memory_format=torch.channels_last), torch.randn(1, 16, 8, 8)
    x = x.to(memory_format=torch.channels_last)
    for op in PASSES:
        assert "one by one" in str(cpu.can_run(layer.problem(x), op, "fold"))
        assert cpu.can_run(layer.problem(x), op, "expand") is None


def test_a_panel_of_few_channels_is_multiplied_by_orbits() -> None:
    """One-hot bases fill no vectors; their gradient, of which nothing was measured that would hold, is not folded."""
    layer = sf.SymmetricConv1d(4, 64, 21, symmetry="h", input_symmetry={"h": (3, 2, 1, 0)}, bias=False)
    problem = layer.problem(torch.empty(1, 4, 1000))
    (plan,) = cpu.select(problem, "wgrad", "fold").plan
    assert plan["of_input"]
    assert cpu.estimate(problem, "dgrad", "fold") == math.inf > cpu.estimate(problem, "wgrad", "fold")
    wide = sf.SymmetricConv1d(64, 64, 21, symmetry="h", input_symmetry="h", bias=False)
    (plan,) = cpu.select(wide.problem(torch.empty(1, 64, 1000)), "wgrad", "fold").plan
    assert not plan["of_input"]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ((0, 0, 2, 2, 1, 1, 0), None),
        ((0, 0, 2, 2, 1, 1, 1), "its ties are not well formed"),  # no involution
        ((0, 0, 2, 2, 1, 5, 0), "its ties are not well formed"),  # of more channels
        ((0, 0, 2, 2, 3, 1, 0), "its ties are not well formed"),  # of another letter
        ((0, 0, 1, 1, 1, 1, 1), None),
        ((0, 0, 1, 2, 1, 1, 1), "its ties are not well formed"),  # half a row in a group
        ((0, 0, 1, 1, 2, 1, 1), "its ties are not well formed"),  # of another segment
        ((1, 0, 1, 1, 1, 1, 1), "its mirrors exchange groups"),
        ((0, 0, 3, 1, 1, 1, 1), "its ties are not well formed"),
    ],
)
def test_a_head_of_flat_ties_is_read_with_care(head: tuple[int, ...], reason: str | None) -> None:
    from symconv_fast import _cpu

    known = _cpu.Problem(
        ties=[-1 - len(head), *head, 1, 3], stride=(1,), padding=(0,), dilation=(1,), transposed=False, groups=1,
        input=(1, 2, 9), weight=(3, 2, 3), output=(1, 6, 7), type=torch.float32, source_last=False, result_last=False,
    )  # fmt: skip
    assert _cpu.select(known, _cpu.Op.fprop, _cpu.Algorithm.fold).reason == reason
    with pytest.raises(RuntimeError, match="ties are of 2 input channels, not 4"):
        _cpu.Problem(
            ties=[-8, 0, 0, 2, 2, 1, 1, 0, 1, 3], stride=(1,), padding=(0,), dilation=(1,), transposed=False,
            groups=1, input=(1, 4, 9), weight=(3, 4, 3), output=(1, 6, 7), type=torch.float32, source_last=False,
            result_last=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("head", "groups", "channels"),
    [
        ((-9, 1, 0, 0), 1, 2),  # longer than all that there is
        ((-3, 0, 0, 0), 1, 2),  # without what moves channels
        ((-4, 0, -1, 0), 1, 2),  # a kernel of less than no dims
        ((-4, 0, 1, 0), 1, 2),  # a kernel beyond the head
        ((-5, 0, 0, 0, 7), 1, 2),  # more than nothing
        ((-9, 0, 0, 2, 3, 1, 1, 0, 2), 2, 3),  # channels that groups do not share evenly
    ],
)
def test_a_head_that_does_not_fit_is_refused(head: tuple[int, ...], groups: int, channels: int) -> None:
    from symconv_fast import _cpu

    known = _cpu.Problem(
        ties=[*head, 1, 6], stride=(1,), padding=(0,), dilation=(1,), transposed=False, groups=groups,
        input=(1, channels, 9), weight=(6, channels // groups, 3), output=(1, 12, 7), type=torch.float32,
        source_last=False, result_last=False,
    )  # fmt: skip
    for algorithm in (_cpu.Algorithm.fold, _cpu.Algorithm.expand):
        assert _cpu.select(known, _cpu.Op.fprop, algorithm).reason == "its ties are not well formed"
