# Builds the optional native modules, `_cpu` and `_cuda`; everything else about the package is in pyproject.toml.
"""Build script of symconv_fast.

Environment:
    SYMCONV_FAST_NO_CPU=1   leave the native CPU module out: CPU tensors run on the reference backend.
    SYMCONV_FAST_NO_CUDA=1  leave the native CUDA module out. It is built where nvcc is found, whether there is a GPU or
                            not, and needs no torch.
    MAX_JOBS=N              compile N files at a time. By default as many as cores and free memory allow.
    CXX                     the C++ compiler of the CPU module.
    CUDA_HOME               where nvcc is, if it is neither on the PATH nor in /usr/local/cuda.
    TORCH_CUDA_ARCH_LIST    the GPUs that the CUDA module is for; by default the one that is here, else all.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable
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
import cuda_build  # noqa: E402
import native_build  # noqa: E402

MODULE = "symconv_fast._cpu"
# Kernels and operators, which programs without Python load too (docs/saving.md). The module is its face to Python.
LIBRARY = "symconv_fast.libsymconv_fast"
FACES = "csrc/cpu/python"
CUDA_MODULE = "symconv_fast._cuda"
# Commands that end with a build: without torch they stop before anything is copied. A source distribution needs none.
BUILDING = {"build", "build_ext", "bdist", "bdist_wheel", "dist_info", "editable_wheel", "install", "develop"}

NO_TORCH = """\
symconv_fast: torch cannot be imported while building ({error}).
  The native CPU module is compiled against the torch that you have. Install torch first, then run
      pip install --no-build-isolation .
  so that the build sees it; or set SYMCONV_FAST_NO_CPU=1 for a pure Python install on the reference backend."""


WITHOUT_CPU = "Every layer works, on the reference backend, without the speed-up. Then build again."
WITHOUT_CUDA = "Layers on a GPU run on the other backends. SYMCONV_FAST_NO_CUDA=1 asks for that."


def say(message: str) -> None:
    """One plain message that is not lost among compiler output."""
    print(f"\n{message}\n", file=sys.stderr, flush=True)


def wanted() -> bool:
    """Whether the native CPU module was asked for and its sources are there."""
    return os.environ.get("SYMCONV_FAST_NO_CPU", "0") in ("", "0") and any((ROOT / "csrc/cpu").rglob("*.cpp"))


def cuda_wanted() -> bool:
    """The same of the native CUDA module."""
    return os.environ.get("SYMCONV_FAST_NO_CUDA", "0") in ("", "0") and any(
        (ROOT / "csrc/cuda").glob("*.cpp")
    )


def relative(pattern: str) -> list[str]:
    """Paths below csrc/cpu, relative to this file as setuptools wants them."""
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc/cpu").rglob(pattern))


def compiled() -> list[str]:
    """Those sources that are compiled by themselves: some files include others, which read the same long headers."""
    sources = relative("*.cpp")
    parts: set[str] = set()
    for source in sources:
        text = (ROOT / source).read_text(encoding="utf-8")
        parts.update(f"csrc/cpu/{part}" for part in re.findall(r'^#include "(.+\.cpp)"$', text, re.MULTILINE))
    return [source for source in sources if source not in parts]


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


def optional(build_ext: type[SetuptoolsBuildExt]) -> type[SetuptoolsBuildExt]:
    """A build_ext, torch's or setuptools', made optional: whatever fails, the Python package still installs."""

    class OptionalBuild(build_ext):  # type: ignore[misc, valid-type]
        """Compiles the native modules; leaves one out, and says so, where that does not work."""

        def finalize_options(self) -> None:
            super().finalize_options()
            # setuptools compares times alone; native_build knows the commands and torch's version too.
            self.force = True

        def build_extensions(self) -> None:
            every, self.extensions = list(self.extensions), []
            native_build.install(self.compiler)
            cuda = [extension for extension in every if extension.name == CUDA_MODULE]
            cpu = [extension for extension in every if extension.name != CUDA_MODULE]
            if cpu:
                reason = self.why_not(cpu, super().build_extensions)
                self.leave_out(cpu, "CPU", reason, WITHOUT_CPU)
            if cuda:
                self.leave_out(cuda, "CUDA", self.why_no_cuda(), WITHOUT_CUDA)
            self.extensions = self.distribution.ext_modules

        def leave_out(
            self, extensions: list[Extension], name: str, reason: str | None, consequence: str
        ) -> None:
            """Go on without a module, and say so, where there is a reason."""
            if reason is None:
                return
            for extension in extensions:
                # What an earlier build left would be packed, and loaded, as if it were this one's.
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
                self.distribution.ext_modules.remove(extension)
            say(
                f"symconv_fast: installing without the native {name} module, because {reason}.\n  {consequence}"
            )

        def why_not(self, extensions: list[Extension], build: Callable[[], None]) -> str | None:
            """Compile the CPU module and its library; a reason why that does not work, or None."""
            reason = why_not_compile()
            if reason is None:
                self.extensions = extensions
                try:
                    build()
                # Compilers and build tools fail in many ways; none of them may stop the install.
                except Exception as error:
                    reason = f"compiling it failed ({first_line(error)})"
            return reason

        def why_no_cuda(self) -> str | None:
            """Compile the CUDA module; a reason why that does not work, or None."""
            try:
                cuda_build.build(Path(self.get_ext_fullpath(CUDA_MODULE)).resolve())
            except cuda_build.UnavailableError as error:
                return str(error)
            except Exception as error:
                return f"compiling it failed ({first_line(error)})"
            return None

        def build_extension(self, extension: Extension) -> None:
            if extension.name == MODULE:
                extension.extra_objects = [str(Path(self.get_ext_fullpath(LIBRARY)).resolve())]
            super().build_extension(extension)

        def get_ext_filename(self, name: str) -> str:
            """Where a module goes; the library has no name of a Python module, since it is none."""
            if name in (LIBRARY, LIBRARY.rpartition(".")[2]):
                return f"{name.replace('.', '/')}.so"
            filename: str = super().get_ext_filename(name)
            return filename

    return OptionalBuild


def build_command(torch: bool) -> type[SetuptoolsBuildExt]:
    """What builds the modules: torch's build_ext where there is a module for torch, else setuptools'."""
    if not torch:
        return optional(SetuptoolsBuildExt)
    from torch.utils.cpp_extension import BuildExtension

    class WithoutNinja(BuildExtension):
        """torch's, which then asks native_build's threads."""

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options | {"use_ninja": False})

    return optional(WithoutNinja)


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or repr(error)).splitlines()[0]


class HonestWheel(bdist_wheel):
    """A wheel that is tagged by what was built: py3-none-any where the native module was left out."""

    def run(self) -> None:
        """Build first, since whether compiling works shows only then."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


def extensions() -> list[Extension]:
    """The native modules; the CPU's as torch builds them, a bare description where torch is missing (for sdist)."""
    # setuptools only needs to know that there is a CUDA module: cuda_build has its own commands.
    found = [Extension(CUDA_MODULE, [])] if cuda_wanted() else []
    if not wanted():
        return found
    headers, sources = [*relative("*.h"), *relative("*.cpp")], compiled()
    faces = [source for source in sources if source.startswith(f"{FACES}/")]
    kernels = [source for source in sources if source not in faces]
    if why_no_torch():
        return [Extension(LIBRARY, kernels), Extension(MODULE, faces), *found]
    from torch.utils.cpp_extension import CppExtension

    def described(name: str, sources: list[str], link: str) -> Extension:
        extension = CppExtension(
            name,
            sources,
            depends=headers,
            include_dirs=[str(ROOT / "csrc/cpu")],
            # Torch's headers then read those of the operators that they call, and not of all that there are.
            define_macros=[("AT_PER_OPERATOR_HEADERS", None)],
            extra_compile_args={"cxx": compile_flags()},
            extra_link_args=[link],
        )
        if name == LIBRARY:
            extension.libraries.remove("torch_python")
        return extension

    soname = f"-Wl,-soname,{LIBRARY.rpartition('.')[2]}.so"
    return [described(LIBRARY, kernels, soname), described(MODULE, faces, "-Wl,-rpath,$ORIGIN"), *found]


def main() -> None:
    """Run setuptools."""
    common = {"license": "BSD-3-Clause", "verbose": 0}  # of every file that is copied nobody wants to read
    if not wanted():
        say("symconv_fast: without the native CPU module; on a CPU layers run on the reference backend.")
    error = why_no_torch() if wanted() else None
    if error is not None and BUILDING.intersection(sys.argv[1:]):
        raise SystemExit(NO_TORCH.format(error=error))
    commands: dict[str, type[Command]] = {"bdist_wheel": HonestWheel}
    if error is None:
        commands["build_ext"] = build_command(torch=wanted())
    setup(**common, ext_modules=extensions(), cmdclass=commands)


if __name__ == "__main__":
    main()
