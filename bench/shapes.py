# The layers that are measured, as data: convolutions of well-known networks, and the sets that the runs use.
"""Shapes of the benchmark. `64@56` is 64 channels in and out on a 56 x 56 map, 3 x 3 kernel, padding K // 2."""

from __future__ import annotations

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
        kernel, stride: the same along every dimension.
        depthwise: groups = channels.
        batch, gpu_batch: images a call on a CPU and on a GPU.
        cpu: fits into a CPU run.
        small: so small that the call itself takes the time.
    """

    model: str
    channels: int
    spatial: tuple[int, ...]
    filters: int | None = None
    kernel: int = 3
    stride: int = 1
    depthwise: bool = False
    batch: int = 1
    gpu_batch: int = 1
    cpu: bool = True
    small: bool = False

    @property
    def ties(self) -> tuple[str, ...]:
        """The ties that are measured for this number of dimensions."""
        return {1: ("h",), 2: ("h", "v", "hv"), 3: ("h", "hv", "hvz")}[len(self.spatial)]

    @property
    def family(self) -> str:
        """What the report keeps apart: "small", "depthwise", or the number of dimensions ("1-D", "2-D", "3-D")."""
        if self.small:
            return "small"
        return "depthwise" if self.depthwise else f"{len(self.spatial)}-D"

    def on(self, device: str) -> Shape:
        """The same layer with the batch of a device ("cpu" or "cuda")."""
        return replace(self, batch=self.gpu_batch) if device == "cuda" else self

    @property
    def padding(self) -> int:
        """Padding that keeps the size of the map at stride 1 for odd kernels."""
        return self.kernel // 2

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return self.channels if self.depthwise else 1

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
        text += f" k{self.kernel}" if self.kernel != 3 else ""
        text += f" s{self.stride}" if self.stride != 1 else ""
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
# What a rehearsal runs in place of all others.
REHEARSAL = [Shape("rehearsal", 16, (5, 6)), Shape("rehearsal", 4, (5, 6), depthwise=True)]

ALL = list(
    dict.fromkeys(
        [*RESNET, *VGG, *UNET, *DIFFUSION, *DEPTHWISE, *VOLUMES, *SEQUENCES, *WEIGHT_BOUND, *OCTUPLES, *QUICK]
    )
)
