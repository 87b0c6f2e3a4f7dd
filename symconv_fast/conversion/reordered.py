"""Channels in another order: of filters, and of the output of a layer that nothing downstream could be adapted to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .carry import give
from .matching import reorder_filters


def _filters(conv: _ConvNd, order: Tensor) -> Tensor:
    return reorder_filters(conv.weight.detach(), order, 1 if conv.transposed else 0, conv.groups)


@torch.no_grad()
def reorder_outputs(conv: _ConvNd, order: Tensor) -> None:
    """Output channel i of `conv` becomes its old channel `order[i]`, in place."""
    order = order.to(conv.weight.device)
    conv.weight.copy_(_filters(conv, order))
    if conv.bias is not None:
        conv.bias.copy_(conv.bias.index_select(0, order))


class ChannelOrder(nn.Module):
    """Output channel i is input channel `index[i]`; (N, C, *spatial) or (C, *spatial) with `ndim` spatial dims.

    `index` is a buffer, which checkpoints have: the order belongs to the filters.
    """

    index: Tensor

    def __init__(self, index: Tensor, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.register_buffer("index", index)

    def forward(self, input: Tensor) -> Tensor:
        """A copy of `input` with its channels in the order of `index`."""
        return input.index_select(-1 - self.ndim, self.index)

    def extra_repr(self) -> str:
        """How many channels."""
        return f"{self.index.numel()} channels"


class Reordered(nn.Sequential):
    """A tied convolution and the order that its output channels had in the model: `conv`, then `order`.

    `convert` puts it where it cannot undo a permutation of output channels in what reads them; `to_torch` makes an
    ordinary convolution of both.
    """

    def __init__(self, conv: _ConvNd, index: Tensor) -> None:
        super().__init__(OrderedDict(conv=conv, order=ChannelOrder(index, len(conv.kernel_size))))

    @property
    def convolution(self) -> _ConvNd:
        """The layer whose output is reordered."""
        return cast(_ConvNd, self._modules["conv"])

    @property
    def index(self) -> Tensor:
        """Channel i of the output is channel `index[i]` of the layer's."""
        return cast(ChannelOrder, self._modules["order"]).index


def join_orders(model: nn.Module) -> nn.Module:
    """`model` with an ordinary convolution in place of each one that is followed by an order, changed in place."""
    joined: dict[nn.Module | None, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, Reordered) and not _is_hooked(module.convolution):
            conv, index = module.convolution, module.index
            weight = _filters(conv, index)
            # New parameters, since another layer may share the old ones.
            conv.weight = nn.Parameter(weight, conv.weight.requires_grad)
            if conv.bias is not None:
                conv.bias = nn.Parameter(conv.bias.detach()[index], conv.bias.requires_grad)
            give(conv, module)
            joined[module] = conv
    replace_modules(model, joined)
    return joined.get(model, model)


def _is_hooked(module: nn.Module) -> bool:
    """Hooks see the channels as the layer itself has them."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def replace_modules(model: nn.Module, replaced: Mapping[nn.Module | None, nn.Module]) -> None:
    """Put each value in all the places that its key has among the submodules of `model`."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
