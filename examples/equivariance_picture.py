# Draws docs/figures/equivariance.png: an image and its mirror image through tied layers, and through equivariant ones.
"""python examples/equivariance_picture.py [FILE]

Two stacks of four layers of pairs with random weights, of the same width. In one each layer is told what a mirror does
to the channels that it reads (input_symmetry="h"), in the other it is not. Of the image and of its mirror image each
gives a map, the mean over its channels. Shown are the map of the image, that of the mirror image mirrored back, and how
far they are apart.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import Tensor, nn

from symconv_fast import SymmetricConv2d

FILE = ROOT / "docs" / "figures" / "equivariance.png"
SIZE, WIDTH, LAYERS = 49, 16, 4
STACKS = {"tied": None, "equivariant": "h"}


def letter(text: str = "R") -> Tensor:
    """A letter without a mirror symmetry, (1, 1, SIZE, SIZE), 1 inside and 0 outside."""
    path = TextPath((0, 0), text, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = path.get_extents()
    grid = np.linspace(-0.2, 1.2, SIZE)
    x, y = np.meshgrid(box.x0 + box.width * grid, box.y1 - box.height * grid)
    inside = path.contains_points(np.stack([x.ravel(), y.ravel()], 1))
    return torch.tensor(inside, dtype=torch.float32).view(1, 1, SIZE, SIZE)


def stack(input_symmetry: str | None) -> nn.Module:
    """Layers of pairs; after the first one they know what a mirror does to their channels, if they are told."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for place in range(LAYERS):
        moves = input_symmetry if place else None
        conv = SymmetricConv2d(
            WIDTH if place else 1, WIDTH, 5, padding=2, symmetry="h", input_symmetry=moves, bias=False
        )
        nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers)


@torch.no_grad()
def maps(image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each stack the map of the image, and that of its mirror image, mirrored back; the largest value is 1."""
    found = {}
    for name, input_symmetry in STACKS.items():
        net = stack(input_symmetry)
        plain, turned = (net(x).mean(1)[0] for x in (image, image.flip(-1)))
        found[name] = (plain / plain.max(), turned.flip(-1) / plain.max())
    return found


def draw(image: Tensor) -> Any:
    """The figure."""
    titles = ("image", "output", "of the mirror image,\nmirrored back", "difference")
    figure, axes = plt.subplots(len(STACKS), len(titles), figsize=(6.4, 3.8))
    for row, (name, (plain, turned)) in zip(axes, maps(image).items(), strict=True):
        apart = (plain - turned).abs()
        for axis, shown in zip(row, (1 - image[0, 0], plain, turned, apart), strict=True):
            axis.imshow(
                shown.numpy(),
                cmap="gray" if axis is row[0] else "viridis",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{name} layers", fontsize=10)
        largest = f"{apart.max().item():.2f}" if apart.max() > 1e-3 else f"{apart.max().item():.0e}"
        row[-1].set_xlabel(f"at most {largest} of the largest", fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


def main() -> None:
    """Write the file that is named, or that of the documentation."""
    path = Path(sys.argv[1]) if sys.argv[1:] else FILE
    figure = draw(letter())
    figure.savefig(
        path, dpi=110, facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True}
    )
    print(f"{path}, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
