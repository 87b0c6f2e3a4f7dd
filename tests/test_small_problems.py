# The small problems of known answers: they have a layer's features, right kernels pass them, and wrong ones do not.

from __future__ import annotations

import dataclasses
import math

import cases
import pytest
import torch
from oracle import OPS, Case, problem_of

from symconv_fast import binding, dispatch, settings
from symconv_fast.backends import reference
from symconv_fast.problem import Problem
from symconv_fast.ties import orbit_size
from symconv_fast.trial import known_answers, small

CPU = torch.device("cpu")
VOLUME = {"ndim": 3, "stride": (1,) * 3, "dilation": (1,) * 3, "output_padding": (0,) * 3}
LINE = {"ndim": 1, "stride": (1,), "dilation": (1,), "output_padding": (0,)}
# Layers of networks, as large as they are there.
LAYERS = {
    "wide": Case(ties=((1, 128),), channels=256, spatial=(56, 56), padding=(1, 1), batch=32),
    "wider": Case(ties=((3, 64),), channels=512, spatial=(28, 28), padding=(1, 1), batch=64),
    "small map": Case(ties=((2, 256),), channels=512, spatial=(7, 7), padding=(1, 1), batch=256),
    "volume": Case(
        **VOLUME, ties=((7, 32),), channels=256, spatial=(15,) * 3, kernel=(3,) * 3, padding=(1,) * 3, batch=32
    ),
    "depthwise": Case(
        ties=((1, 96),), channels=96, groups=96, spatial=(56, 56), kernel=(7, 7), padding=(3, 3), batch=32
    ),
    "few taps": Case(
        ties=((0, 64), (1, 64)), channels=256, spatial=(56, 56), kernel=(1, 3), padding=(0, 1), batch=32
    ),
    "strided, mixed": Case(
        ties=((1, 64), (3, 32)), channels=64, spatial=(112, 112), stride=(2, 2), padding=(1, 1), batch=32
    ),
    "stem": Case(
        ties=((1, 32),), channels=3, spatial=(224, 224), kernel=(7, 7), stride=(2, 2), padding=(3, 3), batch=32
    ),
    "dilated": Case(
        ties=((1, 32),), channels=64, spatial=(64, 64), dilation=(4, 4), padding=(4, 4), batch=4
    ),
    "transposed": Case(
        ties=((1, 32),), channels=64, spatial=(64, 64), stride=(2, 2), padding=(1, 1), output_padding=(1, 1),
        transposed=True, batch=4,
    ),
    "line": Case(**LINE, ties=((1, 512),), channels=512, spatial=(8192,), kernel=(9,), padding=(4,), batch=8),
    "unaligned": Case(ties=((1, 101),), channels=333, spatial=(30, 31), padding=(1, 1), batch=8),
    "groups": Case(ties=((1, 256),), channels=512, groups=32, spatial=(14, 14), padding=(1, 1), batch=64),
}  # fmt: skip


@pytest.fixture(autouse=True)
def ieee(monkeypatch) -> None:
    """float32 means float32, whatever the switch of the process says."""
    monkeypatch.setattr(settings, "tf32_allowed", lambda: False)


# --- what they are like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", LAYERS)
def test_they_have_the_features_of_the_layer(name, op):
    problem = problem_of(LAYERS[name], torch.bfloat16, op)
    found = list(small.like(problem, op))
    assert found
    for p in found:
        assert p.macs_dense <= small.MACS
        assert [mask for mask, _ in p.ties] == [mask for mask, _ in problem.ties]
        assert small.features(p, None) == small.features(problem, None)
        for field in ("kernel", "stride", "padding", "dilation", "output_padding", "dtype", "transposed"):
            assert getattr(p, field) == getattr(problem, field)
        assert (p.in_channels // p.groups) % 32 == (problem.in_channels // problem.groups) % 32
        assert (p.unique // p.groups) % 16 == (problem.unique // problem.groups) % 16
        assert p.out_channels == sum(rows * orbit_size(mask) for mask, rows in p.ties)
        assert all(n <= most for n, most in zip(p.spatial, problem.spatial))
        assert p.batch <= problem.batch
        assert min(p.out_spatial) > 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", LAYERS)
def test_there_is_enough_of_everything(name, op):
    """Positions for several tiles, and a contraction for more steps of 64 than a pipeline has stages."""
    problem = problem_of(LAYERS[name], torch.bfloat16, op)
    p = next(small.like(problem, op))
    positions = p.batch * math.prod(p.out_spatial)
    assert positions > 2 * 128
    inside, taps = p.in_channels // p.groups, math.prod(p.kernel)
    if name not in ("depthwise", "stem", "groups"):
        assert inside * taps > 3 * 64
    if op == "wgrad":
        assert positions > 3 * 64
    sizes = [n for n in p.out_spatial if n > 1]
    assert len(set(sizes)) > 1 or name in ("small map", "line", "volume")


def test_another_feature_wants_another_answer():
    case = Case(ties=((1, 16), (3, 8)), channels=32, spatial=(20, 20), padding=(1, 1))
    problem = problem_of(case, torch.bfloat16, "fprop")
    same, features = small.features(problem, None), []
    for change in (
        {"ties": ((1, 16),)}, {"ties": ((3, 16), (1, 8))}, {"kernel": (3, 5)}, {"stride": (2, 1)}, {"stride": (3, 3)},
        {"stride": (4, 4)}, {"dilation": (1, 2)}, {"padding": (1, 0)}, {"groups": 2}, {"transposed": True},
        {"channels": 33}, {"ties": ((1, 15), (3, 8))}, {"result_last": True}, {"groups": 8, "ties": ((1, 16), (3, 16))},
    ):  # fmt: skip
        features.append(
            small.features(problem_of(dataclasses.replace(case, **change), torch.bfloat16, "fprop"), None)
        )
    features.append(small.features(problem, "relu"))
    assert len({same, *features}) == 1 + len(features)
    for change in ({"batch": 7}, {"spatial": (50, 30)}, {"channels": 64}, {"stride": (5, 5)}):
        other = dataclasses.replace(case, **change)
        if change == {"stride": (5, 5)}:
            case = dataclasses.replace(case, stride=(3, 3))
        wanted = small.features(problem_of(case, torch.bfloat16, "fprop"), None)
        assert small.features(problem_of(other, torch.bfloat16, "fprop"), None) == wanted


def test_small_layers_stay_as_they_are():
    problem = problem_of(Case(spatial=(5, 7)), torch.float32, "fprop")
    assert list(small.like(problem, "fprop")) == [problem]


# --- who passes ------------------------------------------------------------------------------------------------------

NATIVE = dispatch.available().get("cpu")
SMOKE = ("h", "hv", "mixed 2-D, channels last", "stem, C = 3", "transposed, stride 2", "depthwise")
MANY = [
    pytest.param(name, marks=() if name in SMOKE else pytest.mark.full) for name in (*cases.SPECIAL, *LAYERS)
]


@pytest.mark.skipif(NATIVE is None, reason="the native CPU module is not built")
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_kernels_that_are_right_pass(name, dtype):
    """Those of the CPU: they fold, sum in another order, filter, and round once as the kernels for GPUs do."""
    case, asked = (cases.SPECIAL | LAYERS)[name], 0
    for op in OPS:
        problem = problem_of(case, dtype, op)
        p = next(small.like(problem, op))
        for algorithm in NATIVE.ALGORITHMS:
            # torch's own convolution of expanded filters rounds more than once.
            if algorithm != "expand" and NATIVE.can_run(p, op, algorithm) is None:
                run = binding.bind(NATIVE, p, op, algorithm)
                assert known_answers.ask(p, op, run, CPU) == (True, None), (op, algorithm)
                assert known_answers.ask_in_place(p, op, run, CPU) == (True, None), (op, algorithm)
                asked += 1
    assert asked


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_an_activation_is_part_of_the_answer(dtype, activation):
    problem = problem_of(Case(ties=((1, 16),), channels=16, spatial=(9, 9)), dtype, "fprop")

    def run(x, w, b, name=activation):
        exact = dataclasses.replace(problem, dtype=torch.float64)
        y = reference.fprop(exact, "expand", *(None if t is None else t.double() for t in (x, w, b)))
        return {"relu": torch.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}[name](
            y
        ).to(dtype)

    assert known_answers.ask(problem, "fprop", run, CPU, activation).right
    other = "silu" if activation == "gelu" else "gelu"
    assert known_answers.ask(problem, "fprop", lambda *t: run(*t, name=other), CPU, activation).right is False


# --- who does not ----------------------------------------------------------------------------------------------------


def exactly(problem: Problem, op: str, *tensors):
    """The reference in float64, rounded once."""
    exact = dataclasses.replace(problem, dtype=torch.float64)
    result = getattr(reference, op)(exact, "expand", *(None if t is None else t.double() for t in tensors))
    return result.to(problem.dtype)


def rounded(tensor, bits: int):
    """A tensor with so many bits of mantissa."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def last_channel_missing(problem, op, first, second, *bias):
    first = first.clone()
    first[:, -1] = 0
    return exactly(problem, op, first, second, *bias)


def last_column_missing(problem, op, *tensors):
    result = exactly(problem, op, *tensors)
    result[..., -1] = 0
    return result


def taps_mirrored(problem, op, first, second, *bias):
    if op == "wgrad":
        return exactly(problem, op, first, second).flip(-1)
    return exactly(problem, op, first, second.flip(-1), *bias)


def members_exchanged(problem, op, first, second, *bias):
    if op == "fprop":
        return exactly(problem, op, first, second, *bias).roll(problem.unique // 2, 1)
    return exactly(problem, op, first.roll(problem.unique // 2, 1), second)


def one_value_off(problem, op, *tensors):
    """The smallest thing that can be wrong with a border: one product of one result."""
    result = exactly(problem, op, *tensors)
    at = result.abs().flatten().argmin()
    result.view(-1)[at] += 1
    return result


def coarse_operands(problem, op, first, second, *bias):
    bits = 11 if problem.dtype == torch.float32 else 5
    return exactly(problem, op, rounded(first, bits), rounded(second, bits), *bias)


def sums_rounded_at_each_step(problem, op, first, second, *bias):
    """Sixteen partial sums, each rounded to 8 bits."""
    parts, total = 16, None
    for i in range(parts):
        share = first.clone()
        share[:, [c for c in range(first.shape[1]) if c % parts != i]] = 0
        if op == "wgrad":
            share = torch.zeros_like(first)
            share[..., i::parts] = first[..., i::parts]
        part = exactly(problem, op, share, second, *(None for _ in bias))
        total = rounded(part if total is None else total + part, 8)
    if bias and bias[0] is not None:
        total += bias[0].view(-1, *[1] * problem.ndim)
    return total


MUTANTS = (
    last_channel_missing, last_column_missing, taps_mirrored, members_exchanged, one_value_off, coarse_operands,
    sums_rounded_at_each_step,
)  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_kernels_that_are_wrong_fail(dtype, op, mutant):
    p = next(small.like(problem_of(LAYERS["strided, mixed"], dtype, op), op))
    for ask in (known_answers.ask, known_answers.ask_in_place):
        assert ask(p, op, lambda *t: exactly(p, op, *t), CPU) == (True, None)
    assert known_answers.ask(p, op, lambda *t: mutant(p, op, *t), CPU).right is False
    if mutant is not coarse_operands or dtype == torch.bfloat16:  # which show on normal numbers alone
        assert known_answers.ask_in_place(p, op, lambda *t: mutant(p, op, *t), CPU).right is False


def test_tf32_passes_where_it_is_allowed_alone(monkeypatch):
    p = next(small.like(problem_of(LAYERS["wide"], torch.float32, "fprop"), "fprop"))

    def tf32(*tensors):
        return coarse_operands(p, "fprop", *tensors)

    assert known_answers.ask(p, "fprop", tf32, CPU).right is False
    monkeypatch.setattr(settings, "tf32_allowed", lambda: True)
    assert known_answers.ask(p, "fprop", tf32, CPU).right is True
