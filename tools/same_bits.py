# Stores the bits of what every algorithm on the CPU computes for many problems, and compares another build with them.
"""python tools/same_bits.py record FILE [--count 300] [--seed 0]
python tools/same_bits.py compare FILE [--ignore NAME,...] [--only PATTERN]

FILE has a line of JSON for each problem: how to make it, and a digest for each dtype, pass, algorithm and number of
threads. The problems are those listed by hand in tests/cases.py and `count` random ones from number `seed` on;
`compare` runs the problems of the file. It lists what differs, what runs only now, and what ran only then with the
reason, and ends with exit code 1 where bits differ. The package is the one of PYTHONPATH, else that of this repository,
so that an older build can be recorded; SYMCONV_FAST_ISA and torch must be the same for both.

Beside the three operators, each of which is pinned, these are run: the gradients of weight and bias together, which
autograd asks for at a layer's second call, and an activation, another one from problem to problem.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import itertools
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT))  # PYTHONPATH goes first

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # two threads on a busy machine; read when torch is loaded

import cases  # noqa: E402
import oracle  # noqa: E402
import torch  # noqa: E402
from oracle import Case, Tensors  # noqa: E402
from torch import Tensor  # noqa: E402

import symconv_fast  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("relu", "silu", "gelu")
ISA = os.environ.get("SYMCONV_FAST_ISA", "")

Rows = dict[str, str]
"""By "dtype pass algorithm xthreads": a digest, or the reason of a refusal."""


def problems(count: int, seed: int) -> dict[str, Case]:
    """By name: those listed by hand, and random ones."""
    drawn = cases.sample(count, seed)
    return cases.SPECIAL | {f"random {number}": case for number, case in enumerate(drawn, seed)}


def digest(*results: Tensor) -> str:
    """Of shapes, strides and all bits."""
    found = hashlib.blake2b(digest_size=8)
    for result in results:
        found.update(repr((tuple(result.shape), result.stride())).encode())
        found.update(result.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def calls(case: Case, dtype: torch.dtype) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """What is run with each algorithm pinned, by the name of the pass; made where nothing is pinned yet."""
    t = oracle.arranged(case, dtype)
    activation = ACTIVATIONS[case.seed % len(ACTIVATIONS)]
    static = (activation, *case.static)
    found: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        **{op: lambda op=op: (oracle.call(case, op, t),) for op in oracle.OPS},
        activation: lambda: (torch.ops.symconv_fast.fprop_activated(t.x, t.w, t.b, *static),),
    }
    if case.bias:
        layer, y = second_call(case, dtype, t)
        leaves = [layer.weight, layer.bias]
        found["wgrad+bias"] = lambda: torch.autograd.grad(y, leaves, t.gy, retain_graph=True)
    return found


def second_call(case: Case, dtype: torch.dtype, t: Tensors) -> tuple[Any, Tensor]:
    """A layer with these weights, and its output at the second call."""
    layer = oracle.make_layer(case, dtype, t.w)
    with symconv_fast.backend("cpu", "fold"):
        layer(t.x)
        return layer, layer(t.x)


def answers(case: Case) -> tuple[Rows, Rows]:
    """Digests of all that runs, and the reasons of what does not."""
    digests: Rows = {}
    reasons: Rows = {}
    for threads, dtype in itertools.product((1, 2), DTYPES):
        with oracle.threads(threads):
            passes = calls(case, dtype)
            for algorithm in algorithms(threads):
                with oracle.pinned("cpu", algorithm):
                    for name, run in passes.items():
                        row = f"{str(dtype)[6:]} {name} {algorithm} x{threads}"
                        try:
                            digests[row] = digest(*run())
                        except RuntimeError as error:
                            if "which cannot run" not in str(error):
                                raise
                            reasons[row] = str(error).rpartition(": ")[2]
    return digests, reasons


def algorithms(threads: int) -> list[str]:
    """Of the native backend; in two threads our own kernels alone.

    torch 2.13's convolution can wait for ever when a shape comes again with another number of threads.
    """
    found = [algorithm for backend, algorithm in oracle.algorithms() if backend == "cpu"]
    return [algorithm for algorithm in found if threads == 1 or algorithm != "expand"]


def record(path: Path, wanted: dict[str, Case]) -> None:
    """Write the file."""
    with path.open("w") as file:
        print(json.dumps({"isa": ISA, "torch": torch.__version__}), file=file)
        for name, case in progress(wanted):
            digests, _ = answers(case)
            print(json.dumps({"problem": name, "case": repr(case), "digests": digests}), file=file)


def compare(path: Path, ignored: set[str], only: str = "") -> int:
    """Print what is not as in the file; 1 where bits differ, else 0."""
    first, *lines = map(json.loads, path.read_text().splitlines())
    here = {"isa": ISA, "torch": torch.__version__}
    if first != here:
        raise SystemExit(f"{path} was recorded with {first}, which is not {here}")

    def counts(row: str) -> bool:
        return row.split()[2] not in ignored and re.search(only, row) is not None

    found: dict[str, list[str]] = {"differs": [], "is new": [], "vanished": []}
    same = 0
    stored = {line["problem"]: (eval(line["case"], {"Case": Case}), line["digests"]) for line in lines}
    for name, (case, before) in progress(stored):
        now, reasons = answers(case)
        for row in filter(counts, {**before, **now}):
            old, new = before.get(row), now.get(row)
            if old == new:
                same += 1
            elif old is None:
                found["is new"].append(f"{row}: {name}")
            elif new is None:
                found["vanished"].append(f"{row}: {name}: {reasons.get(row, 'no such algorithm')}")
            else:
                found["differs"].append(f"{row}: {name}: {case!r}")
    for what, entries in found.items():
        show(what, entries)
    print(f"{same} are the same, {', '.join(f'{len(e)} {what}' for what, e in found.items())}")
    return 1 if found["differs"] else 0


def show(what: str, entries: list[str], most: int = 20) -> None:
    """How many of each pass and algorithm, whatever the number of threads, and the first of them."""
    kinds = Counter(entry.split(": ")[0].rsplit(" ", 1)[0] for entry in entries)
    for kind, count in sorted(kinds.items()):
        print(f"{what}: {kind} ({count})")
    for entry in entries[:most]:
        print(f"    {entry}")
    if len(entries) > most:
        print(f"    and {len(entries) - most} more")


def progress(wanted: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The items, with a word on the error stream from time to time."""
    for number, item in enumerate(wanted.items(), 1):
        yield item
        if number % 50 == 0 or number == len(wanted):
            print(f"{number} of {len(wanted)} problems", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=300, help="random problems that are recorded")
    parser.add_argument("--seed", type=int, default=0, help="number of the first of them")
    parser.add_argument("--ignore", default="", help="algorithms, separated by commas")
    parser.add_argument("--only", default="", help="regular expression for the rows that are compared")
    args = parser.parse_args(arguments)
    if "cpu" not in {backend for backend, _ in oracle.algorithms()}:
        raise SystemExit("the native CPU module is not built")
    faulthandler.enable()
    warnings.simplefilter("ignore", symconv_fast.SymmetryWarning)
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    print(f"{Path(symconv_fast.__file__).parent}, {ISA or 'the best instruction set'}", file=sys.stderr)
    if args.what == "record":
        record(args.file, problems(args.count, args.seed))
        return 0
    return compare(args.file, set(filter(None, args.ignore.split(","))), args.only)


if __name__ == "__main__":
    sys.exit(main())
