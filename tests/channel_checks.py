# What tests of channels share: a copy in other orders, and the comparison with it.
"""`shuffled` permutes whatever is free, `assert_same` compares outputs and gradients in both modes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from symconv_fast.channels import Space, Spaces, find_spaces


def free_of(spaces: Spaces) -> list[Space]:
    return [space for space in spaces.spaces if space.fixed is None]


def shuffled(model: nn.Module, spaces: Spaces | None = None) -> nn.Module:
    """A copy with every free space in a random order that is not its own."""
    spaces = spaces or find_spaces(model)
    orders = {space: torch.randperm(space.size) for space in free_of(spaces)}
    for space, order in orders.items():
        if space.size > 1 and torch.equal(order, torch.arange(space.size)):
            orders[space] = order.roll(1)
    other = copy.deepcopy(model)
    spaces.permute(other, orders)
    return other


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = model(x)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def difference(a: Tensor, b: Tensor, least: float = 1e-5) -> float:
    """Relative, but for what is zero up to rounding: below `least`."""
    return float(((a - b).abs().max() / a.abs().max().clamp_min(least)).detach())


def assert_same(
    model: nn.Module, other: nn.Module, x: Tensor, tolerance: float = 1e-12, least: float = 1e-5
) -> None:
    """Outputs and input gradients in eval and in training mode, running statistics put back."""
    for training in (False, True):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        results = []
        for net, value in zip((model, other), inputs):
            torch.manual_seed(1)
            found = outputs(net.train(training), value)
            weights = [torch.randn(y.shape, dtype=y.dtype) for y in found]
            sum(((y * w).sum() for y, w in zip(found, weights)), torch.zeros(())).backward()
            results.append(found)
        for a, b in zip(*results):
            assert difference(a, b) < tolerance
        assert difference(inputs[0].grad, inputs[1].grad, least) < tolerance
        for net in (model, other):
            net.zero_grad()
