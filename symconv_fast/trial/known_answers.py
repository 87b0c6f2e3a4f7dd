"""Does a kernel give the right numbers on this device? Asked once, of a small problem, before a layer uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import settings
from ..activation import activate
from ..problem import Problem
from . import small

Run = Callable[..., Tensor]
"""The operator of one candidate on a problem, all but its tensors bound."""

_TIMES = 2.5  # of the error of torch's own convolution: quadruples in 16 bits reach 2.1, octuples 2.5
_LARGEST = 12.0  # of the root mean square that is allowed: no error of rounding is as large
_ROUNDING = (
    0.5  # root mean square of one rounding, in units of the roundoff of values of that size, from above
)


class Answer(NamedTuple):
    """What came of it, with the error as text; `right` is None where memory did not suffice to say."""

    right: bool | None
    error: str | None = None


def ask(problem: Problem, op: str, run: Run, device: torch.device, activation: str | None = None) -> Answer:
    """Run a small problem on a device, on integers with a bias and on normal numbers without one.

    The answers are computed in float64 on the CPU. `run` takes what `binding.bind` binds: (input, weight, bias) for
    fprop, two tensors else, with the activation applied.
    """
    return _caught(lambda: _wrong(_Question(problem, op, run, device, activation, False), (True, False)))


def ask_in_place(
    problem: Problem, op: str, run: Run, device: torch.device, activation: str | None = None
) -> Answer:
    """The same of a problem of any size: the answers are those of torch's convolution on the device in float32.

    Of integers they are exact: float32 holds those up to 2^24, and sums of random signs are far below that. Of normal
    numbers they are exact enough for types of 16 bits; of others these are not asked.
    """
    kinds = (True, False) if problem.dtype.itemsize == 2 else (True,)
    return _caught(lambda: _wrong(_Question(problem, op, run, device, activation, True), kinds))


class Sheet:
    """A question on integers and its answer, for several candidates of one problem in turn, on its device.

    The answer is that of torch's convolution in float32, as in `ask_in_place`. Results in wider types may be one
    rounding off, those in 16 bits as far as normal numbers: torch's own way rounds each member of an orbit.
    """

    def __init__(
        self, problem: Problem, op: str, device: torch.device, activation: str | None = None
    ) -> None:
        self.problem, self._op = problem, op
        self._tensors = small.make(problem, True, device)
        self._right = small.answer_in_place(problem, op, self._tensors, True, True, activation)
        own = (
            _own(problem, op, self._tensors.of(op, True), activation)
            if problem.dtype.itemsize == 2
            else self._right
        )
        self._own, self._activation = _rms(own.to(self._right) - self._right), activation

    def ask(self, run: Run) -> Answer:
        """What comes of it with one candidate; it gets tensors of its own."""
        return _caught(lambda: self._wrong(run))

    def _wrong(self, run: Run) -> str | None:
        used = small.Tensors(*(t.clone() for t in self._tensors))
        result = run(*used.of(self._op, True))
        error = _unlike(self.problem, self._op, result, self._tensors, used)
        if error is not None:
            return error
        p, right = self.problem, self._right
        if p.dtype.itemsize == 2:
            return _too_rough(p, self._op, result, right, self._own)
        limit = _exact_limit(p, self._op, right, self._activation)
        return _too_large((result.to(right) - right).abs(), limit, right)


def _caught(wrong: Callable[[], str | None]) -> Answer:
    try:
        error = wrong()
    except Exception as failure:  # whatever a kernel does, the layer goes on with another one
        if is_shortage(failure):
            return Answer(None)
        return Answer(False, f"{type(failure).__name__}: {_first_line(failure)}")
    return Answer(error is None, error)


def is_shortage(failure: Exception) -> bool:
    """Did memory not suffice? A CPU's allocator has no exception of its own for that."""
    told = isinstance(failure, (torch.OutOfMemoryError, MemoryError))
    return told or "can't allocate memory" in str(failure)


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0]


class _Question(NamedTuple):
    """What is asked, and where the answers come from: the CPU, or torch's convolution on the device."""

    problem: Problem
    op: str
    run: Run
    device: torch.device
    activation: str | None
    in_place: bool


def _wrong(q: _Question, kinds: tuple[bool, ...]) -> str | None:
    """What is wrong with the results on integers (True) and normal numbers (False), or None."""
    for exact in kinds:
        tensors = small.make(q.problem, exact, q.device if q.in_place else small.CPU)
        there = small.Tensors(*(t.to(q.device, copy=True) for t in tensors))
        result = q.run(*there.of(q.op, exact))
        error = _unlike(q.problem, q.op, result, tensors, there)
        if error is None and exact:
            error = _wrong_sums(q, tensors, result)
        elif error is None:
            error = _wrong_rounding(q, tensors, there, result)
        if error is not None:
            return error
    return None


def _wrong_sums(q: _Question, tensors: small.Tensors, result: Tensor) -> str | None:
    """What is wrong with the result on integers, or None."""
    if q.in_place:
        right = small.answer_in_place(q.problem, q.op, tensors, True, True, q.activation)
    else:
        right = small.answer(q.problem, q.op, tensors, True, q.activation)
    error = (result.to(right) - right).abs()
    return _too_large(error, _exact_limit(q.problem, q.op, right, q.activation), right)


def _wrong_rounding(q: _Question, tensors: small.Tensors, there: small.Tensors, result: Tensor) -> str | None:
    """What is wrong with the result on normal numbers, or None."""
    if q.in_place:
        right = small.answer_in_place(q.problem, q.op, tensors, False, False, q.activation)
    else:
        right = small.answer(q.problem, q.op, tensors, False, q.activation)
    own = _rms(_own(q.problem, q.op, there.of(q.op, False), q.activation).to(right) - right)
    return _too_rough(q.problem, q.op, result, right, own)


def _too_rough(problem: Problem, op: str, result: Tensor, right: Tensor, own: float) -> str | None:
    """What is wrong with a result that may be rounded several times, beside the error of torch's own, or None."""
    error = (result.to(right) - right).abs()
    allowed = _TIMES * max(own, _least(problem, op, right))
    if not _rms(error) <= allowed:
        return f"root mean square error {_rms(error):.2e}, torch's own {own:.2e}"
    eps = torch.finfo(problem.dtype).eps
    return _too_large(error, _LARGEST * allowed + eps * right.abs(), right)


def _unlike(
    problem: Problem, op: str, result: Tensor, given: small.Tensors, used: small.Tensors
) -> str | None:
    """What is wrong with the result before its numbers are looked at, and with the arguments after the call."""
    if not all(torch.equal(a, b.to(a.device)) for a, b in zip(given, used)):
        return "it wrote to its arguments"
    like = problem.empty_result(op, used.w)
    if (result.shape, result.dtype, result.stride()) == (like.shape, like.dtype, like.stride()):
        return None
    return f"shape, dtype or strides {tuple(result.shape)}, {result.dtype}, {result.stride()}"


def _own(problem: Problem, op: str, arguments: tuple[Tensor | None, ...], activation: str | None) -> Tensor:
    """torch's own convolution on the device, in the same dtype and with the same switches."""
    from ..backends import reference  # as in `small.answer`

    own: Tensor = getattr(reference, op)(problem, "expand", *arguments)
    return own if activation is None else activate(own, activation)


def _exact_limit(problem: Problem, op: str, right: Tensor, activation: str | None) -> Tensor:
    """One rounding of an exact sum; what wider types may lose by the order of the sums is far below one product."""
    eps, single = torch.finfo(problem.dtype).eps, torch.finfo(torch.float32).eps
    limit = eps * right.abs()
    if problem.dtype.itemsize > 2:
        # F(4,3) multiplies by roots of 2, and is not exact with integers.
        roundings = 32 if settings.winograd() == "f4" else 4
        limit = limit + min(0.25, roundings * eps * (9 * _terms(problem, op) + 3))
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
    if problem.dtype == torch.float32 and settings.tf32_allowed():
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
