"""Self-symmetric filters of few input channels, as those of a network on waveforms: long kernels along a line."""

from __future__ import annotations

import pytest
import torch
from sides_oracle import Case
from sides_problems import PASSES, exact, format_of, layer_of, passes

from symconv_fast import dispatch, native
from symconv_fast.backends import cpu

pytestmark = pytest.mark.skipif(native.module is None, reason="the native module was not built")

ERROR = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
LAYERS = {
    "even line": (Case({"h+": 20}, None, 1, 20, (51,)), (200,), {}),
    "odd line": (Case({"h-": 17}, None, 2, 17, (50,)), (133,), {"padding": 25}),
    "strided line": (Case({"h+": 16}, None, 1, 16, (16,)), (160,), {"stride": 5, "padding": 3}),
    "groups": (Case({"h-": 24}, None, 6, 24, (9,), groups=2), (61,), {"dilation": 2}),
    "image": (Case({"h+v-": 32}, None, 3, 32, (7, 6)), (24, 29), {"stride": 2, "padding": 3}),
    "volume": (Case({"h-z+": 16}, None, 1, 16, (3, 3, 4)), (6, 7, 9), {"padding": 1}),
    "transposed": (Case({"h+": 2}, None, 16, 2, (8,), transposed=True), (40,), {"stride": 2}),
}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ERROR, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", LAYERS)
def test_every_pass_is_that_of_the_expansion(name: str, dtype: torch.dtype, last: bool) -> None:
    case, extents, geometry = LAYERS[name]
    layer = layer_of(case, dtype, last, **geometry)
    x = torch.randn(3, case.channels, *extents).to(dtype).contiguous(memory_format=format_of(case.ndim, last))
    y, gx, gw, up = exact(case, layer, x, geometry)
    for op, got, true in zip(PASSES, passes(layer, x, up, list(PASSES), "fold"), (y, gx, gw)):
        assert got is not None
        error = (got.double() - true).norm() / true.norm()
        assert error <= ERROR[dtype], f"{op}: {error:.2g}"


@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
def test_tensors_that_lie_otherwise_are_copied(other: str) -> None:
    """The panel of a weight gradient is made of the input, which may lie otherwise than the upstream gradient."""
    case, extents, geometry = LAYERS["image"]
    layer = layer_of(case, torch.float64, other == "contiguous", **geometry)
    last = format_of(2, other == "channels_last")
    x = torch.randn(3, 3, *extents, dtype=torch.float64).contiguous(memory_format=last)
    *_, gw, up = exact(case, layer, x, geometry)
    problem = layer.problem(x)
    for grad in (up.contiguous(), up.contiguous(memory_format=torch.channels_last)):
        found = cpu.wgrad(problem, "fold", grad, x)
        torch.testing.assert_close(found, gw, rtol=1e-11, atol=1e-11)


@pytest.mark.skipif(
    native.module is None or native.module.isa() in ("avx2", "baseline"), reason="rates with AVX-512"
)
def test_long_lines_are_left_to_the_fold() -> None:
    """One channel, 80 even filters of 251 taps: the first layer of a network on waveforms."""
    layer = layer_of(Case({"h+": 80}, None, 1, 80, (251,)), torch.float32, False)
    problem = layer.problem(torch.empty(1, 1, 3200))
    chosen = dispatch.choose(problem, "fprop")
    assert (chosen.backend.NAME, chosen.algorithm) == ("cpu", "fold")
    assert cpu.select(problem, "fprop", "fold").exact["products"] <= 1.1 * 2950 * 126 * 80
