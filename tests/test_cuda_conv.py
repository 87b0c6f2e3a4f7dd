# The general matrix kernels by themselves: every tile gives the same bits, plans fit, products are those of the fold.
"""On the stand-in; tests/test_cuda.py runs them through the backend. Here a launch is made of the planner's numbers, so
that tiles can be tried which the planner would not choose.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import cuda_host
import pytest
import torch
from oracle import Case, expected, make_tensors
from torch import Tensor

from symconv_fast.backends.cuda import conv, conv_tiles, families, limits, run
from symconv_fast.backends.triton.geometry import pixels_view, weight_view
from symconv_fast.problem import Problem

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HOPPER = limits.Limits("sm_90", (9, 0), 227 << 10, 132, True)
AMPERE = limits.Limits("sm_80", (8, 0), 163 << 10, 108, True)
ADA = limits.Limits("sm_89", (8, 9), 99 << 10, 76, True)


@pytest.fixture(scope="module")
def machine() -> Any:
    return cuda_host.module()


def innermost(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Channels last, whatever the number of dims."""
    return values.to(dtype).movedim(1, -1).contiguous().movedim(-1, 1)


def problem_of(case: Case, dtype: torch.dtype) -> Problem:
    """Channels last."""
    return Problem.create((case.input_shape, case.weight_shape), case.static, True, dtype, "cpu")


def fields(
    case: Case, dtype: torch.dtype, op: str, device: limits.Limits = HOPPER, activation: int = 0
) -> dict[str, int]:
    """What the planner gives for dense tensors."""
    x, y = (
        innermost(torch.empty(shape, device="meta"), dtype) for shape in (case.input_shape, case.output_shape)
    )
    p, w = problem_of(case, dtype), torch.empty(case.weight_shape, device="meta")
    strides = {name: run._plain(pixels_view(tensor), 1) for name, tensor in {"x": x, "y": y}.items()}
    strides["w"] = run._plain(weight_view(w, p), 2)
    return conv.parameters(families.Request(p, op, strides, device, activation, case.bias))


def launched(machine: Any, case: Case, dtype: torch.dtype, op: str, values: dict[str, int]) -> Tensor:
    """The result of a launch on whole numbers, which every type holds."""
    t = make_tensors(case, BF16)
    parameters = machine.ConvParams(**values)
    assert parameters.check() == ""
    first = innermost(t.x if op == "fprop" else t.gy, dtype)
    w, bias = t.w.to(dtype), t.b.to(dtype) if t.b is not None and op == "fprop" else None
    shape = case.output_shape if op == "fprop" else case.input_shape
    result = innermost(torch.full(shape, math.nan), dtype)
    work = torch.empty(parameters.workspace(), dtype=torch.uint8)
    machine.clear_buffers()
    for tensor in (first, w, *(() if bias is None else (bias,))):
        machine.register_buffer(tensor.data_ptr(), tensor.numel() * tensor.element_size(), False)
    for tensor in (result, work):
        machine.register_buffer(tensor.data_ptr(), tensor.numel() * tensor.element_size(), True)
    addresses = (first.data_ptr(), w.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr())
    assert parameters.launch(*addresses, work.data_ptr(), 0, 0) == ""
    return result


PLANE = Case(ties=((3, 8),), channels=40, spatial=(9, 11), padding=(1, 1), batch=3)
SPACE = Case(
    ndim=3, ties=((7, 8),), channels=8, spatial=(4, 5, 6), kernel=(3, 3, 3), stride=(1,) * 3, padding=(1,) * 3,
    dilation=(1,) * 3, output_padding=(0,) * 3,
)  # fmt: skip
CASES = {
    "hv": PLANE,
    "h, v and free": replace(PLANE, ties=((1, 16), (2, 8), (0, 40))),
    "stride 2": replace(PLANE, ties=((1, 8), (3, 8)), stride=(2, 2), spatial=(12, 13)),
    "even kernel, strides 3 and 2": replace(PLANE, kernel=(4, 2), stride=(3, 2), spatial=(12, 13)),
    "dilation beside a stride": replace(PLANE, stride=(2, 2), dilation=(2, 3), padding=(2, 3)),
    "1 x 1, stride 2": replace(PLANE, ties=((0, 24),), kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
    "a line": Case(ndim=1, ties=((1, 24),), channels=72, spatial=(77,), kernel=(7,), stride=(1,), padding=(3,),
                   dilation=(1,), output_padding=(0,)),
    "a pixel": replace(PLANE, spatial=(1, 1), batch=1),
    "groups": replace(PLANE, ties=((1, 16),), channels=48, groups=2),
    "hvz": SPACE,
    "hvz and z": replace(SPACE, ties=((4, 16), (7, 8)), stride=(1, 2, 1)),
}  # fmt: skip


MOST_TILES = 40
"""What a CTA has left over is simulated too."""


def plans(case: Case, dtype: torch.dtype, op: str, device: limits.Limits) -> list[conv_tiles.Plan]:
    """One plan that fits for each kind of CTA, the least and the most regular tile of it, and all ways to fold."""
    found: dict[Any, conv_tiles.Plan] = {}
    for unfolded in (0, 4) if op == "dgrad" else (0,):
        work = conv_tiles.Pass(problem_of(case, dtype), op == "dgrad", unfolded)
        kept = tuple(unfolded & part.segment.mask for part in work.parts)
        for tile in conv_tiles.tiles_for(work):
            plan = conv_tiles.Plan(work, tile, device)
            if plan.resident and len(work.parts) <= conv.MOST_PARTS and plan.tiles <= MOST_TILES:
                for end in (min, max):
                    key = (kept, tile.warps, tile.pixels, tile.columns, end.__name__)
                    found[key] = end(found.get(key, plan), plan, key=lambda p: p.tile.size)
    return list(found.values())


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("name", CASES)
def test_every_tile_gives_the_same(machine: Any, name: str, op: str) -> None:
    """To the bit, and what the oracle gives: pixels of any CTA sum chunks and taps in one order."""
    case, dtype = CASES[name], (BF16, FP16, FP32)[list(CASES).index(name) % 3]
    answer, values = expected(case, BF16)[op], fields(case, dtype, op)
    chosen = random.Random(name).sample(
        found := plans(case, dtype, op, HOPPER), min(4 - case.ndim // 2, len(found))
    )
    results = []
    for plan in chosen:
        changed = values | conv.tile_fields(plan)
        for stages in (2, 3) if plan is chosen[0] else (plan.stages,):
            if machine.ConvParams(**changed | {"stages": stages}).check() == "":
                results.append(launched(machine, case, dtype, op, changed | {"stages": stages}))
    assert len(results) > 1
    error = (results[0].double() - answer).abs()
    assert (error <= torch.finfo(dtype).eps * answer.abs()).all()
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activation(machine: Any, activation: str) -> None:
    number = ("relu", "silu", "gelu").index(activation) + 1
    values = fields(PLANE, FP32, "fprop", activation=number)
    answer = getattr(torch.nn.functional, activation)(expected(PLANE, BF16)["fprop"])
    torch.testing.assert_close(
        launched(machine, PLANE, FP32, "fprop", values).double(), answer, atol=1e-5, rtol=1e-6
    )


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("ties", [((0, 128),), ((1, 64),), ((3, 32),)])
def test_products_are_those_of_the_reduced_weight(
    machine: Any, ties: tuple[tuple[int, int], ...], op: str
) -> None:
    """However many members an orbit has, where tiles are full: taps x channels x orbits x pixels."""
    case = replace(PLANE, ties=ties, channels=128, spatial=(16, 16), batch=1, bias=False)
    tile = conv_tiles.Tile((1, 1, 16, 16), 256, 8, 0 if op == "fprop" else 128)
    plan = conv_tiles.Plan(conv_tiles.Pass(problem_of(case, BF16), op == "dgrad", 0), tile, HOPPER)
    if not plan.resident:  # four members of 16 x 16 pixels are more than shared memory has
        tile = tile._replace(size=(1, 1, 8, 16), pixels=128)
        plan = conv_tiles.Plan(plan.work, tile, HOPPER)
    machine.reset_counts()
    launched(machine, case, BF16, op, fields(case, BF16, op) | conv.tile_fields(plan))
    assert machine.counts()["mma_bfloat16"] == 9 * 128 * case.unique * 16 * 16 // (16 * 8 * 16)


def random_case(rng: random.Random) -> Case:
    """Of any size: it is planned, not run."""
    ndim = rng.choice((1, 2, 2, 3))
    groups = rng.choice((1, 1, 1, 2, 4))
    masks = rng.sample(range(1 << ndim), rng.randint(1, min(3, 1 << ndim)))
    ties = tuple((mask, groups * 8 * rng.choice((1, 2, 3, 8, 40))) for mask in masks)
    axes = [
        (rng.choice((7, 14, 28, 56, 57, 112)), rng.choice((1, 2, 3, 3, 5, 7)), rng.choice((1, 1, 2, 4)),
         rng.choice((1, 1, 2, 3)), rng.choice((0, 1, 2, 3)))
        for _ in range(ndim)
    ]  # fmt: skip
    spatial, kernel, stride, dilation, padding = (tuple(v) for v in zip(*axes))
    spatial = tuple(max(n, d * (k - 1) + 1) for n, k, d in zip(spatial, kernel, dilation))
    return Case(
        ndim=ndim, ties=ties, channels=groups * 8 * rng.choice((1, 2, 5, 16, 64)), spatial=spatial, kernel=kernel,
        stride=stride, padding=padding, dilation=dilation, output_padding=(0,) * ndim, groups=groups,
        batch=rng.choice((1, 3, 32)), bias=False,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_what_is_planned_is_accepted(machine: Any, seed: int) -> None:
    """The planner counts shared memory as the kernels do; it refuses little, and only for its memory."""
    rng, refused = random.Random(seed), 0
    for _ in range(60):
        case, device = random_case(rng), rng.choice((HOPPER, AMPERE, ADA))
        op, dtype = rng.choice(("fprop", "dgrad")), rng.choice((BF16, FP16, FP32))
        reason = conv.refusal(problem_of(case, dtype), op, device)
        if reason is not None:
            assert "shared memory" in reason, f"{reason}: {case}"
            refused += 1
            continue
        parameters = machine.ConvParams(**fields(case, dtype, op, device))
        assert parameters.check() == "", f"{parameters.check()}: {op} {case}"
        assert parameters.workspace() > 0
    assert refused < 15


def test_bad_numbers_are_refused(machine: Any) -> None:
    """Whatever is put into a field, there is a text or a launch that fits; nothing crashes."""
    good = fields(PLANE, BF16, "fprop")
    assert machine.ConvParams(**good).check() == ""
    numbers = (-(1 << 63), -1, 0, 1, 3, 7, 1 << 10, 1 << 31, 1 << 40, (1 << 63) - 1)
    unused = [f"{name}{i}" for name in ("mask", "row", "rows", "copy") for i in range(1, 8)]
    wrong = 0
    for op in ("fprop", "dgrad"):
        good = fields(PLANE, BF16, op)
        for name in good:
            for number in numbers:
                parameters = machine.ConvParams(**good | {name: number})
                text = parameters.check()
                wrong += text != ""
                assert (parameters.workspace() == 0) == (text != "")
                assert text == "" or parameters.launch(16, 16, 16, 16, 16, 0, 0) == text
                if name not in unused and number < -1:
                    assert text, f"{name}={number} is accepted"
    assert wrong > 500


def test_misaligned_addresses_are_refused(machine: Any) -> None:
    parameters = machine.ConvParams(**fields(PLANE, BF16, "fprop"))
    for place in (0, 3, 4):
        addresses = [16] * 5
        addresses[place] = 8
        assert "16 does not divide" in parameters.launch(*addresses, 0, 0)
