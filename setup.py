# Builds the optional native CPU module `symconv_fast._cpu`; everything else about the package is in pyproject.toml.
"""Build script of symconv_fast.

Environment:
    SYMCONV_FAST_NO_CPU=1   leave the native CPU module out: a pure Python install that runs on the reference backend.
    MAX_JOBS=N              compile N files at a time. By default as many as cores and free memory allow.
    CXX                     the C++ compiler.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as SetuptoolsBuildExt

ROOT = Path(__file__).resolve().parent
MODULE = "symconv_fast._cpu"
MEMORY_PER_JOB = 2 << 30  # one file that includes torch's headers needs 1 to 1.5 GiB to compile

NO_TORCH = """\
symconv_fast: torch cannot be imported while building ({error}).
  The native CPU module is compiled against the torch that you have. Install torch first, then run
      pip install --no-build-isolation .
  so that the build sees it; or set SYMCONV_FAST_NO_CPU=1 for a pure Python install on the reference backend."""


def say(message: str) -> None:
    """One plain message that is not lost among compiler output."""
    print(f"\n{message}\n", file=sys.stderr, flush=True)


def wanted() -> bool:
    """Whether the native CPU module was asked for and its sources are there."""
    return os.environ.get("SYMCONV_FAST_NO_CPU", "0") in ("", "0") and any((ROOT / "csrc/cpu").glob("*.cpp"))


def relative(pattern: str) -> list[str]:
    """Paths below csrc/cpu, relative to this file as setuptools wants them."""
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc/cpu").glob(pattern))


def free_memory() -> int | None:
    """Bytes of memory that new processes may use, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def parallel_jobs() -> int:
    """Number of compilers to run at a time: as many as cores, fewer where memory is short."""
    jobs = os.cpu_count() or 1
    memory = free_memory()
    return max(1, jobs if memory is None else min(jobs, memory // MEMORY_PER_JOB))


def compile_flags() -> list[str]:
    """Flags without -march=native and -ffast-math: what is built here must run, with the same numbers, elsewhere."""
    flags = ["-O3", "-g0", "-Wall", "-fvisibility=hidden"]
    if sys.platform.startswith("linux"):
        flags.append(
            "-fopenmp"
        )  # when compiling only: at load time torch's own OpenMP runtime resolves the calls
    return flags


def why_not_compile() -> str | None:
    """A reason why compiling cannot work on this machine, or None."""
    if sys.platform == "win32":
        return "its sources are written for GCC and Clang, whose vector types MSVC does not have"
    from torch.utils import cpp_extension as torch_build

    compiler = torch_build.get_cxx_compiler()
    if shutil.which(compiler.split()[0]) is None:
        return f"there is no C++ compiler ({compiler} was not found)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h is missing (a package named python3-dev or python3-devel has it)"
    return None


def build_command() -> type[SetuptoolsBuildExt]:
    """torch's build_ext, made optional: whatever fails, the Python package still installs."""
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError as error:
        text = NO_TORCH.format(error=error)

        class NoTorch(SetuptoolsBuildExt):
            """Stops with one message, and only when something is really to be built."""

            def run(self) -> None:
                raise SystemExit(text)

        return NoTorch

    class OptionalBuild(BuildExtension):
        """Compiles the native module; leaves it out, and says so, where that does not work."""

        def build_extensions(self) -> None:
            os.environ.setdefault("MAX_JOBS", str(parallel_jobs()))
            reason = why_not_compile()
            if reason is None:
                try:
                    super().build_extensions()
                # Compilers and build tools fail in many ways; none of them may stop the install.
                except Exception as error:
                    first_line = (str(error) or repr(error)).splitlines()[0]
                    reason = f"compiling it failed ({first_line})"
            if reason is not None:
                self.extensions = []
                say(
                    f"symconv_fast: installing without the native CPU module, because {reason}.\n"
                    "  Every layer works, on the reference backend, without the speed-up. Then build again."
                )

    return OptionalBuild


def extensions() -> list[Extension]:
    """The native module as torch builds it; a bare description where torch is missing, to fail with a message."""
    sources, headers = relative("*.cpp"), relative("*.h")
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        return [Extension(MODULE, sources)]
    flags = {"cxx": compile_flags()}
    return [
        CppExtension(
            MODULE, sources, depends=headers, include_dirs=[str(ROOT / "csrc/cpu")], extra_compile_args=flags
        )
    ]


def main() -> None:
    """Run setuptools."""
    if not wanted():
        say("symconv_fast: pure Python, without the native CPU module; layers run on the reference backend.")
        setup(license="BSD-3-Clause")
        return
    setup(license="BSD-3-Clause", ext_modules=extensions(), cmdclass={"build_ext": build_command()})


if __name__ == "__main__":
    main()
