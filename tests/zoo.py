# Small copies of known architectures, as deep as the real ones: what tests convert, permute and analyse.
"""Known architectures in torchvision's style, written here; `width` scales all channels, and is small by default."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)


def conv_bn(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([nn.ReLU6(inplace=True)] if act else []))


# --- ResNet-18 (He et al. 2015) ------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the way around them; `gate` acts on the residual."""

    def __init__(self, cin: int, cout: int, stride: int, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv3x3(cin, cout, stride)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(cout, cout)
        self.bn2 = nn.BatchNorm2d(cout)
        self.gate = gate
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.gate is not None:
            out = self.gate(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, four stages of two blocks, pooled features and a linear classifier."""

    def __init__(
        self,
        width: int = 8,
        num_classes: int = 10,
        in_channels: int = 3,
        gate: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for i, (cin, cout) in enumerate(pairwise(widths)):
            first = BasicBlock(cin, cout, 1 if i == 0 else 2, gate and gate(cout))
            setattr(
                self, f"layer{i + 1}", nn.Sequential(first, BasicBlock(cout, cout, 1, gate and gate(cout)))
            )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(width: int = 8, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """(N, 3, H, W) to (N, num_classes); H and W of 32 are enough."""
    return ResNet(width, num_classes, in_channels)


# --- squeeze and excitation (Hu et al. 2017) -----------------------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """A gate for each channel, of 1x1 convolutions as in torchvision, or of linear layers as published."""

    def __init__(self, channels: int, linear: bool = False) -> None:
        super().__init__()
        hidden = max(channels // 4, 2)
        self.linear = linear
        self.fc1: nn.Module = nn.Linear(channels, hidden) if linear else nn.Conv2d(channels, hidden, 1)
        self.fc2: nn.Module = nn.Linear(hidden, channels) if linear else nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            b, c, _, _ = x.size()
            gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
            return x * gate.view(b, c, 1, 1)
        return torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))) * x


def se_resnet18(width: int = 8, num_classes: int = 10, linear: bool = False) -> nn.Module:
    """ResNet-18 with a gate at the end of each residual."""
    return ResNet(width, num_classes, gate=lambda channels: SqueezeExcitation(channels, linear))


# --- VGG-16 with batch norm (Simonyan and Zisserman 2014) ----------------------------------------------------------


class VGG(nn.Module):
    """13 convolutions in five stages, and three linear layers on the flattened maps."""

    def __init__(self, width: int = 8, num_classes: int = 10, positions: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 3
        for factor, depth in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(depth):
                cout = factor * width
                layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
                cin = cout
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((positions, positions))
        hidden = 8 * width
        self.classifier = nn.Sequential(
            nn.Linear(cin * positions**2, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def vgg16_bn(width: int = 4, num_classes: int = 10) -> nn.Module:
    """(N, 3, H, W) to (N, num_classes); H and W of at least 32."""
    return VGG(width, num_classes)


# --- MobileNetV2 (Sandler et al. 2018) -----------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    """1x1 out, depthwise 3x3, 1x1 back; around it where the shape stays."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        layers = [] if expand == 1 else [conv_bn(cin, hidden, 1)]
        layers += [conv_bn(hidden, hidden, 3, stride, groups=hidden), conv_bn(hidden, cout, 1, act=False)]
        self.conv = nn.Sequential(*layers)
        self.around = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.around else self.conv(x)


class MobileNetV2(nn.Module):
    """17 inverted residuals."""

    SETTING = (
        (1, 4, 1, 1),
        (6, 6, 2, 2),
        (6, 8, 3, 2),
        (6, 16, 4, 2),
        (6, 24, 3, 1),
        (6, 40, 3, 2),
        (6, 80, 1, 1),
    )

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, width, 3, 2)]
        cin = width
        for expand, channels, depth, stride in self.SETTING:
            cout = channels * width // 8
            for i in range(depth):
                layers.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand))
                cin = cout
        layers.append(conv_bn(cin, 16 * width, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16 * width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def mobilenet_v2(width: int = 8, num_classes: int = 10) -> nn.Module:
    """(N, 3, H, W) to (N, num_classes)."""
    return MobileNetV2(width, num_classes)


# --- DenseNet-121 (Huang et al. 2016) ------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    """Norm, relu, 1x1, norm, relu, 3x3, of all that came before."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, cin: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(cin + i * growth, growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet121(
    growth: int = 4, num_classes: int = 10, depths: tuple[int, ...] = (6, 12, 24, 16)
) -> nn.Module:
    """(N, 3, H, W) to (N, num_classes); H and W of at least 32."""
    channels = 2 * growth
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for i, depth in enumerate(depths):
        layers.append(DenseBlock(channels, growth, depth))
        channels += depth * growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        if i + 1 < len(depths):
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, 2)]
            channels //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


# --- U-Net (Ronneberger et al. 2015; Çiçek et al. 2016 in three dimensions) ----------------------------------------


class UNet(nn.Module):
    """Two convolutions a level, transposed convolutions on the way up, skips by concatenation."""

    def __init__(self, ndim: int, width: int, depth: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv, self.up_conv, self.norm, pool = {
            2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d),
            3: (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d, nn.MaxPool3d),
        }[ndim]
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(
            self.twice(cin, cout) for cin, cout in zip([in_channels, *widths], widths[:-1])
        )
        self.pool = pool(2)
        self.bottom = self.twice(widths[-2], widths[-1])
        self.up = nn.ModuleList(self.up_conv(2 * c, c, 2, 2) for c in reversed(widths[:-1]))
        self.merge = nn.ModuleList(self.twice(2 * c, c) for c in reversed(widths[:-1]))
        self.head = self.conv(width, out_channels, 1)

    def twice(self, cin: int, cout: int) -> nn.Sequential:
        norms = [self.norm(cout, affine=True) for _ in range(2)]
        first, second = self.conv(cin, cout, 3, padding=1), self.conv(cout, cout, 3, padding=1)
        return nn.Sequential(first, norms[0], nn.ReLU(True), second, norms[1], nn.LeakyReLU(0.1))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


def unet(width: int = 4, depth: int = 4, in_channels: int = 1, out_channels: int = 2) -> nn.Module:
    """(N, 1, H, W) to (N, 2, H, W); H and W divisible by 2**depth."""
    return UNet(2, width, depth, in_channels, out_channels)


def unet3d(width: int = 4, depth: int = 3, in_channels: int = 1, out_channels: int = 2) -> nn.Module:
    """(N, 1, D, H, W) to (N, 2, D, H, W); D, H and W divisible by 2**depth. Instance norm with weights."""
    return UNet(3, width, depth, in_channels, out_channels)


# --- what torch.fx cannot trace ------------------------------------------------------------------------------------


class ControlFlow(nn.Module):
    """Which branch is taken depends on the data."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.conv2 = conv3x3(width, width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if x.mean() > 0:
            x = self.conv2(x)
        return self.fc(x.mean((2, 3)))


def control_flow(width: int = 4) -> nn.Module:
    """(N, 3, H, W) to (N, 10), by a branch on the values."""
    return ControlFlow(width)


INPUTS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "resnet18": (resnet18, (2, 3, 32, 32)),
    "vgg16_bn": (vgg16_bn, (2, 3, 32, 32)),
    "mobilenet_v2": (mobilenet_v2, (2, 3, 32, 32)),
    "densenet121": (densenet121, (2, 3, 32, 32)),
    "unet": (unet, (2, 1, 16, 16)),
    "unet3d": (unet3d, (2, 1, 16, 16, 16)),
    "se_resnet18": (se_resnet18, (2, 3, 32, 32)),
    "se_resnet18_linear": (lambda **options: se_resnet18(linear=True, **options), (2, 3, 32, 32)),
}
"""Every network that can be traced, with the shape of an input for tests."""


def randomise_norms(model: nn.Module) -> nn.Module:
    """Batch norms and instance norms as if trained: no statistic and no weight is the same for two channels."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return model
