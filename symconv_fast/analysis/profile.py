"""The symmetry of every convolution of a model, in order: `symmetry_profile`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn

from ..modules import _Symmetric
from ..tables import Report, Table
from .kernels import KernelSymmetry, is_convolution, kernel_symmetry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerSymmetry:
    """One convolution of a model and the symmetry of its mean kernel."""

    name: str
    """As `named_modules` has it; empty where the model is the layer."""
    type: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    tie: str | None
    """What the layer ties, or None where it is not tied. A tie makes filters symmetric by construction."""
    symmetry: KernelSymmetry | None
    """None where there is nothing to measure; `reason` then says why, in a word or two."""
    reason: str = ""

    @property
    def strided(self) -> bool:
        """Does the layer step by more than 1 along any axis?"""
        return max(self.stride) > 1


@dataclass(frozen=True)
class SymmetryProfile(Report):
    """What `symmetry_profile` found: `layers` in order; as a table, `table`, and as a figure, `figure`."""

    model: str
    layers: tuple[LayerSymmetry, ...]

    def table(self) -> Table:
        """A row for each convolution."""
        measured = [layer.symmetry for layer in self.layers if layer.symmetry]
        letters = [letter for letter in "hvz" if any(letter in found.axes for found in measured)]
        tied = any(layer.tie for layer in self.layers)
        columns = [
            "#",
            "name|",
            "type|",
            *["tie|"] * tied,
            "kernel|",
            "stride|",
            "S",
            "by chance",
            "percentile",
        ]
        rows = [self._row(i, layer, letters, tied) for i, layer in enumerate(self.layers, 1)]
        return Table(
            f"symmetry of mean kernels: {self.model}", [*columns, *letters], rows, list(self._notes())
        )

    def _row(self, number: int, layer: LayerSymmetry, letters: list[str], tied: bool) -> list[str]:
        found = layer.symmetry
        row = [str(number), layer.name or "(itself)", layer.type, *[layer.tie or ""] * tied]
        row += [_size(layer.kernel_size), _size(layer.stride) + (" *" if layer.strided else "")]
        if found is None:
            return [*row, "-", layer.reason, "-", *["-"] * len(letters)]
        alone = [f"{found.axes[letter].value:.3f}" if letter in found.axes else "-" for letter in letters]
        return row + found.whole.cells() + alone

    def _notes(self) -> Iterator[str]:
        yield "by chance: mean ± standard deviation over Gaussian kernels of the same size"
        if any(layer.strided for layer in self.layers):
            yield "* strided"
        if any(layer.tie for layer in self.layers):
            yield "a tie makes filters symmetric by construction, whatever was learnt"

    def figure(self) -> Figure:
        """Mean kernels as pictures, and S by depth over what chance gives; strided layers have a star.

        It is a `matplotlib.figure.Figure` of its own: pyplot does not know it, and nothing has to be closed.

        Raises:
            ModuleNotFoundError: matplotlib is not installed. ValueError: no layer has a symmetry to show.
        """
        from .profile_figure import draw

        return draw(self)

    def save(self, path: str | PathLike[str], *, dpi: int = 150) -> None:
        """Write `figure()` to a file; its suffix says the format, such as .png, .svg or .pdf.

        Raises:
            ValueError: matplotlib does not write this format, or as for `figure`. OSError: no such folder.
        """
        self.figure().savefig(path, dpi=dpi)


def symmetry_profile(
    model: nn.Module, *, include_identity: bool = False, samples: int | None = None, seed: int = 0
) -> SymmetryProfile:
    """`kernel_symmetry` of every convolution of a model, beside what chance gives for kernels of the same size.

    Layers come in the order of `model.named_modules()`, in which most models call them; one that is used in several
    places comes once. Layers without anything to measure, such as those of one tap, have a row that says so. Alsallakh
    et al. 2025 ("On Symmetries in Convolutional Weights") found the mean kernels of trained networks to be symmetric,
    except in strided layers, whose padding favours a side.

    Args:
        model: any module; a convolution by itself too.
        include_identity, samples, seed: as for `kernel_symmetry`.

    Raises:
        TypeError: `model` is no module. ValueError: it has no convolution.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"symmetry_profile needs a torch.nn.Module, got {type(model).__name__}; for tensors: kernel_symmetry"
        )
    options = {"include_identity": include_identity, "samples": samples, "seed": seed}
    layers = tuple(_layer(name, m, options) for name, m in model.named_modules() if is_convolution(m))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no convolution; give a model with layers such as nn.Conv2d"
        )
    return SymmetryProfile(type(model).__name__, layers)


def _layer(name: str, conv: Any, options: dict[str, Any]) -> LayerSymmetry:
    found, reason = None, ""
    try:
        found = kernel_symmetry(conv, **options)
    except (ValueError, TypeError) as error:
        reason = getattr(error, "brief", "")
        if not reason:
            raise
    tied = isinstance(conv, _Symmetric) and not conv.ties.holds_filters
    kernel, stride = tuple(conv.kernel_size), tuple(conv.stride)
    tie = str(conv.symmetry).strip("'") if tied else None
    return LayerSymmetry(name, type(conv).__name__, kernel, stride, tie, found, reason)


def _size(sizes: tuple[int, ...]) -> str:
    """(3, 3) as "3 × 3", (2, 2) of a stride likewise."""
    return " × ".join(map(str, sizes))
