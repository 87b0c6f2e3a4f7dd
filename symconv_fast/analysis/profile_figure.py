"""The figure of a `SymmetryProfile`: mean kernels as pictures, and symmetry by depth over what chance gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..extras import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .profile import LayerSymmetry, SymmetryProfile

_COLUMNS = 12
"""Pictures in a row."""
_SLICES = 7
"""Slices of a 3-D kernel that are shown side by side; of deeper kernels the middle one alone."""
_NAMES = 30
"""Layers whose names fit below the axis; more have their numbers in the table."""
_LONGEST = 22
"""Letters of a name."""

Numbered = list[tuple[int, "LayerSymmetry"]]


def draw(profile: SymmetryProfile) -> Figure:
    """The figure; layers without a symmetry are left out, and keep their number.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. ValueError: nothing can be shown.
    """
    module = need("matplotlib.figure", "the figure of a symmetry profile")
    shown: Numbered = [(i, layer) for i, layer in enumerate(profile.layers, 1) if layer.symmetry]
    if not shown:
        reasons = ", ".join(sorted({layer.reason for layer in profile.layers}))
        raise ValueError(f"no convolution of {profile.model} has a symmetry to show: {reasons}")
    columns = min(len(shown), _COLUMNS)
    rows = math.ceil(len(shown) / columns)
    figure = module.Figure(figsize=(max(6.5, columns + 0.5), 1.25 * rows + 4.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25 * rows + 0.6, 3.6))
    above.suptitle(
        f"{profile.model}: mean kernels (each on a scale of its own: red above 0, blue below)", fontsize=10
    )
    pictures = above.subplots(rows, columns, squeeze=False).ravel()
    for axes, (number, layer) in zip(pictures, shown):
        _picture(axes, number, layer)
    for axes in pictures[len(shown) :]:
        axes.remove()
    _by_depth(below.subplots(), shown)
    return figure


def _picture(axes: Any, number: int, layer: LayerSymmetry) -> None:
    """A mean kernel: bars (1-D), a square (2-D) or slices side by side (3-D)."""
    assert layer.symmetry is not None
    kernel = layer.symmetry.mean_kernel
    scale = float(np.abs(kernel).max())
    if kernel.ndim == 1:
        colours = np.where(kernel < 0, "tab:blue", "tab:red")
        axes.bar(range(len(kernel)), kernel, width=1.0, color=colours)
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set_ylim(-1.1 * scale, 1.1 * scale)
    else:
        axes.imshow(image(kernel), cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
        axes.set_facecolor("0.4")  # it shows between slices
    axes.set_xticks([])
    axes.set_yticks([])
    star = "*" if layer.strided else ""
    axes.set_title(f"{number}{star}: {layer.symmetry.value:.2f}", fontsize=8, pad=3)


def image(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """A 2-D kernel as it is; of a 3-D one its slices side by side, NaN between them, or the middle one alone."""
    if kernel.ndim == 2:
        return kernel
    depth = len(kernel)
    if depth > _SLICES:
        return kernel[depth // 2]
    gap = np.full((kernel.shape[1], 1), np.nan)
    parts = [part for piece in kernel for part in (gap, piece)]
    return np.concatenate(parts[1:], axis=1)


def _by_depth(axes: Any, shown: Numbered) -> None:
    found = [layer.symmetry for _, layer in shown if layer.symmetry]
    places = np.arange(len(shown))
    edges = np.append(places, len(shown)) - 0.5  # each layer has a step of its own, as kernels differ in size

    def steps(values: list[float]) -> list[float]:
        return [*values, values[-1]]

    low, high = ([getattr(f.null, side) for f in found] for side in ("low", "high"))
    axes.fill_between(
        edges, steps(low), steps(high), step="post", color="0.85", label="90 % of Gaussian kernels"
    )
    axes.step(edges, steps([f.null.mean for f in found]), where="post", color="0.55", label="their mean")
    values = np.array([f.value for f in found])
    axes.plot(places, values, color="tab:red", linewidth=0.8, zorder=2)
    strided = np.array([layer.strided for _, layer in shown])
    for which, marker, size, label in ((~strided, "o", 5, "stride 1"), (strided, "*", 11, "strided")):
        if which.any():
            axes.plot(
                places[which], values[which], marker, color="tab:red", markersize=size, zorder=3, label=label
            )
    axes.set(xlim=(edges[0], edges[-1]), ylim=(min(0.0, *low), 1.03), ylabel="symmetry S of the mean kernel")
    _label_layers(axes, shown)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)


def _label_layers(axes: Any, shown: Numbered) -> None:
    if len(shown) <= _NAMES:
        names = [f"{number}: {_short(layer.name or layer.type)}" for number, layer in shown]
        axes.set_xticks(range(len(shown)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    else:
        every = math.ceil(len(shown) / _NAMES)
        ticks = range(0, len(shown), every)
        axes.set_xticks(ticks, [str(shown[i][0]) for i in ticks], fontsize=8)
        axes.set_xlabel("convolution, as numbered in the table")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
