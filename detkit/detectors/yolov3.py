"""YOLOv3: An Incremental Improvement (Redmon and Farhadi, 2018, arXiv 1804.02767).

Three maps of a feature pyramid, each cell with A anchors; an anchor says where its box lies (4 numbers), whether there
is an object (1) and, by independent logistic classifiers, which classes it has (C).

Shapes: B pictures of H × W, levels finest first with stride s and h = H/s × w = W/s cells.
  raw    one map [B, A·(5 + C), h, w] per level; channels anchor by anchor: tx, ty, tw, th, objectness, classes.
  boxes  centre = (cell + sigmoid(t_xy)) · s, size = anchor · exp(t_wh), in pixels of the network's input (section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.layers import ConvUnit
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.errors import DetkitError
from detkit.necks.yolo_fpn import YOLOFPN, Level
from detkit.ops.yolo import yolo_candidates
from detkit.structures import Candidates


class YOLOv3Level(Strict):
    """One scale: its stride and anchors [w, h] in pixels of the network's input, and the neck's convolutions there.

    width: channels of the 1×1 convolutions (the 3×3 ones have twice as many). depth: convolutions before the level
    branches, odd or 0. spp: spatial pyramid pooling among them (needs a depth of 3 or more).
    """

    stride: PositiveInt
    anchors: list[tuple[PositiveFloat, PositiveFloat]] = Field(min_length=1)
    width: PositiveInt
    depth: int = Field(5, ge=0)
    spp: bool = False


class YOLOv3Config(Strict):
    """Backbone and levels, finest level first."""

    name: Literal["yolov3"] = "yolov3"
    backbone: BackboneConfig
    levels: list[YOLOv3Level] = Field(min_length=1)

    @field_validator("levels")
    @classmethod
    def _finest_first(cls, levels: list[YOLOv3Level]) -> list[YOLOv3Level]:
        strides = [level.stride for level in levels]
        if strides != sorted(set(strides)):
            raise ValueError(f"levels must come finest first, each stride once, got strides {strides}")
        for level in levels:
            if level.depth % 2 == 0 and level.depth > 0:
                raise ValueError(f"depth of stride {level.stride} must be odd or 0, got {level.depth}")
            if level.spp and level.depth < 3:
                raise ValueError(f"spp at stride {level.stride} needs a depth of 3 or more, got {level.depth}")
        if any(level.depth == 0 for level in levels[1:]):
            raise ValueError("only the finest level may have depth 0")
        return levels


class YOLOv3(Detector):
    """Backbone, pyramid with lateral concatenation, and one 1×1 convolution per level as its head."""

    Config = YOLOv3Config

    def __init__(self, config: YOLOv3Config, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        levels = config.levels
        self.strides = [level.stride for level in levels]
        self.backbone = build_backbone(config.backbone, self.strides, size_hw)
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        self.neck = YOLOFPN(
            self.backbone.channels,
            [level.width for level in levels],
            [level.depth for level in levels],
            [level.spp for level in levels],
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(channels, len(level.anchors) * (5 + num_classes), 1)
            for channels, level in zip(self.neck.channels, levels, strict=True)
        )
        for i, level in enumerate(levels):
            self.register_buffer(f"anchors_{i}", torch.tensor(level.anchors), persistent=False)

    @property
    def anchors(self) -> list[Tensor]:
        """[A, 2] width and height in pixels per level, finest first."""
        return [self.get_buffer(f"anchors_{i}") for i in range(len(self.strides))]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → one raw map [B, A·(5 + C), h, w] per level, finest first."""
        maps = self.neck(self.backbone(self.normalize(images)))
        return [head(x) for head, x in zip(self.heads, maps, strict=True)]

    def decode(self, raw: list[Tensor], threshold: float) -> Candidates:
        """Raw maps → boxes whose score, objectness · class probability, is above the threshold."""
        size_hw = raw[0].shape[-2] * self.strides[0], raw[0].shape[-1] * self.strides[0]
        return yolo_candidates(raw, self.anchors, size_hw, threshold)

    def darknet_layers(self) -> Iterator[ConvUnit | nn.Conv2d]:
        """The convolutions in the order of the released .weights files: body, then coarsest level first."""
        backbone = getattr(self.backbone, "darknet_layers", None)
        if backbone is None:
            raise DetkitError(
                f"a Darknet .weights file cannot be loaded: {type(self.backbone).__name__} is not Darknet's"
            )
        yield from backbone()
        for level, head in zip(self.neck.levels, reversed(self.heads), strict=True):
            assert isinstance(level, Level)
            assert isinstance(head, nn.Conv2d)
            yield from (module for module in (*level.chain, level.out) if isinstance(module, ConvUnit))
            yield head
            if level.lateral is not None:
                yield level.lateral
