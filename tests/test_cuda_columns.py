# Products of warp groups whose second operand is MN-major, held against Triton's compiler and nvcc's PTX.
"""As test_cuda_layouts.py; nothing needs a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton.experimental.gluon.language", reason="needs Triton with Gluon")

import gluon_kernels
from cuda_instructions import Instructions, faulty, instructions, ptx_of
from layouts import to_bf16
from test_cuda_layouts import HOPPER_PROBE, TRITON, needs_nvcc, pytestmark, run, run_threads

__all__ = ["pytestmark"]


@pytest.fixture
def machine() -> Instructions:
    return instructions()


def check_transposed(machine: Instructions, kind: str) -> None:
    """B of a warp group as it lies, MN-major: where its rows and columns are, by Triton's stores and descriptors."""
    kernel = gluon_kernels.product_of_a_group_by_columns
    ptx = gluon_kernels.compile_for(kernel, 90, 4, TRITON[kind], N=64, K=32)
    x, w = (np.random.default_rng(5).integers(-8, 8, shape) for shape in ((64, 32), (32, 64)))
    y, executed = run(machine, ptx, kind, x, w, 64, 4)
    assert sum("wgmma.mma_async" in op for op in executed) == 2
    np.testing.assert_array_equal(y, x @ w)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_wgmma_by_columns_in_code_of_triton(machine: Instructions, kind: str) -> None:
    check_transposed(machine, kind)


def test_blocks_of_rows_that_lie_apart(machine: Instructions) -> None:
    """Of an MN-major B: the second block of eight rows is where the first offset of the descriptor says."""
    shared = np.zeros(5120, np.uint8)
    b = to_bf16(np.random.default_rng(6).integers(-8, 8, (16, 64)))
    near = np.concatenate([shared[:0], *(swizzled_rows(b[i : i + 8]) for i in (0, 8))])
    shared[:1024], shared[4096:] = near[:1024], near[1024:]
    a = np.full((4, 32), 0x3F803F80, np.uint32)
    together, apart = (machine.wgmma(128, a, 0, m, "bf16", n) for m, n in ((near, 1024), (shared, 4096)))
    assert together.any()
    np.testing.assert_array_equal(together, apart)


def swizzled_rows(rows: np.ndarray) -> np.ndarray:
    """Eight rows of 128 bytes, whose chunks of 16 are exchanged by the number of the row."""
    chunks = np.ascontiguousarray(rows).view(np.uint8).reshape(8, 8, 16)
    return np.stack([chunk[np.arange(8) ^ i] for i, chunk in enumerate(chunks)]).ravel()


def test_offsets_of_a_descriptor_by_columns(machine: Instructions) -> None:
    """In Triton's code the offset at bit 32 goes to the next eight rows, that at bit 16 to columns beyond 64."""
    kernel = gluon_kernels.product_of_a_group_by_columns
    found = {}
    for columns in (64, 128):
        ptx = gluon_kernels.compile_for(kernel, 90, 4, "bf16", N=columns, K=32)
        fixed = [int(n) for n in re.findall(r"(?:or\.b64|add\.s64)\s[^;]*, (4\d{18});", ptx)]
        assert len({d & ~0x3FFF for d in fixed}) == 1, fixed
        found[columns] = fixed[0]
    assert [d >> 32 & 0x3FFF for d in found.values()] == [1024 // 16] * 2
    assert [d >> 16 & 0x3FFF for d in found.values()] == [0, 32 * 128 // 16]


FAULTS: dict[str, tuple[str, str, str, Callable[[Instructions], None]]] = {
    "blocks of rows by columns": (
        "group.cpp",
        "p.weights + e * p.apart",
        "p.weights + (1 - e) * p.apart",
        lambda m: check_transposed(m, "bf16"),
    ),
    "halves of a column": (
        "group.cpp",
        "column % 2 * 16",
        "(column + 1) % 2 * 16",
        lambda m: check_transposed(m, "f16"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_bit_in_the_stand_in_is_seen(tmp_path: Path, fault: str) -> None:
    *change, check = FAULTS[fault]
    machine = faulty(tmp_path, *change)
    with pytest.raises((AssertionError, ValueError)):
        check(machine)


TRANSPOSED_PROBE = HOPPER_PROBE.replace(
    "product<%(type)s, %(columns)d, %(span)d>", "product_transposed<%(type)s, 1024>"
)


@needs_nvcc
@pytest.mark.parametrize(("type_", "kind"), [("Bfloat16", "bf16"), ("Float16", "f16")])
def test_transposed_products_of_device_hopper_h(
    machine: Instructions, tmp_path: Path, type_: str, kind: str
) -> None:
    """The same name with B marked as MN-major, and the descriptor that Triton gives such a B of 64 columns."""
    text = ptx_of(TRANSPOSED_PROBE % {"type": type_, "columns": 64}, "sm_90a", tmp_path)
    name = f"wgmma.mma_async.sync.aligned.m64n64k16.f32.{kind}.{kind}"
    sums, a = r"\{%\w+(?:, %\w+){31}\}", r"\{%r\d+, %r\d+, %r\d+, %r\d+\}"
    (descriptor,) = re.findall(rf"{re.escape(name)} {sums}, {a}, (%rd\d+), 1, 1, 1, 1;", text)
    (ours,) = re.findall(rf"or\.b64 {descriptor}, %rd\d+, (-?\d+);", text)
    kernel = gluon_kernels.product_of_a_group_by_columns
    ptx = gluon_kernels.compile_for(kernel, 90, 4, TRITON[kind], N=64, K=32)
    threads = run_threads(machine, ptx, kind, np.zeros((64, 32)), np.zeros((32, 64)), 64, 4)[0]
    (theirs,) = threads.descriptors
    unused = 0x3FFF << 16  # the offset to columns beyond 64
    assert int(ours) & ~unused == theirs & ~unused
