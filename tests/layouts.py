# What Triton's compiler says of layouts, as tables: which element lies in which register of which lane.
"""Nothing needs a GPU: `triton_table` of registers, `triton_offsets` of shared memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

LANES = 32


@cache
def _builder() -> Any:
    from triton._C.libtriton import gluon_ir, ir

    context = ir.context()
    ir.load_dialects(context)
    return context, gluon_ir.GluonOpBuilder(context)


def linear(layout: Any, shape: list[int]) -> Any:
    """Triton's bases of a layout (triton.experimental.gluon.language) for a tensor of that shape."""
    builder = _builder()[1]
    return builder.to_linear_layout(layout._to_ir(builder), shape)


def spread(bases: list[list[int]]) -> np.ndarray:
    """Coordinates of every index whose bits have these bases: the exclusive or of the bases of its set bits."""
    at = np.zeros((1 << len(bases), 2), np.int64)
    for bit, basis in enumerate(bases):
        at[(np.arange(len(at)) >> bit & 1) == 1] ^= np.array(basis)
    return at


def triton_table(layout: Any, shape: list[int]) -> np.ndarray:
    """[warp, register, lane, (row, column)] of a distributed layout, 16-bit elements counted singly."""
    made = linear(layout, shape)
    warps, registers, lanes = (spread(b) for b in (made.warp_bases, made.reg_bases, made.lane_bases))
    return warps[:, None, None] ^ registers[None, :, None] ^ lanes[None, None, :]


def triton_offsets(layout: Any, shape: list[int]) -> np.ndarray:
    """[row, column] -> element offset of a shared-memory layout."""
    at = spread(linear(layout, shape).offset_bases)
    offsets = np.full(shape, -1)
    offsets[at[:, 0], at[:, 1]] = np.arange(len(at))
    assert (offsets >= 0).all()
    return offsets


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Bits of whole numbers that bfloat16 holds exactly."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def in_registers(matrix: np.ndarray, table: np.ndarray) -> np.ndarray:
    """16-bit elements [row, column] in pairs, as the table [2 * register + half, lane] says: [register, lane]."""
    found = matrix[table[..., 0], table[..., 1]].astype(np.uint32)
    return found[0::2] | found[1::2] << 16


def halves(registers: np.ndarray) -> np.ndarray:
    """[register, lane] of pairs -> [2 * register + half, lane]."""
    return np.stack([registers & 0xFFFF, registers >> 16], axis=1).reshape(-1, registers.shape[-1])
