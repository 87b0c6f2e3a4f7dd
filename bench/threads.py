# Pins the threads of OpenMP. Must be imported before torch, because OpenMP reads its environment only once.
"""Thread settings under which every number of this benchmark is measured."""

from __future__ import annotations

import os
import sys

# OMP_WAIT_POLICY stays the user's: "passive" helps on a busy machine, but waking threads adds 30 to 60 us to a small
# layer, ours and torch's alike, and that moves their ratio.
SETTINGS = {
    "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1)),
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
}


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


pin()
