"""How symmetric the mean kernel of a convolution is, beside what chance gives: `kernel_symmetry`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..checks import DtypeError, ShapeError, check_bool
from ..conversion.expand import _compute_weight
from ..modules import still
from ..tables import Report, Table
from .arguments import integer
from .null import SymmetryNull, mirrored_taps, score, symmetry_null, transformations

_LETTERS = "hvz"


@dataclass(frozen=True)
class SymmetryScore:
    """S under one set of transformations, with what chance gives: `value`, `null`, `percentile`."""

    value: float
    null: SymmetryNull

    @property
    def percentile(self) -> float:
        """The percentage of Gaussian kernels of this size that are less symmetric, 0 to 100."""
        return self.null.percentile(self.value)

    def cells(self) -> list[str]:
        """S, the null's mean and spread, and the percentile, as they are shown."""
        return [f"{self.value:.3f}", f"{self.null.mean:.3f} ± {self.null.std:.3f}", percent(self.percentile)]


@dataclass(frozen=True)
class KernelSymmetry(Report):
    """The symmetry of a mean kernel; see `kernel_symmetry`."""

    kernel_size: tuple[int, ...]
    mean_kernel: NDArray[np.float64] = field(repr=False, compare=False)
    """(*K), float64: the mean over filters and input channels."""
    whole: SymmetryScore
    """Under all transformations that keep the shape."""
    axes: dict[str, SymmetryScore] = field(hash=False)
    """Under one mirror alone: "h", "v" and "z", as far as the kernel has more than one tap along them."""

    @property
    def value(self) -> float:
        """S, up to 1 for a kernel that no transformation changes."""
        return self.whole.value

    @property
    def null(self) -> SymmetryNull:
        """What chance gives for S."""
        return self.whole.null

    @property
    def percentile(self) -> float:
        """The percentage of Gaussian kernels of this size that are less symmetric, 0 to 100."""
        return self.whole.percentile

    @property
    def h(self) -> float | None:
        """S under the left to right mirror alone; None where the kernel has one tap along this axis."""
        return self._along("h")

    @property
    def v(self) -> float | None:
        """S under the top to bottom mirror alone; None without this axis or with one tap along it."""
        return self._along("v")

    @property
    def z(self) -> float | None:
        """S under the front to back mirror alone; None without this axis or with one tap along it."""
        return self._along("z")

    def _along(self, letter: str) -> float | None:
        return self.axes[letter].value if letter in self.axes else None

    def table(self) -> Table:
        """S under all transformations, then under each mirror."""
        size = " × ".join(map(str, self.kernel_size))
        rows = [(f"all {self.null.transformations}", self.whole), *self.axes.items()]
        return Table(
            f"symmetry of the mean kernel, {size}",
            ("under|", "S", "by chance", "percentile"),
            [[name, *found.cells()] for name, found in rows],
            [f"by chance: mean ± standard deviation of {len(self.null.samples)} Gaussian kernels"],
        )


def percent(value: float) -> str:
    """A percentile as it is shown; sampling leaves open how near to 0 or 100 those beyond every sample are."""
    return "> 99.9" if value > 99.9 else "< 0.1" if value < 0.1 else f"{value:.1f}"


def kernel_symmetry(
    conv_or_tensor: nn.Module | Tensor,
    *,
    spatial_dims: int | None = None,
    include_identity: bool = False,
    samples: int | None = None,
    seed: int = 0,
) -> KernelSymmetry:
    """How symmetric the mean kernel of a layer is: 1 if no transformation changes it, and what chance would give.

    With K the mean of the kernels over filters and input channels, in float64, and T the transformations that keep its
    shape, except the identity (Alsallakh et al. 2025, "On Symmetries in Convolutional Weights"):

        S(K) = 1 - 1/(2|T|) sum over t in T of ||t(K') - K'||_F    where K' = K / ||K||_F

    T: the flip (1-D), the 7 of D4 (square kernels), the 3 that mirrors make (other 2-D kernels), the 47 of a cube, and
    in general all mirrors and exchanges of axes that keep the shape. For one mirror alone, T is that mirror, and S then
    goes from 0 (odd) to 1 (even). The null is that of Gaussian kernels of this size: `symmetry_null`.

    Tied layers count with their expanded filters. These are symmetric by construction: the mean kernel of a layer that
    is tied as a whole by "h" has h = 1 whatever it has learnt.

    Args:
        conv_or_tensor: a convolution of torch or of this package, transposed ones included, or a tensor of filters
            (out, in, *K).
        spatial_dims: of a tensor, how many of its last dims are K; the mean is taken over all others. None: all but
            the first two. A single kernel (H, W) needs spatial_dims=2.
        include_identity: count the identity, which always adds 0, among T (8 in 2-D): S is nearer to 1 then. It does
            not bear on single mirrors.
        samples: Gaussian kernels of the null; None takes 20 000, and fewer of large kernels.
        seed: of the null's random numbers.

    Raises:
        ValueError: the kernel has a single tap; the mean kernel is 0, up to rounding; a value is NaN or infinite; the
            weight is not there yet (meta device, lazy layers); or dims do not fit.
        TypeError: neither a convolution nor a floating-point tensor; complex and quantised weights.
    """
    check_bool(include_identity, "include_identity")
    mean = _mean_kernel(*_filters(conv_or_tensor, spatial_dims))
    shape, flat = mean.shape, mean.reshape(-1, 1)

    def scored(axis: str | None) -> SymmetryScore:
        identity = include_identity and axis is None
        null = symmetry_null(shape, axis=axis, include_identity=identity, samples=samples, seed=seed)
        sources = (
            transformations(shape) if axis is None else mirrored_taps(shape, 1 << _LETTERS.index(axis))[None]
        )
        return SymmetryScore(float(score(flat, sources, identity)[0]), null)

    axes = [letter for letter, taps in zip(_LETTERS, reversed(shape)) if taps > 1]
    return KernelSymmetry(shape, mean, scored(None), {letter: scored(letter) for letter in axes})


def is_convolution(module: nn.Module) -> bool:
    """Is it a convolution with filters, quantised ones included?"""
    return isinstance(module, nn.modules.conv._ConvNd) or _is_quantised(module)


def _is_quantised(module: nn.Module) -> bool:
    """A convolution of torch.ao's quantised modules: its `weight` is a method."""
    sizes = ("in_channels", "out_channels", "kernel_size")
    # The class is asked, since a parametrization computes a weight that is read, and may change its state.
    return callable(getattr(type(module), "weight", None)) and all(hasattr(module, name) for name in sizes)


def _filters(given: Any, spatial_dims: int | None) -> tuple[Tensor, int]:
    """The tensor of the filters and how many of its last dims are spatial."""
    if isinstance(given, Tensor):
        return given.detach(), _spatial_dims(given, spatial_dims)
    if not isinstance(given, nn.Module) or not is_convolution(given):
        hint = "; symmetry_profile takes whole models" if isinstance(given, nn.Module) else ""
        hint = "; torch.as_tensor makes one" if hasattr(given, "__array__") else hint
        raise TypeError(
            f"kernel_symmetry needs a convolution or a tensor (out, in, *K), got {type(given).__name__}{hint}"
        )
    if spatial_dims is not None:
        raise ValueError(
            f"spatial_dims={spatial_dims!r} is for tensors alone: a layer's kernel_size says it; leave it out"
        )
    if _is_quantised(given):
        raise _refused(
            "quantised", DtypeError, f"{type(given).__name__} is quantised; give the layer it was made from"
        )
    if isinstance(given._parameters.get("weight"), UninitializedParameter):
        message = "the weight has no values yet, since its layer is lazy; run a batch first"
        raise _refused("no values yet", ValueError, message)
    with torch.no_grad():  # a weight with a gradient could not be copied with its layer
        _compute_weight(given)  # type: ignore[arg-type]
    expand = getattr(given, "expanded_weight", None)
    with still(given):
        weight: Any = given.weight if expand is None else expand()
    return weight.detach(), len(given.kernel_size)  # type: ignore[arg-type]


def _spatial_dims(filters: Tensor, spatial_dims: int | None) -> int:
    dims = filters.dim()
    if spatial_dims is None:
        if not 3 <= dims <= 5:
            raise ShapeError(
                f"expected filters (out, in, *K) of 3 to 5 dims, got shape {tuple(filters.shape)}; spatial_dims=2 "
                "says that the last 2 dims of a tensor are the kernel"
            )
        return dims - 2
    return integer(spatial_dims, "spatial_dims", least=1, most=min(dims, 3))


def _mean_kernel(filters: Tensor, spatial: int) -> NDArray[np.float64]:
    """(..., *K) to (*K), or what tells that there is no symmetry to measure."""
    _check_values(filters)
    shape = tuple(filters.shape)
    kernel = shape[len(shape) - spatial :]
    if filters.numel() == 0:
        raise ShapeError(f"expected filters (out, in, *K) with at least one value, got shape {shape}")
    if max(kernel) == 1:
        raise _refused(
            "one tap", ShapeError, f"a kernel of one tap, {kernel}, is always symmetric: nothing to measure"
        )
    wide = filters.cpu().to(torch.float64).reshape(-1, *kernel)
    scale = float(wide.abs().max())
    if not np.isfinite(scale):
        raise _refused(
            "not finite", ValueError, "the filters must be finite, but they hold NaN or infinite values"
        )
    wide = wide / (scale or 1.0)
    mean = wide.mean(0)
    # Independent filters of this size have a mean of norm `expected`; what is left of an exact 0 is their rounding.
    expected = float(wide.norm()) / len(wide)
    if float(mean.norm()) <= 4 * torch.finfo(filters.dtype).eps * expected:
        raise _refused(
            "mean is 0", ValueError, "the mean kernel of the filters is 0: it has no direction to measure"
        )
    return (mean * scale).numpy()


def _check_values(filters: Tensor) -> None:
    if filters.is_quantized:
        raise _refused(
            "quantised", DtypeError, "quantised filters are not supported; give filters.dequantize()"
        )
    if filters.is_complex():
        message = "complex filters are not supported; give one part of them, such as filters.real"
        raise _refused("complex", DtypeError, message)
    if not filters.is_floating_point():
        name = str(filters.dtype)[6:]
        raise _refused(name, DtypeError, f"filters must be floating-point, got {name}; give filters.float()")
    if filters.layout != torch.strided:
        raise ValueError("sparse filters are not supported; give filters.to_dense()")
    if filters.is_meta:
        message = "the filters have no values, since they are on the meta device; give them one with to_empty and load"
        raise _refused("no values yet", ValueError, message)


def _refused(brief: str, cls: type[Exception], message: str) -> Exception:
    """An exception with the word or two that a row of a table has in place of numbers."""
    error = cls(message)
    error.brief = brief  # type: ignore[attr-defined]
    return error
