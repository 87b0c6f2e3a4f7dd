# Finds the tiles of the Triton kernels by measuring them: the table and the measurements that made it are both stored.
"""python -m bench.tune [--device cuda] [--dtypes bfloat16,...] [--ties h,hv] [--minutes N] [--rows FILE] [--table FILE]

For each device, type, tie, kernel and class of shape every legal tile (with --most, so many of them) is timed on one
layer of that class, after its result was compared with that of the tile that is in use. Tiles are compiled by all
cores while others are measured. Each measurement is a line of --rows, written at once; --table, the module that the
backend reads, is made from all lines of --rows, so that an interrupted run, or another device, adds to what is there.
`--tiny` tries two tiles on one tiny shape: with TRITON_INTERPRET=1 it runs on a CPU, to see that everything works.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import warm
from bench.device import Device, device
from bench.measure import percentiles, provenance
from bench.tiles import TABLE, Target, candidates, kernel_of, sizes, table, targets, write
from symconv_fast.backends.triton import configs, run
from symconv_fast.backends.triton.configs import Config
from symconv_fast.problem import OPERANDS, memory_format

RESULTS = Path(__file__).parent / "results"
REPEATS = 7
# Relative difference (root mean square) that another order of the sums, or another rounding of them, may make.
SAME = {torch.float64: 1e-12, torch.float32: 2e-3, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Layer:
    """The tensors of a target on a device, and one call with a given tile."""

    def __init__(self, target: Target, where: str) -> None:
        self.target, self.where = target, where
        self.problem = replace(target.problem, device=where)
        generator = torch.Generator(where).manual_seed(0)
        last = memory_format(self.problem.ndim, True)

        def values(shape: tuple[int, ...]) -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=where)
            return drawn.to(target.dtype).contiguous(memory_format=last)

        p = self.problem
        shapes = {"x": p.input_shape, "w": p.weight_shape, "y": p.output_shape}
        self.tensors = {name: values(shape) for name, shape in shapes.items()}

    def call(self, config: Config | None) -> Tensor:
        """The result of the operator by the kernels with this tile; None leaves it to the table."""
        first, second, _ = OPERANDS[self.target.op]
        function = run.bind(self.problem, self.target.op, "fold", config=config)
        return function(self.tensors[first], self.tensors[second])


def difference(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference relative to that of b."""
    return float(((a.double() - b.double()).square().mean() / b.double().square().mean()).sqrt())


def measure(layer: Layer, config: Config, right: Tensor, machine: Device, repeats: int) -> dict[str, Any]:
    """Milliseconds of one tile, or why it cannot be used."""
    try:
        wrong = difference(layer.call(config), right)
        if not wrong <= SAME[layer.target.dtype]:
            return {"error": f"differs by {wrong:.2g}"}
        layer.call(config)
        timing = percentiles([machine.once(lambda: layer.call(config)) for _ in range(repeats)])
    except Exception as error:  # a tile that does not compile or fit is a result, not the end of the run
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    return {"ms_p20": timing.p20, "ms_p50": timing.p50}


@dataclass(frozen=True)
class Attempt:
    """A tile to try on a target."""

    target: Target
    config: Config


@lru_cache(maxsize=1)
def layer_of(target: Target, where: str) -> Layer:
    """The tensors of the target that is at hand."""
    return Layer(target, where)


def compile_attempt(attempt: Attempt) -> None:
    """What a process of the pool does."""
    layer_of(attempt.target, "cuda").call(attempt.config)


def record(attempt: Attempt, where: str, path: Path, found: dict[str, Any]) -> None:
    """Append a row for what was found of a tile."""
    target = attempt.target
    kernel, order = kernel_of(target)
    device_of = torch.device(where)
    row = {
        "arch": run.architecture(device_of), "kernel": kernel, "order": order, "tie": target.tie,
        "dtype": str(target.dtype)[6:], "class": target.shape.name, "sizes": sizes(target),
        "config": asdict(attempt.config), **found, **device(where).state(), **provenance(where),
        "device": run.device_name(device_of),
    }  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def tune(
    attempts: list[tuple[Attempt, Future[str | None]]], where: str, path: Path, end: float, repeats: int
) -> None:
    """Measure the tiles in order, each as soon as it is compiled, until `end` on the monotonic clock."""
    right: dict[Target, Tensor] = {}
    for done, (attempt, future) in enumerate(attempts, 1):
        target = attempt.target
        if time.monotonic() > end:
            print(f"time is up: {len(attempts) - done + 1} of {len(attempts)} tiles not measured")
            return
        try:
            reason = future.result(timeout=max(0.0, end - time.monotonic()))
        except TimeoutError:
            continue
        if target not in right:
            print(
                f"{done}/{len(attempts)} {target.op} {target.tie} {target.dtype} {target.shape.name}",
                flush=True,
            )
            right = {target: layer_of(target, where).call(None)}
        found = {"error": reason} if reason else measure(
            layer_of(target, where), attempt.config, right[target], device(where), repeats
        )  # fmt: skip
        record(attempt, where, path, found)


@contextmanager
def prepared(attempts: list[Attempt], tiny: bool) -> Iterator[list[Future[str | None]]]:
    """Futures of the compilations; in a rehearsal, where nothing is compiled, they are done."""
    if not tiny:
        with warm.compiled(compile_attempt, attempts) as futures:
            yield futures
        return
    futures = [Future() for _ in attempts]
    for future in futures:
        future.set_result(None)
    yield futures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="measure the tiles of the Triton kernels")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtypes", default="bfloat16,float32", help="with commas")
    parser.add_argument("--ties", default="h,hv,hvz", help="with commas")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after this long")
    parser.add_argument("--classes", default="", help="parts of the names of classes of shape, with commas")
    parser.add_argument("--most", type=int, default=0, help="tiles to try for each target; 0: all")
    parser.add_argument(
        "--tiles", type=Path, help='only these: JSON, {"dgrad/1": [[m, n, k, warps, stages], ...]}'
    )
    parser.add_argument("--rows", type=Path, default=RESULTS / "tune.jsonl", help="measurements, appended")
    parser.add_argument("--table", type=Path, default=TABLE, help="the module that they make")
    parser.add_argument("--tiny", action="store_true", help="one tiny shape and two tiles, in float32")
    return parser.parse_args(arguments)


def wanted(target: Target, arch: str, options: argparse.Namespace) -> list[Config]:
    """The tiles to try on a target: those of --tiles, or of the grid."""
    if options.tiles is None:
        return candidates(target, arch, options.tiny)[: options.most or None]
    kernel, order = kernel_of(target)
    given = json.loads(options.tiles.read_text()).get(f"{kernel}/{order}", [])
    return list(dict.fromkeys(configs.fit(Config(*tile), *sizes(target), arch) for tile in given))


def main() -> None:
    """Measure, then make the table."""
    options = parse()
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu is only to rehearse: add --tiny, and set TRITON_INTERPRET=1")
    names = ["float32"] if options.tiny else options.dtypes.split(",")
    ties = ["h"] if options.tiny else options.ties.split(",")
    end = time.monotonic() + 60 * options.minutes
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    arch = run.architecture(torch.device(options.device))
    classes = tuple(filter(None, options.classes.split(",")))
    attempts = [
        Attempt(target, config)
        for target in targets([getattr(torch, name) for name in names], ties, options.tiny, classes)
        for config in wanted(target, arch, options)
    ]
    with prepared(attempts, options.tiny) as futures:
        pairs = list(zip(attempts, futures, strict=True))
        tune(pairs, options.device, options.rows, end, 1 if options.tiny else REPEATS)
    if not options.rows.exists():
        raise SystemExit("nothing was measured")
    found = table(options.rows)
    write(found, options.table)
    for entry in found:
        config = entry["config"]
        tile = f"{config['m']}x{config['n']}x{config['k']} warps {config['warps']} stages {config['stages']}"
        what = " ".join(str(entry[k]) for k in ("arch", "dtype", "kernel", "tie", "class"))
        print(f"{what}: {tile}, {entry['ms_p50']:.3f} ms")


if __name__ == "__main__":
    main()
