# Measures many small and large cases, stores them, and fits the rates of the CPU cost model to them.
"""`python -m bench.fit_cost [--measure DTYPE [--new]]`: refit symconv_fast/backends/cpu/rates.csv.

With `--measure` the cases are timed first and kept in bench/results/reference-cost.jsonl (16-bit types: -16.jsonl; CPUs
of Intel with AVX-512, whose rates are their own: -intel.jsonl), beside the machine and the date, the quickest of
several runs; without, the stored ones are fitted again. The rates are those of float32, and of bfloat16 where all cases
were measured or the CPU multiplies it in tiles ("bfloat16 tiles"). Other 16-bit types, measured on fewer, get a factor
for each kind of work that the threads share, and a call's own time; bfloat16 is "widened" where the CPU has no
instructions for it, or where SYMCONV_FAST_ISA=avx512 and ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI take them away.
SYMCONV_FAST_ISA=avx512_bf16 and ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 take tiles away.
Each case is one pass of one algorithm, timed in turns with torch's.

`--held` measures on another machine than that of the rows: one whose vectors are wider than it is allowed to use
(SYMCONV_FAST_ISA, ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA name a lesser set), or another CPU with the same vectors.
Such rows are kept in -held.jsonl. They stand in for passes of which they have more algorithms than the rows: scaled by
what both measured of the pass, or else of all passes.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from bench.cost_rows import DATA, DATA_16, counted, measure, merged, place, problem_of, stored
from symconv_fast import native
from symconv_fast.backends import cpu
from symconv_fast.backends.cpu import rates as tables
from symconv_fast.backends.cpu import torch_cost
from symconv_fast.backends.cpu.rates import Factors, Rates

UNITS: list[str] = native.module.UNITS
TILES = " tiles"  # ends the name of a type that is multiplied in them
FOLDS = 5
RIDGE, RIDGE_LIKE = 0.03, 0.2
_HELPS = 0.05  # that much less error


def fit() -> None:
    """Fit the rows of each kind of vectors by themselves, write the tables, and tell what they lose."""
    rows, rows_16 = merged(), stored(DATA_16)
    rates, factors = fitted(rows, rows_16, tell)
    tiles = [row for row in rows_16 if row["dtype"].endswith(TILES)]
    machines = [
        machine(capability, [row for row in rows if row["threads"] == threads])
        for capability in rates
        for threads in sorted({row["threads"] for row in rows if row["capability"] == capability})
    ]
    if tiles:
        machines.append(f"{machine('AVX512 Intel', tiles)} (bfloat16 in tiles)")
    write(rates, factors, machines)
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


def use(rates: Rates, factors: Factors) -> None:
    """Estimate by these tables from now on."""
    tables.RATES.update(rates)
    tables.FACTORS.update(factors)
    torch_cost.forget()


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
) -> tuple[Rates, Factors]:
    """The tables for some rows; `tell` is told how far their estimates are off."""
    rates: Rates = {}
    factors: Factors = {}
    for capability in sorted({row["capability"] for row in rows}):
        own, own_16 = ([r for r in found if r["capability"] == capability] for found in (rows, rows_16))
        rates[capability] = fit_rates(own, tell)
        factors[capability] = fit_factors(own_16, rates[capability], tell)
        for dtype in sorted({row["dtype"] for row in own_16}):
            found = [row for row in own_16 if row["dtype"] == dtype]
            complete = len({place(row) for row in found}) > len({place(row) for row in own}) // 2
            if complete or dtype.endswith(TILES):
                # Products in tiles have other proportions than those in vectors.
                like = None if dtype.endswith(TILES) else dict(rates[capability])
                rates[capability] |= fit_rates(found, tell, like)
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
        if row["dtype"] in ("bfloat16", f"bfloat16{TILES}", "float16") and row["capability"] != "AVX2":
            found[f"{row['capability']}, {row['dtype']}"].append(row)
    return found


def losses(rows: list[dict[str, Any]]) -> list[float]:
    """How much longer than the quickest algorithm that was measured each pass takes by what the rates choose.

    Rows of other numbers of threads are passes by themselves.
    """
    passes: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if not row["algorithm"].endswith("f4"):  # which is chosen by those alone who allow it
            of_pass = passes[json.dumps(row["case"]), row["op"], row["threads"]]
            of_pass[row["algorithm"].replace("f2", "winograd")] = row
    lost = []
    for (case, op, _), measured in passes.items():
        dtype = rows[0].get("dtype", "float32")
        tables.assume(next(iter(measured.values()))["capability"], dtype)
        problem, _ = problem_of(json.loads(case), getattr(torch, dtype.split()[0]))
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


def fit_rates(
    rows: list[dict[str, Any]],
    tell: Callable[[str, np.ndarray], None] | None,
    like: dict[str, dict[str, float]] | None = None,
) -> dict[str, dict[str, float]]:
    """Rates of each kind by themselves, from relative errors; close to those of `like`, of float32, up to a factor."""
    by_kind = defaultdict(list)
    alike = {}
    for row in rows:
        where, counts = counted(row)
        kind = where.own if "dtype" in row else where.kind
        by_kind[kind].append((row, counts))
        if like is not None and where.kind in like:
            alike[kind] = np.array([like[where.kind].get(unit, 0.0) for unit in UNITS])
    rates = {}
    for kind, found in sorted(by_kind.items()):
        threads = found[0][0]["threads"]
        share = np.array([1.0 if tables.is_serial(unit) else 1.0 / threads for unit in UNITS])
        counts = np.array([[work.get(unit, 0.0) for unit in UNITS] for _, work in found]) * share
        times = np.array([row["ns"] for row, _ in found])
        solution = regularised(counts / times[:, None], alike.get(kind))
        if tell:
            tell(kind, counts @ solution / times)
        # A layout that was measured and costs nothing of its own is named all the same (cost.py asks).
        seen = {name for _, work in found for name, value in work.items() if value and name.endswith("/pass")}
        rates[kind] = {
            name: float(f"{value:.4g}")
            for name, value in zip(UNITS, solution, strict=True)
            if value > 0 or name in seen
        }
    return rates


def regularised(shares: np.ndarray, like: np.ndarray | None) -> np.ndarray:
    """Non-negative rates for rows of work over time, the estimate of a row in the mean its time.

    Least squares with a penalty on how far what each unit contributes is from 0, or from what it would by the rates
    `like`, scaled: without it the rates of a kind with few rows rest on the ones that happen to be there, and shapes
    that were not among them cost nearly nothing. RIDGE and RIDGE_LIKE have the least regret on held-out rows of those
    tried from 0 to 0.3.
    """
    expected = np.zeros(shares.shape[1]) if like is None else like
    ridge = RIDGE
    if np.any(expected):
        expected = expected * _scale(shares @ expected)
        ridge = RIDGE_LIKE
    penalty = np.sqrt(ridge * (shares**2).sum(axis=0))
    rows = np.vstack([shares, np.diag(penalty)])
    solution, _ = nnls(rows, np.concatenate([np.ones(len(shares)), penalty * expected]))
    return solution * _scale(shares @ solution)


def _scale(ratio: np.ndarray) -> float:
    """What makes the geometric mean of estimates over times 1."""
    return float(np.exp(-np.mean(np.log(np.maximum(ratio, 1e-9)))))


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
        where, counts = counted(row)
        serial, shared = tables.parts(counts, rates[where.kind])
        by_kind[where.factor].append((serial, shared / row["threads"], row["ns"]))
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
    head = "Written by `python -m bench.fit_cost`, not by hand; rates.py reads it and says what it means."
    tables.write_rates(
        rates, UNITS, [head, f"The rows are in bench/results/{DATA.name}, measured on", *machines]
    )
    tables.write_factors(factors, [head, f"The rows are in bench/results/{DATA_16.name}."])


def main() -> None:
    """Measure if asked to, then fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    parser.add_argument("--measure", choices=dtypes, help="time the cases in this dtype before fitting")
    parser.add_argument("--seconds", type=float, default=0.08, help="for each pass of each case")
    parser.add_argument(
        "--held", action="store_true", help="on another machine than that of the rows: see above"
    )
    parser.add_argument(
        "--new", action="store_true", help="time only cases with an algorithm that was not timed before"
    )
    args = parser.parse_args()
    if args.measure:
        measure(dtypes[args.measure], args.seconds, args.held, args.new)
    fit()


if __name__ == "__main__":
    main()
