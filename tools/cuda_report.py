# What ptxas says of each kernel: registers, spills, and wgmma that it serialises.
"""`kernels` and `faults` of the text that nvcc prints with -Xptxas=-v, and `shown`, what a user should see of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Kernel:
    """A kernel as compiled for one architecture."""

    name: str
    arch: str
    registers: int = 0
    spills: int = 0  # bytes stored and loaded
    stack: int = 0  # bytes


def kernels(text: str) -> list[Kernel]:
    """Every kernel that a report names, in its order."""
    found: list[Kernel] = []
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line)
        if entry:
            found.append(Kernel(entry[1], entry[2]))
        elif found:
            stack = re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
            )
            if stack:
                found[-1].stack, found[-1].spills = int(stack[1]), int(stack[2]) + int(stack[3])
            used = re.search(r"Used (\d+) registers", line)
            if used:
                found[-1].registers = int(used[1])
    return found


def faults(reports: Iterable[str]) -> list[str]:
    """Spills, serialised wgmma, and kernels that more than one file compiles, a line each."""
    reports = list(reports)
    lines = [
        line.strip() for text in reports for line in text.splitlines() if re.search(r"\(C75\d\d\)", line)
    ]
    every = [kernel for text in reports for kernel in kernels(text)]
    lines += [f"{k.name} ({k.arch}): {k.spills} bytes are spilled" for k in every if k.spills]
    times = Counter((kernel.name, kernel.arch) for kernel in every)
    lines += [f"{name} ({arch}): compiled by {n} files" for (name, arch), n in times.items() if n > 1]
    return lines


def shown(text: str) -> str:
    """A compiler's text without what ptxas says of kernels that are as they should be."""
    quiet = r"ptxas info\b(?!.*C75)|\s+\d+ bytes stack frame, 0 bytes spill stores, 0 bytes spill loads$|\s*$"
    return "\n".join(line for line in text.splitlines() if not re.match(quiet, line))


def table(reports: dict[str, str]) -> str:
    """Registers, stack and spills of every kernel, by the file that compiles it."""
    rows = [f"{'file':32} {'arch':8} {'registers':>9} {'stack':>6} {'spills':>6}"]
    for name, text in reports.items():
        rows += [f"{name:32} {k.arch:8} {k.registers:9} {k.stack:6} {k.spills:6}" for k in kernels(text)]
    return "\n".join(rows)
