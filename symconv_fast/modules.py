"""SymmetricConv*d and SymmetricConvTranspose*d: torch's layers with a reduced weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from . import advice, checkpoint
from .both_sides import (
    InputSymmetry,
    InputSymmetryLike,
    parse_input,
    resolve_both,
    resolve_inputs,
    show_input,
)
from .checks import ShapeError, ints
from .compiling import straight
from .eager import recall_layer
from .functional import IntOrInts, check_bias, prepare, run
from .problem import Problem
from .symmetry import Symmetry, SymmetryLike
from .ties import Ties
from .tracing import is_traced, record_layer

_Layer = TypeVar("_Layer", bound="_Symmetric[Any]")
_Conv = TypeVar("_Conv", bound=nn.modules.conv._ConvNd)


_SIZES = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_TRANSPOSED_SIZES = (*_SIZES[:5], "output_padding", "groups", "dilation")


def _check_sizes(names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    """torch's constructors check values, but take floats and text: raises TypeError for what is no integer."""
    for name, value in zip(names, values):
        if not (name == "padding" and isinstance(value, str)):
            ints(value, name)


@lru_cache(maxsize=1024)
def _one(values: tuple[int, ...]) -> tuple[int, ...]:
    """One object for equal tuples, since calls are remembered by identity."""
    return values


class _Symmetric(nn.modules.conv._ConvNd, Generic[_Conv]):
    """What the six layers share; each also derives from its torch layer, so that `isinstance(m, nn.Conv2d)` holds.

    `weight` (the reduced weight) and `bias` are the only parameters; there are no buffers and no cached filters.
    """

    share_bias: bool
    _is_own: bool
    """Is this one of the classes of this module, whose `forward` does nothing that a subclass could change?"""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._is_own = cls.__module__ == __name__

    def _tie(
        self,
        symmetry: SymmetryLike,
        input_symmetry: InputSymmetryLike,
        share_bias: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        """Turn a torch layer that was built on the meta device into a tied layer with real parameters."""
        ndim = len(self.kernel_size)
        if ndim not in (1, 2, 3):
            raise ShapeError(
                f"kernel_size={self.kernel_size} must be an int, or an int for each of 1 to 3 dims"
            )
        given, moves = Symmetry(symmetry, ndim=ndim), parse_input(input_symmetry, ndim)
        ties = self._resolve(given, moves, ndim)
        self.__dict__.update(symmetry=given, input_symmetry=moves, ties=ties)
        self.share_bias = share_bias
        if self.bias is not None:
            check_bias(ties)
        advice.warn_of_ties(self, given, ties)
        rows = ties.unique
        shape = ties.weight_shape(self.in_channels // self.groups, self.kernel_size, self.transposed)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if self.bias is not None:
            length = rows if share_bias else self.out_channels
            self.bias = nn.Parameter(torch.empty(length, device=device, dtype=dtype))
        self.reset_parameters()

    def _resolve(self, symmetry: Symmetry, moves: InputSymmetry, ndim: int) -> Ties:
        """The ties of the filters, with what mirrors do to the input."""
        if moves is None and not symmetry.is_signed:
            return symmetry.resolve(ndim, self.out_channels, self.groups)
        inputs = resolve_inputs(moves, ndim, self.in_channels)
        return resolve_both(
            symmetry.counts,
            inputs,
            self.groups,
            self.kernel_size,
            self.transposed,
            lambda order: symmetry.resolve(ndim, self.out_channels, order),
        )

    # They are in the instance's `__dict__`, where pickling, `deepcopy` and native code find them.

    @property
    def symmetry(self) -> Symmetry:
        """The tie as it was given."""
        return self.__dict__["symmetry"]

    @symmetry.setter
    def symmetry(self, value: object) -> None:
        self._refuse("symmetry")

    @property
    def input_symmetry(self) -> InputSymmetry:
        """What mirrors do to the input channels, as it was given; None where they stay."""
        return self.__dict__.get("input_symmetry")  # files of layers made before there was one have none

    @input_symmetry.setter
    def input_symmetry(self, value: object) -> None:
        self._refuse("input_symmetry")

    @property
    def ties(self) -> Ties:
        """The tie resolved for this layer."""
        return self.__dict__["ties"]

    @ties.setter
    def ties(self, value: object) -> None:
        self._refuse("ties")

    def _refuse(self, name: str) -> None:
        cls = type(self).__name__
        raise AttributeError(
            f"{cls}.{name} is read-only, since the weight was made for it; make a new layer, for example with "
            f"{cls}.from_conv(layer.to_conv(), symmetry)"
        )

    @property
    def unique_out_channels(self) -> int:
        """U: filters that are stored, the rows of the reduced weight."""
        return self.ties.unique

    def reset_parameters(self) -> None:
        """torch's own initialisation for the expanded layer: uniform within +-1/sqrt(fan_in), weight and bias."""
        # torch takes the fan-in from dim 1 of the ordinary weight; for a transposed layer dim 1 is the tied one.
        channels = self.out_channels if self.transposed else self.in_channels
        fan_in = channels // self.groups * math.prod(self.kernel_size)
        bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def expanded_weight(self) -> Tensor:
        """The ordinary filters, as `F.convNd` takes them; differentiable. An untied layer's own weight."""
        return self.ties.expand(self.weight, 1 if self.transposed else 0)

    def expanded_bias(self) -> Tensor | None:
        """The bias of every output channel, (out_channels,), or None."""
        bias = self.bias
        return self.ties.expand_bias(bias) if self.share_bias and bias is not None else bias

    def to_conv(self) -> _Conv:
        """An ordinary torch layer with the expanded filters: same outputs, no ties, for export and other tools.

        `symconv_fast.to_torch` does it for all layers of a model, hooks included. A parametrization is made permanent,
        with the value that it has in eval mode.

        Raises:
            TypeError: this is a subclass with a `forward` of its own, which the ordinary layer would not have.
        """
        if not self._has_plain_forward():
            raise TypeError(
                f"{type(self).__name__} has a forward of its own, which an ordinary layer would not have; "
                "give the class a to_conv() that returns a module with the same outputs"
            )
        # Each is read once: a parametrization computes it anew with each reading.
        with still(self):
            weight, bias = self.expanded_weight(), self.expanded_bias()
        conv = _torch_class(type(self))(
            **_settings(self), bias=bias is not None, device="meta", dtype=weight.dtype
        )
        conv.weight = nn.Parameter(weight.detach().clone(), self._trains("weight", weight))
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().clone(), self._trains("bias", bias))
        conv.train(self.training)
        return cast(_Conv, conv)

    def _trains(self, name: str, computed: Tensor) -> bool:
        """Does a parameter train, or what a parametrization computes for it?"""
        found = self._parameters.get(name)
        return (computed if found is None else found).requires_grad

    def _has_plain_forward(self) -> bool:
        """Is what the layer computes that of the classes here, not of a subclass or of a `forward` set on it?"""
        cls, plain = type(self), _SymmetricTransposed if self.transposed else _Symmetric
        own = "forward" in self.__dict__ or "_conv_forward" in self.__dict__
        return not own and cls.forward is plain.forward and cls._conv_forward is plain._conv_forward

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks for in place of the layer; it would copy the parameters and leave the ties."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}; script symconv_fast.to_torch(model), whose layers "
            "are torch's, or use torch.export, torch.jit.trace or torch.compile"
        )

    @classmethod
    def from_conv(
        cls: type[_Layer],
        conv: nn.modules.conv._ConvNd,
        symmetry: SymmetryLike,
        *,
        input_symmetry: InputSymmetryLike = None,
        share_bias: bool = False,
        keep_norm: bool = False,
    ) -> _Layer:
        """The tied layer whose filters are nearest to those of an ordinary layer, in least squares.

        Output channel i of `conv` becomes channel i of the result: in each group the first U/groups filters lead the
        orbits, the others are their mirrored copies in the published order. The bias is copied, or averaged over each
        orbit with `share_bias`. Stride, padding, dtype, device and the rest carry over.

        Filters that nobody made symmetric are not nearly so: random ones lose 1 - U/out_channels of their energy (the
        squared norm; `Ties.lost_energy`), and the layer computes something else. `keep_norm` scales each row to the
        norm that its orbit had, which keeps the size of activations for further training.

        Warns:
            SymmetryWarning: more than 10 % of the energy is lost.

        Raises:
            TypeError: `conv` is not the torch layer that this class ties. ValueError: as for the constructor.
        """
        wanted = _torch_class(cls)
        if not isinstance(conv, wanted) or isinstance(conv, _Symmetric):
            raise TypeError(
                f"{cls.__name__}.from_conv needs an ordinary {wanted.__name__}, got {type(conv).__name__}"
            )
        settings = _settings(conv) | {"bias": conv.bias is not None}
        settings |= {"device": conv.weight.device, "dtype": conv.weight.dtype}
        if input_symmetry is not None:
            settings["input_symmetry"] = input_symmetry
        layer = cls(**settings, symmetry=symmetry, share_bias=share_bias)  # type: ignore[call-arg]
        filters, dim = conv.weight.detach(), 1 if layer.transposed else 0
        weight = layer.ties.project(filters, dim, keep_norm=keep_norm)
        advice.warn_of_loss(layer, filters, dim, keep_norm)
        layer.weight = nn.Parameter(weight.clone(), conv.weight.requires_grad)
        if conv.bias is not None:
            bias = conv.bias.detach()
            bias = layer.ties.project_bias(bias) if share_bias else bias
            layer.bias = nn.Parameter(bias.clone(), conv.bias.requires_grad)
        layer.train(conv.training)
        return layer

    def _arguments(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
        """Of `functional.run` and `functional.prepare`."""
        ndim, padding = len(self.kernel_size), self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = _one((0,) * ndim)
        return ndim, input, weight, bias, self.stride, padding, self.dilation, self.groups, self.ties

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *spatial) or (C, *spatial) to (N, out_channels, *out_spatial) or without N."""
        if is_compiling():
            output = straight(self, input, False) if self._is_own else None
            if output is not None:
                return output
        # eager.takes, without a call of its own. Subclasses of Tensor go the longer way: `isinstance` takes too long.
        if type(input) is Tensor and self._is_own and recall_layer and not is_compiling() and input.is_cpu:
            output = recall_layer(self, input)
            if output is not None:
                return output
        if is_traced(input):
            node = record_layer(self, input)
            if node is not None:
                return node
        return self._conv_forward(input, self._own("weight"), self._own("bias"))

    def _own(self, name: str) -> Any:
        """A parameter; as an attribute it would take the detour over nn.Module.__getattr__, half a microsecond."""
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return run(*self._arguments(input, weight, bias))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        checkpoint.record(self, destination, prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        checkpoint.load(self, super()._load_from_state_dict, state_dict, prefix, local_metadata, *rest)

    def problem(self, x: Tensor) -> Problem:
        """The `Problem` that an input `x` poses, or what calling the layer raises; see `symconv_fast.explain`."""
        return prepare(*self._arguments(x, self.weight, self.bias)).problem()

    def extra_repr(self) -> str:
        """torch's own fields, then the symmetry as it was given and the number of free filters."""
        shared = ", share_bias=True" if self.share_bias else ""
        rows = f"unique_out_channels={self.unique_out_channels}"
        moves = "" if self.input_symmetry is None else f", input_symmetry={show_input(self.input_symmetry)}"
        return f"{super().extra_repr()}, symmetry={self.symmetry}{moves}, {rows}{shared}"


class _SymmetricOrdinary(_Symmetric[_Conv]):
    """The constructor of the layers that are not transposed; torch's own comes after it in each of them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        symmetry: SymmetryLike = None,
        input_symmetry: InputSymmetryLike = None,
        share_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        _check_sizes(_SIZES, sizes)
        super().__init__(*sizes, bias, padding_mode, device="meta", dtype=dtype)  # type: ignore[arg-type,call-arg]
        self._tie(symmetry, input_symmetry, share_bias, device, dtype)


class _SymmetricTransposed(_Symmetric[_Conv]):
    """The transposed layers: the weight (C_in, U/groups, *K) is expanded along dim 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        *,
        symmetry: SymmetryLike = None,
        input_symmetry: InputSymmetryLike = None,
        share_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups)
        _check_sizes(_TRANSPOSED_SIZES, (*sizes, dilation))
        super().__init__(*sizes, bias, dilation, padding_mode, device="meta", dtype=dtype)  # type: ignore[arg-type,call-arg]
        self._tie(symmetry, input_symmetry, share_bias, device, dtype)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As torch's transposed layer; `output_size` picks among the sizes that the stride leaves open."""
        if is_compiling() and output_size is None:
            output = straight(self, input, True) if self._is_own else None
            if output is not None:
                return output
        if is_traced(input):
            node = record_layer(self, input, *([] if output_size is None else [output_size]))
            if node is not None:
                return node
        return run(*self._transposed_arguments(input, output_size), transposed=True)

    def _transposed_arguments(self, input: Tensor, output_size: list[int] | None) -> tuple[Any, ...]:
        ndim, extra = len(self.kernel_size), self.output_padding
        if output_size is not None:
            extra = self._output_padding(  # type: ignore[operator]
                input, output_size, self.stride, self.padding, self.kernel_size, ndim, self.dilation
            )
        args = (self.stride, self.padding, self.dilation, self.groups, self.ties, _one(tuple(extra)))
        return ndim, input, self._own("weight"), self._own("bias"), *args

    def problem(self, x: Tensor) -> Problem:
        """The `Problem` that an input `x` poses, or what calling the layer raises; see `symconv_fast.explain`."""
        return prepare(*self._transposed_arguments(x, None), transposed=True).problem()


class SymmetricConv1d(_SymmetricOrdinary[nn.Conv1d], nn.Conv1d):
    """`SymmetricConv2d` in one dimension: weight (U, C/groups, K), symmetry key h."""


class SymmetricConv2d(_SymmetricOrdinary[nn.Conv2d], nn.Conv2d):
    """`nn.Conv2d` whose filters are tied by reflection: `F.conv2d(x, layer.expanded_weight(), layer.bias, ...)`.

    Arguments as for `torch.nn.Conv2d`, and:
        symmetry: {"h": 2, ...} with numbers of output channels or percentages, a key such as "h", or None. Keys with
            signs, "h+" or "h+v-", are of self-symmetric filters, each its own mirror image (+) or the negative (-).
        input_symmetry: what mirrors do to the input channels. None: nothing. "h", {"hv": 8, ...} as `symmetry` of the
            ungrouped layer that makes the input, or `layer.ties` of whatever layer: they exchange the members of its
            orbits. {"h": (3, 2, 1, 0)}: an involution of the channels, which for h is that of A, C, G, T here.
        share_bias: the members of an orbit share one bias; `bias` is then (U,).

    torch's initialisers that count fans (kaiming_*, xavier_*) read the reduced shape of `weight`; with mode="fan_out"
    and xavier they make it too large ("hv": 2 and up to 1.6 times). Use those of `symconv_fast.init`, with the layer.

    `weight` has shape (U, C/groups, KH, KW), of self-symmetric filters fewer taps or channels; that and `bias` are the
    only parameters. Mirror the input, and the outputs come mirrored with the members of each orbit exchanged. A stack
    of such layers does the same where each is told so of its input, with `input_symmetry`; else it does not.

    Warns:
        SymmetryWarning: a tie does nothing, or not what was meant; see there.

    Raises:
        ValueError, TypeError: `symmetry` does not fit the layer; the message names valid values.
    """


class SymmetricConv3d(_SymmetricOrdinary[nn.Conv3d], nn.Conv3d):
    """`SymmetricConv2d` in three dimensions: weight (U, C/groups, KD, KH, KW), keys h to hvz."""


class SymmetricConvTranspose1d(_SymmetricTransposed[nn.ConvTranspose1d], nn.ConvTranspose1d):
    """`SymmetricConvTranspose2d` in one dimension: weight (C_in, U/groups, K), symmetry key h."""


class SymmetricConvTranspose2d(_SymmetricTransposed[nn.ConvTranspose2d], nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` whose filters are tied: `F.conv_transpose2d(x, layer.expanded_weight(), layer.bias, ...)`.

    `weight` has shape (C_in, U/groups, KH, KW) and is expanded along dim 1. Otherwise as `SymmetricConv2d`, what is
    said there of `torch.nn.init` included.
    """


class SymmetricConvTranspose3d(_SymmetricTransposed[nn.ConvTranspose3d], nn.ConvTranspose3d):
    """`SymmetricConvTranspose2d` in three dimensions: weight (C_in, U/groups, KD, KH, KW), keys h to hvz."""


@contextmanager
def still(layer: nn.Module) -> Iterator[None]:
    """For reading what a layer's parametrizations compute: they are in eval mode, and neither change nor draw."""
    parametrizations = layer._modules.get("parametrizations")
    modes = {m: m.training for m in (parametrizations.modules() if parametrizations is not None else ())}
    try:
        for module in modes:
            module.training = False
        with torch.enable_grad():  # so that `requires_grad` of what they compute is that of their parameters
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _torch_class(cls: type) -> type[Any]:
    """The torch layer that a tied class derives from."""
    return next(base for base in cls.__mro__ if base.__module__ == nn.Conv2d.__module__)


def _settings(conv: nn.modules.conv._ConvNd) -> dict[str, Any]:
    """The constructor arguments that any convolution layer shares, as it has them now."""
    names = [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ]
    if conv.transposed:
        names.append("output_padding")
    return {name: getattr(conv, name) for name in names}
