"""Native CPU kernels: the parity fold forward, the gather-sum backward, packed into a panel and multiplied once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _cpu  # type: ignore[attr-defined]
from ..problem import Problem, allocate, memory_format

NAME = "cpu"
ALGORITHMS = ("fold",)

_DTYPES = (torch.float32, torch.float64)
_LANES = {"avx512": 64, "avx2": 32, "baseline": 16}[_cpu.isa()]  # bytes of a vector


def can_run(problem: Problem, op: str, algorithm: str) -> str | None:
    """Every geometry runs; only other devices and dtypes do not."""
    if problem.device != "cpu":
        return f"the tensors are on {problem.device}, not on the CPU"
    if problem.dtype not in _DTYPES:
        return f"{str(problem.dtype)[6:]} has no native kernel; float32 and float64 have"
    return None


# Rates of one thread, for the choice against the reference only; tests/bench compare the two for real.
# Measured on one AVX-512 core (Zen 5): 250 GFLOP/s in the matrix kernel with full vectors.
_FLOPS_PER_THREAD = {"avx512": 250e9, "avx2": 120e9, "baseline": 40e9}[_cpu.isa()]
_PACK_BYTES_PER_SECOND = 40e9
_CALL_SECONDS = 25e-6


def estimate(problem: Problem, op: str, algorithm: str) -> float:
    """Seconds: multiply-accumulates with the padding to whole vectors, packing of the panel, and a call."""
    threads = max(1, torch.get_num_threads())
    itemsize = problem.dtype.itemsize
    lanes = _LANES // itemsize
    groups = problem.groups
    orbits, channels = problem.unique // groups, problem.in_channels // groups
    taps = math.prod(problem.kernel)
    positions = problem.batch * math.prod(problem.spatial if op != "fprop" else problem.out_spatial)
    across = orbits if op == "fprop" else channels if op == "dgrad" else orbits * taps
    padded = problem.macs_folded * (-(-across // lanes) * lanes / across)
    flops = 2 * padded / (_FLOPS_PER_THREAD * 4 / itemsize)
    packed = (channels if op == "fprop" else orbits) * taps * groups * positions * itemsize
    return _CALL_SECONDS + (flops + 2 * packed / _PACK_BYTES_PER_SECOND) / threads


def _geometry(problem: Problem) -> tuple[object, ...]:
    p = problem
    ties = [value for segment in p.ties for value in segment]
    return ties, p.stride, p.padding, p.dilation, p.transposed, p.groups


def _readable(tensor: Tensor) -> Tensor:
    """The kernels read along channels or along the last dimension; anything else is copied once."""
    strides = tensor.stride()
    if strides[1] == 1 or strides[-1] == 1:
        return tensor
    last = strides[1] < strides[-1] and tensor.dim() > 3 and strides[1] != 0
    return tensor.contiguous(memory_format=memory_format(tensor.dim() - 2, last))


def fprop(problem: Problem, algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Output (N, out_channels, *out_spatial)."""
    output = allocate(problem.output_shape, input, problem.channels_last)
    _cpu.fprop(_readable(input), weight, bias, output, *_geometry(problem))
    return output


def dgrad(problem: Problem, algorithm: str, grad_output: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, (N, C, *spatial)."""
    grad = allocate(problem.input_shape, weight, problem.channels_last)
    _cpu.dgrad(_readable(grad_output), weight, grad, *_geometry(problem))
    return grad


def wgrad(problem: Problem, algorithm: str, grad_output: Tensor, input: Tensor) -> Tensor:
    """Gradient of the reduced weight."""
    grad = allocate(problem.weight_shape, input, problem.channels_last)
    _cpu.wgrad(_readable(grad_output), input, grad, *_geometry(problem))
    return grad
