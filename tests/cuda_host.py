# The CUDA kernels on the host: the same sources, compiled with the stand-in for a GPU, as a Python module.
"""`module()` builds it if it is not up to date (build/cuda-host), and loads it once."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "tools") not in sys.path:
    sys.path.insert(0, str(ROOT / "tools"))

import cuda_build  # noqa: E402


@cache
def module() -> ModuleType:
    """The stand-in of symconv_fast._cuda; a test that wants it is skipped where there is no compiler."""
    try:
        return load(cuda_build.build_host())
    except cuda_build.UnavailableError as reason:
        pytest.skip(f"the CUDA kernels cannot be built for the host: {reason}")


def load(path: Path) -> ModuleType:
    """A module that `cuda_build.build_host` made. It has a name of its own: the real one may be loaded too."""
    spec = importlib.util.spec_from_file_location(cuda_build.HOST_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
