# Looks for layers that lose: times every pass of the full set briefly, and measures again what seems too slow.
"""`python -m bench.sweep`: is any shape slower than the ordinary convolution?

`pytest bench/ --full` checks and measures every case at length, which takes hours. This goes over the same cases in
minutes: ours and the baselines of the ratio alone, a tenth of a second each, unchecked. What is below 0.97 there is
then checked and measured as the benchmark does it. Prints the ratios and what stays below; `--out` keeps all rows.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
from pathlib import Path

from tqdm import tqdm

from bench import cases, plan, rows
from bench.case import Case
from bench.measure import interleave, provenance

LEAST = 0.97


def screen(case: Case, seconds: float) -> rows.Row:
    """Time ours and the baselines of the ratio in turns; neither is checked."""
    bench = cases.Bench(case)
    rivals = {name: row for name, row in bench.baselines().items() if cases.is_rival(name)}
    calls = {name: row.call(case.direction) for name, row in {"ours": bench.ours(), **rivals}.items()}
    timings = interleave(calls, seconds, warm_up=1, min_rounds=3)
    baseline = min(rivals, key=lambda name: timings[name].p50)
    return {
        **case.facts(), **cases.chosen(bench), "checked": False, "ms_p50": timings["ours"].p50,
        "baseline": baseline, "baseline_ms": timings[baseline].p50,
        "ratio": timings[baseline].p50 / timings["ours"].p50, **provenance(case.device),
    }  # fmt: skip


def wanted(options: plan.Options) -> list[Case]:
    """Every case of the benchmark that the options ask for, once."""
    found = [case for kind in plan.KINDS for case in plan.cases(kind, options)]
    return list(dict.fromkeys(found))


def line(row: rows.Row) -> str:
    """A row as text."""
    where = f"{row['shape']} {row['tie']} {row['pass']} {row['layout']} {row['dtype']}"
    ours, theirs = (
        f"{row['algorithm']} {row['ms_p50']:.3f} ms",
        f"{row['baseline']} {row['baseline_ms']:.3f} ms",
    )
    return f"{row['ratio']:.2f}  {where}: {ours}, {theirs}"


def main() -> None:
    """Screen, measure again, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", default="float32", help="with commas")
    parser.add_argument("--passes", default="", help="fwd, dgrad, wgrad, step, with commas; all by default")
    parser.add_argument("--layouts", default="", help="channels_last, contiguous; both by default")
    parser.add_argument("--shapes", default="", help="only shapes whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each case")
    parser.add_argument(
        "--again", type=float, default=1.0, help="seconds for each case below 0.97; 0: leave it"
    )
    parser.add_argument("--out", type=Path, help="file to append the rows to")
    args = parser.parse_args()
    lists = {
        name: tuple(filter(None, getattr(args, name).split(","))) for name in ("dtypes", "passes", "layouts")
    }
    options = plan.Options(full=True, shapes=args.shapes, **lists)
    ratios, below = [], []
    for case in tqdm(wanted(options), unit="case", mininterval=5):
        row = screen(case, args.seconds)
        if row["ratio"] < LEAST and args.again:
            row = cases.run(case, args.again, memory=False) | {"checked": True}
        ratios.append(row["ratio"])
        if row["ratio"] < LEAST:
            below.append(row)
            tqdm.write(line(row))
        if args.out:
            rows.append(args.out, row)
    print(
        f"{len(ratios)} cases, geometric mean {rows.geometric_mean(ratios):.2f}, {len(below)} below {LEAST}:"
    )
    for row in sorted(below, key=lambda row: row["ratio"]):
        print(line(row))


if __name__ == "__main__":
    main()
