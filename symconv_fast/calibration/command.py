"""`python -m symconv_fast calibrate`: measure the rates of this machine, store them, and say what changes."""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm import tqdm

from .. import machine, native
from . import factors, measure, shapes

DTYPES = ("float32", "bfloat16", "float16")
SECONDS = 120.0
TRUSTED = 0.03
"""Mean regret up to which a type counts as measured: that of the machines that the package's rates are from."""


def main(arguments: Sequence[str] = ()) -> int:
    """Run the command; 0 if rates were stored or removed."""
    args = _parser().parse_args(arguments)
    where = factors.path()
    if where is None:
        print(f"{machine.ENV_CACHE} switches files off; give a folder, or leave it unset")
        return 1
    if args.forget:
        where.unlink(missing_ok=True)
        print(f"removed {where}: estimates are those of the package again")
        return 0
    if native.missing():
        print(
            f"there is nothing to calibrate without the native module: {native.missing()}; {native.HOW_TO_BUILD}"
        )
        return 1
    wanted = args.dtypes or [d for d in DTYPES if measure.supported(getattr(torch, d))]
    print(
        f"{machine.cpu_name()}, {native.module.isa()}, {torch.get_num_threads()} threads, torch {torch.__version__}: "
        f"{', '.join(wanted)}"
    )
    dtypes = [getattr(torch, name) for name in wanted]
    measured = _measure(dtypes, args.seconds)
    learnt = measure.learn(measured, dtypes)
    kept = {name: factor for found in learnt if found.helps for name, factor in found.factors.items()}
    factors.store(kept, [found.dtype for found in learnt if found.regret <= TRUSTED])
    for found in learnt:
        _tell(found)
    print(f"stored in {where}; processes that start from now on read it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m symconv_fast calibrate", description=__doc__)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        help="default: float32 and the 16-bit types that torch multiplies",
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="about how long to measure (default 120)"
    )
    parser.add_argument("--forget", action="store_true", help="remove what was stored")
    return parser


def _measure(dtypes: Sequence[torch.dtype], seconds: float) -> list[measure.Measured]:
    """Every pass of the layers, in time; what is left is shared by those that are left."""
    passes = [found for dtype in dtypes for found in shapes.problems(dtype)]
    end, measured = time.monotonic() + seconds, []
    bar = tqdm(passes, desc="measuring", unit="pass", disable=None)
    for done, (problem, op) in enumerate(bar):
        share = (end - time.monotonic()) / (len(passes) - done)
        measured.append(measure.measure(problem, op, max(0.0, share)))
    return measured


def _tell(learnt: measure.Learnt) -> None:
    """What changes in a type: the factors by family, and what the choices lose with and without."""
    by_family: dict[str, list[float]] = defaultdict(list)
    for name, factor in learnt.factors.items():
        by_family[factors.families(name)[0]].append(factor)
    width = max(map(len, by_family), default=0)
    name = str(learnt.dtype)[6:]
    print(f"{name}: measured over estimated seconds, by kind of work (least and most of its rows)")
    for family, values in sorted(by_family.items()):
        print(f"  {family:<{width}}  {_mean(values):.2f}  ({min(values):.2f} to {max(values):.2f})")
    print(
        f"{name}: on {learnt.passes} passes the package's own rates choose what takes {learnt.before:.1%} longer than "
        f"the quickest, these {learnt.held_out:.1%} (each pass by what the others say): "
        + ("these are used" if learnt.helps else "the package's own stay")
    )
    if learnt.regret > TRUSTED:
        print(
            f'{name}: more than {TRUSTED:.0%}, so that benchmark = "auto" times what it would time without them'
        )


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / max(1, len(values)))
