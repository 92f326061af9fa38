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
    """A body of Darknet's: stages, each at another stride, whose convolutions come in the order of a .weights file.

    strides: of the maps wanted. stages: each with its map's stride and channels, finest first; what comes after the
    coarsest map wanted is left out.
    """

    def __init__(self, strides: Sequence[int], stages: Sequence[tuple[int, int, nn.Module]]) -> None:
        super().__init__()
        by_stride = {stride: channels for stride, channels, _ in stages}
        unknown = set(strides) - (set(by_stride) - {1})
        if unknown:
            known = ", ".join(str(stride) for stride in by_stride if stride > 1)
            raise ValueError(f"no map of stride {min(unknown)}: this backbone has {known}")
        self.strides = tuple(sorted(strides))
        self.channels = tuple(by_stride[stride] for stride in self.strides)
        self.stages = nn.ModuleList(stage for stride, _, stage in stages if stride <= self.strides[-1])
        self.stage_strides = tuple(by_stride)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one map per wanted stride, finest first."""
        x = images
        maps = []
        for stage, stride in zip(self.stages, self.stage_strides, strict=False):
            x = stage(x)
            if stride in self.strides:
                maps.append(x)
        return maps

    def darknet_layers(self) -> Iterator[ConvUnit]:
        """The convolutions in the order of a .weights file."""
        return (module for module in self.modules() if isinstance(module, ConvUnit))


def _convolutions(channels: int, layers: Sequence[tuple[int, int]]) -> list[nn.Module]:
    """Convolutions one after the other, by (kernel, channels)."""
    widths = [channels, *(width for _, width in layers)]
    return [ConvUnit(a, b, kernel) for (kernel, _), (a, b) in zip(layers, pairwise(widths), strict=True)]


def _halved(*layers: nn.Module) -> nn.Sequential:
    """What begins with 2×2 max-pooling, which pads an odd side by one as Darknet's does."""
    return nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), *layers)


class Extraction(DarknetBackbone):
    """The 20 convolutions of YOLOv1 that are first trained to classify (the released extraction.cfg).

    Five stages halve the picture each, the first by its stride, the others by 2×2 max-pooling before them. After each
    convolution comes batch norm, as in the released cfgs; the paper has none.
    """

    def __init__(self, strides: Sequence[int] = (32,)) -> None:
        middle = [(1, 128), (3, 256), (1, 256), (3, 512)]
        late = [(1, 256), (3, 512)] * 4 + [(1, 512), (3, 1024)]
        stages = [
            (2, 64, nn.Sequential(ConvUnit(3, 64, 7, stride=2))),
            (4, 192, _halved(ConvUnit(64, 192, 3))),
            (8, 512, _halved(*_convolutions(192, middle))),
            (16, 1024, _halved(*_convolutions(512, late))),
            (32, 1024, _halved(*_convolutions(1024, [(1, 512), (3, 1024)] * 2))),
        ]
        super().__init__(strides, stages)


class DarknetReference(DarknetBackbone):
    """The Darknet reference network, the body of Fast YOLO: seven 3×3 convolutions with 2×2 max-pooling between them.

    Sixteen channels that double from one to the next, up to 1024 at stride 64.
    """

    def __init__(self, strides: Sequence[int] = (64,)) -> None:
        super().__init__(strides, _doubling(1024))


class Darknet19(DarknetBackbone):
    """The 18 convolutions of Darknet-19 (the 19th is the classifier's).

    Six stages of 1, 1, 3, 3, 5, 5 convolutions, 3×3 and 1×1 in turn, with 2×2 max-pooling between them.
    """

    def __init__(self, strides: Sequence[int] = (16, 32)) -> None:
        stages: list[tuple[int, int, nn.Module]] = [(1, 32, nn.Sequential(ConvUnit(3, 32, 3)))]
        for stride, width, pairs in ((2, 64, 0), (4, 128, 1), (8, 256, 1), (16, 512, 2), (32, 1024, 2)):
            layers = [(3, width), *[(1, width // 2), (3, width)] * pairs]
            stages.append((stride, width, _halved(*_convolutions(width // 2, layers))))
        super().__init__(strides, stages)


class Darknet53(DarknetBackbone):
    """The 52 convolutions of Darknet-53 (the 53rd layer is the classifier's).

    Five stages halve the picture each, with 1, 2, 8, 8, 4 residual blocks and 64 … 1024 channels.
    """

    def __init__(self, strides: Sequence[int] = (8, 16, 32)) -> None:
        stages: list[tuple[int, int, nn.Module]] = [(1, 32, nn.Sequential(ConvUnit(3, 32, 3)))]
        for stride, width, blocks in ((2, 64, 1), (4, 128, 2), (8, 256, 8), (16, 512, 8), (32, 1024, 4)):
            down = ConvUnit(width // 2, width, 3, stride=2)
            stages.append((stride, width, nn.Sequential(down, *(Residual(width) for _ in range(blocks)))))
        super().__init__(strides, stages)


class TinyDarknet(DarknetBackbone):
    """The body of YOLOv2-tiny and YOLOv3-tiny: seven 3×3 convolutions, each but the last followed by 2×2 max-pooling.

    The map of stride 16 is taken before its pooling; the sixth pooling has stride 1.
    """

    def __init__(self, strides: Sequence[int] = (16, 32)) -> None:
        *stages, (stride, channels, last) = _doubling(512)
        last = nn.Sequential(*last, SamePool(2), ConvUnit(channels, 1024, 3))
        super().__init__(strides, [*stages, (stride, 1024, last)])


def _doubling(most: int) -> list[tuple[int, int, nn.Sequential]]:
    """Stages of one 3×3 convolution each, from 16 channels to the most, with 2×2 max-pooling between them."""
    stages = [(1, 16, nn.Sequential(ConvUnit(3, 16, 3)))]
    while (width := 2 * stages[-1][1]) <= most:
        stages.append((width // 16, width, _halved(ConvUnit(width // 2, width, 3))))
    return stages
