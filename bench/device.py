# How one call is timed, and its memory watched, on each kind of device. Everything else in bench/ is the same for all.
"""Devices of the benchmark: `Cpu` and `Cuda`; `device("cuda")` gives the one of that name.

On CUDA a call is timed by events, between which nothing but the call is queued: the L2 cache is flushed before it, and
the stream is held until the host has queued everything, so that the host's time is not measured. Where a call takes
less than 0.1 ms, all calls of the comparison are replayed as CUDA graphs instead.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from symconv_fast import dispatch, settings
from symconv_fast.backends.cuda import native

Call = Callable[[], object]


class Cpu:
    """Wall clock around the call; what it returns is freed inside the timing, as in a network that runs on."""

    name = "cpu"

    def prepare(self, calls: Mapping[str, Call]) -> tuple[dict[str, Call], str]:
        """The calls as they will be timed, and how: "clock"."""
        return dict(calls), "clock"

    def once(self, call: Call) -> int:
        """Nanoseconds of one call."""
        start = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - start

    def peak_extra_bytes(self, call: Call) -> int:
        """Most bytes that one call held at a time beyond what it returned.

        Counts every allocation through torch's CPU allocator, as the profiler sees it: native scratch too, which the
        thread keeps after the call.
        """
        call()
        cpu = dispatch.available().get("cpu")
        clear = cpu.clear_workspace if cpu is not None else lambda: None
        clear()  # else what is kept from the call before would not be counted
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            returned = call()
            clear()  # else what is kept would count as returned
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        del returned
        return peak - held

    def describe(self) -> dict[str, object]:
        """What a row says of the device."""
        return {
            "device": cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
        }

    def state(self) -> dict[str, object]:
        """What may differ from row to row; nothing here."""
        return {}


class Cuda:
    """Events on one stream, or replayed graphs. The first object of this class sets up torch for measuring."""

    name = "cuda"
    GRAPH_BELOW_NS = 100_000
    HOLD_CYCLES = 2_000_000  # about 1 ms: longer than the host needs to queue one layer, forward and backward

    def __init__(self) -> None:
        torch.backends.cudnn.benchmark = True  # the baseline at its best
        # Backward in the calling thread: a pinned backend holds there, and graphs can be captured.
        torch.autograd.set_multithreading_enabled(False)
        # One stream for everything, and not the default one, which cannot be captured.
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda")

    def prepare(self, calls: Mapping[str, Call]) -> tuple[dict[str, Call], str]:
        """The calls as they will be timed, and how: "graph" for all if the fastest is short, else "events"."""
        for call in calls.values():  # cuDNN and Triton make their choices at the first call
            call()
        shortest = min(self.once(call) for call in calls.values())
        if shortest < self.GRAPH_BELOW_NS:
            graphs = {name: self._graph(call) for name, call in calls.items()}
            captured = {name: graph for name, graph in graphs.items() if graph is not None}
            if len(captured) == len(calls):
                return captured, "graph"
        return dict(calls), "events"

    def _graph(self, call: Call) -> Call | None:
        """Replay of one call, or None if it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                call()
        except RuntimeError:
            return None
        return graph.replay

    def once(self, call: Call) -> int:
        """Nanoseconds that the device spent on one call, its caches cold."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(self.HOLD_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return int(start.elapsed_time(end) * 1e6)

    def peak_extra_bytes(self, call: Call) -> int:
        """Most bytes that one call held at a time beyond what it returned, by torch's allocator."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        del kept
        return extra

    def describe(self) -> dict[str, object]:
        """What a row says of the device; TF32 is the same for both sides of every ratio."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "sms": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": settings.tf32_allowed(),
            "triton": _version("triton"),
            "cuda_kernels": native.architectures(),
            "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        }

    def state(self) -> dict[str, object]:
        """The clock of the multiprocessors after the measurement."""
        clock = output("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0")
        return {"sm_mhz": int(clock) if clock.isdigit() else None}


Device = Cpu | Cuda


@functools.cache
def device(name: str) -> Device:
    """The device "cpu" or "cuda", set up once.

    Raises:
        RuntimeError: torch sees no GPU. ValueError: another name.
    """
    if name == "cpu":
        return Cpu()
    if name != "cuda":
        raise ValueError(f"device={name!r} is not measured; give 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise RuntimeError("device='cuda': torch sees no GPU here; leave it out, or give device='cpu'")
    return Cuda()


def _version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output(*command: str) -> str:
    """What a command prints, started in this folder; an empty string if it fails or does not exist."""
    try:
        folder = Path(__file__).resolve().parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
