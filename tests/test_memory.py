# What layers hold beside their tensors: at most a share of the activations, or what torch does, or a cache's worth.
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

import symconv_fast as sf
from bench import targets
from bench.device import device
from symconv_fast import dispatch

pytestmark = pytest.mark.skipif(
    "cpu" not in dispatch.available(), reason="the native CPU module is not built"
)

# batch, channels, filters, extent, dims: large and small maps, many and few channels
SHAPES = {
    "64@56": (4, 64, 64, 56, 2),
    "256@14": (4, 256, 256, 14, 2),
    "512@7": (1, 512, 512, 7, 2),
    "3>64@112": (1, 3, 64, 112, 2),
    "64@16^3": (2, 64, 64, 16, 3),
    "32@32^3": (1, 32, 32, 32, 3),
}
PASSES = ("fwd", "dgrad", "wgrad")
LAYERS = {2: sf.SymmetricConv2d, 3: sf.SymmetricConv3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture(autouse=True)
def two_threads_and_memory_as_users_have_it() -> Iterator[None]:
    """Deterministic mode, which fills fresh memory, also keeps none of it."""
    threads, poisoned = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(poisoned)


def held(layer: torch.nn.Module, x: torch.Tensor, direction: str) -> list[int]:
    """Extra bytes of a pass of the layer, and of torch's convolution on filters that were expanded before."""
    filters = (
        layer.expanded_weight().detach().contiguous(memory_format=suggest_memory_format(x)).requires_grad_()
    )
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    calls = (lambda: layer(x), lambda: convolve(x, filters, layer.bias, padding=1))
    extra = []
    for call, weight in zip(calls, (layer.weight, filters), strict=True):
        if direction == "fwd":
            with torch.no_grad():
                extra.append(device("cpu").peak_extra_bytes(call))
            continue
        y = call()
        wanted, gy = x if direction == "dgrad" else weight, torch.randn_like(y)
        extra.append(
            device("cpu").peak_extra_bytes(
                lambda y=y, wanted=wanted, gy=gy: torch.autograd.grad(y, wanted, gy, retain_graph=True)
            )
        )
    return extra


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("tie", ["h", "hv"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_layer_holds_no_more_than_its_limit(name: str, tie: str, last: bool, direction: str) -> None:
    batch, channels, filters, extent, dims = SHAPES[name]
    fmt = LAST[dims] if last else torch.contiguous_format
    layer = LAYERS[dims](channels, filters, 3, padding=1, symmetry=tie).to(memory_format=fmt)
    x = torch.randn(batch, channels, *[extent] * dims).to(memory_format=fmt).requires_grad_()
    ours, theirs = held(layer, x, direction)
    row = {
        "algorithm": sf.explain(layer, x).passes[PASSES.index(direction)].algorithm,
        "activation_bytes": 4 * batch * (channels + filters) * extent**dims,
        "baseline_peak_extra_bytes": theirs,
        "filter_bytes": 4 * filters * channels * 3**dims,
        "limit": 2 ** len(tie),
        "threads": 2,
    }
    assert 0 < ours <= targets.memory_limit(row), f"{ours:,} bytes, limit {targets.memory_limit(row):,}"


def test_layers_of_a_network_share_their_working_memory() -> None:
    """What is kept after many layers is little more than what the largest of them needs."""
    backend = dispatch.load("cpu")
    sizes = [(64, 28), (96, 20), (128, 14), (160, 12), (192, 10), (256, 8), (320, 7)]
    layers = [
        (sf.SymmetricConv2d(c, c, 3, padding=1, symmetry="hv"), torch.randn(2, c, e, e)) for c, e in sizes
    ]

    def pass_through(some):
        with torch.no_grad():
            for layer, x in some:
                layer(x)

    backend.clear_workspace()
    most = max(device("cpu").peak_extra_bytes(lambda one=one: pass_through([one])) for one in layers)
    assert device("cpu").peak_extra_bytes(lambda: pass_through(layers)) <= 1.5 * most


def flags(t: torch.Tensor) -> set[str]:
    """What Linux knows of the memory in the middle of a tensor."""
    at, inside = t.data_ptr() + t.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            inside = begin <= at < end
        elif inside and first == "VmFlags:":
            return set(rest)
    return set()


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="the system has no large pages to ask for",
)
@pytest.mark.parametrize("size", [1024, 512])
def test_large_results_ask_for_large_pages(size):
    """From 32 MiB on malloc has new pages every time, and most of the time of a first write is theirs."""
    layer = sf.SymmetricConv2d(4, 8, 3, padding=1, symmetry="h")
    x = torch.randn(1, 4, size, size)
    with sf.backend("cpu", "fold"), torch.no_grad():
        y = layer(x)
    assert y.nbytes == size * size * 32
    assert ("hg" in flags(y)) == (size == 1024)
