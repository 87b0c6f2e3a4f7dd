"""What this process knows of kernels and candidates: known answers that were given, and times that were measured."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .. import machine, native, settings
from .._version import __version__
from ..problem import Problem
from . import choices, modes, small

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
        torch.get_num_threads() if problem.device == "cpu" else None,
    )


# --- known answers ---------------------------------------------------------------------------------------------------


def is_ours(module: Any) -> bool:
    """Has the backend kernels of this package for a GPU? The others run torch's operators, or those of the CPU."""
    return hasattr(module, "kernels")


def is_measured(module: Any, device: torch.device) -> bool:
    """Were the backend's kernels checked and measured on this model of device?"""
    return bool(getattr(module, "measured", lambda device: False)(device))


def kernel(module: Any, problem: Problem, op: str, algorithm: str, device: torch.device) -> Kernel:
    """What would run, as it is known by; `can_run` has no objection."""
    names = tuple(module.kernels(problem, op, algorithm)) if is_ours(module) else _instructions()
    return Kernel(model(device), module.NAME, algorithm, op, problem.dtype, names)


def _instructions() -> tuple[str, ...]:
    """What tells the kernels of a CPU apart: the instructions that they use here."""
    return () if native.module is None else (native.module.isa(),)


def any_failed() -> bool:
    """Was any kernel disabled in this process?"""
    return bool(_failed)


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
        f"torch {torch.__version__}, {_platform(found.device)}, {problem}",
        RuntimeWarning,
        stacklevel=2,
    )


def _platform(device: str) -> str:
    if device == "cpu":
        return f"CPU {machine.cpu_name()}, {torch.get_num_threads()} threads"
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return f"{toolkit}, cuDNN {cudnn}, device {device}"


# --- times -----------------------------------------------------------------------------------------------------------


def timed(problem: Problem, op: str, activation: str | None, device: torch.device) -> dict[Way, float] | None:
    """Seconds of the candidates of a problem that were measured, or None."""
    key = _key(problem, op, activation, device)
    if key not in _times and modes.is_host(device.type):
        found = choices.recall(key)
        if found is not None:
            _times[key] = found
    return _times.get(key)


def keep(
    problem: Problem, op: str, activation: str | None, device: torch.device, seconds: dict[Way, float]
) -> None:
    """Keep what was measured for the process, and of a CPU where a folder is named for it."""
    if len(_times) >= _MOST:
        _times.clear()
    key = _key(problem, op, activation, device)
    _times[key] = seconds
    _counts[0] += 1
    if modes.is_host(device.type):
        choices.store(key, seconds)


def any_timed() -> bool:
    """Was anything measured, in this process or in one that kept it?"""
    return bool(_times) or choices.any_stored()


def _key(problem: Problem, op: str, activation: str | None, device: torch.device) -> Timed:
    """On a CPU an activation follows by itself, whatever runs."""
    activation = None if modes.is_host(device.type) else activation
    return Timed(model(device), problem, op, activation, switches(problem))
