"""What this process knows of kernels and candidates: known answers that were given, and times that were measured."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .. import settings
from .._version import __version__
from ..problem import Problem
from . import small

Way = tuple[str, str]
"""Backend and algorithm."""


class Kernel(NamedTuple):
    """What is proven or not: the kernels that an operator launches, on a model of device."""

    device: str
    backend: str
    algorithm: str
    op: str
    dtype: torch.dtype
    names: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.backend}/{self.algorithm} ({', '.join(self.names)}), {self.op} in {str(self.dtype)[6:]}"
        )


class Timed(NamedTuple):
    """Under which circumstances times were measured."""

    device: str
    problem: Problem
    op: str
    activation: str | None
    switches: tuple[object, ...]


_passed: set[tuple[Kernel, tuple[object, ...]]] = set()
_failed: dict[Kernel, str] = {}
_times: dict[Timed, dict[Way, float]] = {}
_MOST = 8192
_counts = [0, 0]


def changes() -> int:
    """Another number whenever something was learnt: choices that were made without it may be made anew."""
    return _counts[0]


def failures() -> int:
    """Another number whenever a kernel was disabled: what was chosen may be that one."""
    return _counts[1]


def forget() -> None:
    """For tests: as in a fresh process."""
    for known in (_passed, _failed, _times):
        known.clear()
    _counts[:] = [n + 1 for n in _counts]


@lru_cache(maxsize=64)
def model(device: torch.device) -> str:
    """The model of a device: what holds for one of them holds for others of that name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def switches(problem: Problem) -> tuple[object, ...]:
    """Values of torch's and this package's switches on which the times, or what can run, depend."""
    single = problem.dtype == torch.float32
    return (
        single and settings.tf32_allowed(),
        single and settings.winograd(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


# --- known answers ---------------------------------------------------------------------------------------------------


def is_ours(module: Any) -> bool:
    """Has the backend kernels of this package, which have to be proven? The others run torch's operators."""
    return hasattr(module, "kernels")


def is_measured(module: Any, device: torch.device) -> bool:
    """Were the backend's kernels checked and measured on this model of device?"""
    return bool(getattr(module, "measured", lambda device: False)(device))


def kernel(module: Any, problem: Problem, op: str, algorithm: str, device: torch.device) -> Kernel:
    """What would run, as it is known by; `can_run` has no objection."""
    names = tuple(module.kernels(problem, op, algorithm))
    return Kernel(model(device), module.NAME, algorithm, op, problem.dtype, names)


def verdict(found: Kernel, problem: Problem, activation: str | None = None) -> bool | None:
    """True where it passed on a problem with these features, False where it failed on any, else None."""
    if found in _failed:
        return False
    return True if (found, small.features(problem, activation)) in _passed else None


def error(found: Kernel) -> str | None:
    """Why a kernel failed."""
    return _failed.get(found)


def pass_(found: Kernel, problem: Problem, activation: str | None) -> None:
    """It gave the known answer."""
    _passed.add((found, small.features(problem, activation)))
    _counts[0] += 1


def fail(found: Kernel, problem: Problem, what: str) -> None:
    """Disable a kernel for the process, with one warning that says what to report."""
    if found in _failed:
        return
    _failed[found] = what
    _counts[:] = [n + 1 for n in _counts]
    warnings.warn(
        f"symconv_fast: a kernel is disabled in this process, since it failed its check on this device: {found}: "
        f"{what}. Layers run on the next candidate. Please report this with: symconv_fast {__version__}, "
        f"torch {torch.__version__}, {_platform()}, device {found.device}, {problem}",
        RuntimeWarning,
        stacklevel=2,
    )


def _platform() -> str:
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{toolkit}, cuDNN {torch.backends.cudnn.version() if torch.cuda.is_available() else None}"


# --- times -----------------------------------------------------------------------------------------------------------


def timed(problem: Problem, op: str, activation: str | None, device: torch.device) -> dict[Way, float] | None:
    """Seconds of the candidates of a problem that were measured, or None."""
    return _times.get(Timed(model(device), problem, op, activation, switches(problem)))


def keep(
    problem: Problem, op: str, activation: str | None, device: torch.device, seconds: dict[Way, float]
) -> None:
    """Keep what was measured, for the process."""
    if len(_times) >= _MOST:
        _times.clear()
    _times[Timed(model(device), problem, op, activation, switches(problem))] = seconds
    _counts[0] += 1
