# The CUDA kernels end to end without a GPU: every family on the stand-in, through the backend, against the oracle.
"""Slow kernels of small problems: what a thread of theirs does is simulated. Special and random problems, in turn with
the types; the rest of both is left to the full suite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cuda_fake
import cuda_grid
import cuda_host
import oracle
import pytest
import torch
from cuda_grid import ALGORITHMS, BF16, DTYPES, FP16, FP32, OPS
from oracle import Case

import symconv_fast as sf
from symconv_fast import ops
from symconv_fast.backends import cuda
from symconv_fast.backends.cuda import backend, families, limits
from symconv_fast.backends.triton.geometry import geometry, pixel_strides


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Any]:
    with cuda_fake.stand_in(cuda_host.module()) as module:
        yield module


def built() -> set[str]:
    """Algorithms and passes whose family is part of the sources."""
    folder = cuda_host.ROOT / "csrc" / "cuda"
    there = {path.parent.name for path in folder.glob("*/instances.txt")}
    return {f"{algorithm} {op}" for (algorithm, op), name in families.FAMILIES.items() if name in there}


def runs() -> list[Any]:
    """Every problem that an algorithm has to take: special ones in one type each by turns; the rest is for `full`."""
    found, turn = [], 0
    for name, case in cuda_grid.grid().items():
        for algorithm in ALGORITHMS:
            for op in OPS:
                if f"{algorithm} {op}" not in built():
                    continue
                takes = [dtype for dtype in DTYPES if cuda_grid.must_run(case, dtype, op, algorithm)]
                turn += 1
                for dtype in takes:
                    quick = dtype == takes[turn % len(takes)] and not name.startswith("random")
                    marks = () if quick else pytest.mark.full
                    title = f"{algorithm}, {op}, {str(dtype)[6:]}, {name}"
                    found.append(pytest.param(case, dtype, op, algorithm, id=title, marks=marks))
    return found


@pytest.mark.parametrize(("case", "dtype", "op", "algorithm"), runs())
def test_equals_the_oracle(case: Case, dtype: torch.dtype, op: str, algorithm: str) -> None:
    cuda_grid.check(case, dtype, op, algorithm)


@pytest.mark.parametrize(
    ("part", "dtypes"),
    [
        ("special", (BF16, FP32)),
        pytest.param("special", (FP16,), marks=pytest.mark.full),
        pytest.param("random", DTYPES, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_refused_may_be(algorithm: str, part: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """For the reason that is given; the rest of the grid is what runs above."""
    wrong = []
    for name, case in cuda_grid.grid().items():
        for dtype in dtypes if name.startswith("random") == (part == "random") else ():
            for op in OPS:
                reason = backend.can_run(oracle.problem_of(case, dtype, op), op, algorithm)
                must = f"{algorithm} {op}" in built() and cuda_grid.must_run(case, dtype, op, algorithm)
                absent = f"{algorithm} {op}" not in built() and "was built without" in (reason or "")
                right = reason is None or absent or cuda_grid.refused(case, reason, dtype, op)
                if must != (reason is None) or not right:
                    wrong.append(f"{op}, {dtype}, {name}: {reason}")
    assert not wrong, "\n".join(wrong)


def test_every_kernel_is_met() -> None:
    """By some problem of the grid; and what a problem is said to launch is there."""
    listed, met = {name for name, _ in cuda.listing()}, set()
    for case in cuda_grid.grid().values():
        for algorithm, op in families.FAMILIES:
            for dtype in DTYPES if f"{algorithm} {op}" in built() else ():
                if cuda_grid.must_run(case, dtype, op, algorithm):
                    met |= set(backend.kernels(oracle.problem_of(case, dtype, op), op, algorithm))
    assert met == listed, f"no problem launches {sorted(listed - met)}, not listed: {sorted(met - listed)}"


# --- how exactly, how often, where -----------------------------------------------------------------------------------

# Root mean square error against float64, as a multiple of one rounding of operands or result: what the fold costs.
LIMITS = {1: 1.8, 2: 2.2, 3: 2.6}
WIDE = {
    "h": Case(ties=((1, 16),), channels=48, spatial=(9, 11), padding=(1, 1), bias=False),
    "v": Case(ties=((2, 16),), channels=48, spatial=(9, 11), padding=(1, 1), bias=False),
    "hv": Case(ties=((3, 16),), channels=48, spatial=(9, 11), padding=(1, 1), bias=False),
    "hvz": Case(
        ndim=3, ties=((7, 8),), channels=24, spatial=(4, 5, 6), kernel=(3, 3, 3), stride=(1,) * 3, padding=(1,) * 3,
        dilation=(1,) * 3, output_padding=(0,) * 3, bias=False,
    ),
}  # fmt: skip
WIDE = {
    name: replace(case, layouts=("channels_last",) * 3, result_last=True, batch=2)
    for name, case in WIDE.items()
}
DEPTHWISE = replace(WIDE["hv"], ties=((3, 16),), channels=16, groups=16)


def full(parameters: Any) -> Any:
    """The same for the full suite alone."""
    return pytest.param(*parameters.values, id=parameters.id, marks=pytest.mark.full)


def ways(cases: dict[str, Case], dtypes: tuple[torch.dtype, ...]) -> list[Any]:
    """What of these must run: (case, dtype, op, algorithm)."""
    return [
        pytest.param(case, dtype, op, algorithm, id=f"{algorithm}, {op}, {str(dtype)[6:]}, {name}")
        for name, case in cases.items()
        for algorithm in ALGORITHMS
        for op in OPS
        if f"{algorithm} {op}" in built()
        for dtype in dtypes
        if cuda_grid.must_run(case, dtype, op, algorithm)
    ]


def tensors(case: Case, seed: int = 0) -> dict[str, torch.Tensor]:
    """Normal values in float64: x, w and gy."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": case.input_shape, "w": case.weight_shape, "gy": case.output_shape}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def run_op(case: Case, op: str, t: dict[str, torch.Tensor], algorithm: str) -> torch.Tensor:
    last = {n: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for n, v in t.items()}
    x, w, gy = last["x"], last["w"], last["gy"]
    with sf.backend("cuda", algorithm):
        if op == "fprop":
            return ops.fprop(x, w, None, *case.static)
        if op == "dgrad":
            return ops.dgrad(gy, w, list(case.input_shape), *case.static)
        return ops.wgrad(gy, x, list(case.weight_shape), *case.static)


def exact(case: Case, op: str, t: dict[str, torch.Tensor]) -> torch.Tensor:
    """The pass in float64."""
    x, w = (t[name].double().clone().requires_grad_() for name in ("x", "w"))
    y = oracle.convolve(case, x, oracle.expand(w, case), None)
    if op == "fprop":
        return y.detach()
    return torch.autograd.grad(y, x if op == "dgrad" else w, t["gy"].double())[0]


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To a type of 16 bits, or to the 10 bits of TF32, half away from zero."""
    if dtype != FP32:
        return values.to(dtype).double()
    whole = values.float().view(torch.int32)
    return ((whole + 0x1000) & ~0x1FFF).view(torch.float32).double()


def ordinary_error(case: Case, op: str, t: dict[str, torch.Tensor], dtype: torch.dtype) -> float:
    """Of an ordinary convolution in a type: it rounds the expanded filters and operands, sums exactly, rounds once."""
    truth, seen = exact(case, op, t), {name: rounded(values, dtype) for name, values in t.items()}
    result = exact(case, op, seen)
    result = result if dtype == FP32 else rounded(result, dtype)
    return float((result - truth).square().mean().sqrt())


@pytest.mark.parametrize(("case", "dtype", "op", "algorithm"), ways(WIDE, DTYPES))
def test_rounding(case: Case, dtype: torch.dtype, op: str, algorithm: str) -> None:
    """As exact as an ordinary convolution of the type, but for the roundings of the fold."""
    t = {name: values.to(dtype) for name, values in tensors(case).items()}
    mine = float((run_op(case, op, t, algorithm).double() - exact(case, op, t)).square().mean().sqrt())
    order = max(mask.bit_count() for mask, _ in case.ties)
    # The tensors have the type already: an ordinary convolution rounds its result, or the operands of TF32.
    assert mine <= LIMITS[order] * ordinary_error(case, op, t, dtype)


@pytest.mark.parametrize(("case", "dtype", "op", "algorithm"), ways(WIDE | {"depthwise": DEPTHWISE}, (FP16,)))
def test_sums_of_float16_do_not_overflow(case: Case, dtype: torch.dtype, op: str, algorithm: str) -> None:
    """Members and mirrored pixels near the largest float16, whose sums are beyond it."""
    t = {name: values.sign() for name, values in tensors(case).items()}
    big = "x" if op != "dgrad" else "gy"
    t = {name: (values.abs() * 48000 if name == big else values / 4096).half() for name, values in t.items()}
    result, answer = run_op(case, op, t, algorithm), exact(case, op, t)
    assert result.isfinite().all()
    scale = float(answer.abs().max())
    assert float((result.double() - answer).abs().max()) <= 2e-3 * max(scale, 48000 / 4096 * 8)


@pytest.mark.parametrize(("case", "dtype", "op", "algorithm"), ways(WIDE | {"depthwise": DEPTHWISE}, (BF16,)))
def test_same_arguments_give_the_same_bits(
    machine: Any, case: Case, dtype: torch.dtype, op: str, algorithm: str
) -> None:
    """Whatever the order in which warps run."""
    t = {name: values.to(dtype) for name, values in tensors(case).items()}
    results = []
    for seed in range(3):
        machine.set_seed(seed)
        results.append(run_op(case, op, t, algorithm))
    machine.set_seed(0)
    assert results[0].abs().sum() > 0
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("case", "dtype", "op", "algorithm"),
    ways({"hv": WIDE["hv"], "depthwise": DEPTHWISE}, (BF16,)),
)
def test_what_lies_outside_of_the_tensors_is_not_touched_unseen(
    monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype, op: str, algorithm: str
) -> None:
    """A planner that tells of one image too many is an error that names the access."""
    family = families.planner(algorithm, op)
    right = family.parameters

    def wrong(call: families.Request) -> dict[str, int]:
        fields: dict[str, int] = right(call)
        return fields | {"batch": fields["batch"] + 1}

    monkeypatch.setattr(family, "parameters", wrong)
    cuda_fake.forget()
    t = {name: values.to(dtype) for name, values in tensors(case).items()}
    with pytest.raises(RuntimeError, match=r"cannot run: .*(outside|bounds)"):
        run_op(case, op, t, algorithm)
    monkeypatch.undo()
    cuda_fake.forget()


MOST_SHARED = 227 << 10
DEVICES = {
    "sm_80": limits.Limits("sm_80", (8, 0), 163 << 10, 3, True),
    "sm_86": limits.Limits("sm_86", (8, 6), 99 << 10, 2, True),
    "sm_90": limits.Limits("sm_90", (9, 0), MOST_SHARED, 1, True),
    "sm_120": limits.Limits("sm_120", (12, 0), 99 << 10, 7, True),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("case", "dtype", "op", "algorithm"),
    [*ways({"hv": WIDE["hv"], "depthwise": DEPTHWISE}, (BF16, FP32)), *map(full, ways(WIDE, (FP16,)))],
)
def test_every_kind_of_device(
    machine: Any, monkeypatch: pytest.MonkeyPatch, device: str, case: Case, dtype: torch.dtype, op: str, algorithm: str
) -> None:  # fmt: skip
    """Plans for other shared memories and numbers of multiprocessors are right too, or refused for their memory."""
    monkeypatch.setattr(limits, "STAND_IN", DEVICES[device])
    cuda_fake.forget()
    machine.set_multiprocessors(DEVICES[device].multiprocessors)
    try:
        reason = backend.can_run(oracle.problem_of(case, dtype, op), op, algorithm)
        if reason is None:
            machine.reset_counts()
            cuda_grid.check(case, dtype, op, algorithm)
            most = max(launch["shared_bytes"] for launch in machine.launches())
            assert most <= DEVICES[device].shared_bytes
        elif algorithm == "hopper":
            assert (reason.endswith(f"not of {device}")) == (device != "sm_90"), reason
        else:
            assert "shared memory" in reason
            assert DEVICES[device].shared_bytes < MOST_SHARED
    finally:
        machine.set_multiprocessors(limits.STAND_IN.multiprocessors)
        cuda_fake.forget()


@pytest.mark.parametrize("tie", ["h", "hv"])
def test_a_layer_and_its_gradients(tie: str) -> None:
    """Where every pass has a kernel of its own."""
    if not {"tile fprop", "tile dgrad", "tile wgrad"} <= built():
        pytest.skip("not every pass has kernels")
    layer = sf.SymmetricConv2d(16, 64, 3, padding=1, stride=2, symmetry=tie).bfloat16()
    x = torch.randn(2, 16, 9, 11).bfloat16().requires_grad_()
    results = []
    for name in ("cuda", "reference"):
        with sf.backend(name):
            y = layer(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=float(theirs.detach().abs().max()) / 40, rtol=0.05)


def native_parameters(case: Case, op: str, algorithm: str, bias: bool) -> Any:
    """The native object of a problem with dense tensors in bfloat16."""
    problem, planner = oracle.problem_of(case, BF16, op), families.planner(algorithm, op)
    g, last = geometry(problem), planner.LAYOUT == families.CHANNELS_LAST
    depth, height, width = (axis[0] for axis in g.axes)
    row = g.channels * depth * height * width
    strides = {
        "x": pixel_strides(problem.input_shape, last),
        "y": pixel_strides(problem.output_shape, last),
        "w": (g.rows * row, row, depth * height * width, height * width, width, 1),
    }
    fields = planner.parameters(families.Request(problem, op, strides, limits.of(), bias=bias))
    return families.native_class(algorithm, op)(**fields)


THIN = Case(ties=((1, 4),), channels=4, groups=4, spatial=(9, 6), padding=(1, 1))


@pytest.mark.parametrize("missing", ["x", "w", "y", "workspace", "bias"])
@pytest.mark.parametrize(("algorithm", "op"), families.FAMILIES)
def test_a_missing_tensor_is_said(machine: Any, algorithm: str, op: str, missing: str) -> None:
    """Nothing is read from null or written there: on a GPU that would end all work of the process on the device."""
    thin = algorithm == "depthwise"
    params = native_parameters(
        THIN if thin else cuda_grid.LARGE["large, h"], op, algorithm, missing == "bias"
    )
    assert params.check() == ""
    needed = {"workspace": params.workspace() > 0, "bias": thin and op == "fprop"}
    if not needed.get(missing, True):
        return
    given = dict.fromkeys(("x", "w", "bias", "y", "workspace"), 1 << 12) | {missing: 0}
    machine.clear_buffers()
    said = params.launch(**given, stream=0, device=0)
    assert said == "a tensor is missing"


def test_depthwise_numbers_that_belong_to_nothing(machine: Any) -> None:
    """Odd members of an orbit are not loaded in pairs; rows of the weight that no tie has are not summed."""
    params = native_parameters(THIN, "wgrad", "depthwise", False)
    fields = {name: getattr(params, name) for name in params.FIELDS}
    assert fields["y_stride_c"] % 2 == 0
    memory = torch.zeros(1 << 12, dtype=torch.float32)
    machine.clear_buffers()
    machine.register_buffer(memory.data_ptr(), 4 << 12, True)
    places = [memory.data_ptr()] * 2 + [0] + [memory.data_ptr() + (1 << 12), memory.data_ptr() + (1 << 13)]
    odd = machine.DepthwiseParams(**fields | {"y_stride_c": fields["y_stride_c"] + 1})
    assert "not aligned" not in odd.launch(*places, 0, 0)
    more = machine.DepthwiseParams(**fields | {"rows": 2})
    assert more.check() == "some rows of the weight are in no segment"
    assert params.launch(places[0] + 2, *places[1:], 0, 0) == "tensors must start at multiples of 16 bytes"
