# Every backend of a GPU against cuDNN in one run: layer by layer, in turns, each result compared before it is timed.
"""python -m bench.rivals [--minutes N] [--rows FILE] [--answers FILE] [--tiny]

For each layer and pass: torch's convolution with filters expanded beforehand (cuDNN, benchmark mode), the Triton
algorithm that its model prefers, and every algorithm of the CUDA kernels that can run, in bfloat16. Layers are in the
order of what they tell, so that a run that ends early has the most of it; Triton's kernels are compiled by all cores
meanwhile. Kernels that failed their known answers (rows of tests/cuda_answers.py in --answers) do not take part. Each
row is appended to --rows at once; a row that is there is not measured again. After an error that leaves the GPU
unusable the program starts again without the one at fault. `--tiny` does it all on a CPU: kernels interpreted, or on
the stand-in; its numbers mean nothing."""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import warm
from bench.device import Call, device
from bench.measure import interleave, provenance
from bench.shapes import DEPTHWISE, Shape
from symconv_fast import dispatch, modules
from symconv_fast.binding import bind
from symconv_fast.problem import OPERANDS, OPS, Problem, memory_format

LIBRARY = "cuDNN"
SAME = 1.5e-2  # relative root mean square that roundings of bfloat16 in another order may make
STICKY = ("CUDA error", "illegal", "misaligned", "unspecified launch failure")
COMPILE_SECONDS = 90.0


def _layer(images: int, channels: int, size: int, **more: Any) -> Shape:
    return Shape("", channels, (size, size), gpu_batch=images, **more)


WIDE = (_layer(64, 512, 28), _layer(64, 256, 56), _layer(256, 256, 14))
OTHER = (
    _layer(64, 128, 112), _layer(16, 320, 64), _layer(256, 128, 28), _layer(256, 512, 7), _layer(256, 64, 56),
)  # fmt: skip
STRIDED = (_layer(256, 128, 56, stride=2), _layer(64, 256, 28, kernel=5))
VOLUME = (Shape("", 128, (32, 32, 32), gpu_batch=2),)


@dataclass(frozen=True)
class Job:
    """A pass of a layer, and the layout of its tensors."""

    shape: Shape
    tie: str
    op: str
    last: bool = True
    tiny: bool = False

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.shape.on(self.where).name} {self.tie} {self.op}{'' if self.last else ' contiguous'}"

    @property
    def where(self) -> str:
        """The device."""
        return "cpu" if self.tiny else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Triton's interpreter does not compute with bfloat16 as it is."""
        return torch.float16 if self.tiny else torch.bfloat16


def jobs(tiny: bool) -> list[Job]:
    """All that is measured, what tells most first."""
    if tiny:
        return [Job(Shape("", 32, (5, 6)), "h", op, tiny=True) for op in OPS]
    rows = [(shape, tie, op, True) for op in OPS for shape in WIDE for tie in ("h", "hv")]
    rows += [(shape, tie, "fprop", True) for shape in OTHER for tie in ("h", "hv")]
    channelwise = [(shape, last) for shape in DEPTHWISE for last in (True, False)]
    rows += [(shape, "hv", "fprop", last) for shape, last in channelwise]
    rows += [(shape, "hv", op, True) for op in OPS for shape in (*STRIDED, *VOLUME)]
    rows += [(shape, tie, op, True) for op in OPS[1:] for shape in OTHER for tie in ("h", "hv")]
    rows += [(shape, "hv", op, last) for op in OPS[1:] for shape, last in channelwise]
    rows += [(WIDE[1], "v", op, True) for op in OPS]
    return [Job(*row) for row in rows]


class Layer:
    """The tensors of a job, and the calls that compute it."""

    def __init__(self, job: Job) -> None:
        shape, ndim = job.shape.on(job.where), len(job.shape.spatial)
        torch.manual_seed(0)
        layer = getattr(modules, f"SymmetricConv{ndim}d")(
            shape.channels, shape.out_channels(1 << len(job.tie)), shape.taps, stride=shape.stride,
            padding=shape.padding, dilation=shape.dilation, groups=shape.groups, bias=False, symmetry=job.tie,
        )  # fmt: skip
        layer = layer.to(job.where, job.dtype)
        kind = memory_format(ndim, job.last)

        def values(size: tuple[int, ...]) -> Tensor:
            return torch.randn(size, device=job.where, dtype=job.dtype).contiguous(memory_format=kind)

        self.job = job
        self.x = values((shape.batch, shape.channels, *shape.spatial))
        self.problem: Problem = layer.problem(self.x)
        self.gy = values(self.problem.output_shape)
        self.w = layer.weight.detach().contiguous(memory_format=kind)
        self.filters = layer.expanded_weight().detach().contiguous(memory_format=kind)

    def library(self) -> Tensor:
        """torch's own convolution, with filters that cost nothing to expand."""
        p, op = self.problem, self.job.op
        geometry = (p.stride, p.padding, p.dilation, False, [0] * len(p.stride), p.groups)
        if op == "fprop":
            return torch.convolution(self.x, self.filters, None, *geometry)
        mask = [op == "dgrad", op == "wgrad", False]
        grads = torch.ops.aten.convolution_backward(self.gy, self.x, self.filters, None, *geometry, mask)
        return grads[0 if op == "dgrad" else 1]

    def answer(self) -> Tensor:
        """The library's, as ours have it."""
        result = self.library()
        return self.problem.layer_ties.adjoint(result.float(), 0) if self.job.op == "wgrad" else result

    def ours(self, backend: str, algorithm: str) -> Call:
        """A pass by a backend."""
        run = bind(dispatch.available()[backend], self.problem, self.job.op, algorithm)
        tensors = {"x": self.x, "w": self.w, "y": self.gy}
        first, second, result = OPERANDS[self.job.op]
        bias = [None] if result == "y" else []
        return lambda: run(tensors[first], tensors[second], *bias)

    def kernels(self, backend: str, algorithm: str) -> tuple[str, ...]:
        """Names of what a backend would launch, where it tells."""
        tell = getattr(dispatch.available()[backend], "kernels", None)
        return tuple(tell(self.problem, self.job.op, algorithm)) if tell is not None else ()

    def ways(self) -> list[tuple[str, str]]:
        """The Triton algorithm that its model prefers, and all of the CUDA kernels that can run."""
        found = []
        for backend in ("triton", "cuda"):
            module = dispatch.available().get(backend)
            op, p = self.job.op, self.problem
            can = [a for a in module.ALGORITHMS if module.can_run(p, op, a) is None] if module else []
            if backend == "triton" and can:
                can = [min(can, key=lambda a: module.estimate(p, op, a))]
            found += [(backend, algorithm) for algorithm in can]
        return found


def compile_triton(job: Job) -> None:
    """What a process of the pool does."""
    layer = Layer(job)
    for backend, algorithm in layer.ways():
        if backend == "triton":
            layer.ours(backend, algorithm)()
    del layer
    torch.cuda.empty_cache()


@contextmanager
def compiled(todo: list[Job], tiny: bool) -> Iterator[list[Any]]:
    """A future of each job's compilation, or None where nothing is compiled."""
    if tiny:
        yield [None] * len(todo)
        return
    with warm.compiled(compile_triton, todo) as futures:
        yield futures


class Run:
    """One run: what is known from earlier rows, and where new ones go."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        rows = _rows(options.rows)
        self.done = {row["name"] for row in rows if row.get("row") == "rivals"}
        self.lost = {row["contestant"] for row in rows if row.get("row") == "lost"}
        answers = _rows(options.answers)
        self.failed = {
            row["kernel"] for row in answers if row.get("row") == "answer" and row["verdict"] == "FAIL"
        }

    def keep(self, row: dict[str, Any]) -> None:
        """Append a row."""
        if self.options.rows is not None:
            with self.options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def measure(self, job: Job) -> None:
        """Compare, then time, the contestants of a job."""
        layer, machine = Layer(job), device(job.where)
        answer = layer.answer().float()
        calls: dict[str, Call] = {LIBRARY: layer.library}
        notes = {}
        for backend, algorithm in layer.ways():
            name, kernels = f"{backend} {algorithm}", layer.kernels(backend, algorithm)
            if name in self.lost or self.failed.intersection(kernels):
                notes[name] = "left out: it failed before"
                continue
            call = layer.ours(backend, algorithm)
            wrong = self._wrong(name, call, answer)
            if wrong:
                notes[name] = wrong
            else:
                calls[name] = call
        ready, timer = machine.prepare(calls)
        few = {"max_rounds": 1, "min_rounds": 1} if job.tiny else {"max_rounds": 12, "min_rounds": 7}
        times = interleave(ready, 0.5, repeats=1, once=machine.once, warm_up=1, **few)
        ms = {name: timing.p50 for name, timing in times.items()}
        p = layer.problem
        per_output = p.weight_shape[1] * torch.Size(p.kernel).numel()
        work = 2e-9 * torch.Size(p.output_shape).numel() * per_output
        row = {
            "row": "rivals", "name": job.name, "tie": job.tie, "op": job.op, "dtype": str(job.dtype)[6:],
            "timer": timer, "ms": ms, "tflops": {name: work / t for name, t in ms.items()},
            "ratio": {name: ms[LIBRARY] / t for name, t in ms.items()}, "notes": notes,
            **machine.state(), **provenance(job.where),
        }  # fmt: skip
        self.keep(row)
        print(line(row), flush=True)

    def _wrong(self, name: str, call: Call, answer: Tensor) -> str:
        """Why a contestant does not take part, or nothing."""
        try:
            result = call().float()  # type: ignore[attr-defined]
            error = float(((result - answer).square().mean() / answer.square().mean()).sqrt())
        except Exception as problem:  # of one of several: the others are measured all the same
            text = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:200]}"
            if any(part in text for part in STICKY):
                self.keep({"row": "lost", "contestant": name, "why": text})
                print(f"{name}: {text}; starting again without it", flush=True)
                os.execv(sys.executable, [sys.executable, "-m", "bench.rivals", *sys.argv[1:]])
            return text
        return "" if error <= SAME else f"wrong: it differs by {error:.2g}"


def _rows(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path and path.exists() else []


def line(row: dict[str, Any]) -> str:
    """A row to read: TFLOP/s of the expanded convolution, and how many times faster than the library."""
    text = f"{row['name']:34} {LIBRARY} {row['ms'][LIBRARY]:.3f} ms {row['tflops'][LIBRARY]:5.0f}"
    for name in row["ms"]:
        if name != LIBRARY:
            text += f" | {name} {row['tflops'][name]:5.0f} {row['ratio'][name]:.2f}"
    return text + "".join(f" | {name}: {note}" for name, note in row["notes"].items())


@cache
def stand_in() -> None:
    """In a rehearsal the CUDA kernels run on the stand-in of the tests."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import cuda_host

    from symconv_fast.backends.cuda import native

    native.STAND_IN = cuda_host.module()
    dispatch.load.cache_clear()


def main() -> None:
    """Measure until there is no time left."""
    parser = argparse.ArgumentParser(description="every backend of a GPU against cuDNN")
    parser.add_argument("--minutes", type=float, default=5.0, help="stop after this long (%(default)s)")
    parser.add_argument("--rows", type=Path, help="append the rows here")
    parser.add_argument("--answers", type=Path, help="rows of tests/cuda_answers.py")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to see that it runs")
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    end = options.until or time.time() + 60 * options.minutes
    if not options.until:  # should it start again
        sys.argv += ["--until", str(end)]
    if options.tiny:
        stand_in()
    run = Run(options)
    todo = [job for job in jobs(options.tiny) if job.name not in run.done]
    with compiled(todo, options.tiny) as futures:
        for job, future in zip(todo, futures, strict=True):
            if time.time() > end:
                print("time is up")
                break
            if future is not None:
                try:
                    future.result(timeout=COMPILE_SECONDS)
                except TimeoutError:
                    print(f"{job.name}: Triton is still compiling", flush=True)
            run.measure(job)


if __name__ == "__main__":
    main()
