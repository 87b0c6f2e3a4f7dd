# Kernels of Gluon, Triton's lower level, whose compiled code witnesses the instructions: no GPU runs them.
"""One warp's product by ldmatrix and mma.sync, and one warp group's by wgmma; `compile_for` makes PTX of them."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language.nvidia import ampere, hopper

POINTERS = ("x", "w", "y")


@gluon.jit
def _square(start, N: gl.constexpr, M: gl.constexpr, layout: gl.constexpr):
    row = gl.arange(0, M, layout=gl.SliceLayout(1, layout))
    return start + row[:, None] * N + gl.arange(0, N, layout=gl.SliceLayout(0, layout))[None, :]


@gluon.jit
def product_of_a_warp(x, w, y, X_TRANSPOSED: gl.constexpr, W_TRANSPOSED: gl.constexpr):
    """y = x w, 16 x 16 each; x and w lie row by row, or column by column, and pass through shared memory."""
    type: gl.constexpr = x.dtype.element_ty
    few: gl.constexpr = type.primitive_bitwidth // 16  # of 32 bits there are 2 for each of 16
    plain: gl.constexpr = gl.BlockedLayout([1, 8 // few], [16 // few, 2 * few], [1, 1], [1, 0])
    shared: gl.constexpr = gl.SwizzledSharedLayout(
        vec=8 // few, per_phase=4 // few, max_phase=2 * few, order=[1, 0]
    )
    mma: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
    a = gl.allocate_shared_memory(type, [16, 16], shared, value=gl.load(_square(x, 16, 16, plain)))
    b = gl.allocate_shared_memory(type, [16, 16], shared, value=gl.load(_square(w, 16, 16, plain)))
    if X_TRANSPOSED:
        a = a.permute((1, 0))
    if W_TRANSPOSED:
        b = b.permute((1, 0))
    left = a.load(gl.DotOperandLayout(0, mma, 2 // few))
    right = b.load(gl.DotOperandLayout(1, mma, 2 // few))
    sums = ampere.mma_v2(left, right, gl.zeros([16, 16], gl.float32, mma))
    gl.store(_square(y, 16, 16, mma), sums)


@gluon.jit
def product_with_few_columns(x, w, y):
    """y = x w, 16 x 16 by 16 x 8 of 16 bits; w lies column by column."""
    type: gl.constexpr = x.dtype.element_ty
    plain: gl.constexpr = gl.BlockedLayout([1, 8], [16, 2], [1, 1], [1, 0])
    shared: gl.constexpr = gl.SwizzledSharedLayout(vec=8, per_phase=4, max_phase=2, order=[1, 0])
    mma: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
    a = gl.allocate_shared_memory(type, [16, 16], shared, value=gl.load(_square(x, 16, 16, plain)))
    b = gl.allocate_shared_memory(type, [8, 16], shared, value=gl.load(_square(w, 16, 8, plain)))
    left = a.load(gl.DotOperandLayout(0, mma, 2))
    right = b.permute((1, 0)).load(gl.DotOperandLayout(1, mma, 2))
    sums = ampere.mma_v2(left, right, gl.zeros([16, 8], gl.float32, mma))
    gl.store(_square(y, 8, 16, mma), sums)


@gluon.jit
def product_of_a_group(x, w, y, SPAN: gl.constexpr, K: gl.constexpr):
    """y = x w, (64, K) x (K, 64): x from registers, w K-major in shared memory, swizzled over SPAN bytes."""
    type: gl.constexpr = x.dtype.element_ty
    bits: gl.constexpr = type.primitive_bitwidth
    plain: gl.constexpr = gl.BlockedLayout([1, 128 // bits], [4, 8], [4, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=SPAN, element_bitwidth=bits, rank=2)
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 256 // bits]
    )
    left = gl.convert_layout(gl.load(_square(x, K, 64, plain)), gl.DotOperandLayout(0, mma, 32 // bits))
    b = gl.allocate_shared_memory(type, [64, K], shared, value=gl.load(_square(w, K, 64, plain)))
    hopper.fence_async_shared()
    sums = gl.zeros([64, 64], gl.float32, mma)
    sums = hopper.warpgroup_mma(left, b.permute((1, 0)), sums)
    gl.store(_square(y, 64, 64, mma), sums)


@gluon.jit
def product_of_a_group_by_columns(x, w, y, N: gl.constexpr, K: gl.constexpr):
    """y = x w, (64, K) x (K, N), of 16 bits: w as it lies, MN-major in shared memory, swizzled over 128 bytes."""
    type: gl.constexpr = x.dtype.element_ty
    plain: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, N, 16]
    )
    left = gl.convert_layout(gl.load(_square(x, K, 64, plain)), gl.DotOperandLayout(0, mma, 2))
    b = gl.allocate_shared_memory(type, [K, N], shared, value=gl.load(_square(w, N, K, plain)))
    hopper.fence_async_shared()
    sums = gl.zeros([64, N], gl.float32, mma)
    sums = hopper.warpgroup_mma(left, b, sums)
    gl.store(_square(y, N, 64, mma), sums)


def compile_for(kernel: Any, arch: int, warps: int, element: str = "bf16", **constants: Any) -> str:
    """PTX of a kernel with these constants for x and w of a type; pointers are to 16-byte boundaries."""
    types = {"x": f"*{element}", "w": f"*{element}", "y": "*fp32"}
    names = kernel.arg_names
    source = GluonASTSource(
        kernel,
        {name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in POINTERS},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps}).asm["ptx"]
