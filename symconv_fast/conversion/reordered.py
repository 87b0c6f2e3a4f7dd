"""Channels in another order: of filters, and of the output of a layer that nothing downstream could be adapted to."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..channels.calls import is_layer
from ..channels.trace import CannotTraceError, trace
from ..modules import _Symmetric
from ..problem import Problem, format_of
from .carry import give
from .matching import reorder_filters


def _filters(conv: _ConvNd, order: Tensor) -> Tensor:
    """In the memory format that they had: selecting filters by an index makes them contiguous."""
    weight = conv.weight.detach()
    filters = reorder_filters(weight, order, 1 if conv.transposed else 0, conv.groups)
    return filters.contiguous(memory_format=format_of(weight))


def reorder_outputs(conv: _ConvNd, order: Tensor) -> _ConvNd:
    """`conv` with its old channel `order[i]` as output channel i: another layer, with parameters of its own."""
    order, new = order.to(conv.weight.device), copy.copy(conv)
    new._parameters = dict(conv._parameters)
    new.weight = nn.Parameter(_filters(conv, order), conv.weight.requires_grad)
    if conv.bias is not None:
        new.bias = nn.Parameter(conv.bias.detach().index_select(0, order), conv.bias.requires_grad)
    return new


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


_SETTINGS = "in_channels out_channels kernel_size stride padding dilation transposed output_padding groups padding_mode"


class Reordered(nn.Sequential):
    """A tied convolution and the order that its output channels had in the model: `conv`, then `order`.

    `convert` puts it where it cannot undo a permutation of output channels in what reads them; `to_torch` makes an
    ordinary convolution of both. To code that looks at the layer it is like that ordinary one: it has its sizes,
    `weight` and `bias`, and takes what it takes. The parameters are those of `convolution`.
    """

    def __init__(self, conv: _ConvNd, index: Tensor) -> None:
        super().__init__(OrderedDict(conv=conv, order=ChannelOrder(index, len(conv.kernel_size))))
        self.__dict__.update((name, getattr(conv, name)) for name in _SETTINGS.split())

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the layer is called, transposed ones with their `output_size`."""
        output: Tensor = self[1](self[0](input, *args, **kwargs))
        return output

    @property
    def weight(self) -> Tensor:
        """The ordinary filters in the order of the outputs, computed with each reading; differentiable."""
        conv = self._tied
        weight = conv.expanded_weight()
        return reorder_filters(weight, self.index, 1 if conv.transposed else 0, conv.groups)

    @property
    def bias(self) -> Tensor | None:
        """The bias of every output channel, or None; computed too."""
        bias = self._tied.expanded_bias()
        return None if bias is None else bias.index_select(0, self.index)

    def problem(self, x: Tensor) -> Problem:
        """That of the layer, for `symconv_fast.explain`; the index copies the output besides."""
        return self._tied.problem(x)

    @property
    def _tied(self) -> _Symmetric[Any]:
        return cast("_Symmetric[Any]", self.convolution)

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
            give(conv, module, parts=("conv", "order"))
            joined[module] = conv
    replace_modules(model, joined)
    return joined.get(model, model)


def _is_hooked(module: nn.Module) -> bool:
    """Hooks see the channels as the layer itself has them."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def replace_modules(model: nn.Module, replaced: Mapping[nn.Module | None, nn.Module]) -> None:
    """Put each value in all the places that its key has among the submodules of `model`."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]


class _StandIn(nn.Module):
    """What has all that a convolution has, and is none."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Never run: it stands in a graph."""
        raise NotImplementedError


def asks_for_types(model: nn.Module, layers: Iterable[nn.Module]) -> bool:
    """Does the code of a model that torch.fx can trace do something else where `layers` are no convolutions?

    Such as `if isinstance(layer, nn.Conv2d)` in a loop over layers, which a `Reordered` does not fulfil.
    """
    stands: dict[nn.Module | None, nn.Module] = {}
    for layer in layers:
        stand = stands[layer] = _StandIn.__new__(_StandIn)
        stand.__dict__ = layer.__dict__
    before = [str(traced.graph) for traced in trace(model, is_layer)]
    replace_modules(model, stands)
    try:
        return before != [str(traced.graph) for traced in trace(model, _is_layer_or_stand)]
    except CannotTraceError:
        return True
    finally:
        back: dict[nn.Module | None, nn.Module] = {stand: layer for layer, stand in stands.items() if layer}
        replace_modules(model, back)


def _is_layer_or_stand(module: nn.Module) -> bool:
    return isinstance(module, _StandIn) or is_layer(module)
