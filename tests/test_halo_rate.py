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
    compile_it = ["g++", "-std=c++17", "-O1", str(tmp_path / "halo_check.cpp"), "-o", str(program)]
    subprocess.run(compile_it, check=True, capture_output=True, text=True)
    return subprocess.run([str(program)], capture_output=True, text=True)


@needs_gxx
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(column >> T::kKeyShift)", "(column * 0)"),  # no swizzle: only the count of banks shows it
        ("at.row + row - 1", "at.row + row"),  # the halo one row off
        ("(matrix & 1) * (T::kRows / 2)", "(matrix & 1)"),  # neighbouring rows in a fragment
        ("c & g) >> 1", "c & g) >> 2"),  # a sign of the butterfly
        ("x < p.width;", "x <= p.width;"),  # reads beyond the last column
        ("inside % each / 2, e", "inside % each % 2, e"),  # orbits of a lane in another order
    ],
)
def test_a_fault_in_the_kernels_is_seen_on_the_host(tmp_path: Path, old: str, new: str) -> None:
    done = host_check(tmp_path, {"halo_tile.h": (old, new)})
    assert done.returncode != 0, done.stdout


@needs_gxx
@needs_nvcc
def test_compiles_and_is_right_on_the_host() -> None:
    command = [sys.executable, "-m", "bench.micro.halo_rate", "--compile-only", "--variants", "h32s,hv16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right on the host: h32s, hv16" in done.stdout


def test_an_unknown_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["halo_rate", "--variants", "h3"])
    with pytest.raises(SystemExit, match="there is no 'h3'; there are h64"):
        halo_rate.main()


def test_fit_refuses_what_would_be_mostly_padding() -> None:
    assert halo_build.VARIANTS["hv32"].fits(320, 80)
    assert not halo_build.VARIANTS["h64"].fits(64, 32)
    assert not halo_build.VARIANTS["h32"].fits(48, 32)
