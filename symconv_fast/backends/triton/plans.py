"""What a plan is made of: launches and working memory as plain data. No tensors, no device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ...problem import Problem
from . import configs, kernels
from .configs import Config
from .geometry import Geometry, Segment, Strides

_POINTER = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
LIMIT = 2**31


@dataclass(frozen=True)
class Buffer:
    """Working memory of a plan."""

    name: str
    elements: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Launch:
    """One launch: `pointers` names a tensor or buffer and its dtype for each pointer parameter."""

    kernel: str
    grid: int
    pointers: Mapping[str, tuple[str, torch.dtype]]
    scalars: Mapping[str, int]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    config: Config | None = None
    """The tile, cut to the problem; None for what goes over elements."""

    @property
    def function(self) -> Any:
        """The @triton.jit function."""
        return getattr(kernels, self.kernel)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Parameters of the kernel in order."""
        return tuple(inspect.signature(self.function.fn).parameters)

    @property
    def signature(self) -> dict[str, str]:
        """Type of every parameter as triton.compile takes it; integers that are 1 are constants, as at a launch."""
        return {name: self._type(name) for name in self.names}

    @property
    def constexprs(self) -> dict[str, Any]:
        """Values of the parameters that are constants."""
        ones = {name: 1 for name, value in self.scalars.items() if value == 1}
        return {name: v for name, v in (*self.constants.items(), *ones.items()) if name in self.names}

    @property
    def divisible(self) -> tuple[str, ...]:
        """Parameters that are multiples of 16: pointers (as allocated) and integers."""
        return (*self.pointers, *(n for n, v in self.scalars.items() if v % 16 == 0))

    def _type(self, name: str) -> str:
        if name in self.pointers:
            return _POINTER[self.pointers[name][1]]
        if name in self.constants or self.scalars[name] == 1:
            return "constexpr"
        return "i32" if -LIMIT <= self.scalars[name] < LIMIT else "i64"


@dataclass(frozen=True)
class Plan:
    """The launches of one operator in order, and the working memory between them."""

    launches: tuple[Launch, ...]
    buffers: tuple[Buffer, ...] = ()


@dataclass(frozen=True)
class Options:
    """What a plan depends on beside the problem."""

    arch: str = "sm_90"
    device: str = ""
    """Its name, under which tiles may have been measured."""
    precision: str = "ieee"
    """For float32 products: "ieee", "tf32" or, on NVIDIA, "tf32x3"."""
    activation: int = 0
    """0 none, 1 ReLU, 2 SiLU, 3 GELU; fprop only."""
    bias: bool = True
    config: Config | None = None
    """A tile instead of the table's, for tuning."""
    tiles: tuple[tuple[int, Config], ...] = ()
    """The same for launches of their own for each number of tied axes, which are made then."""


@dataclass(frozen=True)
class Context:
    """Everything that the planners of the passes share.

    `adjoint`: it is that of the adjoint layer, whose input x is the problem's y, and the other way round.
    """

    problem: Problem
    g: Geometry
    layout: tuple[tuple[str, Strides], ...]
    options: Options = field(default_factory=Options)
    adjoint: bool = False

    def of_adjoint(self) -> Context:
        """The same for the adjoint layer, which adds no bias and has no activation."""
        layout = dict(self.layout)
        g, rows, channels, *taps = layout["w"]
        turned = {"x": layout["y"], "y": layout["x"], "w": (g, channels, rows, *taps)}
        options = replace(self.options, bias=False, activation=0)
        return replace(self, g=self.g.adjoint(), layout=tuple(turned.items()), options=options, adjoint=True)

    def tensor(self, name: str) -> str:
        """The problem's name of the layer's input x or output y."""
        return {"x": "y", "y": "x"}[name] if self.adjoint else name

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        return self.problem.dtype

    @property
    def half(self) -> bool:
        """float16 sums are halved at every level, so that they cannot overflow."""
        return self.dtype == torch.float16

    @property
    def accumulator(self) -> torch.dtype:
        """Of sums, and of partial results in memory."""
        return torch.promote_types(self.dtype, torch.float32)

    def strides(self, name: str, prefix: str, keys: str) -> dict[str, int]:
        """Stride arguments of tensor `name`: {prefix}_s{key} for each of `keys`, in order."""
        values = dict(self.layout)[name]
        return {f"{prefix}_s{key}": value for key, value in zip(keys, values)}

    @property
    def product(self) -> str:
        """How values are multiplied, as the tables of tiles name it."""
        return configs.product_of(str(self.dtype)[6:], self.options.precision)

    def config(
        self,
        kernel: str,
        segments: Sequence[Segment],
        sizes: tuple[int, tuple[int, ...], int],
        repeats: int,
        algorithm: str = "fold",
    ) -> Config:
        """The tile for a kernel: asked for, else measured, else that of the model; arguments as in `configs.select`.

        `segments` are those of which the launch knows the ties.
        """
        positions, columns, contraction = sizes
        extents = (positions, max(columns), contraction)
        name = self.g.name_of(kernel)
        order = self.g.order(segments)
        arch, size = self.options.arch, self.dtype.itemsize
        aligned = all(n * size % 16 == 0 for n in (self.g.depth, self.g.filters))
        direct = algorithm == "direct"
        config = self.options.config or dict(self.options.tiles).get(order)
        if config is None and aligned and not direct and len(segments) == 1 and not self.g.sided:
            # Of such layers tiles were measured.
            config = configs.measured(self.options.device, str(self.dtype)[6:], kernel, order, extents)
        if config is not None:
            return configs.fit(config, *extents, arch)
        several = kernel == "dgrad" and not direct and sum(s.order > 0 for s in segments) > 1
        return configs.select(
            name + "_direct" * direct,
            order,
            size,
            arch,
            sizes,
            repeats,
            aligned,
            several,
            self.product,
            len(segments) > 1,
        )
