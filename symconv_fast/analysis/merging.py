"""Networks made from others: mirrored filters, the mean of two, statistics reset, channels rescaled (REPAIR)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..channels import Spaces
from ..channels.trace import shared_tensors
from ..modules import _Symmetric
from ..ties import mirror, mirrored_dims
from .moments import Moments, channel_dim, rows_of

Batches = Callable[[], Iterator[Tensor]]
Goals = Mapping[str, tuple[Tensor, Tensor]]
"""For each layer the mean and the standard deviation that its output channels are to have, (C,) each."""


def is_convolution(module: nn.Module) -> bool:
    """Is it any convolution layer of torch's or of this package?"""
    return isinstance(module, nn.modules.conv._ConvNd)


class _Flattening(TorchFunctionMode):
    """Notes the spatial shapes of what is flattened to (N, columns): {columns: shapes}."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[int, set[tuple[int, ...]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("flatten", "view", "reshape") and isinstance(result, Tensor):
            source = args[0]
            if isinstance(source, Tensor) and result.dim() == 2 and source.dim() > 2:
                self.shapes.setdefault(result.shape[1], set()).add(tuple(source.shape[2:]))
        return result


def mirror_filters(model: nn.Module, mask: int, spaces: Spaces, x: Tensor) -> nn.Module:
    """A copy with every kernel mirrored along the axes of `mask`: the network of mirrored inputs, mirrored back.

    A layer that reads flattened maps has its columns mirrored, position by position. Convolutions of one dim are left
    as they are beside others of more: they run along something else than the width.

    Raises:
        ValueError: a weight that is computed (parametrized, pruned), or flattened maps of unknown shape.
    """
    mirrored = copy.deepcopy(model)
    convolutions = {name: m for name, m in mirrored.named_modules() if is_convolution(m)}
    most = max(len(m.kernel_size) for m in convolutions.values())
    done: set[int] = set()
    with torch.no_grad():
        for name, module in convolutions.items():
            weight = module._parameters.get("weight")
            if weight is None:
                raise ValueError(
                    f"the weight of {name} is computed, by a parametrization or pruning; make it permanent first "
                    "(parametrize.remove_parametrizations, prune.remove)"
                )
            ndim = len(module.kernel_size)
            if mask >> ndim == 0 and (ndim > 1 or most == 1) and id(weight) not in done:
                done.add(id(weight))
                weight.copy_(mirror(weight, mask))
        _mirror_columns(mirrored, mask, spaces, x)
    return mirrored


def _mirror_columns(model: nn.Module, mask: int, spaces: Spaces, x: Tensor) -> None:
    flattened = spaces.flattened()
    if not flattened:
        return
    with _Flattening() as seen:
        model(x[:2])
    for name, tensor, dim, channels, positions in flattened:
        module = model.get_submodule(name)
        found = module._parameters.get(tensor)
        value: Tensor | None = module._buffers.get(tensor) if found is None else found
        if value is None:
            continue
        shapes = {s for s in seen.shapes.get(channels * positions, ()) if math.prod(s) == positions}
        if len(shapes) != 1:
            raise ValueError(
                f"{name} reads {channels} channels at {positions} positions, and the shape of the maps cannot be told; "
                "flatten them with torch.flatten(x, 1)"
            )
        shape = shapes.pop()
        dims = [dim + 1 + len(shape) + d for d in mirrored_dims(mask)]
        value.copy_(value.unflatten(dim, (channels, *shape)).flip(dims).reshape(value.shape))


def average(first: nn.Module, second: nn.Module) -> nn.Module:
    """A copy of the first network with the mean of both networks' parameters and buffers; integers are the first's."""
    merged = copy.deepcopy(first)
    with torch.no_grad():
        for of in (nn.Module.named_parameters, nn.Module.named_buffers):
            others = dict(of(second))
            for name, tensor in of(merged):
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.lerp_(others[name], 0.5)
    return merged


def batch_norms(model: nn.Module) -> list[Any]:
    """Those that keep running statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kinds) and m.running_mean is not None]


@contextmanager
def _collecting(model: nn.Module) -> Iterator[None]:
    """Batch norms start anew, and average over all batches that pass; everything else is in eval mode."""
    model.eval()
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        model.eval()


def reset_batch_norm(model: nn.Module, batches: Batches) -> None:
    """Running statistics of all batch norms: the mean over the batches, in place; leaves the model in eval mode."""
    with _collecting(model), torch.no_grad():
        for x in batches():
            model(x)


def repairable(model: nn.Module, spaces: Spaces) -> list[str]:
    """Layers whose output channels `repair` can rescale: convolutions and linear layers, but for the model's outputs.

    Left out are tied layers, whose filters share their scale, shared parameters, and computed ones.
    """
    shared = shared_tensors(model)
    names = []
    for name, module in model.named_modules():
        known = is_convolution(module) or isinstance(module, nn.Linear)
        if not known or isinstance(module, _Symmetric) or module in shared:
            continue
        if module._parameters.get("weight") is not None and not _is_output(name, spaces):
            names.append(name)
    return names


def _is_output(name: str, spaces: Spaces) -> bool:
    try:
        return spaces.of(name).fixed == "model output"
    except KeyError:  # depthwise, with several spaces
        return False


def repair(model: nn.Module, goals: Goals, spaces: Spaces, batches: Batches) -> None:
    """Give the output channels of layers the means and standard deviations in `goals`, by scaling filters and biases.

    REPAIR (Jordan et al. 2022): in one pass over the batches, each channel is normalised by the statistics of the
    batch and given its goal, so that the layers behind it see repaired inputs; what that was, over all batches, then
    goes into weight and bias. In place. A layer without a bias gets one where no batch norm follows, which would take
    it out again. Channels that are constant are only shifted. Batch norm is reset afterwards.
    """
    moments: dict[str, Moments] = {}
    with ExitStack() as hooks, _collecting(model), torch.no_grad():
        for name, goal in goals.items():
            hook = _repairing(name, goal, moments)
            hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        for x in batches():
            model(x)
    with torch.no_grad():
        for name, found in moments.items():
            _rescale(model.get_submodule(name), found, goals[name], _is_normed(model, name, spaces))
    reset_batch_norm(model, batches)


def _repairing(name: str, goal: tuple[Tensor, Tensor], moments: dict[str, Moments]) -> Any:
    def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        rows = rows_of(module, output)
        moments.setdefault(name, Moments(rows[0].clone())).add(rows)
        batch = Moments(rows[0].clone())
        batch.add(rows)
        scale, shift = _affine(batch, goal)
        view = [-1] + [1] * (output.dim() - 1 - channel_dim(module, output))
        return (output.double() * scale.view(view) + shift.view(view)).to(output.dtype)

    return hook


def _affine(found: Moments, goal: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel that turn what it has into its goal."""
    mean, std = goal
    scale = torch.where(found.std > 0, std / found.std, 1.0)
    return scale, mean - scale * found.mean


def _is_normed(model: nn.Module, name: str, spaces: Spaces) -> bool:
    """Does a batch norm read what this layer produces?"""
    try:
        readers = spaces.of(name).readers
    except KeyError:
        return False
    return any(isinstance(model.get_submodule(n), nn.modules.batchnorm._BatchNorm) for n in readers)


def _rescale(module: Any, found: Moments, goal: tuple[Tensor, Tensor], normed: bool) -> None:
    weight = module.weight
    scale, shift = (v.to(weight.dtype) for v in _affine(found, goal))
    if getattr(module, "transposed", False):
        grouped = weight.unflatten(0, (module.groups, -1))
        ones = [1] * (weight.dim() - 2)
        weight.copy_((grouped * scale.view(module.groups, 1, -1, *ones)).flatten(0, 1))
    else:
        weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
    if module.bias is not None:
        module.bias.mul_(scale).add_(shift)
    elif not normed:
        module.bias = nn.Parameter(shift, weight.requires_grad)
