"""Small problems like a given one: what a kernel is asked, and the answers in float64, before a layer may use it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activation import activate
from ..problem import Problem, memory_format
from ..sides import Involutions, Sides
from ..ties import Segment, Ties, orbit_size

MACS = 350_000_000
"""Multiply-accumulates of a small problem's ordinary convolution at most: in float64 that is 0.1 s on two cores."""

# Positions of an output map along each axis: odd, or unlike each other, so that no two axes can be mistaken.
_MAPS = {1: (163,), 2: (13, 11), 3: (5, 6, 5)}
_POSITIONS = 280  # more than two tiles of 128 positions; where maps are smaller there are more images
# Channels and rows of a group at most: those along which a tile of an operator is widest are more than one tile, or
# as many as its next power of two, so that no tile is cut.
_CHANNELS = {"fprop": 96, "dgrad": 160, "wgrad": 96}
_ROWS = {"fprop": 160, "dgrad": 64, "wgrad": 96}
_SHARES = ((1, 1), (2, 1), (4, 1), (4, 2), (4, 4), (8, 8))
_CONTRACTION = 320  # elements that are contracted at least, where a kernel has few taps
_FEW = 4  # channels in a group with which a layer with many groups is like a depthwise one


CPU = torch.device("cpu")


class Tensors(NamedTuple):
    """Arguments of the three operators."""

    x: Tensor
    w: Tensor
    b: Tensor
    gy: Tensor

    def of(self, op: str, bias: bool) -> tuple[Tensor | None, ...]:
        """The arguments of one of them."""
        if op == "fprop":
            return self.x, self.w, self.b if bias else None
        return (self.gy, self.w) if op == "dgrad" else (self.gy, self.x)


def like(problem: Problem, op: str) -> Iterator[Problem]:
    """Problems with the features of a layer, from the smallest on: ties, stride, dilation, padding, groups, layout.

    Channels keep their remainder by 32 and rows theirs by 16, so that loads of 16 bytes are as possible as in the
    layer. There are enough of both for several tiles, and for more steps of the contraction than a pipeline has
    stages. The second problem keeps the remainders of the map's sizes by 8 too.
    """
    odd = [_map(problem, axis) for axis in range(problem.ndim)]
    kept = [
        _cut(n, max(least, 8) + 8, 8) if least < n else n for n, least in zip(problem.spatial, odd)
    ]  # never below the odd size, which holds a window
    found = [*_within(problem, op, tuple(odd)), *_within(problem, op, tuple(kept))]
    yield from dict.fromkeys(found)


def features(problem: Problem, activation: str | None) -> tuple[object, ...]:
    """What a known answer stands for: a layer with other features wants one of its own."""
    p = problem
    inside, rows = p.in_channels // p.groups, p.out_channels // p.groups
    groups = "one" if p.groups == 1 else "depthwise" if inside <= _FEW else "several"
    return (
        tuple(mask for mask, _ in p.ties), _sides_of(p), p.kernel, tuple(s if s < 3 else 3 + s % 2 for s in p.stride),
        tuple(d > 1 for d in p.dilation), tuple(n > 0 for n in p.padding), p.transposed, groups,
        inside // _blocks(p) % 8 == 0, rows % 8 == 0, p.channels_last, p.input_channels_last, activation,
    )  # fmt: skip


def _sides_of(problem: Problem) -> tuple[object, ...]:
    """What mirrors do beside exchanging the members of orbits: the same kernels run what is alike in this."""
    sides = problem.sides
    if sides is None:
        return ()
    if isinstance(sides.inputs, Involutions):
        return sides.own, sides.inputs
    return sides.own, sides.inputs and tuple(mask for mask, _ in sides.inputs.segments)


def _blocks(problem: Problem) -> int:
    """Blocks of the input channels of a group that mirrors exchange as a whole: those of its orbits, of one tie."""
    inputs = problem.sides.inputs if problem.sides else None
    alike = isinstance(inputs, Ties) and len(inputs.segments) == 1 and inputs.groups == problem.groups
    return orbit_size(inputs.segments[0].mask) if isinstance(inputs, Ties) and alike else 1


def _with_channels(problem: Problem, groups: int, inside: int) -> Sides | None:
    """The sides of a problem with as many groups, and input channels in each."""
    sides = problem.sides
    if sides is None or sides.inputs is None:
        return sides and replace(sides, groups=groups)
    if _blocks(problem) == 1:
        return sides
    assert isinstance(sides.inputs, Ties)
    segment = sides.inputs.segments[0]
    rows = groups * inside // orbit_size(segment.mask)
    inputs = Ties(problem.ndim, groups, (Segment(segment.mask, rows),))
    return replace(sides, groups=groups, inputs=inputs)


def _within(problem: Problem, op: str, spatial: tuple[int, ...]) -> Iterator[Problem]:
    """The problem with a map of these sizes and as many channels and rows as the products allow, or nothing."""
    for narrow, wide in _SHARES:
        small = _with(problem, op, spatial, narrow, wide)
        if small.macs_dense <= MACS:
            yield small
            return


def _with(problem: Problem, op: str, spatial: tuple[int, ...], narrow: int, wide: int) -> Problem:
    """The problem with that map and so many times fewer channels and rows than are aimed at, never more than it has.

    `wide` is the share of those along which the tiles of the operator are widest, `narrow` that of the others.
    """
    p, ties = problem, problem.ties
    channels, rows = (narrow, wide) if op == "fprop" else (wide, narrow)
    deep = max(_CHANNELS[op], _CONTRACTION // math.prod(p.kernel)) // channels
    blocks, told = _blocks(p), p.sides is not None and p.sides.inputs is not None
    inside = blocks * _cut(p.in_channels // p.groups // blocks, max(deep // blocks, 32), 32)
    many = p.groups > 8 and p.in_channels // p.groups <= _FEW
    groups = _cut(p.groups, 72, 32) if many else _cut(p.groups, 3, 2)
    if told and blocks == 1:  # channels that are told one by one: all are kept
        inside, groups = p.in_channels // p.groups, p.groups
    most = max((_ROWS[op] if len(ties) < 3 else _ROWS[op] // 2) // rows, 32)
    counts = [_cut(count // p.groups, most, 16) * groups for _, count in ties]
    alone = replace(p, spatial=spatial, batch=1)
    images = max(2, -(-_POSITIONS // math.prod(alone.out_spatial)))
    return replace(
        alone,
        batch=min(p.batch, images),
        groups=groups,
        in_channels=inside * groups,
        unique=sum(counts),
        out_channels=sum(count * orbit_size(mask) for count, (mask, _) in zip(counts, ties)),
        ties=tuple((mask, count) for count, (mask, _) in zip(counts, ties)),
        sides=_with_channels(p, groups, inside),
    )


def _map(problem: Problem, axis: int) -> int:
    """The size of the input along an axis for which the output has about the wanted positions, or the layer's own."""
    p, wanted = problem, _MAPS[problem.ndim][axis]
    extent = p.dilation[axis] * (p.kernel[axis] - 1) + 1
    if p.transposed:
        gained = extent + p.output_padding[axis] - 2 * p.padding[axis]
        size = max(1, -(-(wanted - gained) // p.stride[axis]) + 1)
    else:
        size = (wanted - 1) * p.stride[axis] + extent - 2 * p.padding[axis]
    return min(max(1, size), p.spatial[axis])


def _cut(n: int, most: int, step: int) -> int:
    """`n`, or the largest number up to `most` with its remainder by `step`."""
    return n if n <= most else most - (most - n) % step


# --- tensors and answers ---------------------------------------------------------------------------------------------


def make(problem: Problem, exact: bool, device: torch.device = CPU) -> Tensors:
    """Seeded tensors on a device, in the dtype and layout of the problem; no other random numbers are drawn.

    `exact`: small integers, with which every product and sum of a right kernel is exact, so that one rounding alone
    may part it from the answer. Else normal numbers, with which it shows how precisely a kernel multiplies and adds.
    """
    how: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}

    def values(shape: tuple[int, ...], last: bool = False) -> Tensor:
        if exact:
            drawn = torch.randint(-3, 3, shape, dtype=problem.dtype, **how)
            drawn += drawn >= 0  # none is zero
        else:
            drawn = torch.randn(shape, dtype=torch.float64, **how).to(problem.dtype)
        fmt = memory_format(len(shape) - 2, last) if len(shape) > 2 else torch.contiguous_format
        return drawn.contiguous(memory_format=fmt)

    last = problem.input_channels_last
    return Tensors(
        values(problem.input_shape, last),
        values(problem.weight_shape),
        values((problem.out_channels,)),
        values(problem.output_shape, last),
    )


def answer(problem: Problem, op: str, tensors: Tensors, bias: bool, activation: str | None) -> Tensor:
    """What is right, in float64 on the CPU, where the tensors are, by the reference."""
    exact = replace(problem, dtype=torch.float64, device="cpu")
    return _activated(_reference(exact, op, tensors, bias), activation)


def answer_in_place(
    problem: Problem, op: str, tensors: Tensors, exact: bool, bias: bool, activation: str | None
) -> Tensor:
    """The same in float32 on the device of the tensors, by torch's convolution.

    Products of 16-bit values and of small integers are exact even where it multiplies in TF32, and sums of integers
    are; where it transforms (Winograd, FFT) they are nearer than half of one.
    """
    result = _reference(replace(problem, dtype=torch.float32), op, tensors, bias)
    return _activated(result.round() if exact else result, activation)


def _reference(problem: Problem, op: str, tensors: Tensors, bias: bool) -> Tensor:
    from ..backends import reference  # with the rates of CPUs, which take 20 ms to import

    arguments = [None if t is None else t.to(problem.dtype) for t in tensors.of(op, bias)]
    result: Tensor = getattr(reference, op)(problem, "expand", *arguments)
    return result


def _activated(result: Tensor, activation: str | None) -> Tensor:
    return result if activation is None else activate(result, activation)
