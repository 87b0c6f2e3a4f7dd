# The patch and Hopper kernels tile by tile on the stand-in for a GPU, and their planners.
"""Every tile against the oracle, in both types; which tile is chosen; what is refused, in Python and in C++."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import cuda_host
import cuda_patch_run
import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import Case

from symconv_fast.backends.cuda import hopper, patch
from symconv_fast.backends.cuda.limits import Limits
from symconv_fast.problem import Problem

BF16, FP16 = torch.bfloat16, torch.float16
H200 = Limits("sm_90", (9, 0), 227 << 10, 132, True)
A100 = Limits("sm_80", (8, 0), 163 << 10, 108, True)
SMALL = Limits("sm_89", (8, 9), 99 << 10, 128, True)

PLANNERS = (patch, hopper)
TILES = [(planner, i) for planner in PLANNERS for i in range(len(planner.TILES))]
LIMIT = {1: 1.7, 2: 2.1}  # rms error as a multiple of torch's own convolution, by tied axes


def three(ties: tuple[tuple[int, int], ...], **changes: Any) -> Case:
    """A 3 x 3 case that patches take, but for the changes."""
    base = Case(
        ties=ties, channels=40, padding=(1, 1), layouts=("channels_last", "contiguous", "channels_last")
    )
    return replace(base, **changes)


def case_id(value: object) -> str | None:
    """How a planner and a tile are called in the name of a test."""
    return value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else None


def cases(axes: int, any_groups: bool) -> list[Case]:
    """Odd sizes: more stages than rings have, several images in a tile, several tiles, orbits that fill nothing."""
    masks = (1, 2) if axes == 1 else (3, 3)
    found = [
        three(((masks[0], 40),), spatial=(5, 9), channels=72, batch=3),
        three(((masks[1], 8),), spatial=(17, 19), channels=136, batch=1, bias=False),
        three(((masks[0], 5),), spatial=(1, 1), channels=8, batch=5),
    ]
    channels = 80 if any_groups else 128
    found.append(three(((masks[1], 24),), spatial=(7, 3), channels=channels, groups=2))
    if any_groups:
        found.append(
            replace(found[0], ndim=3, spatial=(2, 5, 3), kernel=(1, 3, 3), padding=(0, 1, 1), stride=(1,) * 3)
        )
        found[-1] = replace(found[-1], dilation=(1,) * 3, output_padding=(0,) * 3, batch=2)
    return found


def run(planner: ModuleType, case: Case, dtype: torch.dtype, tile: int, activation: int = 0) -> torch.Tensor:
    """The output by one tile, of the oracle's tensors."""
    t = oracle.make_tensors(case, dtype)
    x, w = (oracle.arrange(v, layout, dtype) for v, layout in zip((t.x, t.w), case.layouts))
    bias = None if t.b is None else t.b.to(dtype)
    problem = oracle.problem_of(case, dtype, "fprop")
    return cuda_patch_run.convolve(planner, problem, tile, (x, w, bias), activation)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("planner", "tile"), TILES, ids=case_id)
def test_a_tile_is_right(planner: ModuleType, tile: int, dtype: torch.dtype) -> None:
    cuda_host.module().set_multiprocessors(1)  # so that CTAs have several tiles
    for seed, case in enumerate(cases(planner.TILES[tile].axes, planner is patch)):
        cuda_host.module().set_seed(seed)
        y, want = run(planner, case, dtype, tile).double(), oracle.expected(case, dtype)["fprop"]
        allowed = oracle.tolerance(case, dtype, "fprop", "cuda", "patch")
        assert ((y - want).abs() <= allowed).all(), case
    cuda_host.module().set_multiprocessors(4)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("mask", [1, 2, 3])
@pytest.mark.parametrize("planner", PLANNERS, ids=case_id)
def test_errors_are_those_of_the_fold(planner: ModuleType, mask: int, dtype: torch.dtype) -> None:
    """Of any values, as a multiple of the error of torch's own convolution in that type."""
    case = three(((mask, 16),), channels=256, spatial=(9, 8), bias=False)
    (x, w), axes = (
        (torch.randn(shape).to(dtype) for shape in (case.input_shape, case.weight_shape)),
        mask.bit_count(),
    )
    w /= 48
    x = x.contiguous(memory_format=torch.channels_last)
    tile = [tile.axes for tile in planner.TILES].index(axes)
    y = cuda_patch_run.convolve(planner, oracle.problem_of(case, dtype, "fprop"), tile, (x, w, None))
    want = oracle.convolve(case, x.double(), oracle.expand(w, case).double(), None)
    own = F.conv2d(x.float(), oracle.expand(w, case).float(), padding=1).to(dtype)
    error, of_torch = ((v.double() - want).square().mean().sqrt() for v in (y, own))
    assert error <= LIMIT[axes] * of_torch, float(error / of_torch)


ACTIVATIONS = {1: torch.relu, 2: F.silu, 3: F.gelu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_before_the_rounding(activation: int) -> None:
    case = three(((1, 12),), channels=16)
    y, before = run(patch, case, BF16, 4, activation), oracle.expected(case, BF16)["fprop"]
    torch.testing.assert_close(y.double(), ACTIVATIONS[activation](before), atol=1e-5, rtol=2**-8)


@pytest.mark.parametrize("planner", PLANNERS, ids=case_id)
def test_tables_of_python_and_of_the_module_agree(planner: ModuleType) -> None:
    family = planner.__name__.rpartition(".")[2]
    rows = [row for row in cuda_host.module().variants() if row["family"] == family]
    native = [(row["name"], row["shared_bytes"], row["ctas"]) for row in rows]
    assert native == [(tile.name, tile.shared_bytes, tile.resident) for tile in planner.TILES]
    text = (cuda_patch_run.SOURCES / family / "tiles.h").read_text()
    for tile in planner.TILES:
        (found,) = re.findall(rf"using {tile.name} = (?:Boxes<)?Tile<([^>]*)>", text)
        members, _, orbits, height, width, patches, groups, channels, *_ = map(int, found.split(", "))
        of_warp = (members, height, width, patches, orbits * groups, channels)
        assert of_warp == (2**tile.axes, tile.height, tile.width, tile.patches, tile.orbits, tile.channels)


@cache
def measured() -> list[dict[str, Any]]:
    """Rows of the measurement on an H200 that the planner's figures are from."""
    path = cuda_host.ROOT / "bench" / "results" / "reference-halo-h200.jsonl"
    return [row for row in map(json.loads, path.read_text().splitlines()) if row.get("row") == "time"]


def square(row: dict[str, Any]) -> Problem:
    """The layer of a measured row."""
    channels, size = map(int, row["shape"].split()[-1].split("@"))
    mask, orbits = (1, channels // 2) if row["tie"] == "h" else (3, channels // 4)
    case = three(
        ((mask, orbits),), channels=channels, spatial=(size, size), batch=row["batch"], result_last=True
    )
    sizes = (case.input_shape, case.weight_shape)
    return Problem.create(sizes, case.static, True, BF16, "cuda")


def chosen(planner: ModuleType, problem: Problem, limits: Limits) -> patch.Tile:
    """The tile that a planner takes."""
    number = patch.choose(problem, planner.TILES, limits, tuple(planner.SLOWER.items()))
    tile: patch.Tile = planner.TILES[number]
    return tile


@pytest.mark.parametrize("planner", PLANNERS, ids=case_id)
def test_the_measured_winner_is_chosen(planner: ModuleType) -> None:
    """Or a tile within 2 % of it, of those that were measured; and the model is within 6 % of every time."""
    tiles, found = {tile.name: tile for tile in planner.TILES}, 0
    for row in measured():
        problem, ours = square(row), {name: ms for name, ms in row["ms"].items() if name in tiles}
        assert planner.refusal(problem, "fprop", H200) is None
        for name, ms in ours.items():
            model = patch.fold_seconds(problem, tiles[name]) + tiles[name].seconds(
                problem, H200, planner.SLOWER
            )
            assert model == pytest.approx(1e-3 * ms, rel=0.06), (row["shape"], row["tie"], name)
        tile = chosen(planner, problem, H200)
        if tile.name in ours:
            assert ours[tile.name] <= 1.02 * min(ours.values()), (row["shape"], row["tie"], tile.name)
            assert planner.seconds(problem, "fprop", H200) == pytest.approx(1e-3 * ours[tile.name], rel=0.06)
            found += 1
    assert found >= 13


def test_a_tile_fits_the_device() -> None:
    for limits, most in ((H200, 227), (A100, 163), (SMALL, 99)):
        for row in measured():
            tile = chosen(patch, square(row), limits)
            assert tile.shared_bytes <= most << 10
            assert tile.fits(limits) >= 1
    assert patch.refusal(square(measured()[0]), "fprop", replace(SMALL, shared_bytes=60 << 10)) == (
        "no tile fits the 60 KB of shared memory of sm_89"
    )


GOOD = three(((1, 8),))
REFUSED = cuda_patch_run.not_for_patches(GOOD) | {
    "there are too many tiles, or weights": [
        replace(GOOD, ties=((1, 512),), channels=8, spatial=(1, 1), batch=1 << 28)
    ],
    "a tensor is too large for offsets of 32 bits": [replace(GOOD, batch=1 << 18, spatial=(64, 64))],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str) -> None:
    assert patch.refusal(oracle.problem_of(GOOD, BF16, "fprop"), "fprop", H200) is None
    for case in REFUSED[reason]:
        problem = Problem.create((case.input_shape, case.weight_shape), case.static, True, BF16, "cpu")
        found = patch.refusal(problem, "fprop", H200)
        assert str(found).startswith(reason), (case, found)


BAD = {
    "patch kernels multiply bfloat16 and float16": {"dtype": 2},
    "there is no such tile": {"tile": 99},
    "for the ties h, v and hv": {"mask": 4},
    "the tile is for another tie": {"mask": 3},
    "there is no such activation": {"activation": -1},
    "a size is not positive, or too large": {"height": 0},
    "8 does not divide the channels": {"channels": 12},
    "strides of x are negative, or 8 does not divide them": {"x_y": 100},
    "x is too large for offsets": {"x_n": 1 << 40},
    "strides of y are negative": {"y_x": -8},
    "strides of w are negative": {"w_row": -1},
    "there are too many tiles": {"batch": 1 << 30, "x_n": 0},
    "the weight is too large": {"orbits": 1 << 29, "channels": 1 << 10},
}


def test_what_hopper_refuses_besides() -> None:
    def refusal(case: Case, limits: Limits = H200) -> str | None:
        return hopper.refusal(oracle.problem_of(case, BF16, "fprop"), "fprop", limits)

    assert refusal(GOOD) is None
    assert refusal(replace(GOOD, groups=2, channels=128)) is None
    planes = cases(1, True)[-1]
    assert refusal(planes) == "its maps have no planes"
    assert refusal(replace(GOOD, groups=2, channels=80)) == (
        "64 does not divide the 40 input channels of a group, and there are several"
    )
    assert refusal(GOOD, A100) == "its instructions are those of compute capability 9.0, not of sm_80"
    blackwell = Limits("sm_100", (10, 0), 227 << 10, 148, True)
    assert str(refusal(GOOD, blackwell)).endswith("not of sm_100")
    strides = {"x": (7200, 1, 3600, 72, 8), "w": (1, 9, 9, 9, 3, 1), "y": (7200, 1, 3600, 72, 8)}
    fields = patch.fields(oracle.problem_of(planes, BF16, "fprop"), strides, 0, 0)
    assert cuda_patch_run.parameters(patch, fields).check() == ""
    assert cuda_patch_run.parameters(hopper, fields).check() == "planes are not for the Hopper kernels"


@pytest.mark.parametrize("text", BAD)
def test_bad_numbers_are_named_and_never_run(text: str) -> None:
    problem = oracle.problem_of(GOOD, BF16, "fprop")
    strides = {"x": (1400, 1, 0, 280, 40), "w": (2880, 360, 9, 9, 3, 1), "y": (560, 1, 0, 112, 16)}
    fields = patch.fields(problem, strides, 0, 0)
    assert cuda_patch_run.parameters(patch, fields).check() == ""
    call = cuda_patch_run.parameters(patch, fields | BAD[text])
    assert text in call.check()
    assert call.launch(16, 16, 0, 16, 16, 0, 0) == call.check()
    assert call.workspace() == 0


def test_an_address_that_16_does_not_divide_is_named() -> None:
    problem = oracle.problem_of(GOOD, BF16, "fprop")
    strides = {"x": (1400, 1, 0, 280, 40), "w": (2880, 360, 9, 9, 3, 1), "y": (560, 1, 0, 112, 16)}
    call = cuda_patch_run.parameters(patch, patch.fields(problem, strides, 0, 0))
    assert call.launch(24, 16, 0, 16, 16, 0, 0) == "16 does not divide the address of x or of the workspace"
