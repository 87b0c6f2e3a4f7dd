# Instructions of the CUDA kernels' stand-in held against Triton's compiler and nvcc's PTX.
"""Kernels and stand-in are written from one manual; here others say what it means. Nothing needs a GPU."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

gl = pytest.importorskip("triton.experimental.gluon.language", reason="needs Triton with Gluon")
triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: nothing can be compiled", allow_module_level=True)

import gluon_kernels  # noqa: E402
from cuda_instructions import Instructions, faulty, instructions, ptx_of  # noqa: E402
from layouts import in_registers, to_bf16, triton_table  # noqa: E402
from ptx_warp import Threads  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

MMA = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
KINDS = ("bf16", "f16", "tf32")
TRITON = {"bf16": "bf16", "f16": "fp16", "tf32": "fp32"}


@pytest.fixture
def machine() -> Instructions:
    return instructions()


def bits(values: np.ndarray, kind: str) -> np.ndarray:
    """Elements of whole numbers that every type holds: 16 bits each, or 32."""
    if kind == "tf32":
        return np.ascontiguousarray(values, np.float32).view(np.uint32)
    return to_bf16(values) if kind == "bf16" else np.ascontiguousarray(values, np.float16).view(np.uint16)


def registers(matrix: np.ndarray, table: np.ndarray, kind: str) -> np.ndarray:
    """[register, lane] of a matrix as a table of elements says."""
    if kind == "tf32":
        return bits(matrix, kind)[table[..., 0], table[..., 1]]
    return in_registers(bits(matrix, kind), table)


def check_product(machine: Instructions, kind: str) -> None:
    """Registers filled by Triton's tables, multiplied by the stand-in, read by Triton's table."""
    depth, together = (8, 1) if kind == "tf32" else (16, 2)
    a, b = (np.random.default_rng(0).integers(-8, 8, shape) for shape in ((16, depth), (depth, 8)))
    left = registers(a, triton_table(gl.DotOperandLayout(0, MMA, together), [16, depth])[0], kind)
    right = registers(b, triton_table(gl.DotOperandLayout(1, MMA, together), [depth, 8])[0], kind)
    at = triton_table(MMA, [16, 8])[0]
    before = np.arange(4 * 32, dtype=np.float32).reshape(4, 32)
    sums = machine.mma(before, left, right, kind) - before
    np.testing.assert_array_equal(sums, (a @ b)[at[..., 0], at[..., 1]])


@pytest.mark.parametrize("kind", KINDS)
def test_product(machine: Instructions, kind: str) -> None:
    check_product(machine, kind)


def test_operands_that_are_not_tf32_are_a_fault(machine: Instructions) -> None:
    sums, right = np.zeros((4, 32), np.float32), np.zeros((2, 32), np.uint32)
    left = np.full((4, 32), 0x3F801000, np.uint32)
    with pytest.raises(ValueError, match=r"operand is not rounded to TF32 \(cuda_instructions.cpp:\d+"):
        machine.mma(sums, left, right, "tf32")


@cache
def ptx_of_a_warp(kind: str, x_transposed: bool, w_transposed: bool) -> str:
    kernel = gluon_kernels.product_of_a_warp
    flags = {"X_TRANSPOSED": x_transposed, "W_TRANSPOSED": w_transposed}
    return gluon_kernels.compile_for(kernel, 80, 1, TRITON[kind], **flags)


def run_threads(
    machine: Instructions, ptx: str, kind: str, x: np.ndarray, w: np.ndarray, columns: int, warps: int = 1
) -> tuple[Threads, np.ndarray]:
    """Run Triton's code on the stand-in: global memory holds x, w and y; returns the threads and y."""
    operands = np.concatenate([bits(x, kind).ravel(), bits(w, kind).ravel()]).view(np.uint8)
    at_w, at_y = operands.size * x.size // (x.size + w.size), operands.size
    memory = np.concatenate([operands, np.full(4 * len(x) * columns, 0xFF, np.uint8)])
    threads = Threads(machine, warps, [0, at_w, at_y], memory)
    threads.run(ptx)
    return threads, memory[at_y:].view(np.float32).reshape(len(x), columns)


def run(
    machine: Instructions, ptx: str, kind: str, x: np.ndarray, w: np.ndarray, columns: int, warps: int = 1
) -> tuple[np.ndarray, list[str]]:
    """y, and what was executed."""
    threads, y = run_threads(machine, ptx, kind, x, w, columns, warps)
    return y, threads.executed


def check_ldmatrix(machine: Instructions, kind: str, x_transposed: bool, w_transposed: bool) -> None:
    """Which lanes give which rows, and what arrives: Triton's own addresses only work if both are right."""
    x, w = np.random.default_rng(1).integers(-8, 8, (2, 16, 16))
    y, executed = run(machine, ptx_of_a_warp(kind, x_transposed, w_transposed), kind, x, w, 16)
    np.testing.assert_array_equal(y, (x.T if x_transposed else x) @ (w.T if w_transposed else w))
    loads = [".trans" in op for op in executed if "ldmatrix" in op]
    if kind != "tf32":  # ldmatrix cannot transpose 32 bits
        assert loads == [x_transposed, not w_transposed]
    assert not any(loads) or kind != "tf32"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x_transposed", [False, True])
@pytest.mark.parametrize("w_transposed", [False, True])
def test_ldmatrix_in_code_of_triton(
    machine: Instructions, kind: str, x_transposed: bool, w_transposed: bool
) -> None:
    check_ldmatrix(machine, kind, x_transposed, w_transposed)


def check_two_matrices(machine: Instructions) -> None:
    ptx = gluon_kernels.compile_for(gluon_kernels.product_with_few_columns, 80, 1, "fp16")
    x, w = (
        np.random.default_rng(2).integers(-8, 8, (16, 16)),
        np.random.default_rng(3).integers(-8, 8, (8, 16)),
    )
    y, executed = run(machine, ptx, "f16", x, w, 8)
    assert sum("m8n8.x2.shared" in op for op in executed) == 1
    np.testing.assert_array_equal(y, x @ w.T)


def test_ldmatrix_of_two_in_code_of_triton(machine: Instructions) -> None:
    check_two_matrices(machine)


@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_wgmma_in_code_of_triton(machine: Instructions, kind: str, span: int) -> None:
    """Of a warp group: descriptors, the step from one to the next, the swizzle, all from Triton."""
    depth = span // (4 if kind == "tf32" else 2)
    ptx = gluon_kernels.compile_for(gluon_kernels.product_of_a_group, 90, 4, TRITON[kind], SPAN=span, K=depth)
    x, w = np.random.default_rng(4).integers(-8, 8, (2, 64, depth))
    y, executed = run(machine, ptx, kind, x, w, 64, 4)
    assert sum("wgmma.mma_async" in op for op in executed) == span // 32
    np.testing.assert_array_equal(y, x @ w.T)


def test_lanes_exchange(machine: Instructions) -> None:
    for mask in (1, 2, 4, 8, 16, 31, 0):
        np.testing.assert_array_equal(machine.shuffle_xor(np.arange(32), mask), np.arange(32) ^ mask)


# ---- faults put into a copy of the stand-in, and what must see them

FAULTS: dict[str, tuple[str, str, str, Callable[[Instructions], None]]] = {
    "rows of A's registers": (
        "warp.cpp",
        "o.a[l / 4 + e % 2 * 8][k]",
        "o.a[l / 4 + e / 2 * 8][k]",
        lambda m: check_product(m, "f16"),
    ),
    "columns of A's registers": (
        "warp.cpp",
        "l % 4 + e / 2 * 4",
        "l % 4 + e % 2 * 4",
        lambda m: check_product(m, "tf32"),
    ),
    "lanes of B": ("warp.cpp", "o.b[k][l / 4]", "o.b[k][l % 8]", lambda m: check_product(m, "bf16")),
    "halves of a register": (
        "warp.cpp",
        "rows[l % 4 * 2 + half]",
        "rows[l % 4 * 2 + 1 - half]",
        lambda m: check_ldmatrix(m, "f16", True, True),
    ),
    "columns of the sums": (
        "warp.cpp",
        "side * 2 + column / 2",
        "column + side / 2",
        lambda m: check_product(m, "tf32"),
    ),
    "lanes of ldmatrix": (
        "warp.cpp",
        "rows[l / 4] + l % 4 * 4",
        "rows[l % 8] + l / 8 * 4",
        lambda m: check_ldmatrix(m, "tf32", False, True),
    ),
    "matrices that lanes give": (
        "warp.cpp",
        "w.address + m * 8",
        "w.address + (m ^ 1) * 8",
        lambda m: check_two_matrices(m),
    ),
    "swizzle of the weights": (
        "engine.cpp",
        "(span - 16)",
        "(span - 32)",
        lambda m: test_wgmma_in_code_of_triton(m, "f16", 128),
    ),
    "ldmatrix transposed": (
        "warp.cpp",
        "rows[l % 4 * 2 + half] + l / 4 * 2",
        "rows[l / 4] + l % 4 * 4 + half * 2",
        lambda m: check_ldmatrix(m, "f16", True, True),
    ),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if i % 4 == 0 else pytest.mark.full) for i, name in enumerate(FAULTS)],
)
def test_a_wrong_bit_in_the_stand_in_is_seen(tmp_path: Path, fault: str) -> None:
    *change, check = FAULTS[fault]
    machine = faulty(tmp_path, *change)
    with pytest.raises((AssertionError, ValueError)):
        check(machine)


# ---- what nvcc makes of device.h

PROBE = """
#include "device.h"
namespace symconv {
template <class T>
__global__ void probe(float* d, const void* from) {
  const uint32_t s = shared_memory();
  uint32_t a[4], b[2];
  load_matrices(a, s);
  load_matrices(b, s + 512);
  float sums[4] = {};
  multiply<T>(sums, a, b[0], b[1]);
  load_transposed(a, s + 1024);
  multiply<T>(sums, a, b[1], b[0]);
  copy16(s, from, 8);
  copy4(s + 16, from, 0);
  copy_commit();
  copy_wait<3>();
  for (int e = 0; e < 4; ++e) d[e] = sums[e];
}
template __global__ void probe<%s>(float*, const void*);
}
"""


@needs_nvcc
@pytest.mark.parametrize(
    ("type_", "product"),
    [
        ("Bfloat16", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
        ("Float16", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"),
        ("Float32", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    ],
)
def test_instructions_of_device_h(tmp_path: Path, type_: str, product: str) -> None:
    """The very instructions that Triton uses, with their operands in the same order."""
    text = ptx_of(PROBE % type_, "sm_80", tmp_path)
    four, two = (r"\{(%\w+(?:, %\w+){" + str(n - 1) + r"})\}" for n in (4, 2))
    products = re.findall(rf"{re.escape(product)} {four}, {four}, {two}, {four};", text)
    assert len(products) == text.count("mma.sync") == 2
    loads = {
        name: re.findall(rf"ldmatrix\.sync\.aligned\.m8n8\.{name}\.shared\.b16 {many}, \[%r\d+\];", text)
        for name, many in (("x4", four), ("x2", two), (r"x4\.trans", four))
    }
    assert Counter({name: len(found) for name, found in loads.items()}) == {"x4": 1, "x2": 1, r"x4\.trans": 1}
    (first, second), (b,) = products, loads["x2"]
    assert all(sums == again for sums, _, _, again in products)
    assert [first[1], second[1]] == [loads["x4"][0], loads[r"x4\.trans"][0]]
    assert first[2] == b
    assert second[2].split(", ") == b.split(", ")[::-1]
    assert re.search(r"cp\.async\.cg\.shared\.global \[%r\d+\], \[%rd\d+\], 16, %r\d+;", text)
    assert re.search(r"cp\.async\.ca\.shared\.global \[%r\d+\], \[%rd\d+\], 4, %r\d+;", text)
    assert text.index("cp.async.commit_group;") < text.index("cp.async.wait_group 3;")


HOPPER_PROBE = """
#include "hopper/device_hopper.h"
namespace symconv {
__global__ void probe(float* to, const void* from) {
  float d[%(columns)d / 2];
  uint32_t a[4];
  for (int e = 0; e < 4; ++e) a[e] = global_load4(static_cast<const uint32_t*>(from) + e * 32 + thread());
  for (int e = 0; e < %(columns)d / 2; ++e) d[e] = 0.0f;
  product_fence();
  product<%(type)s, %(columns)d, %(span)d>(d, a, shared_memory());
  product_commit();
  product_wait<1>();
  for (int e = 0; e < %(columns)d / 2; ++e) to[e * 128 + thread()] = d[e];
}
}
"""


@needs_nvcc
@pytest.mark.parametrize(
    ("type_", "kind", "columns", "span"),
    [
        ("Bfloat16", "bf16", 64, 64),
        ("Float16", "f16", 64, 128),
        ("Bfloat16", "bf16", 128, 32),
        pytest.param("Float16", "f16", 32, 64, marks=pytest.mark.full),
        pytest.param("Bfloat16", "bf16", 128, 128, marks=pytest.mark.full),
    ],
)
def test_products_of_device_hopper_h(
    machine: Instructions, tmp_path: Path, type_: str, kind: str, columns: int, span: int
) -> None:
    """Names and operands; and the descriptor of the weights has the bits that Triton gives its own."""
    text = ptx_of(HOPPER_PROBE % {"type": type_, "columns": columns, "span": span}, "sm_90a", tmp_path)
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind}"
    sums = r"\{%\w+(?:, %\w+){" + str(columns // 2 - 1) + r"}\}"
    a = r"\{%r\d+, %r\d+, %r\d+, %r\d+\}"  # then: adds to the sums, negates nothing, B is K-major
    (found,) = re.findall(rf"{re.escape(name)} ({sums}), {a}, (%rd\d+), 1, 1, 1, 0;", text)
    (ours,) = re.findall(rf"or\.b64 {found[1]}, %rd\d+, (-?\d+);", text)
    depth = span // 2
    x = np.zeros((64, depth))
    ptx = gluon_kernels.compile_for(gluon_kernels.product_of_a_group, 90, 4, TRITON[kind], SPAN=span, K=depth)
    threads = run_threads(machine, ptx, kind, x, x, 64, 4)[0]
    (theirs,) = threads.descriptors
    unused = 0x3FFF << 16  # the leading dimension's offset, which a K-major layout with a swizzle has not
    assert int(ours) & (1 << 64) - 1 & ~unused == theirs & ~unused
    order = [
        text.index(part)
        for part in ("wgmma.fence.sync.aligned;", name, "wgmma.commit_group", "wgmma.wait_group")
    ]
    assert order == sorted(order)
    assert "wgmma.wait_group.sync.aligned 1;" in text
