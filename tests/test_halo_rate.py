# The halo-tile measurement without a GPU: the kernels' own code on a host stand-in, and what nvcc makes of them.
"""bench.micro.halo_rate: a right result on the host, and a build without spills."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.micro import halo_build, halo_rate

ROOT = Path(__file__).resolve().parents[1]

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def host_check(tmp_path: Path, changes: dict[str, tuple[str, str]]) -> subprocess.CompletedProcess[str]:
    """Run the stand-in with changed sources: file -> (old text, new text)."""
    for source in halo_build.HERE.glob("halo_*"):
        text = source.read_text()
        if source.name in changes:
            old, new = changes[source.name]
            assert old in text, f"{source.name} has no {old!r}"
            text = text.replace(old, new)
        (tmp_path / source.name).write_text(text)
    program = tmp_path / "check"
    compile_it = [
        "g++",
        "-std=c++17",
        "-O1",
        "-DHALO_FEW",
        str(tmp_path / "halo_check.cpp"),
        "-o",
        str(program),
    ]
    subprocess.run(compile_it, check=True, capture_output=True, text=True)
    return subprocess.run([str(program)], capture_output=True, text=True)


@needs_gxx
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (
            "halo_tile.h",
            "(column >> T::kKeyShift)",
            "(column * 0)",
        ),  # no swizzle: only the count of banks shows it
        ("halo_tile.h", "at.row + row - 1", "at.row + row"),  # the halo one row off
        ("halo_tile.h", "x < p.width;", "x <= p.width;"),  # reads beyond the last column
        (
            "halo_tile.h",
            "inside % T::kTogether / 2, e",
            "inside % T::kTogether % 2, e",
        ),  # orbits in another order
        ("halo_warp.h", "(matrix & 1) * (T::kRows / 2)", "(matrix & 1)"),  # neighbouring rows in a fragment
        ("halo_sums.h", "even - odd", "odd - even"),  # a sign of the butterfly
        (
            "halo_group.h",
            "(address >> 3) & 48",
            "(address >> 4) & 48",
        ),  # another swizzle for the weights and boxes
        ("halo_group.h", "rows[q + 2][e])", "rows[q + 1][e])"),  # a row of the fold
    ],
)
def test_a_fault_in_the_kernels_is_seen_on_the_host(tmp_path: Path, file: str, old: str, new: str) -> None:
    done = host_check(tmp_path, {file: (old, new)})
    assert done.returncode != 0, done.stdout


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
