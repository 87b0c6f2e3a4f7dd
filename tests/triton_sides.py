# Ties on both sides by the Triton kernels, in the interpreter: every pass against filters made from the definition.
"""`checks()` for triton_grid.py. `TRITON_INTERPRET=1 python tests/triton_sides.py FIRST LAST` checks random layers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import sides_oracle
import torch
import torch.nn.functional as F
from sides_oracle import Case

import symconv_fast as sf
from symconv_fast.backends.triton import backend, configs, launch
from symconv_fast.backends.triton.configs import Config

Geometry = dict[str, Any]
Check = Callable[[], None]
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
SMALL_TILE = Config(16, 16, 16, 4, 1, 2)
COMPLEMENT = {"h": (3, 2, 1, 0)}


def case(symmetry: str, inputs: Any, rows: int, channels: int, kernel: tuple[int, ...], **more: Any) -> Case:
    """A layer of one tie: so many rows in a group, and so many channels of it that no mirror exchanges."""
    groups = more.get("groups", 1)
    orbit = 1 if symmetry[1:2] in ("+", "-") else len(sides_oracle.COPIES[symmetry])
    if isinstance(inputs, str):
        channels *= len(sides_oracle.COPIES[inputs])
        inputs = {inputs: channels * groups}
    return Case(
        {symmetry: rows * orbit * groups}, inputs, channels * groups, rows * orbit * groups, kernel, **more
    )


def inside_groups(groups: int, half: int) -> dict[str, tuple[int, ...]]:
    """The exchange of halves in each group."""
    one = [*range(half, 2 * half), *range(half)]
    return {"h": tuple(2 * half * group + c for group in range(groups) for c in one)}


# Title: layer, sizes of the map, type, is the memory channels last, and the rest of its geometry.
CASES: dict[str, tuple[Case, tuple[int, ...], torch.dtype, bool, Geometry]] = {
    "h to h, dilation": (case("h", "h", 5, 3, (5,)), (17,), torch.float32, False, {"dilation": 2, "padding": 4}),
    "hv to hv, stride 2": (
        case("hv", "hv", 3, 2, (3, 3)), (7, 9), torch.float64, False, {"stride": 2, "padding": 1},
    ),
    "hvz to hvz": (case("hvz", "hvz", 3, 1, (2, 3, 2)), (3, 4, 3), torch.bfloat16, True, {"padding": 1}),
    "hvz to hvz, in halves": (case("hvz", "hvz", 1, 2, (1, 2, 3)), (2, 3, 4), torch.float16, False, {}),
    "v to v, many channels": (case("v", "v", 17, 18, (3, 1)), (5, 4), torch.float16, True, {"padding": (1, 0)}),
    "hv to hv, even kernel": (
        case("hv", "hv", 2, 17, (4, 2)), (6, 5), torch.float32, True, {"stride": 2, "padding": 1},
    ),
    "h to h, transposed": (
        case("h", "h", 3, 2, (3, 4), transposed=True), (4, 3), torch.float64, False, {"stride": 2},
    ),
    "h to h, groups": (
        case("h", inside_groups(2, 3), 2, 6, (3,), groups=2), (9,), torch.bfloat16, False, {"padding": 1},
    ),
    "h to h, one tap": (case("h", "h", 3, 4, (1, 1)), (4, 5), torch.float32, True, {}),
    "h to hv": (case("hv", "h", 3, 2, (3, 3)), (5, 6), torch.float32, False, {"padding": 1}),
    "h+": (case("h+", None, 5, 3, (5,)), (13,), torch.float32, False, {"padding": 2}),
    "h-": (case("h-", None, 3, 17, (3, 2)), (4, 6), torch.float16, True, {"padding": 1}),
    "h+v-, stride 2": (case("h+v-", None, 2, 3, (3, 4)), (7, 6), torch.float64, False, {"stride": 2, "padding": 1}),
    "h-v+z-": (case("h-v+z-", None, 3, 2, (2, 3, 3)), (3, 4, 3), torch.bfloat16, False, {"padding": 1}),
    "h+v+, groups": (case("h+v+", None, 2, 3, (3, 3), groups=2), (5, 4), torch.float32, True, {}),
    "v-, transposed": (case("v-", None, 3, 2, (4, 3), transposed=True), (3, 4), torch.float32, False, {"stride": 2}),
    "h+ of h": (case("h+", "h", 3, 2, (4,)), (9,), torch.float32, False, {"padding": 1}),
    "h-v+ of hv": (case("h-v+", "hv", 2, 17, (3, 2)), (4, 5), torch.float16, True, {"stride": 2, "padding": 1}),
    "h+v- of h": (case("h+v-", "h", 3, 2, (3, 5)), (6, 5), torch.float64, False, {"padding": (1, 2)}),
    "h-v+ of v, transposed": (
        case("h-v+", "v", 2, 3, (3, 3), transposed=True), (4, 3), torch.bfloat16, False, {"stride": 2, "padding": 1},
    ),
    "reverse complement": (case("h", COMPLEMENT, 5, 4, (7,)), (19,), torch.float32, False, {"padding": 3}),
    "reverse complement, self-symmetric": (case("h-", COMPLEMENT, 3, 4, (4,)), (11,), torch.float64, False, {}),
    "reverse order": (
        case("h", {"h": tuple(range(19, -1, -1))}, 3, 20, (3, 3)), (3, 5), torch.bfloat16, True, {"padding": 1},
    ),
    "reverse order, transposed": (
        case("h", {"h": tuple(range(5, -1, -1))}, 2, 6, (3,), transposed=True), (7,), torch.float32, False, {},
    ),
    "hv to h": (case("h", "hv", 3, 2, (3, 2)), (4, 5), torch.float32, False, {"padding": 1}),
}  # fmt: skip


def layer_of(c: Case, dtype: torch.dtype, geometry: Geometry) -> torch.nn.Module:
    """The layer, with a bias where its filters may have one."""
    name = "SymmetricConvTranspose" if c.transposed else "SymmetricConv"
    bias = all("-" not in key for key in c.symmetry)
    return getattr(sf, f"{name}{c.ndim}d")(**c.arguments, bias=bias, **geometry).to(dtype)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random; in 16 bits small integers, whose sums are exact, so that one rounding parts a result from the answer."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.itemsize > 2:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def check(
    c: Case, spatial: tuple[int, ...], dtype: torch.dtype, last: bool, geometry: Geometry, device: str = "cpu"
) -> None:
    """All three passes, pinned to the fold."""
    layer = layer_of(c, dtype, geometry).to(device)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(values(tuple(parameter.shape), dtype, i))
    x = values((2, c.channels, *spatial), dtype, 7).to(device)
    x = x.contiguous(memory_format=FORMATS[c.ndim] if last else torch.contiguous_format).requires_grad_()
    with sf.backend("triton", "fold"):
        y = layer(x)
        up = values(tuple(y.shape), dtype, 8)
        got = [y, *torch.autograd.grad(y, (x, layer.weight), up.to(device))]
    layer = layer.cpu()
    exact_x, w = x.detach().cpu().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    convolve = getattr(F, f"conv{'_transpose' * c.transposed}{c.ndim}d")
    bias = None if layer.bias is None else layer.bias.detach().double()
    right = convolve(exact_x, sides_oracle.expand(c, w), bias, groups=c.groups, **geometry)
    wanted = [right, *torch.autograd.grad(right, (exact_x, w), up.double())]
    for op, result, answer in zip(("fprop", "dgrad", "wgrad"), got, wanted):
        assert result.shape == answer.shape, op
        assert answer.abs().max() > 0, op
        eps = torch.finfo(dtype).eps
        error, limit = (result.cpu().double() - answer).abs(), eps * answer.abs() * 0.5
        if dtype.itemsize > 2:
            limit = limit + 400 * eps * answer.square().mean().sqrt()
        assert bool((error <= limit).all()), (
            f"{op}: off by {error.max():.3g}, the largest is {answer.abs().max():.3g}"
        )


def small_tiles(*arguments: Any) -> None:
    """With several tiles and blocks along every side, the last ones not full, and positions that are split."""
    forget()
    with (
        mock.patch.object(configs, "tiles", return_value=(SMALL_TILE,)),
        mock.patch.object(configs, "SPLIT_STEPS", 1),
    ):
        check(*arguments)
    forget()


def forget() -> None:
    """Plan anew what was called before."""
    sf.ops.forget_plans()
    backend.bind.cache_clear()
    launch._plan.cache_clear()


def checks() -> Iterator[tuple[str, Check]]:
    """Title and check of every layer."""
    for title, arguments in CASES.items():
        yield f"sides, {title}", partial(check, *arguments)
    wide: tuple[Any, ...] = (case("h", "h", 18, 17, (3,)), (21,), torch.float16, False, {"padding": 1})
    yield "sides, small tiles", partial(small_tiles, *wide)
    still: tuple[Any, ...] = (case("h-v+", "v", 17, 18, (2, 3)), (5, 4), torch.float32, True, {"padding": 1})
    yield "sides, small tiles, self-symmetric", partial(small_tiles, *still)


# --- random layers ---------------------------------------------------------------------------------------------------

TIES = ("h", "v", "hv", "z", "hz", "vz", "hvz")


def draw(number: int) -> tuple[Case, tuple[int, ...], torch.dtype, bool, Geometry]:
    """A layer that the kernels take."""
    pick = random.Random(number)
    letters = pick.choice(TIES)
    ndim = pick.randint(max("hvz".index(c) for c in letters) + 1, 3)
    inside = [key for key in TIES if set(key) <= set(letters)]
    own = pick.random() < 0.5
    inputs = (
        pick.choice(inside + [None] * 3) if own else letters if pick.random() < 0.6 else pick.choice(inside)
    )
    kernel = tuple(pick.choice((2, 3, 4) if ndim < 3 else (2, 3)) for _ in range(ndim))
    symmetry = "".join(c + pick.choice("+-") for c in letters) if own else letters
    made = case(
        symmetry, inputs, pick.choice((1, 3, 17)), pick.choice((1, 2, 9) if inputs else (3, 17)), kernel,
        transposed=pick.random() < 0.25,
    )  # fmt: skip
    geometry = {
        "stride": pick.choice((1, 1, 2, 3)),
        "padding": pick.choice((0, 1)),
        "dilation": pick.choice((1, 1, 2)),
    }
    sizes = {1: (15,), 2: (9, 8), 3: (5, 4, 6)}[ndim]
    dtype = pick.choice((torch.float32, torch.float64, torch.float16, torch.bfloat16))
    padded = tuple(max(n, geometry["dilation"] * (k - 1) + 1) for n, k in zip(sizes, kernel))
    return made, padded, dtype, pick.random() < 0.5, geometry


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for number in range(*map(int, sys.argv[1:3])):
        drawn = draw(number)
        try:
            check(*drawn)
        except Exception as error:
            sys.exit(f"{number}, {drawn}: {type(error).__name__}: {error}")
