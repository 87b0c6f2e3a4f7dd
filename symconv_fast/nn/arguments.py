"""What the layers of this room ask of their arguments and inputs."""

from __future__ import annotations

from torch import Tensor

from ..checks import SUPPORTED_DTYPES, DtypeError, ShapeError, check_is_tensor, ints, is_several
from ..functional import IntOrInts


def per_axis(value: IntOrInts, name: str, ndim: int, *, least: int = 1) -> tuple[int, ...]:
    """An int for each axis. Raises TypeError for what is no int, ShapeError for another number or one below `least`."""
    values = ints(value, name)
    if not is_several(value):
        values = values * ndim
    if len(values) != ndim or min(values, default=least) < least:
        each = f" or {ndim} of them" if ndim > 1 else ""
        raise ShapeError(
            f"{name}={value!r} must be an int of at least {least}{each}, such as {max(least, 2)}"
        )
    return values


def check_images(input: Tensor, ndim: int, layer: str) -> None:
    """Is it (N, C, *S) or (C, *S), floating point, with at least one channel and a value along each axis?

    Raises:
        TypeError: no tensor. DtypeError: another dtype. ShapeError: another number of dims, or empty but for N.
    """
    check_is_tensor(input, "input")
    shape = tuple(input.shape)
    if input.dim() not in (ndim + 1, ndim + 2):
        raise ShapeError(
            f"expected {ndim + 1}-D (unbatched) or {ndim + 2}-D (batched) input to {layer}, "
            f"but got input of shape {shape}"
        )
    if input.dtype not in SUPPORTED_DTYPES or input.is_quantized:
        names = ", ".join(str(dtype)[6:] for dtype in SUPPORTED_DTYPES)
        raise DtypeError(f"dtype {str(input.dtype)[6:]} is not supported; supported dtypes: {names}")
    if shape[-ndim - 1] < 1 or min(shape[-ndim:]) < 1:
        raise ShapeError(
            f"input of shape {shape} is empty; give at least 1 channel, and 1 value along each axis"
        )
