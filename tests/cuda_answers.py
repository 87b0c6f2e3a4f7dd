# Known answers of every CUDA kernel on the GPU that is here, in processes of their own: PASS or FAIL a kernel.
"""python tests/cuda_answers.py [--rows FILE] [--seconds N] [--few N] [--only tile,fprop] [--stand-in]

Problems of tests/cuda_grid.py, and larger ones, against the float64 oracle; first the cheapest problem that launches
each kernel, then whatever else there is time for. A process for each algorithm, pass and type: one that dies takes no
other with it, and is started again without the kernels that it was running. The table has every kernel that was built.
`--few` tries so many problems in each process, `--only` starts those whose name begins so, `--stand-in` does it
without a GPU. COMMAND in the environment is what the processes are started with, in place of Python alone. The exit
code is 1 if a kernel failed, or none passed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import cuda_fake
import cuda_grid
import cuda_host
import torch
from oracle import Case, problem_of

from symconv_fast import settings
from symconv_fast.backends import cuda

WORKERS = 8
STARTS = 6  # of one process
STICKY = (
    "CUDA error",
    "illegal",
    "misaligned",
    "unspecified launch failure",
)  # nothing runs after such an error


def larger() -> dict[str, Case]:
    """Layers that fill a GPU: large tiles are not chosen for less."""
    found = {}
    for name, masks in {"free": (0,), "h": (1,), "v": (2,), "hv": (3,), "mixed": (0, 1, 3)}.items():
        for channels, size, batch in ((64, 56, 4), (128, 28, 8), (256, 14, 16), (512, 7, 16)):
            members = sum(1 << mask.bit_count() for mask in masks)
            ties = tuple((mask, max(8, channels // members // 8 * 8)) for mask in masks)
            case = Case(ties=ties, channels=channels, spatial=(size, size), padding=(1, 1), batch=batch)
            found[f"{name}, {batch}x{channels}@{size}"] = replace(
                case, layouts=("channels_last",) * 3, result_last=True
            )
    return found


def problems(
    algorithm: str, op: str, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Case, tuple[str, ...]]]:
    """What can run, with the kernels that it launches: cheapest first, those that meet a new kernel before all."""
    every = cuda_grid.grid() | (larger() if device == "cuda" else {})
    backend, can = cuda.load(), []
    for name, case in sorted(every.items(), key=lambda item: cases.dense_macs(item[1])):
        problem = problem_of(case, dtype, op, device)
        if backend.can_run(problem, op, algorithm) is None:
            can.append((name, case, tuple(backend.kernels(problem, op, algorithm))))
    met: set[str] = set()
    first = [entry for entry in can if not met.issuperset(entry[2]) and not met.update(entry[2])]
    yield from first
    yield from (entry for entry in can if entry not in first)


def say(**row: object) -> None:
    """A row for the process that started this one."""
    print(json.dumps(row), flush=True)


def work(options: argparse.Namespace) -> int:
    """Try the problems of one algorithm, pass and type."""
    algorithm, op, name = options.worker.split(",")
    dtype, device = getattr(torch, name), "cpu" if options.stand_in else "cuda"
    skip, done, end = (
        set(options.skip.split(",")),
        set(options.done.split(",")),
        time.monotonic() + options.seconds,
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        True  # else float32 has no matrix kernels
    )
    tried = 0
    with cuda_fake.stand_in(cuda_host.module()) if options.stand_in else nullcontext():
        for title, case, kernels in problems(algorithm, op, dtype, device):
            if title in done or skip.intersection(kernels):
                continue
            if time.monotonic() > end or tried == (options.few or -1):
                break
            tried += 1
            say(at=title, kernels=kernels)
            error = ""
            try:
                cuda_grid.check(case, dtype, op, algorithm, device)
            except Exception as wrong:  # whatever it is, it is the answer
                error = f"{type(wrong).__name__}: {(str(wrong).splitlines() or [''])[0][:300]}"
            say(problem=title, kernels=kernels, error=error)
            if any(text in error for text in STICKY):
                return 1
    return 0


class Group:
    """The processes, one after the other, of one algorithm, pass and type; `rows` are what they found."""

    def __init__(self, name: str, options: argparse.Namespace, end: float) -> None:
        self.name, self.options, self.end = name, options, end
        self.rows: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """Until a process ends by itself, or there is no time left."""
        skip: set[str] = set()
        for _ in range(STARTS):
            left = self.end - time.monotonic()
            if left < 5:
                break
            at, code, text = self._process(skip, left)
            if code == 0:
                break
            if at is None:
                self.rows.append({"problem": "", "kernels": [], "error": f"{self.name}: {text[-300:]}"})
                break
            skip.update(at["kernels"])
            if not any(row["problem"] == at["at"] for row in self.rows):
                self.rows.append(
                    {"problem": at["at"], "kernels": at["kernels"], "error": f"died: {text[-300:]}"}
                )
        return self.rows

    def _process(self, skip: set[str], seconds: float) -> tuple[dict[str, Any] | None, int, str]:
        """What it was at last, its exit code, what it printed that is no row."""
        done = [row["problem"] for row in self.rows]
        command = [
            *shlex.split(os.environ.get("COMMAND", sys.executable)),
            __file__,
            "--worker",
            self.name,
            "--skip",
            ",".join(skip),
            "--done",
            ",".join(done),
        ]
        command += ["--seconds", str(seconds), "--few", str(self.options.few)]
        command += ["--stand-in"] * self.options.stand_in
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "2",
            settings.ENV_KNOWN_ANSWERS: "0",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        timer = threading.Timer(seconds + 30, process.kill)  # a kernel that never ends
        timer.start()
        at, text = None, ""
        for line in process.stdout or ():
            try:
                row = json.loads(line)
            except ValueError:
                text += line
                continue
            if "at" in row:
                at = row
            else:
                self.rows.append(row)
        code = process.wait()
        timer.cancel()
        return at, code, text


def groups(options: argparse.Namespace) -> list[str]:
    """Every algorithm, pass and type that has kernels."""
    found = []
    with cuda_fake.stand_in(cuda_host.module()) if options.stand_in else nullcontext():
        from symconv_fast.backends.cuda import families

        cuda.load()
        for algorithm, op in families.FAMILIES:
            for dtype in ("bfloat16", "float16", "float32"):
                name = f"{algorithm},{op},{dtype}"
                matrix = algorithm in ("patch", "hopper")  # of 16 bits alone
                if name.startswith(options.only) and not (matrix and dtype == "float32"):
                    found.append(name)
    return found


def verdicts(rows: list[dict[str, Any]], listed: list[str]) -> dict[str, tuple[str, int, str]]:
    """Of every kernel: PASS, FAIL or not met; problems; the first error."""
    found = dict.fromkeys(listed, ("not met", 0, ""))
    for row in rows:
        for name in row["kernels"]:
            verdict, times, error = found.get(name, ("not met", 0, ""))
            failed = bool(row["error"]) or verdict == "FAIL"
            found[name] = ("FAIL" if failed else "PASS", times + 1, error or row["error"])
    return found


def main() -> int:
    """Start the processes, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="append a row for every kernel")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--few", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--stand-in", action="store_true")
    for name in ("worker", "skip", "done"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    names = groups(options)  # which may build the stand-in first
    end = time.monotonic() + options.seconds
    every = [Group(name, options, end) for name in names]
    with cuda_fake.stand_in(cuda_host.module()) if options.stand_in else nullcontext():
        listed = [name for name, _ in cuda.listing()]
    with ThreadPoolExecutor(2 if options.stand_in else WORKERS) as pool:
        rows = [row for found in pool.map(Group.run, every) for row in found]
    table = verdicts(rows, listed)
    for name, (verdict, times, error) in sorted(table.items()):
        print(f"{name:36} {verdict:8} {times:4} problems  {error}")
        if options.rows:
            with options.rows.open("a") as file:
                answer = {
                    "row": "answer",
                    "kernel": name,
                    "verdict": verdict,
                    "problems": times,
                    "error": error,
                }
                file.write(json.dumps(answer) + "\n")
    lost = [row["error"] for row in rows if row["error"] and not row["kernels"]]
    print("\n".join(lost))
    counts = [verdict for verdict, _, _ in table.values()]
    print(
        f"{counts.count('PASS')} kernels passed, {counts.count('FAIL')} failed, {counts.count('not met')} not met"
    )
    return 1 if lost or "FAIL" in counts or "PASS" not in counts else 0


if __name__ == "__main__":
    sys.exit(main())
