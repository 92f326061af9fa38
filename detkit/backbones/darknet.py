"""Extraction, the Darknet reference network, Darknet-19, Darknet-53 and the body of YOLOv2-tiny and YOLOv3-tiny.

You Only Look Once (Redmon et al., 2015, arXiv 1506.02640), figure 3, for Extraction; the released tiny-yolo.cfg and
darknet.cfg for the reference network.
YOLO9000: Better, Faster, Stronger (Redmon and Farhadi, 2016, arXiv 1612.08242), table 6, for Darknet-19.
YOLOv3: An Incremental Improvement (Redmon and Farhadi, 2018, arXiv 1804.02767), table 1; the tiny body as in the
released yolov3-tiny.cfg. Maps are named by stride: at stride s a picture of H × W has H/s × W/s cells.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from detkit.backbones.base import Backbone
from detkit.backbones.layers import ConvUnit, SamePool


class Residual(nn.Module):
    """1×1 convolution to half the channels, 3×3 back, and the input added: [B, C, H, W] → [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvUnit(channels, channels // 2, 1)
        self.expand = ConvUnit(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what the two convolutions make of it."""
        out: Tensor = x + self.expand(self.reduce(x))
        return out


class DarknetBackbone(Backbone):
    """A body of Darknet's, whose convolutions are registered in the order of a .weights file."""

    def _give(self, strides: Sequence[int], by_stride: dict[int, int]) -> None:
        """Declare maps of these strides; by_stride: the channels of every map that there is."""
        unknown = set(strides) - set(by_stride)
        if unknown:
            raise ValueError(f"no map of stride {min(unknown)}: this backbone has {', '.join(map(str, by_stride))}")
        self.strides = tuple(sorted(strides))
        self.channels = tuple(by_stride[stride] for stride in self.strides)

    def darknet_layers(self) -> Iterator[ConvUnit]:
        """The convolutions in the order of a .weights file."""
        return (module for module in self.modules() if isinstance(module, ConvUnit))


class Extraction(DarknetBackbone):
    """The 20 convolutions of YOLOv1 that are first trained to classify (the released extraction.cfg).

    Five stages halve the picture each, the first by its stride, the others by 2×2 max-pooling before them. After each
    convolution comes batch norm, as in the released cfgs; the paper has none.
    """

    def __init__(self, strides: Sequence[int] = (32,)) -> None:
        super().__init__()
        stages = (  # kernel and channels of each convolution
            [(7, 64)],
            [(3, 192)],
            [(1, 128), (3, 256), (1, 256), (3, 512)],
            [(1, 256), (3, 512)] * 4 + [(1, 512), (3, 1024)],
            [(1, 512), (3, 1024)] * 2,
        )
        self.stages = nn.ModuleList()
        channels = 3
        for stage in stages:
            layers = nn.Sequential()
            for kernel, width in stage:
                layers.append(ConvUnit(channels, width, kernel, stride=2 if kernel == 7 else 1))
                channels = width
            self.stages.append(layers)
        self.pool = nn.MaxPool2d(2, 2)
        self._give(strides, {2: 64, 4: 192, 8: 512, 16: 1024, 32: 1024})

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = images
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(self.pool(x) if level else x)
            if 2 ** (level + 1) in self.strides:
                maps.append(x)
        return maps


class DarknetReference(DarknetBackbone):
    """The Darknet reference network, the body of Fast YOLO: seven 3×3 convolutions with 2×2 max-pooling between them.

    Sixteen channels that double from one to the next, up to 1024 at stride 64.
    """

    def __init__(self, strides: Sequence[int] = (64,)) -> None:
        super().__init__()
        channels = (3, 16, 32, 64, 128, 256, 512, 1024)
        self.stages = nn.ModuleList(ConvUnit(a, b, 3) for a, b in pairwise(channels))
        self.pool = nn.MaxPool2d(2, 2)
        self._give(strides, {2: 32, 4: 64, 8: 128, 16: 256, 32: 512, 64: 1024})

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = images
        maps = []
        for level, conv in enumerate(self.stages):
            x = conv(self.pool(x) if level else x)
            if 2**level in self.strides:
                maps.append(x)
        return maps


class Darknet19(DarknetBackbone):
    """The 18 convolutions of Darknet-19 (the 19th is the classifier's).

    Six stages of 1, 1, 3, 3, 5, 5 convolutions, 3×3 and 1×1 in turn, with 2×2 max-pooling between them.
    """

    def __init__(self, strides: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        channels = (3, 32, 64, 128, 256, 512, 1024)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvUnit(before, after, 3),
                *(
                    ConvUnit(after, after // 2, 1) if i % 2 == 0 else ConvUnit(after // 2, after, 3)
                    for i in range(more)
                ),
            )
            for (before, after), more in zip(pairwise(channels), (0, 0, 2, 2, 4, 4), strict=True)
        )
        self.pool = nn.MaxPool2d(2, 2)
        self._give(strides, {2: 64, 4: 128, 8: 256, 16: 512, 32: 1024})

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = images
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(self.pool(x) if level else x)
            if 2**level in self.strides:
                maps.append(x)
        return maps


class Darknet53(DarknetBackbone):
    """The 52 convolutions of Darknet-53 (the 53rd layer is the classifier's).

    Five stages halve the picture each, with 1, 2, 8, 8, 4 residual blocks and 64 … 1024 channels.
    """

    def __init__(self, strides: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 32, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvUnit(channels // 2, channels, 3, stride=2), *(Residual(channels) for _ in range(blocks)))
            for channels, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
        )
        self._give(strides, {2: 64, 4: 128, 8: 256, 16: 512, 32: 1024})

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = self.stem(images)
        maps = []
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if 2 ** (level + 1) in self.strides:
                maps.append(x)
        return maps


class TinyDarknet(DarknetBackbone):
    """The body of YOLOv2-tiny and YOLOv3-tiny: seven 3×3 convolutions, each but the last followed by 2×2 max-pooling.

    The map of stride 16 is taken before its pooling; the sixth pooling has stride 1.
    """

    def __init__(self, strides: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        channels = (16, 32, 64, 128, 256, 512)
        self.stages = nn.ModuleList(ConvUnit(a, b, 3) for a, b in zip((3, *channels), channels, strict=False))
        self.pool = nn.MaxPool2d(2, 2)
        self.last = nn.Sequential(SamePool(2), ConvUnit(512, 1024, 3))
        self._give(strides, {2: 32, 4: 64, 8: 128, 16: 256, 32: 1024})

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = images
        maps = []
        for level, conv in enumerate(self.stages):
            x = conv(self.pool(x) if level else x)
            if 0 < level < 5 and 2**level in self.strides:
                maps.append(x)
        return [*maps, self.last(x)] if 32 in self.strides else maps


class DarknetClassifier(nn.Module):
    """A backbone as the classifier that it is first trained as: a 1×1 convolution to C classes, averaged over the map.

    Of Darknet-19 the network of table 6; of Darknet-53, where Darknet averages first, the same function.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.channels[-1], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → scores before the softmax [B, C]."""
        scores: Tensor = self.head(self.backbone(images)[-1])
        return scores.mean((2, 3))

    def darknet_layers(self) -> Iterator[nn.Module]:
        """The convolutions in the order of a .weights file."""
        assert isinstance(self.backbone, DarknetBackbone)
        yield from self.backbone.darknet_layers()
        yield self.head
