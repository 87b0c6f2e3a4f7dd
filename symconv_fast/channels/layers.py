"""What layers of torch do with the channels of what they are called with."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from . import maps as maps_
from .calls import OWN_FUNCTIONS, is_tied, kind_of
from .constraints import Constraints
from .maps import Foreign, Maps, UnknownError, maps_in


class Layers(Constraints):
    """Calls of modules: each `_run_*` is one of the kinds of `calls.MODULES`."""

    def call_module(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a node that calls a layer."""
        module = self._modules[str(node.target)]
        name, kind = str(node.target), kind_of(module)
        given = args or tuple(kwargs.values())
        value, rest = (given[0], given[1:]) if given else (None, ())
        if (
            kind is None
            or not isinstance(value, (Maps, Foreign))
            or maps_in((rest, kwargs) if args else rest)
        ):
            self._out_of_reach(module)
            raise UnknownError(f"{type(module).__name__} {name}")
        return self._run(*kind, module, value, node)

    def call_own(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a function that a subclass of a layer calls with its own parameters; None if it is not that."""
        what, cls, names = OWN_FUNCTIONS[node.target]
        given = dict(zip(names, args)) | kwargs
        value = given.pop("input", None)
        tensors = {k: v for k, v in given.items() if isinstance(v, (Maps, Foreign))}
        owners = [v.owner for v in tensors.values() if isinstance(v, Foreign) and v.owner is not None]
        if not owners:
            return None
        module = owners[0][0]
        if (
            not isinstance(value, (Maps, Foreign))
            or (isinstance(value, Foreign) and value.owner is not None)
            or owners != [(module, name) for name in tensors]
            or not isinstance(module, cls)
            or is_tied(module)
            or given.get("groups", 1) != getattr(module, "groups", 1)
            or maps_in((args[len(names) :], [v for v in given.values() if not isinstance(v, Maps)]))
        ):
            return None
        ndim = len(module.kernel_size) if what == "conv" else 0  # type: ignore[arg-type]
        return self._run(what, ndim, module, value, node)

    def _run(self, what: str, ndim: int, module: nn.Module, value: Any, node: fx.Node) -> Any:
        """One call of a layer of known kind, which acts on `ndim` spatial dims if that is not 0."""
        name = self.names[module]
        if isinstance(value, Maps) and ndim and value.ndim != ndim:
            wanted = 0 if what == "batch_norm" and ndim == 1 else ndim
            if value.ndim != wanted:
                self.fix([value], f"{type(module).__name__} {name} on other dims")
                value = Foreign(f"{type(module).__name__} {name} on other dims", node)
        return getattr(self, f"_run_{what}")(module, name, value, node)

    def _out_of_reach(self, module: nn.Module) -> None:
        """It is called in a way that is not followed."""
        self.spoil(module, f"{self.names[module]} is called in a way that is not followed")

    def _run_unary(self, module: nn.Module, name: str, value: Any, node: fx.Node) -> Any:
        return value

    def _run_pool(self, module: nn.Module, name: str, value: Any, node: fx.Node) -> Any:
        if getattr(module, "return_indices", False):
            raise UnknownError(f"indices of {type(module).__name__} {name}")
        return value

    def _run_resize(self, module: nn.Module, name: str, value: Any, node: fx.Node) -> Any:
        if isinstance(value, Maps) and not value.ndim:
            raise UnknownError(f"{type(module).__name__} {name} on other dims")
        return value

    def _run_flatten(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        if isinstance(value, Foreign):
            return value
        return maps_.flatten(value, module.start_dim, module.end_dim)

    def _run_prelu(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        return value if module.num_parameters == 1 else self._own(module, module.num_parameters, value)

    def _run_batch_norm(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        return self._own(module, module.num_features, value)

    def _run_instance_norm(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        return self._own(module, module.num_features, value)

    def _own(self, module: nn.Module, channels: int, value: Any) -> Any:
        """A layer with parameters for each channel."""
        if isinstance(value, Maps) and not (value.batched and _fits(value, channels)):
            self._out_of_reach(module)
            raise UnknownError(f"{type(module).__name__} {self.names[module]} of {channels} channels")
        self.follow(module, value)
        return value

    def _run_linear(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        if isinstance(value, Maps) and (value.ndim or not _fits(value, module.in_features)):
            self.fix([value], f"Linear {name} of {module.in_features} features")
            value = Foreign(f"Linear {name} of {module.in_features} features", node)
        self.follow(module, value)
        block = self.produce(module, module.out_features)
        batched = isinstance(value, Maps) and value.batched
        return Maps((block,), 0, batched=batched, origin=value.origin if batched else None)

    def _run_conv(self, module: Any, name: str, value: Any, node: fx.Node) -> Any:
        """Depthwise filters follow their input; else the output has channels of its own."""
        grouped, tied = module.groups > 1, is_tied(module)
        if isinstance(value, Maps) and value.total != module.in_channels:
            self.fix([value], f"{name} of {module.in_channels} channels")
            value = Foreign(f"{name} of {module.in_channels} channels", node)
        if grouped and not tied and module.groups == module.in_channels == module.out_channels:
            if isinstance(value, Maps):
                self.follow(module, value)
                return value
            self._foreign.setdefault(module, f"depthwise convolution {name} of others: {value.why}")
            self.follow(module, value)
            return value
        block = self.produce(module, module.out_channels)
        if grouped:
            self.partition.fix(block.space, f"grouped convolution {name}")
            if isinstance(value, Maps):
                self.fix([value], f"grouped convolution {name}")
        else:
            self.follow(module, value)
        if tied:
            self.partition.fix(block.space, "tied already")
            if module.ties.sides and isinstance(value, Maps):
                self.fix([value], f"mirrors move the input channels of {name}")
        return Maps((block,), len(module.kernel_size), origin=value.origin)


def _fits(value: Maps, channels: int) -> bool:
    """Are these its channels, or, flattened, its channels at each of some positions?"""
    return channels % value.total == 0 and channels > 0 if value.flat else channels == value.total
