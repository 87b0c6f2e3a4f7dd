# Measures many small and large cases, stores them, and fits the rates of the CPU cost model to them.
"""`python -m bench.fit_cost [--measure]`: refit symconv_fast/backends/cpu_rates.py.

With `--measure` the cases are timed first and kept in bench/results/reference-cost.jsonl, beside the machine and the
date; without, the stored ones are fitted again. Each case is one pass of one algorithm, timed in turns with torch's.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

from bench.measure import interleave, provenance
from symconv_fast import ops
from symconv_fast.backends import cpu, cpu_cost
from symconv_fast.dispatch import backend
from symconv_fast.problem import Problem, allocate, suggests_channels_last
from symconv_fast.symmetry import Symmetry

DATA = Path(__file__).parent / "results" / "reference-cost.jsonl"
RATES = Path(cpu_cost.__file__).with_name("cpu_rates.py")

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
]  # fmt: skip
SHAPES_3D = [(1, 4, 16, 16, 3, 1), (1, 16, 16, 12, 3, 1), (1, 32, 32, 16, 3, 1), (1, 64, 64, 8, 3, 1)]
SHAPES_1D = [
    (1, 128, 384, 202, 3, 1), (4, 4, 64, 1000, 15, 1), (8, 16, 32, 500, 9, 1), (2, 64, 64, 1000, 5, 1),
    (1, 256, 256, 64, 3, 1),
]  # fmt: skip
TIES = {1: ["h"], 2: ["h", "v", "hv", {"h": "25%", "v": "25%", "hv": "25%"}], 3: ["h", "hv", "hvz"]}


def cases() -> Iterator[tuple[int, tuple[int, ...], object, bool]]:
    """(ndim, shape, symmetry, channels_last) of every case."""
    for ndim, shapes in ((1, SHAPES_1D), (2, SHAPES_2D), (3, SHAPES_3D)):
        for shape in shapes:
            for tie in TIES[ndim]:
                for last in (True, False) if ndim > 1 else (False,):
                    yield ndim, shape, tie, last


def measure(seconds: float) -> None:
    """Time every case and write a line for each pass and algorithm."""
    with DATA.open("w") as file:
        for case in tqdm(list(cases()), desc="measuring", unit="case", mininterval=10):
            for row in rows(*case, seconds):
                file.write(json.dumps(row) + "\n")
                file.flush()


def rows(
    ndim: int, shape: tuple[int, ...], tie: object, last: bool, seconds: float
) -> Iterator[dict[str, object]]:
    """Timed rows of one case, all algorithms of a pass in turns."""
    batch, channels, filters, size, kernel, stride = shape
    ties = Symmetry(tie).resolve(ndim, filters, 1)
    x = allocate((batch, channels, *[size] * ndim), torch.empty(0), last).normal_()
    w = allocate((ties.unique, channels, *[kernel] * ndim), torch.empty(0), last).normal_()
    geometry = (ties.flat, [stride] * ndim, [kernel // 2] * ndim, [1] * ndim, [0] * ndim, False, 1)
    gy = ops.fprop(x, w, None, *geometry, last).normal_()
    calls = {
        "fprop": lambda: ops.fprop(x, w, None, *geometry, last),
        "dgrad": lambda: ops.dgrad(gy, w, x.shape, *geometry, last),
        "wgrad": lambda: ops.wgrad(gy, x, w.shape, *geometry, last),
    }
    for op, call in calls.items():
        layout = suggests_channels_last(x if op == "fprop" else gy)
        problem = Problem.create((x.shape, w.shape), (*geometry, last), layout, x.dtype, "cpu")
        pins = {a: ("cpu", a) for a in cpu.ALGORITHMS if cpu.can_run(problem, op, a) is None}

        def pinned(pin, call=call):
            def run() -> None:
                with backend(*pin):
                    call()

            return run

        timings = interleave({name: pinned(pin) for name, pin in pins.items()}, seconds)
        for name, timing in timings.items():
            native = "f2" if name == "winograd" else name
            counts = (
                cpu_cost.torch_counts(problem)
                if name == "expand"
                else cpu_cost.native_counts(problem, op, native)
            )
            kind = (
                cpu_cost.torch_kind(problem, op)
                if name == "expand"
                else cpu_cost.native_kind(problem, op, native)
            )
            yield {
                "case": [ndim, shape, tie if isinstance(tie, str) else json.dumps(tie)], "kind": kind,
                "algorithm": native, "ns": timing.p20 * 1e6, "counts": counts, **provenance(),
            }  # fmt: skip


def fit() -> None:
    """Non-negative least squares on relative errors, one fit for each kind; prints how far they are off."""
    by_kind = defaultdict(list)
    for line in DATA.read_text().splitlines():
        row = json.loads(line)
        by_kind[row["kind"]].append(row)
    rates, first = {}, row
    for kind, found in sorted(by_kind.items()):
        threads = found[0]["threads"]
        share = np.array([1.0 if name in ("call", "pass") else 1.0 / threads for name in cpu_cost.FEATURES])
        counts = np.array([[row["counts"][name] for name in cpu_cost.FEATURES] for row in found]) * share
        times = np.array([row["ns"] for row in found])
        solution, _ = nnls(counts / times[:, None], np.ones(len(times)))
        ratio = counts @ solution / times
        print(f"{kind:22} {len(found):4} rows, estimate / measured: p10 {np.quantile(ratio, 0.1):.2f}, "
              f"median {np.median(ratio):.2f}, p90 {np.quantile(ratio, 0.9):.2f}")  # fmt: skip
        rates[kind] = {
            name: float(f"{value:.4g}") for name, value in zip(cpu_cost.FEATURES, solution, strict=True)
        }
    header = (
        '"""Rates of the CPU cost model in nanoseconds a unit; written by `python -m bench.fit_cost`, not by hand.\n\n'
        f"Measured on {first['device']} ({first['capability']}), {first['threads']} threads, torch {first['torch']}, "
        f'{first["date"][:10]}; the rows are in\nbench/results/reference-cost.jsonl.\n"""\n\nRATES = {{\n'
    )
    body = "".join(f'    "{kind}": {json.dumps(values)},\n' for kind, values in rates.items())
    RATES.write_text(header + body + "}\n")


def main() -> None:
    """Measure if asked to, then fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="time the cases before fitting")
    parser.add_argument("--seconds", type=float, default=0.08, help="for each pass of each case")
    args = parser.parse_args()
    if args.measure:
        measure(args.seconds)
    fit()


if __name__ == "__main__":
    main()
