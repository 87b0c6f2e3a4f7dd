# Builds the native CPU module with AddressSanitizer and UBSan and runs the fuzz problems on it.
"""python tools/sanitize.py [number of problems]        (default: SYMCONV_FAST_FUZZ, else 2000)

Everything lands in build/sanitize. Any finding of a sanitizer, and any wrong number, ends with exit code 1. Fresh
memory is filled with 0xff bytes (NaN), so a read of memory that was never written shows in the numbers. Linux, with GCC
or Clang.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
COMPILE = [*FLAGS, "-fno-omit-frame-pointer", "-O1", "-g1", "-Wall", "-fvisibility=hidden", "-fopenmp"]
# Checks by calls, not in place: the unrolled kernels take two minutes to compile and not more than ten.
CALLS = "asan-instrumentation-with-call-threshold=0"
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


def build() -> Path:
    """Compile the package into build/sanitize/lib with setup.py's own sources and macros; returns that folder."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    import setup as recipe

    version = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True).stdout
    calls = ["-mllvm", f"-{CALLS}"] if "clang" in version else ["--param", CALLS]
    recipe.compile_flags = lambda: [*COMPILE, *calls]
    os.environ["LDFLAGS"] = " ".join(FLAGS)
    library = BUILD / "lib"
    for old in library.glob("symconv_fast/_cpu*.so"):
        old.unlink()  # a build that fails must not leave an old module to be tested
    sys.argv = ["setup.py", "-q", "build", "--build-base", str(BUILD), "--build-lib", str(library)]
    recipe.main()
    built = list(library.glob("symconv_fast/_cpu*.so"))
    if not built or b"__asan_load" not in built[0].read_bytes():
        raise SystemExit("the native CPU module could not be compiled with the sanitizers")
    return library


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
    problems = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SYMCONV_FAST_FUZZ", "2000")
    library = build()
    options = OPTIONS["ASAN_OPTIONS"] + ":exitcode=77:log_path=/dev/null"
    if run(["-c", PROBE], library, ASAN_OPTIONS=options) != 77:
        raise SystemExit("the sanitizer let a bad write pass: it is not active")
    begin = time.monotonic()
    code = run([str(ROOT / "tests" / "replay.py"), problems, "--special"], library)
    seconds = time.monotonic() - begin
    print(f"sanitizers: {'silent' if code == 0 else 'FOUND SOMETHING, see above'} ({seconds:.0f} s)")
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
