# What the CPU backend selects is what runs: by counters of the native module, on problems from the whole space.
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import cases
import pytest
import torch
from oracle import OPS, Case, algorithms, arrange, make_tensors, pinned, problem_of, run, threads

import symconv_fast as sf
from symconv_fast.problem import Problem

pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")

from symconv_fast import _cpu
from symconv_fast.backends import cpu
from symconv_fast.backends.cpu.selection import describe

GRID = {**cases.SPECIAL, **{f"random {i}": case for i, case in enumerate(cases.sample(110, 5000))}}
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
# A third of them for each operator.
OF = {op: list(GRID.items())[i::3] for i, op in enumerate(OPS)}
NAMES = {"winograd f2": "fold_f2", "winograd f4": "fold_f4"}
DIRECT = ("direct", "direct_fold")


def native_name(algorithm: str) -> str:
    """That of csrc/cpu/selection/select.h, of one of `oracle.algorithms`."""
    return NAMES.get(algorithm, algorithm.replace("_winograd ", "_"))


def selections(case: Case, dtype: torch.dtype, op: str) -> Iterator[tuple[str, Problem, Any]]:
    """Every algorithm of the backend that runs a case, with what is selected for it."""
    problem = problem_of(case, dtype, op)
    for backend, algorithm in algorithms():
        if backend == "cpu" and algorithm != "relayout":
            selection = cpu.select(problem, op, native_name(algorithm))
            if selection.reason is None:
                yield algorithm, problem, selection


def should_run(algorithm: str, op: str, selection: Any) -> dict[str, int]:
    """What the counters should say."""
    if algorithm == "expand":
        return {"expand": 1}
    if algorithm in DIRECT:
        return {"direct" if algorithm == "direct" else "direct_fold": 1}
    if selection.depthwise:
        return {"depthwise": 1}
    how = {"sum": "sum" if op == "dgrad" else "weight sum"}
    names = (how.get(m["how"], m["how"]) + (" filtered" if m["filtering"] else "") for m in selection.plan)
    return Counter(names)


def ran() -> dict[str, int]:
    """What did, but for copies of tensors."""
    return {name: count for name, count in _cpu.counters().items() if count and name != "copy"}


@pytest.mark.parametrize("op", OPS)
def test_what_is_selected_runs(op: str) -> None:
    """As asked, whatever the strides of the tensors: nothing becomes another algorithm on the way."""
    met = Counter()
    for i, (name, case) in enumerate(OF[op]):
        dtype = DTYPES[i % 4] if i % 2 else torch.float32
        for algorithm, _, selection in selections(case, dtype, op):
            _cpu.reset_counters()
            with threads(1):
                run(case, dtype, op, "cpu", algorithm)
            wanted = should_run(algorithm, op, selection)
            assert ran() == wanted, f"{name}, {dtype}, {algorithm}: {selection.plan}"
            met[algorithm] += 1
    least = {"fprop": 9, "dgrad": 5, "wgrad": 6}[op]
    assert len(met) >= least, met


def arguments(case: Case, dtype: torch.dtype, op: str) -> tuple[Any, ...]:
    """Tensors of an operator, as a pass takes them."""
    t = make_tensors(case, dtype)
    x, w, gy = (arrange(v, layout, dtype) for v, layout in zip((t.x, t.w, t.gy), case.layouts))
    return {"fprop": (x, w, None), "dgrad": (gy, w), "wgrad": (gy, x)}[op]


@pytest.fixture
def kernels_that_count() -> Iterator[None]:
    _cpu.count_kernels(True)
    _cpu.take_done()
    yield
    _cpu.count_kernels(False)


@pytest.mark.parametrize("op", OPS)
def test_exact_counts_are_those_of_the_kernels(op: str, kernels_that_count: None) -> None:
    """Multiply-adds and panels of a run are those that the plan says without tensors."""
    compared = multiplied = 0
    for i, (name, case) in enumerate(OF[op]):
        dtype = DTYPES[i // 2 % 4] if i % 2 else torch.float32
        for algorithm, problem, selection in selections(case, dtype, op):
            if algorithm == "expand":
                assert selection.exact is None
                continue
            with threads(case.threads), pinned("cpu", algorithm) as own:
                cpu.bind(problem, op, own)(*arguments(case, dtype, op))
                done = _cpu.take_done()
                exact = selection.exact
                usual = {"contiguous", "channels_last"} if len(case.kernel) > 1 else {"contiguous"}
                if algorithm in DIRECT and not usual >= set(case.layouts):
                    # They copy lines of tensors as these lie, without kernels or room where they can.
                    exact, done = {"products": exact["products"]}, {"products": done["products"]}
                assert exact == done, f"{name}, {dtype}, {algorithm}"
            compared += 1
            multiplied += done["products"] > 0
    assert multiplied > 0.9 * compared > 60  # of some problems all taps read padding


def layer_problem(layer: torch.nn.Module, x: torch.Tensor, op: str = "fprop") -> Problem:
    report = sf.explain(layer, x)
    return report.problem


def test_products_of_a_fold_are_those_of_its_weights() -> None:
    """Counted by hand: 6 x 8 results, 16 orbits of two, 16 channels, 9 taps, and no lane empty."""
    layer = sf.SymmetricConv2d(16, 32, 3, symmetry="h").to(memory_format=torch.channels_last)
    x = torch.empty(1, 16, 8, 10).to(memory_format=torch.channels_last)
    selection = cpu.select(layer_problem(layer, x), "fprop", "fold")
    with threads(1):
        exact = selection.exact
    assert exact["products"] == 6 * 8 * 16 * 16 * 9
    # Three sums a line that the panel holds, of which there are two more than of results.
    assert exact["panel_bytes"] == 4 * 8 * 8 * 16 * 3
    assert exact["workspace"] > exact["panel_bytes"]
    assert selection.counts["pixels/multiply_adds"] * selection.lanes == exact["products"]


STEM, WIDE = 3, 64
# Products of a pass over those of its folded weights at every position of the result (of the source for gradients of
# the input), of 3 x 3 taps on a map of 34 x 34: by hand, less a rim that kernels may leave out or multiply.
BY_HAND = {
    ("fold", "fprop", WIDE): 1.0,
    ("fold_f2", "fprop", WIDE): 4 / 6,
    ("fold_f4", "fprop", WIDE): 6 / 12,
    ("scatter", "fprop", WIDE): 34 / 32,  # of every column of the source
    ("scatter_f2", "fprop", WIDE): 34 / 32 * 4 / 6,
    ("scatter_f4", "fprop", WIDE): 34 / 32 * 6 / 12,
    ("fold", "dgrad", WIDE): 34 / 32,
    ("fold", "wgrad", WIDE): 34 / 32,
    ("direct", "fprop", STEM): 2.0,  # each filter by itself
    ("direct", "wgrad", STEM): 2.0,
    ("direct", "dgrad", STEM): 2.0 * 32 / 27,  # taps and channels are the lanes
    ("direct_fold", "fprop", STEM): 1.0,
    ("direct_fold", "wgrad", STEM): 1.0,
    ("direct_fold", "dgrad", STEM): 1.0,
}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("algorithm", "op", "channels"), BY_HAND)
def test_products_are_those_of_a_hand(algorithm: str, op: str, channels: int, last: bool) -> None:
    """What kernels count and what the cost model goes by, both."""
    fmt = torch.channels_last if last else torch.contiguous_format
    layer = sf.SymmetricConv2d(channels, 64, 3, symmetry="h", bias=False).to(memory_format=fmt)
    x = torch.empty(1, channels, 34, 34).to(memory_format=fmt)
    selection = cpu.select(layer_problem(layer, x, op), op, algorithm)
    assert selection.reason is None
    with threads(1):
        exact = selection.exact["products"]
    counted = (
        sum(n for unit, n in selection.counts.items() if unit.endswith("/multiply_adds")) * selection.lanes
    )
    wanted = BY_HAND[algorithm, op, channels] * layer.weight.numel() * 32 * 32
    assert exact == pytest.approx(wanted, rel=0.15)
    assert counted == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("positions", [7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_of_a_word_is_multiplied_as_a_whole_one(dtype: torch.dtype, positions: int) -> None:
    """A sum over positions, which instructions for bfloat16 take in pairs."""
    layer = sf.SymmetricConv1d(64, 128, 1, symmetry=None, bias=False).to(dtype)
    problem = layer_problem(layer, torch.empty(1, 64, positions, dtype=dtype), "wgrad")
    with threads(1):
        exact = cpu.select(problem, "wgrad", "fold").exact
    in_pairs = dtype == torch.bfloat16 and _cpu.isa() in ("avx512_bf16", "amx_bf16")
    assert exact["products"] == 64 * 128 * (8 if in_pairs else positions)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("channels", [3, 32])
def test_two_groups_are_twice_the_work_of_one(channels: int, op: str, last: bool) -> None:
    """Whatever it is counted in, but for what every call and every pass costs."""
    fmt = torch.channels_last if last else torch.contiguous_format
    found = {}
    for groups in (1, 2):
        layer = sf.SymmetricConv2d(groups * channels, groups * 64, 3, symmetry="h", groups=groups)
        x = torch.empty(2, groups * channels, 20, 20).to(memory_format=fmt)
        problem = layer_problem(layer.to(memory_format=fmt), x, op)
        for algorithm in _cpu.Algorithm.__members__:
            selection = cpu.select(problem, op, algorithm)
            if selection.reason is None and algorithm != "expand":
                counts = {
                    unit: n
                    for unit, n in selection.counts.items()
                    if "call" not in unit and "pass" not in unit
                }
                found[groups, algorithm] = {"sorted": selection.sorted, **counts}
    once = {algorithm: counts for (groups, algorithm), counts in found.items() if groups == 1}
    assert len(once) >= (1 if op != "fprop" and channels == 32 else 3)
    for algorithm, counts in once.items():
        assert found[2, algorithm] == {unit: 2 * n for unit, n in counts.items()}, algorithm


def resnext(width: int, stride: int = 1, symmetry: Any = "h") -> tuple[torch.nn.Module, torch.Tensor]:
    """A layer of 32 groups, and its input."""
    layer = sf.SymmetricConv2d(32 * width, 32 * width, 3, stride, 1, groups=32, symmetry=symmetry)
    x = torch.empty(1, 32 * width, 28, 28)
    return layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_narrow_groups_share_vectors(op: str, isa: str) -> None:
    """Products by hand: one for each tap of each lane that an orbit and a channel meet in, and none with a zero."""
    for width in (4, 8):
        problem = layer_problem(*resnext(width), op)
        selection = _cpu.select(
            describe(problem), getattr(_cpu.Op, op), _cpu.Algorithm.fold, isa=getattr(_cpu.Isa, isa)
        )
        assert selection.depthwise
        macs = 28 * 28 * 9 * 32 * width * width // 2
        assert selection.counts["depthwise/windows"] * selection.lanes == macs
        assert selection.counts["depthwise/shared"] > 0


@pytest.mark.parametrize("op", OPS)
def test_what_does_not_share_vectors(op: str) -> None:
    """Wide groups, strides and mixtures have panels."""
    for more in ({"width": 16}, {"width": 4, "stride": 2}, {"width": 4, "symmetry": {"h": "50%"}}):
        selection = cpu.select(layer_problem(*resnext(**more), op), op, "fold")
        assert not selection.depthwise, more
        assert selection.reason is None


@pytest.mark.parametrize("op", OPS)
def test_panels_of_narrow_groups_are_not_chosen(op: str) -> None:
    """Nothing was measured of them that would hold: torch's convolution on expanded filters runs."""
    problem = layer_problem(*resnext(4, 2), op)
    able = [name for name in cpu.ALGORITHMS if cpu.can_run(problem, op, name) is None]
    assert min(able, key=lambda name: cpu.estimate(problem, op, name)) == "expand"


def test_a_refused_selection_cannot_be_run() -> None:
    problem = layer_problem(sf.SymmetricConv2d(16, 32, 3, symmetry="h"), torch.empty(1, 16, 8, 10))
    selection = cpu.select(problem, "dgrad", "scatter")
    assert selection.reason == "gradients are gathered, not scattered"
    more = {
        "dilation": (1, 1),
        "output_padding": (0, 0),
        "filters": (),
        "strides": (),
        "asked": torch.float32,
    }
    with pytest.raises(RuntimeError, match="scatter cannot run: gradients are gathered, not scattered"):
        _cpu.Pass(selection, **more)
    forward = _cpu.Pass(cpu.select(problem, "fprop", "scatter"), **more)
    with pytest.raises(RuntimeError, match="dgrad was called of a pass that is fprop"):
        forward.dgrad(torch.empty(problem.output_shape), torch.empty(problem.weight_shape))
    with pytest.raises(RuntimeError, match="input must be Float, got Double"):
        forward.fprop(torch.empty(problem.input_shape).double(), torch.empty(problem.weight_shape), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_of_one_value_is_copied_and_scattered(dtype: torch.dtype) -> None:
    """Its strides are 0; the scatter reads lines, and is what was pinned."""
    layer = sf.SymmetricConv2d(32, 64, 3, padding=1, symmetry="h", bias=False).to(dtype)
    x = torch.ones(1, 1, 1, 1, dtype=dtype).expand(2, 32, 9, 20)
    with sf.backend("cpu", "scatter"), torch.no_grad():
        _cpu.reset_counters()
        got = layer(x)
        assert _cpu.counters()["copy"] == 1
        assert ran() == {"scatter": 1}
        assert torch.equal(got, layer(x.contiguous()))


def test_of_a_mixture_what_shares_no_products_is_folded() -> None:
    """Which the plan says; where no segment is scattered, the whole is refused."""
    x = torch.empty(1, 16, 12, 12)
    layer = sf.SymmetricConv2d(16, 64, 3, symmetry={"h": "50%"})
    selection = cpu.select(layer_problem(layer, x), "fprop", "scatter")
    assert [m["how"] for m in selection.plan] == ["scatter", "fold"]
    untied = cpu.select(layer_problem(sf.SymmetricConv2d(16, 64, 3, symmetry={}), x), "fprop", "scatter")
    assert "no tie whose mirrored taps share their products" in untied.reason
    assert untied.plan == []


def test_a_scatter_that_is_not_filtered_is_not_one_with_filtering() -> None:
    """Though what is folded beside it would be: of half the filters three taps are tied, of the others free."""
    layer = sf.SymmetricConv2d(32, 64, (3, 2), padding=(1, 1), symmetry={"v": "50%"})
    x = torch.empty(1, 32, 16, 16).to(memory_format=torch.channels_last)
    problem = layer_problem(layer.to(memory_format=torch.channels_last), x)
    plain = cpu.select(problem, "fprop", "scatter")
    assert [(m["how"], m["filtering"]) for m in plain.plan] == [("scatter", ""), ("fold", "")]
    folded = cpu.select(problem, "fprop", "fold_f2")
    assert [m["filtering"] for m in folded.plan] == ["", "f2"]
    assert "no axis is free of ties and has three taps" in cpu.select(problem, "fprop", "scatter_f2").reason


def test_other_instructions_are_counted_and_not_run() -> None:
    problem = layer_problem(sf.SymmetricConv2d(16, 24, 3, symmetry="h"), torch.empty(1, 16, 8, 10))
    known = cpu.selection.describe(problem)
    found = {
        name: _cpu.select(known, _cpu.Op.fprop, _cpu.Algorithm.fold, isa=isa)
        for name, isa in _cpu.Isa.__members__.items()
    }
    assert found["avx2"].lanes == 2 * found["baseline"].lanes == 8
    assert found["avx512"].lanes == found["avx512_bf16"].lanes == 16
    assert found[_cpu.isa()].counts == cpu.select(problem, "fprop", "fold").counts
    other = next(name for name in found if name != _cpu.isa())
    with pytest.raises(RuntimeError, match="selected for other instructions than"):
        _cpu.Pass(
            found[other], dilation=(1, 1), output_padding=(0, 0), filters=(), strides=(), asked=torch.float32
        )


def test_what_does_not_fit_is_not_described() -> None:
    sizes = {"input": (1, 2, 5, 5), "weight": (3, 2, 3, 3), "output": (1, 6, 3, 3)}
    more = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "transposed": False, "groups": 1}
    lies = {"type": torch.float32, "source_last": False, "result_last": False}
    _cpu.Problem(ties=[1, 3], **sizes, **more, **lies)
    with pytest.raises(RuntimeError, match="ties do not fit the weight: 2 rows and 5 filters in a group"):
        _cpu.Problem(ties=[1, 2], **sizes, **more, **lies)
    with pytest.raises(RuntimeError, match="stride, padding and dilation must have 2 values each"):
        _cpu.Problem(ties=[1, 3], **sizes, **{**more, "stride": (1,)}, **lies)


def _odd_gradient(kind: str, shape: torch.Size) -> torch.Tensor:
    """An upstream gradient that does not lie as the output of a channels_last layer."""
    if kind == "sum":
        return torch.ones(()).expand(shape)
    if kind == "mean of maps":
        return torch.randn(*shape[:2], *(1 for _ in shape[2:])).expand(shape)
    return torch.randn(shape)


@pytest.mark.parametrize("kind", ["sum", "mean of maps", "contiguous"])
@pytest.mark.parametrize("last", [True, False])
def test_an_upstream_gradient_that_lies_otherwise_is_copied_once(kind: str, last: bool) -> None:
    """For the gradients of input and weight together, which are those of the copy, bit by bit."""
    layer = sf.SymmetricConv2d(16, 32, 3, padding=1, symmetry="h")
    x = torch.randn(2, 16, 9, 10)
    fmt = torch.channels_last if last else torch.contiguous_format
    layer, x = layer.to(memory_format=fmt), x.to(memory_format=fmt).requires_grad_()
    y = layer(x)
    grad = _odd_gradient(kind, y.shape)
    if kind == "contiguous" and not last:
        grad = grad.to(memory_format=torch.channels_last)
    leaves = (x, layer.weight, layer.bias)
    matching = torch.autograd.grad(y, leaves, grad.contiguous(memory_format=fmt), retain_graph=True)
    _cpu.reset_counters()
    odd = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    assert _cpu.counters()["copy"] == 1
    for ours, theirs in zip(odd[:2], matching[:2]):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    torch.testing.assert_close(odd[2], matching[2])
    _cpu.reset_counters()
    torch.autograd.grad(y, layer.bias, grad)
    assert _cpu.counters()["copy"] == 0  # which no layout helps
