"""torch's own convolution of ordinary filters, asked in a type in which it is right and quick."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem
from . import far


def forward(problem: Problem, input: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """torch's convolution with ordinary filters."""
    if problem.is_far:
        return far.forward(problem, input, filters, bias)
    tensors = _asked(asked_in(problem, "fprop"), input, filters, bias)
    return torch.convolution(*tensors, *geometry(problem)).to(problem.dtype)


def backward(problem: Problem, grad_output: Tensor, input: Tensor, filters: Tensor, which: int) -> Tensor:
    """torch's gradient of the input (which = 0) or of the ordinary filters (which = 1), not rounded yet."""
    if problem.is_far:
        return far.backward(problem, grad_output, input, filters, which)
    tensors = _asked(asked_in(problem, "wgrad" if which == 1 else "dgrad"), grad_output, input, filters)
    mask = [which == 0, which == 1, False]
    grad: Tensor = torch.ops.aten.convolution_backward(*tensors, None, *geometry(problem), mask)[which]
    return grad


def asked_in(problem: Problem, op: str) -> torch.dtype:
    """The type in which torch is asked: a wider one where torch 2.13 is wrong on a CPU, at times or always, or slow.

    float64, which has none of torch's fast convolutions, for float32 and 16 bits
    - where a strided axis has a single output: the forward pass of one channel in channels_last is wrong each time (36
      of 83,000 random problems, all of them such), and the gradient of the input of some other shapes in about half the
      runs on two threads, (2, 5, 12, 5) with a kernel (1, 7) and 68 channels out among them;
    - for the gradient of the filters in three dims with such a stride and padding as 6,000 random problems showed;
    - where whole windows of the forward pass may lie in the padding: with a bias one call in some thousands crashed
      (channels_last, input 1 x 1, kernel 2, stride (3, 2), padding 3, dilation (3, 2), 2 groups).

    float32 for 16 bits
    - where the padding is as long as the map on some axis: reads and writes outside of its tensors; all cases that
      some 7,000 random problems found were such;
    - for the gradient of the filters in three dims: wrong in bfloat16, by no rule that was found;
    - for the gradient of the filters with groups and dilation: bfloat16 reads memory that was never written, where a
      group has 8 channels or fewer (28 of 96 problems that differed in size alone, each time);
    - where the CPU has no products of that type: torch rounds every single sum, and takes 3 to 50 times as long.
    """
    if problem.device != "cpu" or problem.dtype == torch.float64:
        return problem.dtype
    wrong = {"fprop": _windows_in_padding, "wgrad": _deep}.get(op)
    if _one_output(problem) or (wrong is not None and wrong(problem)):
        return torch.float64
    if problem.dtype.itemsize > 2:
        return problem.dtype
    least = map(min, problem.spatial, problem.out_spatial)
    outside = any(p >= n for p, n in zip(problem.padding, least))
    apart = problem.groups > 1 and max(problem.dilation) > 1
    wide = outside or (op == "wgrad" and (problem.ndim == 3 or apart))
    return torch.float32 if wide or not multiplies(problem.dtype) else problem.dtype


def _one_output(problem: Problem) -> bool:
    outputs = problem.spatial if problem.transposed else problem.out_spatial
    return any(s > 1 and n == 1 for s, n in zip(problem.stride, outputs))


def _deep(problem: Problem) -> bool:
    return problem.ndim == 3 and problem.padding[0] > problem.stride[0] > 1


def _windows_in_padding(problem: Problem) -> bool:
    """May all taps of a window read padding, before the map, behind it or on both sides?"""
    p = problem
    if p.transposed:
        return False
    sizes = zip(p.spatial, p.out_spatial, p.kernel, p.stride, p.padding, p.dilation)
    return any(pad > d * (k - 1) or s * (out - 1) - pad >= n or d > n for n, out, k, s, pad, d in sizes)


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Has this CPU instructions for products of a 16-bit type, and torch's library kernels that use them?"""
    mkldnn = torch.ops.mkldnn
    if dtype == torch.float16:
        return bool(mkldnn._is_mkldnn_fp16_supported())
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        # There the library runs bfloat16 in any case, but without the instructions at a third of float32's speed.
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(mkldnn._is_mkldnn_bf16_supported())


def _asked(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """Tensors in that type. In float64 the kernels are torch's own, which want no other layout."""

    def asked(tensor: Tensor) -> Tensor:
        if tensor.dtype == dtype:
            return tensor
        wide = tensor.to(dtype)
        return wide.contiguous() if dtype == torch.float64 else wide

    return [None if tensor is None else asked(tensor) for tensor in tensors]


def geometry(problem: Problem) -> tuple[Any, ...]:
    """Arguments of torch.convolution from `stride` on."""
    p = problem
    # Where the kernel is 1 dilation does nothing but to allow a larger output padding, and with it torch 2.13's
    # bfloat16 kernel for three dims crashes.
    sizes = zip(p.dilation, p.kernel, p.stride, p.output_padding)
    dilation = tuple(d if k > 1 or o >= s else 1 for d, k, s, o in sizes)
    return p.stride, p.padding, dilation, p.transposed, p.output_padding, p.groups


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Autocast has had its say where the function was entered; below that, dtypes are what the operator was given.

    (CUDA's autocast casts in aten::convolution as well, the CPU's only above it.)
    """
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
