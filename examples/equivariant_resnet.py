# ResNet-18 whose answer no mirror changes: every convolution is tied, and keeps the mirrors for the next one.
"""A mirror-equivariant ResNet-18: mirrored images get the same answer, whatever was learnt.

    python examples/equivariant_resnet.py [--symmetry hv] [--width 16] [--size 33]

The first layer lifts an image to orbits of channels, all others take orbits to orbits, the strided ones and the 1 x 1
shortcuts too. Batch norm has one statistic for each orbit. At the end the mean over positions and over each orbit is
left, which no mirror changes, and a linear layer reads it.

Five layers have stride 2, all with an odd kernel of K taps and padding (K - 1) / 2. On n positions such a layer looks
at positions 0, 2, 4 and so on. In the mirror image these are n - 1, n - 3, ...: the same ones if n is odd, and the
others if n is even. It leaves (n + 1) / 2. So n is odd five times over if the image has 32 m + 1 rows and columns: 33,
65, ..., 225 (113, 57, 29, 15 and 8 positions follow), and not 224. On any other size the network runs, and is
equivariant but for its strides: --size 35 names the layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from equivariant_layers import Layers, report
from torch import Tensor, nn

from symconv_fast.nn import check_equivariance

STRIDED = 5  # layers with stride 2


class Block(nn.Module):
    """Two convolutions 3 x 3 and the way around them, which is a convolution 1 x 1 where sizes change."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, outputs, 3, stride=stride)
        self.norm1 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs, 3)
        self.norm2 = layers.norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                layers.conv(inputs, outputs, 1, stride=stride), layers.norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """(N, 3, H, W) to (N, classes), the same for an image and its mirror images if H and W are 32 m + 1.

    Args:
        symmetry: "h" or "hv"; "" for the ordinary network.
        width: channels of the first stage, members of orbits included; a multiple of 2 for "h" and of 4 for "hv".
        classes: numbers that are returned.
        channels: of the image.
    """

    def __init__(self, symmetry: str = "hv", width: int = 64, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers = Layers(2, symmetry)
        self.conv = layers.lift(channels, width, 7, stride=2)
        self.norm = layers.norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        blocks: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(pairwise((width, width, 2 * width, 4 * width, 8 * width))):
            blocks += Block(layers, inputs, outputs, 2 if stage else 1), Block(layers, outputs, outputs, 1)
        self.blocks = nn.Sequential(*blocks)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.pool = layers.pool()
        self.linear = nn.Linear(8 * width // layers.members, classes)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x = self.maxpool(F.relu(self.norm(self.conv(x))))
        return self.linear(self.pool(self.average(self.blocks(x))).flatten(1))


def is_exact(size: int) -> bool:
    """Do all strides meet an image of this many rows or columns alike from both sides?"""
    return size % 2**STRIDED == 1


def main(given: Sequence[str] | None = None) -> None:
    """Make a small one, and print what it is."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--symmetry", choices=("h", "hv"), default="hv", help="(default: hv)")
    parser.add_argument("--width", type=int, default=16, help="(default: 16)")
    parser.add_argument("--size", type=int, default=33, help="rows and columns (default: 33)")
    options = parser.parse_args(given)
    torch.manual_seed(0)
    model, ordinary = (ResNet18(symmetry, options.width) for symmetry in (options.symmetry, ""))
    x = torch.randn(4, 3, options.size, options.size)
    checks = {"classes": check_equivariance(model, x[:1], letters=options.symmetry)}
    report(f"ResNet-18, symmetry {options.symmetry!r}, width {options.width}", model, ordinary, x, checks)


if __name__ == "__main__":
    main()
