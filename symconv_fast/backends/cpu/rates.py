"""Rates of the CPU cost model, and seconds by them: counted work times nanoseconds, of which there are three tables.

rates.csv has nanoseconds a unit: a row for the vectors of a CPU and a kind of work, a column for each unit that any
kind has (selection/select.h of csrc/cpu says what they count). An empty cell is a unit that costs nothing, or that
was not seen. CPUs of one maker can have rows of their own ("AVX512 Intel"); kinds that are not among them have those
of the vectors. factors.csv is for 16-bit types without rates of their own: what the threads share, over that of
float32, and nanoseconds of a call beside those of float32. `python -m bench.fit_cost` writes both. depthwise.csv is a
table by hand.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ... import native

Rates = dict[str, dict[str, dict[str, float]]]
Factors = dict[str, dict[str, tuple[float, float]]]

RATES_FILE = Path(__file__).with_name("rates.csv")
FACTORS_FILE = Path(__file__).with_name("factors.csv")
DEPTHWISE_FILE = Path(__file__).with_name("depthwise.csv")
_KEYS = ("vectors", "kind")


# --- whose vectors -------------------------------------------------------------------------------------------------

_CAPABILITIES = {
    "amx_bf16": "AVX512", "avx512_bf16": "AVX512", "avx512": "AVX512", "avx2": "AVX2", "baseline": "DEFAULT",
}  # fmt: skip
_PAIRS = ("avx512_bf16", "amx_bf16")  # instructions that multiply bfloat16
_NEAREST = "AVX2"  # to a capability that was not measured
_OF_MAKERS = ("AVX512 Intel",)  # that have rows beside those of the vectors alone, which are of AMD

# Of the native kernels (SYMCONV_FAST_ISA lowers them), and of torch's own (ATEN_CPU_CAPABILITY does).
_isa = "baseline" if native.module is None else str(native.module.isa())
_maker = "" if native.module is None else str(native.module.cpu_maker())
_torchs = torch.backends.cpu.get_cpu_capability()


def isa() -> str:
    """Instructions of the native kernels, a name in `_cpu.Isa`: those in use, unless others are assumed."""
    return _isa


def capability() -> str:
    """Vectors of the native kernels, by torch's names."""
    return torch_capability() if native.module is None else _CAPABILITIES[_isa]


def torch_capability() -> str:
    """Vectors of torch's own kernels, which decide on its counts and rates."""
    return _torchs


def measured_as(vectors: str) -> str:
    """Whose rows these vectors of this CPU have: "AVX512 Intel" where rates are of CPUs of its maker, or "AVX512"."""
    of_maker = f"{vectors} {_maker}"
    return of_maker if of_maker in _OF_MAKERS else vectors


def assume(whose: str, dtype: str = "") -> None:
    """Count and estimate as on a CPU that has such rows, whatever this one has: the fit does, for the rows it fits.

    `whose` is what `measured_as` says there, and `dtype` the name of a row's type: "bfloat16 widened" is that of a CPU
    without instructions for it, "bfloat16 tiles" that of one with tiles.
    """
    global _isa, _maker, _torchs, _tiles_of_torch
    vectors, _, _maker = whose.partition(" ")
    _isa = {"AVX512": "avx512_bf16", "AVX2": "avx2", "DEFAULT": "baseline"}[vectors]
    if vectors == "AVX512":
        _isa = {"widened": "avx512", "tiles": "amx_bf16"}.get(dtype.rpartition(" ")[2], _isa)
    _torchs, _tiles_of_torch = vectors, dtype.endswith("tiles")


def dtype_name(dtype: torch.dtype, kind: str = "") -> str:
    """Name of a dtype in the tables of rates, natively or where `kind` is one of torch's.

    bfloat16 that is multiplied in tiles (AMX) is another one, and so is bfloat16 without instructions of its own.
    """
    if in_tiles(dtype, kind):
        return f"{str(dtype)[6:]} tiles"
    widened = dtype == torch.bfloat16 and native.module is not None and _isa not in _PAIRS
    return str(dtype)[6:] + (" widened" if widened else "")


def in_tiles(dtype: torch.dtype, kind: str = "") -> bool:
    """Does this CPU multiply a dtype in tiles of AMX, natively or where `kind` is one of torch's?"""
    if dtype != torch.bfloat16:
        return False
    return _tiles_of_torch if kind.startswith("torch") else _isa == "amx_bf16"


def _torch_has_tiles() -> bool:
    """Has torch's library tiles here? ONEDNN_MAX_CPU_ISA can take them away; it names sets in the order of what they
    have, and those with tiles last."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    allowed = most in ("DEFAULT", "ALL") or "AMX" in most
    return allowed and bool(torch.cpu._is_amx_tile_supported())


_tiles_of_torch = _torch_has_tiles()


@cache
def say_if_unmeasured() -> None:
    """One warning a process where rates are those of another kind of CPU: SSE2, NEON and whatever comes."""
    known = native.module is None or capability() in RATES
    kernels = () if known else (f"native kernels with {_isa} instructions",)
    torchs = () if torch_capability() in RATES else (f"torch's with {torch_capability()}",)
    if kernels or torchs:
        warnings.warn(
            f"symconv_fast: nothing was measured of {' and '.join((*kernels, *torchs))}. Estimates are those for "
            f"{_NEAREST}, and the first call of a layer times its candidates; "
            "python -m symconv_fast calibrate measures rates of this machine",
            stacklevel=2,
        )


# --- seconds -------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the rates of a pass stand."""

    kind: str
    own: str  # those of a 16-bit type, where it has its own
    factor: str  # that of a 16-bit type, where it has not
    dtype: torch.dtype

    @property
    def row(self) -> str:
        """The name of the row that estimates rest on."""
        if self.dtype.itemsize > 2:
            return self.kind
        return self.own if self.is_own else self.factor

    @property
    def is_own(self) -> bool:
        """Has a 16-bit type rates of its own, or those of float32 times a factor?"""
        return self.dtype.itemsize == 2 and self.own in table(RATES, self.kind)


def find(place: Place) -> dict[str, float]:
    """Nanoseconds a unit; empty where nothing was measured."""
    if in_tiles(place.dtype, place.kind) and not place.is_own:
        return {}  # tiles are no multiple of anything else: what was not measured with them is not known
    found: dict[str, float] = table(RATES, place.kind).get(place.own if place.is_own else place.kind, {})
    return found


def seconds(counts: Mapping[str, float], place: Place) -> float:
    """Calls and passes cost the same whatever the threads; the rest is shared by the threads."""
    serial, shared = parts(counts, find(place))
    factor, call = 1.0, 0.0
    if place.dtype.itemsize == 2 and not place.is_own:
        factor, call = table(FACTORS, place.kind).get(place.factor, (1.0, 0.0))
    return (serial + call + factor * shared / max(1, torch.get_num_threads())) * 1e-9


def parts(counts: Mapping[str, float], of: Mapping[str, float]) -> tuple[float, float]:
    """Nanoseconds that do not depend on the number of threads, and those that they share, with the rates `of`."""
    serial = shared = 0.0
    for unit, count in counts.items():
        cost = of.get(unit, 0.0) * count
        if is_serial(unit):
            serial += cost
        else:
            shared += cost
    return serial, shared


def is_serial(unit: str) -> bool:
    """Does a unit take the same time whatever the threads?"""
    return unit == "call" or unit.endswith("/pass")


def table(tables: dict[str, dict[str, Any]], kind: str) -> MutableMapping[str, Any]:
    """That of the vectors which a kind runs with, or of the nearest ones that were measured; before it what CPUs of
    this maker have."""
    vectors = torch_capability() if kind.startswith("torch") else capability()
    names = [name for name in dict.fromkeys((measured_as(vectors), vectors)) if name in tables] or [_NEAREST]
    return tables[names[0]] if len(names) == 1 else ChainMap(*(tables[name] for name in names))


def is_known(kind: str) -> bool:
    """Is there a row for a kind?"""
    return kind in table(RATES, kind)


# --- files ---------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def read_rates(path: Path = RATES_FILE) -> Rates:
    """{vectors: {kind: {unit: nanoseconds}}}."""
    found: Rates = {}
    for row in _rows(path):
        vectors, kind = (row.pop(key) for key in _KEYS)
        found.setdefault(vectors, {})[kind] = {unit: float(value) for unit, value in row.items() if value}
    return found


def read_factors(path: Path = FACTORS_FILE) -> Factors:
    """{vectors: {type, kind and place: (factor, nanoseconds of a call)}}."""
    found: Factors = {}
    for row in _rows(path):
        found.setdefault(row["vectors"], {})[row["kind"]] = (float(row["factor"]), float(row["call"]))
    return found


def read_depthwise(path: Path = DEPTHWISE_FILE) -> dict[tuple[str, str, str], dict[str, float]]:
    """{(whose, layout, op): {unit: nanoseconds}}."""
    found = {}
    for row in _rows(path):
        key = (row.pop("whose"), row.pop("layout"), row.pop("op"))
        found[key] = {unit: float(value) for unit, value in row.items() if value}
    return found


def write_rates(rates: Rates, units: Sequence[str], notes: Iterable[str], path: Path = RATES_FILE) -> None:
    """What `read_rates` reads, the columns in the order of `units`; `notes` become comments at the top."""
    used = {unit for kinds in rates.values() for row in kinds.values() for unit in row}
    columns = [*_KEYS, *(unit for unit in units if unit in used)]
    rows = [
        {"vectors": vectors, "kind": kind, **row}
        for vectors, kinds in rates.items()
        for kind, row in kinds.items()
    ]
    _write(path, columns, rows, notes)


def write_factors(factors: Factors, notes: Iterable[str], path: Path = FACTORS_FILE) -> None:
    """What `read_factors` reads; `notes` become comments at the top."""
    rows = [
        {"vectors": vectors, "kind": kind, "factor": factor, "call": call}
        for vectors, kinds in factors.items()
        for kind, (factor, call) in kinds.items()
    ]
    _write(path, [*_KEYS, "factor", "call"], rows, notes)


def _write(
    path: Path, columns: Sequence[str], rows: Sequence[dict[str, object]], notes: Iterable[str]
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {note}\n" for note in notes)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


RATES = read_rates()
FACTORS = read_factors()
DEPTHWISE = read_depthwise()
