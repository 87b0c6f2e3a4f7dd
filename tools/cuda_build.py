# Builds the native CUDA module `_cuda`: with nvcc for GPUs, or with a C++ compiler on the stand-in, for tests.
"""python tools/cuda_build.py [--everywhere] [--strict] [--if-gpu] [--keep] [--table]

Every instantiation is a file of its own, compiled side by side and only if something that it reads has changed. The
architectures are those of TORCH_CUDA_ARCH_LIST; else the GPU's that is here; else, and with --everywhere, all from
Ampere on. The module needs no torch, and carries CUDA's runtime in itself: it can be loaded wherever Python can.

Environment: TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS; NVCC_CCBIN and NVCC_APPEND_FLAGS are nvcc's own; CXX is the
compiler of the stand-in; SYMCONV_FAST_NO_CUDA=1 has --if-gpu leave the module out. Exit codes: 0 built, or with
--if-gpu whatever came of it; 1 failed, or a fault with --strict; 3 not possible here."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # these tools are no package: they are also read while the package is installed
    sys.path.insert(0, str(HERE))

import cuda_nvcc  # noqa: E402
import cuda_report  # noqa: E402
import cuda_sources  # noqa: E402
import native_build  # noqa: E402
from cuda_nvcc import Architecture, Nvcc, UnavailableError  # noqa: E402

ROOT = HERE.parent
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
TARGET = ROOT / "symconv_fast" / f"_cuda{SUFFIX}"
NOT_HERE = 3
"""Exit code."""
WORKS = "; everything else works without it"
HOST_MODULE = "_cuda_host"
HOST_TARGET = ROOT / "build" / "cuda-host" / f"{HOST_MODULE}{SUFFIX}"


@dataclass(frozen=True)
class Plan:
    """All that a build runs: the compilers, each with a name, then the linker, which gets objects and the target."""

    commands: list[tuple[str, list[str]]]
    link: list[str]
    folder: Path
    facts: str
    """What the objects depend on beside their files."""

    def objects(self) -> list[Path]:
        """What the compilers write."""
        return [Path(command[-1]) for _, command in self.commands]

    def reports(self) -> dict[str, str]:
        """What ptxas said of each file, also if that was some builds ago."""
        logs = {name: Path(command[-1]).with_suffix(".log") for name, command in self.commands}
        return {name: log.read_text() for name, log in logs.items() if log.exists()}


def version() -> str:
    """The version of the package that the module belongs to."""
    text = (ROOT / "symconv_fast" / "_version.py").read_text()
    (number,) = re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)
    return str(number)


def pybind11() -> str:
    """The folder with the headers of pybind11: its package's, else the copy that torch has.

    Raises:
        UnavailableError: there are none.
    """
    places = {"pybind11": "include", "torch": "include"}
    for package, folder in places.items():
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            include = Path(found.origin).parent / folder
            if (include / "pybind11" / "pybind11.h").exists():
                return str(include)
    raise UnavailableError("the headers of pybind11 are missing (pip install pybind11)")


def python_headers() -> str:
    """The folder with Python.h.

    Raises:
        UnavailableError: it has none.
    """
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise UnavailableError("Python.h is missing (a package named python3-dev or python3-devel has it)")
    return include


def plan_for_gpus(nvcc: Nvcc, chosen: list[Architecture], sources: Path, folder: Path) -> Plan:
    """Commands of nvcc: a file for each instantiation and each launcher, and the binding.

    Raises:
        UnavailableError, SourceError: headers are missing; instances.txt is not understood.
    """
    generated = folder / "generated"
    hopper = [a for a in chosen if a.name == "9.0a"]
    every = cuda_sources.families(sources)
    built = [family for family in every if hopper or not family.hopper]
    without = [f.name for f in every if not hopper and any(i.hopper for i in f.instances)]
    cuda_sources.write_families(
        built,
        generated,
        version=version(),
        cuda_version=".".join(map(str, nvcc.version)),
        architectures=" ".join(map(str, chosen)),
        left_out=f"kernels for 9.0a of {', '.join(without)}" if without else "",
    )
    stubs = ["-static-global-template-stub=false"] if nvcc.weak_stubs else []
    base = [nvcc.path, "-std=c++17", "-DSYMCONV_CUDA", f"-DSYMCONV_HOPPER={len(hopper)}"]
    base += [f"-I{sources}", f"-I{generated}", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", *stubs]
    commands = []
    for family in built:
        cuda_sources.write_declarations(family, generated, bool(hopper))
        files = [(path.stem, path, family.hopper) for path in family.launchers]
        for instance in family.instances:
            if hopper or not instance.hopper:
                source = cuda_sources.instance_file(family, generated, (instance,), instance.name, ".cu")
                files.append((instance.name, source, instance.hopper))
        for name, source, only_hopper in files:
            flags = [a.generate for a in (hopper if only_hopper else chosen)]
            target = folder / f"{family.name}_{name}.o"
            commands.append(
                (f"{family.name}/{name}", [*base, "-O3", *flags, "-c", str(source), "-o", str(target)])
            )
    headers = ["-O2", f"-I{python_headers()}", "-isystem", pybind11(), "-DSYMCONV_MODULE=_cuda"]
    module = [str(sources / "module.cpp"), "-o", str(folder / "module.o")]
    commands.append(("module", [*base, *headers, "-c", *module]))
    # Nothing of CUDA's runtime is offered to others: torch brings its own.
    link = [nvcc.path, "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL,-s"]
    return Plan(commands, link, folder, f"nvcc {nvcc.version}")


def plan_for_host(sources: Path, folder: Path) -> Plan:
    """The same files as C++, several instantiations in one, against csrc/cuda/host in place of a GPU.

    Raises:
        UnavailableError, SourceError: there is no compiler, headers are missing; instances.txt is not understood.
    """
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise UnavailableError(f"there is no C++ compiler ({os.environ.get('CXX', 'g++')!r})")
    generated = folder / "generated"
    built = cuda_sources.families(sources)
    facts = {"version": version(), "cuda_version": "", "architectures": "host", "left_out": ""}
    cuda_sources.write_families(built, generated, **facts)
    base = [*compiler, "-std=c++20", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    base += ["-DSYMCONV_STAND_IN", "-DSYMCONV_HOPPER=1", f"-I{sources}", f"-I{generated}", "-x", "c++"]
    files = [(f"host/{path.stem}", path) for path in sorted((sources / "host").glob("*.cpp"))]
    for family in built:
        cuda_sources.write_declarations(family, generated, True)
        files += [(f"{family.name}/{path.stem}", path) for path in family.launchers]
        for i, some in enumerate(cuda_sources.chunks(family), 1):
            source = cuda_sources.instance_file(family, generated, some, f"part{i}", ".cpp")
            files.append((f"{family.name}/part{i}", source))
    commands = []
    for name, source in files:
        target = folder / f"{name.replace('/', '_')}.o"
        commands.append((name, [*base, "-O2", "-c", str(source), "-o", str(target)]))
    headers = ["-O1", f"-I{python_headers()}", "-isystem", pybind11(), f"-DSYMCONV_MODULE={HOST_MODULE}"]
    module = [str(sources / "module.cpp"), "-o", str(folder / "module.o")]
    commands.append(("module", [*base, *headers, "-c", *module]))
    return Plan(commands, [*compiler, "-shared", "-s"], folder, "host")


def execute(plan: Plan, target: Path) -> None:
    """Compile what has changed and link, if that is not done.

    Raises:
        CompileError: a compiler or the linker failed; what it printed has been shown.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    # The binding takes longest of all that is not a kernel; the rest goes in the order of instances.txt.
    native_build.run(plan.commands, plan.facts, _shown, lambda name: name == "module")
    objects = [str(path) for path in plan.objects()]
    note, line = plan.folder / "link.command", [*plan.link, *objects]
    text = "\n".join([*line, str(target)])
    newest = max(Path(name).stat().st_mtime for name in objects)
    if note.exists() and note.read_text() == text and target.exists() and target.stat().st_mtime >= newest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = plan.folder / target.name
    done = subprocess.run(
        [*line, "-o", str(scratch)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr, flush=True)
        raise native_build.CompileError(
            f"linking {target.name}: the linker ended with code {done.returncode}"
        )
    _place(scratch, target)
    note.write_text(text)


def _place(scratch: Path, target: Path) -> None:
    """Put the module where it belongs, in one step, also if it is in use."""
    if scratch != target:
        beside = target.with_name(f".{target.name}.part")
        shutil.copy(scratch, beside)
        beside.replace(target)


def _shown(command: list[str], text: str) -> str:
    """Keep the report beside the object; show what is not as it should be."""
    Path(command[-1]).with_suffix(".log").write_text(text)
    return cuda_report.shown(text)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build of a folder at a time: tests in several processes may want the same module."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        except ImportError:
            pass
        yield


@contextlib.contextmanager
def _no_stale(target: Path) -> Iterator[None]:
    """If a module cannot be built again, no earlier one must be loaded, packed or tested."""
    try:
        yield
    except (UnavailableError, native_build.CompileError, cuda_sources.SourceError):
        target.unlink(missing_ok=True)
        raise


def build(target: Path = TARGET, everywhere: bool = False, strict: bool = False) -> Plan:
    """Build the module for GPUs. What was left out is said; faults of kernels are said, or an error if `strict`.

    Raises:
        UnavailableError: it cannot be built here, with the reason as a clause.
        CompileError, SourceError: building it failed.
    """
    folder = ROOT / "build" / "cuda"
    with _no_stale(target), _alone(folder):
        nvcc = cuda_nvcc.find()
        chosen, left_out = cuda_nvcc.architectures(cuda_nvcc.asked(everywhere), nvcc)
        for sentence in left_out:
            native_build.say(f"left out: {sentence}")
        plan = plan_for_gpus(nvcc, chosen, ROOT / "csrc" / "cuda", folder)
        native_build.say(f"the CUDA module, for {' '.join(map(str, chosen))}, with {nvcc.path}")
        execute(plan, target)
        faults = cuda_report.faults(plan.reports().values())
        for fault in faults:
            print(
                f"{'fault' if strict else 'slower than it should be'}: {fault}", file=sys.stderr, flush=True
            )
        if faults and strict:
            raise native_build.CompileError(f"{len(faults)} faults of kernels")
    return plan


def build_host(target: Path = HOST_TARGET, sources: Path = ROOT / "csrc" / "cuda") -> Path:
    """Build the stand-in for tests, if it is not up to date.

    Raises:
        UnavailableError: it cannot be built here, with the reason as a clause.
        CompileError, SourceError: building it failed.
    """
    with _no_stale(target), _alone(target.parent):
        execute(plan_for_host(sources, target.parent), target)
    return target


def _has_nvcc() -> bool:
    try:
        cuda_nvcc.find()
    except UnavailableError:
        return False
    return True


def why_left_out() -> str | None:
    """Why a build that nobody asked for is not made, as a clause, or None."""
    if os.environ.get("SYMCONV_FAST_NO_CUDA", "0") not in ("", "0"):
        return "SYMCONV_FAST_NO_CUDA is set"
    return None if cuda_nvcc.capabilities() else "there is no GPU here"


def main(arguments: list[str] | None = None) -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--everywhere", action="store_true", help="for all GPUs, not for the one that is here"
    )
    parser.add_argument("--strict", action="store_true", help="spills and serialised products are errors")
    parser.add_argument("--if-gpu", action="store_true", help="only where a GPU is")
    parser.add_argument("--keep", action="store_true", help="without nvcc, keep a module that is there")
    parser.add_argument("--table", action="store_true", help="print registers and spills of every kernel")
    options = parser.parse_args(arguments)
    why = why_left_out() if options.if_gpu else None
    if why is not None:
        TARGET.unlink(missing_ok=True)
        native_build.say(f"the CUDA module is left out: {why} (make cuda builds it all the same)")
        return 0
    if options.keep and not _has_nvcc():
        native_build.say("there is no nvcc here: the CUDA module stays as it is")
        return NOT_HERE
    try:
        plan = build(everywhere=options.everywhere, strict=options.strict)
    except UnavailableError as error:
        native_build.say(f"the CUDA module is left out: {error}")
        return 0 if options.if_gpu else NOT_HERE
    except (native_build.CompileError, cuda_sources.SourceError) as error:
        native_build.say(f"the CUDA module was not built: {error}{WORKS * options.if_gpu}")
        return 0 if options.if_gpu else 1
    if options.table:
        native_build.say(cuda_report.table(plan.reports()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
