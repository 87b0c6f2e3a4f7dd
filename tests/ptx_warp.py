# Runs straight-line PTX on the host: whole numbers in numpy, ldmatrix, mma.sync and wgmma by a stand-in.
"""Enough of PTX for Triton's code of one small product; an instruction that is not known raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

OPERATIONS: dict[str, Callable[..., Any]] = {
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "neg": lambda a: -a,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
    "bfe": lambda a, b, c: a >> b & (1 << c) - 1,
}
NOTHING = ("bar.sync", "fence.proxy", "wgmma.fence", "wgmma.commit", "wgmma.wait", "ld.param")
SPANS = {1: 128, 2: 64, 3: 32}  # bytes of the swizzle by the kind in bits 62 and 63 of a descriptor


class Threads:
    """Warps in lockstep: registers [thread] by name, shared memory and global memory in bytes.

    Registers are whole numbers of Python, so that nothing overflows unseen; each instruction cuts to its width.
    """

    def __init__(self, standin: Any, warps: int, parameters: list[int], memory: np.ndarray) -> None:
        self.standin, self.parameters, self.memory = standin, parameters, memory
        self.count = 32 * warps
        self.shared = np.zeros(1 << 15, np.uint8)
        threads = np.arange(self.count, dtype=object)
        self.registers: dict[str, np.ndarray] = {"%tid.x": threads, "global_smem": threads * 0}
        self.descriptors: set[int] = set()
        self.executed: list[str] = []

    def run(self, ptx: str) -> None:
        """All instructions of the only function, in order."""
        body = re.sub(
            r"//.*|^\s*\.loc.*|^\$\w+:", "", ptx[ptx.index("\n{\n") + 3 : ptx.index("ret;")], flags=re.M
        )
        for line in body.split(";"):
            text = " ".join(line.split())
            if text and not text.startswith("."):
                self.step(text)

    def value(self, text: str) -> np.ndarray:
        """A register, or a constant for all threads."""
        known = self.registers.get(text)
        return np.full(self.count, int(text, 0), dtype=object) if known is None else known

    def stack(self, names: list[str]) -> np.ndarray:
        """[register, thread] of 32-bit registers."""
        return np.stack([self.value(name) for name in names]).astype(np.uint32)

    def set(self, names: list[str], values: np.ndarray) -> None:
        """Registers from [register, thread]."""
        for name, value in zip(names, values.astype(object), strict=True):
            self.registers[name] = value

    def warps(self, call: Callable[..., np.ndarray], *operands: np.ndarray) -> np.ndarray:
        """A collective of each warp on operands [..., thread]; the results side by side."""
        cuts = [np.split(operand, self.count // 32, axis=-1) for operand in operands]
        return np.concatenate([call(*mine) for mine in zip(*cuts)], axis=-1)

    def step(self, line: str) -> None:
        """One instruction."""
        operation, _, rest = line.partition(" ")
        self.executed.append(operation)
        groups = [g.strip() for g in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", rest) if g.strip()]
        names = [[n.strip() for n in g.strip("{}").split(",")] for g in groups]
        parts = operation.split(".")
        if operation.startswith("ld.param"):
            self.registers[groups[0]] = self.value(str(self.parameters[int(groups[1].strip("[]")[-1])]))
        elif operation.startswith(NOTHING):
            return
        elif parts[0] in ("ld", "st"):
            self.move(parts, names, groups)
        elif parts[0] == "ldmatrix":
            assert "m8n8" in parts, operation
            load = self.ldmatrix("trans" in parts, int(operation[operation.index(".x") + 2]))
            self.set(names[0], self.warps(load, self.address(groups[1])))
        elif parts[0] == "mma":
            multiply = self.product(operation)
            sums, a, b = (self.stack(names[i]) for i in (3, 1, 2))
            self.set(names[0], self.warps(multiply, sums.view(np.float32), a, b).view(np.uint32))
        elif parts[0] == "wgmma":
            self.wgmma(operation, groups, names)
        else:
            self.compute(parts, groups)

    def ldmatrix(self, transposed: bool, count: int) -> Callable[..., np.ndarray]:
        """Of one warp: four matrices, or two if the stand-in has that."""
        more = () if count == 4 else (count,)
        return lambda at: self.standin.ldmatrix(at.astype(np.int64), self.shared, transposed, *more)

    def product(self, operation: str) -> Callable[..., np.ndarray]:
        """mma.sync of one warp: of bfloat16, or another type if the stand-in has that."""
        found = re.search(r"m16n8k(\d+)\.row\.col\.f32\.(\w+)\.\2\.f32", operation)
        assert found, operation
        depth, kind = found.groups()
        assert depth == ("8" if kind == "tf32" else "16"), operation
        more = () if kind == "bf16" else (kind,)
        return lambda sums, a, b: self.standin.mma(sums, a, b, *more)

    def wgmma(self, operation: str, groups: list[str], names: list[list[str]]) -> None:
        """m64n64 with A from registers: the descriptor's address and kind, and whether sums are kept."""
        found = re.search(r"m64n64k(\d+)\.f32\.(\w+)\.\2", operation)
        assert found, operation
        depth, kind = found.groups()
        assert depth == ("8" if kind == "tf32" else "16"), operation
        assert groups[4:] == (["1", "1"] if kind == "tf32" else ["1", "1", "0"]), operation
        more = () if kind == "bf16" else (kind,)
        (descriptor,) = {int(d) for d in self.value(groups[2])}
        self.descriptors.add(descriptor & ~0x3FFF)
        span, at = SPANS[descriptor >> 62], (descriptor & 0x3FFF) << 4
        product = self.warps(
            lambda a: self.standin.wgmma(span, a, at, self.shared, *more), self.stack(names[1])
        )
        if self.value(groups[3]).all():
            product += self.stack(names[0]).view(np.float32)
        self.set(names[0], product.view(np.uint32))

    def address(self, text: str) -> np.ndarray:
        """[register] or [register + constant]."""
        register, _, constant = text.strip("[] ").partition("+")
        return self.value(register.strip()) + int(constant or 0)

    def move(self, parts: list[str], names: list[list[str]], groups: list[str]) -> None:
        """32-bit words between registers and memory."""
        assert parts[-1] == "b32", parts
        memory = self.shared if "shared" in parts else self.memory
        register, place = (0, 1) if parts[0] == "ld" else (1, 0)
        at = self.address(groups[place]).astype(np.int64)
        for i, name in enumerate(names[register]):
            where, odd = np.divmod(at + 4 * i, 4)
            assert not odd.any(), parts
            assert ((where >= 0) & (where < memory.size // 4)).all(), parts
            if parts[0] == "ld":
                self.registers[name] = memory.view(np.uint32)[where].astype(object)
            else:
                memory.view(np.uint32)[where] = self.value(name).astype(np.uint32)

    def compute(self, parts: list[str], groups: list[str]) -> None:
        """Arithmetic; what is signed is only the extraction of one bit, which gives 0 or -1."""
        v = [self.value(group) for group in groups[1:]]
        kind = parts[-1]
        if kind[0] == "s" and parts[0] not in ("add", "mul", "neg"):
            assert parts[0] == "bfe", parts
            assert set(v[2]) == {1}, parts
            result = -OPERATIONS["bfe"](*v)
        else:
            result = OPERATIONS[parts[0]](*v)
        bits = 1 if kind == "pred" else int(kind[1:]) * (2 if "wide" in parts else 1)
        self.registers[groups[0]] = result & (1 << bits) - 1
