# Measures many small and large cases, stores them, and fits the rates of the CPU cost model to them.
"""`python -m bench.fit_cost [--measure DTYPE [--new]]`: refit symconv_fast/backends/cpu_rates.csv.

With `--measure` the cases are timed first and kept in bench/results/reference-cost.jsonl (16-bit types: -16.jsonl),
beside the machine and the date, the quickest of several runs; without, the stored ones are fitted again. The rates are
those of float32, and of bfloat16 where all cases were measured. Other 16-bit types, measured on fewer, get a factor for
each kind of work that the threads share, and a call's own time; bfloat16 is "widened" where the CPU has no
instructions for it, or where SYMCONV_FAST_ISA=avx512 and ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI take them away.
Each case is one pass of one algorithm, timed in turns with torch's.

`--held` measures on a machine whose vectors are wider than it is allowed to use (SYMCONV_FAST_ISA, ATEN_CPU_CAPABILITY
and ONEDNN_MAX_CPU_ISA name a lesser set). Such rows are kept in -held.jsonl. They stand in for what was never measured
on a machine that has no more: scaled by what the fold takes there over what it took here.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

import symconv_fast
from bench.measure import interleave, provenance
from symconv_fast import ops, settings
from symconv_fast.backends import cpu, cpu_cost, cpu_rates
from symconv_fast.backends.torch_conv import asked_in
from symconv_fast.dispatch import backend
from symconv_fast.problem import Problem, allocate
from symconv_fast.symmetry import Symmetry

DATA = Path(__file__).parent / "results" / "reference-cost.jsonl"
DATA_16 = DATA.with_name("reference-cost-16.jsonl")
DATA_HELD = DATA.with_name("reference-cost-held.jsonl")
FOLDS = 5
RIDGE = 0.03
_HELPS = 0.05  # that much less error

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
]  # fmt: skip
SHAPES_3D = [
    (1, 8, 8, 8, 3, 1), (1, 4, 16, 16, 3, 1), (1, 16, 16, 12, 3, 1), (1, 32, 32, 16, 3, 1), (1, 64, 64, 8, 3, 1),
    (1, 32, 32, 32, 3, 1), (1, 128, 128, 16, 3, 1), (1, 256, 256, 16, 3, 1), (1, 8, 8, 24, 3, 1), (2, 16, 8, 12, 3, 1),
]  # fmt: skip
SHAPES_1D = [
    (1, 128, 384, 202, 3, 1), (4, 4, 64, 1000, 15, 1), (8, 16, 32, 500, 9, 1), (2, 64, 64, 1000, 5, 1),
    (1, 256, 256, 64, 3, 1), (4, 1, 80, 3200, 251, 1), (1, 1, 32, 2000, 63, 1), (4, 4, 64, 1000, 25, 1),
    (1, 8, 8, 64, 3, 1), (4, 16, 16, 100, 3, 1),
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

    `new`: those alone of which there is no row for such vectors.

    Shared machines have slow minutes: two or three runs leave a table without them.
    """
    if cpu_cost.CAPABILITY != cpu_cost.TORCH_CAPABILITY:
        raise SystemExit(
            f"the native kernels run with the vectors of {cpu_cost.CAPABILITY} and torch's with those of "
            f"{cpu_cost.TORCH_CAPABILITY}: set SYMCONV_FAST_ISA and ATEN_CPU_CAPABILITY to the same"
        )
    data = DATA_HELD if held else DATA_16 if dtype.itemsize == 2 else DATA
    best = {key(row): row for row in stored(data)}
    known = {
        json.dumps(row["case"])
        for row in best.values()
        if row["capability"] == cpu_cost.CAPABILITY
        and (dtype.itemsize > 2 or row["dtype"] == cpu_cost.dtype_name(dtype))
    }
    wanted = [case for case in cases(dtype) if not (new and json.dumps(stored_case(*case)) in known)]
    for case in tqdm(wanted, desc="measuring", unit="case", mininterval=10):
        for row in rows(*case, dtype, seconds):
            row = json.loads(json.dumps(row))
            before = best.get(key(row))
            if before is None or before["device"] != row["device"] or row["ns"] < before["ns"]:
                best[key(row)] = row
    data.write_text("".join(json.dumps(row) + "\n" for row in best.values()))


def stored_case(ndim: int, shape: tuple[int, ...], tie: object, last: bool) -> list[Any]:
    """A case as it is written to a row."""
    return [ndim, list(shape), tie if isinstance(tie, str) else json.dumps(tie), last]


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
    """The algorithms of a pass, by the names of rows; with F(4,3) those alone that filter."""

    def run(algorithm: str) -> None:
        with backend("cpu", algorithm):
            call()

    able = [a for a in cpu.ALGORITHMS if cpu.can_run(p, op, a) is None]
    if filtering != "f2":
        able = [a for a in able if a.endswith("winograd")]
    left_out = {"relayout"}  # what it takes follows from the other layout,
    if asked_in(p, op) != p.dtype:
        left_out.add("expand")  # and this from the wider type
    return {a.replace("winograd", filtering): partial(run, a) for a in able if a not in left_out}


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
            more = {"dtype": cpu_cost.dtype_name(dtype)} if dtype.itemsize == 2 else {}
            row = {"case": case, "op": op, "algorithm": name, **more}
            yield {**row, "ns": timing.p20 * 1e6, **provenance()}


def place(row: dict[str, Any]) -> str:
    """The pass that a row is about."""
    return json.dumps((row["case"], row["op"]))


def counted(row: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The kind of rates that hold for a row, and its work."""
    dtype = getattr(torch, row.get("dtype", "float32").split()[0])
    cpu_cost.assume(row["capability"])
    (p, _), op, algorithm = problem_of(row["case"], dtype), row["op"], row["algorithm"]
    if algorithm == "expand":
        return cpu_cost.torch_kind(p, op), cpu_cost.torch_counts(p)
    kind = cpu_cost.native_kind(p, op, algorithm)
    if algorithm.endswith("f4"):
        kind = kind.replace("winograd", "f4")
    return kind, cpu_cost.native_counts(p, op, algorithm)


def fit() -> None:
    """Fit the rows of each kind of vectors by themselves, write the tables, and tell what they lose."""
    rows, rows_16 = stored(DATA) + stand_ins(), stored(DATA_16)
    rates, factors = fitted(rows, rows_16, tell)
    write(rates, factors, [machine(capability, rows) for capability in rates])
    use(rates, factors)
    tell_regret("fitted", {what: losses(found) for what, found in kinds(rows, rows_16).items()})
    held_out: dict[str, list[float]] = defaultdict(list)
    for fold in range(FOLDS):
        rest, rest_16 = ([row for row in found if fold_of(row) != fold] for found in (rows, rows_16))
        use(*fitted(rest, rest_16))
        for what, found in kinds(rows, rows_16).items():
            held_out[what] += losses([row for row in found if fold_of(row) == fold])
    tell_regret("held out", held_out)


def fold_of(row: dict[str, Any]) -> int:
    """Which part of the cases a row belongs to: all ties and layouts of a shape lie in one."""
    return zlib.crc32(json.dumps(row["case"][:2]).encode()) % FOLDS


def use(rates: cpu_rates.Rates, factors: cpu_rates.Factors) -> None:
    """Estimate by these tables from now on."""
    cpu_cost.RATES.update(rates)
    cpu_cost.FACTORS.update(factors)
    cpu_cost.forget()


def machine(capability: str, rows: list[dict[str, Any]]) -> str:
    """Where the newest rows of some vectors come from."""
    newest = max((row for row in rows if row["capability"] == capability), key=lambda row: row["date"])
    return (
        f"- {newest['device']} ({capability}), {newest['threads']} threads, torch {newest['torch']}, "
        f"{newest['date'][:10]}"
    )


def fitted(
    rows: list[dict[str, Any]],
    rows_16: list[dict[str, Any]],
    tell: Callable[[str, np.ndarray], None] | None = None,
) -> tuple[cpu_rates.Rates, cpu_rates.Factors]:
    """The tables for some rows; `tell` is told how far their estimates are off."""
    rates: cpu_rates.Rates = {}
    factors: cpu_rates.Factors = {}
    for capability in sorted({row["capability"] for row in rows}):
        own, own_16 = ([r for r in found if r["capability"] == capability] for found in (rows, rows_16))
        rates[capability] = fit_rates(own, tell)
        factors[capability] = fit_factors(own_16, rates[capability], tell)
        for dtype in sorted({row["dtype"] for row in own_16}):
            found = [row for row in own_16 if row["dtype"] == dtype]
            if len({place(row) for row in found}) > len({place(row) for row in own}) // 2:
                rates[capability] |= fit_rates(found, tell)
                factors[capability] = {
                    k: v for k, v in factors[capability].items() if not k.startswith(f"{dtype} ")
                }
    return rates, factors


def kinds(rows: list[dict[str, Any]], rows_16: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by what is told of them together: vectors and type."""
    found = defaultdict(list)
    for row in rows:
        found[f"{row['capability']}, float32"].append(row)
    for row in rows_16:
        if row["dtype"] in ("bfloat16", "float16") and row["capability"] == "AVX512":
            found[f"AVX512, {row['dtype']}"].append(row)
    return found


def losses(rows: list[dict[str, Any]]) -> list[float]:
    """How much longer than the quickest algorithm that was measured each pass takes by what the rates choose."""
    passes: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if not row["algorithm"].endswith("f4"):  # which is chosen by those alone who allow it
            passes[json.dumps(row["case"]), row["op"]][row["algorithm"].replace("f2", "winograd")] = row
    lost = []
    for (case, op), measured in passes.items():
        cpu_cost.assume(next(iter(measured.values()))["capability"])
        problem, _ = problem_of(json.loads(case), getattr(torch, rows[0].get("dtype", "float32").split()[0]))
        chosen = min(measured, key=lambda algorithm: cpu.estimate(problem, op, algorithm))
        lost.append(measured[chosen]["ns"] / min(row["ns"] for row in measured.values()) - 1)
    return lost


def tell_regret(how: str, lost: dict[str, list[float]]) -> None:
    """Print the regret of the choice by kind of rows."""
    for what, each in lost.items():
        mean = np.exp(np.mean(np.log1p(each))) - 1
        print(
            f"{what}, {how}: on {len(each)} passes what is chosen takes {mean:.1%} longer than the quickest "
            f"(geometric mean), more than 10 % longer on {sum(loss > 0.1 for loss in each)}, "
            f"at most {max(each):.0%}"
        )


def stand_ins() -> list[dict[str, Any]]:
    """Rows of machines that were held to lesser vectors, scaled to the one that has no others, where it has none."""
    real = {key(row): row for row in stored(DATA)}
    held = {key(row): row for row in stored(DATA_HELD)}
    found = []
    for name, row in held.items():
        fold = key({**row, "algorithm": "fold"})
        if name not in real and fold in real and fold in held:
            scale = real[fold]["ns"] / held[fold]["ns"]
            found.append({**row, "ns": row["ns"] * scale, "date": real[fold]["date"]})
    return found


def fit_rates(
    rows: list[dict[str, Any]], tell: Callable[[str, np.ndarray], None] | None
) -> dict[str, dict[str, float]]:
    """Rates of each kind by themselves, from relative errors."""
    by_kind = defaultdict(list)
    for row in rows:
        kind, counts = counted(row)
        if "dtype" in row:
            p, _ = problem_of(row["case"], getattr(torch, row["dtype"].split()[0]))
            kind = cpu_cost.own_kind(p, row["op"], kind, row["dtype"])
        by_kind[kind].append((row, counts))
    rates = {}
    for kind, found in sorted(by_kind.items()):
        threads = found[0][0]["threads"]
        share = np.array([1.0 if name in cpu_cost.SERIAL else 1.0 / threads for name in cpu_cost.FEATURES])
        counts = np.array([[work[name] for name in cpu_cost.FEATURES] for _, work in found]) * share
        times = np.array([row["ns"] for row, _ in found])
        solution = regularised(counts / times[:, None])
        if tell:
            tell(kind, counts @ solution / times)
        # A layout that was measured and costs nothing of its own is named all the same (cpu_cost.is_measured).
        seen = {name for _, work in found for name, value in work.items() if value and name.endswith("/pass")}
        rates[kind] = {
            name: float(f"{value:.4g}")
            for name, value in zip(cpu_cost.FEATURES, solution, strict=True)
            if value > 0 or name in seen
        }
    return rates


def regularised(shares: np.ndarray) -> np.ndarray:
    """Non-negative rates for rows of work over time, the estimate of a row in the mean its time.

    Least squares with a penalty on what each unit contributes: without it the rates of a kind with few rows rest on the
    ones that happen to be there, and shapes that were not among them cost nearly nothing. RIDGE has the least regret on
    held-out rows of those tried from 0 to 0.25.
    """
    penalty = np.sqrt(RIDGE * (shares**2).sum(axis=0))
    rows = np.vstack([shares, np.diag(penalty)])
    solution, _ = nnls(rows, np.concatenate([np.ones(len(shares)), np.zeros(len(penalty))]))
    return solution / np.exp(np.mean(np.log(np.maximum(shares @ solution, 1e-9))))


def tell(kind: str, ratio: np.ndarray) -> None:
    """Print how far the estimates of a kind are off."""
    p10, p50, p90 = np.quantile(ratio, (0.1, 0.5, 0.9))
    print(
        f"{kind:40} {len(ratio):4} rows, estimate / measured: p10 {p10:.2f}, median {p50:.2f}, p90 {p90:.2f}"
    )


def fit_factors(
    rows: list[dict[str, Any]],
    rates: dict[str, dict[str, float]],
    tell: Callable[[str, np.ndarray], None] | None,
) -> dict[str, tuple[float, float]]:
    """For each 16-bit type and kind, what of `FACTORS` has the least mean error of the logarithm.

    A call's own nanoseconds are more than one thing to learn from a handful of rows, and stay 0 unless they help.
    """
    by_kind = defaultdict(list)
    for row in rows:
        kind, counts = counted(row)
        p, _ = problem_of(row["case"], getattr(torch, row["dtype"].split()[0]))
        serial, shared = cpu_cost.parts(counts, rates[kind])
        where = cpu_cost.factor_kind(p, row["op"], kind, row["dtype"])
        by_kind[where].append((serial, shared / row["threads"], row["ns"]))
    factors = {}
    for kind, found in sorted(by_kind.items()):
        serial, shared, times = np.array(found).T
        tried = np.geomspace(0.1, 100, 400)[:, None] * shared
        calls = np.concatenate(([0.0], np.geomspace(1e3, 1e5, 41)))
        errors = np.array([np.abs(np.log((serial + call + tried) / times)).mean(axis=1) for call in calls])
        best = int(errors.min(axis=1).argmin())
        if errors[0].min() - errors[best].min() < _HELPS:
            best = 0
        factor, call = np.geomspace(0.1, 100, 400)[errors[best].argmin()], calls[best]
        factors[kind] = (float(f"{factor:.3g}"), float(f"{call:.3g}"))
        if tell:
            tell(kind, (serial + call + factor * shared) / times)
    return factors


def write(
    rates: dict[str, dict[str, dict[str, float]]],
    factors: dict[str, dict[str, tuple[float, float]]],
    machines: list[str],
) -> None:
    """The tables, beside where their rows come from."""
    head = "Written by `python -m bench.fit_cost`, not by hand; cpu_rates.py reads it and says what it means."
    cpu_rates.write_rates(
        rates, cpu_cost.FEATURES, [head, f"The rows are in bench/results/{DATA.name}, measured on", *machines]
    )
    cpu_rates.write_factors(factors, [head, f"The rows are in bench/results/{DATA_16.name}."])


def main() -> None:
    """Measure if asked to, then fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    parser.add_argument("--measure", choices=dtypes, help="time the cases in this dtype before fitting")
    parser.add_argument("--seconds", type=float, default=0.08, help="for each pass of each case")
    parser.add_argument("--held", action="store_true", help="on a machine held to lesser vectors: see above")
    parser.add_argument("--new", action="store_true", help="time only cases that were not timed before")
    args = parser.parse_args()
    if args.measure:
        measure(dtypes[args.measure], args.seconds, args.held, args.new)
    fit()


if __name__ == "__main__":
    main()
