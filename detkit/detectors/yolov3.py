"""YOLOv3: An Incremental Improvement (Redmon and Farhadi, 2018, arXiv 1804.02767).

Three maps of a feature pyramid, each cell with A anchors; an anchor says where its box lies (4 numbers), whether there
is an object (1) and, by independent logistic classifiers, which classes it has (C).

Shapes: B pictures of H × W, levels finest first with stride s and h = H/s × w = W/s cells.
  raw    one map [B, A·(5 + C), h, w] per level; channels anchor by anchor: tx, ty, tw, th, objectness, classes.
  boxes  centre = (cell + sigmoid(t_xy)) · s, size = anchor · exp(t_wh), in pixels of the network's input (section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot, softplus

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.layers import ConvUnit
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.errors import DetkitError
from detkit.necks.yolo_fpn import YOLOFPN, Level
from detkit.ops.anchors import cell_corners, shape_iou
from detkit.ops.assign import overlaps_objects
from detkit.ops.boxes import overlap, xyxy_to_cxcywh
from detkit.ops.losses import Objects, last_of_each, learnable, pictures_per_process
from detkit.ops.yolo import cells, yolo_boxes, yolo_candidates
from detkit.structures import Batch, Candidates, Target


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


class YOLOv3LossWeights(Strict):
    """Factors of the terms of the loss."""

    xy: NonNegativeFloat = 1
    wh: NonNegativeFloat = 1
    box: NonNegativeFloat = 1
    object: NonNegativeFloat = 1
    no_object: NonNegativeFloat = 1
    classes: NonNegativeFloat = 1
    imitation: NonNegativeFloat = 1


class YOLOv3Loss(Strict):
    """How the loss departs from the paper, which is the default.

    ignore_iou: a prediction that overlaps an object more is not told that it sees none (0.5 in the paper, 0.7 in the
    released cfgs). box: `squared` errors of the offsets (of a centre's: the cross-entropy less its minimum, whose
    gradient is that of the released code), or 1 − GIoU or CIoU of the boxes. label_smoothing: classes learn ε/2 and
    1 − ε/2 in place of 0 and 1. weights: factors of the terms.
    """

    ignore_iou: float = Field(0.5, ge=0, le=1)
    box: Literal["squared", "giou", "ciou"] = "squared"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    weights: YOLOv3LossWeights = YOLOv3LossWeights()


class YOLOv3Config(Strict):
    """Backbone and levels, finest level first, and the loss."""

    name: Literal["yolov3"] = "yolov3"
    backbone: BackboneConfig
    levels: list[YOLOv3Level] = Field(min_length=1)
    loss: YOLOv3Loss = YOLOv3Loss()

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
        if any(side % self.strides[-1] for side in size_hw):
            raise DetkitError(
                f"preprocess.size: {list(size_hw)} must be multiples of {self.strides[-1]}, the coarsest level's stride"
            )
        self.loss = config.loss
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

    def losses(
        self, batch: Batch, targets: Sequence[Target], teacher: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The loss of section 2, term by term, summed over a picture's cells and averaged over pictures.

        Every object is learned by one anchor of one cell: the anchor, of all levels, whose shape overlaps it most, in
        the cell that holds its centre. That anchor learns the offsets (`xy`, `wh`; or `box`), that there is an object
        (`object`) and its classes (`classes`). All others learn that there is none (`no_object`), but for those whose
        box overlaps an object more than `ignore_iou`. Of two objects that meet at one anchor the later counts.

        teacher: raw maps of another network of the same levels, anchors and classes; `imitation` is then added.
        """
        raw = self(batch.images)
        objects, level, place = self._assign(learnable(targets), [(x.shape[-2], x.shape[-1]) for x in raw])
        terms = dict.fromkeys(
            (*(("xy", "wh") if self.loss.box == "squared" else ("box",)), "object", "no_object", "classes"),
            torch.zeros((), device=batch.images.device),
        )
        for i, (x, stride, anchors) in enumerate(zip(raw, self.strides, self.anchors, strict=True)):
            grid = cells(x, len(anchors)).float()
            picture, row, column, anchor = place[:, level == i]
            learned = torch.zeros(grid.shape[:-1], dtype=torch.bool, device=grid.device)
            learned[picture, row, column, anchor] = True
            silent = ~learned & ~self._overlaps_an_object(grid.detach(), anchors, stride, targets)
            added = {"no_object": softplus(grid[..., 4])[silent].sum()}
            found = grid[picture, row, column, anchor]
            added |= self._object_terms(
                found, objects[level == i], torch.stack([column, row], 1), anchors[anchor], stride, batch
            )
            terms = {name: total + added[name] for name, total in terms.items()}
        if teacher is not None:
            terms["imitation"] = sum(
                (self._imitation(x, other) for x, other in zip(raw, teacher, strict=True)), torch.zeros(())
            )
        pictures = pictures_per_process(len(batch), batch.images.device)
        return {name: getattr(self.loss.weights, name) * total / pictures for name, total in terms.items()}

    def _object_terms(
        self, found: Tensor, objects: Objects, cell: Tensor, anchor: Tensor, stride: int, batch: Batch
    ) -> dict[str, Tensor]:
        """The terms of the anchors [M, 5 + C] that learn an object each; cell [M, 2], anchor [M, 2] pixels."""
        truth = xyxy_to_cxcywh(objects.boxes)
        # Errors of small boxes weigh more: 2 − w·h of the picture, as in the released code.
        weight = 2 - truth[:, 2:].prod(1) / (batch.images.shape[-2] * batch.images.shape[-1])
        if self.loss.box == "squared":
            # The gradient on t_xy is prediction − truth, as in the released code: that of the cross-entropy, less its
            # value at the truth, so that no error is no loss.
            offset = (truth[:, :2] / stride - cell).clamp(0, 1)
            entropy = -torch.xlogy(offset, offset) - torch.xlogy(1 - offset, 1 - offset)
            xy = (binary_cross_entropy_with_logits(found[:, :2], offset, reduction="none") - entropy).sum(1)
            wh = (found[:, 2:4] - (truth[:, 2:] / anchor).log()).square().sum(1) / 2
            terms = {"xy": (weight * xy).sum(), "wh": (weight * wh).sum()}
        else:
            boxes = yolo_boxes(found[:, :4], cell, anchor, anchor.new_tensor([stride, stride]))
            terms = {"box": (weight * (1 - overlap(boxes, objects.boxes, self.loss.box))).sum()}
        classes = one_hot(objects.labels, self.num_classes) * (1 - self.loss.label_smoothing)
        classes = classes + self.loss.label_smoothing / 2
        return terms | {
            "object": softplus(-found[:, 4]).sum(),
            "classes": binary_cross_entropy_with_logits(found[:, 5:], classes, reduction="sum"),
        }

    def _imitation(self, raw: Tensor, teacher: Tensor) -> Tensor:
        """How far a map [B, A·(5 + C), h, w] is from a teacher's.

        The teacher's boxes and classes count by its objectness (Mehta and Ozturk, 2018, arXiv 1805.06361, section 3.2).
        Logistic values learn by cross-entropy, less its least value.
        """
        anchors = raw.shape[1] // (5 + self.num_classes)
        own, other = cells(raw, anchors).float(), cells(teacher, anchors).float()
        truth = other.sigmoid()
        least = binary_cross_entropy_with_logits(other, truth, reduction="none")
        error = binary_cross_entropy_with_logits(own, truth, reduction="none") - least
        size = (own[..., 2:4] - other[..., 2:4]).square() / 2
        seen = error[..., :2].sum(-1) + size.sum(-1) + error[..., 5:].sum(-1)
        return (error[..., 4] + truth[..., 4] * seen).sum()

    @torch.no_grad()
    def _assign(self, objects: Objects, grids: Sequence[tuple[int, int]]) -> tuple[Objects, Tensor, Tensor]:
        """The objects [M] with an anchor to themselves, its level [M] and (picture, row, column, anchor) [4, M]."""
        owner = torch.cat([torch.full_like(a[:, 0], i, dtype=torch.long) for i, a in enumerate(self.anchors)])
        within = torch.cat([torch.arange(len(a), device=a.device) for a in self.anchors])
        best = shape_iou(objects.boxes[:, 2:] - objects.boxes[:, :2], torch.cat(self.anchors)).argmax(1)
        level = owner[best]
        stride = torch.tensor(self.strides, device=level.device)[level]
        size_hw = torch.tensor(grids, device=level.device)[level]
        column, row = ((objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / stride[:, None]).long().unbind(1)
        column, row = column.minimum(size_hw[:, 1] - 1), row.minimum(size_hw[:, 0] - 1)  # a centre on the border
        place = torch.stack([objects.picture, row, column, within[best]])
        last = last_of_each(torch.cat([level[None], place]))
        return objects[last], level[last], place[:, last]

    @torch.no_grad()
    def _overlaps_an_object(self, grid: Tensor, anchors: Tensor, stride: int, targets: Sequence[Target]) -> Tensor:
        """[B, h, w, A]: whether a predicted box overlaps an object, or lies in a crowd, by more than `ignore_iou`."""
        height, width = grid.shape[1:3]
        cell = cell_corners(height, width, grid.device).view(height, width, 1, 2)
        boxes = yolo_boxes(grid[..., :4], cell, anchors, anchors.new_tensor([stride, stride])).flatten(1, 3)
        return overlaps_objects(boxes, targets, self.loss.ignore_iou).view(grid.shape[:-1])

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
