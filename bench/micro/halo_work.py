# What a process of halo_rate does on the GPU: checks one variant, warms Triton's cache, or times.
"""Workers of `bench.micro.halo_rate`; each prints JSON rows, one a line, as soon as it has them."""

from __future__ import annotations

import ctypes
import json
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

import symconv_fast
from bench.device import output

from . import halo_build

DEVICE = "cuda"
LIMIT = {"h": 1.7, "hv": 2.1}  # rms error as a multiple of torch's own convolution in the same type
SMALL = ((64, 1, 1, 64, 8), (2, 7, 9, 64, 40), (3, 17, 19, 192, 72), (5, 8, 5, 64, 16), (1, 33, 16, 320, 80))
REPEATS = 12
FOLD, CONVOLVE, NO_COPIES, NO_STORES = 1, 2, 4, 8


class Shape(NamedTuple):
    """A layer of a network: C channels in and out, square maps."""

    name: str
    batch: int
    channels: int
    size: int


SHAPES = (  # what matters first: a run may be cut short
    Shape("VGG 512@28", 64, 512, 28),
    Shape("ResNet 128@28", 256, 128, 28),
    Shape("VGG 256@56", 64, 256, 56),
    Shape("ResNet 256@14", 256, 256, 14),
    Shape("ResNet 64@56", 256, 64, 56),
    Shape("SD 320@64", 16, 320, 64),
    Shape("VGG 128@112", 64, 128, 112),
    Shape("ResNet 512@7", 256, 512, 7),
)
QUICK = ("ResNet 64@56", "ResNet 128@28", "VGG 256@56", "VGG 512@28")


def say(**row: object) -> None:
    """Print a row at once: what is printed stays if the process dies."""
    print(json.dumps(row), flush=True)


class Kernel:
    """A variant's library: folds and convolves channels-last tensors on the current stream."""

    def __init__(self, name: str, arch: str) -> None:
        self.variant = halo_build.VARIANTS[name]
        self.c = ctypes.CDLL(str(halo_build.library(self.variant, arch)))
        self.c.halo_error.restype = ctypes.c_char_p
        self.c.halo_packed_bytes.restype = ctypes.c_int64
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self.c.halo_forward.argtypes = (
            [pointer, pointer] + [integer] * 4 + [pointer] * 3 + [integer] * 6 + [pointer]
        )

    def prepare(
        self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, Callable[..., None]]:
        """The output, full of NaN, and the call that fills it: argument the parts to run."""
        (batch, channels, height, width), orbits = x.shape, w.shape[0]
        members = 2 if self.variant.tie == "h" else 4
        y = torch.full(
            (batch, members * orbits, height, width), torch.nan, dtype=x.dtype, device=x.device
        ).contiguous(memory_format=torch.channels_last)
        packed = torch.empty(self.c.halo_packed_bytes(channels, orbits), dtype=torch.uint8, device=x.device)
        before = [x.data_ptr(), w.data_ptr(), *w.stride(), bias.data_ptr() if bias is not None else None]
        before += [y.data_ptr(), packed.data_ptr(), batch, height, width, channels, orbits]

        def call(parts: int = FOLD | CONVOLVE) -> None:
            code = self.c.halo_forward(*before, parts, torch.cuda.current_stream().cuda_stream)
            if code:
                raise RuntimeError(f"{self.variant.name}: {self.c.halo_error(code).decode()}")

        call.keeps = (packed, y)  # type: ignore[attr-defined]  # the library knows their addresses only
        return y, call


def exact(x: torch.Tensor, expanded: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """3 x 3 convolution in float64, one image after the other to save memory."""
    filters = expanded.double().flatten(1)
    images = [filters @ F.unfold(image[None].double(), 3, padding=1)[0] for image in x]
    y = torch.stack(images).unflatten(2, x.shape[2:])
    return y if bias is None else y + bias.double()[:, None, None]


def rms(difference: torch.Tensor) -> float:
    """Root mean square."""
    return float(difference.double().square().mean().sqrt())


def layer_and_input(
    tie: str, sizes: tuple[int, int, int, int, int], seed: int
) -> tuple[symconv_fast.SymmetricConv2d, torch.Tensor]:
    """A tied layer of bfloat16 without bias, and a channels-last input."""
    batch, height, width, channels, orbits = sizes
    torch.manual_seed(seed)
    layer = symconv_fast.SymmetricConv2d(
        channels, orbits * (2 if tie == "h" else 4), 3, padding=1, bias=False, symmetry=tie
    ).to(DEVICE, torch.bfloat16)
    x = torch.randn(batch, channels, height, width, device=DEVICE, dtype=torch.bfloat16)
    return layer.requires_grad_(False), x.contiguous(memory_format=torch.channels_last)


class WrongResultError(Exception):
    """A kernel ran, and what it wrote is not the convolution."""


class Truth:
    """What the first and last images of a case should become, and how far torch's own convolution is from it."""

    def __init__(
        self, layer: symconv_fast.SymmetricConv2d, x: torch.Tensor, bias: torch.Tensor | None, images: int
    ) -> None:
        self.layer, self.x, self.bias = layer, x, bias
        expanded = layer.expanded_weight().contiguous(memory_format=torch.channels_last)
        self.some = sorted({*range(min(images, len(x))), *range(max(0, len(x) - images), len(x))})
        self.want = exact(x[self.some], expanded, bias)
        own = F.conv2d(x[self.some], expanded, None if bias is None else bias.to(x.dtype), padding=1)
        self.own_error = rms(own - self.want)

    def launch(self, kernel: Kernel) -> tuple[float, Callable[..., None]]:
        """Error of a kernel as a multiple of torch's, and the call.

        Raises:
            WrongResultError: it is too large, something is not written, or two runs differ.
        """
        y, call = kernel.prepare(self.x, self.layer.weight, self.bias)
        call()
        torch.cuda.synchronize()
        first = y.clone()
        call()
        torch.cuda.synchronize()
        if not torch.equal(first, y):
            raise WrongResultError("two runs differ" if first.isfinite().all() else "NaN or infinity is left")
        ratio, limit = rms(y[self.some] - self.want) / self.own_error, LIMIT[kernel.variant.tie]
        if not ratio <= limit:
            raise WrongResultError(f"error is {ratio:.2f} times that of torch, the limit is {limit}")
        return round(ratio, 3), call


def check(name: str, arch: str, few: bool) -> None:
    """Odd sizes with a bias, against float64. `few`: the two smallest, for a sanitizer."""
    kernel = Kernel(name, arch)
    for seed, sizes in enumerate(SMALL[:2] if few else SMALL):
        layer, x = layer_and_input(kernel.variant.tie, sizes, seed)
        # Representable in bfloat16, so that torch adds the same.
        bias = torch.randn(layer.out_channels, device=DEVICE).to(torch.bfloat16).float()
        row = {"row": "check", "variant": name, "sizes": sizes}
        try:
            say(**row, error_ratio=Truth(layer, x, bias, len(x)).launch(kernel)[0], right=True)
        except WrongResultError as error:
            say(**row, right=False, why=str(error))


def shapes(quick: bool) -> list[Shape]:
    """Those that are timed."""
    return [shape for shape in SHAPES if not quick or shape.name in QUICK]


def triton(layer: symconv_fast.SymmetricConv2d, x: torch.Tensor) -> torch.Tensor:
    """The package's Triton kernels, folded."""
    with symconv_fast.backend("triton", algorithm="fold"), torch.no_grad():
        return layer(x)


def warm(part: int, parts: int, quick: bool) -> None:
    """Compile the Triton kernels of every `parts`-th shape and tie, for the cache on disk."""
    jobs = [(shape, tie) for shape in shapes(quick) for tie in LIMIT][part::parts]
    for shape, tie in jobs:
        triton(*case(shape, tie))


def case(shape: Shape, tie: str) -> tuple[symconv_fast.SymmetricConv2d, torch.Tensor]:
    """Layer and input of a shape."""
    orbits = shape.channels // (2 if tie == "h" else 4)
    return layer_and_input(tie, (shape.batch, shape.size, shape.size, shape.channels, orbits), 11)


class Clock:
    """Milliseconds of calls by events, the L2 cache overwritten before each, the host's time hidden by a wait."""

    WAIT_CYCLES = 4_000_000  # 2 ms: longer than Python needs to queue a layer with Triton

    def __init__(self) -> None:
        self.flush = torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)

    def once(self, call: Callable[..., object]) -> float:
        """One call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.fill_(1)
        torch.cuda._sleep(self.WAIT_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def medians(self, calls: Mapping[str, Callable[..., object]], repeats: int) -> dict[str, float]:
        """All calls in turns; the first turn is not counted."""
        turns = [{name: self.once(call) for name, call in calls.items()} for _ in range(repeats + 1)][1:]
        return {name: statistics.median(turn[name] for turn in turns) for name in calls}


def measure(shape: Shape, tie: str, names: list[str], arch: str, clock: Clock) -> None:
    """One row: each variant checked, then all of them, cuDNN and Triton timed in turns."""
    layer, x = case(shape, tie)
    expanded = layer.expanded_weight().contiguous(memory_format=torch.channels_last)
    calls: dict[str, Callable[..., object]] = {"cudnn": lambda: F.conv2d(x, expanded, padding=1)}
    wrong, errors, launches = {}, {}, {}
    say(row="at", contestant="triton", shape=shape.name, tie=tie)
    try:
        triton(layer, x)
        calls["triton"] = lambda: triton(layer, x)
    except Exception as error:  # the row says so, and the others are measured
        wrong["triton"] = str(error)[:300]
    orbits, truth = layer.weight.shape[0], Truth(layer, x, None, 2)
    for name in names:
        if halo_build.VARIANTS[name].tie != tie or not halo_build.VARIANTS[name].fits(shape.channels, orbits):
            continue
        say(row="at", contestant=name, shape=shape.name, tie=tie)
        try:
            errors[name], launches[name] = truth.launch(Kernel(name, arch))
            calls[name] = launches[name]
        except WrongResultError as error:
            wrong[name] = str(error)
    say(row="at", contestant="timing", shape=shape.name, tie=tie)
    ms = clock.medians(calls, REPEATS)
    dense = 18e-9 * shape.batch * shape.size**2 * shape.channels**2  # of both multiply and add
    row = {"row": "time", "shape": shape.name, "batch": shape.batch, "tie": tie, "error_ratio": errors}
    row |= {"ms": {name: round(value, 4) for name, value in ms.items()}}
    row |= {"tflops": {name: round(dense / value) for name, value in ms.items()}}
    row |= {"ratio": {name: round(ms["cudnn"] / value, 3) for name, value in ms.items()}}
    if launches:
        row["best"] = min(launches, key=lambda name: ms[name])
        families = {halo_build.VARIANTS[name].source: name for name in sorted(launches, key=lambda n: -ms[n])}
        row["parts_ms"] = {name: parts(launches[name], clock) for name in families.values()}
    say(
        **row,
        wrong=wrong,
        mhz=output("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0"),
    )


def parts(launch: Callable[..., None], clock: Clock) -> dict[str, float]:
    """Milliseconds of the parts of a kernel: the rest of the time is found by leaving one out."""
    each = {
        "fold": FOLD,
        "convolve": CONVOLVE,
        "no copies": CONVOLVE | NO_COPIES,
        "no stores": CONVOLVE | NO_STORES,
        "neither": CONVOLVE | NO_COPIES | NO_STORES,
    }
    calls = {name: (lambda bits=bits: launch(bits)) for name, bits in each.items()}
    return {name: round(value, 4) for name, value in clock.medians(calls, 5).items()}


def time(names: list[str], arch: str, quick: bool, done: list[str]) -> None:
    """Rows of all shapes and ties but those that are done (`shape/tie`)."""
    torch.backends.cudnn.benchmark = True
    clock = Clock()
    for shape in shapes(quick):
        for tie in LIMIT:
            if f"{shape.name}/{tie}" not in done:
                measure(shape, tie, names, arch, clock)
                torch.cuda.empty_cache()
