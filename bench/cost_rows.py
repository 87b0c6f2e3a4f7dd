# Many small and large cases for the CPU cost model: timed, stored, and counted.
"""What `bench.fit_cost` fits. A row is one algorithm of one pass of one case, with its nanoseconds and the machine."""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import symconv_fast
from bench.measure import interleave, provenance
from symconv_fast import ops, settings
from symconv_fast.backends import cpu
from symconv_fast.backends.cpu import cost, torch_cost
from symconv_fast.backends.cpu import rates as tables
from symconv_fast.backends.cpu.rates import Place
from symconv_fast.backends.torch_conv import asked_in
from symconv_fast.dispatch import backend
from symconv_fast.problem import OPS, Problem, allocate
from symconv_fast.symmetry import Symmetry

DATA = Path(__file__).parent / "results" / "reference-cost.jsonl"
DATA_16 = DATA.with_name("reference-cost-16.jsonl")
DATA_HELD = DATA.with_name("reference-cost-held.jsonl")
DATA_OF = {
    "AVX512 Intel": DATA.with_name("reference-cost-intel.jsonl")
}  # float32, of CPUs with rows of their own

# (batch, channels, filters, spatial, kernel, stride)
SHAPES_2D = [
    (1, 1, 32, 28, 3, 1), (1, 3, 64, 224, 7, 2), (1, 3, 64, 112, 3, 1), (4, 3, 32, 32, 3, 1), (1, 8, 8, 8, 3, 1),
    (1, 16, 16, 8, 3, 1), (1, 16, 32, 32, 3, 1), (4, 16, 32, 32, 3, 1), (1, 32, 32, 32, 3, 1), (1, 32, 64, 56, 3, 1),
    (1, 64, 64, 14, 3, 1), (1, 64, 64, 28, 3, 1), (4, 64, 64, 56, 3, 1), (1, 64, 64, 112, 3, 1),
    (1, 128, 128, 7, 3, 1), (4, 128, 128, 14, 3, 1), (4, 128, 128, 28, 3, 1), (1, 256, 256, 7, 3, 1),
    (1, 256, 256, 14, 3, 1), (4, 256, 256, 14, 3, 1), (1, 512, 512, 4, 3, 1), (1, 512, 512, 7, 3, 1),
    (4, 512, 512, 7, 3, 1), (1, 512, 512, 14, 3, 1), (1, 64, 128, 56, 3, 2), (1, 128, 256, 28, 3, 2),
    (4, 256, 512, 14, 3, 2), (1, 256, 256, 14, 1, 1), (1, 64, 256, 56, 1, 1), (1, 32, 32, 28, 5, 1),
    (1, 32, 32, 28, 7, 1), (2, 24, 40, 17, 3, 1), (1, 1024, 1024, 7, 3, 1),
    (4, 16, 16, 32, 3, 1), (1, 16, 16, 56, 3, 1), (4, 32, 32, 16, 3, 1), (1, 8, 16, 64, 3, 1),
    (4, 8, 64, 56, 3, 1), (1, 12, 48, 28, 3, 1), (1, 8, 128, 14, 3, 1), (1, 8, 8, 112, 3, 1),
    (1, 3, 64, 224, 3, 1), (1, 1, 16, 28, 3, 1), (1, 3, 32, 64, 5, 2),
    (1, 4, 32, 112, 3, 1), (1, 3, 96, 224, 11, 4), (4, 1, 64, 56, 3, 1), (1, 2, 32, 28, 5, 1),
    (4, 128, 128, 56, 3, 2), (4, 256, 256, 28, 3, 2), (1, 64, 64, 112, 3, 2), (1, 512, 512, 14, 3, 2),
    (1, 3, 384, 224, 14, 14), (4, 3, 96, 224, 4, 4), (1, 3, 32, 320, 6, 2), (2, 3, 64, 128, 4, 2),
    (64, 1, 32, 28, 5, 1), (64, 1, 8, 32, 5, 1), (32, 3, 32, 32, 5, 1),
    (16, 1, 16, 32, 5, 1), (8, 1, 32, 64, 5, 1), (16, 3, 16, 32, 5, 1), (16, 1, 8, 28, 3, 1), (1, 3, 32, 224, 3, 1),
    (2, 3, 64, 96, 3, 1), (1, 1, 16, 56, 3, 1), (2, 1, 64, 112, 3, 1), (1, 3, 128, 112, 8, 8), (1, 3, 64, 128, 7, 2),
    (1, 8, 8, 56, 3, 1), (2, 8, 16, 112, 3, 1), (1, 8, 32, 56, 3, 1), (1, 32, 32, 112, 3, 2), (2, 64, 64, 56, 3, 2),
    (1, 64, 128, 112, 3, 2), (2, 128, 128, 28, 3, 2), (1, 16, 16, 112, 3, 1), (1, 16, 32, 64, 3, 2),
]  # fmt: skip
SHAPES_3D = [
    (1, 8, 8, 8, 3, 1), (1, 4, 16, 16, 3, 1), (1, 16, 16, 12, 3, 1), (1, 32, 32, 16, 3, 1), (1, 64, 64, 8, 3, 1),
    (1, 32, 32, 32, 3, 1), (1, 128, 128, 16, 3, 1), (1, 256, 256, 16, 3, 1), (1, 8, 8, 24, 3, 1), (2, 16, 8, 12, 3, 1),
    (1, 1, 64, 64, 7, 2), (1, 3, 32, 48, 5, 2), (1, 1, 32, 48, 7, 2), (1, 1, 32, 96, 7, 2),
    (1, 8, 16, 16, 3, 1), (1, 16, 16, 24, 3, 1), (2, 16, 16, 16, 3, 1), (1, 2, 16, 24, 3, 1), (1, 1, 16, 32, 7, 2),
    (1, 1, 64, 48, 5, 2), (1, 4, 32, 24, 3, 1), (1, 16, 16, 48, 3, 1), (1, 32, 32, 24, 3, 2),
    (1, 64, 64, 32, 3, 2), (1, 16, 32, 48, 3, 2), (1, 32, 64, 40, 3, 2), (1, 8, 16, 32, 3, 2), (1, 16, 16, 96, 3, 1),
]  # fmt: skip
SHAPES_1D = [
    (1, 128, 384, 202, 3, 1), (4, 4, 64, 1000, 15, 1), (8, 16, 32, 500, 9, 1), (2, 64, 64, 1000, 5, 1),
    (1, 256, 256, 64, 3, 1), (4, 1, 80, 3200, 251, 1), (1, 1, 32, 2000, 63, 1), (4, 4, 64, 1000, 25, 1),
    (1, 8, 8, 64, 3, 1), (4, 16, 16, 100, 3, 1), (2, 1, 64, 4000, 101, 1), (8, 4, 32, 500, 21, 1),
]  # fmt: skip
TIES = {1: ["h"], 2: ["h", "v", "hv", {"h": "25%", "v": "25%", "hv": "25%"}], 3: ["h", "hv", "hvz"]}


def cases(dtype: torch.dtype) -> Iterator[tuple[int, tuple[int, ...], object, bool]]:
    """(ndim, shape, symmetry, channels_last) of every case; of a sixth of them in float16, which torch runs slowly."""
    few = dtype == torch.float16
    for ndim, shapes in ((1, SHAPES_1D), (2, SHAPES_2D), (3, SHAPES_3D)):
        for shape in shapes[:: 3 if few else 1]:
            for tie in TIES[ndim][:: 2 if few else 1]:
                for last in (True, False) if ndim > 1 else (False,):
                    yield ndim, shape, tie, last


def measure(dtype: torch.dtype, seconds: float, held: bool = False, new: bool = False) -> None:
    """Time every case; of a pass and algorithm timed before on the same kind of machine, the quicker row stays.

    `new`: those alone that have an algorithm of which there is no row for such vectors.

    Shared machines have slow minutes: two or three runs leave a table without them.
    """
    if tables.capability() != tables.torch_capability():
        raise SystemExit(
            f"the native kernels run with the vectors of {tables.capability()} and torch's with those of "
            f"{tables.torch_capability()}: set SYMCONV_FAST_ISA and ATEN_CPU_CAPABILITY to the same"
        )
    data = DATA_16 if dtype.itemsize == 2 else DATA_OF.get(here(), DATA)
    wanted = [case for case in cases(dtype) if not new or has_gaps(case, dtype, stored(data))]
    data = DATA_HELD if held else data
    best = {key(row): row for row in stored(data)}
    for case in tqdm(wanted, desc="measuring", unit="case", mininterval=10):
        for row in rows(*case, dtype, seconds):
            row = json.loads(json.dumps(row))
            before = best.get(key(row))
            if before is None or before["device"] != row["device"] or row["ns"] < before["ns"]:
                best[key(row)] = row
    data.write_text("".join(json.dumps(row) + "\n" for row in best.values()))


def here() -> str:
    """Whose rows are measured on this CPU."""
    return tables.measured_as(tables.capability())


def stored_case(ndim: int, shape: tuple[int, ...], tie: object, last: bool) -> list[Any]:
    """A case as it is written to a row."""
    return [ndim, list(shape), tie if isinstance(tie, str) else json.dumps(tie), last]


def has_gaps(case: tuple[int, tuple[int, ...], object, bool], dtype: torch.dtype, known: list[Any]) -> bool:
    """Can an algorithm run a pass of a case of which no row for the vectors here is known?"""
    name = tables.dtype_name(dtype) if dtype.itemsize == 2 else None
    problem, _ = problem_of(json.loads(json.dumps(stored_case(*case))), dtype)
    found = {
        (row["op"], row["algorithm"])
        for row in known
        if row["capability"] == here() and row.get("dtype") == name
        if row["case"] == stored_case(*case)
    }
    return any((op, each) not in found for op in OPS for each in algorithms(problem, op, "f2"))


def stored(data: Path) -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    return [json.loads(line) for line in data.read_text().splitlines()] if data.exists() else []


def key(row: dict[str, Any]) -> str:
    """What a row is about."""
    what = (row["case"], row["op"], row["algorithm"], row["threads"], row.get("dtype"), row["capability"])
    return json.dumps(what)


def problem_of(case: list[Any], dtype: torch.dtype = torch.float32) -> tuple[Problem, tuple[Any, ...]]:
    """The problem of a case, and the static arguments of its operators."""
    ndim, (batch, channels, filters, size, kernel, stride), tie, last = case
    ties = Symmetry(json.loads(tie) if tie.startswith("{") else tie).resolve(ndim, filters, 1)
    shapes = ((batch, channels, *[size] * ndim), (ties.unique, channels, *[kernel] * ndim))
    static = (ties.flat, [stride] * ndim, [kernel // 2] * ndim, [1] * ndim, [0] * ndim, False, 1, last)
    return Problem.create(shapes, static, last, dtype, "cpu"), static


def pinned(
    p: Problem, op: str, call: Callable[[], object], filtering: str
) -> dict[str, Callable[[], object]]:
    """The algorithms of a pass, by the names of rows."""

    def run(algorithm: str) -> None:
        with backend("cpu", algorithm):
            call()

    return {name: partial(run, a) for name, a in algorithms(p, op, filtering).items()}


def algorithms(p: Problem, op: str, filtering: str) -> dict[str, str]:
    """What can run a pass, by the names of rows; with F(4,3) what filters alone."""
    able = [a for a in cpu.ALGORITHMS if cpu.can_run(p, op, a) is None]
    if filtering != "f2":
        able = [a for a in able if a.endswith("winograd")]
    left_out = {"relayout"}  # what it takes follows from the other layout,
    if asked_in(p, op) != p.dtype:
        left_out.add("expand")  # and this from the wider type
    return {a.replace("winograd", filtering): a for a in able if a not in left_out}


@contextmanager
def levels(level: str) -> Iterator[None]:
    """`allow_winograd` for a while."""
    before = settings.winograd()
    symconv_fast.allow_winograd = level
    try:
        yield
    finally:
        symconv_fast.allow_winograd = before


def rows(
    ndim: int, shape: tuple[int, ...], tie: object, last: bool, dtype: torch.dtype, seconds: float
) -> Iterator[dict[str, object]]:
    """Timed rows of one case, all algorithms of a pass in turns."""
    case = stored_case(ndim, shape, tie, last)
    p, static = problem_of(case, dtype)
    shapes = (p.input_shape, p.output_shape, p.weight_shape)
    x, gy, w = (allocate(shape, torch.empty(0, dtype=dtype), last).normal_() for shape in shapes)
    calls = {
        "fprop": lambda: ops.fprop(x, w, None, *static),
        "dgrad": lambda: ops.dgrad(gy, w, x.shape, *static),
        "wgrad": lambda: ops.wgrad(gy, x, w.shape, *static),
    }
    for op, call in calls.items():
        timings = {}
        for level in ("f2", "f4"):
            with levels(level):
                if pins := pinned(p, op, call, filtering=level):
                    timings |= interleave(pins, seconds)
        for name, timing in timings.items():
            more = {"dtype": tables.dtype_name(dtype)} if dtype.itemsize == 2 else {}
            row = {"case": case, "op": op, "algorithm": name, **more}
            yield {**row, "ns": timing.p20 * 1e6, **provenance(), "capability": here()}


def place(row: dict[str, Any]) -> str:
    """The pass that a row is about."""
    return json.dumps((row["case"], row["op"]))


def counted(row: dict[str, Any]) -> tuple[Place, dict[str, float]]:
    """Where the rates for a row stand, and its work."""
    name = row.get("dtype", "float32")
    tables.assume(row["capability"], name)
    p, _ = problem_of(row["case"], getattr(torch, name.split()[0]))
    op, algorithm = row["op"], row["algorithm"]
    if algorithm == "expand":
        return torch_cost.place(p, op), torch_cost.counts(p)
    algorithm = f"fold_{algorithm}" if algorithm in ("f2", "f4") else algorithm
    selection = cpu.select(p, op, algorithm)
    where = cost.place(p, op, algorithm, selection)
    if algorithm.endswith("f4"):  # where F(4,3) is to have rates of its own
        where = cost.of_kind(where.kind.replace("winograd", "f4"), p, selection)
    return where, selection.counts


def merged() -> list[dict[str, Any]]:
    """The rows of float32; passes of which other machines have more algorithms are theirs, scaled to that of the rows.

    A pass is of one machine: what is quick in it does not depend on the scale.
    """
    rows_real = (row for data in (DATA, *DATA_OF.values()) for row in stored(data))
    real, held = by_pass(rows_real), by_pass(stored(DATA_HELD))
    ratios = {
        name: [real[name][a]["ns"] / row["ns"] for a, row in held[name].items() if a in real.get(name, {})]
        for name in held
    }
    of_machine = defaultdict(list)
    for name, common in ratios.items():
        of_machine[next(iter(held[name].values()))["capability"]] += common
    found = dict(real)
    for name, rows_held in held.items():
        common = ratios[name] or of_machine[next(iter(rows_held.values()))["capability"]]
        if common and not rows_held.keys() <= real.get(name, {}).keys():
            scale = statistics.median(common)
            found[name] = {a: {**row, "ns": row["ns"] * scale} for a, row in rows_held.items()}
    return [row for rows_found in found.values() for row in rows_found.values()]


def by_pass(rows_found: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by pass, vectors and threads, and by algorithm in each."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows_found:
        found[json.dumps((row["case"], row["op"], row["capability"], row["threads"]))][row["algorithm"]] = row
    return found
