# Measures the halo-tile kernels (fold in registers, input tile and halo in shared memory) against cuDNN and Triton.
"""python -m bench.micro.halo_rate [--compile-only] [--rows FILE] [--quick] [--sanitize] [--variants h64,hv32]

Compiling needs nvcc (libraries of the same sources in build/micro are taken as they are); running needs a GPU of the
architecture of --arch. Each variant is checked in a process of its own against float64 convolution on the expanded
filters, while other processes fill Triton's cache; then one process times all that are right, shape by shape: cuDNN on
the expanded filters (channels last, benchmark mode), the package's Triton kernels and every variant that fits, the
folding of the weights included, in turns, medians of 12, the L2 cache overwritten before each call. A process that dies
takes only its own contestant with it. Prints JSON rows and, last, a table.

The exit code is 1 if a result is wrong or a process died, 3 if there is neither nvcc nor what it would have built.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from . import halo_build

NO_COMPILER = 3
CHECK_SECONDS, TIME_SECONDS, SANITIZE_SECONDS = 40, 60, 120
WARMERS = 6
SMALL_SIZES = 5  # that a variant is checked on

Row = dict[str, object]


class Worker:
    """A process of its own; its rows are kept, and given to `told`, as they come."""

    def __init__(
        self, job: str, common: list[str], prefix: list[str], told: Callable[[Row], None] | None = None
    ) -> None:
        command = [*prefix, sys.executable, "-m", "bench.micro.halo_rate", "--worker", job, *common]
        self.job, self.rows, self.told = job, list[Row](), told
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.text = list[str]()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.rows.append(json.loads(line))
            except ValueError:
                self.text.append(line)
                continue
            if self.told:
                self.told(self.rows[-1])

    def end(self, seconds: float) -> str:
        """Wait; returns why it failed, or an empty string."""
        try:
            code = self.process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = None
        self.reader.join(10)
        tail = "".join(self.text[-12:])
        if code is None:
            return f"{self.job}: took too long\n{tail}"
        return f"{self.job}: ended with {code}\n{tail}" if code else ""


class Run:
    """One measurement: starts the workers, keeps the rows, remembers what failed."""

    def __init__(self, options: argparse.Namespace, names: list[str]) -> None:
        self.options, self.names = options, names
        self.common = ["--arch", options.arch] + (["--quick"] if options.quick else [])
        self.rows = list[Row]()
        self.failures = list[str]()

    def keep(self, rows: list[Row]) -> None:
        """Print rows and append them to the file, progress marks left out."""
        lines = [json.dumps(row) for row in rows if row.get("row") != "at"]
        self.rows += [row for row in rows if row.get("row") != "at"]
        print(
            "\n".join(line for line in lines if '"check"' not in line or '"right": false' in line), flush=True
        )
        if self.options.rows and lines:
            with self.options.rows.open("a") as file:
                file.write("\n".join(lines) + "\n")

    def failed(self, why: str) -> None:
        """Keep a failure as a row as well."""
        self.failures.append(why)
        self.keep([{"row": "failure", "why": why}])

    def peak(self) -> None:
        """The rates of mma.sync alone, and of wgmma with A from registers, alone and beside a fold."""
        for program in (halo_build.peak_program(self.options.arch), halo_build.BUILD / "wgmma_rate"):
            if not program.exists():
                continue
            done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
            self.keep(
                [{"row": "peak", **json.loads(line)} for line in done.stdout.splitlines() if line[:1] == "{"]
            )
            if done.returncode:
                self.failed(f"{program.name}: {done.stderr}")

    def check(self) -> list[str]:
        """Variants that are right."""
        warmers = [Worker(f"warm:{i}/{WARMERS}", self.common, []) for i in range(WARMERS)]
        groups = [[name for name in self.names if name[0] != "w"]]  # one process for all that are of mma.sync
        for clusters in (False, True):  # and one for two with wgmma, so that as few as possible die together
            some = [name for name in self.names if name[0] == "w" and name.endswith("c") == clusters]
            groups += [some[i : i + 2] for i in range(0, len(some), 2)]
        checkers = [
            (names, Worker(f"check:{','.join(names)}", self.common, [])) for names in filter(None, groups)
        ]
        right, deadline = [], time.monotonic() + CHECK_SECONDS
        for names, worker in checkers:
            why = worker.end(deadline - time.monotonic())
            self.keep(worker.rows)
            if why:
                self.failed(why)
            for name in names:
                rows = [row for row in worker.rows if row.get("variant") == name]
                if len(rows) == SMALL_SIZES and all(row.get("right") for row in rows):
                    right.append(name)
                else:
                    self.failed(f"{name}: not right on {SMALL_SIZES} sizes")
        for worker in warmers:
            why = worker.end(deadline - time.monotonic())
            if why:
                self.failed(why)
        return right

    def sanitize(self) -> None:
        """Each variant's smallest checks under each tool of compute-sanitizer."""
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
            prefix = [
                "compute-sanitizer",
                f"--tool={tool}",
                "--error-exitcode=9",
                "--kernel-name-exclude=kns=at::",
            ]
            workers = {
                n: Worker(f"few:{n}", self.common, [*prefix, "--target-processes=all"]) for n in self.names
            }
            deadline = time.monotonic() + SANITIZE_SECONDS
            for name, worker in workers.items():
                why = worker.end(deadline - time.monotonic())
                self.keep(
                    [*worker.rows, {"row": "sanitizer", "tool": tool, "variant": name, "clean": not why}]
                )
                if why:
                    self.failed(f"{tool}: {why}")

    def time(self, names: list[str]) -> None:
        """Rows of all shapes; a contestant at which the process dies is left out when it starts again."""
        left = list(names)
        done = list[str]()
        for _ in range(4):
            job = f"time:{','.join(left)}:{','.join(done)}"
            worker = Worker(job, self.common, [], lambda row: self.keep([row]))
            why = worker.end(TIME_SECONDS)
            done += [f"{row['shape']}/{row['tie']}" for row in worker.rows if row["row"] == "time"]
            if not why:
                return
            marks = [row for row in worker.rows if row["row"] == "at"]
            guilty = str(marks[-1]["contestant"]) if marks else "start"
            self.failed(f"at {guilty}: {why}")
            # While all run in turns, nobody knows who it was: those that are less proven step back.
            left = [name for name in left if name != guilty and (guilty != "timing" or name[0] != "w")]


def loadable(names: list[str], arch: str) -> bool:
    """Whether the libraries run on this machine: one that was built elsewhere may ask for another libc."""
    try:
        for name in names:
            ctypes.CDLL(str(halo_build.library(halo_build.VARIANTS[name], arch)))
        subprocess.run([str(halo_build.peak_program(arch))], capture_output=True, timeout=60)
    except OSError:
        return False
    return True


def table(rows: list[Row]) -> str:
    """Dense-equivalent TFLOP/s and ratios, a line for each shape and tie."""
    lines = ["shape          tie |  cuDNN Triton   best TFLOP/s | ratio Triton  best | kernel (others)"]
    for row in (row for row in rows if row.get("row") == "time"):
        rate, ratio, best = row["tflops"], row["ratio"], row.get("best")
        assert isinstance(rate, dict)
        assert isinstance(ratio, dict)
        others = ", ".join(f"{n} {ratio[n]:.2f}" for n in rate if n not in ("cudnn", "triton", best))
        lines.append(
            f"{row['shape']:14} {row['tie']:3} | {rate['cudnn']:6} {rate.get('triton', '-'):>6} "
            f"{rate.get(best, '-'):>6}         | {ratio.get('triton', 0):12.2f} "
            f"{ratio.get(best, 0):5.2f} | {best} ({others})"
        )
        for name, each in row.get("parts_ms", {}).items():  # type: ignore[attr-defined]
            lines.append(f"{'':20}{name}: {row['ms'][name]} ms; {each}")  # type: ignore[index]
    return "\n".join(lines)


def work(options: argparse.Namespace) -> int:
    """What a worker does."""
    from . import halo_work

    kind, _, rest = options.worker.partition(":")
    if kind in ("check", "few"):
        for name in rest.split(","):
            halo_work.check(name, options.arch, kind == "few")
    elif kind == "warm":
        part, parts = rest.split("/")
        halo_work.warm(int(part), int(parts), options.quick)
    else:
        names, done = rest.split(":")
        halo_work.time(names.split(","), options.arch, options.quick, done.split(","))
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="halo-tile kernels against cuDNN and Triton")
    parser.add_argument(
        "--compile-only", action="store_true", help="build, and check the kernels on the host"
    )
    parser.add_argument("--rows", type=Path, help="append the rows here as well")
    parser.add_argument("--quick", action="store_true", help="four shapes")
    parser.add_argument(
        "--sanitize", action="store_true", help="compute-sanitizer on the smallest shapes, no timing"
    )
    parser.add_argument("--variants", help="only these, separated by commas")
    parser.add_argument("--arch", default="90a", help="architecture to build for (%(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[str]:
    """Names of the variants.

    Raises:
        SystemExit: one does not exist.
    """
    names = options.variants.split(",") if options.variants else halo_build.possible(options.arch)
    for name in names:
        if name not in halo_build.VARIANTS:
            raise SystemExit(f"--variants: there is no {name!r}; there are {', '.join(halo_build.VARIANTS)}")
    return names


def main() -> int:
    """Build, check, time, print."""
    options = parse()
    if options.worker:
        return work(options)
    names = chosen(options)
    if shutil.which("nvcc") is None and not all(
        halo_build.library(halo_build.VARIANTS[name], options.arch).exists() for name in names
    ):
        print("nvcc is not on the PATH; add the folder bin of a CUDA toolkit", file=sys.stderr)
        return NO_COMPILER
    start = time.monotonic()
    print(halo_build.build(names, options.arch), end="")
    if options.compile_only:
        halo_build.check_on_host()
        print(f"compiled, and right on the host: {', '.join(names)}")
        return 0
    if not loadable(names, options.arch):
        halo_build.build(names, options.arch, again=True)
    print(f"built after {time.monotonic() - start:.0f} s", flush=True)
    run = Run(options, names)
    if options.sanitize:
        run.sanitize()
    else:
        run.peak()
        right = run.check()
        print(f"checked after {time.monotonic() - start:.0f} s", flush=True)
        run.time(right)
    print("\n".join(run.failures))
    print(table(run.rows))
    print(f"ended after {time.monotonic() - start:.0f} s")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
