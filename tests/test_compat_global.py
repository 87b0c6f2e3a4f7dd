# GlobalConv1D of TensorFlow: against its dense kernel in numpy (tf1.py); round trips; errors.
from __future__ import annotations

import numpy as np
import pytest
import torch
from tf1 import assert_same, drawn, their_global
from torch import nn

from symconv_fast.compat import CheckpointError, global_from_tf, global_to_tf


@pytest.mark.parametrize("bias", [False, True])
def test_global_conv_is_theirs_and_comes_back(bias) -> None:
    random = np.random.default_rng(0)
    arrays = {"kernel": random.standard_normal((1, 3, 4)), "surround": random.standard_normal((1, 3, 4))}
    if bias:
        arrays["bias"] = random.standard_normal((1, 1, 4))
    x = random.standard_normal((2, 7, 3))
    layer = global_from_tf(arrays)
    y = layer(torch.from_numpy(x).mT).detach().mT
    np.testing.assert_allclose(y, their_global(x, arrays), rtol=0, atol=1e-12)
    back = global_to_tf(layer)
    assert_same(back, arrays)
    for array in back.values():  # copies, which the layer does not see
        array[:] = 0
    assert_same(global_to_tf(layer), arrays)
    named = {f"global_conv1d/{name}:0": a.astype(np.float32) for name, a in arrays.items()}
    permuted = global_from_tf(named, scope="global_conv1d", input_order=[2, 0, 1])
    assert permuted.center.dtype == torch.float32
    y = permuted(torch.from_numpy(x[:, :, [2, 0, 1]]).mT.float()).detach().mT
    np.testing.assert_allclose(y, their_global(x, arrays), rtol=0, atol=1e-4)
    assert_same(
        global_to_tf(permuted, input_order=[2, 0, 1]),
        {name: a.astype(np.float32) for name, a in arrays.items()},
    )


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"kernel": np.zeros((1, 3, 4))}, "arrays lack 'surround'"),
        ({"surround": np.zeros((1, 3, 4))}, "arrays lack 'kernel'"),
        ({"kernel": np.zeros((3, 4)), "surround": np.zeros((3, 4))}, r"\(3, 4\), want \(1, in_channels"),
        (
            {"kernel": np.zeros((1, 3, 4)), "surround": np.zeros((1, 4, 4))},
            r"surround has .*want \(1, 3, 4\)",
        ),
        (
            {"kernel": np.zeros((1, 3, 4)), "surround": np.zeros((1, 3, 4)), "bias": np.zeros(4)},
            r"bias has shape \(4,\), want \(1, 1, 4\)",
        ),
        (drawn({"h": 2}, "whole"), "unknown names 'kernel_sym_h'; a GlobalConv1D has bias, kernel, surround"),
        (
            {"kernel": np.zeros((1, 3, 4)), "surround": np.full((1, 3, 4), np.inf)},
            "surround has 12 of 12 values",
        ),
    ],
)
def test_bad_global_arrays(arrays, match) -> None:
    with pytest.raises(CheckpointError, match=match):
        global_from_tf(arrays)


def test_global_to_tf_takes_its_layer() -> None:
    with pytest.raises(TypeError, match="needs a GlobalConv1d, got Linear"):
        global_to_tf(nn.Linear(2, 2))
