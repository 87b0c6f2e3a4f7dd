"""Factors by row of the cost model: those of rows that were not measured, and the file that keeps them."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import machine, settings

FILE = "calibration.json"
WHAT = "calibration (python -m symconv_fast calibrate)"

_tables: list[Any] = []  # the tables as they were, once they are scaled
_calibrated: set[torch.dtype] = set()


def path() -> Path | None:
    """The file; None where files are switched off."""
    folder = machine.directory()
    return None if folder is None else folder / FILE


def apply(factors: Mapping[str, float], dtypes: Iterable[torch.dtype] = ()) -> None:
    """Estimate by the rates of the package times these factors, by row, from now on; none gives the package's own.

    A row without a factor gets the mean of its family, as `filled` has it. `dtypes` are those that count as measured.
    """
    from ..trial import rates
    from . import rows

    if not _tables:
        _tables.append(rows.Tables())
    _tables[0].scale(filled(factors))
    _calibrated.clear()
    _calibrated.update(dtypes)
    rates.why_none.cache_clear()
    settings.changed()


def calibrated() -> frozenset[torch.dtype]:
    """Types whose rates were measured on this machine."""
    return frozenset(_calibrated)


def filled(factors: Mapping[str, float]) -> dict[str, float]:
    """Factors of all rows: a row that was not measured has the geometric mean of the same algorithm in other passes.

    Else that of all native kernels in its type, or of torch's convolutions; 1 where nothing was measured of these.
    """
    from . import rows

    means: dict[str, list[float]] = defaultdict(list)
    for name, factor in factors.items():
        for family in families(name):
            means[family].append(math.log(factor))
    found = dict(factors)
    for name in rows.names():
        logs = next((means[family] for family in families(name) if family in means), [0.0])
        found.setdefault(name, math.exp(sum(logs) / len(logs)))
    return found


def families(name: str) -> tuple[str, str]:
    """What a row belongs to: the algorithm in its type, and all native kernels or all of torch's in that type."""
    from . import rows

    return name.partition("/")[0], f"{rows.dtype_of(name)} {'torch' if rows.is_torchs(name) else 'native'}"


def store(factors: Mapping[str, float], dtypes: Iterable[torch.dtype]) -> Path:
    """Write the file.

    Raises:
        RuntimeError: files are switched off.
    """
    where = path()
    if where is None:
        raise RuntimeError(f"{machine.ENV_CACHE} switches files off; give a folder, or leave it unset")
    content = {"dtypes": sorted(str(d)[6:] for d in dtypes), "factors": dict(sorted(factors.items()))}
    machine.write(where, content)
    return where


def use_stored() -> None:
    """Apply what the file of this machine says; called when the CPU backend is loaded."""
    where = path()
    content = machine.read(where, WHAT) if where is not None else None
    if content is None:
        return
    try:
        factors = {str(name): _positive(value) for name, value in content["factors"].items()}
        dtypes = [getattr(torch, name) for name in content["dtypes"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"symconv_fast: the {WHAT} in {where} is not used: {error}", stacklevel=2)
        return
    apply(factors, dtypes)


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"a factor is {number}")
    return number
