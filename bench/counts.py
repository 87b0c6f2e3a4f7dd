# What a GPU would have to do for the CUDA kernels, counted on the stand-in, and the time that no kernel can go below.
"""`python -m bench.counts [--layers 512@28,64@56] [--ties h,hv] [--algorithms patch,hopper]`

Runs a few CTAs of each kernel on the stand-in for a GPU (csrc/cuda/host), which counts bytes from the second-level
cache, accesses to shared memory and instructions of the matrix units; what all CTAs do is a multiple of it. The ceiling
is a **model**: the busiest of the three on an H200, with no latency, no epilogue and no partial round of CTAs. Times of
cuDNN and of Triton's kernels that stand beside it were measured on an H200 (bench/results). No GPU is needed, and it
does not say how fast a kernel is, but what binds it, and so how much a better one could gain.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from symconv_fast.backends.cuda import backend, families, limits, native, run
from symconv_fast.problem import OPERANDS, Problem

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SAMPLE = 9  # CTAs of each kernel: as many as taps, of which those that mirror another have less to do
EVERY_TILE = 1 << 24  # multiprocessors of a device on which each CTA of a persistent kernel gets one tile
MASKS = {"h": 1, "v": 2, "hv": 3}
ALGORITHMS = ("tile", "patch", "hopper")
PASSES = {"fprop": "fwd", "dgrad": "dgrad", "wgrad": "wgrad"}


@dataclass(frozen=True)
class Chip:
    """Of one multiprocessor, each clock: multiply-adds of the matrix units, bytes of shared memory and from the L2."""

    name: str
    multiprocessors: int
    hertz: float
    mma: float  # of 16 bits by mma.sync; TF32 has half
    wgmma: float
    shared: float = 128
    l2: float = 28


# mma.sync and wgmma: measured. Shared memory: as documented. The L2: half of what it gives when nothing else runs.
H200 = Chip("H200", 132, 1.755e9, 1365, 2048)


class Layer(NamedTuple):
    """Channels in and out, size of the map, images; and the name in the measurements of bench.micro.halo_rate."""

    channels: int
    size: int
    batch: int
    model: str

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}@{self.size}"


LAYERS = (
    Layer(512, 28, 64, "VGG"),
    Layer(256, 56, 64, "VGG"),
    Layer(128, 112, 64, "VGG"),
    Layer(320, 64, 16, "SD"),
    Layer(256, 14, 256, "ResNet"),
    Layer(128, 28, 256, "ResNet"),
    Layer(512, 7, 256, "ResNet"),
    Layer(64, 56, 256, "ResNet"),
)


class Way(NamedTuple):
    """A pass of a layer by an algorithm."""

    layer: Layer
    tie: str
    op: str
    algorithm: str

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Shapes of the input, the reduced weight and the output."""
        c, n, batch, _ = self.layer
        return (batch, c, n, n), (c >> MASKS[self.tie].bit_count(), c, 3, 3), (batch, c, n, n)

    @property
    def problem(self) -> Problem:
        """In bfloat16 and channels_last, padding 1, without a bias."""
        x, w, _ = self.sizes
        ones = [1, 1]
        static = ([MASKS[self.tie], w[0]], ones, ones, ones, [0, 0], False, 1, True)
        return Problem.create((x, w), static, True, torch.bfloat16, "cpu")

    @property
    def macs(self) -> float:
        """Multiply-adds of the expanded convolution."""
        c, n, batch, _ = self.layer
        return float(batch * n * n * c * c * 9)


# ---- counting


@contextmanager
def stand_in(module: Any, chip: Chip) -> Iterator[None]:
    """The backend takes tensors on the CPU, plans for the chip, and counts instead of computing."""
    before = native.STAND_IN, limits.STAND_IN
    native.STAND_IN = module
    limits.STAND_IN = replace(limits.STAND_IN, multiprocessors=chip.multiprocessors)
    module.set_multiprocessors(EVERY_TILE)
    module.set_sample(SAMPLE)
    module.set_tracing(True)
    run.bind.cache_clear()
    try:
        yield
    finally:
        native.STAND_IN, limits.STAND_IN = before
        module.set_multiprocessors(4)
        module.set_sample(0)
        module.set_tracing(False)
        run.bind.cache_clear()


def launches(module: Any, way: Way) -> list[dict[str, int]]:
    """What each kernel of a pass did in the CTAs that ran."""
    tensors = {
        name: torch.zeros(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        for name, shape in zip("xwy", way.sizes)
    }
    module.reset_counts()
    first, second, _ = OPERANDS[way.op]
    run.bind(way.problem, way.op, way.algorithm)(tensors[first], tensors[second])
    return [dict(launch) for launch in module.launches()]


# ---- the model


def work(launch: dict[str, int]) -> dict[str, float]:
    """Of a whole launch: bytes from the L2, bytes stored, accesses to shared memory, multiply-adds of each kind."""
    scale = launch["grid"] / launch["ctas"]
    # A product of a warp group reads its weights once for four warps.
    group_weights = launch["wgmma_columns"] * 32 / 4
    counted = {
        "l2": 32 * (launch["load_sectors"] + launch["copy_sectors"]) + launch["bulk_bytes"],
        "stored": 32 * launch["store_sectors"],
        "shared": launch["ldmatrix_wavefronts"]
        + launch["shared_load_wavefronts"]
        + launch["shared_store_wavefronts"]
        + launch["copy_wavefronts"]
        + (launch["bulk_bytes"] + group_weights) / 128,
        "mma": 16 * 8 * 16 * (launch["mma_bfloat16"] + launch["mma_float16"])
        + 2 * 16 * 8 * 8 * launch["mma_tf32"],
        "wgmma": 16 * 16 * launch["wgmma_columns"],
    }
    return {name: scale * count for name, count in counted.items()}


def clocks(done: dict[str, float], chip: Chip) -> dict[str, float]:
    """Of one multiprocessor, by what would be busy so long, if all have the same to do."""
    each = {
        "matrix units": done["mma"] / chip.mma + done["wgmma"] / chip.wgmma,
        "shared memory": done["shared"] * 128 / chip.shared,
        "L2": done["l2"] / chip.l2,
    }
    return {name: count / chip.multiprocessors for name, count in each.items()}


def row_of(way: Way, done: list[dict[str, float]], kernels: tuple[str, ...], chip: Chip) -> dict[str, Any]:
    """What is printed and stored of a pass."""
    busy = [clocks(launch, chip) for launch in done]
    longest = max(busy, key=lambda c: max(c.values()))
    seconds = sum(max(c.values()) for c in busy) / chip.hertz
    total = {name: sum(launch[name] for launch in done) for name in done[0]}
    return {
        "layer": str(way.layer),
        "tie": way.tie,
        "pass": way.op,
        "kernels": " + ".join(kernels),
        "l2_gb": total["l2"] / 1e9,
        "stored_gb": total["stored"] / 1e9,
        "shared_accesses": total["shared"],
        "mma_macs": total["mma"],
        "wgmma_macs": total["wgmma"],
        "shares": {name: count / max(longest.values()) for name, count in longest.items()},
        "bound": max(longest, key=lambda name: longest[name]),
        "model_ms": 1e3 * seconds,
        "model_tflops": 2e-12 * way.macs / seconds,
        **measured(way, kernels),
    }


# ---- what was measured


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def measured(way: Way, kernels: tuple[str, ...]) -> dict[str, float]:
    """Milliseconds on an H200, where there are some: cuDNN with expanded filters, Triton, the same tile's prototype."""
    found: dict[str, float] = {}
    for row in _rows("reference-h200.jsonl"):
        same = row["shape"] == str(way.layer) and row["tie"] == way.tie and row["pass"] == PASSES[way.op]
        if same and row["dtype"] == "bfloat16" and row["layout"] == "channels_last":
            found["cudnn_ms"] = row["baseline_ms"]
            if row["backend"] == "triton":
                found["triton_ms"] = row["ms_p50"]
    for row in _rows("reference-halo-h200.jsonl") if way.op == "fprop" else ():
        layer = way.layer
        shape = f"{layer.model} {layer.channels}@{layer.size}"
        if (
            row["row"] == "time"
            and row["shape"] == shape
            and row["batch"] == layer.batch
            and row["tie"] == way.tie
        ):
            found["cudnn_ms"] = row["ms"]["cudnn"]  # without a bias
            tile = kernels[-1].split()[-1]
            if tile in row["ms"]:
                found["prototype_ms"] = row["ms"][tile]
    return found


# ---- the table

COLUMNS = (
    ("layer", "{}"),
    ("tie", "{}"),
    ("pass", "{}"),
    ("kernels", "{}"),
    ("l2_gb", "{:.2f}"),
    ("bound", "{}"),
    ("model_ms", "{:.3f}"),
    ("model_tflops", "{:.0f}"),
    ("cudnn_ms", "{:.3f}"),
    ("triton_ms", "{:.3f}"),
    ("prototype_ms", "{:.3f}"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown. Milliseconds of the model are what no kernel can go below; the others were measured."""
    lines = [
        "| " + " | ".join(name.replace("_", " ") for name, _ in COLUMNS) + " |",
        "| --- " * len(COLUMNS) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(form.format(row[c]) if c in row else "" for c, form in COLUMNS) + " |")
    return "\n".join(lines)


def load() -> Any:
    """The stand-in, built if it is not up to date."""
    sys.path.insert(0, str(ROOT / "tools"))
    import cuda_build

    path = cuda_build.build_host()
    spec = importlib.util.spec_from_file_location(cuda_build.HOST_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ways(chosen: list[str], ties: list[str], algorithms: list[str]) -> Iterator[Way]:
    """What is asked for and can run."""
    for layer in LAYERS:
        if chosen and f"{layer.channels}@{layer.size}" not in chosen:
            continue
        for tie in ties:
            for algorithm, op in families.FAMILIES:
                way = Way(layer, tie, op, algorithm)
                if algorithm in algorithms and backend.can_run(way.problem, op, algorithm) is None:
                    yield way


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.counts", description=__doc__)
    parser.add_argument("--layers", default="", help="channels@size, by commas; all if not given")
    parser.add_argument("--ties", default="h,hv", help="by commas")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="of the CUDA backend, by commas")
    parser.add_argument("--out", type=Path, help="append the rows to a file of JSON lines")
    options = parser.parse_args()
    module, rows = load(), []
    with stand_in(module, H200):
        for way in ways(
            options.layers.split(",") if options.layers else [],
            options.ties.split(","),
            options.algorithms.split(","),
        ):
            kernels = backend.kernels(way.problem, way.op, way.algorithm)
            done = [work(launch) for launch in launches(module, way)]
            rows.append(row_of(way, done, kernels, H200))
            print(f"{way.layer} {way.tie} {way.op} {rows[-1]['kernels']}", file=sys.stderr, flush=True)
            if options.out:
                with open(options.out, "a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
    print(f"Ceilings of a model of an {H200.name}; times beside them were measured.\n")
    print(table(rows))


if __name__ == "__main__":
    main()
