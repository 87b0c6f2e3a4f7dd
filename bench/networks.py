# Four well-known networks in plain torch: what bench_models measures, and what is tied in them.
"""ResNet-18, U-Net, VGG-16 and a small 3-D U-Net; convolutions come from `conv`, so that they can be tied.

A factory `conv(cin, cout, kernel, stride=1)` returns a layer with padding `kernel // 2`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import symconv_fast

Factory = Callable[..., nn.Module]
SYMMETRIC = {2: symconv_fast.SymmetricConv2d, 3: symconv_fast.SymmetricConv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def tied(tie: str, ndim: int) -> Factory:
    """Layers with all filters tied by `tie`, wherever that means something: kernels above 1, enough filters."""

    def conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Module:
        eligible = kernel > 1 and cout % 2 ** len(tie) == 0
        symmetry = tie if eligible else None
        return SYMMETRIC[ndim](cin, cout, kernel, stride, kernel // 2, symmetry=symmetry)

    return conv


def ordinary(network: nn.Module) -> nn.Module:
    """Replaces, in place, every symmetric layer by torch's own layer with the same filters."""
    for name, child in list(network.named_children()):
        if isinstance(child, tuple(SYMMETRIC.values())):
            setattr(network, name, child.to_conv())
        else:
            ordinary(child)
    return network


def initialise(network: nn.Module) -> nn.Module:
    """He's initialisation, so that activations keep their size through layers without normalisation."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


class Residual(nn.Module):
    """Two 3 x 3 convolutions and the way around them."""

    def __init__(self, conv: Factory, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(cin, cout, 3, stride), nn.BatchNorm2d(cout), nn.ReLU(),
            conv(cout, cout, 3), nn.BatchNorm2d(cout),
        )  # fmt: skip
        same = cin == cout and stride == 1
        self.around = (
            nn.Identity() if same else nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Input (N, cin, H, W), output (N, cout, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.around(x))


def resnet18(conv: Factory) -> nn.Module:
    """ResNet-18 for 224 x 224 images and 1000 classes."""
    layers = [conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for cout, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(conv, cin, cout, stride), Residual(conv, cout, cout, 1)]
        cin = cout
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def vgg16(conv: Factory) -> nn.Module:
    """VGG-16 for 224 x 224 images and 1000 classes, with its three large linear layers."""
    layers: list[nn.Module] = []
    cin = 3
    for cout, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [conv(cin, cout, 3), nn.ReLU()]
            cin = cout
        layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000))
    return nn.Sequential(*layers, nn.Flatten(), *head)


class UNet(nn.Module):
    """U-Net with batch normalisation and nearest-neighbour upsampling; `widths` from the top to the bottom."""

    def __init__(self, conv: Factory, ndim: int, cin: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()

        def block(channels: int, width: int) -> nn.Module:
            return nn.Sequential(
                conv(channels, width, 3), NORM[ndim](width), nn.ReLU(),
                conv(width, width, 3), NORM[ndim](width), nn.ReLU(),
            )  # fmt: skip

        self.down = nn.ModuleList(block(a, b) for a, b in pairwise((cin, *widths)))
        pairs = list(pairwise(widths))[::-1]
        self.narrow = nn.ModuleList(conv(below, above, 3) for above, below in pairs)
        self.up = nn.ModuleList(block(2 * above, above) for above, _ in pairs)
        self.pool, self.grow = POOL[ndim](2), nn.Upsample(scale_factor=2)
        self.head = conv(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Input (N, cin, *size), output (N, classes, *size); sizes divisible by 2^(levels - 1)."""
        levels = []
        for block in self.down:
            x = block(self.pool(x) if levels else x)
            levels.append(x)
        for narrow, block, level in zip(self.narrow, self.up, levels[-2::-1]):
            x = block(torch.cat((level, narrow(self.grow(x))), 1))
        return self.head(x)


def unet(conv: Factory) -> nn.Module:
    """Five levels from 32 to 512 channels: the published one at half its width."""
    return UNet(conv, 2, 3, 2, (32, 64, 128, 256, 512))


def unet3d(conv: Factory) -> nn.Module:
    """Three levels from 32 to 128 channels."""
    return UNet(conv, 3, 1, 3, (32, 64, 128))
