"""Native CPU kernels: the parity fold or the scatter forward, the gather-sum backward, multiplied once.

What a pass does is decided by `_cpu.select` (csrc/cpu/selection/); here are its rates, and the way to its tensors.
"""

from __future__ import annotations

from ... import native

if native.module is not None:
    from .backend import *  # noqa: F403  (the names in its __all__)


def missing() -> str | None:
    """Why no problem can run here in this installation, or None."""
    return native.missing()
