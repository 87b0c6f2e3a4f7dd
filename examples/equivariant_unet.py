# A 3-D U-Net whose segmentation comes mirrored where the volume is, along all three axes.
"""A mirror-equivariant 3-D U-Net: mirror the volume along any axis, and its segmentation comes mirrored.

    python examples/equivariant_unet.py [--symmetry hvz] [--width 16] [--size 16] [--depth 2]

With "hvz" the channels are orbits of eight, and each filter is stored once for its eight mirror images. Encoder,
transposed convolutions and decoder take orbits to orbits. At the end the mean of each orbit is left, and a 1 x 1 x 1
convolution gives each position its classes.

Maxima over windows of two, and transposed convolutions of two taps, keep mirrors if the windows fill the axis. So sizes
are multiples of 2 to the depth, and others are refused. What comes over from the encoder is joined orbit by orbit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from equivariant_layers import Layers, report
from torch import Tensor, nn

from symconv_fast.nn import check_equivariance


class UNet3d(nn.Module):
    """(N, channels, D, H, W) to (N, classes, D, H, W); the axes are multiples of 2 to the depth.

    Args:
        symmetry: "h", "hv" or "hvz"; "" for the ordinary network.
        width: channels at full size, members of orbits included: a multiple of 8 for "hvz". Each halving doubles them.
        depth: how often sizes are halved.
        channels: of the volume.
        classes: numbers that each position gets.
    """

    def __init__(
        self, symmetry: str = "hvz", width: int = 16, depth: int = 2, channels: int = 1, classes: int = 2
    ) -> None:
        super().__init__()
        self.layers = layers = Layers(3, symmetry)
        widths = [width * 2**level for level in range(depth + 1)]
        first = _twice(layers, layers.lift(channels, width, 3), width)
        deeper = (_twice(layers, layers.conv(w // 2, w, 3), w) for w in widths[1:])
        self.encoder = nn.ModuleList([first, *deeper])
        self.halve = nn.MaxPool3d(2)
        self.enlarge = nn.ModuleList(layers.double(2 * w, w) for w in widths[:-1])
        self.decoder = nn.ModuleList(_twice(layers, layers.conv(2 * w, w, 3), w) for w in widths[:-1])
        self.head = nn.Sequential(layers.pool(), nn.Conv3d(width // layers.members, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        unit = 2 ** len(self.enlarge)
        if any(size % unit for size in x.shape[2:]):
            raise ValueError(
                f"sizes {tuple(x.shape[2:])} must be multiples of {unit}, so that halves are whole"
            )
        kept = [x := self.encoder[0](x)]
        for stage in self.encoder[1:]:
            kept.append(x := stage(self.halve(x)))
        for level in reversed(range(len(self.enlarge))):
            x = self.decoder[level](self.layers.join(kept[level], self.enlarge[level](x)))
        return self.head(x)


def _twice(layers: Layers, first: nn.Module, width: int) -> nn.Sequential:
    """A convolution, and another one, each with batch norm and ReLU."""
    second = layers.conv(width, width, 3)
    return nn.Sequential(first, layers.norm(width), nn.ReLU(), second, layers.norm(width), nn.ReLU())


def main(given: Sequence[str] | None = None) -> None:
    """Make a small one, and print what it is."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--symmetry", choices=("h", "hv", "hvz"), default="hvz", help="(default: hvz)")
    parser.add_argument("--width", type=int, default=16, help="(default: 16)")
    parser.add_argument("--size", type=int, default=16, help="of each axis (default: 16)")
    parser.add_argument("--depth", type=int, default=2, help="how often sizes are halved (default: 2)")
    options = parser.parse_args(given)
    torch.manual_seed(0)
    model, ordinary = (UNet3d(tie, options.width, options.depth) for tie in (options.symmetry, ""))
    x = torch.randn(1, 1, *[options.size] * 3)
    checks = {"segmentation": check_equivariance(model, x, letters=options.symmetry)}
    report(f"3-D U-Net, symmetry {options.symmetry!r}, width {options.width}", model, ordinary, x, checks)


if __name__ == "__main__":
    main()
