# Finds the tiles of the Triton kernels by measuring them: the table and the measurements that made it are both stored.
"""python -m bench.tune [--device cuda] [--dtypes bfloat16,...] [--ties h,hv] [--minutes N] [--rows FILE] [--table FILE]

For each device, type, tie, kernel and class of shape every legal tile is timed on one layer of that class, after its
result was compared with that of the table's own tile. Each measurement is a line of --rows, written at once; --table
is made from all lines of --rows, so that an interrupted run, or another device, adds to what is there. `--tiny` tries
two tiles on one tiny shape: with TRITON_INTERPRET=1 it runs on a CPU, to see that everything works.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import Device, device
from bench.measure import percentiles, provenance
from symconv_fast.backends.triton import configs, run
from symconv_fast.backends.triton.configs import Config
from symconv_fast.backends.triton.geometry import geometry
from symconv_fast.problem import OPS, Problem, memory_format
from symconv_fast.symmetry import Symmetry

RESULTS = Path(__file__).parent / "results"
REPEATS = 7
# Relative difference (root mean square) that another order of the sums, or another rounding of them, may make.
SAME = {torch.float64: 1e-12, torch.float32: 2e-3, torch.bfloat16: 1e-2, torch.float16: 2e-3}

# What is tried beside the tiles of the table. Accumulators of more than 128 KiB do not stay in registers.
POSITIONS, COLUMNS, DEPTHS = (32, 64, 128, 256), (16, 32, 64, 128, 256), (32, 64)
WARPS, STAGES = (4, 8), (2, 3, 4)
ACCUMULATOR_BYTES = 128 << 10


@dataclass(frozen=True)
class ShapeClass:
    """A class of layers, and the layer that stands for it: images, channels in and out, size of a map."""

    name: str
    batch: int
    channels: int
    filters: int
    size: int


# By what decides on a tile: how many positions there are, and how deep and wide the product is.
CLASSES = (
    ShapeClass("wide, large map", 32, 256, 256, 56),
    ShapeClass("wide, small map", 64, 512, 512, 14),
    ShapeClass("narrow, large map", 32, 64, 64, 112),
    ShapeClass("few positions", 1, 512, 512, 14),
)
TINY = (ShapeClass("tiny", 1, 16, 32, 6),)


@dataclass(frozen=True)
class Target:
    """What is tuned: one operator of one layer."""

    shape: ShapeClass
    tie: str
    op: str
    dtype: torch.dtype

    @property
    def problem(self) -> Problem:
        """The layer; in three dims for a tie of three axes."""
        ndim = 3 if len(self.tie) == 3 else 2
        size = self.shape.size if ndim == 2 else max(4, round(self.shape.size ** (2 / 3)))
        ties = Symmetry(self.tie or None, ndim=ndim).resolve(ndim, self.shape.filters)
        one = [1] * ndim
        sizes = (
            (self.shape.batch, self.shape.channels, *[size] * ndim),
            (ties.unique, self.shape.channels, *[3] * ndim),
        )
        static = (ties.flat, one, one, one, [0] * ndim, False, 1, True)
        return Problem.create(sizes, static, True, self.dtype, "cuda")


def targets(dtypes: list[torch.dtype], ties: list[str], tiny: bool) -> Iterator[Target]:
    """Everything that is tuned, the most common first."""
    for dtype in dtypes:
        for tie in ties:
            for shape in TINY if tiny else CLASSES:
                for op in OPS:
                    yield Target(shape, tie, op, dtype)


def kernel_of(target: Target) -> tuple[str, int]:
    """The key of the table of tiles: kernel and number of tied axes."""
    return ("fprop_fold" if target.op == "fprop" else target.op), len(target.tie)


def candidates(target: Target, arch: str, tiny: bool) -> list[Config]:
    """Tiles to try: the table's own first, then the grid, each once after it is cut to the problem."""
    kernel, order = kernel_of(target)
    problem = target.problem
    positions = problem.batch * math.prod(problem.out_spatial)
    width = geometry(problem).rows if target.op == "fprop" else problem.in_channels
    depth = problem.in_channels if target.op == "fprop" else problem.unique
    own = list(configs.tiles(kernel, order, target.dtype.itemsize, arch))
    if tiny:
        return [own[0], replace(own[0], m=16, n=16)]
    members = 1 << order if target.op == "fprop" else 1
    grid = [
        Config(m, n, k, warps, stages)
        for m in POSITIONS for n in COLUMNS for k in DEPTHS for warps in WARPS for stages in STAGES
        if 4 * m * n * members <= ACCUMULATOR_BYTES and m * n >= 512 * warps
    ]  # fmt: skip
    cut = [configs.fit(config, positions, width, depth) for config in (*own, *grid)]
    return list(dict.fromkeys(cut))


class Layer:
    """The tensors of a target on a device, and one call with a given tile."""

    def __init__(self, target: Target, where: str) -> None:
        self.target, self.where = target, where
        self.problem = replace(target.problem, device=where)
        generator = torch.Generator().manual_seed(0)
        last = memory_format(self.problem.ndim, True)

        def values(shape: tuple[int, ...]) -> Tensor:
            drawn = torch.randn(shape, generator=generator)
            return drawn.to(where, target.dtype).contiguous(memory_format=last)

        p = self.problem
        self.x, self.w, self.gy = map(values, (p.input_shape, p.weight_shape, p.output_shape))

    def call(self, config: Config | None) -> Tensor:
        """The result of the operator by the kernels with this tile; None leaves it to the table."""
        p, op = self.problem, self.target.op
        with forced(config):
            if op == "fprop":
                return run.fprop(p, "fold", self.x, self.w, None)
            if op == "dgrad":
                return run.dgrad(p, "fold", self.gy, self.w)
            return run.wgrad(p, "fold", self.gy, self.x)


class forced:  # noqa: N801  (used like a function)
    """Context in which every plan is made with one tile."""

    def __init__(self, config: Config | None) -> None:
        self.config, self.before = config, run.options_for

    def __enter__(self) -> None:
        if self.config is not None:
            run.options_for = lambda tensor, **more: self.before(tensor, config=self.config, **more)

    def __exit__(self, *_: object) -> None:
        run.options_for = self.before


def difference(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference relative to that of b."""
    return float(((a.double() - b.double()).square().mean() / b.double().square().mean()).sqrt())


def measure(layer: Layer, config: Config, right: Tensor, machine: Device) -> dict[str, Any]:
    """Milliseconds of one tile, or why it cannot be used."""
    try:
        wrong = difference(layer.call(config), right)
        if not wrong <= SAME[layer.target.dtype]:
            return {"error": f"differs by {wrong:.2g}"}
        layer.call(config)
        timing = percentiles([machine.once(lambda: layer.call(config)) for _ in range(REPEATS)])
    except Exception as error:  # a tile that does not compile or fit is a result, not the end of the run
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    return {"ms_p20": timing.p20, "ms_p50": timing.p50}


def tune(target: Target, where: str, path: Path, tiny: bool, end: float) -> None:
    """Measure the candidates of a target and append a row for each, until `end` on the monotonic clock."""
    layer, machine = Layer(target, where), device(where)
    arch = run.architecture(layer.x.device)
    right = layer.call(None)
    p = layer.problem
    for config in candidates(target, arch, tiny):
        if time.monotonic() > end:
            return
        kernel, order = kernel_of(target)
        row = {
            "arch": arch, "kernel": kernel, "order": order, "tie": target.tie, "dtype": str(target.dtype)[6:],
            "class": target.shape.name, "positions": p.batch * math.prod(p.out_spatial), "channels": p.in_channels,
            "rows": p.unique, "config": asdict(config), **measure(layer, config, right, machine),
            **machine.state(), **provenance(where),
        }  # fmt: skip
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(path: Path) -> list[dict[str, Any]]:
    """The best tile of each device, type, kernel, tie and class of shape, from the rows of a file."""
    best: dict[tuple[object, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = tuple(row[name] for name in ("device", "arch", "dtype", "kernel", "tie", "class"))
        if "ms_p50" in row and (key not in best or row["ms_p50"] < best[key]["ms_p50"]):
            best[key] = row
    kept = ("device", "arch", "dtype", "kernel", "order", "tie", "class", "positions", "channels", "rows")
    return [{name: row[name] for name in (*kept, "config", "ms_p50", "date")} for row in best.values()]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="measure the tiles of the Triton kernels")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtypes", default="bfloat16,float32", help="with commas")
    parser.add_argument("--ties", default="h,hv,hvz", help="with commas")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after this long")
    parser.add_argument("--rows", type=Path, default=RESULTS / "tune.jsonl", help="measurements, appended")
    parser.add_argument("--table", type=Path, default=RESULTS / "tuned.json", help="the table that they make")
    parser.add_argument("--tiny", action="store_true", help="one tiny shape and two tiles, in float32")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, then make the table."""
    options = parse()
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu is only to rehearse: add --tiny, and set TRITON_INTERPRET=1")
    names = ["float32"] if options.tiny else options.dtypes.split(",")
    ties = ["h"] if options.tiny else options.ties.split(",")
    end = time.monotonic() + 60 * options.minutes
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    todo = list(targets([getattr(torch, name) for name in names], ties, options.tiny))
    for done, target in enumerate(todo, 1):
        if time.monotonic() > end:
            print(f"time is up: {len(todo) - done + 1} of {len(todo)} not measured")
            break
        print(f"{done}/{len(todo)} {target.op} {target.tie} {target.dtype} {target.shape.name}", flush=True)
        # An even share of the time for each: the last one would get nothing otherwise.
        share = (end - time.monotonic()) / (len(todo) - done + 1)
        tune(target, options.device, options.rows, options.tiny, time.monotonic() + share)
    found = table(options.rows)
    options.table.write_text(json.dumps(found, indent=1) + "\n")
    for entry in found:
        config = entry["config"]
        tile = f"{config['m']}x{config['n']}x{config['k']} warps {config['warps']} stages {config['stages']}"
        what = " ".join(str(entry[k]) for k in ("arch", "dtype", "kernel", "tie", "class"))
        print(f"{what}: {tile}, {entry['ms_p50']:.3f} ms")


if __name__ == "__main__":
    main()
