# Builds the optional native CPU module `symconv_fast._cpu`; everything else about the package is in pyproject.toml.
"""Build script of symconv_fast.

Environment:
    SYMCONV_FAST_NO_CPU=1   leave the native CPU module out: a pure Python install that runs on the reference backend.
    MAX_JOBS=N              compile N files at a time. By default as many as cores and free memory allow.
    CXX                     the C++ compiler.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext as SetuptoolsBuildExt

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit(
        "symconv_fast: setuptools is older than 70.1; upgrade it first: pip install 'setuptools>=70.1'"
    ) from None

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
import native_build  # noqa: E402

MODULE = "symconv_fast._cpu"
# Commands that end with a build: without torch they stop before anything is copied. A source distribution needs none.
BUILDING = {"build", "build_ext", "bdist", "bdist_wheel", "dist_info", "editable_wheel", "install", "develop"}

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
    program = next(iter(shlex.split(compiler)), "")
    if shutil.which(program) is None:
        return f"there is no C++ compiler ({program or 'CXX is empty, and nothing'} was not found)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h is missing (a package named python3-dev or python3-devel has it)"
    return None


def why_no_torch() -> str | None:
    """What stands in the way of importing torch, or None."""
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def build_command() -> type[SetuptoolsBuildExt]:
    """torch's build_ext, made optional: whatever fails, the Python package still installs."""
    from torch.utils.cpp_extension import BuildExtension

    class OptionalBuild(BuildExtension):
        """Compiles the native module; leaves it out, and says so, where that does not work."""

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options | {"use_ninja": False})

        def finalize_options(self) -> None:
            super().finalize_options()
            # setuptools compares times alone; native_build knows the commands and torch's version too.
            self.force = True

        def build_extensions(self) -> None:
            reason = why_not_compile()
            if reason is None:
                try:
                    super().build_extensions()
                # Compilers and build tools fail in many ways; none of them may stop the install.
                except Exception as error:
                    first_line = (str(error) or repr(error)).splitlines()[0]
                    reason = f"compiling it failed ({first_line})"
            if reason is not None:
                # What an earlier build left would be packed, and loaded, as if it were this one's.
                Path(self.get_ext_fullpath(MODULE)).unlink(missing_ok=True)
                self.extensions = []
                self.distribution.ext_modules = []
                say(
                    f"symconv_fast: installing without the native CPU module, because {reason}.\n"
                    "  Every layer works, on the reference backend, without the speed-up. Then build again."
                )

        def build_extension(self, extension: Extension) -> None:
            native_build.install(self.compiler)
            super().build_extension(extension)

    return OptionalBuild


class HonestWheel(bdist_wheel):
    """A wheel that is tagged by what was built: py3-none-any where the native module was left out."""

    def run(self) -> None:
        """Build first, since whether compiling works shows only then."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


def extensions() -> list[Extension]:
    """The native module as torch builds it; a bare description where torch is missing, for source distributions."""
    sources, headers = relative("*.cpp"), relative("*.h")
    if why_no_torch():
        return [Extension(MODULE, sources)]
    from torch.utils.cpp_extension import CppExtension

    flags, include = {"cxx": compile_flags()}, [str(ROOT / "csrc/cpu")]
    return [CppExtension(MODULE, sources, depends=headers, include_dirs=include, extra_compile_args=flags)]


def main() -> None:
    """Run setuptools."""
    common = {"license": "BSD-3-Clause", "verbose": 0}  # of every file that is copied nobody wants to read
    if not wanted():
        say("symconv_fast: pure Python, without the native CPU module; layers run on the reference backend.")
        setup(**common)
        return
    error = why_no_torch()
    if error is not None and BUILDING.intersection(sys.argv[1:]):
        raise SystemExit(NO_TORCH.format(error=error))
    commands: dict[str, type[Command]] = {"bdist_wheel": HonestWheel}
    if error is None:
        commands["build_ext"] = build_command()
    setup(**common, ext_modules=extensions(), cmdclass=commands)


if __name__ == "__main__":
    main()
