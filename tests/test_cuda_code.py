# What nvcc made of the CUDA kernels: what the library needs, and which instructions are in it. Needs `make cuda`.

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import cuda_build
import cuda_report
import cuda_sources
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "cuda"
REGISTERS = 1 << 16
"""Of a multiprocessor, given out to warps by 8 a thread."""

# Of each family: a kernel that stands for the others, and instructions that it must have. HMMA: products of matrix
# units; LDSM: ldmatrix; LDGSTS: copies that run on their own; HGMMA: wgmma; UTMALDG: the copy engine.
MATRIX = ("HMMA", "LDSM", "LDGSTS")
MEANT = {
    "conv": MATRIX,
    "wgrad": MATRIX,
    "patch": MATRIX,
    "hopper": ("HGMMA", "UTMALDG", "LDSM"),
    "hopperdgrad": ("HGMMA", "UTMALDG", "LDSM"),
    "hopperwgrad": ("HGMMA", "UTMALDG", "LDSM"),
    "depthwise": ("FFMA",),
}


def built() -> Path:
    """The module for GPUs; skipped where `make cuda` was not run."""
    if not cuda_build.TARGET.exists():
        pytest.skip("the CUDA module was not built (make cuda)")
    return cuda_build.TARGET


def test_the_module_needs_only_the_system():
    if shutil.which("ldd") is None:
        pytest.skip("needs ldd")
    done = subprocess.run(["ldd", str(built())], capture_output=True, text=True, check=True)
    names = {line.split()[0].split("/")[-1].split(".")[0] for line in done.stdout.splitlines()}
    system = "linux-vdso libstdc++ libgcc_s libc libm libdl librt libpthread ld-linux-x86-64 ld-linux-aarch64"
    assert names <= set(system.split())


def test_the_module_is_imported_without_a_gpu_and_says_what_it_has():
    built()
    code = (
        "from symconv_fast import _cuda; i = _cuda.info(); print(i['version'], i['stand_in'], *i['families'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, stand_in, *families = done.stdout.split()
    assert (version, stand_in) == (cuda_build.version(), "False")
    assert set(families) <= {family.name for family in cuda_sources.families(ROOT / "csrc/cuda")}


@cache
def cuobjdump() -> str:
    """Triton's, or that of the CUDA toolkit."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if os.access(program, os.X_OK):
            return str(program)
    program = shutil.which("cuobjdump")
    if program is None:
        pytest.skip("needs cuobjdump (Triton for NVIDIA has it)")
    return program


def instructions(file: Path) -> dict[str, Counter[str]]:
    """Names of the instructions of every kernel of an object file, counted, by architecture and kernel."""
    done = subprocess.run([cuobjdump(), "-sass", str(file)], capture_output=True, text=True, check=True)
    found: dict[str, Counter[str]] = {}
    arch = kernel = ""
    for line in done.stdout.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            kernel = f"{arch} {match[1]}"
            found[kernel] = Counter()
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", line):
            found[kernel][match[1]] += 1
    return found


def planned() -> cuda_build.Plan:
    """What the module was built from, as long as the objects are there and nothing has changed."""
    built()
    facts = FOLDER / "generated" / "families.h"
    if not facts.exists():
        pytest.skip("the objects of the module were removed")
    nvcc = cuda_build.cuda_nvcc.find()
    (asked,) = re.findall(r'SYMCONV_ARCHITECTURES "(.*)"', facts.read_text())
    chosen, _ = cuda_build.cuda_nvcc.architectures(asked, nvcc)
    return cuda_build.plan_for_gpus(nvcc, chosen, ROOT / "csrc/cuda", FOLDER)


def test_no_kernel_spills_or_waits_where_it_should_not():
    plan = planned()
    reports = plan.reports()
    assert set(reports) == {name for name, _ in plan.commands}
    assert cuda_report.faults(reports.values()) == []
    assert len([k for text in reports.values() for k in cuda_report.kernels(text)]) > len(MEANT)


def too_many(variants: list[dict[str, Any]], reports: dict[str, str]) -> list[str]:
    """Kernels whose registers leave no room for as many CTAs as their variant says, or that are not there."""
    found = []
    for v in variants:
        name = f"{v['family']}/{v['name']}"
        texts = [text for file, text in reports.items() if re.fullmatch(rf"{name}(_\w+)?", file)]
        kernels = [k for text in texts for k in cuda_report.kernels(text)]
        if not kernels and name != "depthwise/sum":  # which lies in the files of the gradient of the input
            found.append(f"{name} is in no file")
        for kernel in kernels:
            together = -(-kernel.registers // 8) * 8 * v["threads"] * v["ctas"]
            if together > REGISTERS:
                found.append(f"{name}: {kernel.name} has {kernel.registers} registers on {kernel.arch}")
    return found


def test_registers_are_as_planned():
    reports = planned().reports()
    listed = "import json; from symconv_fast import _cuda; print(json.dumps(_cuda.variants()))"
    done = subprocess.run(
        [sys.executable, "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert too_many(json.loads(done.stdout), reports) == []


@pytest.mark.parametrize("family", [f.name for f in cuda_sources.families(ROOT / "csrc/cuda")])
def test_kernels_have_the_instructions_that_are_meant(family):
    """Each instruction on each architecture: of the family's objects, the first that is made of kernels."""
    plan = planned()
    names = [name for name, _ in plan.commands if name.startswith(f"{family}/")]
    if not names:
        pytest.skip(f"{family} was left out of this build")
    wanted = {(arch, meant) for meant in MEANT[family] for arch in architectures(family)}
    for name in names:
        if not wanted:
            break
        if "prepare" in name or not cuda_report.kernels(plan.reports()[name]):
            continue
        for kernel, counts in instructions(Path(dict(plan.commands)[name][-1])).items():
            wanted -= {(kernel.split()[0], instruction) for instruction in counts}
    assert not wanted


def architectures(family: str) -> set[str]:
    """Those that a family's kernels are compiled for, as cuobjdump writes them."""
    texts = planned().reports()
    return {
        k.arch
        for name, text in texts.items()
        if name.startswith(f"{family}/")
        for k in cuda_report.kernels(text)
    }
