# float16 and bfloat16 on the native kernels: every value in and out, one rounding, overflow, and what is not a number.
"""What the grid's small integers cannot show. Under each instruction set that this CPU has, `test_every_value` runs in
a Python of its own, because the set is chosen once.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import symconv_fast
from symconv_fast import functional as F

pytest.importorskip("symconv_fast._cpu")

ROOT = Path(__file__).resolve().parent.parent
DTYPES = (torch.bfloat16, torch.float16)
SETS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16")


def every_value(dtype: torch.dtype) -> Tensor:
    """All 65536 bit patterns as (1, 1, 256, 256)."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)


def same(a: Tensor, b: Tensor, x: Tensor, flushed: bool) -> Tensor:
    """Equal, both not a number, or, where instructions flush denormals, zero for one as input or before rounding."""
    smallest = torch.finfo(b.dtype).smallest_normal
    tiny = (b.abs() <= smallest) | (x.abs() < smallest)
    return (a == b) | (a.isnan() & b.isnan()) | (tiny & (a == 0) & flushed)


def check_every_value() -> None:
    """A layer with one weight, 1, gives back its input, and one with another weight rounds each product once."""
    from symconv_fast import _cpu

    for dtype in DTYPES:
        flushed = dtype == torch.bfloat16 and _cpu.isa() in ("avx512_bf16", "amx_bf16")
        x = every_value(dtype)
        for factor in (1.0, -1.0, 1.0078125, 0.3330078125, 511.0, 2.0**-9):
            w = torch.full((1, 1, 1, 1), factor).to(dtype)
            product = (x.float() * w.float()).to(dtype)
            with symconv_fast.backend("cpu", "fold"):
                y = F.symmetric_conv2d(x, w, symmetry=None)
                assert bool(same(y, product, x, flushed).all()), (dtype, factor)
                # Channels innermost and whole vectors of them, finite values only: they are summed with zeros.
                finite = torch.where(x.isfinite(), x, torch.ones_like(x)).view(1, 16, 16, 256).transpose(1, 3)
                eye = (torch.eye(256).to(dtype) * w.view(1, 1)).view(256, 256, 1, 1)
                y = F.symmetric_conv2d(finite, eye, symmetry=None)
                product = (finite.float() * w.float()).to(dtype)
                assert bool(same(y, product, finite, flushed).all()), (dtype, factor)
                # Depthwise layers widen in all sets: nothing is flushed, lanes and positions stay apart.
                for last in (False, True):
                    fmt = torch.channels_last if last else torch.contiguous_format
                    maps = x.view(1, 32, 32, 64).contiguous(memory_format=fmt)
                    y = F.symmetric_conv2d(maps, w.expand(32, 1, 1, 1), symmetry=None, groups=32)
                    product = (maps.float() * w.float()).to(dtype)
                    assert bool(same(y, product, maps, False).all()), (dtype, factor, last)


@pytest.mark.parametrize("isa", SETS)
def test_every_value(isa: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_sixteen_bit as t; "
        "from symconv_fast import _cpu; t.check_every_value(); print(_cpu.isa())"
    )
    env = os.environ | {"SYMCONV_FAST_ISA": isa, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    if done.stdout.strip() != isa:
        pytest.skip(f"this CPU has no {isa}")


@pytest.mark.parametrize("last", [False, True])
def test_float16_does_not_overflow_in_the_fold(last: bool) -> None:
    """Sums of mirrored inputs, and of the gradients of orbit members, may pass 65504 where the result does not."""
    fmt = torch.channels_last if last else torch.contiguous_format
    x = torch.full((1, 32, 6, 20), 60000.0).half().contiguous(memory_format=fmt)
    w = torch.full((32, 32, 3, 3), 2.0**-12).half().contiguous(memory_format=fmt)
    for tie in ("h", "hv"):
        filters = 32 * 2 ** len(tie)
        with symconv_fast.backend("cpu", "fold"):
            y = F.symmetric_conv2d(x, w, symmetry=tie)
        assert y.shape == (1, filters, 4, 18)
        assert torch.equal(y.float(), torch.full_like(y, 60000 * 288 * 2.0**-12).float())
        gy = torch.full_like(y, 30000.0)
        x1, w1 = x.clone().requires_grad_(), w.clone().requires_grad_()
        with symconv_fast.backend("cpu", "fold"):
            gx, gw = torch.autograd.grad(F.symmetric_conv2d(x1, w1, symmetry=tie), (x1, w1), gy * 2.0**-10)
        assert gx.isfinite().all()
        assert gw.isinf().all()  # 60000 * 29 * 72 positions * members is not a float16


@pytest.mark.parametrize("last", [False, True])
def test_float16_does_not_overflow_in_depthwise_layers(last: bool) -> None:
    """Mirrored columns and lines are summed in float32, and so are the gradients of orbit members."""
    fmt = torch.channels_last if last else torch.contiguous_format
    x = torch.full((1, 32, 6, 20), 60000.0).half().contiguous(memory_format=fmt).requires_grad_()
    w = torch.full((32, 1, 3, 3), 2.0**-5).half().requires_grad_()
    for tie in ("h", "hv"):
        with symconv_fast.backend("cpu", "fold"):
            y = F.symmetric_conv2d(x, w, symmetry=tie, groups=32)
            gx, gw = torch.autograd.grad(y, (x, w), torch.full_like(y, 30000.0))
        members = 2 ** len(tie)
        assert y.shape == (1, 32 * members, 4, 18)
        assert torch.equal(y.float(), torch.full_like(y, 60000 * 9 * 2.0**-5).float())
        inside = 30000 * 9 * members * 2.0**-5  # 33750 with `hv`, where four gradients sum to 120000
        assert torch.equal(gx[..., 2:4, 2:18], torch.tensor(inside).half().expand(1, 32, 2, 16))
        assert gw.isinf().all()  # 60000 * 30000 is not a float16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [5, 64])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_stays_where_it_belongs(
    dtype: torch.dtype, last: bool, channels: int, bad: float
) -> None:
    """Odd channels and odd lines: the second half of a pair that is not there takes no part."""
    generator = torch.Generator().manual_seed(0)
    fmt = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(1, channels, 7, 9, generator=generator)
    gy = torch.randn(1, 4 * channels, 7, 9, generator=generator)
    w = torch.randn(channels * 2, channels, 3, 3, generator=generator)
    x[0, channels - 1, 6, 8] = bad
    gy[0, channels, 0, 3] = bad
    x, gy, w = (t.to(dtype).contiguous(memory_format=fmt) for t in (x, gy, w))
    layer = {"h": channels * 4}

    def passes(backend: str, algorithm: str, *tensors: Tensor) -> list[Tensor]:
        a, b, g = tensors
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        with symconv_fast.backend(backend, algorithm):
            y = F.symmetric_conv2d(a, b, padding=1, symmetry=layer)
            return [y, *torch.autograd.grad(y, (a, b), g)]

    mine = passes("cpu", "fold", x, w, gy)
    right = passes("reference", "expand", x.double(), w.double(), gy.double())
    for got, wanted in zip(mine[:2], right[:2]):
        assert torch.equal(got.isfinite(), wanted.isfinite())
        assert wanted.isfinite().any()
        assert not wanted.isfinite().all()
    # torch multiplies the zeros of the padding by what is not finite, which makes more of it; here they are left out.
    assert not (right[2].isfinite() & ~mine[2].isfinite()).any()
    assert not mine[2].isfinite().all()
