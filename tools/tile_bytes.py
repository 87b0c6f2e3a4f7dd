# Counts every byte that the Triton kernels load and store, from the addresses they compute, and compares with a model.
"""TRITON_INTERPRET=1 python -m tools.tile_bytes [NAME ...]        (names of CASES; without any, all: minutes)

The interpreter is given loads and stores that count what the masks let through, by tensor. The model says how often
each operand should be fetched: the input once a tap and block of orbits, the folded weight once a tile of positions,
and so on. Both must agree to the byte. These are the bytes that tiles ask of the caches, which is what bounds the plain
kernels (docs/gpu.md), not those of the memory. Exit code 1 if the model is wrong anywhere.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime import interpreter

from symconv_fast.backends.triton import interpreted, letters, run
from symconv_fast.backends.triton.configs import Config
from symconv_fast.backends.triton.geometry import Geometry, geometry
from symconv_fast.backends.triton.launch import Launch
from symconv_fast.problem import OPERANDS, OPS, Problem
from symconv_fast.sides import Sides
from symconv_fast.ties import Segment, Ties, orbit_size

TILE = Config(
    32, 16, 16, 4, 1, 3
)  # small, so that there are several tiles and blocks, the last ones not full
Key = tuple[str, str]  # (kernel, "load x" or "store y")


@dataclass
class Counting:
    """Bytes by kernel and tensor, from all launches since the start."""

    bytes: Counter[Key]
    launches: list[Launch]
    kernel: str = ""
    ranges: tuple[tuple[str, int, int], ...] = ()

    def start(self, step: Launch, tensors: dict[str, torch.Tensor]) -> None:
        """A launch begins: addresses belong to these tensors now."""
        self.kernel = step.kernel
        self.launches.append(step)
        names = {tensor for tensor, _ in step.pointers.values() if tensor in tensors}
        self.ranges = tuple(
            (name, storage.data_ptr(), storage.data_ptr() + storage.nbytes())
            for name in sorted(names)
            for storage in (tensors[name].untyped_storage(),)
        )

    def touch(self, what: str, addresses: Any, mask: Any, size: int) -> None:
        """Count the addresses that the mask lets through."""
        found = addresses.data[mask.data.astype(bool)] if mask is not None else addresses.data.reshape(-1)
        seen = 0
        for name, first, last in self.ranges:
            inside = int(((found >= first) & (found < last)).sum())
            self.bytes[self.kernel, f"{what} {name}"] += inside * size
            seen += inside
        assert seen == found.size, f"{self.kernel}: {found.size - seen} {what}s outside of every tensor"


def install(counting: Counting) -> None:
    """Have the interpreter and the launcher report to `counting`."""
    builder, begin = interpreter.InterpreterBuilder, run._start
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        counting.touch("load", ptrs, mask, ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *rest)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counting.touch("store", ptrs, mask, ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *rest)

    def counted_start(step: Launch, tensors: dict[str, torch.Tensor]) -> None:
        counting.start(step, tensors)
        begin(step, tensors)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    run._start = counted_start


# --- the model -------------------------------------------------------------------------------------------------------


def windows(problem: Problem) -> int:
    """Pairs of an output position and a tap that reads an input that exists, over all images."""
    pairs = 1
    for n, out, k, s, p in zip(
        problem.spatial, problem.out_spatial, problem.kernel, problem.stride, problem.padding
    ):
        pairs *= sum(0 <= s * o + t - p < n for o in range(out) for t in range(k))
    return problem.batch * pairs


def blocks(size: int, width: int) -> int:
    """How many blocks of a width cover a size."""
    return -(-size // width)


def model(problem: Problem, step: Launch) -> dict[str, int]:
    """Elements that a launch loads and stores, by tensor."""
    g, made = geometry(problem), step.constants
    if step.kernel == "fprop_fold" and step.pointers["x"][0] == "y":
        return _fold(problem, g.adjoint(), made, "y", "x")
    kinds = {"fprop_fold": _fold, "fprop_direct": _direct, "dgrad": _dgrad, "wgrad": _wgrad}
    return kinds[step.kernel](problem, g, made) if step.kernel in kinds else {}


def _positions(problem: Problem, tile: int) -> tuple[int, int]:
    """Output positions, and tiles of them."""
    total = problem.batch * math.prod(problem.out_spatial)
    return total, blocks(total, tile)


def _fold(problem: Problem, g: Geometry, made: Any, x: str = "x", y: str = "y") -> dict[str, int]:
    """Once a block of orbits: the input at every tap. Once a tile and block: all folded weights, padded to blocks."""
    total = problem.batch * math.prod(g.y)
    across = sum(blocks(s.rows, made["BN"]) for s in g.segments)
    depth = blocks(g.depth, made["BK"]) * made["BK"] * orbit_size(g.both)
    return {
        f"load {x}": g.groups * across * windows(problem) * g.channels,
        "load folded": g.groups * blocks(total, made["BM"]) * across * g.kept_taps * depth * made["BN"],
        f"store {y}": g.groups * total * g.filters,
    }


def _direct(problem: Problem, g: Geometry, made: Any) -> dict[str, int]:
    """Once a block of filters: the input at every tap. Once a tile: the raw weight for every filter."""
    total, tiles = _positions(problem, made["BM"])
    return {
        "load x": g.groups * blocks(g.filters, made["BN"]) * windows(problem) * g.channels,
        "load w": g.groups * tiles * g.taps * g.channels * g.filters,
        "store y": g.groups * total * g.filters,
    }


def _dgrad(problem: Problem, g: Geometry, made: Any) -> dict[str, int]:
    """Once a block of channels: the output's gradient at every tap. Once a tile: the raw weight."""
    total = problem.batch * math.prod(problem.spatial)
    return {
        "load y": g.groups * blocks(g.channels, made["BN"]) * windows(problem) * g.filters,
        "load w": g.groups * blocks(total, made["BM"]) * g.taps * g.rows * g.channels,
        "store x": g.groups * total * g.channels,
    }


def _wgrad(problem: Problem, g: Geometry, made: Any) -> dict[str, int]:
    """Once a tap and block of channels: the gradient where it meets x. Once a row of taps and block of orbits: x."""
    rows = g.taps // g.axes[2][0] * blocks(g.axes[2][0], made["TAPS"])
    total = problem.batch * math.prod(problem.spatial)
    across = sum(blocks(s.rows, made["BM"]) for s in g.segments)
    return {
        "load y": g.groups * blocks(g.depth, made["BN"]) * windows(problem) * g.filters,
        "load x": g.groups * rows * across * total * g.channels,
        "store w": g.groups * g.taps * g.rows * g.channels,
    }


# --- comparing -------------------------------------------------------------------------------------------------------


def layer(
    ties: dict[int, int], channels: int, spatial: tuple[int, ...], groups: int = 1, inputs: int = 0
) -> Problem:
    """A 3-tap layer, channels last, with padding 1, batch 2; its input channels are orbits of the tie `inputs`."""
    one, ndim = [1] * len(spatial), len(spatial)
    orbits = Ties(ndim, 1, (Segment(inputs, channels // orbit_size(inputs)),))
    sides = Sides(groups, orbits, (None,) * len(ties)) if inputs else None
    made = Ties(ndim, groups, tuple(Segment(*tie) for tie in ties.items()), sides)
    static = (made.flat, one, one, one, [0] * ndim, False, groups, ndim > 1)
    sizes = (2, channels, *spatial), (sum(ties.values()), channels // groups, *[3] * ndim)
    return Problem.create(sizes, static, len(spatial) > 1, torch.float32, "cpu")


CASES = {
    "h": layer({1: 20}, 24, (7, 9)),
    "hv": layer({3: 20}, 24, (7, 9)),
    "mixed": layer({1: 18, 2: 3, 3: 17}, 20, (4, 5)),
    "groups": layer({3: 24}, 48, (5, 6), groups=2),
    "hvz": layer({7: 20}, 20, (3, 4, 5)),
    "orbits": layer({3: 18}, 80, (5, 6), inputs=3),
}


def execute(problem: Problem, op: str, algorithm: str) -> None:
    """Run an operator on ones with the tile of this file."""
    fmt = torch.channels_last if problem.ndim == 2 else torch.channels_last_3d
    shapes = {"x": problem.input_shape, "w": problem.weight_shape, "y": problem.output_shape}
    first, second, _ = (torch.ones(shapes[name]).contiguous(memory_format=fmt) for name in OPERANDS[op])
    run.bind(problem, op, algorithm, config=TILE)(first, second)


def compare(name: str, op: str, algorithm: str, counting: Counting) -> bool:
    """Print a line for each kernel that has a model; whether all agree."""
    problem = CASES[name]
    counting.bytes.clear()
    counting.launches.clear()
    execute(problem, op, algorithm)
    wanted: Counter[Key] = Counter()
    for step in counting.launches:
        for what, elements in model(problem, step).items():
            # A layer of several launches of one kernel has the model of the whole.
            wanted[step.kernel, what] = elements * problem.dtype.itemsize
    right = bool(wanted)
    for (kernel, what), expected in wanted.items():
        found = counting.bytes[kernel, what]
        verdict = "as the model says" if found == expected else f"NOT {expected:,} as the model says"
        print(f"{name:<8} {kernel:<13} {what:<12} {found:>12,} bytes, {verdict}")
        right &= found == expected
    return right


def main() -> int:
    """Compare all; 1 if the model is wrong somewhere."""
    if not interpreted.ACTIVE:
        raise SystemExit("set TRITON_INTERPRET=1: the kernels have to run in the interpreter to be counted")
    counting = Counting(Counter(), [])
    install(counting)
    ways = [(op, "fold") for op in OPS] + [("fprop", "direct")]
    names = sys.argv[1:] or list(CASES)
    results = [
        compare(name, op, algorithm, counting)
        for name in names
        for op, algorithm in ways
        if letters.refusal(CASES[name], algorithm) is None
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
