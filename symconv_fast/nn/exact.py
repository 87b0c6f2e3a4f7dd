"""Which padding lets a strided layer commute with a mirror, and how much of a padding it never reads.

Along one axis a layer has `n` positions, padding (p_l, p_r), stride s and windows of extent E = d(K-1) + 1. It has
L = floor((n + p_l + p_r - E) / s) + 1 windows; window i starts at i*s - p_l. The last
r = (n + p_l + p_r - E) mod s positions on the right are in no window. A mirror takes window i to the one that starts at
n - E + p_l - i*s, which is window L-1-i for every i just if p_l = p_r - r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union, cast

from ..checks import ShapeError, ints, is_several

IntOrInts = Union[int, Sequence[int]]
Pair = tuple[int, int]


def is_exact(n: int, kernel: int, stride: int, padding: int | tuple[int, int], dilation: int = 1) -> bool:
    """Does a convolution or pooling with these settings commute with a mirror, whatever its input and its filters?

    It does just if p_l = p_r - ((n + p_l + p_r - d(K-1) - 1) mod s): its first and its last window then lie alike.
    Exact means: layer(mirrored input, mirrored filters) is the mirrored output, but for rounding. (If no tap of any
    window meets the input, the output is constant and commutes too; that is not counted.)

    Args:
        n: size of the input along the axis, in positions, without padding.
        kernel: K, taps along the axis.
        stride: s, positions from window to window.
        padding: positions added on each side, or (left, right).
        dilation: d, positions from tap to tap.

    Raises:
        TypeError: an argument is no integer. ValueError: it is out of range, or no window fits into the padded input.
    """
    pair = _pair(padding)
    return pair[0] == pair[1] - unread(n, kernel, stride, pair, dilation)


def unread(n: int, kernel: int, stride: int, padding: int | tuple[int, int], dilation: int = 1) -> int:
    """Positions at the right end of the padded input that no window reaches: (n + p_l + p_r - d(K-1) - 1) mod s.

    They are padding as far as there is any on the right, then input. Arguments and errors as for `is_exact`.
    """
    n, extent = _one(n, "n"), _extent(kernel, dilation)
    stride = _one(stride, "stride")
    left, right = _pair(padding)
    spare = n + left + right - extent
    if spare < 0:
        raise ShapeError(
            f"n={n} with padding={(left, right)} has no room for kernel={kernel} with dilation={dilation}, which "
            f"extends over {extent}; give n of at least {max(extent - left - right, 1)}"
        )
    return spare % stride


def exact_padding(
    n: IntOrInts, kernel: IntOrInts, stride: IntOrInts, dilation: IntOrInts = 1
) -> Pair | tuple[Pair, ...]:
    """The padding nearest to "same" that makes a strided layer commute with a mirror exactly.

    Nearest to the usual p = (d(K-1) + 1) // 2, which is K // 2 without dilation; of two that are as near, the smaller.
    Both sides come out alike, so that `padding=` of a layer takes it: up to s - 1 more on the right would change
    nothing, as no window reaches it. Windows that lie in the padding alone are not accepted. torch's pooling takes no
    padding beyond K // 2, which with dilation may be less.

    Args:
        n, kernel, stride, dilation: as for `is_exact`, each an int or one for every axis.

    Returns:
        (left, right) if all arguments are ints, else one such pair for every axis, the first axis first.

    Raises:
        ValueError: no padding is exact. At an even stride that is so whenever n and d(K-1) + 1 differ in parity; at
        any other only with padding of d(K-1) + 1 and more, the width of a window. Or a value is out of range.
        TypeError: an argument is no integer.
    """
    given = {"n": n, "kernel": kernel, "stride": stride, "dilation": dilation}
    values = {name: ints(value, name) for name, value in given.items()}
    axes = {len(values[name]) for name in given if is_several(given[name])}
    if not axes:
        return _exact_pair(*(v[0] for v in values.values()))
    if len(axes) > 1 or axes == {0}:
        raise ShapeError(
            f"{given} must be ints or have one int for each of the same axes, such as n=(225, 225)"
        )
    count = axes.pop()
    columns = [v if is_several(given[name]) else v * count for name, v in values.items()]
    return tuple(_exact_pair(*axis) for axis in zip(*columns))


def _exact_pair(n: int, kernel: int, stride: int, dilation: int) -> Pair:
    n, extent = _one(n, "n"), _extent(kernel, dilation)
    stride = _one(stride, "stride")
    usual = extent // 2
    exact = [p for p in range(extent) if n + 2 * p >= extent and (n + 2 * p - extent) % stride == 0]
    if exact:
        nearest = min(exact, key=lambda p: (abs(p - usual), p))
        return nearest, nearest
    settings = f"n={n}, kernel={kernel}, stride={stride}, dilation={dilation}"
    if stride % 2 == 0 and (n - extent) % 2:
        near = " or ".join(f"n={size}" for size in (n - 1, n + 1) if size > 0)
        raise ShapeError(
            f"no padding is exact for {settings}: at an even stride the parity of n must be that of "
            f"dilation * (kernel - 1) + 1 = {extent}; give {near}"
        )
    raise ShapeError(
        f"no padding below {extent}, the extent of a window, is exact for {settings}; "
        f"give n={extent + -(-max(n - extent, 0) // stride) * stride} with padding 0"
    )


def _extent(kernel: int, dilation: int) -> int:
    return _one(dilation, "dilation") * (_one(kernel, "kernel") - 1) + 1


def _one(value: int, name: str) -> int:
    """A single positive integer."""
    values = ints(value, name)
    if len(values) != 1 or values[0] < 1:
        raise ShapeError(f"{name}={value!r} must be a positive int, such as {name}=1")
    return values[0]


def _pair(padding: int | tuple[int, int]) -> Pair:
    values = ints(padding, "padding")
    if len(values) not in (1, 2) or min(values) < 0 or (len(values) == 1 and is_several(padding)):
        raise ShapeError(
            f"padding={padding!r} must be an int of at least 0, or two: (left, right), such as (1, 1)"
        )
    return cast(Pair, values * 2 if len(values) == 1 else values)
