"""Which machine this is, and the files in which what was measured on it is kept."""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import native
from ._version import __version__

ENV_CACHE = "SYMCONV_FAST_CACHE"
OFF = ("0", "off", "false", "no")


def directory() -> Path | None:
    """Where the files lie: the folder that the environment names, else one in the user's cache; None if switched off.

    The user's cache is what the system has for it: XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS,
    LOCALAPPDATA on Windows.
    """
    named = os.environ.get(ENV_CACHE, "").strip()
    if named.lower() in OFF:
        return None
    if named:
        return Path(named).expanduser()
    home = Path(os.path.expanduser("~"))
    system = {
        "darwin": home / "Library" / "Caches",
        "win32": Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"),
    }
    return (
        system.get(sys.platform, Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")) / "symconv_fast"
    )


def is_directory_named() -> bool:
    """Does the environment name a folder? Then choices are kept there too, which no process does unasked."""
    named = os.environ.get(ENV_CACHE, "").strip()
    return bool(named) and named.lower() not in OFF


@cache
def identity() -> dict[str, str]:
    """What times measured here depend on, beside the problem: this package, torch, the CPU and its instructions."""
    return {
        "symconv_fast": __version__,
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "instructions": native.module.isa() if native.module is not None else "none",
        "torch's instructions": torch.backends.cpu.get_cpu_capability(),
    }


@cache
def cpu_name() -> str:
    """The model of the CPU, with the numbers of family, model and stepping where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [facts[name] for name in ("cpu family", "model", "stepping") if name in facts]
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def read(path: Path, what: str) -> Any | None:
    """What `write` put into a file; None where there is none, or, with one warning, where it is of another machine.

    `what` names it in the warning.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        theirs, content = stored["identity"], stored["content"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _warn_of(path, what, f"it cannot be read ({type(error).__name__}: {error})")
        return None
    ours = identity()
    if theirs == ours:
        return content
    other = theirs if isinstance(theirs, dict) else {}
    unlike = [
        f"{name} {other.get(name)!r}, here {ours[name]!r}" for name in ours if other.get(name) != ours[name]
    ]
    _warn_of(path, what, f"it is for another installation or machine: {'; '.join(unlike)}")
    return None


def write(path: Path, content: Any) -> None:
    """Store what `read` gives back on this machine; whoever reads meanwhile sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"identity": identity(), "content": content}, indent=1), encoding="utf-8")
    partial.replace(path)


def _warn_of(path: Path, what: str, why: str) -> None:
    warnings.warn(f"symconv_fast: the {what} in {path} is not used: {why}", stacklevel=4)
