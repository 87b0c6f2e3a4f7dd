"""The operators in torch's own terms, for exporters that know no others: torch.onnx, with either of its exporters.

torch keeps such decompositions in a table. Its ONNX exporter applies all of them; torch.compile, inductor and
torch.export apply only those that they list themselves, so the operator stays whole there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from . import activation as activations
from . import ops
from .ties import decode


def is_scripting_onnx() -> bool:
    """Is `torch.onnx.export(..., dynamo=False)` tracing, which knows nothing of the table?"""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def expand_and_convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ties: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    transposed: bool,
    groups: int,
    channels_last: bool,
) -> Tensor:
    """`symconv_fast::fprop` as the expansion of the filters and torch's convolution."""
    filters = decode(len(stride), groups, ties).expand(weight, 1 if transposed else 0)
    return torch.convolution(
        input, filters, bias, stride, padding, dilation, transposed, output_padding, groups
    )


def _expand_convolve_activate(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, *static: Sequence[int]
) -> Tensor:
    """`symconv_fast::fprop_activated` in the same terms."""
    function, _ = activations.ACTIVATIONS[activation]
    output: Tensor = function(expand_and_convolve(input, weight, bias, *static))  # type: ignore[arg-type]
    return output


DECOMPOSITIONS: dict[Any, Any] = {
    ops.fprop: expand_and_convolve,
    ops.fprop_activated: _expand_convolve_activate,
}
"""For `ExportedProgram.run_decompositions`: what is left are torch's operators, and the reduced weight."""

for _op, _decomposed in DECOMPOSITIONS.items():
    register_decomposition(_op)(_decomposed)
# Fake tensors of symbolic size would take the decompositions for formulas of the shape; this keeps ours.
register_decomposition(ops.fprop, type="meta")(ops.fake_fprop)
register_decomposition(ops.fprop_activated, type="meta")(ops.fake_fprop_activated)
