# The instructions of csrc/cuda/device.h on the stand-in for a GPU, for tests: tests/cuda_instructions.cpp from Python.
"""`Instructions` has the methods that `ptx_warp.Threads` calls, for every type and shape."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent / "csrc" / "cuda"
LANES = 32
TYPES = {"bf16": 0, "f16": 1, "tf32": 2}
ELEMENTWISE = ("fold_add", "fold_subtract", "operand", "pack2", "high_of", "low_of")
COMPILER = ["g++", "-std=c++20", "-O2", "-fPIC", "-Wno-psabi", "-Wno-unknown-pragmas"]


def compile_stand_in(build: Path, sources: Path = CUDA, only: str = "*.cpp") -> list[Path]:
    """The objects of the machine itself, or of some of its files; two compilers side by side."""

    def compiled(source: Path) -> Path:
        target = build / f"host_{source.stem}.o"
        subprocess.run([*COMPILER, f"-I{sources}", "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, sorted((sources / "host").glob(only))))


@cache
def machine_objects() -> list[Path]:
    """The objects of the machine as it is, compiled once for all tests, again when its sources change."""
    files = sorted((*CUDA.glob("*.h"), *(CUDA / "host").iterdir()))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files) + " ".join(COMPILER).encode())
    folder = HERE.parent / "build" / "cuda-machine"
    made = folder / digest.hexdigest()[:16]
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            compile_stand_in(Path(scratch))
            with contextlib.suppress(OSError):  # another process may have been quicker
                os.rename(scratch, made)
            Path(scratch).mkdir(exist_ok=True)
        for old in folder.iterdir():
            if old != made and not old.name.startswith("tmp"):
                shutil.rmtree(old, ignore_errors=True)
    return sorted(made.glob("*.o"))


def changed(to: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """A copy of what the kernels need of the machine, with changes, file -> (old text, new text)."""
    for source in (*CUDA.glob("*.h"), *(CUDA / "host").glob("*")):
        text = source.read_text()
        if source.name in changes:
            old, new = changes[source.name]
            assert text.count(old) == 1, f"{source.name} has {text.count(old)} of {old!r}"
            text = text.replace(old, new)
        target = to / source.relative_to(CUDA)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return to


class Instructions:
    """Registers are arrays [register, lane] of uint32, sums of float32."""

    def __init__(self, objects: list[Path], build: Path, sources: Path = CUDA) -> None:
        library, source = build / f"cuda_instructions_{os.getpid()}.so", HERE / "cuda_instructions.cpp"
        command = [*COMPILER, "-shared", f"-I{sources}", str(source), *map(str, objects)]
        subprocess.run([*command, "-o", str(library)], check=True)
        self.c = ctypes.CDLL(str(library))
        library.unlink()  # it stays loaded

    def _call(self, name: str, *arguments: Any) -> None:
        call = getattr(self.c, name)
        call.restype = ctypes.c_char_p
        wrong = call(
            *(a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments)
        )
        if wrong:
            raise ValueError(f"{name}: {wrong.decode()}")

    def ldmatrix(
        self, address: np.ndarray, shared: np.ndarray, transposed: bool, count: int = 4
    ) -> np.ndarray:
        """Registers from the addresses [lane] into shared memory (bytes)."""
        assert count == 4 or not transposed
        r = np.zeros((4, LANES), np.uint32)
        kind = 1 if transposed else 0 if count == 4 else 2
        self._call("ldmatrix", r, address.astype(np.uint32), kind, shared, shared.size)
        return r[:count]

    def mma(self, sums: np.ndarray, a: np.ndarray, b: np.ndarray, kind: str = "bf16") -> np.ndarray:
        """Sums [4, lane] plus the product of A [4, lane] and B [2, lane]."""
        d = np.empty((4, LANES), np.uint32)
        before, left, right = (np.ascontiguousarray(v) for v in (sums.astype(np.float32), a, b))
        self._call("mma", TYPES[kind], d, before, left, right)
        return d.view(np.float32)

    def wgmma(
        self,
        span: int,
        a: np.ndarray,
        weights: int,
        shared: np.ndarray,
        kind: str = "bf16",
        apart: int = 0,
    ) -> np.ndarray:
        """A warp's sums [32, lane] of m64n64: A from registers, B at an address, swizzled over `span` bytes.

        B is K-major, or MN-major with blocks of eight rows `apart` bytes apart: 1024 or 4096.
        """
        d = np.empty((32, LANES), np.uint32)
        assert apart in (0, 1024, 4096), apart
        assert not apart or (span == 128 and kind != "tf32")
        span = {0: span, 1024: 1, 4096: 4}[apart]
        self._call("wgmma", TYPES[kind], span, d, np.ascontiguousarray(a), weights, shared, shared.size)
        return d.view(np.float32)

    def shuffle_xor(self, values: np.ndarray, mask: int) -> np.ndarray:
        """What each lane gets of lane ^ mask."""
        got = np.empty(LANES, np.uint32)
        self._call("exchange", got, np.ascontiguousarray(values, np.uint32), mask)
        return got

    def each(self, kind: str, operation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """A function of one thread on each pair of registers."""
        left, right = (np.ascontiguousarray(v, np.uint32) for v in np.broadcast_arrays(a, b))
        to = np.empty_like(left)
        pointers = [v.ctypes.data_as(ctypes.c_void_p) for v in (left, right, to)]
        self.c.each(TYPES[kind], ELEMENTWISE.index(operation), *pointers, ctypes.c_int64(to.size))
        return to


def faulty(build: Path, file: str, old: str, new: str) -> Instructions:
    """Those of the machine with a change in one of its files."""
    sources = changed(build / "sources", {file: (old, new)})
    (wrong,) = compile_stand_in(build, sources, only=file)
    objects = [wrong if o.name == wrong.name else o for o in machine_objects()]
    return Instructions(objects, build, sources)


def ptx_of(source: str, arch: str, build: Path) -> str:
    """What nvcc makes of a source that includes headers of the kernels, in one line."""
    code, target = build / "probe.cu", build / "ptx"
    code.write_text(source)
    command = ["nvcc", "-std=c++17", f"-arch={arch}", "-ptx", f"-I{CUDA}", str(code), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return " ".join(target.read_text().split())


@cache
def instructions() -> Instructions:
    """Those of the machine as it is, built once."""
    objects = machine_objects()
    return Instructions(objects, objects[0].parent)
