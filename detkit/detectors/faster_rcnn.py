"""Faster R-CNN (Ren, He, Girshick and Sun, 2015, arXiv 1506.01497).

A region proposal network (RPN) slides over the maps of the backbone: at each cell it says of A anchors whether there is
an object and how the anchor is to be moved onto it. Its best boxes are the proposals of Fast R-CNN's head, which reads
the same maps. On one map (VGG-16, or a residual network up to its fourth stage) as in the paper, or on the maps of a
feature pyramid (Lin et al., 2017, arXiv 1612.03144, section 4).

Shapes: B pictures of H × W, levels finest first with h × w cells of A anchors, N = h·w·A anchors of a level, cell by
cell; P proposals of a picture (padded), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones import BackboneConfig, build_backbone
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.detectors.fast_rcnn import (
    FPNConfig,
    RoIHead,
    RoIHeadConfig,
    RoILoss,
    RoIOutputs,
    build_neck,
    canvas_limits,
    region_candidates,
)
from detkit.necks.fpn import pooled_level
from detkit.ops import kernels
from detkit.ops.anchors import anchor_boxes
from detkit.ops.assign import IGNORED, match_objects, sample
from detkit.ops.boxes import clip, decode_deltas, encode_deltas
from detkit.ops.losses import pictures_per_process
from detkit.ops.nms import Selection, select
from detkit.structures import Batch, Candidates, Target

_THINNEST = 1e-3  # pixels: proposals that clipping leaves thinner are none


class Anchors(Strict):
    """The anchors of every cell: for each level its sizes, the roots of their areas in pixels; and height / width."""

    sizes: list[list[PositiveFloat]] = Field([[128, 256, 512]], min_length=1)
    ratios: list[PositiveFloat] = Field([0.5, 1, 2], min_length=1)

    @model_validator(mode="after")
    def _one_head_for_all_levels(self) -> Anchors:
        if len({len(sizes) for sizes in self.sizes}) > 1 or not self.sizes[0]:
            raise ValueError(f"the levels share one head, so each needs as many sizes, got {self.sizes}")
        return self

    def shapes(self) -> list[Tensor]:
        """[A, 2] width and height in pixels of each level: ratio by ratio, half widths rounded to pixels."""
        roots = torch.tensor(self.ratios).sqrt()
        sides = torch.stack([1 / roots, roots], 1)
        # Rounded as the released code and torchvision do.
        return [
            2 * (sides[:, None] * torch.tensor(sizes)[:, None] / 2).round().view(-1, 2) for sizes in self.sizes
        ]  # fmt: skip


class ProposalLayer(Strict):
    """How many boxes of a level go into non-maximum suppression, and how many of a picture come out."""

    before: PositiveInt = 6000
    after: PositiveInt = 300


class RPNConfig(Strict):
    """The region proposal network.

    depth: 3×3 convolutions. iou: proposals of a level that overlap a better one by more go (section 3.3). score: so do
    those with a lower one. training, inference: their numbers; the paper has no `before`, which is of the released
    code.
    """

    depth: PositiveInt = 1
    iou: float = Field(0.7, ge=0, le=1)
    score: float = Field(0.0, ge=0, lt=1)
    training: ProposalLayer = ProposalLayer(before=12000, after=2000)
    inference: ProposalLayer = ProposalLayer()


class RPNLossWeights(Strict):
    """Factors of the terms of the loss; the second is the paper's λ.

    Both terms are averaged over the mini-batch. The paper averages the second over about 2,400 positions and has
    λ = 10, which is the same within 7 %, and says that this is not needed (section 3.1.2).
    """

    cls: NonNegativeFloat = 1
    reg: NonNegativeFloat = 1


class RPNLoss(Strict):
    """Which anchors are learned from, and how (sections 3.1.2 and 3.1.3).

    samples: anchors of each picture, of which at most the share `positives` has an object: those that overlap one by
    `positive_iou`, and the best of each object. Negatives overlap every object by less than `negative_iou`.
    cross_boundary: anchors that leave the picture are learned from too (section 3.3: they are not; with a pyramid they
    are). beta: where the smooth L1 loss turns from a parabola into a line (1/9 in the released code).
    """

    samples: PositiveInt = 256
    positives: float = Field(0.5, ge=0, le=1)
    positive_iou: float = Field(0.7, ge=0, le=1)
    negative_iou: float = Field(0.3, ge=0, le=1)
    cross_boundary: bool = False
    beta: PositiveFloat = 1
    weights: RPNLossWeights = RPNLossWeights()


class FasterRCNNLoss(Strict):
    """What is learned, and how.

    learn: `all` is approximate joint training, where the proposals count as fixed; `rpn` and `head` learn one part, as
    the steps of alternating training do (section 3.2, and `detkit.train.alternate`).
    """

    learn: Literal["all", "rpn", "head"] = "all"
    rpn: RPNLoss = RPNLoss()
    roi: RoILoss = RoILoss(background_iou=(0, 0.5))


class FasterRCNNConfig(Strict):
    """Backbone and strides of its maps, pyramid, anchors, networks and loss.

    pooled_level: the RPN, and only it, sees a further map: every second cell of the coarsest. clip: proposals and boxes
    end at the edge of the whole `input`, or of the `picture` in it, which must then lie at its top left (preprocess
    mode shortest_edge).
    """

    name: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: BackboneConfig
    strides: list[PositiveInt] = Field([16], min_length=1)
    fpn: FPNConfig | None = None
    pooled_level: bool = False
    anchors: Anchors = Anchors()
    rpn: RPNConfig = RPNConfig()
    head: RoIHeadConfig = RoIHeadConfig()
    clip: Literal["input", "picture"] = "input"
    loss: FasterRCNNLoss = FasterRCNNLoss()

    @model_validator(mode="after")
    def _sizes_for_every_level(self) -> FasterRCNNConfig:
        levels = len(self.strides) + self.pooled_level
        if len(self.anchors.sizes) != levels:
            raise ValueError(f"anchors.sizes: needs a list for each of the {levels} levels, got {self.anchors.sizes}")
        return self


class RPN(nn.Module):
    """3×3 convolutions, then two 1×1: whether there is an object, and the deltas of its box, for each anchor.

    Objectness is one logistic number, which the paper has for an alternative to its two-class softmax (footnote 3).
    """

    def __init__(self, channels: int, anchors: int, depth: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Sequential(_conv(channels, channels, 3), nn.ReLU(inplace=True)) for _ in range(depth))
        )
        self.objectness = _conv(channels, anchors, 1)
        self.delta = _conv(channels, 4 * anchors, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Said]:
        """Maps [B, channels, h, w] → logits [B, A, h, w] and deltas [B, A·4, h, w] of each."""
        return [Said(self.objectness(x), self.delta(x)) for x in map(self.convolutions, maps)]


class Said(NamedTuple):
    """What the RPN says of the anchors of a level: logits [B, A, h, w] and deltas [B, A·4, h, w]."""

    logits: Tensor
    deltas: Tensor

    def logits_by_cell(self) -> Tensor:
        """[B, N]."""
        return self.logits.permute(0, 2, 3, 1).flatten(1).float()

    def deltas_by_cell(self) -> Tensor:
        """[B, N, 4]."""
        deltas: Tensor = self.deltas.permute(0, 2, 3, 1).unflatten(3, (-1, 4))
        return deltas.flatten(1, 3).float()


class Grid(NamedTuple):
    """The anchors of a level: of shapes [A, 2] (width, height) at every cell, so many pixels (x, y) apart."""

    shapes: Tensor
    height: int
    width: int
    stride: tuple[int, int]

    def anchors(self) -> Tensor:
        """[N, 4] pixels, centred on the top left corners of the cells as torchvision and Detectron2 place them."""
        return anchor_boxes(self.shapes, self.height, self.width, self.shapes.new_tensor(self.stride), centre=0)


def _conv(channels_in: int, channels_out: int, kernel: int) -> nn.Conv2d:
    """A convolution that starts as section 3.1.3 has it."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class FasterRCNN(Detector):
    """Backbone, pyramid where there is one, RPN, and Fast R-CNN's head on the RPN's proposals."""

    Config = FasterRCNNConfig

    def __init__(self, config: FasterRCNNConfig, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        self.config = config
        self.backbone = build_backbone(config.backbone, config.strides, size_hw)
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        self.neck = build_neck(self.backbone.channels, config.fpn, config.strides)
        channels = config.fpn.channels if config.fpn else self.backbone.channels[0]
        shapes = config.anchors.shapes()
        self.rpn = RPN(channels, len(shapes[0]), config.rpn.depth)
        self.head = RoIHead(config.head, channels, num_classes, config.strides)
        for i, shape in enumerate(shapes):
            self.register_buffer(f"shapes_{i}", shape, persistent=False)
        # What a step of alternating training leaves alone has no gradient, so that processes need not wait for one.
        self.rpn.requires_grad_(config.loss.learn != "head")
        self.head.requires_grad_(config.loss.learn != "rpn")

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pictures, and their sizes where results are clipped to them."""
        return (batch.images, batch.sizes) if self.config.clip == "picture" else (batch.images,)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> RoIOutputs:
        """[B, 3, H, W], with sizes [B, 2] of the pictures in it → what the head says of the RPN's proposals."""
        maps, levels = self._maps(images)
        limits = canvas_limits(images) if sizes is None else sizes.float()
        proposals = self.propose(self.rpn(levels), self.grids(images, levels), limits, self.config.rpn.inference)
        return self.head.outputs(maps, proposals.boxes, proposals.valid, limits)

    def decode(self, raw: RoIOutputs, threshold: float) -> Candidates:
        """What is said of the proposals → boxes whose class probability is above the threshold."""
        return region_candidates(raw, threshold, self.head.config.delta_weights)

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of the RPN, `rpn_cls` and `rpn_reg` (eq. 1), and those of Fast R-CNN, `cls` and `loc`.

        Where only the head learns, and the batch has proposals, these are learned from in place of the RPN's own.
        """
        learn = self.config.loss.learn
        maps, levels = self._maps(batch.images)
        if learn == "head" and batch.proposals is not None:
            return self.head.losses(maps, batch.proposals, targets, self.config.loss.roi)
        limits = self._limits(batch)
        grids, said = self.grids(batch.images, levels), self.rpn(levels)
        anchors = torch.cat([grid.anchors() for grid in grids])
        terms = {} if learn == "head" else self._rpn_losses(said, anchors, limits, targets)
        if learn == "rpn":
            return terms
        proposals = self.propose(said, grids, limits, self.config.rpn.training)
        return terms | self.head.losses(maps, proposals, targets, self.config.loss.roi)

    def proposals(self, batch: Batch, numbers: ProposalLayer) -> Candidates:
        """What the RPN proposes, by itself: boxes in pixels of the network's input, best first."""
        _, levels = self._maps(batch.images)
        return self.propose(self.rpn(levels), self.grids(batch.images, levels), self._limits(batch), numbers)

    def _limits(self, batch: Batch) -> Tensor:
        return batch.sizes.float() if self.config.clip == "picture" else canvas_limits(batch.images)

    def _maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps that the head pools from, and those that the RPN slides over."""
        maps: list[Tensor] = self.neck(self.backbone(self.normalize(images)))
        return maps, [*maps, pooled_level(maps[-1])] if self.config.pooled_level else maps

    def grids(self, images: Tensor, levels: Sequence[Tensor]) -> list[Grid]:
        """The anchors of each level.

        A cell is as many whole pixels as the map has room for, as in torchvision: of a pooled level with an odd number
        of cells before pooling that is a little less than its stride.
        """
        height, width = images.shape[-2:]
        sides = [x.shape[-2:] for x in levels]
        return [Grid(self.get_buffer(f"shapes_{i}"), h, w, (width // w, height // h)) for i, (h, w) in enumerate(sides)]

    @torch.no_grad()
    def propose(
        self, said: Sequence[Said], grids: Sequence[Grid], limits: Tensor, numbers: ProposalLayer
    ) -> Candidates:
        """The best boxes of the RPN, clipped to limits [B, 2] (height, width) and thinned out level by level.

        Those that clipping leaves too thin score 0 (section 3.3).
        """
        logits = [x.logits_by_cell() for x in said]
        best = [x.topk(min(numbers.before, x.shape[1]), 1) for x in logits]
        if kernels.serve(limits):
            from detkit.ops.kernels import decode  # needs Triton

            table = decode.proposal_candidates([x.deltas for x in said], best, grids, limits, _THINNEST)
        else:
            columns = []
            for level, (x, grid, (score, row)) in enumerate(zip(said, grids, best, strict=True)):
                deltas = x.deltas_by_cell().gather(1, row[..., None].expand(-1, -1, 4))
                boxes = decode_deltas(deltas, grid.anchors()[row])
                columns.append((boxes, score.sigmoid(), torch.full_like(row, level)))
            boxes, scores, levels = map(torch.cat, zip(*columns, strict=True), (1, 1, 1))
            boxes = clip(boxes, limits[:, :1], limits[:, 1:])
            scores = scores.masked_fill(~(boxes[..., 2:] - boxes[..., :2] >= _THINNEST).all(-1), 0)
            table = Candidates(boxes, scores, levels, torch.full_like(levels[:, 0], boxes.shape[1]))
        rpn = self.config.rpn
        rule = Selection(score=rpn.score, iou=rpn.iou, max_detections=numbers.after, max_candidates=10**9)
        found = select(table, rule)
        # The padding goes; on a GPU, to know its length would mean to wait, and in an exported network it has none.
        if found.boxes.device.type == "cpu" and not torch.compiler.is_exporting():
            most = int(found.count.max()) if len(found) else 0
            found = Candidates(found.boxes[:, :most], found.scores[:, :most], found.labels[:, :most], found.count)
        return found

    def _rpn_losses(
        self, said: Sequence[Said], anchors: Tensor, limits: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        loss = self.config.loss.rpn
        logits = torch.cat([x.logits_by_cell() for x in said], 1)
        deltas = torch.cat([x.deltas_by_cell() for x in said], 1)
        cls, reg = logits.sum() * 0, deltas.sum() * 0
        for i, target in enumerate(targets):
            objects, others, number = self.assign(anchors, target, limits[i])
            rows = torch.cat([objects, others])
            truth = (torch.arange(len(rows), device=rows.device) < len(objects)).float()
            cls = cls + F.binary_cross_entropy_with_logits(logits[i, rows], truth, reduction="sum")
            wanted = encode_deltas(target.boxes[number], anchors[objects])
            reg = reg + F.smooth_l1_loss(deltas[i, objects], wanted, reduction="sum", beta=loss.beta)
        total = pictures_per_process(len(targets), logits.device) * loss.samples
        return {"rpn_cls": loss.weights.cls * cls / total, "rpn_reg": loss.weights.reg * reg / total}

    @torch.no_grad()
    def assign(self, anchors: Tensor, target: Target, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw anchors [N, 4] of a picture of limit [2] (height, width) to learn from.

        Returns the indices of those with an object, of those without, and the objects' rows of the former.
        """
        loss = self.config.loss.rpn
        if loss.cross_boundary:
            matched = match_objects(anchors, target, loss.positive_iou, loss.negative_iou, keep_best=True)
        else:
            inside = ((anchors[:, :2] >= 0) & (anchors[:, 2:] <= limit.flip(0))).all(1).nonzero()[:, 0]
            matched = torch.full_like(anchors[:, 0], IGNORED, dtype=torch.long)
            matched[inside] = match_objects(
                anchors[inside], target, loss.positive_iou, loss.negative_iou, keep_best=True
            )
        objects, others = sample(matched, loss.samples, loss.positives)
        return objects, others, matched[objects]
