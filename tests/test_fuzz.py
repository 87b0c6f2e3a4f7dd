# Random problems over the whole space, shrunk to the simplest that fails. SYMCONV_FAST_FUZZ says how many.
"""Every native algorithm and operator on problems from `cases.draw`, and layers against F.conv on expanded filters.

The number of problems is SYMCONV_FAST_FUZZ (see conftest.py; without it the same few are tried every time). A failure
ends with a command that repeats it.
"""

from __future__ import annotations

import torch
from cases import draw
from hypothesis import given
from hypothesis import strategies as st
from oracle import OPS, Case, arrange, candidates, check, expected, make_tensors, threads, tolerance

import symconv_fast

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@st.composite
def problems(take: st.DrawFn) -> Case:
    """Shrinks towards the first value of every axis of the space."""
    return draw(lambda options: take(st.sampled_from(options)))


@given(case=problems(), dtype=st.sampled_from(DTYPES), op=st.sampled_from(OPS))
def test_every_algorithm_equals_the_oracle(case: Case, dtype: torch.dtype, op: str) -> None:
    for backend, algorithm, reason in candidates(case, dtype, op):
        if reason is None and (backend != "reference" or dtype.itemsize > 2):
            check(case, dtype, op, backend, algorithm)


KEYS = {1: "h", 2: "v", 4: "z", 3: "hv", 5: "hz", 6: "vz", 7: "hvz"}


@given(case=problems(), dtype=st.sampled_from((torch.float64, torch.float32)))
def test_layers_equal_the_oracle(case: Case, dtype: torch.dtype) -> None:
    """Output and all gradients of a layer, whatever dispatch chooses, through autograd and in any layout."""
    counts = {KEYS[mask]: rows << mask.bit_count() for mask, rows in case.ties if mask}
    kind = f"SymmetricConv{'Transpose' if case.transposed else ''}{case.ndim}d"
    more = {"output_padding": case.output_padding} if case.transposed else {}
    layer = getattr(symconv_fast, kind)(
        case.channels, case.out_channels, case.kernel, case.stride, case.padding, dilation=case.dilation,
        groups=case.groups, bias=case.bias, symmetry=counts, dtype=dtype, **more,
    )  # fmt: skip
    t = make_tensors(case, dtype)
    x, w, gy = (arrange(v, layout, dtype) for v, layout in zip((t.x, t.w, t.gy), case.layouts))
    layer.weight = torch.nn.Parameter(w)
    if t.b is not None:
        layer.bias.data.copy_(t.b)
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
