# Compiles Triton kernels in many processes at once, so that a machine with a GPU does not wait for one compiler.
"""A pool of compilers: each job makes its ordinary calls, but every launch only compiles, into Triton's cache on disk.

`python -m bench.warm [options of `pytest bench` that choose cases]` compiles what those cases will launch.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from bench import plan
from bench.case import Case

Job = TypeVar("Job")


def workers() -> int:
    """One for each core but one, which is left to the process that measures."""
    return max(1, (os.cpu_count() or 2) - 1)


@contextmanager
def unpinned() -> Iterator[None]:
    """Children that begin here run on all cores: `bench.threads` pinned this process, which they would inherit."""
    environment, every = os.environ.get("OMP_PROC_BIND"), hasattr(os, "sched_setaffinity")
    affinity = os.sched_getaffinity(0) if every else set()
    os.environ["OMP_PROC_BIND"] = "false"
    if every:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.environ["OMP_PROC_BIND"] = environment or "close"
        if every:
            os.sched_setaffinity(0, affinity)


def _begin() -> None:
    """Launch nothing from here on."""
    from symconv_fast.backends.triton import run

    run._start = compile_only  # type: ignore[assignment]


def compile_only(step: Any, tensors: dict[str, torch.Tensor]) -> None:
    """In place of a launch: what it would compile."""
    arguments = {name: tensors[tensor] for name, (tensor, _) in step.pointers.items()}
    step.function.warmup(
        grid=(step.grid,), **arguments, **step.scalars, **step.constants,
        num_warps=step.warps, num_stages=step.stages,
    )  # fmt: skip


def _attempt(work: Callable[[Job], object], job: Job) -> str | None:
    """None, or the first line of what went wrong: a job that fails here is one that its user will report."""
    try:
        work(job)
    except Exception as error:  # whatever a compiler may raise
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return None


@contextmanager
def compiled(work: Callable[[Job], object], jobs: Iterable[Job]) -> Iterator[list[Future[str | None]]]:
    """Futures of the jobs in order, each done when its kernels are compiled; `work` must be picklable.

    What is not begun when the context ends is left undone.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers(), mp_context=context, initializer=_begin)
    try:
        with unpinned():
            futures = [pool.submit(_attempt, work, job) for job in jobs]
        yield futures
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def case(one: Case) -> None:
    """The calls of a case of the benchmark."""
    from bench.cases import Bench, pinned

    bench = Bench(one)
    with pinned(one):
        bench.ours().call(one.direction)()
    del bench
    torch.cuda.empty_cache()


def main() -> None:
    """Compile for the cases that the options choose; prints what failed."""
    parser = argparse.ArgumentParser(description="compile the Triton kernels of a benchmark ahead of it")
    for name in ("ties", "layouts", "dtypes", "passes"):
        parser.add_argument(f"--{name}", default="")
    for name in ("shapes", "backend", "algorithm"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--full", action="store_true")
    given = vars(parser.parse_args())
    lists = {n: tuple(filter(None, given[n].split(","))) for n in ("ties", "layouts", "dtypes", "passes")}
    options = plan.Options(**{**given, **lists}, device="cuda")
    kinds = ("forward", "backward", "step", "depthwise")
    jobs = list(dict.fromkeys(one for kind in kinds for one in plan.cases(kind, options)))
    began, failed = time.monotonic(), 0
    with compiled(case, jobs) as futures:
        for job, future in zip(jobs, futures, strict=True):
            if reason := future.result():
                failed += 1
                print(f"{job.name}: {reason}", flush=True)
    print(
        f"{len(jobs)} cases compiled by {workers()} processes in {time.monotonic() - began:.0f} s, {failed} failed"
    )


if __name__ == "__main__":
    main()
