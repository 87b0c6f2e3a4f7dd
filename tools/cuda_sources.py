# The families of CUDA kernels, as csrc/cuda says them, and the files that the build writes from that.
"""A folder of csrc/cuda with `instances.txt` is a family. A line of that file is `NAME | ARCHITECTURES | statements`:
explicit instantiations, which are compiled by themselves, for `all` architectures or, with Hopper's instructions,
for `90a` alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HOST_CHUNK = 8
"""Instantiations in one file of the build for the host, which spends most of its time on headers."""


class SourceError(Exception):
    """A line of instances.txt that cannot be understood."""


@dataclass(frozen=True)
class Instance:
    """Explicit instantiations that are compiled together, and the line that names them."""

    name: str
    hopper: bool
    text: str
    line: int


@dataclass(frozen=True)
class Family:
    """Kernels of one kind: their instantiations and the files that launch them."""

    name: str
    folder: Path
    instances: tuple[Instance, ...]

    @property
    def launchers(self) -> list[Path]:
        """Files of host code, which choose and launch."""
        return sorted(self.folder.glob("*.cu"))

    @property
    def hopper(self) -> bool:
        """Whether all of it is for 9.0a alone."""
        return all(instance.hopper for instance in self.instances)

    @property
    def params(self) -> str:
        """The C++ name of its parameters."""
        return f"{self.name.capitalize()}Params"


def families(sources: Path) -> list[Family]:
    """Every family below csrc/cuda, by name."""
    return [read(path) for path in sorted(sources.glob("*/instances.txt"))]


def read(path: Path) -> Family:
    """The family of an instances.txt.

    Raises:
        SourceError: it has no instantiation, or a line is not understood; file and line are named.
    """
    instances: list[Instance] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}:{number}"
        parts = [part.strip() for part in line.split("|", 2)]
        if len(parts) != 3:
            raise SourceError(f"{where}: a line is NAME | all or 90a | explicit instantiations")
        name, architectures, text = parts
        if not re.fullmatch(r"\w+", name) or name in (instance.name for instance in instances):
            raise SourceError(f"{where}: {name!r} is not a name, or stands there twice")
        if architectures not in ("all", "90a"):
            raise SourceError(f"{where}: architectures are 'all' or '90a', not {architectures!r}")
        if not text.startswith("template ") or not text.endswith(";"):
            raise SourceError(f"{where}: an explicit instantiation begins with 'template' and ends with ';'")
        instances.append(Instance(name, architectures == "90a", text, number))
    if not instances:
        raise SourceError(f"{path}: there is no instantiation in it")
    return Family(path.parent.name, path.parent, tuple(instances))


def write(path: Path, text: str) -> Path:
    """Write a file, unless it already has that text: its time then stays."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def write_declarations(family: Family, generated: Path, hopper: bool) -> None:
    """`FAMILY/instances.h`: what the launcher takes from other files, so that it compiles no kernel itself."""
    lines = [f"// The instantiations of {family.name}, which are compiled elsewhere.", "#pragma once"]
    for instance in family.instances:
        if hopper or not instance.hopper:
            lines += [f"extern {s.strip()};" for s in statements(instance.text)]
    write(generated / family.name / "instances.h", "\n".join(lines) + "\n")


def statements(text: str) -> list[str]:
    """The explicit instantiations of a line, without their semicolons."""
    return [part for part in text.split(";") if part.strip()]


def instance_file(
    family: Family, generated: Path, instances: tuple[Instance, ...], name: str, end: str
) -> Path:
    """A file that compiles some instantiations; errors in one name its line of instances.txt."""
    lines = [f"// Instantiations of {family.name}.", f'#include "{family.name}/kernels.cuh"']
    for instance in instances:
        lines += [f'#line {instance.line} "{family.folder / "instances.txt"}"', instance.text]
    return write(generated / f"{family.name}_{name}{end}", "\n".join(lines) + "\n")


def chunks(family: Family) -> list[tuple[Instance, ...]]:
    """The instantiations in groups, for the host."""
    every = family.instances
    return [every[i : i + HOST_CHUNK] for i in range(0, len(every), HOST_CHUNK)]


def write_families(built: list[Family], generated: Path, **facts: str) -> Path:
    """`families.h`, which the binding reads: parameters of every family, and facts as macros of text."""
    lines = ["// The families that this build has, and facts about it.", "#pragma once"]
    lines += [f'#include "{family.name}/params.h"' for family in built]
    lines += [f'#define SYMCONV_{name.upper()} "{text}"' for name, text in facts.items()]
    rows = [f"F({family.name}, {family.params}, {family.name.upper()}_FIELDS)" for family in built]
    lines.append("#define SYMCONV_FAMILIES(F) " + " ".join(rows))
    return write(generated / "families.h", "\n".join(lines) + "\n")
