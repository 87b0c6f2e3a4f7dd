"""Which CPUs have rates: where there are none, estimates are guesses, and candidates are timed."""

from __future__ import annotations

from functools import cache

import torch


@cache
def why_none(dtype: torch.dtype) -> str | None:
    """Why there are no rates for a type on this CPU, as a clause, or None: measured on its kind, or calibrated."""
    from .. import calibration  # with the rates of CPUs, which take 20 ms to import
    from ..backends import torch_conv
    from ..backends.cpu import rates

    if dtype in calibration.calibrated():
        return None
    unknown = [v for v in (rates.capability(), rates.torch_capability()) if v not in rates.RATES]
    if unknown:
        return f"nothing was measured with {unknown[0]} vectors"
    known = any(name.startswith("bfloat16 tiles torch") for name in rates.table(rates.RATES, "torch"))
    if rates.in_tiles(dtype, "torch") and not known:
        return "nothing was measured of bfloat16 in AMX tiles"
    if dtype == torch.float16 and torch_conv.multiplies(torch.float16):
        return "nothing was measured of torch's products in float16"
    return None
