"""Times of candidates that outlive the process: lines of a file for this machine, where a folder is named for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from .. import machine

Way = tuple[str, str]


def store(key: object, seconds: Mapping[Way, float]) -> None:
    """Add a line; a folder that cannot be written to keeps nothing."""
    path = _path()
    if path is None:
        return
    found = {"/".join(way): value for way, value in seconds.items()}
    _stored()[repr(key)] = dict(seconds)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # one write: lines of several processes do not mix
            file.write(json.dumps({"key": repr(key), "seconds": found}) + "\n")
    except OSError:
        return


def recall(key: object) -> dict[Way, float] | None:
    """What was stored last of a problem under the same circumstances on this machine, or None."""
    return _stored().get(repr(key)) if _path() is not None else None


def any_stored() -> bool:
    """Is there anything to recall?"""
    return _path() is not None and bool(_stored())


def forget() -> None:
    """For tests: read the file again."""
    _stored.cache_clear()


def _path() -> Path | None:
    """The file of this installation on this machine: another one has another file."""
    folder = machine.directory() if machine.is_directory_named() else None
    if folder is None:
        return None
    digest = hashlib.sha256(json.dumps(machine.identity(), sort_keys=True).encode()).hexdigest()
    return folder / f"choices-{digest[:16]}.jsonl"


@cache
def _stored() -> dict[str, dict[Way, float]]:
    path = _path()
    found: dict[str, dict[Way, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None else []
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
            found[row["key"]] = {tuple(way.split("/", 1)): float(s) for way, s in row["seconds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line that was cut off
    return found
