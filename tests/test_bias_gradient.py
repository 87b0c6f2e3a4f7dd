"""The gradient of the bias, which comes with that of the weight where one pass gives both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import symconv_fast as sf

pytest.importorskip("symconv_fast._cpu", reason="the native CPU module was not built")

CASES = {
    "pairs": ("h", 1, 48),
    "quadruples": ("hv", 1, 64),
    "mixed": ({"h": 8, "v": 4, "hv": 12}, 1, 32),
    "groups": ({"v": 16, "hv": 16}, 2, 32),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def gradients(case: str, dtype: torch.dtype, algorithm: str, last: bool) -> tuple[Tensor, Tensor]:
    """Of the bias, and the upstream one; from the second call of the layer, which is a native one."""
    symmetry, groups, filters = CASES[case]
    layer = sf.SymmetricConv2d(3 * groups, filters, 3, padding=1, groups=groups, symmetry=symmetry).to(dtype)
    x = torch.randn(2, 3 * groups, 19, 37).to(dtype)
    if last:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    grad = torch.randn(2, filters, 19, 37).to(dtype)
    if last:
        grad = grad.to(memory_format=torch.channels_last)
    with sf.backend("cpu", algorithm):
        for _ in range(2):
            layer.zero_grad()
            layer(x).backward(grad)
    assert layer.bias.grad is not None
    return layer.bias.grad, grad


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("algorithm", ["fold", "expand", "direct_fold"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES)
def test_with_the_weight(case, dtype, algorithm, last):
    bias, grad = gradients(case, dtype, algorithm, last)
    expected = grad.double().sum((0, 2, 3))
    assert bias.dtype == dtype
    assert (bias - expected).abs().max() <= TOLERANCE[dtype] * grad.double().abs().sum((0, 2, 3)).max()


def test_alone():
    """A frozen weight leaves a sum."""
    layer = sf.SymmetricConv2d(3, 32, 3, padding=1, symmetry="h")
    layer.weight.requires_grad_(False)
    grad = torch.randn(1, 32, 9, 9)
    for _ in range(2):
        layer.zero_grad()
        layer(torch.randn(1, 3, 9, 9)).backward(grad)
    torch.testing.assert_close(layer.bias.grad, grad.sum((0, 2, 3)))
