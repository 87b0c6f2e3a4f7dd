# A network on DNA in the manner of BPNet that says the same of both strands, since each layer knows the complement.
"""A reverse-complement network: a profile and a count from DNA, one answer whichever strand is read.

    python examples/equivariant_genome.py [--width 64] [--length 1000] [--dilations 8]

The other strand is read backwards, with A for T and C for G. So the mirror of the length comes with an involution of
the four input channels, which is what `input_symmetry=rc_symmetry()` says to the first layer. Its channels are orbits
of two, and all later layers take orbits to orbits. The profile has two channels, one for each strand: of the reverse
complement they come mirrored and exchanged. The count is that of both strands, and does not change.

Sizes are those of BPNet (Avsec and others, 2021): 64 filters of 21, then residual layers of 64 filters of 3 with
dilation 2, 4, up to 512; here up to 256 by default. No layer has a stride, so every length is exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from equivariant_layers import Layers, report
from torch import Tensor, nn

from symconv_fast.nn import check_equivariance, mirror, rc_symmetry

FIRST, PROFILE = 21, 25  # taps of the first layer and of that which makes the profile
DILATIONS = tuple(2**i for i in range(1, 9))


class Dilated(nn.Module):
    """What a dilated convolution finds, added to its input."""

    def __init__(self, layers: Layers, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = layers.conv(width, width, 3, dilation=dilation, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return x + F.relu(self.conv(x))


def trunk(layers: Layers, width: int, dilations: Sequence[int]) -> nn.Sequential:
    """One-hot DNA (N, 4, L) to features (N, width, L): motifs, then what is around them."""
    return nn.Sequential(
        layers.lift(4, width, FIRST, input_symmetry=rc_symmetry("ACGT"), bias=True),
        nn.ReLU(),
        *(Dilated(layers, width, dilation) for dilation in dilations),
    )


class ReverseComplementNet(nn.Module):
    """One-hot DNA (N, 4, L), in the order A, C, G, T, to a profile of both strands (N, 2, L) and a log count (N, 1).

    Args:
        symmetry: "h", or "" for the ordinary network.
        width: channels, both members of each orbit.
        dilations: one for each residual layer.
    """

    def __init__(self, symmetry: str = "h", width: int = 64, dilations: Sequence[int] = DILATIONS) -> None:
        super().__init__()
        layers = Layers(1, symmetry)
        self.trunk = trunk(layers, width, dilations)
        self.profile = layers.conv(width, 2, PROFILE, bias=True)
        self.count = nn.Sequential(
            nn.AdaptiveAvgPool1d(1), layers.pool(), nn.Flatten(), nn.Linear(width // layers.members, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Profile and log count."""
        features = self.trunk(x)
        return self.profile(features), self.count(features)


def one_hot(sequence: str) -> Tensor:
    """(4, L), channels A, C, G, T; other letters are zero."""
    return torch.stack([torch.tensor([float(base == each) for each in sequence]) for base in "ACGT"])


def reverse_complement(x: Tensor) -> Tensor:
    """The other strand of one-hot DNA, (N, 4, L)."""
    return mirror(x, "h", rc_symmetry("ACGT"))


def other_strand(profile: Tensor) -> Tensor:
    """What the profile of the other strand must be: read backwards, with the strands exchanged."""
    return mirror(profile, "h", "h")


def main(given: Sequence[str] | None = None) -> None:
    """Make a small one, and print what it is."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="(default: 64)")
    parser.add_argument("--length", type=int, default=1000, help="of the sequences (default: 1000)")
    parser.add_argument("--dilations", type=int, default=8, help="how many: 2, 4, 8, ... (default: 8)")
    options = parser.parse_args(given)
    torch.manual_seed(0)
    dilations = [2**i for i in range(1, options.dilations + 1)]
    model, ordinary = (ReverseComplementNet(symmetry, options.width, dilations) for symmetry in ("h", ""))
    x = F.one_hot(torch.randint(4, (4, options.length)), 4).mT.float()
    heads = {"profile": (model.profile, "h"), "count": (model.count, None)}
    checks = {
        name: check_equivariance(nn.Sequential(model.trunk, head), x, rc_symmetry(), symmetry, letters="h")
        for name, (head, symmetry) in heads.items()
    }
    title = f"Profile and count from DNA, width {options.width}, dilations {', '.join(map(str, dilations))}"
    report(title, model, ordinary, x, checks)


if __name__ == "__main__":
    main()
