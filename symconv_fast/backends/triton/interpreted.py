"""Repairs of Triton's interpreter, applied only under TRITON_INTERPRET=1: loop bounds, and bfloat16 arithmetic.

Triton 3.6 keeps bfloat16 as uint16 there and adds, multiplies and compares these patterns as if they were numbers, and
rounds float32 to it by cutting bits off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

ACTIVE: bool = bool(triton.knobs.runtime.interpret)
"""Were the kernels made for the interpreter? Triton decides that when they are imported."""


def widen(bits: Any) -> Any:
    """bfloat16 patterns (uint16) as float32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: Any) -> Any:
    """float32 as bfloat16 patterns (uint16), rounded to nearest, ties to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_brain(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _repair_bfloat16(builder: Any) -> None:
    binary, cast, convert, dot = (
        builder.binary_op,
        builder.cast_impl,
        builder.create_fp_to_fp,
        builder.create_dot,
    )

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not _is_brain(lhs):
            return binary(self, lhs, rhs, op)
        result = op(widen(lhs.data), widen(rhs.data))
        if result.dtype == np.bool_:
            return interpreter.TensorHandle(result, tl.int1)
        return interpreter.TensorHandle(narrow(result), tl.bfloat16)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(narrow(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(narrow(src.data), tl.bfloat16)
        return convert(self, src, dst_type, rounding_mode)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *more: Any) -> Any:
        a, b = (interpreter.TensorHandle(widen(t.data), tl.float32) if _is_brain(t) else t for t in (a, b))
        return dot(self, a, b, d, *more)

    builder.binary_op, builder.cast_impl = binary_op, cast_impl
    builder.create_fp_to_fp, builder.create_dot = create_fp_to_fp, create_dot


def _repair_loop_bounds() -> None:
    """Scalars are arrays of one element there, which NumPy from 2.4 on does not take for integers."""
    patch = interpreter._patch_lang_tensor

    def repaired(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(np.asarray(self.handle.data).item()))

    interpreter._patch_lang_tensor = repaired


if ACTIVE:
    _repair_loop_bounds()
    _repair_bfloat16(interpreter.InterpreterBuilder)
