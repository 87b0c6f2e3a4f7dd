# The error rule: how far from float64 a backend may be, measured against torch's own convolution in the same dtype.
"""float32: at most twice torch's own error in the same layout (2.5 times for a single image), with the floor of one
rounding of the result; F(2,3) the same and F(4,3) four times that of torch's channels last. 16-bit types: a multiple of
the ordinary convolution's error. All errors are RMS over the result, against float64: they repeat from seed to seed
within a few percent, which the largest error does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import cases
import pytest
import torch
from oracle import OPS, Case, candidates, convolve, expand, make_tensors, pinned
from torch import Tensor

LAYOUT = {"contiguous": {}, "channels last": cases.LAST}
SHAPES = ((16, 28), (64, 20), (160, 10))  # channels of input and output, height and width; 3 x 3, batch 2
TIES = {"h": 1, "v": 2, "hv": 3}
VOLUME = (32, 8)  # the same for the octuple: 3 x 3 x 3
# Small maps and few channels, where torch sums a weight gradient in short chains: (tie, orbits, channels, size).
SMALL = (
    (7, 4, 4, (5, 5, 5)),
    (7, 8, 8, (6, 6, 6)),
    (3, 16, 16, (5, 5, 5)),
    (7, 8, 64, (5, 5, 5)),
    (3, 8, 16, (14, 14)),
)
# Single images, which torch sums in shorter chains than batches: (tie, orbits, channels, size, transposed).
SINGLE = (
    (1, 16, 32, (8, 8, 8), False),
    (4, 16, 32, (5, 5, 5), False),
    (1, 8, 16, (8, 8, 8), True),
    (4, 8, 16, (8, 8, 8), True),
    (3, 8, 32, (5, 5, 5), True),
    (2, 16, 32, (14, 14), True),
)
OF_A_BATCH, OF_A_SINGLE_IMAGE, OF_F4 = 2.0, 2.5, 4.0  # largest error as a multiple of torch's

# Largest RMSE in 16-bit types over that of the ordinary convolution in the same type, by members of an orbit.
FOLDED = {2: 1.7, 4: 2.1, 8: 2.5}
DIRECT = 1.1


def _cases() -> dict[str, Case]:
    found = {}
    for layout, more in LAYOUT.items():
        for channels, size in SHAPES:
            for tie, mask in TIES.items():
                ties = {mask: channels // (1 + (mask == 3)) // 2}
                case = cases._case(ties, channels, (size, size), 3, padding=1, bias=False, **more)
                found[f"{tie}, {channels}@{size}, {layout}"] = case
        channels, size = VOLUME
        case = cases._case({7: channels // 8}, channels, (size,) * 3, 3, padding=1, bias=False, **more)
        found[f"hvz, {channels}@{size}, {layout}"] = case
        for mask, orbits, channels, size in SMALL:
            case = cases._case({mask: orbits}, channels, size, 3, padding=1, bias=False, **more)
            found[f"tie {mask}, {channels} to {orbits} orbits@{size}, {layout}"] = case
        for mask, orbits, channels, size, transposed in SINGLE:
            options = {"padding": 1, "bias": False, "batch": 1, "transposed": transposed, **more}
            case = cases._case({mask: orbits}, channels, size, 3, **options)
            found[f"single image, tie {mask}, {channels}@{size}, {transposed}, {layout}"] = case
    return found


CASES = _cases()
SIXTEEN = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch's own order of summation, and so its error, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arrange(tensor: Tensor, case: Case, dtype: torch.dtype) -> Tensor:
    """In the dtype and the layout of the case."""
    last = torch.channels_last if case.ndim == 2 else torch.channels_last_3d
    return tensor.to(dtype).contiguous(memory_format=last if case.result_last else torch.contiguous_format)


@lru_cache(maxsize=64)
def normal(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, w and gy in float64, normally distributed, rounded to `dtype`."""
    t = make_tensors(case, torch.float64)
    return tuple(v.to(dtype).double() for v in (t.x, t.w, t.gy))


def passes(case: Case, x: Tensor, w: Tensor, gy: Tensor) -> dict[str, Tensor]:
    """The ordinary convolution on expanded filters and its gradients, in the dtype and layout of the tensors."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    filters = expand(w, case).detach().contiguous(memory_format=_format(w, case)).requires_grad_()
    y = convolve(case, x, filters, None)
    gx, gf = torch.autograd.grad(y, [x, filters], gy)
    # The sum over an orbit belongs to the tied layer: in float64, so that only the convolution's own error counts.
    wide = w.detach().double().requires_grad_()
    (gw,) = torch.autograd.grad(expand(wide, case), wide, gf.double())
    return {"fprop": y.detach().double(), "dgrad": gx.double(), "wgrad": gw}


def _format(w: Tensor, case: Case) -> torch.memory_format:
    if not case.result_last:
        return torch.contiguous_format
    return torch.channels_last if case.ndim == 2 else torch.channels_last_3d


@lru_cache(maxsize=64)
def exact(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return passes(case, *normal(case, dtype))


@lru_cache(maxsize=64)
def ordinary(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return passes(case, *(arrange(v, case, dtype) for v in normal(case, dtype)))


def symmetric(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str) -> Tensor:
    x, w, gy = (arrange(v, case, dtype) for v in normal(case, dtype))
    ops = torch.ops.symconv_fast
    with pinned(backend, algorithm):
        if op == "fprop":
            return ops.fprop(x, w, None, *case.static).double()
        if op == "dgrad":
            return ops.dgrad(gy, w, list(case.input_shape), *case.static).double()
        return ops.wgrad(gy, x, list(case.weight_shape), *case.static).double()


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def _parameters(dtypes: tuple[torch.dtype, ...]) -> list[object]:
    """What runs natively; what the reference runs are torch's own convolutions."""
    found, reasons = [], set()
    for dtype in dtypes:
        for name, case in CASES.items():
            for op in OPS:
                for backend, algorithm, reason in candidates(case, dtype, op):
                    if reason is not None:
                        reasons.add(f"{backend}/{algorithm}: {reason}")
                    elif backend != "reference":
                        title = f"{backend}/{algorithm}, {str(dtype)[6:]}, {op}, {name}"
                        found.append(pytest.param(case, dtype, op, backend, algorithm, id=title))
    if found:
        return found
    nothing = pytest.mark.skip(reason="; ".join(sorted(reasons)) or "no native backend")
    return [pytest.param(*[None] * 5, id="nothing native", marks=nothing)]


ARGUMENTS = ("case", "dtype", "op", "backend", "algorithm")


@pytest.mark.parametrize(ARGUMENTS, _parameters((torch.float32,)))
def test_float32(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str) -> None:
    """At most twice the error of torch's own convolution, 2.5 times for a single image and four times for F(4,3), with
    the floor of one rounding.
    """
    right = exact(case, dtype)[op]
    factor = OF_A_SINGLE_IMAGE if case.batch == 1 else OF_A_BATCH
    if algorithm.endswith("winograd f4"):
        factor = OF_F4
    # Minimal filtering is allowed what torch's faster layout has.
    like = replace(case, **cases.LAST) if "winograd" in algorithm else case
    theirs = rms(ordinary(like, dtype)[op] - exact(like, dtype)[op])
    limit = factor * max(theirs, rms(right.float().double() - right))
    error = rms(symmetric(case, dtype, op, backend, algorithm) - right)
    size = rms(right)
    assert error <= limit, f"RMS error {error / size:.2e} of the result, allowed {limit / size:.2e}"


@pytest.mark.parametrize(ARGUMENTS, _parameters(SIXTEEN))
def test_16_bit(case: Case, dtype: torch.dtype, op: str, backend: str, algorithm: str) -> None:
    """RMSE as a multiple of that of an ordinary convolution that sums in float32 and rounds its result once.

    torch's own may round more often (float16), so what runs on it is held against it.
    """
    right = exact(case, dtype)[op]
    ordinary_result = ordinary(case, dtype)[op] if algorithm == "expand" else right.to(dtype).double()
    ordinary_error = rms(ordinary_result - right)
    members = case.out_channels // case.unique
    limit = DIRECT if algorithm == "direct" else FOLDED[members]
    if algorithm == "scatter":  # of an octuple's axes one is folded, else none
        limit = FOLDED[2] if members == 8 else DIRECT
    ratio = rms(symmetric(case, dtype, op, backend, algorithm) - right) / ordinary_error
    assert ratio <= limit


def test_the_yardstick_is_torch_itself() -> None:
    """The reference, which runs torch's convolution, has the error that is allowed to others, once and not twice."""
    for name in ("h, 64@20, contiguous", "hv, 64@20, channels last", "hvz, 32@8, contiguous"):
        case = CASES[name]
        for op in ("fprop", "dgrad"):
            theirs = rms(ordinary(case, torch.float32)[op] - exact(case, torch.float32)[op])
            reference = rms(
                symmetric(case, torch.float32, op, "reference", "expand") - exact(case, torch.float32)[op]
            )
            assert theirs > 0
            assert reference == pytest.approx(theirs, rel=0.01)
