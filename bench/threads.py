# Pins the threads of OpenMP, and keeps memory that was freed. Must be imported before torch, because OpenMP reads its
# environment only once.
"""Settings of the process under which every number of this benchmark is measured."""

from __future__ import annotations

import ctypes
import os
import sys

# OMP_WAIT_POLICY stays the user's: "passive" helps on a busy machine, but waking threads adds 30 to 60 us to a small
# layer, ours and torch's alike, and that moves their ratio.
SETTINGS = {
    "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1)),
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
}

# torch's profiler, which watches memory and kernels here, logs every start and stop up to level 5.
QUIET = {"KINETO_LOG_LEVEL": "6"}


def pin() -> None:
    """Pin the threads; what is already set in the environment stays.

    Raises:
        RuntimeError: torch is loaded and the environment that it saw does not pin threads. Runs with threads that
            move between cores stall for milliseconds at a time, so such numbers are not worth printing.
    """
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if missing and "torch" in sys.modules:
        wanted = " ".join(f"{name}={value}" for name, value in missing.items())
        raise RuntimeError(f"torch was imported before its threads were pinned; start Python with {wanted}")
    os.environ.update(missing)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def keep_memory() -> None:
    """Have malloc keep what is freed, where it is glibc's.

    Otherwise large results go back to the system, or not, by what else lies on the heap, and come back page by page:
    3,000 faults for 12.8 MB, 0.4 or 2.8 ms for the same convolution of torch's in two runs. Allocators of training
    systems keep memory too.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


pin()
keep_memory()
