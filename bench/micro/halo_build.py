# Builds the halo-tile kernels: one shared library a variant, in parallel, and the host stand-in that checks them.
"""Names, ties and sources of the variants, and `build`, which compiles those whose sources changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import wgmma_rate

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "micro"
WGMMA_WIDTHS = (32, 64, 128)
HEADERS = (
    "halo_tile.h",
    "halo_variants.h",
    "halo_sums.h",
    "halo_warp.h",
    "halo_group.h",
    "halo_lane.cuh",
    "halo_group.cuh",
)


@dataclass(frozen=True)
class Variant:
    """A kernel: orbits of a CTA, channels of a stage, and the source that is compiled for it."""

    name: str
    tie: str
    orbits: int
    channels: int
    source: str = "halo_mma.cu"

    def fits(self, channels: int, orbits: int) -> bool:
        """Whether it computes such a layer without too much of it for nothing: a quarter, or half with wgmma."""
        padded = -(-orbits // self.orbits) * self.orbits
        most = 2 if "wgmma" in self.source else 1.25
        return channels % self.channels == 0 and orbits % 8 == 0 and padded <= most * orbits


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("h64", "h", 64, 32),
        Variant("h64p", "h", 64, 32),
        Variant("h32", "h", 32, 32),
        Variant("h32p", "h", 32, 32),
        Variant("h32s", "h", 32, 32),
        Variant("h32sp", "h", 32, 32),
        Variant("hv32", "hv", 32, 32),
        Variant("hv32p", "hv", 32, 32),
        Variant("hv16", "hv", 16, 32),
        Variant("hv16p", "hv", 16, 32),
        Variant("wh64", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh64p", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh64q", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh64k", "h", 64, 64, "halo_wgmma.cu"),
        Variant("wh64c", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh64qc", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh64pf", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh64qf", "h", 64, 32, "halo_wgmma.cu"),
        Variant("wh128", "h", 128, 32, "halo_wgmma.cu"),
        Variant("wh128f", "h", 128, 32, "halo_wgmma.cu"),
        Variant("wh128r", "h", 128, 32, "halo_wgmma.cu"),
        Variant("wh32", "h", 32, 32, "halo_wgmma.cu"),
        Variant("wh32p", "h", 32, 32, "halo_wgmma.cu"),
        Variant("whv64", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64p", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64q", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64k", "hv", 64, 64, "halo_wgmma.cu"),
        Variant("whv64r", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64c", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64qc", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64qkc", "hv", 64, 64, "halo_wgmma.cu"),
        Variant("whv64pf", "hv", 64, 32, "halo_wgmma.cu"),
        Variant("whv64kf", "hv", 64, 64, "halo_wgmma.cu"),
        Variant("whv32", "hv", 32, 32, "halo_wgmma.cu"),
        Variant("whv32p", "hv", 32, 32, "halo_wgmma.cu"),
        Variant("whv32qc", "hv", 32, 32, "halo_wgmma.cu"),
    )
}


def possible(arch: str) -> list[str]:
    """Names of the variants that an architecture can run: wgmma is Hopper's alone."""
    return [name for name, variant in VARIANTS.items() if arch == "90a" or variant.source == "halo_mma.cu"]


def library(variant: Variant, arch: str) -> Path:
    """The shared library of a variant; its name changes with the sources."""
    return BUILD / f"halo_{variant.name}_{arch}_{_digest(variant.source)}.so"


def _digest(source: str) -> str:
    text = b"".join((HERE / name).read_bytes() for name in (*HEADERS, source))
    return hashlib.sha256(text).hexdigest()[:12]


def build(names: list[str], arch: str = "90a", again: bool = False) -> str:
    """Compile the variants that are missing (all if `again`), two for each CPU at most; returns ptxas' report.

    Raises:
        RuntimeError: nvcc is missing or fails, or a kernel spills, or its wgmma are serialised.
    """
    missing = [VARIANTS[name] for name in names if again or not library(VARIANTS[name], arch).exists()]
    missing_rate = arch == "90a" and not (BUILD / "wgmma_rate").exists()
    programs = [] if not again and peak_program(arch).exists() else ["halo_peak.cu"]
    if not missing and not programs and not missing_rate:
        return ""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on the PATH; add the folder bin of a CUDA toolkit")
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "halo_wgmma_ops.inc").write_text(wgmma_rate.operations(WGMMA_WIDTHS))
    common = [
        nvcc,
        "-std=c++17",
        "-O3",
        f"-I{BUILD}",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        "-Xptxas=-v",
    ]
    commands = [
        [*common, *_shared(variant), str(HERE / variant.source), "-o", str(library(variant, arch))]
        for variant in missing
    ]
    commands += [[*common, str(HERE / source), "-o", str(peak_program(arch))] for source in programs]
    if missing_rate:
        wgmma_rate.build(nvcc)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return "".join(pool.map(_compile, commands))


def _shared(variant: Variant) -> list[str]:
    return ["--shared", "-Xcompiler", "-fPIC", "-Xlinker", "-s", f"-DHALO_VARIANT={variant.name}"]


def peak_program(arch: str) -> Path:
    """The program that measures mma.sync alone."""
    return BUILD / f"halo_peak_{arch}_{_digest('halo_peak.cu')}"


def _compile(command: list[str]) -> str:
    target = Path(command[-1])
    scratch = target.with_suffix(".part")
    done = subprocess.run([*command[:-1], str(scratch)], capture_output=True, text=True)
    text = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {target.name}:\n{text}")
    faults = re.findall(r".*(?:\(C75\d\d\)|[1-9]\d* bytes spill).*", text)
    if faults:
        raise RuntimeError(f"{target.name} is not what is to be measured:\n" + "\n".join(faults))
    scratch.replace(target)
    for old in BUILD.glob(target.name.rsplit("_", 1)[0] + "_*"):
        if old != target:
            old.unlink()
    return f"{target.name}\n{text}"


def check_on_host() -> None:
    """Compile the stand-in with g++ and run it: every variant's addresses, fragments and epilogue on odd sizes.

    Raises:
        RuntimeError: there is no g++, or a result is wrong.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is not on the PATH; install a C++ compiler")
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "halo_check"
    flags = ["-std=c++17", "-O2", "-Wall", "-Werror"]
    for command in ([compiler, *flags, str(HERE / "halo_check.cpp"), "-o", str(program)], [str(program)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
