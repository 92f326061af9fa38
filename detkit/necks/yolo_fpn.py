"""The neck of YOLOv3: from coarse to fine, each level sees its own map beside the upsampled level above it.

YOLOv3 (arXiv 1804.02767), section 2.3, and the released cfgs: yolov3 (five convolutions a level), yolov3-spp (spatial
pyramid pooling at the coarsest), yolov3-tiny (one convolution at the coarser of two levels, none at the finer).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.layers import ConvUnit, SamePool


class SpatialPyramidPooling(nn.Module):
    """A map beside its max-poolings over 5, 9 and 13 pixels: [B, C, H, W] → [B, 4·C, H, W], largest window first.

    Pooling over 5 pixels twice is pooling over 9, and three times over 13.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = SamePool(5)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate as the released cfg does: 13, 9, 5, then the map itself."""
        five = self.pool(x)
        nine = self.pool(five)
        return torch.cat([self.pool(nine), nine, five, x], 1)


class Level(nn.Module):
    """One level: a chain of 1×1 (width) and 3×3 (2·width) convolutions, and a last 3×3 before the head.

    depth: convolutions in the chain, odd, or 0 for none. spp: spatial pyramid pooling after the third of them.
    lateral_width: channels of the 1×1 convolution towards the next finer level, or None at the finest.
    """

    def __init__(self, channels: int, width: int, depth: int, spp: bool, lateral_width: int | None) -> None:
        super().__init__()
        chain: list[nn.Module] = []
        for i in range(depth):
            chain.append(ConvUnit(channels, width, 1) if i % 2 == 0 else ConvUnit(channels, 2 * width, 3))
            channels = width if i % 2 == 0 else 2 * width
            if spp and i == 2:
                chain += [SpatialPyramidPooling(), ConvUnit(4 * width, width, 1)]
        self.chain = nn.Sequential(*chain)
        self.out = ConvUnit(channels, 2 * width, 3)
        self.lateral = ConvUnit(channels, lateral_width, 1) if lateral_width else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, C, h, w] → what the head reads [B, 2·width, h, w], and what the next finer level reads, if any."""
        x = self.chain(x)
        return self.out(x), self.lateral(x) if self.lateral is not None else None


class YOLOFPN(nn.Module):
    """Maps of a backbone, finest first, to maps [B, 2·widths[i], h, w] for the heads, finest first.

    channels, widths, depths, spp: one entry per level, finest first.
    """

    def __init__(
        self, channels: Sequence[int], widths: Sequence[int], depths: Sequence[int], spp: Sequence[bool]
    ) -> None:
        super().__init__()
        self.channels = tuple(2 * width for width in widths)
        self.levels = nn.ModuleList()  # coarsest first, as the network runs
        lateral = 0
        for i in reversed(range(len(channels))):
            lateral_width = widths[i - 1] if i else None
            self.levels.append(Level(channels[i] + lateral, widths[i], depths[i], spp[i], lateral_width))
            lateral = lateral_width or 0

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[B, channels[i], h, w] finest first → [B, 2·widths[i], h, w] finest first."""
        outs: list[Tensor] = []
        above: Tensor | None = None
        for level, x in zip(self.levels, reversed(maps), strict=True):
            if above is not None:
                x = torch.cat([F.interpolate(above, size=x.shape[-2:], mode="nearest"), x], 1)
            out, above = level(x)
            outs.append(out)
        return outs[::-1]
