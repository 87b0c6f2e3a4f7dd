# A whole network as a comparison: tied against the same network, with the same filters, on torch's own layers.
"""Networks with every eligible layer tied, forward and training step.

Baseline: the same network on torch's layers, whose filters are those of the tied one, expanded once before; in both
memory formats, the faster counts. `expand inside` is the tied network on the reference backend. A training step is
forward, backward and an update by SGD with momentum.
"""

from __future__ import annotations

import bench.threads  # noqa: F401  isort: skip  (before torch: pins its threads)

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import symconv_fast
from bench import networks
from bench.case import dtype_name
from bench.cases import WRONG, rms
from bench.measure import Comparison, Verdict
from symconv_fast.problem import memory_format


@dataclass(frozen=True)
class Model:
    """A network and its input.

    Attributes:
        name: of the network.
        make: takes a factory of convolutions.
        channels, spatial: of the input.
        ties: that are measured.
        batch, gpu_batch: images a call on a CPU and on a GPU.
    """

    name: str
    make: Callable[[networks.Factory], nn.Module]
    channels: int
    spatial: tuple[int, ...]
    ties: tuple[str, ...] = ("h", "hv")
    batch: int = 1
    gpu_batch: int = 1


MODELS = (
    Model("ResNet-18", networks.resnet18, 3, (224, 224), gpu_batch=256),
    Model("U-Net", networks.unet, 3, (256, 256), gpu_batch=16),
    Model("VGG-16", networks.vgg16, 3, (224, 224), gpu_batch=64),
    Model("3-D U-Net", networks.unet3d, 1, (32, 32, 32), ("h", "hvz"), gpu_batch=8),
)
# What a rehearsal runs in place of them.
REHEARSAL = Model(
    "tiny", lambda conv: nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 3)), 3, (5, 6)
)


@dataclass(frozen=True)
class ModelCase:
    """A network with a tie, dtype and pass ("fwd", or "step": forward, backward and update)."""

    model: Model
    tie: str
    direction: str
    dtype: torch.dtype = torch.float32
    backend: str = ""
    algorithm: str = ""
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Name of the case, as pytest shows it."""
        return f"{self.model.name}-{self.tie}-{self.direction}-{dtype_name(self.dtype)}".replace(" ", "_")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input: (N, C, *spatial)."""
        batch = self.model.gpu_batch if self.device == "cuda" else self.model.batch
        return (batch, self.model.channels, *self.model.spatial)

    def facts(self) -> dict[str, object]:
        """The columns that say what is measured."""
        batch, channels, *spatial = self.shape
        return {
            "family": "model", "shape": f"{batch}x{channels}@{'x'.join(map(str, spatial))}", "model": self.model.name,
            "tie": self.tie, "pass": self.direction, "layout": "channels_last", "dtype": dtype_name(self.dtype),
            "device_kind": self.device, "backend_pin": self.backend, "algorithm_pin": self.algorithm,
        }  # fmt: skip


@dataclass(frozen=True)
class Runner:
    """A network in the memory format of its input, as it is timed."""

    network: nn.Module
    x: Tensor
    upstream: Tensor

    def call(self, direction: str) -> Callable[[], object]:
        """A function without arguments for one pass."""
        if direction == "fwd":
            self.network.eval()
            return self.forward
        self.network.train()
        # The arithmetic of an update, but the weights stay what they are: every repetition does the same.
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            self.network(self.x).backward(self.upstream)
            optimizer.step()

        return step

    def forward(self) -> Tensor:
        """The output without a graph."""
        with torch.no_grad():
            return self.network(self.x)

    def results(self, direction: str) -> tuple[Tensor, ...]:
        """What is compared: the output, for a step also the gradient of the input."""
        if direction == "fwd":
            self.network.eval()
            return (self.forward(),)
        self.network.train()
        x = self.x.detach().clone().requires_grad_()
        output = self.network(x)
        return output.detach(), *torch.autograd.grad(output, x, self.upstream)

    def macs(self, direction: str) -> int:
        """Multiply-accumulates of one pass: those of convolutions and matrix products."""
        with FlopCounterMode(display=False) as counter:
            self.call(direction)()
        return counter.get_total_flops() // 2


class ModelBench:
    """The networks and inputs of one case."""

    def __init__(self, case: ModelCase) -> None:
        self.case, ndim = case, len(case.model.spatial)
        torch.manual_seed(0)
        tied = networks.initialise(case.model.make(networks.tied(case.tie, ndim)))
        self.tied = tied.to(case.device, case.dtype)
        self.plain = networks.ordinary(copy.deepcopy(tied))
        x = torch.randn(case.shape).to(case.device, case.dtype)
        self.upstream = torch.randn_like(self.plain(x).detach())
        formats = {"contiguous": torch.contiguous_format, "channels_last": memory_format(ndim, True)}
        self.ours = self._runner(self.tied, x, formats["channels_last"])
        self.theirs = {
            f"torch/{name}": self._runner(self.plain, x, layout) for name, layout in formats.items()
        }

    def _runner(self, network: nn.Module, x: Tensor, layout: torch.memory_format) -> Runner:
        network = copy.deepcopy(network).to(memory_format=layout)
        return Runner(network, x.to(memory_format=layout), self.upstream)

    def check(self) -> Verdict:
        """Output and, for a step, input gradient against the plain network in float64, as multiples of torch's error.

        Rounding turns a ReLU or moves a maximum here and there, and then gradients jump, torch's own as well. So what
        agrees to half of the digits of the dtype is right.

        Raises:
            AssertionError: a result of ours is wrong, or not a number.
        """
        direction = self.case.direction
        theirs = self.theirs["torch/channels_last"].results(direction)
        double = Runner(copy.deepcopy(self.plain).double(), self.ours.x.double(), self.upstream.double())
        eps, worst = torch.finfo(self.case.dtype).eps, 0.0
        for got, torchs, true in zip(
            self.ours.results(direction), theirs, double.results(direction), strict=True
        ):
            mine, other = rms(got.double() - true), max(rms(torchs.double() - true), eps * rms(true))
            text = f"{self.case.name} is wrong, so it is not timed: {mine / other:.3g} times torch's error"
            assert mine <= max(WRONG * other, eps**0.5 * rms(true)), text  # also false for NaN
            worst = max(worst, mine / other)
        return Verdict(worst)

    def _inside(self) -> Callable[[], object]:
        """The tied network with filters expanded in every call."""
        call = self._runner(self.tied, self.ours.x, torch.contiguous_format).call(self.case.direction)

        def run() -> object:
            with symconv_fast.backend("reference"):
                return call()

        return run

    def comparison(self) -> Comparison:
        """What `bench.measure.measure` takes."""
        case, direction = self.case, self.case.direction
        baselines = {name: runner.call(direction) for name, runner in self.theirs.items()}
        parameters = [sum(p.numel() for p in net.parameters()) for net in (self.tied, self.plain)]
        traffic, activations = self._bytes()
        return Comparison(
            name=case.name,
            facts={
                **case.facts(), "backend": "mixed", "algorithm": "mixed", "config": {}, "orbit": 2 ** len(case.tie),
                "parameters": parameters[0], "baseline_parameters": parameters[1],
            },
            calls={"ours": self.ours.call(direction), **baselines, "expand inside": self._inside()},
            rivals=tuple(baselines),
            check=self.check,
            limit=2 ** len(case.tie),
            macs_dense=self.theirs["torch/contiguous"].macs(direction),
            macs_folded=self.ours.macs(direction),
            bytes=traffic * (3 if direction == "step" else 1),
            activation_bytes=activations,
            device=case.device,
            dtype=case.dtype,
        )  # fmt: skip

    def _bytes(self) -> tuple[int, int]:
        """Bytes of all weights, inputs and outputs of convolutions, and of the latter two alone."""
        seen = []

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((sum(p.nbytes for p in module.parameters()), inputs[0].nbytes + output.nbytes))

        convs = [m for m in self.ours.network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
        handles = [conv.register_forward_hook(hook) for conv in convs]
        self.ours.forward()
        for handle in handles:
            handle.remove()
        weights, maps = (sum(column) for column in zip(*seen, strict=True))
        return weights + maps, maps
