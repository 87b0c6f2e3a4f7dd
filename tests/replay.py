# Checks problems outside pytest: one by its repr, or many by number. Used by the tests, by make sanitize, and by hand.
"""python tests/replay.py 'Case(...)' [float32 [fprop [cpu [fold]]]]     or     python tests/replay.py 2000 [start]

With a number it checks that many seeded random problems of `cases.sample`, every operator, algorithm and dtype that the
installation has (the reference left out; with --kernels all but our own kernels). With --turn own each operator of a
problem meets one dtype, in turn, and with --turn others the rest. --sides adds that many random layers with ties on
both sides, each in one dtype. Exits with 1, and prints a line for each, if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from operator import eq
from pathlib import Path

import cases
import torch
from oracle import OPS, Case, candidates, check

Row = tuple[torch.dtype, str, str, str]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def checks(case: Case, reference: bool = False) -> list[Row]:
    """(dtype, op, backend, algorithm) of all that can run a problem natively, and with the reference if wanted."""
    return [
        (dtype, op, backend, algorithm)
        for dtype in DTYPES
        for op in OPS
        for backend, algorithm, reason in candidates(case, dtype, op)
        if reason is None and (reference or backend != "reference")
    ]


def names(row: Row) -> tuple[str, str, str, str]:
    """As on the command line."""
    return (str(row[0])[6:], *row[1:])


def our_kernel(row: Row) -> bool:
    """Does native code of ours do the work, and not torch's convolution?"""
    return row[2] == "cpu" and row[3] != "expand"


def in_turn(number: int, row: Row) -> bool:
    """Is this the dtype of this operator, in problem number `number`?"""
    return row[0] is DTYPES[(number + OPS.index(row[1])) % len(DTYPES)]


def check_all(
    problems: list[Case], wanted: Callable[[int, Row], bool] = lambda *_: True, trace: Path | None = None
) -> int:
    """Check the problems, print what fails, return how many checks passed; stops after 10 failures.

    With `trace`, that file holds the arguments that repeat the check under way, should it end the process.
    """
    passed = failed = 0
    for number, case in enumerate(problems):
        for row in checks(case):
            if not wanted(number, row):
                continue
            if trace:
                trace.write_text(" ".join((repr(repr(case)), *names(row))) + "\n")
            try:
                check(case, *row)
                passed += 1
            except AssertionError as error:
                print(f"FAIL {error}", flush=True)
                failed += 1
            if failed == 10:
                raise SystemExit(1)
    if failed:
        raise SystemExit(1)
    return passed


def check_sides(layers: int, start: int) -> int:
    """The same of random layers with ties on both sides."""
    from sides_problems import DTYPES, check  # needs the native module

    passed = failed = 0
    for number in range(start, start + layers):
        try:
            passed += check(number, DTYPES[number % len(DTYPES)])
        except AssertionError as error:
            print(f"FAIL {error}", flush=True)
            failed += 1
    if failed:
        raise SystemExit(1)
    return passed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", help="repr of a Case, or a number of random problems")
    parser.add_argument(
        "rest", nargs="*", help="dtype, op, backend, algorithm; or the first problem's number"
    )
    parser.add_argument("--special", action="store_true", help="the problems listed by hand as well")
    parser.add_argument("--kernels", action="store_true", help="only what our own native code computes")
    parser.add_argument(
        "--turn", choices=("own", "others"), help="one dtype for each operator of a problem, or the rest"
    )
    parser.add_argument("--sides", type=int, default=0, help="layers with ties on both sides, as many")
    parser.add_argument("--trace", type=Path, help="file for the check under way")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    if args.what.startswith("Case("):
        case = eval(args.what, {"Case": Case})
        rows = [row for row in checks(case, reference=True) if all(map(eq, args.rest, names(row)))]
        for row in rows:
            check(case, *row)
            print("ok", *names(row))
        if not rows:
            raise SystemExit(f"nothing here runs that with {' '.join(args.rest)}")
        return
    start = int(args.rest[0]) if args.rest else 0
    problems = list(cases.SPECIAL.values()) if args.special else []
    problems += cases.sample(int(args.what), start)

    def wanted(number: int, row: Row) -> bool:
        now = args.turn is None or in_turn(number, row) == (args.turn == "own")
        return now and (our_kernel(row) or not args.kernels)

    passed = check_all(problems, wanted, args.trace)
    if not passed:
        raise SystemExit("nothing was checked: is the native module there?")
    print(f"{passed} checks passed on {len(problems)} problems")
    if args.sides:
        print(
            f"{check_sides(args.sides, start)} checks passed on {args.sides} layers with ties on both sides"
        )


if __name__ == "__main__":
    sys.exit(main())
