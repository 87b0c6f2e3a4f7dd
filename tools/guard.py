# Runs the fuzz problems with every tensor and buffer between pages that cannot be touched.
"""python tools/guard.py [problems [first]] [arguments of tests/replay.py]

The number of problems is SYMCONV_FAST_FUZZ by default, else 2000; "--kernels --turn own" leaves most repetitions out.

A read or write past a block ends with a segmentation fault, and the problem's repr, at the full speed of the kernels as
they are installed: under every instruction set that the CPU has, where AddressSanitizer needs a slow build of its own.
Blocks are multiples of 64 bytes, so what goes past by less does not show. Everything runs twice: with blocks that end
at a page that cannot be touched, and with blocks that begin at one. Linux, with a C compiler.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "guard"
LAST = BUILD / "last.txt"

# Reads past a tensor, which ends the process where the guard is there.
PROBE = "import ctypes, torch; ctypes.string_at(torch.empty(16).data_ptr() + 64, 1)"


def build() -> Path:
    """Compile guard.c and see that it works; returns the library."""
    BUILD.mkdir(parents=True, exist_ok=True)
    library = BUILD / "guard.so"
    compiler = os.environ.get("CC", "cc").split()
    source = str(ROOT / "tools" / "guard.c")
    subprocess.run([*compiler, "-O2", "-Wall", "-shared", "-fPIC", source, "-o", str(library)], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "SYMCONV_FAST_GUARD": "end"}
    if subprocess.run([sys.executable, "-c", PROBE], env=environment, check=False).returncode != -11:
        raise SystemExit("the guard does not notice a read past a tensor")
    return library


def run(library: Path, mode: str, isa: str, arguments: list[str]) -> int:
    """Check the problems in one mode and instruction set ("" for the best); returns the exit code."""
    environment = {
        "OMP_WAIT_POLICY": "passive", **os.environ,
        "LD_PRELOAD": str(library), "SYMCONV_FAST_GUARD": mode, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    if isa:
        environment["SYMCONV_FAST_ISA"] = isa
    print(
        f"blocks that {mode} at a page that cannot be touched, {isa or 'the best instruction set'}:",
        flush=True,
    )
    replay = ["-X", "faulthandler", "tests/replay.py", *arguments, "--special", "--trace", str(LAST)]
    return subprocess.run([sys.executable, *replay], cwd=ROOT, env=environment, check=False).returncode


def main() -> None:
    """Build and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("problems", nargs="?", default=os.environ.get("SYMCONV_FAST_FUZZ", "2000"))
    args, more = parser.parse_known_args()
    library = build()
    for isa in ("", "avx2", "baseline"):
        for mode in ("end", "begin"):
            LAST.write_text("(none was begun)")
            code = run(library, mode, isa, [args.problems, *more])
            if code:
                raise SystemExit(
                    f"exit code {code}; repeat it with: python tests/replay.py {LAST.read_text().strip()}"
                )


if __name__ == "__main__":
    main()
