"""YOLO9000: Better, Faster, Stronger (Redmon and Farhadi, 2016, arXiv 1612.08242), sections 2 and 3: YOLOv2.

One map of stride 32, each of its cells with A anchors; an anchor says where its box lies (4 numbers), how sure it is
that there is an object, times how well its box fits (1), and, by a softmax, which class it has (C).

Shapes: B pictures of H × W, h = H/32 × w = W/32 cells.
  raw    [B, A·(5 + C), h, w]; channels anchor by anchor: tx, ty, tw, th, to, classes.
  boxes  centre = (cell + sigmoid(t_xy)) · 32, size = anchor · exp(t_wh), in pixels of the network's input
         ("Direct location prediction"); Pr(object) · IoU = sigmoid(t_o).

Training at several sizes, 320 … 608 in steps of 32, is the configs' `augment.multi_scale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from detkit.backbones import BackboneConfig, build_backbone
from detkit.backbones.layers import ConvUnit
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.errors import DetkitError
from detkit.necks.passthrough import PassthroughNeck
from detkit.ops.anchors import cell_corners, cells_reached, shape_iou
from detkit.ops.assign import overlaps_objects
from detkit.ops.boxes import overlap, xyxy_to_cxcywh
from detkit.ops.losses import (
    Objects,
    labelled,
    last_of_each,
    learnable,
    pictures_of_all_processes,
    pictures_per_process,
)
from detkit.ops.yolo import cells, yolo_boxes, yolo_candidates
from detkit.structures import Batch, Candidates, Target

STRIDE = 32


class YOLOv2Neck(Strict):
    """What stands between backbone and head: `depth` 3×3 convolutions of `width` channels.

    passthrough: the map of stride 16 joins before the last of them, through a 1×1 convolution to `squeeze` channels as
    in the released cfgs, or as it is, which is the paper's form, where `squeeze` is null.
    """

    depth: NonNegativeInt = 3
    width: PositiveInt = 1024
    passthrough: bool = True
    squeeze: int | None = Field(64, gt=0, multiple_of=4)

    @model_validator(mode="after")
    def _passthrough_has_its_place(self) -> YOLOv2Neck:
        if self.passthrough and not self.depth:
            raise ValueError("passthrough joins before the last convolution and needs a depth of 1 or more, got 0")
        return self


class YOLOv2LossWeights(Strict):
    """Factors of the terms of the loss, by default those of the released cfgs."""

    coords: NonNegativeFloat = 1
    object: NonNegativeFloat = 5
    no_object: NonNegativeFloat = 1
    classes: NonNegativeFloat = 1
    prior: NonNegativeFloat = 0.01


class YOLOv2Loss(Strict):
    """The loss of the released program (region_layer.c), which the paper leaves to YOLOv1's.

    ignore_iou: a prediction that overlaps an object more is not told that it sees none. rescore: the one that learns an
    object learns the IoU of its box with it as objectness, else 1. weigh_small: coordinates count 2 − w·h of the
    picture, as in later versions of the program; neither the paper nor a released cfg asks for it. prior_pictures: how
    many pictures of the training pull all other boxes towards their anchors.
    """

    ignore_iou: float = Field(0.6, ge=0, le=1)
    rescore: bool = True
    weigh_small: bool = False
    prior_pictures: NonNegativeInt = 12_800
    weights: YOLOv2LossWeights = YOLOv2LossWeights()


class YOLOv2Config(Strict):
    """Backbone, neck, anchors [w, h] in pixels of the network's input, and the loss."""

    name: Literal["yolov2"] = "yolov2"
    backbone: BackboneConfig
    anchors: list[tuple[PositiveFloat, PositiveFloat]] = Field(min_length=1)
    neck: YOLOv2Neck = YOLOv2Neck()
    loss: YOLOv2Loss = YOLOv2Loss()


class YOLOv2(Detector):
    """Backbone, neck with passthrough, and one 1×1 convolution as its head.

    seen: how many pictures it has learned from, over all processes and runs; a .weights file counts them too.
    """

    Config: ClassVar[type[Strict]] = YOLOv2Config
    anchors: Tensor
    seen: Tensor

    def __init__(self, config: YOLOv2Config, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        if any(side % STRIDE for side in size_hw):
            raise DetkitError(f"preprocess.size: {list(size_hw)} must be multiples of {STRIDE}, the stride of the map")
        self.loss = config.loss
        self.backbone = build_backbone(config.backbone, (16, 32) if config.neck.passthrough else (32,), size_hw)
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        try:
            self.neck = PassthroughNeck(
                self.backbone.channels, config.neck.width, config.neck.depth, config.neck.squeeze
            )
        except ValueError as error:
            raise DetkitError(f"neck: {error}") from None
        self.head = nn.Conv2d(self.neck.channels, len(config.anchors) * (5 + num_classes), 1)
        self.register_buffer("anchors", torch.tensor(config.anchors), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → the raw map [B, A·(5 + C), h, w]."""
        raw: Tensor = self.head(self.neck(self.backbone(self.normalize(images))))
        return raw

    def decode(self, raw: Tensor, threshold: float) -> Candidates:
        """Raw map → boxes whose score, objectness · class probability, is above the threshold."""
        size_hw = raw.shape[2] * STRIDE, raw.shape[3] * STRIDE
        return yolo_candidates([raw], [self.anchors], size_hw, threshold, softmax=True)

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The loss, term by term, summed over a picture's cells and averaged over pictures; errors count half squared.

        Every object is learned by one anchor of the cell that holds its centre: the one whose shape overlaps it most.
        That anchor learns the box (`coords`), how well its own box fits (`object`) and the class (`classes`). All
        others learn that there is nothing (`no_object`), but for those whose box overlaps an object more than
        `ignore_iou`; and at the beginning of a training that their box is the anchor in the middle of its cell
        (`prior`). Of two objects that meet at one anchor the later counts.
        """
        grid = cells(self(batch.images), len(self.anchors)).float()
        pictures = pictures_per_process(len(batch), grid.device)
        terms = self._terms(grid, targets)
        if self.training:
            self.seen += pictures_of_all_processes(len(batch), grid.device).long()
        return {name: getattr(self.loss.weights, name) * total / pictures for name, total in terms.items()}

    def _terms(self, grid: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The terms' sums over all pictures, of a map viewed as [B, h, w, A, 5 + C]."""
        _, height, width, _, _ = grid.shape
        boxes = self._boxes(grid.detach())
        objects, place = self._assign(learnable(targets), height, width)
        learned = torch.zeros(grid.shape[:-1], dtype=torch.bool, device=grid.device)
        learned[place.unbind()] = True
        near = overlaps_objects(boxes.flatten(1, 3), targets, self.loss.ignore_iou).view_as(learned)

        found, objectness = grid[place.unbind()], grid[..., 4].sigmoid()
        truth = xyxy_to_cxcywh(objects.boxes)
        _, row, column, anchor = place
        offset = (truth[:, :2] / STRIDE - torch.stack([column, row], 1)).clamp(0, 1)
        shape = (truth[:, 2:] / self.anchors[anchor]).log()
        weight = 2 - truth[:, 2:].prod(1) / (height * width * STRIDE**2) if self.loss.weigh_small else 1
        fit = overlap(boxes[place.unbind()], objects.boxes) if self.loss.rescore else torch.ones_like(truth[:, 0])

        # Where an object is somewhere, what is a box and what is nothing is unknown.
        unknown = labelled(targets)
        reached = cells_reached(unknown.boxes, height, width, STRIDE).float()
        others = ~learned & (grid.new_zeros(grid.shape[:3]).index_add(0, unknown.picture, reached) == 0)[..., None]
        young = self.seen < self.loss.prior_pictures
        return {
            "coords": (weight * _half_squared(_offset_and_shape(found), torch.cat([offset, shape], 1))).sum(),
            "object": _half_squared(objectness[place.unbind()][:, None], fit[:, None]).sum(),
            "no_object": objectness[others & ~near].square().sum() / 2,
            "classes": self._class_errors(found[:, 5:], objects.labels).sum(),
            "prior": young * _half_squared(_offset_and_shape(grid[others]), grid.new_tensor([0.5, 0.5, 0, 0])).sum(),
        }

    def _class_errors(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The error of class scores [M, C] before the softmax for labels [M]: [M]."""
        # The released program's gradient, probability − truth, is that of the cross-entropy.
        return cross_entropy(scores, labels, reduction="none")

    def _boxes(self, grid: Tensor) -> Tensor:
        """The boxes [B, h, w, A, 4] that a map predicts."""
        _, height, width, _, _ = grid.shape
        cell = cell_corners(height, width, grid.device).view(height, width, 1, 2)
        return yolo_boxes(grid[..., :4], cell, self.anchors, grid.new_tensor([STRIDE, STRIDE]))

    @torch.no_grad()
    def _assign(self, objects: Objects, height: int, width: int) -> tuple[Objects, Tensor]:
        """The objects [M] with an anchor to themselves, and their (picture, row, column, anchor) [4, M]."""
        best = shape_iou(objects.boxes[:, 2:] - objects.boxes[:, :2], self.anchors).argmax(1)
        column, row = ((objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / STRIDE).long().unbind(1)
        column, row = column.clamp(max=width - 1), row.clamp(max=height - 1)  # a centre on the border
        place = torch.stack([objects.picture, row, column, best])
        last = last_of_each(place)
        return objects[last], place[:, last]

    def darknet_layers(self) -> Iterator[ConvUnit | nn.Conv2d]:
        """The convolutions in the order of the released .weights files: body, neck, head."""
        backbone = getattr(self.backbone, "darknet_layers", None)
        if backbone is None:
            raise DetkitError(
                f"a Darknet .weights file cannot be loaded: {type(self.backbone).__name__} is not Darknet's"
            )
        yield from backbone()
        yield from self.neck.darknet_layers()
        yield self.head


def _offset_and_shape(t: Tensor) -> Tensor:
    """What is learned of a box: sigmoid(tx), sigmoid(ty), tw, th, [..., 4]."""
    return torch.cat([t[..., :2].sigmoid(), t[..., 2:4]], -1)


def _half_squared(found: Tensor, truth: Tensor) -> Tensor:
    """Half the squared error of [..., D], summed over D; its gradient is the error, as in the released program."""
    return (found - truth).square().sum(-1) / 2
