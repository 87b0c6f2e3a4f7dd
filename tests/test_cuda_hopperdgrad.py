# The gradient of the input on Hopper, tile by tile on the stand-in for a GPU, and its planner.
"""Every tile against the oracle, in both types; which tile is chosen; what is refused, in Python and in C++."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cuda_host
import cuda_patch_run
import oracle
import pytest
import torch
from oracle import Case

from symconv_fast.backends.cuda import hopperdgrad
from symconv_fast.backends.cuda.hopperdgrad import TILES
from symconv_fast.backends.cuda.limits import Limits
from symconv_fast.problem import Problem

BF16, FP16 = torch.bfloat16, torch.float16
H200 = Limits("sm_90", (9, 0), 227 << 10, 132, True)
LIMIT = {1: 1.7, 2: 2.1}  # rms error as a multiple of torch's own convolution, by tied axes


def three(mask: int, rows: int, **changes: Any) -> Case:
    """A 3 x 3 case that the kernels take, but for the changes."""
    base = Case(ties=((mask, rows),), channels=40, padding=(1, 1), layouts=("channels_last",) * 3)
    return replace(base, **changes)


def cases(axes: int) -> list[Case]:
    """Odd sizes: more stages than rings have, several images in a tile, several tiles, channels that fill nothing."""
    a, b = (1, 2) if axes == 1 else (3, 3)
    return [
        three(a, 80, spatial=(5, 9), batch=3, bias=False),
        three(b, 16, spatial=(17, 19), channels=136, batch=1, bias=False),
        three(a, 32, spatial=(1, 1), channels=8, batch=5, bias=False),
        three(b, 32, spatial=(7, 3), channels=48, groups=2, bias=False),
    ]


def run(case: Case, dtype: torch.dtype, tile: int) -> torch.Tensor:
    """The gradient by one tile, of the oracle's tensors; the weight lies as it likes."""
    t = oracle.make_tensors(case, dtype)
    gy, w = oracle.arrange(t.gy, "channels_last", dtype), oracle.arrange(t.w, "contiguous", dtype)
    return cuda_patch_run.gradient(oracle.problem_of(case, dtype, "dgrad"), tile, gy, w)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("tile", range(len(TILES)), ids=[tile.name for tile in TILES])
def test_a_tile_is_right(tile: int, dtype: torch.dtype) -> None:
    cuda_host.module().set_multiprocessors(1)  # so that CTAs have several tiles
    for seed, case in enumerate(cases(TILES[tile].axes)):
        cuda_host.module().set_seed(seed)
        x, want = run(case, dtype, tile).double(), oracle.expected(case, dtype)["dgrad"]
        allowed = oracle.tolerance(case, dtype, "dgrad", "cuda", "hopper")
        assert ((x - want).abs() <= allowed).all(), case
    cuda_host.module().set_multiprocessors(4)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("mask", [1, 2, 3])
def test_errors_are_those_of_the_fold(mask: int, dtype: torch.dtype) -> None:
    """Of any values, as a multiple of the error of torch's own convolution in that type."""
    axes = mask.bit_count()
    case = three(mask, 256 >> axes, channels=64, spatial=(9, 8), bias=False)
    gy, w = torch.randn(case.output_shape).to(dtype), (torch.randn(case.weight_shape) / 48).to(dtype)
    gy = gy.contiguous(memory_format=torch.channels_last)
    tile = [tile.axes for tile in TILES].index(axes)
    x = cuda_patch_run.gradient(oracle.problem_of(case, dtype, "dgrad"), tile, gy, w)
    want = gradient(case, gy.double(), oracle.expand(w, case).double())
    own = gradient(case, gy.float(), oracle.expand(w, case).float()).to(dtype)
    error, of_torch = ((v.double() - want).square().mean().sqrt() for v in (x, own))
    assert error <= LIMIT[axes] * of_torch, float(error / of_torch)


def gradient(case: Case, gy: torch.Tensor, expanded: torch.Tensor) -> torch.Tensor:
    """By torch, of expanded filters."""
    return torch.nn.grad.conv2d_input(case.input_shape, expanded, gy, padding=1, groups=case.groups)


def test_tables_of_python_and_of_the_module_agree() -> None:
    rows = [row for row in cuda_host.module().variants() if row["family"] == "hopperdgrad"]
    native = [(row["name"], row["shared_bytes"], row["ctas"]) for row in rows]
    assert native == [(tile.name, tile.shared_bytes, tile.resident) for tile in TILES]
    text = (cuda_patch_run.SOURCES / "hopperdgrad" / "tiles.h").read_text()
    for tile in TILES:
        (found,) = re.findall(rf"using {tile.name} = Gather<(\d), Tile<([^>]*)>", text)
        members, _, channels, height, width, patches, groups, rows_u, *_ = map(int, found[1].split(", "))
        of_tile = (2**tile.axes, tile.height, tile.width, tile.patches, tile.orbits, tile.channels)
        assert (members, height, width, patches, channels * groups, rows_u) == of_tile
        assert int(found[0]) == members


CHOICES = {
    "channels fill a tile, small patches": (
        three(1, 256, channels=512, spatial=(56, 56), batch=64),
        "gh128p",
    ),
    "strips fit": (three(1, 256, channels=512, spatial=(28, 28), batch=64), "gh128q"),
    "few channels": (three(1, 32, channels=64, spatial=(56, 56), batch=256), "gh64p"),
    "four members": (three(3, 64, channels=256, spatial=(56, 56), batch=64), "ghv128p"),
    "four members, strips": (three(3, 128, channels=512, spatial=(28, 28), batch=64), "ghv128q"),
    "four members, few channels": (three(3, 16, channels=64, spatial=(56, 56), batch=256), "ghv64p"),
}


def planned(case: Case) -> Problem:
    """A problem of a GPU, of which no tensor is made."""
    return Problem.create((case.input_shape, case.weight_shape), case.static, True, BF16, "cuda")


@pytest.mark.parametrize("name", CHOICES)
def test_the_tile_that_is_chosen(name: str) -> None:
    case, tile = CHOICES[name]
    assert hopperdgrad.kernels(planned(case), "dgrad", H200) == (tile,)
    assert 0 < hopperdgrad.seconds(planned(case), "dgrad", H200) < 1e-2


GOOD = three(1, 16)
REFUSED = cuda_patch_run.not_for_patches(GOOD) | {
    "16 does not divide the 24 rows of a group": [three(1, 24), three(2, 48, groups=2, channels=80)],
    "there are too many tiles, or weights": [
        three(1, 512, channels=1 << 22, spatial=(1, 1), batch=1),
        replace(GOOD, channels=1 << 12, spatial=(1, 1), batch=1 << 26),
    ],
    "a tensor is too large for offsets of 32 bits": [replace(GOOD, batch=1 << 18, spatial=(64, 128))],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str) -> None:
    assert hopperdgrad.refusal(planned(GOOD), "dgrad", H200) is None
    for case in REFUSED[reason]:
        found = hopperdgrad.refusal(planned(case), "dgrad", H200)
        assert str(found).startswith(reason), (case, found)


def test_what_is_refused_besides() -> None:
    planes = replace(GOOD, ndim=3, spatial=(2, 5, 3), kernel=(1, 3, 3), padding=(0, 1, 1), stride=(1,) * 3)
    planes = replace(planes, dilation=(1,) * 3, output_padding=(0,) * 3)
    assert hopperdgrad.refusal(planned(planes), "dgrad", H200) == "its maps have no planes"
    assert hopperdgrad.refusal(planned(GOOD), "fprop", H200) == "it has the gradient of the input alone"
    a100 = Limits("sm_80", (8, 0), 163 << 10, 108, True)
    assert str(hopperdgrad.refusal(planned(GOOD), "dgrad", a100)).endswith("not of sm_80")
    small = replace(H200, shared_bytes=100 << 10)
    assert hopperdgrad.refusal(planned(GOOD), "dgrad", small) == (
        "no tile fits the 100 KB of shared memory of sm_90"
    )


BAD = {
    "patch kernels multiply bfloat16 and float16": {"dtype": 2},
    "there is no such tile": {"tile": 99},
    "for the ties h, v and hv": {"mask": 4},
    "the tile is for another tie": {"mask": 3},
    "a size is not positive, or too large": {"height": 0},
    "the rows of a group fill no whole stages": {"rows": 24},
    "strides of x are negative, or 8 does not divide them": {"y_y": 100},
    "x is too large for offsets": {"y_n": 1 << 40},
    "strides of y are negative": {"x_x": -8},
    "strides of w are negative": {"w_row": -1},
    "there are too many tiles": {"batch": 1 << 30, "y_n": 0},
    "the weight is too large": {"channels": 1 << 29, "rows": 1 << 10},
}


@pytest.mark.parametrize("text", BAD)
def test_bad_numbers_are_named_and_never_run(text: str) -> None:
    strides = {"x": (1400, 1, 0, 280, 40), "w": (5760, 360, 9, 9, 3, 1), "y": (1120, 1, 0, 224, 32)}
    fields = hopperdgrad.fields(oracle.problem_of(GOOD, BF16, "dgrad"), strides, 0)
    assert cuda_patch_run.parameters(hopperdgrad, fields).check() == ""
    call = cuda_patch_run.parameters(hopperdgrad, fields | BAD[text])
    assert text in call.check()
    assert call.launch(16, 16, 0, 16, 16, 0, 0) == call.check()
    assert call.workspace() == 0
