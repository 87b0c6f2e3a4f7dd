"""Symmetry by chance: which transformations keep a kernel's shape, and the symmetry of Gaussian kernels under them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from ..checks import ShapeError, check_bool, ints
from ..ties import mirrored_dims
from .arguments import axis_mask, integer

_MOST_SAMPLES, _FEWEST_SAMPLES = 20_000, 1_000
_GATHERED = 1 << 28
"""Values that sampling may gather: about a second. Kernels of many taps, whose spread is small, get fewer samples."""
_AT_ONCE = 1 << 16
"""Values of one block of samples, which fits into a cache."""


@dataclass(frozen=True)
class SymmetryNull:
    """The symmetry S of kernels of independent Gaussian values, the null distribution of `kernel_symmetry`.

    A mean over many independent filters is such a kernel, so this is what a layer has before it is trained.
    """

    kernel_size: tuple[int, ...]
    transformations: int
    """|T|: how many transformations S is the mean over."""
    mean: float
    std: float
    low: float
    """5 % of the kernels are below it."""
    high: float
    """5 % of the kernels are above it."""
    lower_bound: float
    """No kernel of whatever size is below it: 1 - sqrt(2 (n + 1) / n) / 2 for n transformations beside the identity."""
    samples: NDArray[np.float64] = field(repr=False, compare=False)
    """S of each sampled kernel, ascending."""

    def percentile(self, value: float) -> float:
        """The percentage of Gaussian kernels that are less symmetric than `value`; equal ones count half."""
        below = int(np.searchsorted(self.samples, value, "left"))
        not_above = int(np.searchsorted(self.samples, value, "right"))
        return 50.0 * (below + not_above) / len(self.samples)

    def __str__(self) -> str:
        """The distribution in one line."""
        size = " × ".join(map(str, self.kernel_size))
        return f"Gaussian {size} kernels: {self.mean:.3f} ± {self.std:.3f}, 90 % in {self.low:.3f} to {self.high:.3f}"


def symmetry_null(
    kernel_size: int | tuple[int, ...],
    *,
    axis: str | None = None,
    include_identity: bool = False,
    samples: int | None = None,
    seed: int = 0,
) -> SymmetryNull:
    """The distribution of S over Gaussian kernels, by seeded sampling; remembered for each set of arguments.

    Args:
        kernel_size: taps along each of 1 to 3 axes.
        axis: letters of a mirror, "h", "v" or "z" or several, which is then the only transformation; None takes all
            that keep the shape.
        include_identity: count the identity among the transformations.
        samples: how many kernels; None takes 20 000, and fewer of large kernels.
        seed: of the random numbers, which are drawn apart from those of torch.

    Raises:
        ValueError: `kernel_size` has no or more than 3 axes, or a single tap; or `axis` is none of the kernel's, or
            has one tap. TypeError: an argument is of another type.
    """
    shape = ints(kernel_size, "kernel_size")
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ShapeError(f"kernel_size={kernel_size!r} must be 1 to 3 positive ints, such as (3, 3)")
    samples = None if samples is None else integer(samples, "samples", least=2)
    seed = integer(seed, "seed", least=0)
    mask = None if axis is None else axis_mask(axis, len(shape))
    return _null(shape, mask, check_bool(include_identity, "include_identity"), samples, seed)


@lru_cache(maxsize=256)
def _null(
    shape: tuple[int, ...], mask: int | None, identity: bool, samples: int | None, seed: int
) -> SymmetryNull:
    sources = transformations(shape) if mask is None else mirrored_taps(shape, mask)[None]
    taps = sources.shape[1]
    count = samples or min(max(_GATHERED // sources.size, _FEWEST_SAMPLES), _MOST_SAMPLES)
    random = np.random.default_rng(seed)
    scores = np.empty(count)
    step = max(1, _AT_ONCE // taps)
    for start in range(0, count, step):
        block = random.standard_normal((taps, min(step, count - start)))
        scores[start : start + step] = score(block, sources, identity)
    scores.sort()
    scores.flags.writeable = False
    moved = len(sources)
    total = moved + identity
    return SymmetryNull(
        kernel_size=shape,
        transformations=total,
        mean=float(scores.mean()),
        std=float(scores.std()),
        low=float(np.quantile(scores, 0.05)),
        high=float(np.quantile(scores, 0.95)),
        lower_bound=1 - math.sqrt(2 * moved * (moved + 1)) / (2 * total),
        samples=scores,
    )


def score(
    kernels: NDArray[np.float64], sources: NDArray[np.intp], identity: bool = False
) -> NDArray[np.float64]:
    """S of each column of `kernels` (taps, n), none of which is 0, under the transformations K -> K[sources[i]]."""
    unit = kernels / np.abs(kernels).max(0)  # squares of these neither overflow nor vanish
    unit /= np.sqrt(np.square(unit).sum(0))
    distances = np.zeros(kernels.shape[1])
    for source in sources:
        distances += np.sqrt(np.square(unit[source] - unit).sum(0))
    return 1 - distances / (2 * (len(sources) + identity))


@lru_cache(maxsize=256)
def transformations(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """(|T|, taps): where each tap comes from, for every transformation of a kernel of `shape` except the identity.

    These are mirrors, exchanges of axes with as many taps, and what they make together, such as rotations: the flip
    (1-D), the 7 of D4 (square), the 3 of mirrors alone (other 2-D), the 47 of a cube. Transformations that move every
    tap to the same place count once, so that (1, 3) has the one of (3,).

    Raises:
        ValueError: the kernel has a single tap, so that there are none.
    """
    taps = np.arange(math.prod(shape)).reshape(shape)
    found: dict[bytes, NDArray[np.intp]] = {}
    for order in permutations(range(len(shape))):
        if tuple(shape[axis] for axis in order) != shape:
            continue
        for mirrored in product((False, True), repeat=len(shape)):
            axes = tuple(axis for axis, yes in enumerate(mirrored) if yes)
            moved = np.flip(taps.transpose(order), axes).ravel()
            found.setdefault(moved.tobytes(), moved)
    del found[taps.tobytes()]
    if not found:
        raise ShapeError(f"a kernel of one tap, {shape}, is always symmetric: there is nothing to measure")
    return np.stack(list(found.values()))


def mirrored_taps(shape: tuple[int, ...], mask: int) -> NDArray[np.intp]:
    """(taps,): where each tap comes from when a kernel is mirrored along the axes of `mask`.

    Raises:
        ValueError: the kernel has one tap along all of these axes, so that nothing moves.
    """
    axes = mirrored_dims(mask)
    if all(shape[axis] == 1 for axis in axes):
        raise ShapeError(f"a kernel {shape} has one tap along this axis: there is nothing to mirror")
    return np.flip(np.arange(math.prod(shape)).reshape(shape), axes).ravel()
