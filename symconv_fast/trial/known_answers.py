"""Does a kernel give the right numbers on this device? Asked once, of a small problem, before a layer uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..activation import activate
from ..backends import gpu_cost
from ..problem import Problem
from . import small

Run = Callable[..., Tensor]
"""The operator of one candidate on a problem, all but its tensors bound."""

_TIMES = 2.5  # of the error of torch's own convolution: quadruples in 16 bits reach 2.1, octuples 2.5
_LARGEST = 12.0  # of the root mean square that is allowed: no error of rounding is as large
_ROUNDING = (
    0.5  # root mean square of one rounding, in units of the roundoff of the largest values, from above
)


class Answer(NamedTuple):
    """What came of it: an error as text, or None. `right` is None where nothing could be said, as without memory."""

    right: bool | None
    error: str | None = None


def ask(problem: Problem, op: str, run: Run, device: torch.device, activation: str | None = None) -> Answer:
    """Run a problem on a device, on integers with a bias and on normal numbers without one, and compare in float64.

    `run` takes what `Backend.bind` binds: (input, weight, bias) for fprop, two tensors else, activation applied.
    """
    try:
        for exact in (True, False):
            error = _wrong(problem, op, run, device, activation, exact)
            if error is not None:
                return Answer(False, error)
    except torch.OutOfMemoryError as failure:
        return Answer(None, f"not enough memory: {_first_line(failure)}")
    except Exception as failure:  # whatever a kernel does, the layer goes on with another one
        return Answer(False, f"{type(failure).__name__}: {_first_line(failure)}")
    return Answer(True)


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0]


def _wrong(
    problem: Problem, op: str, run: Run, device: torch.device, activation: str | None, exact: bool
) -> str | None:
    """What is wrong with the result, or None."""
    tensors = small.make(problem, exact)
    right = small.answer(problem, op, tensors, exact, activation)
    there = small.Tensors(*(t.to(device, copy=True) for t in tensors))
    arguments = there.of(op, exact)
    result = run(*arguments)
    for given, used in zip(tensors, there):
        if not torch.equal(given, used.cpu()):
            return "it wrote to its arguments"
    like = problem.empty_result(op, there.w)
    if (result.shape, result.dtype, result.stride()) != (like.shape, like.dtype, like.stride()):
        return f"shape, dtype or strides {tuple(result.shape)}, {result.dtype}, {result.stride()}"
    error = (result.cpu().double() - right).abs()
    if exact:
        return _too_large(error, _exact_limit(problem, op, tensors, right, activation), right)
    own = _own(problem, op, arguments, activation).cpu().double() - right
    allowed = _TIMES * max(_rms(own), _least(problem, op, right))
    if not _rms(error) <= allowed:
        return f"root mean square error {_rms(error):.2e}, torch's own {_rms(own):.2e}"
    eps = torch.finfo(problem.dtype).eps
    return _too_large(error, _LARGEST * allowed + eps * right.abs(), right)


def _own(problem: Problem, op: str, arguments: tuple[Tensor | None, ...], activation: str | None) -> Tensor:
    """torch's own convolution on the device, in the same dtype and with the same switches."""
    from ..backends import reference  # as in `small.answer`

    own: Tensor = getattr(reference, op)(problem, "expand", *arguments)
    return own if activation is None else activate(own, activation)


def _exact_limit(
    problem: Problem, op: str, tensors: small.Tensors, right: Tensor, activation: str | None
) -> Tensor:
    """One rounding of an exact sum; what wider types may lose by the order of the sums is far below one product."""
    eps, single = torch.finfo(problem.dtype).eps, torch.finfo(torch.float32).eps
    limit = eps * right.abs()
    if problem.dtype.itemsize > 2:
        limit = limit + 4 * eps * (9 * _terms(problem, op) + 3)
    if (
        activation is not None
    ):  # computed in float32, whose error is that of the argument where the value is small
        limit = limit + 16 * single * (9 * math.sqrt(_terms(problem, op)) + 3)
    return limit


def _terms(problem: Problem, op: str) -> int:
    """Products that are added up to one value of the result."""
    p, taps = problem, math.prod(problem.kernel)
    if op == "wgrad":
        members = p.out_channels // max(1, p.unique) + 1
        return p.batch * math.prod(p.spatial if p.transposed else p.out_spatial) * members
    return taps * (p.in_channels if op == "fprop" else p.out_channels) // p.groups


def _least(problem: Problem, op: str, right: Tensor) -> float:
    """The error that a right kernel may have even where torch's own has less: a rounding of operands or of sums."""
    roundoff = torch.finfo(problem.dtype).eps / 2
    share = _ROUNDING
    if problem.dtype == torch.float32 and gpu_cost.tf32_allowed():
        roundoff = 2.0**-11
    elif problem.dtype.itemsize > 2:
        share = max(_ROUNDING, math.sqrt(_terms(problem, op)) / 4)
    return share * roundoff * _rms(right)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _too_large(error: Tensor, limit: Tensor, right: Tensor) -> str | None:
    """How many values are too far off, and where the first one is; NaN is."""
    wrong = ~(error <= limit)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} values are wrong, the first at {at}: off by {float(error[at]):.3g} "
        f"from {float(right[at]):.6g}"
    )
