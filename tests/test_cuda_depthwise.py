# The depthwise CUDA kernels on the stand-in: random layers, any tile that fits, activations, numbers that are wrong.
"""What test_cuda.py has of them are a few layers with the tiles that the planner likes best for a small device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cuda_fake
import cuda_host
import oracle
import pytest
import test_depthwise
import torch
from oracle import OPS, Case

from symconv_fast.activation import ACTIVATIONS
from symconv_fast.backends.cuda import backend, depthwise, families, limits
from symconv_fast.backends.cuda import depthwise_tiles as tiles
from symconv_fast.problem import Problem

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (FP32, BF16, FP16)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[Any]:
    with cuda_fake.stand_in(cuda_host.module()) as module:
        yield module


@pytest.fixture
def any_tile(monkeypatch: pytest.MonkeyPatch, machine: Any) -> Iterator[random.Random]:
    """Plans have any tile that fits, and fold along any axis that may be folded; the order of warps is another."""
    draw = random.Random()
    drawn: dict[Any, Any] = {}

    def turned(problem: Any, op: str) -> tiles.Layer:
        plain = tiles.layer.__wrapped__(problem, op)
        turn = drawn.setdefault((problem, op, "turn"), draw.random() < 0.5)
        kind = type("Turned", (tiles.Layer,), {"swap": turn and 3 not in {mask for mask, _ in plain.masks}})
        return kind(**vars(plain))

    def choose(problem: Any, op: str, device: limits.Limits) -> tiles.Tile | None:
        if (problem, op) not in drawn:
            found = list(tiles.candidates(turned(problem, op), device))
            tile = draw.choice(found) if found else None
            if tile is not None and op == "wgrad":
                tile = replace(
                    tile, pairs=draw.choice((1, tile.pairs)), chunks=draw.choice((1, tile.chunks, 3))
                )
            drawn[problem, op] = tile
        return drawn[problem, op]

    monkeypatch.setattr(depthwise, "layer", turned)
    monkeypatch.setattr(depthwise, "choose", choose)
    cuda_fake.forget()
    yield draw
    machine.set_seed(0)
    cuda_fake.forget()


def layer(seed: int) -> Case | None:
    """A random layer of one or two dims with an output, half of the time with a single tie and in one layout."""
    case = replace(test_depthwise.depthwise(seed), transposed=False)
    if case.ndim == 3 or min(case.output_shape) < 1:
        return None
    if seed % 2 and case.ndim == 2:
        ties, last = ((seed // 2 % 3 + 1, case.groups),), seed // 6 % 2 == 1
        layouts = ("channels_last" if last else "contiguous",) * 3
        case = replace(case, ties=ties, layouts=layouts, result_last=last)
    return case


def seeds(count: int, each: int) -> list[Any]:
    """Blocks of seeds; the first in the quick suite."""
    blocks = [range(i, i + each) for i in range(0, count * each, each)]
    return [pytest.param(block, id=str(block.start), marks=() if i < 1 else pytest.mark.full)
            for i, block in enumerate(blocks)]  # fmt: skip


@pytest.mark.parametrize("block", seeds(20, 8))
def test_random_layers(block: range) -> None:
    for seed in block:
        case = layer(seed)
        for op in OPS:
            if case is not None:
                oracle.check(case, DTYPES[seed % 3], op, "cuda", "depthwise")


@pytest.mark.parametrize("block", seeds(40, 8))
def test_any_tile_is_right(any_tile: random.Random, machine: Any, block: range) -> None:
    any_tile.seed(block.start)
    for seed in block:
        machine.set_seed(seed)
        case = layer(seed)
        for op in OPS:
            if case is not None:
                oracle.check(case, DTYPES[seed % 3], op, "cuda", "depthwise")


def test_positions_that_no_tap_meets(monkeypatch: pytest.MonkeyPatch, machine: Any) -> None:
    """Gradients are zero there, and nothing is read: such a place may lie outside of the window."""
    case = Case(
        ties=((1, 8), (2, 24), (3, 24), (0, 8)), channels=8, groups=8, spatial=(31, 25), kernel=(3, 9), stride=(2, 1),
        padding=(3, 0), dilation=(2, 3), layouts=("channels_last",) * 3, seed=583,
    )  # fmt: skip
    for tile in (tiles.Tile(4, 1, 14, 2), tiles.Tile(1, 1, 28, 5)):
        monkeypatch.setattr(depthwise, "choose", lambda *arguments, tile=tile: tile)
        cuda_fake.forget()
        oracle.check(case, BF16, "dgrad", "cuda", "depthwise")
    cuda_fake.forget()


def plain(mask: int, kernel: int, last: bool, extent: tuple[int, int] = (14, 16), **more: Any) -> Case:
    layouts = ("channels_last" if last else "contiguous",) * 3
    return Case(
        ties=((mask, 16),), channels=16, groups=16, spatial=extent, kernel=(kernel, kernel),
        padding=(kernel // 2,) * 2, layouts=layouts, result_last=last, **more,
    )  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mask", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 7, pytest.param(13, marks=pytest.mark.full)])
def test_whole_runs(mask: int, kernel: int, last: bool) -> None:
    """Even sizes: elements are loaded by twos, members of an orbit loaded and stored together."""
    for i, op in enumerate(OPS):
        oracle.check(plain(mask, kernel, last), DTYPES[(i + mask + kernel) % 3], op, "cuda", "depthwise")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(name: str, dtype: torch.dtype) -> None:
    case = plain(3, 3, True, (5, 9))
    t = oracle.make_tensors(case, dtype)
    x, w, b = t.x.to(dtype), t.w.to(dtype), t.b.to(dtype) if t.b is not None else None
    x = x.contiguous(memory_format=torch.channels_last)
    answer = ACTIVATIONS[name][0](oracle.expected(case, dtype)["fprop"])
    problem = oracle.problem_of(case, dtype, "fprop")
    got = backend.bind(problem, "fprop", "depthwise", name)(x, w, b).double()
    assert float((got - answer).abs().max()) <= 2 * torch.finfo(dtype).eps * float(answer.abs().max())


# --- plans ---------------------------------------------------------------------------------------------------------

H200 = limits.Limits("sm_90", (9, 0), 227 << 10, 132, True)
NETWORKS = [(96, 56, 7, 32), (768, 7, 7, 32), (128, 56, 31, 8), (1024, 7, 13, 32), (64, 112, 3, 8)]


def problem_of(case: Case) -> Problem:
    """Without the tensors that `oracle.problem_of` makes."""
    return Problem.create((case.input_shape, case.weight_shape), case.static, case.result_last, BF16, "cpu")


def parameters(case: Case, op: str, device: limits.Limits) -> dict[str, int]:
    problem = problem_of(case)
    x, y = (pixels(shape, case.result_last) for shape in (problem.input_shape, problem.output_shape))
    taps = case.kernel[0] * case.kernel[1]
    strides = {"x": x, "y": y, "w": (taps, taps, taps, taps, case.kernel[1], 1)}
    return depthwise.parameters(families.Request(problem, op, strides, device))


def pixels(shape: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """Strides (N, C, D, H, W) of a dense tensor."""
    _, c, h, w = shape
    return (c * h * w, 1, c * h * w, c * w, c) if last else (c * h * w, h * w, h * w, w, 1)


def network(shape: tuple[int, int, int, int], mask: int, last: bool) -> Case:
    channels, extent, kernel, batch = shape
    case = plain(mask, kernel, last, (extent, extent), batch=batch)
    return replace(case, ties=((mask, channels),), channels=channels, groups=channels)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", NETWORKS)
def test_layers_of_networks_have_a_plan(machine: Any, shape: tuple[int, int, int, int], op: str) -> None:
    """One that the launcher takes, with the shared memory that the planner counted, on large devices and small."""
    for mask in (1, 2, 3):
        for last in (False, True):
            for device in (H200, limits.Limits("sm_86", (8, 6), 99 << 10, 84, True)):
                case = network(shape, mask, last)
                problem = problem_of(case)
                assert depthwise.refusal(problem, op, device) is None
                fields = parameters(case, op, device)
                tile = tiles.choose(problem, op, device)
                assert tile is not None
                counted = tiles.shared_bytes(tiles.layer(problem, op), tile)
                assert machine.DepthwiseParams(**fields | {"shared_bytes": counted}).check() == ""
                # 128 floats are more than room for loads of pairs can take of a row of any of these windows.
                less = counted - 4 * 128 * tile.block * tile.images * (2 if op == "dgrad" else 1) - 4
                error = machine.DepthwiseParams(**fields | {"shared_bytes": max(less, 0)}).check()
                assert "shared memory" in error


def test_wrong_numbers_are_errors(machine: Any) -> None:
    """And no crash: each field of each pass by itself, far too small and far too large."""
    for op in OPS:
        fields = parameters(plain(1, 3, True), op, H200)
        assert machine.DepthwiseParams(**fields).check() == ""
        for name in fields:
            if name[-2:] in {f"_{i}" for i in range(1, 8)}:
                continue  # there is one segment
            for value in (-(1 << 62), 1 << 62, *(() if "_stride_" in name else (-1,))):
                error = machine.DepthwiseParams(**fields | {name: value}).check()
                assert error != "", f"{op}: {name} = {value}"


def test_members_have_a_filter_each(machine: Any) -> None:
    """Segments that reach beyond the tensors are refused by the launcher."""
    fields = parameters(plain(3, 3, True), "fprop", H200)
    for wrong in ({"rows_0": 2}, {"row_0": 1}, {"copy_0": 2}, {"mask_0": 4}, {"filters": 3}):
        assert machine.DepthwiseParams(**fields | wrong).check() != "", wrong


def test_what_is_refused() -> None:
    def reason(case: Case, device: limits.Limits = H200) -> str | None:
        return depthwise.refusal(problem_of(case), "fprop", device)

    case = plain(1, 3, True)
    assert reason(case) is None
    assert "one input channel" in str(reason(replace(case, channels=32)))
    assert "dims" in str(reason(replace(
        case, ndim=3, spatial=(3, 4, 5), kernel=(1, 3, 3), stride=(1,) * 3, padding=(0, 1, 1), dilation=(1,) * 3,
        output_padding=(0,) * 3,
    )))  # fmt: skip
    assert "no tile" in str(reason(case, replace(H200, shared_bytes=64)))
    far = replace(case, dilation=(1, 2000), padding=(1, 2000))
    assert "dilations" in str(reason(far))
