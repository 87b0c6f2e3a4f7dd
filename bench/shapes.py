# The layers that are measured, as data: convolutions of well-known networks, and the sets that the runs use.
"""Shapes of the benchmark. `64@56` is 64 channels in and out on a 56 x 56 map, 3 x 3 kernel, padding K // 2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One convolution.

    Attributes:
        model: the network it comes from.
        channels: input channels.
        spatial: size of the map, outermost dimension first (L, H x W or D x H x W).
        filters: output channels. None: as many as `channels`; for a depthwise layer |G| times as many, because
            only filters that read the same channel can be tied.
        kernel: taps along every dimension, or one number for all.
        stride, dilation: the same along every dimension.
        pad: the padding, or None for what keeps the size of the map at stride 1 with odd kernels.
        depthwise: groups = channels.
        group_width: input channels of a group of a layer that is grouped otherwise; 0: one group.
        batch, gpu_batch: images a call on a CPU and on a GPU.
        cpu: fits into a CPU run.
        small: so small that the call itself takes the time.
        network: one of `NETWORK_LAYERS`, which are apart in every table.
    """

    model: str
    channels: int
    spatial: tuple[int, ...]
    filters: int | None = None
    kernel: int | tuple[int, ...] = 3
    stride: int = 1
    dilation: int = 1
    pad: int | None = None
    depthwise: bool = False
    group_width: int = 0
    batch: int = 1
    gpu_batch: int = 1
    cpu: bool = True
    small: bool = False
    network: bool = False

    @property
    def ties(self) -> tuple[str, ...]:
        """The ties that are measured for this number of dimensions."""
        return {1: ("h",), 2: ("h", "v", "hv"), 3: ("h", "hv", "hvz")}[len(self.spatial)]

    @property
    def family(self) -> str:
        """What the report keeps apart: "small", "network", "depthwise", or the number of dimensions, as "2-D"."""
        if self.network:
            return "network"
        if self.small:
            return "small"
        return "depthwise" if self.depthwise else f"{len(self.spatial)}-D"

    def on(self, device: str) -> Shape:
        """The same layer with the batch of a device ("cpu" or "cuda")."""
        return replace(self, batch=self.gpu_batch) if device == "cuda" else self

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps along every dimension."""
        return (self.kernel,) * len(self.spatial) if isinstance(self.kernel, int) else self.kernel

    @property
    def padding(self) -> tuple[int, ...]:
        """`pad`, or the padding that keeps the size of the map at stride 1 for odd kernels."""
        same = tuple(self.dilation * (k // 2) for k in self.taps)
        return same if self.pad is None else (self.pad,) * len(self.spatial)

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        width = 1 if self.depthwise else self.group_width
        return self.channels // width if width else 1

    def out_channels(self, orbit: int) -> int:
        """Number of filters of a layer whose ties have `orbit` members."""
        if self.filters is not None:
            return self.filters
        return self.channels * orbit if self.depthwise else self.channels

    @property
    def name(self) -> str:
        """Short name, such as `4x64@56` or `1x3>64@224 k7 s2`."""
        size = str(self.spatial[0])
        if len(set(self.spatial)) > 1:
            size = "x".join(map(str, self.spatial))
        elif len(self.spatial) == 3:
            size += "^3"
        text = f"{self.batch}x{self.channels}"
        if self.filters is not None and self.filters != self.channels:
            text += f">{self.filters}"
        text += f"@{'L' if len(self.spatial) == 1 else ''}{size}"
        kernel = self.kernel if isinstance(self.kernel, int) else "x".join(map(str, self.kernel))
        text += f" k{kernel}" if self.kernel != 3 else ""
        text += f" s{self.stride}" if self.stride != 1 else ""
        text += f" d{self.dilation}" if self.dilation != 1 else ""
        text += f" p{self.pad}" if self.pad is not None else ""
        text += f" groups of {self.group_width}" if self.group_width else ""
        return text + (" depthwise" if self.depthwise else "")


def _square(
    model: str, sizes: str, *, gpu_batch: int, cpu: bool = True, batch: int = 1, **rest: int
) -> list[Shape]:
    """Shapes from a list such as "64@56 64>128@112"."""
    shapes = []
    for text in sizes.split():
        filters, size = text.split("@")
        channels, _, out = filters.partition(">")
        shape = Shape(model, int(channels), (int(size), int(size)), int(out) if out else None, **rest)
        shapes.append(replace(shape, gpu_batch=gpu_batch, batch=batch, cpu=cpu))
    return shapes


def _cubes(sizes: str, cpu: bool = True, batch: int = 1) -> list[Shape]:
    """3-D shapes of nnU-Net from a list such as "64@64"."""
    flat = _square("nnU-Net 3-D", sizes, gpu_batch=2, cpu=cpu, batch=batch)
    return [replace(shape, spatial=shape.spatial[:1] * 3) for shape in flat]


RESNET = [
    *_square("ResNet", "64@56 128@28 256@14 512@7", gpu_batch=256, batch=4),
    *_square("ResNet", "128@56 256@28 512@14", gpu_batch=256, batch=4, stride=2),
    *_square("ResNet", "3>64@224", gpu_batch=256, kernel=7, stride=2),
]
VGG = [
    *_square("VGG-16", "64@224 64>128@112 128@112 256@56 256>512@28 512@28 512@14", gpu_batch=64),
    *_square("VGG-16", "3>64@224", gpu_batch=64),
]
UNET = [
    *_square("U-Net", "512@64 1024@32 1024>512@64", gpu_batch=4),
    *_square("U-Net", "64@512 128@256 256@128 128>64@512", gpu_batch=4, cpu=False),
]
DIFFUSION = [
    *_square("SD", "320@64 640@32 1280@16 2560>1280@16", gpu_batch=8),
    *_square("SDXL", "320@128 640@64 1280@32", gpu_batch=4, cpu=False),
    *_square("VAE decoder", "512@128 512@256 256@512 128@1024", gpu_batch=1, cpu=False),
]
DEPTHWISE = [
    *_square("ConvNeXt", "96@56 192@28 384@14 768@7", gpu_batch=256, kernel=7, depthwise=True),
    *_square("RepLKNet", "128@56", gpu_batch=64, kernel=31, depthwise=True),
    *_square("RepLKNet", "1024@7", gpu_batch=64, kernel=13, depthwise=True),
]
VOLUMES = [*_cubes("128@32 256@16 320@8"), *_cubes("32@128 64@64 64>32@128", cpu=False)]
SEQUENCES = [
    Shape("1-D", 128, (202,), 384, batch=4, gpu_batch=256),
    Shape("SincNet", 1, (3200,), 80, kernel=251, batch=4, gpu_batch=256),
    Shape("DNA", 4, (1000,), 64, kernel=15, batch=4, gpu_batch=256),
    Shape("DNA", 4, (1000,), 64, kernel=25, batch=4, gpu_batch=256),
]

# Weights decide here, not maps: what preparing them costs shows.
WEIGHT_BOUND = [
    *_square("ResNet", "512@7", gpu_batch=256, batch=4),
    *_square("ResNet", "512@7 1024@7", gpu_batch=256),
]
# Octuples of 4, 8, 16, 32 and 40 rows of weight. Two images where torch's convolution of one does without oneDNN: a
# ratio to its slow kernel would flatter.
OCTUPLES = [*_cubes("32@32 128@16 256@16"), *_cubes("64@16 320@8", batch=2)]
# The mean of a run is over these 2-D layers: layers where arithmetic decides.
MEAN = [
    *_square("ResNet", "64@56 128@28 256@14", gpu_batch=256, batch=4),
    *_square("VGG-16", "128@112 256@56", gpu_batch=64),
]
# Folding does not pay here: three input channels, and a map so small that the weights decide.
FALLBACK = [
    *_square("VGG-16", "3>64@224", gpu_batch=64),
    *_square("ResNet", "512@7", gpu_batch=256),
]
DEFAULT = [*MEAN, *FALLBACK]
# A few of each kind, for a look at every dimension.
QUICK = [
    *_square("ResNet", "128@28 256@14", gpu_batch=256, batch=4),
    *_square("VGG-16", "512@28", gpu_batch=64),
    *_square("VGG-16", "3>64@224", gpu_batch=64),
    *_square("U-Net", "64@128", gpu_batch=4),
    *_square("SD", "320@64", gpu_batch=8),
    *_cubes("64@16", batch=2),
    *_square("ConvNeXt", "192@28", gpu_batch=256, kernel=7, depthwise=True),
]
# The time of a call decides here. The first ones are what call overhead is read from.
SMALL = [
    *_square("tiny", "8@8", gpu_batch=1, small=True),
    *_square("digits", "1>16@28 16@14 32@8", gpu_batch=1, small=True),
    *_square("CIFAR", "16@32 32@16 64@8", gpu_batch=4, batch=4, small=True),
    Shape("tiny", 8, (64,), small=True),
    Shape("tiny", 8, (8, 8, 8), small=True),
]


@dataclass(frozen=True)
class Kind:
    """Layers of real networks of one kind, apart from 3 x 3 layers of many channels: other sizes of them behave alike.

    Attributes:
        name: for the table.
        tie: what is measured.
        shapes: the first one is that of a well-known network.
        passes: of `bench.case.Case.direction`.
        input_tie: what mirrors do to the input channels, as `bench.case.Case.input_tie`.
    """

    name: str
    tie: str
    shapes: tuple[Shape, ...]
    passes: tuple[str, ...] = ("fwd", "step")
    input_tie: str = ""


def _kind(name: str, tie: str, *some: Shape, **rest: tuple[str, ...]) -> Kind:
    return Kind(name, tie, tuple(replace(shape, model=name, network=True) for shape in some), **rest)


def _map(channels: int, size: int, filters: int | None = None, ndim: int = 2, **rest: object) -> Shape:
    return Shape("", channels, (size,) * ndim, filters, **rest)  # type: ignore[arg-type]


NETWORK_LAYERS = [
    _kind("3-D stem", "hvz", _map(1, 64, 64, 3, kernel=7, stride=2), _map(3, 48, 32, 3, kernel=5, stride=2),
          _map(1, 96, 32, 3, kernel=7, stride=2)),
    _kind("patches", "hv", _map(3, 224, 768, kernel=16, stride=16, pad=0),
          _map(3, 224, 96, kernel=4, stride=4, pad=0, batch=4), _map(3, 224, 384, kernel=14, stride=14, pad=0)),
    _kind("1-D, far taps", "h", _map(64, 1000, ndim=1, dilation=256, batch=4),
          _map(64, 1000, ndim=1, dilation=256), _map(128, 4000, ndim=1, dilation=512)),
    _kind("groups of few", "h", _map(128, 56, group_width=4), _map(256, 28, group_width=8, batch=4),
          _map(128, 56, group_width=4, stride=2, batch=4)),
    _kind("even taps, stride 2", "h", _map(3, 320, 32, kernel=6, stride=2, pad=2),
          _map(3, 128, 64, kernel=4, stride=2, pad=1, batch=8), _map(64, 64, 128, kernel=4, stride=2, pad=1)),
    _kind("few channels, many images", "h", _map(16, 32, batch=128), _map(32, 16, batch=128),
          _map(16, 56, batch=16)),
    _kind("digits, 5×5", "hv", _map(1, 28, 32, kernel=5, batch=256), _map(1, 32, 8, kernel=5, pad=0, batch=256),
          _map(3, 32, 32, kernel=5, batch=128)),
    _kind("3-D, large maps", "hvz", _map(32, 64, ndim=3), _map(16, 96, ndim=3), _map(64, 32, ndim=3)),
    _kind("3-D, stride 2", "hvz", _map(64, 32, ndim=3, stride=2), _map(32, 64, 64, 3, stride=2),
          _map(16, 64, 32, 3, stride=2)),
    _kind("2-D, far taps", "h", _map(512, 33, 256, dilation=6), _map(512, 33, 256, dilation=18),
          _map(256, 65, dilation=12)),
    _kind("one tap on the tied axis", "h", _map(64, 56, 256, kernel=1, batch=4), _map(128, 28, kernel=(3, 1), batch=4),
          _map(128, 1000, ndim=1, kernel=1)),
    _kind("odd gradients", "h", _map(64, 56, batch=4), _map(128, 28, batch=4), _map(256, 14, batch=4),
          passes=("step_of_sum", "step_contiguous")),
]  # fmt: skip


def _both(name: str, tie: str, some: Iterable[Shape], input_tie: str = "") -> Kind:
    return Kind(name, tie, tuple(some), ("fwd", "dgrad", "wgrad", "step"), input_tie)


_128_AT_28 = replace(_map(128, 28, batch=4, gpu_batch=256), model="ResNet")
_ISOTROPIC = _square("ConvNeXt-iso", "384@14 96@56", gpu_batch=256, kernel=7, depthwise=True)
_SINC = Shape("SincNet", 1, (3200,), 80, kernel=251, pad=0, batch=128, gpu_batch=128)
_MOTIFS = Shape("BPNet", 4, (1000,), 64, kernel=21, batch=32, gpu_batch=32)
_DILATED = Shape("BPNet", 64, (1000,), batch=32, gpu_batch=32)
# Layers of equivariant networks: tied on both sides, of self-symmetric filters, or with the complement of DNA.
EQUIVARIANT = [
    _both("orbits to orbits", "h", MEAN, "h"),
    _both("orbits to orbits", "hv", MEAN, "hv"),
    _both("orbits to orbits", "hvz", [*_cubes("128@16"), *_cubes("64@16", batch=2)], "hvz"),
    _both("even 3×3", "h+", [_128_AT_28]),
    _both("odd 3×3", "h-", [_128_AT_28]),
    _both("even 5×5", "h+", [replace(_128_AT_28, kernel=5)]),
    _both("even depthwise 7×7", "h+", _ISOTROPIC),
    _both("even, 251 taps", "h+", [_SINC]),
    _both("DNA, first layer", "h", [_MOTIFS], "rc"),
    _both("DNA, later layers", "h", [replace(_DILATED, dilation=2**i) for i in range(1, 9)], "h"),
]
# What a rehearsal runs in place of all others.
REHEARSAL = [Shape("rehearsal", 16, (5, 6)), Shape("rehearsal", 4, (5, 6), depthwise=True)]
REHEARSAL_EQUIVARIANT = [_both("rehearsal", "h", REHEARSAL[:1], "h"), _both("rehearsal", "h+", REHEARSAL[:1])]

ALL = list(
    dict.fromkeys(
        [*RESNET, *VGG, *UNET, *DIFFUSION, *DEPTHWISE, *VOLUMES, *SEQUENCES, *WEIGHT_BOUND, *OCTUPLES, *QUICK]
    )
)
