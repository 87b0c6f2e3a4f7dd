# Builds the native CPU module with AddressSanitizer and UBSan and runs the fuzz problems on it.
"""python tools/sanitize.py [problems [first]] [--isa avx2] [--dtypes float,half] [arguments of tests/replay.py]

The number of problems is SYMCONV_FAST_FUZZ by default, else 2000; "--kernels --turn own" leaves most repetitions out.
Everything lands in build/sanitize. Any finding of a sanitizer, and any wrong number, ends with exit code 1. Fresh
memory is filled with 0xff bytes (NaN), so a read of memory that was never written shows in the numbers. Linux, with GCC
or Clang.

Kernels are compiled in one instruction set, and, to save minutes, in some of their dtypes. Those left out, and what
touches no memory of tensors (the bindings and the operators: what includes torch/csrc), are linked as the ordinary
build compiled them, which goes first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
# Python's own flags have -fwrapv, under which no sum overflows.
COMPILE = [
    *FLAGS,
    "-fno-wrapv",
    "-fno-omit-frame-pointer",
    "-O1",
    "-g1",
    "-Wall",
    "-fvisibility=hidden",
    "-fopenmp",
]
# Checks by calls, not in place, where unrolled kernels take ten minutes to compile.
CALLS = "asan-instrumentation-with-call-threshold=0"
# Words in the names of files with kernels of one instruction set, with what SYMCONV_FAST_ISA says for it, and dtype.
SETS = {"avx512": "avx512_bf16", "avx2": "avx2", "baseline": "baseline", "amx": ""}
DTYPES = {"float", "double", "half", "bfloat16"}
# Nothing is recovered, so the first finding stops the run; what Python itself never frees is no finding.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "OMP_WAIT_POLICY": "passive",
}
# Writes past a block: nobody notices without the sanitizer, so its exit code tells whether it is there.
PROBE = (
    "import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p; "
    "c.memset(ctypes.c_void_p(c.malloc(ctypes.c_size_t(8))), 0, ctypes.c_size_t(16))"
)


def build(isa: str, dtypes: list[str]) -> Path:
    """Compile the package into build/sanitize/lib with setup.py's own sources and macros; returns that folder."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    os.environ["SYMCONV_FAST_NO_CUDA"] = "1"
    import setup as recipe

    version = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True).stdout
    calls = ["-mllvm", f"-{CALLS}"] if "clang" in version else ["--param", CALLS]
    recipe.compile_flags = lambda: [*COMPILE, *calls]
    run = recipe.native_build.run
    recipe.native_build.run = lambda commands: run(checked(commands, isa, dtypes))
    os.environ["LDFLAGS"] = " ".join(FLAGS)
    library = BUILD / "lib"
    shutil.rmtree(library, ignore_errors=True)  # a build that fails must not leave an old module to be tested
    sys.argv = ["setup.py", "-q", "build", "--build-base", str(BUILD), "--build-lib", str(library)]
    recipe.main()
    built = list(library.glob("symconv_fast/libsymconv_fast.so"))
    if not built or b"__asan_load" not in built[0].read_bytes():
        raise SystemExit("the native CPU module could not be compiled with the sanitizers")
    return library


def checked(
    commands: list[tuple[str, list[str]]], isa: str, dtypes: list[str]
) -> list[tuple[str, list[str]]]:
    """The commands of what is compiled with the sanitizers; the other objects are copied from the ordinary build."""
    import native_build

    found = []
    for source, command in commands:
        target = Path(command[command.index("-o") + 1])
        ordinary = ROOT / "build" / target.resolve().relative_to(BUILD)
        made = ordinary.with_suffix(".command")
        if not made.exists() or not native_build.is_current(made.read_text().splitlines()[:-1]):
            raise SystemExit(f"{ordinary} is missing or old: make build goes first")
        if is_checked(source, ordinary.with_suffix(".d").read_text(), isa, dtypes):
            found.append((source, command))
        else:
            target.with_suffix(".command").unlink(missing_ok=True)
            shutil.copy(ordinary, target)
    return found


def is_checked(source: str, headers: str, isa: str, dtypes: list[str]) -> bool:
    """Is a file compiled with the sanitizers? Kernels are, of one instruction set, and all but the bindings."""
    words = Path(source).stem.split("_")
    if SETS.keys().isdisjoint(words):
        return "/torch/csrc/" not in headers
    named = DTYPES.intersection(words)
    return isa in words and (not named or not named.isdisjoint(dtypes))


def runtime() -> str:
    """The sanitizer's library, to be loaded before everything else, and then the C++ library, whose throw it wraps."""
    return f"{_library('libasan.so', 'libclang_rt.asan-x86_64.so', 'libclang_rt.asan.so')} {_library('libstdc++.so.6')}"


def _library(*names: str) -> str:
    """Path of the first of these that the compiler knows."""
    for name in names:
        path = subprocess.run(
            [*_compiler(), f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        if Path(path).is_absolute() and Path(path).exists():
            return str(Path(path).resolve())
    raise SystemExit(f"{_compiler()[0]} has no {names[0]}")


def _compiler() -> list[str]:
    return os.environ.get("CXX", "c++").split()


def run(arguments: list[str], library: Path, **more: str) -> int:
    """Exit code of a Python with the sanitizer loaded and the package that was built for it."""
    env = os.environ | OPTIONS | {"LD_PRELOAD": runtime(), "PYTHONPATH": str(library)} | more
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, check=False).returncode


def main() -> int:
    """Build, make sure that a bad write is caught, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("problems", nargs="?", default=os.environ.get("SYMCONV_FAST_FUZZ", "2000"))
    parser.add_argument("--isa", choices=SETS, default="avx2", help="the instruction set of the kernels")
    parser.add_argument(
        "--dtypes", default=",".join(sorted(DTYPES)), help="those of the kernels, with commas"
    )
    args, more = parser.parse_known_args()
    library = build(args.isa, args.dtypes.split(","))
    options = OPTIONS["ASAN_OPTIONS"] + ":exitcode=77:log_path=/dev/null"
    if run(["-c", PROBE], library, ASAN_OPTIONS=options) != 77:
        raise SystemExit("the sanitizer let a bad write pass: it is not active")
    begin = time.monotonic()
    replay = [str(ROOT / "tests" / "replay.py"), args.problems, *more, "--special"]
    code = run(replay, library, SYMCONV_FAST_ISA=SETS[args.isa])
    seconds = time.monotonic() - begin
    print(f"sanitizers: {'silent' if code == 0 else 'FOUND SOMETHING, see above'} ({seconds:.0f} s)")
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
