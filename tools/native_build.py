# Compiles native modules, for setup.py and cuda_build.py: all files side by side, one quiet line each.
"""torch's own build prints a command of 700 characters for each file, or needs ninja. Here distutils and torch say what
the commands are, and threads run them. A file is compiled again where its command, its source, a header that it read or
what else it depends on (torch's version) has changed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

MEMORY_PER_JOB = 1 << 30  # the largest files need 0.8 GiB


class CompileError(Exception):
    """A compiler gave up; what it printed has been shown."""


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
    """Compilers at a time: MAX_JOBS, else as many as cores that this process may use, fewer where memory is short."""
    asked = os.environ.get("MAX_JOBS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = free_memory()
    return max(1, cores if memory is None else min(cores, memory // MEMORY_PER_JOB))


def install(compiler: Any) -> None:
    """Have the `compile` of a distutils compiler compile all its sources side by side."""

    def compile(sources: Iterable[str], **options: Any) -> list[str]:
        commands: list[list[str]] = []
        spawners = compiler.spawn, getattr(compiler, "call", None)
        compiler.spawn = compiler.call = lambda command, **_: commands.append([str(part) for part in command])
        try:  # distutils, and torch in it, only write down what they would run
            objects: list[str] = original(sources, **options)
        finally:
            compiler.spawn, compiler.call = spawners
        run([(source_of(command), command) for command in commands])
        return objects

    original: Callable[..., list[str]] = compiler.compile
    compiler.compile = compile


def source_of(command: list[str]) -> str:
    """The file that a command compiles."""
    return command[command.index("-o") - 1]


def cost(source: str) -> int:
    """The longest go first, so that none is left alone at the end: kernels, of many rows and large types."""
    name = Path(source).stem
    kernels = ("avx512_float", "avx512_double", "avx2", "baseline", "avx512", "kernels_")
    order = (*kernels, "joined", "counting")
    return next((len(order) - i for i, part in enumerate(order) if part in name), 0)


def run(
    commands: list[tuple[str, list[str]]],
    facts: str | None = None,
    shown: Callable[[list[str], str], str] = lambda command, text: text,
    rank: Callable[[str], float] = cost,
) -> None:
    """Run what is not up to date, and say so. The first failure, shown in full, ends it.

    Each command has a name that is printed. `facts` is what the objects depend on beside command and files, by default
    the version of torch; `shown` makes of what a compiler printed what is worth showing; the highest `rank` goes first.
    """
    facts = torch_version() if facts is None else facts
    todo = [(s, c) for s, c in commands if not is_current(c, facts)]
    todo.sort(key=lambda entry: -rank(entry[0]))
    jobs, begin = parallel_jobs(), time.monotonic()
    if todo:
        say(f"compiling {len(todo)} of {len(commands)} files, {jobs} at a time")
    failure = None
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_compile, command, facts): (source, command) for source, command in todo}
        for done, future in enumerate(as_completed(running), 1):
            if future.cancelled():
                continue
            code, seconds, text = future.result()
            source, command = running[future]
            say(f"[{done}/{len(todo)}] {source} {seconds:.0f} s")
            text = text if code else shown(command, text)
            if text:
                print(text, file=sys.stderr, flush=True)
            if code and failure is None:
                failure = CompileError(f"{source}: the compiler ended with code {code}")
                for waiting in running:
                    waiting.cancel()
    if failure is not None:  # what ran beside it has ended, and been shown: it will not be compiled again
        raise failure
    if todo:
        say(f"compiled in {time.monotonic() - begin:.0f} s; linking")


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def _compile(command: list[str], facts: str) -> tuple[int, float, str]:
    """Exit code, seconds, and all that the compiler printed."""
    note, dependencies = _notes(command)
    note.unlink(missing_ok=True)
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "-MMD", "-MF", str(dependencies)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        note.write_text(_signature(command, facts))
    return done.returncode, time.monotonic() - begin, done.stdout.strip()


def is_current(command: list[str], facts: str | None = None) -> bool:
    """Was the object made by this very command, after everything that it read was last changed?"""
    facts = torch_version() if facts is None else facts
    note, dependencies = _notes(command)
    target = Path(command[command.index("-o") + 1])
    try:
        made = target.stat().st_mtime
        rule = dependencies.read_text().replace("\\\n", " ").split(": ", 1)[1]
        read = [name.replace("\0", " ") for name in rule.replace("\\ ", "\0").split()]
        return note.read_text() == _signature(command, facts) and all(
            Path(f).stat().st_mtime <= made for f in read
        )
    except (OSError, IndexError):
        return False


def _signature(command: list[str], facts: str) -> str:
    """What an object depends on beside the files that it read."""
    return "\n".join([*command, facts])


def torch_version() -> str:
    """Which torch is installed: some installers give new headers old times."""
    try:
        return f"torch {importlib.metadata.version('torch')}"
    except importlib.metadata.PackageNotFoundError:
        return "no torch"


def _notes(command: list[str]) -> tuple[Path, Path]:
    """Beside the object: the command that made it, and what it read."""
    target = Path(command[command.index("-o") + 1])
    return target.with_suffix(".command"), target.with_suffix(".d")
