"""What one operation does along one axis: whether it commutes with a mirror and with shifts, and if not, why.

Sizes and settings decide that, not the filters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import torch

from ..nn.exact import Pair, exact_padding, is_exact, unread

Read = tuple[frozenset[int], int]


def _balanced(n: int, kernel: int, stride: int, left: int, right: int, dilation: int) -> bool:
    """`is_exact`, also for negative padding, which crops."""
    if min(left, right) >= 0:
        return is_exact(n, kernel, stride, (left, right), dilation)
    return left == right - unread(n + left + right, kernel, stride, 0, dilation)


class Axis(ABC):
    """One axis of an operation: `n` positions of the input, without padding, and `out` of the output."""

    n: int
    out: int

    def mirror_fault(self) -> str | None:
        """Why a mirror of the input does not mirror the output, or None if it does, with mirrored filters."""
        return self._mirror_fault()

    def shift_fault(self) -> str | None:
        """The same for a shift by `step` of an input whose ends join, and whose padding is the other end."""
        return self._shift_fault()

    @property
    def step(self) -> Fraction | None:
        """Positions of the input from one position of the output to the next; None if there is just one."""
        return self._step()

    @abstractmethod
    def _mirror_fault(self) -> str | None: ...

    @abstractmethod
    def _shift_fault(self) -> str | None: ...

    @abstractmethod
    def _step(self) -> Fraction | None: ...


@dataclass(frozen=True)
class Windows(Axis):
    """A convolution, pooling or slice with a step: window i starts at i * stride - left."""

    kind: str
    """"convolution", "pooling" (over what is read alone), "average" (over padding too) or "slice"."""
    n: int
    out: int
    kernel: int
    stride: int
    left: int
    right: int
    dilation: int = 1
    ceil_mode: bool = False

    @property
    def extent(self) -> int:
        """Positions from the first tap of a window to its last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def covered(self) -> int:
        """Padding on the right that the last window reaches; negative if it ends before the input does."""
        return (self.out - 1) * self.stride + self.extent - self.n - self.left

    def _step(self) -> Fraction | None:
        return Fraction(self.stride)

    def _mirror_fault(self) -> str | None:
        # `ceil_mode` may add a window that the padding does not fill, or leave out one that starts in the padding.
        right = self.covered if self.ceil_mode else self.right
        if _balanced(self.n, self.kernel, self.stride, self.left, right, self.dilation):
            return None
        if self.kind != "convolution" and self._reads_alike():
            return None
        return self._sentence()

    def _shift_fault(self) -> str | None:
        if self.out * self.stride % self.n == 0:
            return None
        whole = self.n // self.stride * self.stride
        if self.n % self.stride:
            near = " or ".join(str(size) for size in (whole, whole + self.stride) if size)
            return f"{self.n} positions are no multiple of the stride {self.stride}; {near} are"
        return (
            f"{self.n} positions become {self.out} at a stride of {self.stride}, not {self.n // self.stride}"
        )

    def _reads_alike(self) -> bool:
        """Do mirrored windows read mirrored positions, as small inputs allow where padding counts for nothing?"""
        return [self._read(i) for i in range(self.out)] == [
            (frozenset(self.n - 1 - p for p in positions), divisor)
            for positions, divisor in map(self._read, reversed(range(self.out)))
        ]

    def _read(self, window: int) -> Read:
        """Positions of the input that a window meets, and what an average divides by."""
        start = window * self.stride - self.left
        taps = range(start, start + self.extent, self.dilation)
        met = frozenset(p for p in taps if 0 <= p < self.n)
        # Of torch's average pooling: padding counts, but nothing behind it does.
        return met, len([p for p in taps if p < self.n + self.right]) if self.kind == "average" else len(met)

    def _sentence(self) -> str:
        if self.kind == "slice":
            last = self.n - 1 + self.left - (self.out - 1) * self.stride
            return (
                f"a step of {self.stride} starts {-self.left} positions from one end of {self.n} and stops {last} "
                f"from the other; {self._sizes()}"
            )
        padded = f"{self.n} positions"
        if self.left or self.right:
            padded += f" with padding {self.left} and {self.right}"
        if self.ceil_mode and self.covered > self.right:
            # Behind the padding the additional window is empty.
            return (
                f"{padded}: ceil_mode lets the last of the windows of {self.extent}, every {self.stride}, reach "
                f"{self.covered - self.right} beyond; {self._sizes()}"
            )
        spare = self.right - self.covered
        if spare == 0:
            return f"{padded}: the sides differ by {abs(self.left - self.right)}; {self._sizes()}"
        return (
            f"{padded} in windows of {self.extent} every {self.stride} leave {spare} over at the right end alone; "
            f"{self._sizes()}"
        )

    def _sizes(self) -> str:
        """Which change of the layer or of its input would repair it."""
        ways = []
        near = [size for side in (-1, 1) for size in self._exact_sizes(side)]
        if near:
            ways.append(f"{' or '.join(map(str, near))} positions here would do")
        try:
            found = cast(Pair, exact_padding(self.n, self.kernel, self.stride, self.dilation))
        except ValueError:
            found = None
        if found and self.kind != "slice" and (self.kind == "convolution" or found[0] <= self.extent // 2):
            ways.append(f"padding {found[0]} on both sides would do{' too' if near else ''}")
        elif self.left == self.right:
            ways.append("no equal padding would")
        return ", ".join(ways)

    def _exact_sizes(self, side: int) -> list[int]:
        """The nearest size below (-1) or above (1), up to a stride away, that these settings are exact at."""
        for distance in range(1, self.stride + 1):
            n = self.n + side * distance
            fits = n > 0 and n + self.left + self.right >= self.extent
            if fits and _balanced(n, self.kernel, self.stride, self.left, self.right, self.dilation):
                return [n]
        return []


@dataclass(frozen=True)
class Transposed(Axis):
    """A transposed convolution: tap k of position i adds to output i * stride + k * dilation - left."""

    n: int
    out: int
    kernel: int
    stride: int
    left: int
    dilation: int
    output_padding: int

    def _step(self) -> Fraction | None:
        return Fraction(1, self.stride)

    def _mirror_fault(self) -> str | None:
        if self.output_padding == 0:
            return None
        better = "" if (self.dilation * (self.kernel - 1)) % 2 else ", with an even kernel for the same size"
        return (
            f"output_padding={self.output_padding} adds positions at the right end alone; "
            f"output_padding=0 would do{better}"
        )

    def _shift_fault(self) -> str | None:
        if self.out % (self.n * self.stride) == 0:
            return None
        return f"{self.n} positions become {self.out}, not {self.n} * {self.stride}"


@dataclass(frozen=True)
class Adaptive(Axis):
    """Adaptive pooling: window i is floor(i n / out) to ceil((i + 1) n / out), which a mirror takes to out-1-i."""

    n: int
    out: int

    def _step(self) -> Fraction | None:
        return None if self.out == 1 else Fraction(self.n, self.out)

    def _mirror_fault(self) -> str | None:
        return None

    def _shift_fault(self) -> str | None:
        if self.n % self.out == 0:
            return None
        return f"{self.n} positions are no multiple of {self.out}: the windows are of different widths"


@dataclass(frozen=True)
class Resampled(Axis):
    """Interpolation: output i reads around position scale * i, or scale * (i + 1/2) - 1/2."""

    n: int
    out: int
    mode: str
    """"nearest", "nearest-exact", "linear" (in 1 to 3 dims), "cubic" or "antialias"."""
    align_corners: bool
    scale: float | None
    """Positions of the input a position of the output, where a scale factor was given; else n / out is."""

    def _step(self) -> Fraction | None:
        return Fraction(self.n, self.out)

    def _positions(self) -> torch.Tensor:
        """What "nearest" reads. torch computes it in float32, which decides where a position is a whole number."""
        scale = torch.tensor(self.n / self.out if self.scale is None else self.scale, dtype=torch.float32)
        at = torch.arange(self.out, dtype=torch.float32) + (0.5 if self.mode == "nearest-exact" else 0.0)
        return (at * scale).floor().long().clamp(max=self.n - 1)

    def _mirror_fault(self) -> str | None:
        sizes = f"{self.n} positions become {self.out}"
        if self.mode.startswith("nearest"):
            at = self._positions()
            if torch.equal(at.flip(0), self.n - 1 - at):
                return None
            near = " or ".join(str(out) for out in self._multiples())
            return f"{sizes}: the nearest positions lie to one side; {near} of the output would do"
        if self.n == 1 or self._copies():
            return None
        if self.align_corners and self.mode == "antialias":
            return f"{sizes}: antialias with align_corners is off the centre; align_corners=False would do"
        if self.align_corners:
            if self.out > 1:
                return None
            return f"{sizes}: align_corners takes the first position alone; align_corners=False would do"
        if self._fills():
            return None
        return (
            f"{sizes}, which scale factor {self._factor():g} does not give exactly; "
            "size=, or recompute_scale_factor=True, would do"
        )

    def _shift_fault(self) -> str | None:
        sizes = f"{self.n} positions become {self.out}"
        if self.n == 1 or self._copies():
            return None
        if self.align_corners:
            return f"{sizes} with align_corners: positions are {self.n - 1} / {self.out - 1} apart"
        if not self._fills():
            return f"{sizes}, which scale factor {self._factor():g} does not give exactly"
        return None

    def _copies(self) -> bool:
        """torch leaves an input of the size wanted alone, whatever its scale factor, in these modes."""
        return self.n == self.out and (self.mode in ("linear", "antialias") or self.align_corners)

    def _factor(self) -> float:
        return 1 / self.scale if self.scale else self.out / self.n

    def _fills(self) -> bool:
        """Does the scale factor given lead from the whole input to the whole output?"""
        return self.scale is None or math.isclose(self.scale * self.out, self.n, rel_tol=1e-9)

    def _multiples(self) -> list[int]:
        below = self.out // self.n * self.n
        return [size for size in (below, below + self.n) if size]


@dataclass(frozen=True)
class Padded(Axis):
    """Padding that no convolution or pooling reads directly; negative padding crops."""

    n: int
    left: int
    right: int

    @property
    def out(self) -> int:  # type: ignore[override]
        """Positions with the padding."""
        return self.n + self.left + self.right

    def _step(self) -> Fraction | None:
        return Fraction(1)

    def _mirror_fault(self) -> str | None:
        if self.left == self.right:
            return None
        return f"padding {self.left} and {self.right} on {self.n} positions: the sides differ; equal ones would do"

    def _shift_fault(self) -> str | None:
        if self.left == self.right == 0:
            return None
        return f"{self.n} positions become {self.out}" if self.out != self.n else f"crops {self.n} positions"


@dataclass(frozen=True)
class Flattened(Axis):
    """Positions become channels of a linear layer, which is a convolution with a kernel as large as its input."""

    n: int
    out: int = 1

    def _step(self) -> Fraction | None:
        return None

    def _mirror_fault(self) -> str | None:
        return None

    def _shift_fault(self) -> str | None:
        return f"{self.n} positions become channels, which a shift permutes" if self.n > 1 else None
