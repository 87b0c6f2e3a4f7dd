"""Packages that only some functions need: imported where they are used, missed in one sentence."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, purpose: str, *, extra: str = "analysis") -> Any:
    """The module of an optional package, such as need("rustworkx", "matching filters into orbits").

    Raises:
        ModuleNotFoundError: it is not installed; the message names what needs it and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs the package {package}: pip install {package} (all that is optional is the extra "
            f"[{extra}] of this package)",
            name=package,
        ) from None
