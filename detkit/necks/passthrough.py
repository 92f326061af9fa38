"""The neck of YOLOv2: 3×3 convolutions on the coarse map, and a passthrough from a finer one before the last of them.

YOLO9000: Better, Faster, Stronger (Redmon and Farhadi, 2016, arXiv 1612.08242), section 2, "Fine-Grained Features", and
section 3, "Training for detection". Shapes: B pictures; the fine map has F channels and 2h × 2w cells, the coarse one
C channels and h × w cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from detkit.backbones.layers import ConvUnit, Reorg


class Passthrough(nn.Module):
    """Lays every 2 × 2 cells of a fine map on one: [B, F, 2h, 2w] → [B, 4·squeeze, h, w], or 4·F without `squeeze`.

    squeeze: channels of a 1×1 convolution before it, 64 in the released cfgs (26×26×512 → 13×13×256); None for the
    paper's form (26×26×512 → 13×13×2048). Which channel a cell goes to is Darknet's [reorg], so that its weights serve.
    """

    def __init__(self, channels: int, squeeze: int | None = 64) -> None:
        super().__init__()
        self.channels = 4 * (squeeze or channels)
        self.squeeze = ConvUnit(channels, squeeze, 1) if squeeze else nn.Identity()
        self.reorg = Reorg(2)

    def forward(self, fine: Tensor) -> Tensor:
        """[B, F, 2h, 2w] → [B, self.channels, h, w]."""
        out: Tensor = self.reorg(self.squeeze(fine))
        return out


class PassthroughNeck(nn.Module):
    """`depth` 3×3 convolutions of `width` channels on the coarse map; before the last one the fine map joins.

    channels: of the fine and the coarse map, or of the coarse one alone: then nothing joins it, as in yolov2-tiny
    (depth 1) and yolo9000.cfg (depth 0). Raises ValueError where a fine map has nowhere to join, at depth 0.
    """

    def __init__(self, channels: tuple[int, ...], width: int = 1024, depth: int = 3, squeeze: int | None = 64) -> None:
        super().__init__()
        *fine, coarse = channels
        if fine and not depth:
            raise ValueError("a fine map joins before the last convolution, but the depth is 0")
        self.passthrough = Passthrough(fine[0], squeeze) if fine else None
        joined = self.passthrough.channels if self.passthrough is not None else 0
        self.coarse = nn.Sequential(*(ConvUnit(width if i else coarse, width, 3) for i in range(depth - 1)))
        self.last = ConvUnit(joined + (width if depth > 1 else coarse), width, 3) if depth else nn.Identity()
        self.channels = width if depth else coarse

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The backbone's maps, finest first → [B, self.channels, h, w]."""
        x = self.coarse(maps[-1])
        if self.passthrough is not None:
            x = torch.cat([self.passthrough(maps[0]), x], 1)
        out: Tensor = self.last(x)
        return out

    def darknet_layers(self) -> Iterator[ConvUnit]:
        """The convolutions in the order of the released .weights files."""
        parts = (self.coarse, self.passthrough, self.last)
        return (unit for part in parts if part is not None for unit in part.modules() if isinstance(unit, ConvUnit))
