"""The tied convolution from torch's own operators: one product a tap of the reduced weight, summed along diagonals.

For hardware where torch's convolution is good and no kernel of this package runs. Along the tied axes the kernel is
taken apart: each tap becomes a channel of an ordinary convolution with kernel 1 on those axes, which multiplies the
raw reduced weight once for all members of an orbit, |G| times fewer multiply-accumulates than the expanded filters:

    fprop   Z_k = conv(x, w[k])                      y_g[p] = sum over k of Z_k at (p, J_g k)
    dgrad   D_k = sum over g of gy_g at (q, J_g k)   gx = sum over k of the adjoint of conv(., w[k]) at D_k
    wgrad   the same D_k                             gw[k] = D_k times x

(Z and D are each other's transposes.) Against folding the input by parity this writes K/|G| tensors of the size of the
output instead of K of the size of the input (K taps along the tied axes), has no signs, rounds no weight, and sums
cannot overflow in the input. The sum over k is one reduction of an overlapping view of Z: no gather, no atomics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Problem, allocate, as_result
from . import composed_cost, torch_conv
from .composed_axes import Lines, Phase, input_range, lines, output_margin, phases
from .composed_plan import (
    Segment,
    add_tap_filters,
    chunks,
    inner_bytes,
    inner_problem,
    last_inside,
    member_blocks,
    phase_products,
    segments,
    steps,
    tap_filters,
)
from .torch_conv import without_autocast

NAME = "composed"
ALGORITHMS = ("fold", "partial")


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Why not, or None. `fold` takes all tied axes apart, `partial` one axis of each tie that has several."""
    masks = [mask for mask, _ in problem.ties]
    if not any(masks):
        return "nothing is tied"
    if algorithm == "partial" and all(mask.bit_count() < 2 for mask in masks):
        return "no tie has more than one axis"
    return None


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds, from counted work and nominal rates; see `composed_cost`. Never chosen on a CPU."""
    return composed_cost.seconds(problem, op, segments(problem, algorithm))


# --- fprop: products, then sums along diagonals ---------------------------------------------------------------------


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial)."""
    output = allocate(problem.output_shape, input, problem.channels_last)
    with without_autocast(input):
        for segment in segments(problem, algorithm):
            for images in chunks(problem, segment):
                part = replace(problem, batch=images.stop - images.start)
                _fprop(part, segment, input[images], weight, bias, output[images])
    return output


def _fprop(
    problem: Problem, segment: Segment, input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor
) -> None:
    """Write the channels of one segment."""
    parts = [part for part in phase_products(problem, segment) if _reaches(problem, segment, part)]
    wide = torch.promote_types(problem.dtype, torch.float32)
    results = [
        _Result(block, _own_bias(problem, segment, bias, channel))
        for block, (_, _, channel) in zip(member_blocks(problem, segment, output), segment.members())
    ]
    if len(parts) != 1:
        for result in results:
            result.total = torch.zeros_like(result.block, dtype=wide)
    for part in parts:
        product = _product(problem, segment, part, input, weight)
        for (states, other, _), result in zip(segment.members(), results):
            _add_diagonals(problem, segment, part, product, (states, other), result)
    for result in results:
        if result.total is not None:
            result.block.copy_(result.total if result.bias is None else result.total + result.bias)


@dataclass
class _Result:
    """Where the sums of a member go: straight to its `block`, or, where phases add up, first to a `total`."""

    block: Tensor
    bias: Tensor | None
    total: Tensor | None = None


def _own_bias(problem: Problem, segment: Segment, bias: Tensor | None, channel: int) -> Tensor | None:
    """The bias of a member, (groups, rows, 1, ...); added in float32, before the one rounding of the output."""
    if bias is None:
        return None
    own = bias.unflatten(0, (problem.groups, -1)).narrow(1, channel, segment.rows)
    return own.reshape(problem.groups, segment.rows, *[1] * problem.ndim)


def _reaches(problem: Problem, segment: Segment, part: tuple[Phase, ...]) -> bool:
    """Does any product of these inputs belong to an output?"""
    out = problem.out_spatial
    return all(input_range(phase, out[axis]) is not None for axis, phase in zip(segment.axes, part))


def _product(
    problem: Problem, segment: Segment, part: tuple[Phase, ...], input: Tensor, weight: Tensor
) -> tuple[Tensor, tuple[int, ...]]:
    """Z (N, groups, *taps, rest, rows, *spatial), and along each folded axis the input at its first place."""
    out, ranges, own = problem.out_spatial, [], []
    padding = [0] * problem.ndim
    for axis, phase in zip(segment.axes, part):
        reach = input_range(phase, out[axis])
        assert reach is not None
        ranges.append(reach)
        own.append((-reach[0], reach[1] - phase.count))
    lead = steps(segment, part, input)
    if not problem.transposed and all(before == after >= 0 for before, after in own):
        for axis, (before, _) in zip(segment.axes, own):
            padding[axis] = before  # torch's convolution pads without a copy
    else:
        lead = F.pad(lead, _pads(problem.ndim, segment.axes, own))
    inner = inner_problem(problem, segment, part, tuple(lead.shape[2:]), padding)
    filters = tap_filters(problem, segment, part, weight)
    lead = as_result(lead, last_inside(problem))
    product = torch_conv.forward(inner, lead, filters, None)
    shape = (problem.groups, *(len(phase.taps) for phase in part), len(segment.rest), segment.rows)
    return product.unflatten(1, shape), tuple(first for first, _ in ranges)


def _pads(ndim: int, axes: tuple[int, ...], own: list[tuple[int, int]]) -> list[int]:
    """F.pad's argument: pairs from the last axis on; negative values crop."""
    pairs = [(0, 0)] * ndim
    for axis, pair in zip(axes, own):
        pairs[axis] = pair
    return [value for pair in reversed(pairs) for value in pair]


def _add_diagonals(
    problem: Problem,
    segment: Segment,
    part: tuple[Phase, ...],
    product: tuple[Tensor, tuple[int, ...]],
    member: tuple[tuple[int, ...], int],
    result: _Result,
) -> None:
    """Add to the total of a member its sum over all taps, or write it, with the bias, where it belongs."""
    per_axis = [lines(phase, problem.out_spatial[axis]) for axis, phase in zip(segment.axes, part)]
    whole = result.block if result.total is None else result.total
    for chosen in itertools.product(*per_axis):
        target = _sliced(whole, segment, [slice(line.start, None, line.step) for line in chosen])
        view = _diagonals(segment, product, member, chosen, tuple(target.shape[3:]))
        if result.total is not None:
            if view is not None:
                target += _sum(view, len(chosen), target.dtype)
        elif view is None:
            target.copy_(torch.zeros_like(target) if result.bias is None else result.bias.expand_as(target))
        elif result.bias is not None:
            wide = torch.promote_types(problem.dtype, torch.float32)
            torch.add(_sum(view, len(chosen), wide), result.bias, out=target)
        elif chosen:
            torch.sum(view, dim=_last(len(chosen)), out=target)
        else:
            target.copy_(view)


def _last(count: int) -> list[int]:
    return list(range(-count, 0))


def _sum(view: Tensor, dims: int, dtype: torch.dtype) -> Tensor:
    return view.sum(_last(dims), dtype=dtype) if dims else view.to(dtype)


def _sliced(tensor: Tensor, segment: Segment, slices: Sequence[slice]) -> Tensor:
    """View of (..., *spatial) with a slice along each folded axis."""
    for bit, own in zip(segment.bits, slices):
        dim = tensor.dim() - bit.bit_length()
        tensor = tensor[(slice(None),) * dim + (own,)]
    return tensor


def _diagonals(
    segment: Segment,
    product: tuple[Tensor, tuple[int, ...]],
    member: tuple[tuple[int, ...], int],
    chosen: tuple[Lines, ...],
    out: tuple[int, ...],
) -> Tensor | None:
    """A view (N, groups, rows, *out, *taps) of Z that overlaps: a step along a tap is also one along its axis."""
    z, firsts = product
    states, other = member
    tied, dims = len(segment.axes), z.dim()
    strides, ndim = z.stride(), len(out)
    at = z.storage_offset() + other * strides[2 + tied]
    sizes = [z.shape[0], z.shape[1], segment.rows, *out]
    steps = [strides[0], strides[1], strides[3 + tied], *strides[dims - ndim :]]
    for i, (axis, line, state) in enumerate(zip(segment.axes, chosen, states)):
        run = line.runs[state]
        if run is None:
            return None
        tap, place = strides[2 + i], strides[dims - ndim + axis]
        at += run.position * tap + (run.offset - firsts[i]) * place
        step = run.position_step * tap + run.offset_step * place
        if step < 0:  # the order of a sum is free, and torch knows no negative strides
            at, step = at + step * (run.length - 1), -step
        sizes.append(run.length)
        steps.append(step)
    return z.as_strided(sizes, steps, at)


# --- dgrad and wgrad: sums of the members' gradients, then one product -----------------------------------------------


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    grad = allocate(problem.input_shape, weight, problem.channels_last)
    own = segments(problem, algorithm)
    with without_autocast(weight):
        for images in chunks(problem, max(own, key=lambda segment: inner_bytes(problem, segment))):
            part = replace(problem, batch=images.stop - images.start)
            _dgrad(part, own, grad_output[images], weight, grad[images])
    return grad


def _dgrad(
    problem: Problem, own: tuple[Segment, ...], grad_output: Tensor, weight: Tensor, grad: Tensor
) -> None:
    """Write the gradient of the input; segments and phases are added in float32."""
    wide = torch.promote_types(problem.dtype, torch.float32)
    whole = len(own) == 1 and _covers(problem, own[0])
    total = grad if whole else torch.zeros_like(grad, dtype=wide)
    for segment in own:
        padded, margins = _padded_gradient(problem, segment, grad_output)
        for part in phase_products(problem, segment):
            sums = _gather(problem, segment, part, padded, margins)
            inner = inner_problem(problem, segment, part)
            filters = tap_filters(problem, segment, part, weight)
            like = allocate(inner.input_shape, weight, last_inside(problem))
            result = torch_conv.backward(inner, sums, like, filters, 0)
            target = steps(segment, part, total)
            if whole:
                target.copy_(result)
            else:
                target += result
    if not whole:
        grad.copy_(total)


def _covers(problem: Problem, segment: Segment) -> bool:
    """Do the phases hold each input once? Where the stride exceeds the kernel some inputs are in none."""
    return all(
        sum(phase.count for phase in phases(problem, axis)) == problem.spatial[axis] for axis in segment.axes
    )


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight."""
    wide = torch.promote_types(problem.dtype, torch.float32)
    total = torch.zeros(problem.weight_shape, dtype=wide, device=input.device)
    own = segments(problem, algorithm)
    with without_autocast(input):
        for segment in own:
            for images in chunks(problem, segment):
                chunk = replace(problem, batch=images.stop - images.start)
                _wgrad(chunk, segment, grad_output[images], input[images], total)
    return as_result(total.to(problem.dtype), problem.channels_last)


def _wgrad(problem: Problem, segment: Segment, grad_output: Tensor, input: Tensor, total: Tensor) -> None:
    """Add the gradient of one segment's rows, from some of the images, to `total`."""
    padded, margins = _padded_gradient(problem, segment, grad_output)
    for part in phase_products(problem, segment):
        sums = _gather(problem, segment, part, padded, margins)
        inner = inner_problem(problem, segment, part)
        like = allocate(inner.weight_shape, input, last_inside(problem))
        own = as_result(steps(segment, part, input), last_inside(problem))
        result = torch_conv.backward(inner, sums, own, like, 1)
        add_tap_filters(problem, segment, part, result, total)


def _padded_gradient(
    problem: Problem, segment: Segment, grad: Tensor
) -> tuple[Tensor, list[tuple[int, int]]]:
    """The output's gradient with zeros around it along the folded axes, and how many."""
    margins = [output_margin(problem, axis) for axis in segment.axes]
    if any(before or after for before, after in margins):
        grad = F.pad(grad, _pads(problem.ndim, segment.axes, margins))
    return grad, margins


def _gather(
    problem: Problem,
    segment: Segment,
    part: tuple[Phase, ...],
    padded: Tensor,
    margins: list[tuple[int, int]],
) -> Tensor:
    """D (N, groups * taps * rest * rows, *spatial): for each tap the members' gradients at the inputs of a phase."""
    blocks = {
        (states, other): block
        for (states, other, _), block in zip(
            segment.members(), member_blocks(problem, segment, padded), strict=True
        )
    }
    inner = inner_problem(problem, segment, part)
    sums = allocate(inner.output_shape, padded, last_inside(problem))
    shape = (problem.groups, *(len(phase.taps) for phase in part), len(segment.rest), segment.rows)
    grouped = sums.unflatten(1, shape)

    def collect(axes: int, states: tuple[int, ...], other: int, out: Tensor | None = None) -> Tensor:
        """(N, groups, *taps of the first `axes` axes, rows, *spatial) of the members with these later states."""
        if not axes:
            return blocks[states, other]
        low, high = (collect(axes - 1, (state, *states), other) for state in (0, 1))
        phase, axis, (before, _) = part[axes - 1], segment.axes[axes - 1], margins[axes - 1]
        dim = low.dim() - problem.ndim + axis
        if out is None:
            size = [*low.shape[1 : axes + 1], len(phase.taps), *low.shape[axes + 1 :]]
            size[dim] = phase.count
            flat = (low.shape[0], math.prod(size[: axes + 2]), *size[axes + 2 :])
            out = allocate(flat, low, last_inside(problem)).unflatten(1, size[: axes + 2])
        for position in range(len(phase.taps)):
            terms = [
                _line(source, dim, before + shift, phase)
                for source, reach in zip((low, high), phase.reach)
                for at, shift in reach
                if at == position
            ]
            target = out.select(axes + 1, position)
            target.copy_(terms[0]) if len(terms) == 1 else torch.add(*terms, out=target)
        return out

    for other in range(len(segment.rest)):
        place = grouped.select(2 + len(part), other)
        if part:
            collect(len(part), (), other, place)
        else:
            place.copy_(blocks[(), other])
    return sums


def _line(source: Tensor, dim: int, first: int, phase: Phase) -> Tensor:
    """The values that the inputs of a phase meet: first, first + scale, ..."""
    slices = [slice(None)] * source.dim()
    slices[dim] = slice(first, first + phase.scale * (phase.count - 1) + 1, phase.scale)
    return source[tuple(slices)]
