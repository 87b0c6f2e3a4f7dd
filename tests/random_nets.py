# Random small networks for the tests of channels: operations whose effect on channels is known, and others.
"""`draw(seed)` is a module and an input for it; most of what it does keeps channels apart, some of it mixes them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import symconv_fast as sf

SIDE = 6


class Program(nn.Module):
    """Steps (function, indices of values, name of a layer); the last values are the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[Callable[..., Any], tuple[int, ...], str]] = []
        self.outputs: list[int] = []
        self.scale = nn.Parameter(torch.randn(1))
        self.vector = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for function, indices, name in self.steps:
            arguments = [values[i] for i in indices]
            layer = self.layers[name] if name else None
            values.append(function(self, layer, *arguments))
        return [values[i] for i in self.outputs]


def call(model: Program, layer: Any, x: Tensor) -> Tensor:
    return layer(x)


UNARY: list[Callable[..., Any]] = [
    lambda m, _, x: F.relu(x),
    lambda m, _, x: x.sigmoid(),
    lambda m, _, x: torch.tanh(x) + 0.1,
    lambda m, _, x: 2 * x * m.scale,
    lambda m, _, x: F.max_pool2d(x, 3, 1, 1),
    lambda m, _, x: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1),
    lambda m, _, x: F.pad(x, (1, 0, 0, 1))[:, :, 1:, :-1],
    lambda m, _, x: F.pad(x, [1, 1])[..., 1:-1],
    lambda m, _, x: F.interpolate(x[:, :, ::2, ::2], scale_factor=2),
    lambda m, _, x: F.interpolate(x[:, :, 1:], size=x.shape[2:], mode="bilinear"),
    lambda m, _, x: x.clone().add_(1.0).contiguous(),
    lambda m, _, x: x * x.mean((2, 3), keepdim=True),
    lambda m, _, x: x + torch.mean(x, dim=[-1, -2])[:, :, None, None],
    lambda m, _, x: x * F.adaptive_avg_pool2d(x, 1),
    lambda m, _, x: x - x.flatten(2).mean(2).unsqueeze(-1).unsqueeze(2),
    lambda m, _, x: x * x.amax((2, 3)).contiguous().view(x.size(0), -1, 1, 1),
    lambda m, _, x: torch.where(x > 0, x, 0.1 * x),
    lambda m, _, x: x / (1 + x.abs().sum(dim=(2, 3), keepdim=True)),
]  # fmt: skip

MIXING: list[Callable[..., Any]] = [
    lambda m, _, x: x.flip(1),
    lambda m, _, x: x.roll(1, 1),
    lambda m, _, x: torch.cat([x[:, 1:], x[:, :1]], 1),
    lambda m, _, x: torch.cat(torch.chunk(x, 2, 1)[::-1], 1),
    lambda m, _, x: x.cumsum(1),
    lambda m, _, x: x + x.mean(1, keepdim=True) * torch.arange(x.size(1)).view(-1, 1, 1),
    lambda m, _, x: x.reshape(x.size(0), 2, -1, *[SIDE] * 2).transpose(1, 2).reshape(x.shape),
    lambda m, _, x: x.permute(0, 2, 1, 3).cumsum(2).permute(0, 2, 1, 3),
    lambda m, _, x: F.layer_norm(x.transpose(1, 3), (x.size(1),)).transpose(1, 3) * x[:, :1],
    lambda m, _, x: F.local_response_norm(x, 3),
    lambda m, _, x: F.conv2d(x, x.new_ones(1, 1, 1, 1).expand(x.size(1), -1, -1, -1), groups=x.size(1)).flip(1),
    lambda m, _, x: x.index_select(1, torch.arange(3).fmod(x.size(1))).repeat(1, 2, 1, 1)[:, :1] + x.flip(1),
    lambda m, _, x: x * torch.linspace(0, 1, x.size(1), dtype=x.dtype)[:, None, None],
]  # fmt: skip


def _layers(rng: random.Random, channels: int, make: int) -> list[Callable[[], nn.Module]]:
    """What has parameters for `channels` and returns maps of the same extent; `make` channels for convolutions."""
    return [
        lambda: nn.Conv2d(channels, make, 3, padding=1, bias=rng.random() < 0.5),
        lambda: nn.Conv2d(channels, make, 1),
        lambda: nn.ConvTranspose2d(channels, make, 3, padding=1),
        lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        lambda: nn.ConvTranspose2d(channels, channels, 3, padding=1, groups=channels),
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
        lambda: nn.PReLU(channels),
        lambda: nn.Sequential(nn.PReLU(), nn.ReLU6(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 1)),
        lambda: nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels),
        lambda: (
            nn.Conv2d(channels, 2 * make, 3, padding=1, groups=2)
            if channels % 2 == 0
            else nn.GroupNorm(1, channels)
        ),
        lambda: nn.GroupNorm(1, channels),
        lambda: sf.SymmetricConv2d(channels, 2 * make, 3, padding=1, symmetry="h"),
    ]


def draw(seed: int, steps: int = 14) -> tuple[Program, Tensor]:
    """A program of maps of one extent, in float64, with running statistics that differ by channel."""
    rng = random.Random(seed)
    model, channels = Program(), [3]

    def add(function: Callable[..., Any], indices: tuple[int, ...], size: int, layer: Any = None) -> None:
        name = ""
        if layer is not None:
            name = f"l{len(model.layers)}"
            model.layers[name] = layer
        model.steps.append((function, indices, name))
        channels.append(size)

    add(call, (0,), 4, nn.Conv2d(3, 4, 3, padding=1))
    while len(model.steps) < steps:
        # Late values come often, so that programs are deep.
        i = max(rng.randrange(len(channels)) for _ in range(3))
        size, kind = channels[i], rng.random()
        same = [j for j, c in enumerate(channels) if c == size and j != i]
        if kind < 0.4:
            options = _layers(rng, size, rng.choice([1, 2, 4, 4, 4, 4]))
            layer = rng.choice(options[:9] * 5 + options[9:])()
            out = getattr(layer, "out_channels", size)
            add(call, (i,), out, layer)
        elif kind < 0.46 and size <= 12:
            add(lambda m, _, x, y: torch.cat([x, y], 1), (i, rng.randrange(len(channels))), 0)
            channels[-1] = size + channels[model.steps[-1][1][1]]
        elif kind < 0.74 and same:
            joins: list[Callable[..., Any]] = [
                lambda m, _, x, y: x + y,
                lambda m, _, x, y: x * torch.sigmoid(y),
                lambda m, _, x, y: torch.maximum(x, y.mean((2, 3), keepdim=True)),
            ]
            add(rng.choice(joins), (i, rng.choice(same)), size)
        elif kind < 0.78 and model.layers:
            name, layer = rng.choice(list(model.layers.items()))
            fits = [j for j, c in enumerate(channels) if c == getattr(layer, "in_channels", None)]
            if fits:
                model.steps.append((call, (rng.choice(fits),), name))
                channels.append(layer.out_channels)
        elif kind < 0.8 and 1 in channels:
            add(lambda m, _, x, y: x * y, (i, channels.index(1)), size)
        elif kind < 0.81 and size == 4:
            add(lambda m, _, x: x * m.vector, (i,), size)
        elif kind < 0.84 and (size % 2 == 0):
            add(rng.choice(MIXING), (i,), size)
        else:
            add(rng.choice(UNARY), (i,), size)
    _end(rng, model, channels, add)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return model, torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)


def _end(rng: random.Random, model: Program, channels: list[int], add: Callable[..., None]) -> None:
    """Outputs: maps through a last convolution, or features through linear layers."""
    last, size = len(channels) - 1, channels[-1]
    ends: list[tuple[Callable[..., Any], int]] = [
        (lambda m, _, x: torch.flatten(x, 1), size * SIDE**2),
        (lambda m, _, x: x.mean((2, 3)), size),
        (lambda m, _, x: x.contiguous().view(x.size(0), -1), size * SIDE**2),
        (lambda m, _, x: F.adaptive_max_pool2d(x, 2).flatten(1), size * 4),
    ]
    function, features = rng.choice(ends)
    add(function, (last,), features)
    if rng.random() < 0.5:
        add(call, (len(channels) - 1,), features, nn.BatchNorm1d(features))
    if rng.random() < 0.3:
        add(call, (len(channels) - 1,), features, nn.PReLU(features))
    add(call, (len(channels) - 1,), 5, nn.Linear(features, 5))
    add(call, (len(channels) - 1,), 5, nn.ReLU())
    add(call, (len(channels) - 1,), 2, nn.Linear(5, 2))
    model.outputs.append(len(channels) - 1)
    if rng.random() < 0.3:
        add(call, (last,), 2, nn.Conv2d(size, 2, 1))
        model.outputs.append(len(channels) - 1)
