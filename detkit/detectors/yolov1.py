"""You Only Look Once: Unified, Real-Time Object Detection (Redmon et al., 2015, arXiv 1506.02640): YOLOv1.

One network looks at the whole picture once. It divides the picture into S × S cells; the cell that holds an object's
centre is responsible for it. Each cell predicts N boxes with a confidence each (the paper's B), and one set of C class
scores that its boxes share.

Shapes: B pictures of H × W.
  raw    [B, S·S·(C + 5·N)]: all class scores [S, S, C], all confidences [S, S, N], all boxes [S, S, N, 4], which is the
         order of the released code; 7·7·30 numbers for S = 7, N = 2 and the 20 classes of VOC.
  boxes  x, y: the centre, from the corner of its cell in cells; w, h: the square roots of the box's share of the
         picture's width and height (section 2.2).
All outputs are linear: a score is no probability by construction, but learns to be one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import one_hot

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.layers import ACTIVATIONS, ConvUnit, Local
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.errors import DetkitError
from detkit.ops.boxes import overlap, xyxy_to_cxcywh
from detkit.ops.losses import Objects, last_of_each, learnable, pictures_per_process
from detkit.ops.yolo import yolov1_boxes, yolov1_candidates, yolov1_parts
from detkit.structures import Batch, Candidates, Target


class YOLOv1Convolution(Strict):
    """A convolution between backbone and head, with batch norm and leaky activation."""

    channels: PositiveInt
    kernel: Literal[1, 3] = 3
    stride: PositiveInt = 1


class YOLOv1Loss(Strict):
    """The two factors of eq. 3: of the errors of boxes, and of the confidence where there is no object."""

    lambda_coord: NonNegativeFloat = 5
    lambda_noobj: NonNegativeFloat = 0.5


class YOLOv1Config(Strict):
    """Backbone and head; the defaults are the paper's (figure 3), but for the backbone.

    stride: of the backbone's map that the head reads. side: S, the cells along each side of the picture. boxes: the
    boxes that a cell predicts. convolutions: those behind the backbone. local: filters of a 3×3 layer behind them whose
    weights differ from place to place, or none. hidden: widths of the fully connected layers before the last one.
    dropout: before the last one.
    """

    name: Literal["yolov1"] = "yolov1"
    backbone: BackboneConfig
    stride: PositiveInt = 32
    side: PositiveInt = 7
    boxes: PositiveInt = 2
    convolutions: list[YOLOv1Convolution] = Field(
        [YOLOv1Convolution(channels=1024, stride=stride) for stride in (1, 2, 1, 1)]
    )
    local: PositiveInt | None = None
    hidden: list[PositiveInt] = Field([4096])
    dropout: float = Field(0.5, ge=0, lt=1)
    loss: YOLOv1Loss = YOLOv1Loss()


class YOLOv1(Detector):
    """Backbone, convolutions, and connected layers that see the whole picture in every cell."""

    Config = YOLOv1Config

    def __init__(self, config: YOLOv1Config, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        if any(side % config.stride for side in size_hw):
            raise DetkitError(f"preprocess.size: {list(size_hw)} must be multiples of detector.stride {config.stride}")
        self.size_hw, self.side, self.boxes, self.loss = size_hw, config.side, config.boxes, config.loss
        self.backbone = build_backbone(config.backbone, [config.stride], size_hw)
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        (channels,) = self.backbone.channels
        height, width = (side // config.stride for side in size_hw)
        self.neck = nn.Sequential()
        for conv in config.convolutions:
            self.neck.append(ConvUnit(channels, conv.channels, conv.kernel, conv.stride))
            channels, height, width = conv.channels, _strided(height, conv.stride), _strided(width, conv.stride)
        self.head = self._head(config, channels, (height, width))

    def _head(self, config: YOLOv1Config, channels: int, size_hw: tuple[int, int]) -> nn.Sequential:
        """What turns the last map into the vector."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if config.local is not None:
            layers["local"] = Local((config.local, *size_hw), channels, kernel=3, stride=1, padding=1)
            layers["local_activation"] = ACTIVATIONS["leaky"]()
            channels = config.local
        layers["flatten"] = nn.Flatten()
        width = channels * size_hw[0] * size_hw[1]
        for i, hidden in enumerate(config.hidden):
            layers[f"hidden_{i}"] = linear = nn.Linear(width, hidden)
            nn.init.kaiming_normal_(linear.weight, a=0.1)
            layers[f"hidden_{i}_activation"] = ACTIVATIONS["leaky"]()
            width = hidden
        layers["dropout"] = nn.Dropout(config.dropout)
        layers["output"] = nn.Linear(width, self.side**2 * (self.num_classes + 5 * self.boxes))
        return nn.Sequential(layers)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → raw vector [B, S·S·(C + 5·N)]."""
        if images.shape[-2:] != self.size_hw:
            own, other = ("×".join(map(str, size)) for size in (self.size_hw, images.shape[-2:]))
            raise DetkitError(
                f"YOLOv1's connected layers take only pictures of the size they were built for, {own}, got {other}; "
                "leave out augment.multi_scale, and keep preprocess.size and its mode"
            )
        (x,) = self.backbone(self.normalize(images))
        raw: Tensor = self.head(self.neck(x))
        return raw

    def decode(self, raw: Tensor, threshold: float) -> Candidates:
        """Raw vector → boxes whose score, confidence · class score, is above the threshold (eq. 1)."""
        return yolov1_candidates(raw, self.side, self.boxes, self.size_hw, threshold)

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The loss of eq. 3, term by term, summed over a picture's cells and averaged over pictures.

        A cell learns one object, by that of its boxes which overlaps it most. This box learns the offsets (`xy` and
        `sqrt_wh`, times λcoord) and, as its confidence, how much it overlaps (`object`); the cell learns the object's
        class (`classes`). The confidence of all other boxes learns 0 (`no_object`, times λnoobj), but for the cells
        that hold the centre of a crowd or of a difficult object. Of several objects in a cell the last counts.
        """
        classes, confidence, offsets = yolov1_parts(self(batch.images).float(), self.side, self.boxes)
        objects, picture, row, column = self._assign(learnable(targets))
        cell = torch.stack([column, row], 1)
        truth = xyxy_to_cxcywh(objects.boxes) / self._extent(objects.boxes)
        offset = truth[:, :2] * self.side - cell

        found = offsets[picture, row, column]
        responsible, iou = self._responsible(found.detach(), cell, objects)
        box = found[torch.arange(len(found), device=found.device), responsible]
        silent = torch.ones_like(confidence, dtype=torch.bool)
        silent[picture, row, column, responsible] = False
        for i, target in enumerate(targets):
            aside = self._cell(target.boxes[target.crowd | target.difficult])
            silent[i, aside[:, 1], aside[:, 0]] = False

        coord, noobj = self.loss.lambda_coord, self.loss.lambda_noobj
        terms = {
            "xy": coord * (box[:, :2] - offset).square().sum(),
            "sqrt_wh": coord * (box[:, 2:] - truth[:, 2:].sqrt()).square().sum(),
            "object": (confidence[picture, row, column, responsible] - iou).square().sum(),
            "no_object": noobj * confidence[silent].square().sum(),
            "classes": (classes[picture, row, column] - one_hot(objects.labels, self.num_classes)).square().sum(),
        }
        pictures = pictures_per_process(len(batch), batch.images.device)
        return {name: term / pictures for name, term in terms.items()}

    @torch.no_grad()
    def _assign(self, objects: Objects) -> tuple[Objects, Tensor, Tensor, Tensor]:
        """The objects [M] that have a cell to themselves, and its picture, row and column [M] each."""
        column, row = self._cell(objects.boxes).unbind(1)
        # The released code takes the first of a cell's objects, whose order it has shuffled; the paper does not say.
        last = last_of_each(torch.stack([objects.picture, row, column]))
        return objects[last], objects.picture[last], row[last], column[last]

    @torch.no_grad()
    def _responsible(self, offsets: Tensor, cell: Tensor, objects: Objects) -> tuple[Tensor, Tensor]:
        """Which of a cell's boxes [M, N, 4] learns its object [M], and how much it overlaps it [M]."""
        boxes = yolov1_boxes(offsets, cell[:, None], self.side, self.size_hw)
        iou = overlap(boxes, objects.boxes[:, None])
        # Of boxes that do not touch the object, the nearest in x, y, w, h learns, as in the released code
        # (detection_layer.c): the paper does not say which, and the boxes of a new network touch nothing.
        extent = self._extent(boxes)
        distance = (xyxy_to_cxcywh(boxes) - xyxy_to_cxcywh(objects.boxes)[:, None]) / extent
        nearest = distance.square().sum(-1).argmin(1)
        best, most = iou.max(1)
        return torch.where(best > 0, most, nearest), best

    def _cell(self, boxes: Tensor) -> Tensor:
        """Column and row [M, 2] of the cells that hold the centres of boxes [M, 4]."""
        centre = xyxy_to_cxcywh(boxes)[:, :2] / self._extent(boxes)[:2] * self.side
        return centre.long().clamp(0, self.side - 1)  # a centre on the picture's far border

    def _extent(self, like: Tensor) -> Tensor:
        """Width, height, width, height [4] of the picture."""
        height, width = self.size_hw
        return like.new_tensor([width, height, width, height])

    def darknet_layers(self) -> Iterator[nn.Module]:
        """The layers with weights in the order of the released .weights files."""
        backbone = getattr(self.backbone, "darknet_layers", None)
        if backbone is None:
            raise DetkitError(
                f"a Darknet .weights file cannot be loaded: {type(self.backbone).__name__} is not Darknet's"
            )
        yield from backbone()
        yield from self.neck
        yield from (layer for layer in self.head if isinstance(layer, Local | nn.Linear))


def _strided(side: int, stride: int) -> int:
    """What a padded convolution leaves of a side."""
    return (side - 1) // stride + 1
