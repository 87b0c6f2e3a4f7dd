# Random layers with ties on both sides, and their passes in float64 and by pinned algorithms. For tests and replay.py.
from __future__ import annotations

import itertools
import random
from typing import Any

import torch
import torch.nn.functional as F
from sides_oracle import Case

import symconv_fast as sf
from symconv_fast.backends import cpu

REGULAR = ("h", "v", "hv", "z", "hz", "hvz")
OWN = ("h+", "h-", "v-", "h+v+", "h-v+", "h+v-", "h-v-", "z-", "h-z+", "h+v-z-", "h-v-z-")
OTHER = (("hv", "h"), ("h", "hv"), ("v", "hz"), ("hvz", "z"), ("hvz", "hv"), ("hz", "hvz"), ("vz", "hvz"))
OWN_MOVED = (
    ("h+", "h"), ("h-", "h"), ("v+", "hv"), ("h-v+", "hv"), ("h-v-", "hv"), ("h-v+", "h"), ("z-", "hz"),
    ("h-z+", "hvz"), ("h+v-z+", "hvz"), ("h+v+z-", "vz"),
)  # fmt: skip
MIXED = (
    ({"h": 4, "hv": 8}, {"h": 2, "hv": 4, "v": 6}), ({"h": 6}, {"hv": 4, "h": 2}), ({"h+": 3, "h-": 2}, None),
    ({"h": 4, "v": 2}, {"h": 6}), ({"h+v+": 2, "h-v-": 1}, {"hv": 8}), ({"hz": 8, "h": 2}, {"z": 4, "hz": 4}),
)  # fmt: skip
DIMS = {"h": 1, "v": 2, "z": 3}
SIZES = {1: (29,), 2: (11, 9), 3: (5, 7, 6)}
TORCH_ERROR = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 1.5e-2}
KINDS = ("regular", "own", "other", "own moved", "tables", "own tables", "mixed")


def letters_of(*keys: str) -> str:
    return "".join(c for c in "hvz" if any(c in key for key in keys))


def tables(pick: random.Random, letters: str, free: bool, groups: int) -> dict[str, tuple[int, ...]]:
    """Involutions of a few channels in no order, the same in each group; `free`: every letter moves every channel."""
    orbits, size = [], 0
    for _ in range(pick.randint(1, 4)):
        moved = [c for c in letters if free or pick.random() < 0.6]
        orbits.append((moved, range(size, size + 2 ** len(moved))))
        size += 2 ** len(moved)
    places = pick.sample(range(size), size)
    found = {c: list(range(size)) for c in letters}
    for moved, orbit in orbits:
        for bit, letter in enumerate(moved):
            for i, channel in enumerate(orbit):
                found[letter][places[channel]] = places[orbit[i ^ 1 << bit]]
    return {
        c: tuple(c + g * size for g in range(groups) for c in table)
        for c, table in found.items()
        if free or table != list(range(size))
    }


def ties_of(pick: random.Random, kind: str, groups: int) -> tuple[dict[str, int], object, int]:
    """Symmetry, input symmetry and input channels."""
    rows, channels = pick.choice((1, 3, 8, 16, 17)), pick.choice((1, 2, 3, 8, 9))
    if kind == "mixed":
        symmetry, inputs = pick.choice(MIXED)
        scale = pick.choice((1, 1, 3)) * groups
        symmetry = {key: count * scale for key, count in symmetry.items()}
        inputs = inputs and {key: count * scale for key, count in inputs.items()}
        return symmetry, inputs, sum((inputs or {"": channels * groups}).values())
    if kind in ("own", "own tables"):
        key = pick.choice(OWN)
        if kind == "own":
            return {key: rows * groups}, None, channels * groups
        inputs = tables(pick, letters_of(key), True, groups)
        return {key: rows * groups}, inputs, len(next(iter(inputs.values())))
    if kind == "tables":
        key = pick.choice(REGULAR)
        inputs = tables(pick, key, False, groups)
        size = len(next(iter(inputs.values()), range(channels * groups)))
        return {key: rows * groups * 2 ** len(key)}, inputs or None, size
    out, key = (
        pick.choice(OTHER)
        if kind == "other"
        else pick.choice(OWN_MOVED)
        if kind == "own moved"
        else (pick.choice(REGULAR),) * 2
    )
    orbit, size = 2 ** len(out) if out.isalpha() else 1, channels * 2 ** len(key) * groups
    return {out: rows * groups * orbit}, {key: size}, size


def draw(number: int) -> tuple[Case, dict[str, object]]:
    """A layer whose ties panels are made for, and the rest of its geometry."""
    pick = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    groups = pick.choice((1, 1, 1, 2)) if kind in ("own", "own tables", "tables") else 1
    symmetry, inputs, channels = ties_of(pick, kind, groups)
    ndim = pick.randint(max(DIMS[c] for c in letters_of(*symmetry, *(inputs or ()))), 3)
    # A layer of groups with one channel each has kernels of its own. One weight keeps even and odd filters alike
    # where no tap is in the middle, and a single tap has no odd ones.
    sizes = (2, 4) if kind == "mixed" and inputs is None else (2, 3, 3, 4, 5) if ndim < 3 else (2, 3)
    if "-" not in "".join(symmetry):
        sizes = (*sizes, 1)
    kernel = tuple(pick.choice(sizes) for _ in range(ndim))
    filters = sum(symmetry.values())
    case = Case(symmetry, inputs, channels, filters, kernel, groups=groups, transposed=pick.random() < 0.25)
    dilation = pick.choice((1, 1, 2))
    geometry = {"stride": pick.choice((1, 1, 2)), "padding": pick.choice((0, 1, 2)), "dilation": dilation}
    if any(2 * (k - 1) >= size + 2 * geometry["padding"] for k, size in zip(kernel, SIZES[ndim])):
        geometry["dilation"] = 1  # taps would not fit
    return case, geometry


def layer_of(case: Case, dtype: torch.dtype, last: bool, **geometry: object) -> torch.nn.Module:
    name = "SymmetricConvTranspose" if case.transposed else "SymmetricConv"
    layer = getattr(sf, f"{name}{case.ndim}d")(
        **case.arguments, bias="-" not in "".join(case.symmetry), **geometry
    )
    layer = layer.to(dtype)
    return layer.to(memory_format=format_of(case.ndim, last))


def format_of(ndim: int, last: bool) -> torch.memory_format:
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    return formats.get(ndim, torch.contiguous_format) if last else torch.contiguous_format


def exact(
    case: Case, layer: torch.nn.Module, x: torch.Tensor, geometry: dict[str, object]
) -> list[torch.Tensor]:
    """Result and gradients by torch on expanded filters, in float64; the upstream gradient last."""
    x = x.detach().double().requires_grad_()
    w = layer.weight.detach().double().requires_grad_()
    b = None if layer.bias is None else layer.bias.detach().double()
    convolve = getattr(F, f"conv{'_transpose' * case.transposed}{case.ndim}d")
    y = convolve(x, layer.ties.expand(w, int(case.transposed)), b, groups=case.groups, **geometry)
    up = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(layer.weight.dtype)
    return [y, *torch.autograd.grad(y, (x, w), up.double()), up]


PASSES = ("fprop", "dgrad", "wgrad")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def passes(
    layer: torch.nn.Module, x: torch.Tensor, up: torch.Tensor, able: list[str], algorithm: str
) -> list[torch.Tensor | None]:
    """Those of the three that can run, each pinned."""
    x = x.detach().requires_grad_()
    with sf.backend("reference"):
        y = layer(x)
    found: list[torch.Tensor | None] = [None, None, None]
    with sf.backend("cpu", algorithm):
        if "fprop" in able:
            with torch.no_grad():
                found[0] = layer(x)
        if "dgrad" in able:
            (found[1],) = torch.autograd.grad(y, x, up, retain_graph=True)
        if "wgrad" in able:
            (found[2],) = torch.autograd.grad(y, layer.weight, up, retain_graph=True)
    return found


EXTENTS = {1: (5, 17, 40), 2: (3, 7, 12, 14, 17), 3: (3, 5, 7)}
KERNELS = {1: (1, 3, 5, 7, 8, 13), 2: (1, 2, 3, 5, 6, 7, 7, 9), 3: (1, 2, 3, 3, 4)}
SEVERAL = ({"h-": 1, "h+": 1}, {"h+v-": 1, "h-v+": 2}, {"h-v-": 1, "h-v+": 1, "h+v+": 1})


def draw_depthwise(number: int, across: bool) -> tuple[Case, dict[str, Any], tuple[int, ...]]:
    """A depthwise layer, its geometry, and the extents of its input."""
    pick = random.Random(number)
    symmetry, channels = _orbits(pick) if across else _own(pick)
    letters = {c for key in symmetry for c in key if c.isalpha()}
    ndim = pick.randint(max(DIMS[c] for c in letters), 3)
    several = not across and len(symmetry) > 1
    width = pick.choice(KERNELS[ndim])
    kernel = tuple(pick.choice((width, width, pick.choice(KERNELS[ndim]))) for _ in range(ndim))
    odd = {c for key in symmetry for c, sign in itertools.pairwise(key) if sign == "-"}
    # An odd filter of one tap is zero; kinds of several parities keep as many numbers where taps are even.
    kernel = tuple(
        (k + k % 2) if several else max(k, 2) if "zvh"[3 - ndim + axis] in odd else k
        for axis, k in enumerate(kernel)
    )
    geometry = {
        "stride": pick.choice((1, 1, 1, 2)),
        "padding": tuple(pick.choice((k // 2, k // 2, 0, 1)) for k in kernel),
        "dilation": pick.choice((1, 1, 1, 2)),
    }
    extents = tuple(
        max(pick.choice(EXTENTS[ndim]), geometry["dilation"] * (k - 1) + 1)  # padding comes on top
        for k in kernel
    )
    inputs = _involutions(letters, channels, pick) if across else None
    case = Case(
        symmetry, inputs, channels, sum(symmetry.values()), kernel, groups=channels,
        transposed=not across and pick.random() < 0.2, across=across,
    )  # fmt: skip
    return case, geometry, extents


def _own(pick: random.Random) -> tuple[dict[str, int], int]:
    groups = pick.choice((2, 3, 8, 16, 17, 32, 35))
    kinds = pick.choice(SEVERAL) if pick.random() < 0.25 else {pick.choice(OWN): pick.choice((1, 1, 2, 3))}
    return {key: rows * groups for key, rows in kinds.items()}, groups


def _orbits(pick: random.Random) -> tuple[dict[str, int], int]:
    key = pick.choice(REGULAR)
    channels = 2 ** len(key) * pick.choice((1, 3, 4, 5, 8, 17))
    return {key: channels * pick.choice((1, 1, 2, 3))}, channels


def _involutions(letters: set[str], channels: int, pick: random.Random) -> Any:
    """Orbits of the same tie, by name or as the involutions that they are."""
    key = "".join(c for c in "hvz" if c in letters)
    if pick.random() < 0.5:
        return {key: channels}
    ties = sf.Symmetry(key, ndim=3).resolve(3, channels)
    return {c: ties.partners(bit) for c, bit in (("h", 1), ("v", 2), ("z", 4)) if c in letters}


def tensors(case: Case, extents: tuple[int, ...], dtype: torch.dtype, last: bool) -> torch.Tensor:
    x = torch.randn(2, case.channels, *extents).to(dtype)
    return x.contiguous(memory_format=format_of(case.ndim, last))


def input_of(case: Case, extents: tuple[int, ...], dtype: torch.dtype, last: bool) -> torch.Tensor:
    x = torch.randn(2, case.channels, *extents).to(dtype)
    return x.contiguous(memory_format=format_of(case.ndim, last))


def check(number: int, dtype: torch.dtype) -> int:
    """Every pass of a random layer by every algorithm of the CPU that takes it; how many these were."""
    last = number % 5 < 2
    if number % 3 == 2:
        case, geometry, extents = draw_depthwise(number, across=number % 2 == 0)
    else:
        case, geometry = draw(number)
        extents = SIZES[case.ndim]
    torch.manual_seed(number)
    layer = layer_of(case, dtype, last, **geometry)
    x = input_of(case, extents, dtype, last)
    y, gx, gw, up = exact(case, layer, x, geometry)
    up = up.contiguous(memory_format=format_of(case.ndim, last))
    problem, checked = layer.problem(x), 0
    for algorithm in cpu.ALGORITHMS:
        able = [op for op in PASSES if cpu.can_run(problem, op, algorithm) is None]
        for op, got, true in zip(PASSES, passes(layer, x, up, able, algorithm), (y, gx, gw)):
            if op not in able:
                continue
            error = (got.double() - true).norm()
            assert error <= TORCH_ERROR[dtype] * true.norm(), (
                f"{op} by {algorithm} of {number} in {dtype}: {error / true.norm():.2g}, {case}, {geometry}"
            )
            checked += 1
    return checked
