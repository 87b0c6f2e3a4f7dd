# What the machine can do at best: its rate of multiply-adds and of copying, measured with torch's own operators.
"""Peak rates of a device, the roof of the roofline.

The rate of floating-point operations is the best that torch reaches here in a large convolution or matrix product,
the fastest of all runs, so a busy machine hardly lowers it. It is a lower bound of the FMA units' peak. The rate of
bytes is that of copying a tensor that no cache holds, read and written bytes counted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.device import Call, device

SECONDS = 0.4  # for each candidate
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
REHEARSED = (
    0.001,
    {"cpu": 1 << 20, "cuda": 1 << 20},
)  # the same two in a rehearsal, whose numbers mean nothing
CONVS = {
    "cpu": [(4, 256, 28, torch.channels_last), (1, 256, 56, torch.channels_last)],
    "cuda": [(64, 256, 56, torch.channels_last), (64, 256, 56, torch.contiguous_format)],
}  # (batch, channels in and out, size of the map, memory format), 3 x 3
MATRICES = {"cpu": [1024], "cuda": [4096, 8192]}


@dataclass(frozen=True)
class Peaks:
    """1e9 operations (a multiply-add is two) and bytes a second, and what reached that many operations."""

    gflops: float
    gflops_by: str
    gbytes: float


def _candidates(kind: str, dtype: torch.dtype) -> Iterator[tuple[str, float, Call]]:
    """(name, operations, call) of everything that may reach the peak."""
    for batch, channels, size, layout in CONVS[kind]:
        x = torch.randn(batch, channels, size, size).to(kind, dtype).to(memory_format=layout)
        w = torch.randn(channels, channels, 3, 3).to(kind, dtype).to(memory_format=layout)
        operations = 2 * x.numel() * w[0].numel()
        name = f"conv2d {batch}x{channels}@{size} {str(layout).removeprefix('torch.')}"
        yield name, operations, functools.partial(F.conv2d, x, w, padding=1)
    for n in MATRICES[kind]:
        a, b = (torch.randn(n, n).to(kind, dtype) for _ in range(2))
        yield f"matmul {n}", 2 * n**3, functools.partial(torch.matmul, a, b)


def _fastest(kind: str, call: Call) -> float:
    """Seconds of the fastest of many runs."""
    once = device(kind).once
    once(call), once(call)
    end, best = time.monotonic() + SECONDS, float("inf")
    while time.monotonic() < end:
        best = min(best, once(call) * 1e-9)
    return best


def rehearse() -> None:
    """From here on measure so briefly that it says nothing."""
    global SECONDS, COPY_BYTES
    SECONDS, COPY_BYTES = REHEARSED


@functools.cache
def peaks(kind: str, dtype: torch.dtype) -> Peaks:
    """Peak rates of a device ("cpu" or "cuda") in a dtype; measured at the first call, in about two seconds."""
    with torch.no_grad():
        found = [(n / _fastest(kind, call), name) for name, n, call in _candidates(kind, dtype)]
        source = torch.empty(COPY_BYTES[kind], dtype=torch.int8, device=kind).zero_()
        copy = torch.empty_like(source)
        gbytes = 2 * source.nbytes / _fastest(kind, lambda: copy.copy_(source)) * 1e-9
    rate, name = max(found)
    return Peaks(rate * 1e-9, name, gbytes)
