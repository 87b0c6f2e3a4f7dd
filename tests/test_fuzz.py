# Random problems over the whole space, shrunk to the simplest that fails. SYMCONV_FAST_FUZZ says how many.
"""Every native algorithm and operator on problems from `cases.draw`, and layers against F.conv on expanded filters.

The number of problems is SYMCONV_FAST_FUZZ (see conftest.py; without it the same few are tried every time). A failure
ends with a command that repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from cases import GUARDED, SPECIAL, draw, sample
from hypothesis import given
from hypothesis import strategies as st
from oracle import (
    LAYOUTS,
    OPS,
    Case,
    algorithms,
    arranged,
    candidates,
    check,
    expected,
    make_layer,
    make_tensors,
    problem_of,
    threads,
    tolerance,
)
from refusals import has_layouts, has_pass
from replay import DTYPES, in_turn, our_kernel


@st.composite
def problems(take: st.DrawFn) -> Case:
    """Shrinks towards the first value of every axis of the space."""
    return draw(lambda options: take(st.sampled_from(options)))


@given(case=problems(), dtype=st.sampled_from(DTYPES), op=st.sampled_from(OPS))
def test_every_algorithm_equals_the_oracle(case: Case, dtype: torch.dtype, op: str) -> None:
    for backend, algorithm, reason in candidates(case, dtype, op):
        if reason is None and (backend != "reference" or dtype.itemsize > 2):
            check(case, dtype, op, backend, algorithm)


@given(case=problems(), dtype=st.sampled_from((torch.float64, torch.float32)))
def test_layers_equal_the_oracle(case: Case, dtype: torch.dtype) -> None:
    """Output and all gradients of a layer, whatever dispatch chooses, through autograd and in any layout."""
    t = make_tensors(case, dtype)
    x, w, _, gy = arranged(case, dtype)
    layer = make_layer(case, dtype, w)
    x = x.detach().requires_grad_()
    with threads(1):
        y = layer(x)
        y.backward(gy)
    answer = expected(case, dtype)
    for op, result in (("fprop", y), ("dgrad", x.grad), ("wgrad", layer.weight.grad)):
        error = (result.double() - answer[op]).abs().max()
        assert error <= tolerance(case, dtype, op, "cpu", "fold"), (
            f"{op} is off by {error:.1e} for {case!r}, {dtype}"
        )
    if t.b is not None:
        wanted = t.gy.sum([0, *range(2, t.gy.dim())])
        assert torch.allclose(
            layer.bias.grad.double(), wanted, rtol=1e-4, atol=1e-4 * float(t.gy.abs().max())
        )


# --- what is tried -------------------------------------------------------------------------------------------------

VECTORS = (4, 8, 16, 32)
"""Elements of vectors, from SSE2's float32 to AVX-512's bfloat16."""

FEATURES: dict[str, Callable[[Case], bool]] = {
    "two ties": lambda c: len(c.ties) == 2,
    "more ties": lambda c: len(c.ties) > 2,
    "groups": lambda c: 1 < c.groups < c.channels,
    "depthwise": lambda c: 1 < c.groups == c.channels,
    "depthwise, more rows than channels": lambda c: 1 < c.groups == c.channels < c.unique,
    "transposed": lambda c: c.transposed,
    "output padding": lambda c: max(c.output_padding) > 0,
    "kernel of two sizes": lambda c: len(set(c.kernel)) > 1,
    "two strides": lambda c: len(set(c.stride)) > 1,
    "two dilations": lambda c: len(set(c.dilation)) > 1,
    "two paddings": lambda c: len(set(c.padding)) > 1,
    "padding past the kernel": lambda c: any(p >= k for p, k in zip(c.padding, c.kernel)),
    "stride past the kernel": lambda c: any(s > k for s, k in zip(c.stride, c.kernel)),
    "one output pixel": lambda c: math.prod(c.output_shape[2:]) == 1,
    "bias": lambda c: c.bias,
    "one image": lambda c: c.batch == 1,
    "five images": lambda c: c.batch == 5,
    **{f"{n}-D": lambda c, n=n: c.ndim == n for n in (1, 2, 3)},
    **{f"{n} channels": lambda c, n=n: c.channels // c.groups == n for n in (1, 2, 3, 4)},
    **{
        f"channels {text} a vector": lambda c, more=more: c.channels // c.groups - more in VECTORS
        for more, text in ((-1, "below"), (0, "at"), (1, "above"))
    },
    **{
        f"{layout} {name}": lambda c, i=i, layout=layout: c.layouts[i] == layout
        for layout in LAYOUTS
        for i, name in enumerate(("input", "weight", "gradient"))
    },
}  # fmt: skip


def guarded() -> list[Case]:
    """The random problems that are tried with guard pages and sanitizers."""
    return sample(len(GUARDED), GUARDED.start)


def test_random_problems_have_every_feature() -> None:
    problems = guarded()
    rare = {name: sum(map(has, problems)) for name, has in FEATURES.items()}
    assert not {name: count for name, count in rare.items() if count < 2}


class Cell(NamedTuple):
    """What a kernel may be written for; layouts are channels_last or not."""

    where: str
    op: str
    dtype: torch.dtype
    source_last: bool
    result_last: bool


def tried() -> set[Cell]:
    """What our own kernels run, one dtype for each pass of a problem, as `replay.py --kernels --turn own` does."""
    found = set()
    for number, case in enumerate([*SPECIAL.values(), *guarded()]):
        for dtype, op in product(DTYPES, OPS):
            if not in_turn(number, (dtype, op, "", "")):
                continue
            problem = problem_of(case, dtype, op)
            layouts = problem.input_channels_last, problem.channels_last
            for backend, algorithm, reason in candidates(case, dtype, op):
                if reason is None and our_kernel((dtype, op, backend, algorithm)):
                    found.add(Cell(f"{backend}/{algorithm}", op, dtype, *layouts))
    return found


def test_every_kernel_is_tried_in_every_dtype_and_layout() -> None:
    there = {
        Cell(f"{backend}/{algorithm}", op, dtype, *layouts)
        for backend, algorithm in algorithms()
        for op, dtype in product(OPS, DTYPES)
        for layouts in product((False, True), repeat=2)
        if our_kernel((dtype, op, backend, algorithm))
        and has_pass(f"{backend}/{algorithm}", op, dtype)
        and has_layouts(f"{backend}/{algorithm}", op, *layouts)
    }
    assert tried() == there
