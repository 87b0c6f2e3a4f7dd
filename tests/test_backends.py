# Every backend and algorithm against the float64 oracle, over the whole space of problems.
"""The grid: special cases by hand and seeded random ones, which together hold every value of every axis.

Backends, algorithms and dtypes are picked up from dispatch and from `can_run`; what cannot run is one skipped test with
the backend's own reason. The full product of the axes has some 10^12 problems, so it is sampled.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import cases
import pytest
import refusals
import torch
from oracle import (
    LAYOUTS,
    OPS,
    Case,
    algorithms,
    arrange,
    candidates,
    check,
    convolve,
    expand,
    make_tensors,
    pinned,
    run,
)

from symconv_fast import native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SAMPLE = 64
GRID: dict[str, Case] = cases.SPECIAL | {f"random {i}": case for i, case in enumerate(cases.sample(SAMPLE))}


PLAIN = {"reference/expand", "cpu/expand"}
"""torch's own kernels do the work in these, so a dtype is nothing new to them."""


class Run(NamedTuple):
    """What `check` wants to know, and the name of the problem."""

    name: str
    dtype: torch.dtype
    op: str
    backend: str
    algorithm: str

    @property
    def where(self) -> str:
        return f"{self.backend}/{self.algorithm}"

    @property
    def kind(self) -> tuple[object, ...]:
        """What `make test` meets all of."""
        case = GRID[self.name]
        return case.ndim, case.transposed, self.dtype, self.op, self.where


def _runs_and_refusals() -> tuple[list[Run], list[tuple[Run, str]]]:
    """All that runs, and all that cannot with its reason."""
    runs, refusals = [], []
    for dtype in DTYPES:
        for name, case in GRID.items():
            for op in OPS:
                for backend, algorithm, reason in candidates(case, dtype, op):
                    run_ = Run(name, dtype, op, backend, algorithm)
                    if reason is None:
                        runs.append(run_)
                    else:
                        refusals.append((run_, reason))
    return runs, refusals


def _in_one_dtype(runs: list[Run]) -> set[Run]:
    """Of each problem, pass and algorithm the dtype of which there are fewest so far, and the first of every kind."""
    dtypes: dict[Run, list[Run]] = defaultdict(list)
    for run_ in runs:
        dtypes[run_._replace(dtype=None)].append(run_)
    kept: Counter[tuple[object, ...]] = Counter()
    chosen = set()
    for same in dtypes.values():
        fewest = min(same, key=lambda run_: kept[run_.kind])
        taken = {fewest} | {run_ for run_ in same if not kept[run_.kind]}
        kept.update(run_.kind for run_ in taken)
        chosen |= taken
    return chosen


def _grid() -> list[Any]:
    """A parameter for everything that runs, and one skipped for each reason why something does not."""
    quick = _in_one_dtype(ALL)
    parameters = []
    for run_ in ALL:
        marks = [pytest.mark.full] if run_.where in PLAIN and run_ not in quick else []
        title = f"{run_.where}, {str(run_.dtype)[6:]}, {run_.op}, {run_.name}"
        parameters.append(pytest.param(run_, id=title, marks=marks))
    reasons = Counter((run_.where, run_.dtype, run_.op, reason) for run_, reason in REFUSALS)
    for (where, dtype, op, reason), count in reasons.items():
        mark = pytest.mark.skip(reason=f"{where}: {reason}")
        title = f"{where}, {str(dtype)[6:]}, {op}, {count} of {len(GRID)} problems"
        parameters.append(pytest.param(None, id=title, marks=mark))
    return parameters


ALL, REFUSALS = _runs_and_refusals()
RUNS = _grid()


@pytest.mark.parametrize("case", RUNS)
def test_equals_the_oracle(case: Run) -> None:
    check(GRID[case.name], *case[1:])


# --- the grid itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_grid_holds_every_value_of_every_axis(ndim: int) -> None:
    grid = [case for case in GRID.values() if case.ndim == ndim]
    axes: dict[str, tuple[set, set]] = {
        "tie": ({mask for case in grid for mask, _ in case.ties}, {m for m in cases.MASKS if m < 1 << ndim}),
        "number of ties": ({min(len(case.ties), 2) for case in grid}, {1, 2}),
        "kernel": ({k for case in grid for k in case.kernel}, {1, 2, 3, 4, 5}),
        "stride": ({s for case in grid for s in case.stride}, set(cases.STRIDE)),
        "dilation": ({d for case in grid for d in case.dilation}, set(cases.DILATION)),
        "padding": ({p for case in grid for p in case.padding}, set(cases.PADDING)),
        "transposed": ({case.transposed for case in grid}, {False, True}),
        "output padding": ({max(case.output_padding) > 0 for case in grid}, {False, True}),
        "groups": ({min(case.groups, 4) for case in grid}, {1, 2, 3, 4}),
        "depthwise": ({case.channels == case.groups > 1 for case in grid}, {False, True}),
        "channels of a group": ({case.channels // case.groups for case in grid}, {1, 2, 3, 5, 16}),
        "batch": ({case.batch for case in grid}, set(cases.BATCH)),
        "one output pixel": ({set(case.output_shape[2:]) == {1} for case in grid}, {False, True}),
        "bias": ({case.bias for case in grid}, {False, True}),
        "threads": ({case.threads for case in grid}, set(cases.THREADS)),
        "layout of the result": ({case.result_last for case in grid}, {False, True} if ndim > 1 else {False}),
    }
    axes |= {
        f"layout of {name}": ({case.layouts[i] for case in grid}, set(LAYOUTS))
        for i, name in enumerate(("x", "w", "gy"))
    }
    missing = {name: wanted - have for name, (have, wanted) in axes.items() if wanted - have}
    assert not missing


def test_every_pass_of_every_algorithm_is_in_the_grid() -> None:
    """In every dtype that it is for; where there is a GPU, its kernels have grids of their own."""
    ran = {(run_.where, run_.op, run_.dtype) for run_ in ALL}
    there = {
        (f"{backend}/{algorithm}", op, dtype)
        for backend, algorithm in algorithms()
        for op in OPS
        for dtype in DTYPES
        if backend not in ("cuda", "triton") and refusals.has_pass(f"{backend}/{algorithm}", op, dtype)
    }
    assert {way for way in ran if not way[0].startswith(("cuda", "triton"))} == there


def test_what_is_refused_may_be() -> None:
    wrong = {
        f"{run_.where}, {run_.op}, {run_.dtype}, {run_.name}: {reason}"
        for run_, reason in REFUSALS
        if not refusals.is_right(GRID[run_.name], run_.dtype, run_.op, run_.where, reason)
    }
    assert not wrong


@pytest.mark.parametrize(
    ("name", "where", "reason"),
    [
        ("h", "cpu/fold", "no fold today"),
        ("h", "cpu/fold", "a transposed layer"),
        ("direct", "cpu/direct", "more than 4 input channels in a group"),
        ("h", "cpu/scatter", "no tie whose mirrored taps share their products in this layout, or more"),
        ("winograd, h", "cpu/winograd f2", "no axis is free of ties and has three taps, stride 1 and so on"),
        ("winograd, h", "cpu/scatter_winograd f2", "no axis is free of ties and has three taps, stride 1"),
    ],
)
def test_a_wrong_refusal_is_found(name: str, where: str, reason: str) -> None:
    assert not refusals.is_right(GRID[name], torch.float32, "fprop", where, reason)


@pytest.mark.parametrize(
    ("reason", "skipped"),
    [
        ("its instructions are those of compute capability 9.0, not of sm_80", True),
        ("the native CUDA module was not built for sm_90; build it, where nvcc is", True),
        (
            "the cuda backend is not available in this installation (the native CUDA module was not built; b)",
            True,
        ),
        (
            "the cuda backend is not available in this installation (_cuda.so is of version 0; build it)",
            False,
        ),
        (
            "the cuda backend is not available in this installation (_cuda.so cannot be loaded: no cudart)",
            False,
        ),
        ("the triton backend is not available in this installation (cannot import name 'jit')", False),
        ("a tensor is too large for offsets of 32 bits", False),
        ("no fold today", False),
    ],
)
def test_no_test_is_skipped_for_a_reason_that_nobody_listed(reason: str, skipped: bool) -> None:
    """Of those that only a GPU can run."""
    assert refusals.may_skip(reason) == skipped


def test_make_test_meets_every_algorithm_in_every_dtype_and_pass() -> None:
    """Whatever the whole grid meets, but for marked problems of the same kind."""
    met: dict[bool, set[tuple[object, ...]]] = {False: set(), True: set()}
    for parameter in RUNS:
        (run_,) = parameter.values
        if run_ is not None:
            met[any(mark.name == "full" for mark in parameter.marks)].add(run_.kind)
    assert met[True]
    assert met[True] - met[False] == set()


def test_the_oracle_fails_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of 324 that is off by a single product, in the 16-bit type too, is found."""
    case = GRID["mixed 2-D"]
    for dtype in (torch.float32, torch.bfloat16):
        for op in OPS:
            good = run(case, dtype, op, "reference", "expand")
            bad = good.clone()
            bad.view(-1)[-1] = bad.view(-1)[-1] * 1.05 + 0.05
            for result, fails in ((good, False), (bad, True)):
                monkeypatch.setattr("oracle.run", lambda *_, result=result: result)
                if fails:
                    with pytest.raises(AssertionError, match=r"1 of .* values are wrong.*tests/replay.py"):
                        check(case, dtype, op, "cpu", "fold")
                else:
                    check(case, dtype, op, "reference", "expand")


def test_layouts_are_what_they_say() -> None:
    values = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    strides = {layout: arrange(values, layout, torch.float32).stride() for layout in LAYOUTS}
    assert strides["contiguous"] == (120, 30, 6, 1)
    assert strides["channels_last"] == (120, 1, 24, 4)
    assert strides["transposed"][0] == 1
    assert strides["expanded"] == (0, 1, 0, 0)
    assert strides["scalar"] == (0, 0, 0, 0)
    inside = arrange(values, "sliced", torch.float64)
    assert torch.equal(inside, values)
    assert inside.stride() == (6 * 7 * 8, 7 * 8, 8, 1)
    assert inside.storage_offset() > 0
    assert (
        torch.empty(0, dtype=torch.float64).set_(inside.untyped_storage()).isnan().sum()
        == 5 * 6 * 7 * 8 - 360
    )


# --- beside the values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "algorithm"), algorithms())
@pytest.mark.parametrize("transposed", [False, True])
def test_empty_batch_is_empty_whatever_is_pinned(backend: str, algorithm: str, transposed: bool) -> None:
    case = replace(GRID["h"], batch=0, transposed=transposed)
    assert run(case, torch.float32, "fprop", backend, algorithm).shape == case.output_shape
    assert run(case, torch.float32, "dgrad", backend, algorithm).shape == case.input_shape
    weight = run(case, torch.float32, "wgrad", backend, algorithm)
    assert weight.shape == case.weight_shape
    assert not weight.any()


NAN_CASES = (
    "mixed 2-D, channels last",
    "groups",
    "stride past the kernel",
    "winograd, h",
    "winograd, v, no padding",
)


def _runs(names: tuple[str, ...], ops: tuple[str, ...]) -> list[tuple[str, str, str, str]]:
    """(backend, algorithm, op, name) of all that can run in float32."""
    return [
        (backend, algorithm, op, name)
        for name in names
        for op in ops
        for backend, algorithm, reason in candidates(GRID[name], torch.float32, op)
        if reason is None
    ]


@pytest.mark.parametrize(("backend", "algorithm", "op", "name"), _runs(NAN_CASES, ("fprop", "dgrad")))
def test_nan_reaches_what_depends_on_it_and_nothing_else(
    backend: str, algorithm: str, op: str, name: str
) -> None:
    """A NaN in the middle of one image spoils the windows that hold it: never hidden, never spread to other images.

    Minimal filtering shares sums between neighbouring windows, so it may spoil some more, of the same image.
    """
    case, dtype = replace(GRID[name], bias=False), torch.float32
    t = make_tensors(case, torch.float64)
    x, gy = t.x.clone(), t.gy.clone()
    if op == "fprop":
        x[1, 1, 3, 3] = float("nan")
    else:
        gy[1, 1, 2, 2] = float("nan")
    leaf = x.clone().requires_grad_()
    y = convolve(case, leaf, expand(t.w, case), None)
    wanted = (y if op == "fprop" else torch.autograd.grad(y, leaf, gy)[0]).isnan()
    first = arrange(x if op == "fprop" else gy, case.layouts[0], dtype)
    w = arrange(t.w, case.layouts[1], dtype)
    with pinned(backend, algorithm):
        if op == "fprop":
            got = torch.ops.symconv_fast.fprop(first, w, None, *case.static).isnan()
        else:
            got = torch.ops.symconv_fast.dgrad(first, w, list(case.input_shape), *case.static).isnan()
    assert wanted.any()
    assert got[wanted].all()
    assert not got[0].any()
    if algorithm in ("fold", "scatter", "direct", "expand"):
        assert torch.equal(got, wanted)


SAME_CASES = ("mixed 2-D, channels last", "winograd, h")


@pytest.mark.parametrize(("backend", "algorithm", "op", "name"), _runs(SAME_CASES, OPS))
def test_same_arguments_give_the_same_bits(backend: str, algorithm: str, op: str, name: str) -> None:
    case, dtype = replace(GRID[name], spatial=(24, 23), threads=2), torch.float32
    first = run(case, dtype, op, backend, algorithm)
    assert first.abs().sum() > 0
    for _ in range(5):
        assert torch.equal(run(case, dtype, op, backend, algorithm), first)


SIZES = {"kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "output_padding": 0}


@pytest.mark.parametrize(
    ("algorithm", "ties", "channels", "spatial"),
    [
        ("direct_fold", ((1, 16),), 1, (262, 262)),
        ("direct_fold", ((3, 16),), 1, (184, 184)),
        ("scatter", ((7, 2),), 16, (36, 62, 62)),
        ("scatter", ((7, 2),), 16, (13, 64, 171)),
    ],
)
def test_results_that_are_stored_past_the_caches_are_right(
    algorithm: str, ties: tuple[tuple[int, int], ...], channels: int, spatial: tuple[int, ...]
) -> None:
    """Channels_last ones of 8 MiB and more. Scatters keep planes for the results beside, in parts, and in tiles."""
    last = ("channels_last",) * 3
    case = Case(
        ndim=len(spatial), ties=ties, channels=channels, spatial=spatial, batch=1, layouts=last, result_last=True,
        threads=2, **{name: (size,) * len(spatial) for name, size in SIZES.items()},
    )  # fmt: skip
    assert 4 * math.prod(case.output_shape) >= 8 << 20
    check_native(case, "fprop", algorithm)


def check_native(case: Case, op: str, algorithm: str) -> None:
    """In float32, where the native module was built."""
    missing = native.missing()
    if missing == "the native module was not built":
        pytest.skip(missing)
    assert missing is None
    check(case, torch.float32, op, "cpu", algorithm)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("orbits", "channels", "spatial", "stride"), [(2, 24, (5, 60, 50), 1), (3, 40, (9, 66, 66), 2)]
)
def test_planes_take_turns_in_strips(
    op: str, orbits: int, channels: int, spatial: tuple[int, ...], stride: int
) -> None:
    """Volumes of few orbits, of which a stage cannot keep all lines of the planes that a tile reads."""
    sizes = SIZES | {"padding": 1, "stride": stride}
    case = Case(
        ndim=3, ties=((7, orbits),), channels=channels, spatial=spatial, batch=1, layouts=("channels_last",) * 3,
        result_last=True, threads=2, **{name: (size,) * 3 for name, size in sizes.items()},
    )  # fmt: skip
    check_native(case, op, "fold")


def test_gradients_of_volumes_that_are_stored_past_the_caches_are_right() -> None:
    """Channels of a position are whole cache lines, of all phases of a stride."""
    sizes = SIZES | {"padding": 1, "stride": 2}
    case = Case(
        ndim=3, ties=((7, 2),), channels=16, spatial=(35, 62, 63), batch=1, layouts=("channels_last",) * 3,
        result_last=True, threads=2, **{name: (size,) * 3 for name, size in sizes.items()},
    )  # fmt: skip
    assert 4 * math.prod(case.input_shape) >= 8 << 20
    check_native(case, "dgrad", "fold")
