# Products of bfloat16 in AMX tiles: every tail of a tile, and what other users of the tiles find afterwards.
"""Here the values are so small that every sum is exact, and results are compared bit by bit. Accuracy, denormals, what
is not finite, random problems and guard pages are tested with all instruction sets (test_sixteen_bit.py,
test_robustness.py, test_fuzz.py)."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import symconv_fast
from symconv_fast import functional as F

_cpu = pytest.importorskip("symconv_fast._cpu", reason="the native module is not built")
pytestmark = pytest.mark.skipif(
    _cpu.isa() != "amx_bf16", reason="this CPU has no AMX tiles for bfloat16, or they may not be used"
)

SIGNS = torch.tensor([-1.0, 0.0, 1.0])
IN_USE = """
unsigned tiles_in_use(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return low >> 17 & 3;
}
"""


def signs(*shape: int, seed: int, last: bool) -> Tensor:
    """Random -1, 0 and 1: up to 256 of their products are summed exactly, and rounded to themselves."""
    drawn = torch.randint(3, shape, generator=torch.Generator().manual_seed(seed))
    layout = torch.channels_last if last else torch.contiguous_format
    return SIGNS[drawn].bfloat16().contiguous(memory_format=layout)


def passes(
    backend: str, algorithm: str, x: Tensor, w: Tensor, gy: Tensor, tie: str | None
) -> tuple[Tensor, ...]:
    """The result of a layer and both gradients."""
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    with symconv_fast.backend(backend, algorithm):
        y = F.symmetric_conv2d(x, w, symmetry=tie)
    with symconv_fast.backend(backend, "fold" if backend == "cpu" else algorithm):
        return (y.detach(), *torch.autograd.grad(y, (x, w), gy))


def compare(channels: int, orbits: int, size: tuple[int, int], algorithm: str, last: bool, seed: int) -> None:
    """All passes of a layer against float64; a scatter has three taps along lines, tied."""
    tie, taps, members = ("h", 3, 2) if algorithm == "scatter" else (None, 1, 1)
    height, width = size
    x = signs(1, channels, height, width + taps - 1, seed=seed, last=last)
    w = signs(orbits, channels, 1, taps, seed=seed + 1, last=last)
    gy = signs(1, members * orbits, height, width, seed=seed + 2, last=last)
    got = passes("cpu", algorithm, x, w, gy, tie)
    wanted = passes("reference", "expand", x.double(), w.double(), gy.double(), tie)
    for name, mine, right in zip(("y", "gx", "gw"), got, wanted, strict=True):
        # Sums above 256 are rounded once.
        assert torch.equal(mine, right.bfloat16()), (name, channels, orbits, size, algorithm, last)


@pytest.mark.parametrize("algorithm", ["fold", "scatter"])
@pytest.mark.parametrize("last", [False, True])
def test_every_tail_of_rows_columns_and_contraction(algorithm: str, last: bool) -> None:
    """1 to 70 words contracted, an odd channel among them, 1 to 70 columns, and 1 to 70 rows, in all three passes."""
    draw = random.Random(0)
    for number in range(140):
        channels, orbits = number + 1, number % 70 + 1
        pixels = draw.randint(1, 70)
        lines = draw.choice([n for n in (1, 2, 3, 5) if pixels % n == 0])
        compare(channels, orbits, (lines, pixels // lines), algorithm, last, 3 * number)
    for pixels in range(1, 71):
        compare(draw.randint(1, 70), draw.randint(1, 70), (1, pixels), algorithm, last, 1000 + 3 * pixels)


def test_others_that_use_tiles_are_not_disturbed() -> None:
    """torch's convolution, whose library has tiles of its own, before, between and after ours: the same bits."""
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(2, 64, 14, 14, generator=generator)
        .bfloat16()
        .contiguous(memory_format=torch.channels_last)
    )
    w = (
        torch.randn(64, 64, 3, 3, generator=generator)
        .bfloat16()
        .contiguous(memory_format=torch.channels_last)
    )

    def theirs() -> Tensor:
        return torch.nn.functional.conv2d(x, w, padding=1)

    def mine() -> Tensor:
        with symconv_fast.backend("cpu", "fold"):
            return F.symmetric_conv2d(x, w[:33], symmetry="h", padding=1)

    first, ours = theirs(), mine()
    for _ in range(3):
        assert torch.equal(theirs(), first)
        assert torch.equal(mine(), ours)
        assert torch.equal(mine(), ours)


def test_tiles_are_released(tmp_path: Path) -> None:
    """Tiles in use are saved at every switch of threads, and keep a core from its deepest sleep."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "tiles.c", tmp_path / "tiles.so"
    source.write_text(IN_USE)
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    in_use = ctypes.CDLL(str(library)).tiles_in_use
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # this thread, that is
    try:
        for algorithm in ("fold", "scatter"):
            compare(64, 64, (2, 30), algorithm, True, 0)
            assert in_use() == 0
    finally:
        torch.set_num_threads(before)
