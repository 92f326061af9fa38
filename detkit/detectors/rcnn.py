"""R-CNN: rich feature hierarchies for accurate object detection (Girshick et al., 2013, arXiv 1311.2524).

Each proposal, a box from outside the network, is cut out of the picture with some of what surrounds it, warped to the
size of a classifier's input, and classified; a regression for each class moves the box.

The paper trains a linear SVM for each class, and ridge regressions, on features of the fine-tuned network. Both are
left out: they exist because its softmax was fine-tuned with loose positives and random negatives (appendix B), and they
need the features of all regions on disk. Here softmax and regression are layers that learn with the network, by
the multi-task loss that followed: Fast R-CNN found both to be as good without the stages (sections 5.1 and 5.4).

Shapes: B pictures of H × W with P proposals each (padded), R regions of all pictures together, crops of S × S pixels,
C classes. The background is class C, the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones import BackboneConfig, build_backbone
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.detectors.fast_rcnn import (
    RoILoss,
    RoIOutputs,
    canvas_limits,
    given_proposals,
    multi_task_loss,
    region_candidates,
    sample_regions,
)
from detkit.errors import DetkitError
from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.structures import Batch, Candidates, Target


class RCNNConfig(Strict):
    """The network that sees crops, how these are made, and the loss.

    stride: of the backbone's map that is averaged; crop: S, a multiple of it. context: pixels of the crop on each side
    that show what surrounds the box (appendix A). batch: crops that go through the network at once outside training.
    delta_weights: factors of the box deltas x, y, w, h, which bring them to about unit variance. loss: 128 regions for
    two pictures, of which 32 overlap an object by 0.5 or more and the others by less (section 2.3).
    """

    name: Literal["rcnn"] = "rcnn"
    backbone: BackboneConfig
    stride: PositiveInt = 32
    crop: PositiveInt = 224
    context: int = Field(16, ge=0)
    batch: PositiveInt = 256
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10, 10, 5, 5)
    loss: RoILoss = RoILoss(background_iou=(0, 0.5))

    @model_validator(mode="after")
    def _crop_holds_box_and_context(self) -> RCNNConfig:
        if self.crop <= 2 * self.context:
            raise ValueError(f"crop {self.crop} leaves nothing between a context of {self.context} on each side")
        return self


class RCNN(Detector):
    """A classifier of crops, with a box for each class."""

    Config = RCNNConfig

    def __init__(self, config: RCNNConfig, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        if config.crop % config.stride:
            raise DetkitError(f"detector.crop: {config.crop} must be a multiple of {config.stride}, the map's stride")
        self.config = config
        self.backbone = build_backbone(config.backbone, [config.stride], (config.crop, config.crop))
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        width = self.backbone.channels[0]
        self.score = nn.Linear(width, num_classes + 1)
        self.delta = nn.Linear(width, num_classes * 4)
        for layer, std in ((self.score, 0.01), (self.delta, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pictures, the boxes of their proposals, and which of these are no padding."""
        proposals = given_proposals(batch, "R-CNN")
        return batch.images, proposals.boxes, proposals.valid

    def forward(self, images: Tensor, boxes: Tensor, valid: Tensor) -> RoIOutputs:  # type: ignore[override]
        """Pictures [B, 3, H, W] and proposals, boxes [B, P, 4] of which valid [B, P] hold → what is said of each.

        Padding is not looked at: its logits and deltas are zero.
        """
        picture, row = valid.nonzero().unbind(1)
        images = self.normalize(images)
        logits = boxes.new_zeros(*valid.shape, self.num_classes + 1)
        deltas = boxes.new_zeros(*valid.shape, self.num_classes, 4)
        for part in torch.arange(len(row), device=row.device).split(self.config.batch):
            b, p = picture[part], row[part]
            score, delta = self._classify(images, b, boxes[b, p])
            logits[b, p], deltas[b, p] = score.float(), delta.float()
        return RoIOutputs(boxes, valid, logits, deltas, canvas_limits(images))

    def decode(self, raw: RoIOutputs, threshold: float) -> Candidates:
        """What is said of the proposals → boxes whose class probability is above the threshold."""
        return region_candidates(raw, threshold, self.config.delta_weights)

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Softmax and regression of regions drawn from the proposals and the objects themselves: `cls` and `loc`."""
        loss = self.config.loss
        regions = sample_regions(given_proposals(batch, "R-CNN"), targets, loss, self.num_classes)
        logits, deltas = self._classify(self.normalize(batch.images), regions.picture, regions.boxes)
        return multi_task_loss(logits, deltas, regions, len(targets), self.config.delta_weights, loss)

    def _classify(self, images: Tensor, picture: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures and regions, picture [R] and boxes [R, 4] → logits [R, C + 1] and deltas [R, C, 4]."""
        if not len(boxes):  # batch norm and pooling take no empty batches
            return self.score(images.new_zeros(0, self.score.in_features)), images.new_zeros(0, self.num_classes, 4)
        crops = warp(images, picture, boxes, self.config.crop, self.config.context)
        features = self.backbone(crops)[0].mean((2, 3))
        return self.score(features), self.delta(features).unflatten(1, (-1, 4))


def warp(images: Tensor, picture: Tensor, boxes: Tensor, size: int, context: int) -> Tensor:
    """Cut regions out of pictures [B, 3, H, W] and resize them, whatever their shape: [R, 3, size, size].

    picture [R], boxes [R, 4]. A box fills the crop but for `context` pixels on each side, which show its surroundings;
    what lies outside the picture is 0, the mean of normalised ones. Appendix A, column D.
    """
    height, width = images.shape[-2:]
    region = xyxy_to_cxcywh(boxes)
    region[:, 2:] *= size / (size - 2 * context)
    region = cxcywh_to_xyxy(region)
    step = (torch.arange(size, device=boxes.device) + 0.5) / size
    # Where each column and row of a crop lies in its picture, as grid_sample counts: -1 and 1 are the outer edges.
    x = (region[:, :1] + step * (region[:, 2:3] - region[:, :1])) * 2 / width - 1
    y = (region[:, 1:2] + step * (region[:, 3:] - region[:, 1:2])) * 2 / height - 1
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)], -1)
    crops = images.new_empty(len(boxes), images.shape[1], size, size)
    for b in picture.unique().tolist():
        rows = (picture == b).nonzero()[:, 0]
        # The crops of a picture stand above each other in one grid, so that the picture is not copied for each.
        column = grid[rows].view(1, -1, size, 2).to(images.dtype)
        found = F.grid_sample(images[b : b + 1], column, padding_mode="zeros", align_corners=False)
        crops[rows] = found[0].unflatten(1, (-1, size)).transpose(0, 1)
    return crops
