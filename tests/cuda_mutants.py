# Kernels with a fault put into a copy of their sources, built for the stand-in: only what has changed is compiled.
"""`build` makes a module of everything as it is but for some instantiations of one family, from changed sources."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import cuda_host

# What is said of a fault: by the oracle, and by the stand-in.
WRONG = "values of .* are wrong|AssertionError"
ORDER = "without a barrier after the"
NOT_YET = "copy that was not waited for|read of what nobody wrote"
OUTSIDE = "outside of the registered buffers|of what no kernel wrote|of what the same launch writes"

SOURCES = cuda_host.ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Fault:
    """Text of a file of csrc/cuda that stands there once, and what is put in its place."""

    file: str
    old: str
    new: str

    @property
    def family(self) -> str:
        """The folder that is compiled again."""
        return self.file.split("/")[0]


@cache
def _clean() -> tuple[dict[str, list[str]], list[str]]:
    """Of the module as it is: the compilers by name, and the linker, once all of it is built."""
    cuda_host.module()
    target = cuda_host.cuda_build.HOST_TARGET
    plan = cuda_host.cuda_build.plan_for_host(SOURCES, target.parent)
    return dict(plan.commands), plan.link


def _changed(fault: Fault, to: Path) -> Path:
    """A copy of the family with the fault; all else is linked to."""
    to.mkdir()
    for path in SOURCES.iterdir():
        if path.name != fault.family:
            (to / path.name).symlink_to(path)
    (to / fault.family).mkdir()
    for path in (SOURCES / fault.family).iterdir():
        text = path.read_text()
        if path.name == Path(fault.file).name:
            assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} of {fault.old!r}"
            text = text.replace(fault.old, fault.new)
        (to / fault.family / path.name).write_text(text)
    return to


def build(fault: Fault, instances: tuple[str, ...], folder: Path) -> ModuleType:
    """The module with the fault in these instantiations, and in the launcher if the fault is in what it includes."""
    commands, link = _clean()
    sources = _changed(fault, folder / "sources")
    (family,) = (f for f in cuda_host.cuda_build.cuda_sources.families(SOURCES) if f.name == fault.family)
    chosen = [i for i in family.instances if i.name in instances]
    assert len(chosen) == len(instances), f"{fault.family} has not all of {instances}"
    kernels = folder / "kernels.cpp"
    texts = [f'#include "{family.name}/kernels.cuh"', *(i.text for i in chosen)]
    kernels.write_text("\n".join(texts) + "\n")
    objects = {name: command[-1] for name, command in commands.items()}
    like = commands[f"{family.name}/part1"]
    _compile(like, sources, kernels, folder / "kernels.o")
    launcher = f"{family.name}/{family.name}"
    if fault.file.endswith((".h", ".cu")) and not instances:
        objects[launcher] = str(folder / "launcher.o")
        _compile(commands[launcher], sources, sources / f"{launcher}.cu", folder / "launcher.o")
    target = folder / Path(cuda_host.cuda_build.HOST_TARGET).name
    # Instantiations are there twice then: of equal names the linker takes the first.
    subprocess.run([*link, str(folder / "kernels.o"), *objects.values(), "-o", str(target)], check=True)
    return _load(target, fault)


def _load(path: Path, fault: Fault) -> ModuleType:
    """Under a name of its own: pybind11 keeps modules by name. Its last part is that of the function that inits it."""
    name = f"{re.sub(r'[^a-z]', '_', repr(fault).lower())}.{cuda_host.cuda_build.HOST_MODULE}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    assert Path(str(loaded.__file__)) == path
    return loaded


def _compile(like: list[str], sources: Path, source: Path, target: Path) -> None:
    """As the build does, but quicker to compile."""
    flags = ["-O1" if flag == "-O2" else flag.replace(str(SOURCES), str(sources)) for flag in like]
    del flags[flags.index("-c") :]
    done = subprocess.run([*flags, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
