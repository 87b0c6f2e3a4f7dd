# Elements of 16 bits, TF32 and the fold on the CUDA kernels' stand-in, held against torch's rounding.
"""What csrc/cuda/host/numbers.h makes of every element, and of pairs of them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cuda_instructions import Instructions, instructions

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

TORCH = {"bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture
def machine() -> Instructions:
    return instructions()


def every_element(kind: str) -> torch.Tensor:
    """All bit patterns of 16 bits."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TORCH[kind])


def as_bits(values: torch.Tensor) -> np.ndarray:
    """Of 16 or 32 bits, as uint32; every NaN the same."""
    values = torch.where(values.isnan(), torch.full_like(values, float("nan")), values)
    kind = torch.int32 if values.element_size() == 4 else torch.int16
    return values.view(kind).numpy().astype(np.uint32) & (0xFFFFFFFF if kind == torch.int32 else 0xFFFF)


def same(got: np.ndarray, wanted: torch.Tensor) -> None:
    """Bit for bit, but that NaN is NaN."""
    dtype = np.int32 if wanted.element_size() == 4 else np.int16
    found = torch.from_numpy(got.astype(np.uint32).view(np.int32).astype(dtype)).view(wanted.dtype)
    np.testing.assert_array_equal(as_bits(found), as_bits(wanted))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_every_element_of_16_bits(machine: Instructions, kind: str) -> None:
    halves, zero = np.arange(1 << 16, dtype=np.uint32), np.zeros(1, np.uint32)
    wanted = every_element(kind).float()
    same(machine.each(kind, "low_of", halves, zero), wanted)
    same(machine.each(kind, "high_of", halves << 16, zero), wanted)
    again = machine.each(kind, "pack2", wanted.numpy().view(np.uint32), wanted.numpy().view(np.uint32))
    same(again & 0xFFFF, every_element(kind))
    same(again >> 16, every_element(kind))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_rounding_to_16_bits(machine: Instructions, kind: str) -> None:
    """float32 of every exponent, and halfway between neighbours of 16 bits, just below and just above."""
    floats = every_element(kind).float()
    middle = floats[1:] / 2 + floats[:-1] / 2
    values = [middle, torch.nextafter(middle, floats[1:]), torch.nextafter(middle, floats[:-1])]
    patterns = torch.from_numpy(
        np.random.default_rng(4).integers(-(1 << 31), 1 << 31, 1 << 18).astype(np.int32)
    )
    for some in (*values, patterns.view(torch.float32)):
        packed = machine.each(kind, "pack2", some.numpy().view(np.uint32), np.zeros(1, np.uint32))
        same(packed & 0xFFFF, some.to(TORCH[kind]))


def pairs(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random elements of every exponent, and each element with itself, its neighbour and its opposite."""
    every = every_element(kind)
    a, b = (
        every[torch.randint(1 << 16, (1 << 18,), generator=torch.Generator().manual_seed(i))] for i in (0, 1)
    )
    return torch.cat([a, every, every, every]), torch.cat([b, every, every.roll(1), -every])


def folded(kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b rounded once; of float16 a / 2 + b / 2, the half of b rounded before."""
    if kind == "bf16":
        return (a.double() + b.double()).to(torch.bfloat16)
    return (a.double() / 2 + (b.double() / 2).to(torch.float16).double()).to(torch.float16)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("operation", ["fold_add", "fold_subtract"])
def test_fold(machine: Instructions, kind: str, operation: str) -> None:
    a, b = pairs(kind)
    wanted = folded(kind, a, b if operation == "fold_add" else -b)
    left, right = (v.view(torch.int16).numpy().astype(np.uint32) & 0xFFFF for v in (a, b))
    one = np.uint32(0x3F80 if kind == "bf16" else 0x3C00)
    low = machine.each(kind, operation, left | one << 16, right | one << 16)
    same(low & 0xFFFF, wanted)
    high = 0 if operation == "fold_subtract" else 0x4000 if kind == "bf16" else one
    assert (low >> 16 == high).all()
    same(machine.each(kind, operation, left << 16, right << 16) >> 16, wanted)


def test_rounding_to_tf32(machine: Instructions) -> None:
    """To nearest of 10 bits, ties away from zero: the nearer neighbour, in float64."""
    some = np.random.default_rng(5).integers(0, 1 << 32, 1 << 18, np.uint64).astype(np.uint32)
    some = np.concatenate(
        [some, some & np.uint32(0xFFFFE000), some & np.uint32(0xFFFFE000) | np.uint32(0x1000)]
    )
    some = some[(some >> 23 & 0xFF) < 0xFE]
    below = some & np.uint32(0xFFFFE000)
    above = below + np.uint32(0x2000)
    value, low, high = (v.view(np.float32).astype(np.float64) for v in (some, below, above))
    wanted = np.where(np.abs(high - value) <= np.abs(value - low), above, below)
    np.testing.assert_array_equal(machine.each("tf32", "operand", some, some), wanted)
    special = np.array([0x7F800000, 0xFF800000, 0, 0x80000000], np.uint32)
    np.testing.assert_array_equal(machine.each("tf32", "operand", special, special), special)
