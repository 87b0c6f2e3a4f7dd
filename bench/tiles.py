# What `bench.tune` measures, and the table of tiles that it makes of the measurements.
"""Classes of layers, the tiles to try on them, and the module that the Triton backend reads."""

from __future__ import annotations

import json
import math
import pprint
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from symconv_fast.backends.triton import configs, tuned
from symconv_fast.backends.triton.configs import Config
from symconv_fast.backends.triton.geometry import geometry
from symconv_fast.problem import OPS, Problem
from symconv_fast.symmetry import Symmetry

TABLE = Path(tuned.__file__)

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
TINY = (ShapeClass("tiny", 1, 16, 32, 4),)


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


def targets(
    dtypes: list[torch.dtype], ties: list[str], tiny: bool, classes: tuple[str, ...] = ()
) -> Iterator[Target]:
    """Everything that is tuned, the most common first; with `classes`, those whose name contains one of them."""
    wanted = [shape for shape in CLASSES if not classes or any(part in shape.name for part in classes)]
    for dtype in dtypes:
        for tie in ties:
            for shape in TINY if tiny else wanted:
                for op in OPS:
                    yield Target(shape, tie, op, dtype)


def kernel_of(target: Target) -> tuple[str, int]:
    """The key of the table of tiles: kernel and number of tied axes."""
    return ("fprop_fold" if target.op == "fprop" else target.op), len(target.tie)


def sizes(target: Target) -> tuple[int, int, int]:
    """Extents along m and n of a tile, and of the contraction."""
    problem, g = target.problem, geometry(target.problem)
    positions = problem.batch * math.prod(problem.out_spatial)
    if target.op == "wgrad":
        return g.rows, g.channels, positions
    return (positions, g.rows, g.channels) if target.op == "fprop" else (positions, g.channels, g.rows)


def candidates(target: Target, arch: str, tiny: bool) -> list[Config]:
    """Tiles to try: the table's own first, then the grid, each once after it is cut to the problem."""
    kernel, order = kernel_of(target)
    own = list(configs.tiles(kernel, order, target.dtype.itemsize, arch))
    if tiny:
        return [own[0], replace(own[0], n=16)]
    members = 1 << order if target.op == "fprop" else 1
    grid = [
        Config(m, n, k, warps, stages)
        for m in POSITIONS for n in COLUMNS for k in DEPTHS for warps in WARPS for stages in STAGES
        if 4 * m * n * members <= ACCUMULATOR_BYTES and m * n * members >= 512 * warps
    ]  # fmt: skip
    near = sorted(grid, key=lambda config: _unlike(own[0], config))
    cut = [configs.fit(config, *sizes(target), arch) for config in (*own[:1], *near)]
    return list(dict.fromkeys(cut))


def _unlike(own: Config, other: Config) -> float:
    """How far a tile is from the table's own: what is near is tried first."""
    pairs = ((own.m, other.m), (own.n, other.n), (own.k, other.k), (own.warps, other.warps))
    return sum(abs(math.log2(a / b)) for a, b in pairs) + 0.5 * abs(own.stages - other.stages)


def table(path: Path) -> list[dict[str, Any]]:
    """The best tile of each device, type, kernel, tie and class of shape, from the rows of a file."""
    best: dict[tuple[object, ...], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = tuple(row[name] for name in ("device", "arch", "dtype", "kernel", "tie", "class"))
        if "ms_p50" in row and (key not in best or row["ms_p50"] < best[key]["ms_p50"]):
            best[key] = row
    kept = ("device", "arch", "dtype", "kernel", "order", "tie", "class", "sizes", "config", "ms_p50", "date")
    return [{name: row[name] for name in kept} for row in best.values()]


def write(found: list[dict[str, Any]], path: Path) -> None:
    """The table as the module that `configs.measured` reads."""
    before, _, _ = TABLE.read_text().partition("TUNED:")
    _, _, imports = before.partition('"""\n\n')
    devices = ", ".join(sorted({row["device"] for row in found})) or "nothing"
    header = (
        '"""Tiles that were the quickest of those measured; written by `python -m bench.tune`, not by hand.\n\n'
        f"Measured: {devices}. What is not in the table is chosen by the model in `configs.select`.\n"
        '"""\n\n'
    )
    path.write_text(
        f"{header}{imports}TUNED: list[dict[str, Any]] = {pprint.pformat(found, sort_dicts=False)}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "-q", str(path)], check=False
    )  # where there is one
