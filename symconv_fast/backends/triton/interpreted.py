"""Repairs of Triton's interpreter, applied only under TRITON_INTERPRET=1: loop bounds, bfloat16 arithmetic, and time.

Triton 3.6 keeps bfloat16 as uint16 there and adds, multiplies and compares these patterns as if they were numbers, and
rounds float32 to it by cutting bits off. Half of its time goes into work whose result nobody looks at.
"""

from __future__ import annotations

from dataclasses import replace
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


def _leave_out_overflow() -> None:
    """Sums and products of integers are computed again in 64 bits, for an assertion that only debugging makes."""
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def _patch_once() -> None:
    """What every call of a device function does to `triton.language` is done once a launch."""
    patch, done = interpreter._patch_lang, set[int]()

    class Scope:
        """What is undone at the end of the launch; a device function undoes nothing."""

        def __init__(self, scope: Any) -> None:
            self.scope = scope

        def restore(self) -> None:
            done.clear()
            self.scope.restore()

    def once(function: Any) -> Any:
        languages = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if done and languages <= done:
            return None  # a device function; the kernel itself comes first
        done.update(languages)
        return Scope(patch(function))

    interpreter._patch_lang = once


def _remember_types() -> None:
    """NumPy's type for each of Triton's, which is looked up at every operation, in a table that is made each time."""
    find, known = interpreter._get_np_dtype, dict[str, Any]()

    def remembered(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = find(dtype)
        return known[name]

    interpreter._get_np_dtype = remembered


if ACTIVE:
    _leave_out_overflow()
    _patch_once()
    _remember_types()
    _repair_loop_bounds()
    _repair_bfloat16(interpreter.InterpreterBuilder)
