"""Which tensors of a model share one order of channels, so that it can be changed and the outputs stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .calls import is_filtering, is_layer
from .flow import Flow
from .maps import Block
from .trace import CannotTraceError, shared_tensors, trace


@dataclass(frozen=True)
class Space:
    """Channels that several layers have in one order. Names are those of `named_modules`."""

    size: int
    """Channels."""
    producers: tuple[str, ...]
    """Layers whose output channels these are: convolutions, transposed ones, linear layers."""
    readers: tuple[str, ...]
    """Layers whose input channels, or parameters for each channel, follow."""
    fixed: str | None
    """Why the order must stay as it is; None if it is free."""


class _Rule(NamedTuple):
    """A dim of a tensor that follows spaces, each channel `repeat` times."""

    module: str
    tensor: str
    dim: int
    blocks: tuple[Block, ...]
    """The spaces are places in `Spaces.spaces`."""
    repeat: int = 1


@dataclass(frozen=True)
class Spaces:
    """All spaces of a model, as `find_spaces` returns them.

    Every convolution and linear layer produces one, also where its order is fixed; depthwise convolutions of one
    filter a channel read theirs.
    """

    spaces: tuple[Space, ...]
    error: str | None = None
    """Why the model could not be traced; all spaces are fixed then."""
    _rules: tuple[_Rule, ...] = field(default=(), repr=False)
    _names: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def of(self, name: str) -> Space:
        """The space of the output channels of the layer `name`.

        Of a layer with parameters for each channel of its input, such as a depthwise convolution, that of its input.

        Raises:
            KeyError: there is no such layer, or it follows several spaces.
        """
        known = self._names.get(name, name)
        for space in self.spaces:
            if known in space.producers:
                return space
        rule = next((rule for rule in self._rules if rule.module == known and rule.dim == 0), None)
        if rule is not None and len(rule.blocks) == 1:
            return self.spaces[rule.blocks[0].space]
        some = ", ".join(space.producers[0] for space in self.spaces[:3]) or "none"
        why = "is no layer with output channels of its own" if rule is None else "follows several spaces"
        raise KeyError(f"{name!r} {why}; such layers are, for example: {some}")

    def points(self, space: Space) -> tuple[str, ...]:
        """Layers whose output has the channels of `space` and no others: producers, and what acts on each channel."""
        producers = {name for some in self.spaces for name in some.producers}
        place = self.spaces.index(space)
        own = {
            rule.module
            for rule in self._rules
            if (rule.tensor, rule.dim, rule.repeat) == ("weight", 0, 1)
            and [block.space for block in rule.blocks] == [place]
            and rule.module not in producers
        }
        return (*space.producers, *(name for name in space.readers if name in own))

    def flattened(self) -> tuple[tuple[str, str, int, int, int], ...]:
        """Parameters that follow flattened maps: (layer, parameter, dim, channels, positions of each channel)."""
        return tuple(
            (rule.module, rule.tensor, rule.dim, sum(block.size for block in rule.blocks), rule.repeat)
            for rule in self._rules
            if rule.repeat > 1
        )

    def permute(self, model: nn.Module, orders: Mapping[Space, Tensor]) -> None:
        """Put the channels of spaces into other orders, in place: the model computes what it did.

        Parameters stay the same objects, and their gradients are permuted with them; what an optimizer keeps for them
        (moments) is not.

        Args:
            model: the model that the spaces were found in, or a copy of it.
            orders: for each space to change, (size,) integers: new channel i is what channel `order[i]` was.

        Raises:
            KeyError: a space is none of these. ValueError: it is fixed, its order is no permutation, or the model is
                another one. TypeError: an order is no Tensor, or `model` no module.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"permute needs a torch.nn.Module, got {type(model).__name__}; such as a whole model"
            )
        places = {space: i for i, space in enumerate(self.spaces)}
        wanted = {}
        for space, order in orders.items():
            if space not in places:
                raise KeyError(f"{space} is no space of this model; take those of find_spaces(model).spaces")
            _check_order(space, order)
            wanted[places[space]] = order.detach().to("cpu", torch.int64)
        moves = [
            (tensor, rule.dim, _index(rule, wanted))
            for rule in self._rules
            if any(block.space in wanted for block in rule.blocks)
            for tensor in _tensors(model, rule)
        ]
        with torch.no_grad():
            for tensor, dim, order in moves:
                if tensor.shape[dim] != len(order):
                    raise ValueError(
                        f"the model has {tensor.shape[dim]} channels where {len(order)} were found; it must be the "
                        "model of find_spaces, or a copy"
                    )
            for tensor, dim, order in moves:
                tensor.copy_(tensor.index_select(dim, order.to(tensor.device)))


def _check_order(space: Space, order: Tensor) -> None:
    where = f"the order for the space of {space.producers[0]}"
    if not isinstance(order, Tensor):
        raise TypeError(
            f"{where} must be a Tensor, got {type(order).__name__}; such as torch.randperm({space.size})"
        )
    if space.fixed is not None:
        raise ValueError(
            f"the space of {space.producers[0]} is fixed ({space.fixed}); permute those that are free"
        )
    whole = not order.dtype.is_floating_point and not order.dtype.is_complex and order.dtype != torch.bool
    if not whole or sorted(order.flatten().tolist()) != list(range(space.size)) or order.dim() != 1:
        raise ValueError(
            f"{where} must hold each of 0 to {space.size - 1} once, got {order.dtype} of shape {tuple(order.shape)}; "
            f"such as torch.randperm({space.size})"
        )


def _index(rule: _Rule, wanted: Mapping[int, Tensor]) -> Tensor:
    """Along the rule's dim, what was where."""
    parts, start = [], 0
    for block in rule.blocks:
        parts.append(start + wanted.get(block.space, torch.arange(block.size)))
        start += block.size
    order = torch.cat(parts)
    return (order[:, None] * rule.repeat + torch.arange(rule.repeat)).flatten()


def _tensors(model: nn.Module, rule: _Rule) -> list[Tensor]:
    """The tensor of a rule with its gradient, as far as they are there."""
    try:
        module = model.get_submodule(rule.module)
    except AttributeError:
        raise ValueError(
            f"the model has no layer {rule.module}; it must be the model of find_spaces, or a copy"
        ) from None
    tensor: Tensor | None = module._parameters.get(rule.tensor)
    if tensor is None:
        tensor = module._buffers.get(rule.tensor)
    if tensor is None:
        return []
    return [tensor] if tensor.grad is None else [tensor, tensor.grad]


def find_spaces(model: nn.Module) -> Spaces:
    """Find which layers of a model share an order of channels, by torch.fx.

    Followed are convolutions, depthwise ones, linear layers, batch norm, instance norm, PReLU, activations, dropout,
    pooling, padding, resizing, sums and products, gates, concatenation, flattening before a linear layer, reductions
    over positions. Anything else fixes the spaces that it touches, and they say why: what is not understood keeps its
    order. So do inputs and outputs of the model, what hooks see, what is kept in attributes, parameters that are
    shared, parametrized or pruned, and tied layers as producers.

    The model is traced in training and in eval mode, and neither run nor changed. Dims that it counts from the front,
    such as dim=1 or `flatten(1)`, are taken for those of a batch (N, C, *spatial). What other methods than `forward`
    return is not seen.

    Args:
        model: any module.

    Returns:
        Its spaces; where it cannot be traced, all of them are fixed, and `error` says why.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"find_spaces needs a torch.nn.Module, got {type(model).__name__}; such as a whole model"
        )
    flow, error = Flow(model), None
    try:
        for traced in trace(model, is_layer):
            flow.add(traced)
    except CannotTraceError as cannot:
        flow, error = Flow(model), str(cannot)
    flow.finish(shared_tensors(model))
    return _collect(model, flow, error)


def _collect(model: nn.Module, flow: Flow, error: str | None) -> Spaces:
    """Number the sets of channels, and say what follows each."""
    names = {module: name for name, module in model.named_modules()}
    for module in names:
        follows = module in flow.read and _is_depthwise(module)
        if is_filtering(module) and module not in flow.produced and not follows:
            flow.fix_output(module, error)
    roots = list(dict.fromkeys(flow.partition.find(block.space) for block in flow.produced.values()))
    place = {root: i for i, root in enumerate(roots)}

    def placed(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        return tuple(Block(place[flow.partition.find(block.space)], block.size) for block in blocks)

    producers: list[list[str]] = [[] for _ in roots]
    readers: list[list[str]] = [[] for _ in roots]
    rules = []
    for module, name in names.items():
        if module in flow.produced:
            block = placed((flow.produced[module],))
            producers[block[0].space].append(name)
            rules += _rules_of_output(module, name, block)
        if module in flow.read:
            blocks = placed(flow.read[module].blocks)
            for space in dict.fromkeys(block.space for block in blocks):
                readers[space].append(name)
            rules += _rules_of_input(module, name, blocks)
    sizes = {flow.partition.find(block.space): block.size for block in flow.produced.values()}
    spaces = tuple(
        Space(sizes[root], tuple(made), tuple(read), flow.partition.why_fixed(root))
        for root, made, read in zip(roots, producers, readers)
    )
    aliases = {alias: names[module] for alias, module in model.named_modules(remove_duplicate=False)}
    return Spaces(spaces, error, tuple(rules), aliases)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1


def _rules_of_output(module: nn.Module, name: str, block: tuple[Block, ...]) -> list[_Rule]:
    transposed = getattr(module, "transposed", False)
    return [_Rule(name, "weight", 1 if transposed else 0, block), _Rule(name, "bias", 0, block)]


def _rules_of_input(module: nn.Module, name: str, blocks: tuple[Block, ...]) -> list[_Rule]:
    channels = sum(block.size for block in blocks)
    if isinstance(module, nn.Linear):
        return [_Rule(name, "weight", 1, blocks, module.in_features // channels)]
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
        return [_Rule(name, "weight", 0 if module.transposed else 1, blocks)]
    length = getattr(module, "num_features", getattr(module, "num_parameters", channels))
    own = ("weight", "bias", "running_mean", "running_var")
    return [_Rule(name, tensor, 0, blocks, length // channels) for tensor in own]
