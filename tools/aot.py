# Compiles every configuration of the Triton kernels for GPUs that need not be there, and says what the compilers made.
"""python -m tools.aot [--arch sm_90,...] [--kernel fprop_fold] [--dtype bfloat16] [--quick] [--jobs N] [--rows FILE]

No GPU is needed. For each tile of the table, and for geometries of every kind with the tile that the table gives them,
each launch is compiled for sm_80, sm_90, sm_100 and gfx942. It fails (exit code 1, every failure listed) on

    spills               registers moved to memory
    serialised           ptxas lets matrix products wait for each other ("C75xx", from a second `ptxas -v` on the PTX)
    shared memory        more than a block of the device can have: compiling does not notice
    tensor memory        more than 512 columns on sm_100: the "compiled" kernel would only trap
    no matrix product    a product that has matrix instructions for its type, compiled without; in 16-bit types from
                         64 rows on, without wgmma (sm_90) or tcgen05 (sm_100)

Spills and serialised products are no failure of a tile that was the quickest of those that a GPU tried. Nothing here
says how fast a kernel is, or whether it is right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from symconv_fast.backends.triton import configs
from symconv_fast.backends.triton.launch import Launch, Options, plan, refusal
from symconv_fast.problem import Problem
from symconv_fast.sides import Own, Sides
from symconv_fast.ties import Segment, Ties


@dataclass(frozen=True)
class Target:
    """An architecture: what Triton calls it, bytes of shared memory that a block may have, its matrix instructions."""

    gpu: GPUTarget
    shared: int
    products: tuple[str, ...]


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10, ("mma.sync",)),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10, ("wgmma.mma_async", "mma.sync")),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10, ("tcgen05.mma", "mma.sync")),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10, ("v_mfma",)),
}
TENSOR_COLUMNS = 512
GROUP_ROWS = 64  # that four warps multiply together on sm_90 and sm_100

# Precisions of a product by type on NVIDIA, where "ieee" has no matrix instructions in float32.
PRECISIONS: dict[torch.dtype, tuple[str, ...]] = {
    torch.bfloat16: ("ieee",),
    torch.float16: ("ieee",),
    torch.float32: ("tf32", "ieee", "tf32x3"),
    torch.float64: ("ieee",),
}
TIES = {0: 0, 1: 1, 2: 3, 3: 7}  # number of tied axes -> mask
PRODUCTS = ("fprop_fold", "fprop_direct", "dgrad", "wgrad")
SIDED = (
    "fprop_fold_both",
    "fprop_fold_own",
)  # of ties on both sides: names of tiles that may be those of others
CHANNELS = 256
# Registers depend on the channels too: where several ties leave the fewest, these are compiled as well.
OTHER_CHANNELS = {("fprop_fold", 2): (128, 192), ("fprop_fold", 3): (128,)}


@dataclass(frozen=True)
class Entry:
    """A launch to compile for an architecture, with the name under which it is reported."""

    name: str
    arch: str
    dtype: str
    precision: str
    launch: Launch
    measured: bool = False
    """Was its tile the quickest of those that a GPU tried? Then what only costs time is no failure."""


@dataclass
class Report:
    """What the compilers made of an entry. `failures` is empty when nothing is wrong with it."""

    name: str
    arch: str
    kernel: str
    dtype: str
    precision: str
    tile: dict[str, int]
    registers: int = 0
    spill_bytes: int = 0
    shared: int = 0
    tensor_columns: int = 0
    products: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    measured: bool = False

    @property
    def line(self) -> str:
        """One line of the listing."""
        made = " ".join(f"{name} {count}" for name, count in self.products.items() if count) or "no products"
        tile = "x".join(str(self.tile[key]) for key in ("BM", "BN", "BK") if key in self.tile)
        verdict = "; ".join(self.failures) or "ok"
        return (
            f"{self.arch:<7} {self.name:<34} {self.dtype} {self.precision} {tile} warps {self.tile['warps']} "
            f"stages {self.tile['stages']}: {self.registers} registers, {self.spill_bytes} B spilled, "
            f"{self.shared / 1024:.0f} KB shared, {made}: {verdict}"
        )


# --- what is compiled -----------------------------------------------------------------------------------------------


def make_problem(
    ties: dict[int, int],
    channels: int,
    spatial: tuple[int, ...],
    kernel: int = 3,
    dtype: torch.dtype = torch.bfloat16,
    *,
    batch: int = 8,
    stride: int = 1,
    groups: int = 1,
    transposed: bool = False,
    last: bool = True,
    inputs: int = 0,
    own: Own | None = None,
) -> Problem:
    """A layer on a GPU; `ties` are rows over all groups by mask.

    The input channels are orbits of the tie `inputs`. With `own` the rows, of mask 0, are their own images.
    """
    ndim, taps = len(spatial), (kernel,) * len(spatial)
    made = Ties(ndim, groups, tuple(Segment(*tie) for tie in ties.items()))
    if inputs or own:
        orbits = Ties(ndim, groups, (Segment(inputs, channels >> inputs.bit_count()),)) if inputs else None
        made = Ties(ndim, groups, made.segments, Sides(groups, orbits, (own,), taps if own else ()))
    geometry = [stride] * ndim, [kernel // 2] * ndim, [1] * ndim, [0] * ndim
    sizes = (batch, channels, *spatial), made.weight_shape(channels // groups, taps, transposed)
    return Problem.create(sizes, (made.flat, *geometry, transposed, groups, last), last, dtype, "cuda")


def table_problem(order: int, dtype: torch.dtype, channels: int = CHANNELS, kind: str = "") -> Problem:
    """A layer large enough for every tile of the table: 3 taps an axis. `kind` is "_both", "_own" or a lift's, ""."""
    spatial = (56, 56) if order < 3 else (24, 24, 24)
    if kind == "_own":
        return make_problem({0: 256}, channels, spatial, dtype=dtype, own=Own(TIES[order], 0))
    ties = {TIES[order]: 256 if order < 3 else 64}
    return make_problem(ties, channels, spatial, dtype=dtype, inputs=TIES[order] if kind else 0)


GEOMETRIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "1-D, 5 taps": (("fold",), {"ties": {1: 128}, "channels": 128, "spatial": (2000,), "kernel": 5}),
    "v": (("fold",), {"ties": {2: 64}, "channels": 128, "spatial": (28, 28)}),
    "hv": (("direct",), {"ties": {3: 64}, "channels": 128, "spatial": (28, 28)}),
    "hvz": (("direct",), {"ties": {7: 64}, "channels": 128, "spatial": (16, 16, 16)}),
    "stride 2": (("fold",), {"ties": {1: 64}, "channels": 128, "spatial": (56, 56), "stride": 2}),
    "even kernel": (("fold",), {"ties": {3: 32}, "channels": 128, "spatial": (28, 28), "kernel": 4}),
    "7 x 7 stem, C = 3": (
        ("fold", "direct"),
        {"ties": {3: 16}, "channels": 3, "spatial": (224, 224), "kernel": 7, "stride": 2},
    ),
    "odd channels": (("fold", "direct"), {"ties": {1: 33, 3: 17}, "channels": 100, "spatial": (29, 31)}),
    "contiguous": (("fold",), {"ties": {1: 64}, "channels": 4, "spatial": (56, 56), "last": False}),
    "mixed": (("fold", "direct"), {"ties": {1: 32, 2: 32, 3: 32, 0: 64}, "channels": 128, "spatial": (28, 28)}),
    "groups": (("fold",), {"ties": {1: 128}, "channels": 256, "spatial": (28, 28), "groups": 4}),
    "transposed, stride 2": (
        ("fold",),
        {"ties": {1: 64}, "channels": 128, "spatial": (28, 28), "stride": 2, "kernel": 4, "transposed": True},
    ),
    "octuple, mixed": (("fold",), {"ties": {1: 16, 3: 16, 7: 32}, "channels": 64, "spatial": (16, 16, 16)}),
    "depthwise 7 x 7": (
        ("direct",),
        {"ties": {3: 384}, "channels": 384, "spatial": (14, 14), "kernel": 7, "groups": 384},
    ),
    "depthwise, contiguous": (
        ("direct",),
        {"ties": {1: 96}, "channels": 96, "spatial": (56, 56), "groups": 96, "last": False},
    ),
    "h to h, stride 2": (
        ("fold",), {"ties": {1: 64}, "channels": 128, "spatial": (56, 56), "stride": 2, "inputs": 1},
    ),
    "hv to hv": (("fold",), {"ties": {3: 64}, "channels": 256, "spatial": (28, 28), "inputs": 3}),
    "hv to hv, even kernel": (
        ("fold",),
        {"ties": {3: 32}, "channels": 128, "spatial": (28, 28), "kernel": 4, "stride": 2, "inputs": 3},
    ),
    "hvz to hvz": (("fold",), {"ties": {7: 16}, "channels": 128, "spatial": (16, 16, 16), "inputs": 7}),
    "h to h, odd channels": (("fold",), {"ties": {1: 33}, "channels": 100, "spatial": (29, 31), "inputs": 1}),
    "h to hv": (("fold",), {"ties": {3: 32}, "channels": 128, "spatial": (28, 28), "inputs": 1}),
    "h+": (("fold",), {"ties": {0: 80}, "channels": 64, "spatial": (3200,), "kernel": 5, "own": Own(1, 0)}),
    "h-v+": (("fold",), {"ties": {0: 128}, "channels": 128, "spatial": (28, 28), "own": Own(3, 1)}),
    "h- of h": (
        ("fold",), {"ties": {0: 256}, "channels": 256, "spatial": (28, 28), "inputs": 1, "own": Own(1, 1)},
    ),
    "more than 2^31 elements": (
        ("fold",), {"ties": {1: 64}, "channels": 128, "spatial": (512, 512), "batch": 128},
    ),
}  # fmt: skip
# Compiled by `make test` too, for every architecture: passes and numbers of tied axes, in float32 the first alone.
QUICK = {
    "fprop_fold": (1, 2, 3),
    "dgrad": (1, 2),
    "wgrad": (1, 2),
    "fprop_fold_both": (2,),
    "wgrad_both": (2,),
}


def precisions(dtype: torch.dtype, arch: str) -> tuple[str, ...]:
    """Those in which the backend multiplies on an architecture: on AMD in full only, as torch does there."""
    return PRECISIONS[dtype] if TARGETS[arch].gpu.backend == "cuda" else ("ieee",)


def entries(arch: str) -> Iterator[Entry]:
    """Everything that is compiled for an architecture."""
    for itemsize, table in configs.TILES.items():
        for kernel, order in (*table, *itertools.product(SIDED, (1, 2, 3))):
            for dtype in (dtype for dtype in PRECISIONS if dtype.itemsize == itemsize):
                for precision in precisions(dtype, arch):
                    product = configs.product_of(str(dtype)[6:], precision)
                    for channels in (CHANNELS, *OTHER_CHANNELS.get((kernel, order), ())):
                        for tile in configs.tiles(kernel, order, itemsize, arch, product, channels=channels):
                            yield from _table_entries(arch, kernel, order, dtype, precision, tile, channels)
    for row in configs.TUNED:
        dtype, tile = getattr(torch, row["dtype"]), configs.Config(**row["config"])
        channels = row["sizes"][
            2 if row["kernel"].startswith("fprop") else 1
        ]  # of the layer that it was measured on
        for precision in precisions(dtype, arch) if row["arch"] == arch else ():
            for entry in _table_entries(arch, row["kernel"], row["order"], dtype, precision, tile, channels):
                yield replace(entry, measured=True)
    for name, (algorithms, arguments) in GEOMETRIES.items():
        for dtype in (torch.bfloat16, torch.float32):
            problem = make_problem(dtype=dtype, **arguments)
            for precision in precisions(dtype, arch)[:2]:  # what torch's switch for TF32 chooses between
                yield from _geometry_entries(arch, name, problem, algorithms, precision)


def _table_entries(
    arch: str,
    kernel: str,
    order: int,
    dtype: torch.dtype,
    precision: str,
    tile: configs.Config,
    channels: int,
) -> Iterator[Entry]:
    """The launches of `kernel` with one tile of the table."""
    base = kernel.removesuffix("_both").removesuffix("_own")
    op, _, algorithm = base.partition("_")
    options = Options(arch=arch, precision=precision, config=tile)
    name = f"{kernel} {order} {tile.m}x{tile.n}x{tile.k}" + (f" C={channels}" if channels != CHANNELS else "")
    problem = table_problem(order, dtype, channels, kernel.removeprefix(base))
    for each in (op, "dgrad") if kernel in SIDED else (op,):  # the same kernel makes both
        for launch in plan(problem, each, algorithm or "fold", options=options).launches:
            if launch.kernel == base:
                yield _entry(name + f" {each}" * (each != op), arch, dtype, precision, launch)


def _geometry_entries(
    arch: str, name: str, problem: Problem, algorithms: tuple[str, ...], precision: str
) -> Iterator[Entry]:
    """All launches of a geometry, with the tiles that the table gives them."""
    options = Options(arch=arch, precision=precision)
    for op, algorithm in ((op, a) for op in ("fprop", "dgrad", "wgrad") for a in algorithms):
        if refusal(problem, op, algorithm, options) is None:
            for launch in plan(problem, op, algorithm, options=options).launches:
                yield _entry(f"{name} {op} {algorithm}", arch, problem.dtype, precision, launch)


def _entry(name: str, arch: str, dtype: torch.dtype, precision: str, launch: Launch) -> Entry:
    return Entry(name, arch, str(dtype)[6:], precision if dtype == torch.float32 else "", launch)


# --- compiling ------------------------------------------------------------------------------------------------------


def source(launch: Launch) -> ASTSource:
    """The kernel of a launch with its types, constants and what is known to be divisible by 16."""
    place = {name: (i,) for i, name in enumerate(launch.names)}
    signature = launch.signature
    divisible = [n for n in launch.divisible if n in place and signature[n] != "constexpr"]
    return ASTSource(
        launch.function,
        signature,
        constexprs={place[name]: value for name, value in launch.constexprs.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in divisible},
    )


def compile_entry(entry: Entry) -> Report:
    """Compile for the target of the entry and look at the result."""
    target, launch = TARGETS[entry.arch], entry.launch
    tile = {key: launch.constants[key] for key in ("BM", "BN", "BK", "TAPS") if key in launch.constants}
    if "SIZES" in launch.constants:
        tile["BK"] = math.prod(launch.constants["SIZES"])
    report = Report(
        entry.name, entry.arch, launch.kernel, entry.dtype, entry.precision,
        tile | {"warps": launch.warps, "stages": launch.stages}, measured=entry.measured,
    )  # fmt: skip
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    try:
        compiled = triton.compile(source(launch), target=target.gpu, options=options)
    except (
        Exception
    ) as error:  # whatever a compiler raises is a finding, and the others must still be compiled
        text = (str(error).strip().splitlines() or [""])[-1]
        report.failures.append(f"does not compile: {type(error).__name__}: {text[:200]}")
        return report
    report.shared = compiled.metadata.shared
    report.tensor_columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    if target.gpu.backend == "cuda":
        _read_ptx(report, compiled.asm["ptx"], target)
    else:
        _read_gcn(report, compiled.asm["amdgcn"], target)
    report.failures += find_failures(report)
    return report


def _read_ptx(report: Report, ptx: str, target: Target) -> None:
    """Registers, spills and complaints from a second `ptxas -v`; matrix instructions from the PTX."""
    report.products = {name: ptx.count(name) for name in target.products}
    tool = get_ptxas(target.gpu.arch)
    architecture = re.search(r"\.target\s+(\w+)", ptx)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        command = [
            tool.path,
            "-v",
            f"--gpu-name={architecture[1]}",
            str(file),
            "-o",
            f"{folder}/kernel.cubin",
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    read_ptxas(report, text)


def read_ptxas(report: Report, text: str) -> None:
    """Registers, bytes of spill stores and the lines with a performance message, from what `ptxas -v` printed."""
    report.registers = max(map(int, re.findall(r"Used (\d+) registers", text)), default=0)
    report.spill_bytes = sum(map(int, re.findall(r"(\d+) bytes spill stores", text)))
    report.messages = [line.strip() for line in text.splitlines() if re.search(r"\(C7\d{3}\)", line)]


def _read_gcn(report: Report, text: str, target: Target) -> None:
    """The same from the metadata in AMD's assembly; spills are the bytes of scratch memory that a lane needs."""

    def value(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s*(\d+)", text)), default=0)

    report.products = {name: text.count(name) for name in target.products}
    report.registers = value("vgpr_count")
    # Not the spill counts: scalars go to lanes of vector registers, an instruction each and no memory. What finds no
    # lane has its place in the scratch memory too.
    report.spill_bytes = value("private_segment_fixed_size")


def find_failures(report: Report) -> list[str]:
    """What must not be, one text each."""
    target, found = TARGETS[report.arch], []
    if report.spill_bytes and not report.measured:
        found.append(f"{report.spill_bytes} bytes spilled")
    serialised = sorted({m for text in report.messages for m in re.findall(r"C75\d\d", text)})
    if serialised and not report.measured:
        found.append(f"serialised ({', '.join(serialised)})")
    if report.shared > target.shared:
        found.append(f"{report.shared} bytes of shared memory, more than {target.shared}")
    if report.tensor_columns > TENSOR_COLUMNS:
        found.append(f"{report.tensor_columns} columns of tensor memory, more than {TENSOR_COLUMNS}")
    if expects_products(report) and not any(report.products.values()):
        found.append("no matrix product")
    elif expects_wide_products(report) and not report.products.get(target.products[0]):
        found.append(f"no {target.products[0]}")
    return found


def expects_products(report: Report) -> bool:
    """Has the type matrix instructions, and does the kernel multiply matrices?"""
    scalar = report.dtype == "float64" or (report.dtype == "float32" and report.precision == "ieee")
    return report.kernel in PRODUCTS and (not scalar or TARGETS[report.arch].gpu.backend == "hip")


def expects_wide_products(report: Report) -> bool:
    """Are there 16-bit rows enough for the instructions of a whole group of four warps, where there are such?"""
    whole_group = report.tile.get("BM", 0) >= GROUP_ROWS and report.tile["warps"] >= 4
    several = len(TARGETS[report.arch].products) > 1
    return expects_products(report) and several and whole_group and report.dtype in ("bfloat16", "float16")


# --- command line ----------------------------------------------------------------------------------------------------


def quick_entries() -> list[Entry]:
    """Of what QUICK names, the largest tile, which is the first to spill."""
    found: list[Entry] = []
    for arch, dtype in itertools.product(TARGETS, (torch.bfloat16, torch.float32)):
        precision = precisions(dtype, arch)[0]
        product = configs.product_of(str(dtype)[6:], precision)
        for kernel, orders in QUICK.items():
            for order in orders if dtype.itemsize == 2 else orders[:1]:
                tile = configs.tiles(kernel, order, dtype.itemsize, arch, product)[0]
                found += _table_entries(arch, kernel, order, dtype, precision, tile, CHANNELS)
    return found


def chosen(options: argparse.Namespace) -> list[Entry]:
    """The entries that the command line asks for, each distinct compilation once."""
    if options.quick:
        return quick_entries()
    found: dict[object, Entry] = {}
    for arch in options.arch.split(","):
        for entry in entries(arch):
            if options.kernel in entry.launch.kernel and options.dtype in entry.dtype:
                found.setdefault((entry.arch, repr(entry.launch.constants), repr(entry.launch)), entry)
    return list(found.values())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="compile the Triton kernels ahead of time")
    parser.add_argument("--arch", default=",".join(TARGETS), help="architectures, with commas")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--dtype", default="", help="only this type, such as bfloat16")
    parser.add_argument("--quick", action="store_true", help="a few representative ones")
    parser.add_argument("--jobs", type=int, default=1, help="compilations at a time")
    parser.add_argument("--rows", type=Path, help="write the reports here as JSON lines")
    options = parser.parse_args(arguments)
    unknown = [arch for arch in options.arch.split(",") if arch not in TARGETS]
    if unknown:
        parser.error(f"--arch {','.join(unknown)} is not known; there are: {', '.join(TARGETS)}")
    return options


def main() -> int:
    """Compile, print a line each, then every failure again; 1 if there is one."""
    if triton.knobs.runtime.interpret:
        raise SystemExit(
            "TRITON_INTERPRET is set: kernels made for the interpreter cannot be compiled; unset it"
        )
    options = parse()
    todo, reports = chosen(options), []
    with ProcessPoolExecutor(max_workers=max(1, options.jobs)) as pool:
        for done, report in enumerate(pool.map(compile_entry, todo), 1):
            print(f"{done:>{int(math.log10(len(todo))) + 1}}/{len(todo)} {report.line}", flush=True)
            reports.append(report)
    if options.rows:
        options.rows.write_text("".join(json.dumps(asdict(report)) + "\n" for report in reports))
    failed = [report for report in reports if report.failures]
    print(f"\n{len(reports)} compiled, {len(failed)} with failures")
    for report in failed:
        print(report.line)
    return 1 if failed or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
