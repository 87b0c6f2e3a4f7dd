# Two sources of one truth: the fragments of the halo kernels' host stand-in, and the layouts of Triton's compiler.
"""`StandIn` asks bench/micro/halo_layouts.cpp; `triton_table` asks Triton, which needs no GPU for it."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.micro import halo_build

LANES = 32
SHAPE_OF_SUMS = [16, 8]  # mma.sync m16n8k16


def copy_sources(to: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """Copy the halo sources with changes, file -> (old text, new text); returns the folder."""
    to.mkdir(parents=True, exist_ok=True)
    for source in halo_build.HERE.glob("halo_*"):
        text = source.read_text()
        if source.name in changes:
            old, new = changes[source.name]
            assert old in text, f"{source.name} has no {old!r}"
            text = text.replace(old, new)
        (to / source.name).write_text(text)
    return to


class StandIn:
    """The stand-in's tables and instructions; registers are arrays [register, lane], 16 bits in halves of uint32."""

    def __init__(self, sources: Path, build: Path) -> None:
        library = build / "halo_layouts.so"
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC"]
        subprocess.run([*command, str(sources / "halo_layouts.cpp"), "-o", str(library)], check=True)
        self.c = ctypes.CDLL(str(library))

    def _call(self, name: str, *arguments: Any) -> None:
        call = getattr(self.c, name)
        call.restype = ctypes.c_char_p
        wrong = call(
            *(a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments)
        )
        if wrong:
            raise ValueError(f"{name}: {wrong.decode()}")

    def table(self, kind: str, registers: int, halves: int) -> np.ndarray:
        """[register * halves + half, lane, (row, column)] of A, B, sums, matrix or transposed."""
        number = ("A", "B", "sums", "matrix", "transposed").index(kind)
        codes = [
            [self.c.halo_place(number, lane, e // halves, e % halves) for lane in range(LANES)]
            for e in range(registers * halves)
        ]
        return np.stack(np.divmod(np.array(codes), 256), axis=-1)

    def ldmatrix(self, address: np.ndarray, shared: np.ndarray, transposed: bool) -> np.ndarray:
        """Four registers from the addresses [lane] into shared memory (bytes)."""
        r = np.empty((4, LANES), np.uint32)
        self._call("halo_ldmatrix", r, address.astype(np.uint32), int(transposed), shared, shared.size)
        return r

    def mma(self, sums: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sums [4, lane] plus the product of A [4, lane] and B [2, lane]."""
        d = np.ascontiguousarray(sums, np.float32).copy()
        self._call("halo_mma", d, np.ascontiguousarray(a), np.ascontiguousarray(b))
        return d

    def wgmma(self, span: int, a: np.ndarray, weights: int, shared: np.ndarray) -> np.ndarray:
        """A warp's sums [32, lane] of m64n64k16: A from registers, B at an address, swizzled over `span` bytes."""
        d = np.zeros((32, LANES), np.float32)
        self._call("halo_wgmma", span, d, np.ascontiguousarray(a), weights, shared, shared.size)
        return d

    def chunks(self, what: str, span: int, rows: int) -> np.ndarray:
        """Bytes of the 16-byte chunks [row, chunk], as the copy engine, a window or the weights have them."""
        kind = ("engine", "window", "weights").index(what)
        chunks = range(span // 16)
        return np.array([[self.c.halo_chunk(kind, span, row, c) for c in chunks] for row in range(rows)])

    def box_window(self, span: int, warp: int, step: int, kw: int, t: int, shared: np.ndarray) -> np.ndarray:
        """What a warp of the wgmma kernels loads of a box: A [4, lane]."""
        a = np.empty((4, LANES), np.uint32)
        self._call("halo_box_window", span, a, warp, step, kw, t, shared, shared.size)
        return a

    def tile_window(self, warp: int, step: int, kw: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """What a warp of the mma.sync kernel h32s loads: A [4, lane] of ids, and B [2 blocks of 16 orbits, 4, lane]."""
        a, b = np.empty((4, LANES), np.uint32), np.empty((2, 4, LANES), np.uint32)
        self._call("halo_tile_window", a, b, warp, step, kw, t)
        return a, b


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
