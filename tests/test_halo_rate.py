# The halo-tile measurement without a GPU: the kernels' own code on a host stand-in, and what nvcc makes of them.
"""bench.micro.halo_rate: a right result on the host, and a build without spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from layouts import copy_sources

from bench.micro import halo_build, halo_rate

ROOT = Path(__file__).resolve().parents[1]

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


FAULTS = {  # of the tile: name -> (file, old text, new text)
    "no swizzle": (
        "halo_tile.h",
        "(column >> T::kKeyShift)",
        "(column * 0)",
    ),  # only the count of banks shows it
    "halo a row off": ("halo_tile.h", "at.row + row - 1", "at.row + row"),
    "beyond the last column": ("halo_tile.h", "x < p.width;", "x <= p.width;"),
    "orbits in another order": (
        "halo_tile.h",
        "inside % T::kTogether / 2, e",
        "inside % T::kTogether % 2, e",
    ),
    "neighbouring rows in a fragment": ("halo_warp.h", "(matrix & 1) * (T::kRows / 2)", "(matrix & 1)"),
    "matrices of a fragment exchanged": (
        "halo_warp.h",
        "i + (at.column + kw), matrix >> 1",
        "i + (at.column + kw), matrix & 1",
    ),
    "a sign of the butterfly": ("halo_sums.h", "even - odd", "odd - even"),
    "another swizzle": ("halo_group.h", "(address >> 3) & 48", "(address >> 4) & 48"),
    "a row of the fold": ("halo_group.h", "rows[q + 2][e])", "rows[q + 1][e])"),
    "a slice of the epilogue": (
        "halo_sums.h",
        "row * pitch + g * p.orbits + r * run",
        "row * pitch + g * p.orbits + (r + 1) * run",
    ),
    "a row of the epilogue": ("halo_sums.h", "if (row < rows)", "if (row <= rows)"),
    "a tap of the weights": (
        "halo_warp.h",
        "multiply_rows(machine, weight, 3, 1, difference)",
        "multiply_rows(machine, weight, 4, 1, difference)",
    ),
}
QUICK = ("no swizzle", "orbits in another order", "a sign of the butterfly", "a slice of the epilogue")

MMA, GROUP, CLUSTER, FLOWING = "h32s", "whv32", "wh64c", "wh64pf"
PIPELINE_FAULTS = {  # name -> (variant, file, old text, new text, what the stand-in says)
    "no barrier": (
        MMA,
        "halo_mma.cu",
        "__syncthreads();",
        "",
        "read before the copy|without a barrier|nobody wrote",
    ),
    "barrier behind the copies": (
        MMA,
        "halo_mma.cu",
        "__syncthreads();\n      if (!(p.leave_out & 1)) loader.issue();",
        "if (!(p.leave_out & 1)) loader.issue();\n      __syncthreads();",
        "copy over what is still read|read before the copy",
    ),
    "cp.async not waited for": (
        MMA,
        "halo_mma.cu",
        "wait<T::kStages - 2>()",
        "wait<T::kStages - 1>()",
        "read before the copy",
    ),
    "a group not committed": (
        MMA,
        "halo_mma.cu",
        "loader.issue();\n      commit();",
        "loader.issue();",
        "read before the copy|copy over",
    ),
    "misaligned copy": (
        MMA,
        "halo_mma.cu",
        "copy16(to + copy.y,",
        "copy16(to + copy.y + 8,",
        "cp.async: address",
    ),
    "copy beyond the weights": (
        MMA,
        "halo_mma.cu",
        "* p.steps + step)",
        "* p.steps + step + 1)",
        "outside of the tensors",
    ),
    "copy beyond shared memory": (
        MMA,
        "halo_mma.cu",
        "w_to = to + T::kHaloBytes",
        "w_to = to + T::kStageBytes",
        "cp.async: address|copy over|nobody wrote",
    ),
    "no zeros outside of the map": (MMA, "halo_mma.cu", "copy.x < 0 ? 0 : 16", "16", "WRONG"),
    "stages out of turn": (
        MMA,
        "halo_mma.cu",
        "stage + 1 == T::kStages ? 0",
        "stage + 2 == T::kStages ? 0",
        "read before|nobody wrote|copy over",
    ),
    "misaligned ldmatrix": (
        MMA,
        "halo_warp.h",
        "matrix & 1) + T::kHaloBytes",
        "matrix & 1) + T::kHaloBytes + 4",
        "ldmatrix: address",
    ),
    "bank conflict": (MMA, "halo_tile.h", "(column >> T::kKeyShift)", "(column * 0)", "bank conflict"),
    "stage let go of too early": (
        GROUP,
        "halo_wgmma.cu",
        "      sums.multiply(machine, stages",
        "      if (!T::kFlows) release(empty + turn.stage * 8);\n      sums.multiply(machine, stages",
        "more arrivals|copy over|read before",
    ),
    "wgmma in flight when it is let go of": (
        GROUP,
        "halo_group.h",
        "if (!T::kFlows) machine.template wait<0>();",
        "",
        "copy over|read before|WRONG",
    ),
    "full not awaited": (
        GROUP,
        "halo_wgmma.cu",
        "await(full + turn.stage * 8, turn.phase);",
        "",
        "read before the copy|nobody wrote",
    ),
    "empty not awaited": (
        GROUP,
        "halo_wgmma.cu",
        "await(empty + turn.stage * 8, turn.phase ^ 1);",
        "",
        "copy over|more arrivals",
    ),
    "wrong parity": (GROUP, "halo_wgmma.cu", "turn.phase ^ 1", "turn.phase", "deadlock"),
    "bytes that never come": (
        GROUP,
        "halo_wgmma.cu",
        "expect(barrier, T::kCopiedBytes)",
        "expect(barrier, T::kCopiedBytes + 16)",
        "deadlock",
    ),
    "bytes too few": (
        GROUP,
        "halo_wgmma.cu",
        "expect(barrier, T::kCopiedBytes)",
        "expect(barrier, T::kCopiedBytes - T::kWeightBytes)",
        "deadlock|read before",
    ),
    "box a column short": (
        GROUP,
        "halo_wgmma.cu",
        "T::kWidth + 2, T::kHeight + 2, 1}",
        "T::kWidth + 1, T::kHeight + 2, 1}",
        "deadlock",
    ),
    "box not at its pixel": (
        GROUP,
        "halo_wgmma.cu",
        "at.column - 1, at.row - 1",
        "at.column, at.row - 1",
        "WRONG",
    ),
    "misaligned box": (
        GROUP,
        "halo_group.h",
        "+ 1023) / 1024 * 1024",
        "+ 63) / 64 * 64",
        "128 does not divide|WRONG|bank conflict",
    ),
    "another span of the swizzle": (
        GROUP,
        "halo_wgmma.cu",
        "? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B",
        "? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B",
        "WRONG",
    ),
    "barriers not published": (GROUP, "halo_wgmma.cu", "    publish_barriers();", "", "is not published"),
    "no fence before wgmma": (
        GROUP,
        "halo_group.h",
        "fold_rows(machine, centre, sum[2], difference[2]);\n    machine.fence();",
        "fold_rows(machine, centre, sum[2], difference[2]);",
        "no fence after ldmatrix",
    ),
    "barriers used before they are started": (
        GROUP,
        "halo_wgmma.cu",
        "  synchronise();\n  if (threadIdx.x < 128)",
        "  if (threadIdx.x < 128)",
        "none was started",
    ),
    "arrivals of one CTA alone": (
        CLUSTER,
        "halo_wgmma.cu",
        "T::kPixelWarps * T::kCluster",
        "T::kPixelWarps",
        "more arrivals|copy over",
    ),
    "a CTA is gone": (
        CLUSTER,
        "halo_wgmma.cu",
        "if constexpr (T::kCluster > 1) synchronise();",
        "",
        "has ended",
    ),
    "the same share twice": (
        CLUSTER,
        "halo_wgmma.cu",
        "to + T::kHaloBytes + rank_in_cluster() * T::kShareBytes",
        "to + T::kHaloBytes",
        "copy over",
    ),
    "released to its own CTA alone": (
        CLUSTER,
        "halo_wgmma.cu",
        "arrive_at(empty, lane)",
        "arrive(empty)",
        "copy over|more arrivals",
    ),
    "let go of before the next has begun": (
        FLOWING,
        "halo_group.h",
        "if (step > 0 || T::kFlows) machine.template wait<1>();\n    if (step == 0 && T::kFlows) machine.let_go();",
        "if (step == 0 && T::kFlows) machine.let_go();\n    if (step > 0 || T::kFlows) machine.template wait<1>();",
        "copy over|read before",
    ),
}
QUICK_PIPELINE = (
    "no barrier",
    "barrier behind the copies",
    "cp.async not waited for",
    "stage let go of too early",
    "empty not awaited",
    "a CTA is gone",
)


def quickly(names: Iterable[str], quick: Iterable[str]) -> list[object]:
    """Parameters, all but the quick ones left to the full suite."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.full) for name in names]


def compile_and_run(source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A program of the stand-in; its exit code is 0 if the result is right and no rule was broken."""
    program = source.with_suffix("")
    command = ["g++", "-std=c++17", "-O1", "-Wno-unknown-pragmas", *flags, str(source), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=300)


def run_kernel(folder: Path, variant: str) -> subprocess.CompletedProcess[str]:
    """A kernel's own source on the host, with its copies, barriers and clusters."""
    source = halo_build.VARIANTS[variant].source
    flags = [f"-DHALO_VARIANT={variant}", f'-DHALO_SOURCE="{source}"']
    return compile_and_run(folder / "halo_run.cpp", *flags, *(["-DHALO_WGMMA"] if "wgmma" in source else []))


@needs_gxx
def test_tiles_are_right_on_the_host(tmp_path: Path) -> None:
    done = compile_and_run(copy_sources(tmp_path, {}) / "halo_check.cpp", "-DHALO_FEW")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_gxx
@pytest.mark.parametrize("fault", quickly(FAULTS, QUICK))
def test_a_fault_in_the_tile_is_seen_on_the_host(tmp_path: Path, fault: str) -> None:
    file, old, new = FAULTS[fault]
    done = compile_and_run(copy_sources(tmp_path, {file: (old, new)}) / "halo_check.cpp", "-DHALO_FEW")
    assert done.returncode == 1, done.stdout


@needs_gxx
@pytest.mark.parametrize(
    "variant", quickly((MMA, GROUP, CLUSTER, FLOWING, "hv16p", "whv64k"), (MMA, CLUSTER))
)
def test_a_kernel_runs_on_the_host(tmp_path: Path, variant: str) -> None:
    done = run_kernel(copy_sources(tmp_path, {}), variant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("error 0.00") == 8


@needs_gxx
@pytest.mark.parametrize("fault", quickly(PIPELINE_FAULTS, QUICK_PIPELINE))
def test_a_fault_in_the_pipeline_is_seen_on_the_host(tmp_path: Path, fault: str) -> None:
    variant, file, old, new, says = PIPELINE_FAULTS[fault]
    done = run_kernel(copy_sources(tmp_path, {file: (old, new)}), variant)
    assert done.returncode == 1, done.stdout
    assert re.search(says, done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.full
@needs_gxx
@needs_nvcc
def test_compiles_and_is_right_on_the_host() -> None:
    command = [sys.executable, "-m", "bench.micro.halo_rate", "--compile-only", "--variants", "h32s,whv32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right on the host: h32s, whv32" in done.stdout


def test_an_unknown_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["halo_rate", "--variants", "h3"])
    with pytest.raises(SystemExit, match="there is no 'h3'; there are h64"):
        halo_rate.main()


def test_fit_refuses_what_would_be_mostly_padding() -> None:
    assert halo_build.VARIANTS["hv32"].fits(320, 80)
    assert not halo_build.VARIANTS["h64"].fits(64, 32)
    assert halo_build.VARIANTS["whv32"].fits(64, 16)
    assert not halo_build.VARIANTS["whv64"].fits(64, 16)
    assert not halo_build.VARIANTS["h32"].fits(48, 32)
