# The composed backend: its index arithmetic against brute force, its saving, its rounding, its memory, its estimate.
"""Beside the grid of test_backends.py, which has every value of every problem."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import cases
import pytest
import torch
from oracle import OPS, Case, check, make_tensors, problem_of
from torch.utils.flop_counter import FlopCounterMode

from symconv_fast import dispatch
from symconv_fast.backends import composed, composed_axes, composed_plan, reference, torch_conv
from symconv_fast.problem import Problem
from symconv_fast.symmetry import Symmetry


def one_axis(choose: random.Random, transposed: bool) -> Problem:
    """A problem with one tied axis of random geometry, with at least one output."""
    kernel, stride = choose.randint(1, 7), choose.randint(1, 4)
    dilation, padding = choose.randint(1, 4), choose.randint(0, 5)
    reach = dilation * (kernel - 1) + 1
    size = choose.randint(1, 12)
    if transposed:
        while (size - 1) * stride - 2 * padding + reach < 1:
            size += 1
    else:
        size = max(size, reach - 2 * padding)
    static = ([1, 1], [stride], [padding], [dilation], [0], transposed, 1, False)
    return Problem.create(((1, 1, size), (1, 1, kernel)), static, False, torch.float64, "cpu")


def products(problem: Problem) -> set[tuple[int, int, int, int]]:
    """(member, input, output, tap of the weight) of every product, from the definition."""
    (size,), (out,), (kernel,) = problem.spatial, problem.out_spatial, problem.kernel
    (stride,), (padding,), (dilation,) = problem.stride, problem.padding, problem.dilation
    found = set()
    for member, k, q, p in itertools.product((0, 1), range(kernel), range(size), range(out)):
        place = dilation * (kernel - 1 - k if member else k)
        fits = p == stride * q - padding + place if problem.transposed else q == stride * p - padding + place
        if fits:
            found.add((member, q, p, k))
    return found


@pytest.mark.parametrize("transposed", [False, True])
def test_phases_and_lines_hold_every_product_once(transposed: bool) -> None:
    choose = random.Random(0)
    for _ in range(300):
        problem = one_axis(choose, transposed)
        (size,), (out,) = problem.spatial, problem.out_spatial
        by_inputs, by_outputs = [], []
        for phase in composed_axes.phases(problem, 0):
            inputs = range(phase.start, size, phase.step)
            assert phase.count == len(inputs)
            for member, (i, q) in itertools.product((0, 1), enumerate(inputs)):
                for position, shift in phase.reach[member]:
                    if 0 <= phase.scale * i + shift < out:
                        by_inputs.append((member, q, phase.scale * i + shift, phase.taps[position]))
            for line in composed_axes.lines(phase, out):
                places = range(line.start, out, line.step)
                assert line.length == len(places)
                for member, (j, p) in itertools.product((0, 1), enumerate(places)):
                    run = line.runs[member]
                    for n in range(run.length if run else 0):
                        i = j + run.offset + n * run.offset_step
                        if 0 <= i < phase.count:
                            tap = phase.taps[run.position + n * run.position_step]
                            by_outputs.append((member, inputs[i], p, tap))
        wanted = sorted(products(problem))
        assert sorted(by_inputs) == wanted, problem
        assert sorted(by_outputs) == wanted, problem


TIES = {"h": (1, (14, 14)), "v": (2, (14, 14)), "hv": (3, (14, 14)), "hvz": (7, (6, 6, 6))}


def problem(tie: str, dtype: torch.dtype = torch.float32, channels: int = 16, **more: object) -> Problem:
    """A layer of 64 filters, 3 taps an axis, padding 1."""
    mask, spatial = TIES[tie]
    ndim = len(spatial)
    rows = 64 >> mask.bit_count()
    one = [1] * ndim
    static = ([mask, rows], one, one, one, [0] * ndim, False, 1, False)
    sizes = (2, channels, *spatial), (rows, channels, *[3] * ndim)
    return replace(Problem.create(sizes, static, False, dtype, "cpu"), **more)


def run(module: dispatch.Backend, p: Problem, op: str, algorithm: str, dtype: torch.dtype | None = None):
    """The operator on seeded normal values of the problem's type."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": p.input_shape, "w": p.weight_shape, "gy": p.output_shape}
    t = {name: torch.randn(shape, generator=generator).to(p.dtype) for name, shape in shapes.items()}
    if dtype is not None:
        p, t = replace(p, dtype=dtype), {name: value.to(dtype) for name, value in t.items()}
    if op == "fprop":
        return module.fprop(p, algorithm, t["x"], t["w"], None)
    first, second = (t["gy"], t["w"]) if op == "dgrad" else (t["gy"], t["x"])
    return getattr(module, op)(p, algorithm, first, second)


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("op", OPS)
def test_multiplies_once_for_all_members(tie: str, op: str) -> None:
    """What torch counts is the work of the reduced weight; forward also of the halo, one position on either side."""
    p = problem(tie)
    with FlopCounterMode(display=False) as counter:
        run(composed, p, op, "fold")
    halo = 1.0
    if op == "fprop":
        for axis in composed_plan.segments(p, "fold")[0].axes:
            halo *= (p.spatial[axis] + 2) / p.spatial[axis]
    assert counter.get_total_flops() == pytest.approx(2 * p.macs_folded * halo)


def test_partial_folds_one_axis() -> None:
    p = problem("hv")
    with FlopCounterMode(display=False) as counter:
        run(composed, p, "dgrad", "partial")
    assert counter.get_total_flops() == 4 * p.macs_folded
    assert composed.can_run(p, "fprop", "partial") is None
    assert composed.can_run(problem("h"), "fprop", "partial") == "no tie has more than one axis"
    free = replace(problem("h"), ties=((0, 64),), unique=64)
    assert composed.can_run(free, "fprop", "fold") == "nothing is tied"


def backward_in_float32(p: Problem, *tensors, backward=torch_conv.backward) -> torch.Tensor:
    """Stands for `torch_conv.backward` of a device that adds in float32 and rounds once."""
    *wide, which = (t.float() if isinstance(t, torch.Tensor) else t for t in tensors)
    return backward(replace(p, dtype=torch.float32), *wide, which).to(p.dtype)


LIMITS = {"h": 1.7, "v": 1.7, "hv": 2.1, "hvz": 2.5}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("op", OPS)
def test_rounding_of_16_bit_types(
    tie: str, dtype: torch.dtype, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root mean square error as a multiple of rounding the exact result once: the rule of the project.

    The gradients of the inner convolution are those of a GPU, added in float32 and rounded once; on a CPU, torch's
    float16 ones are up to 3.6 times off by themselves.
    """
    monkeypatch.setattr(composed.torch_conv, "backward", backward_in_float32)
    p = problem(tie, dtype, channels=32)
    exact = run(reference, p, op, "expand", torch.float64)
    once = (exact.to(dtype).double() - exact).square().mean().sqrt()
    for algorithm in composed.ALGORITHMS:
        if composed.can_run(p, op, algorithm) is None:
            error = (run(composed, p, op, algorithm).double() - exact).square().mean().sqrt()
            assert 1 <= error / once <= LIMITS[tie], (algorithm, float(error / once))


@pytest.mark.parametrize("algorithm", composed.ALGORITHMS)
@pytest.mark.parametrize("op", OPS)
def test_large_batches_are_done_in_parts(op: str, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(cases.SPECIAL["mixed 2-D"], batch=5)
    p = problem_of(case, torch.float64, op)
    one = max(composed_plan.inner_bytes(replace(p, batch=1), s) for s in composed_plan.segments(p, algorithm))
    monkeypatch.setattr(composed_plan, "CHUNK_BYTES", 2 * one)
    parts = [composed_plan.chunks(p, s) for s in composed_plan.segments(p, algorithm)]
    assert max(map(len, parts)) == 3
    dispatch._choose.cache_clear()
    check(case, torch.float64, op, "composed", algorithm)


def test_peak_memory_is_bounded_by_the_parts() -> None:
    """The largest tensor made inside is no larger than it was said to be, halo and all."""
    case = Case(ties=((3, 8),), channels=8, spatial=(20, 20), padding=(1, 1), batch=4)
    p, t = problem_of(case, torch.float32, "fprop"), make_tensors(case, torch.float32)
    (segment,) = composed_plan.segments(p, "fold")
    phases = next(composed_plan.phase_products(p, segment))
    made, _ = composed._product(p, segment, phases, t.x.float(), t.w.float())
    assert made.nbytes <= composed_plan.inner_bytes(p, segment) * (22 / 20) ** 2
    assert made.nbytes > composed_plan.inner_bytes(p, segment)


# --- the estimate: a model, not measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("op", OPS)
def test_never_chosen_on_a_cpu(tie: str, op: str) -> None:
    p = problem(tie, torch.bfloat16)
    assert composed.estimate(p, op, "fold") > reference.estimate(p, op, "expand")
    assert dispatch.choose(p, op).backend.NAME != "composed"


def layer(channels: int, filters: int, size: int, tie: str, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """A 3 x 3 layer on a GPU, batch 8."""
    ties = Symmetry(tie, ndim=2).resolve(2, filters)
    static = (ties.flat, [1, 1], [1, 1], [1, 1], [0, 0], False, 1, True)
    sizes = (8, channels, size, size), (ties.unique, channels, 3, 3)
    return Problem.create(sizes, static, True, dtype, "cuda")


def test_chosen_on_a_gpu_only_where_channels_are_many() -> None:
    for tie, op in itertools.product(("h", "hv"), OPS):
        many, few = layer(2560, 1280, 64, tie), layer(64, 64, 56, tie)
        assert composed.estimate(many, op, "fold") < reference.estimate(many, op, "expand")
        for algorithm in composed.ALGORITHMS:
            assert composed.estimate(few, op, algorithm) > reference.estimate(few, op, "expand")


def test_estimates_grow_with_the_work() -> None:
    small, large = (layer(1024, 1024, size, "hv") for size in (32, 64))
    for op in OPS:
        times = [composed.estimate(p, op, "fold") for p in (small, large)]
        assert 2 < times[1] / times[0] <= 4
        assert composed.estimate(replace(small, dtype=torch.float64), op, "fold") > 5 * times[0]
