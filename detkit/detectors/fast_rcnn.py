"""Fast R-CNN (Girshick, 2015, arXiv 1504.08083).

The backbone sees a picture once. Of each proposal, a box from outside the network, a map's features are pooled to a
fixed size; two fully connected layers turn them into a softmax over the classes and the background, and into one box
for each class.

Shapes: B pictures of H × W with P proposals each (padded), R regions of all pictures together, C classes. The
background is class C, the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones import BackboneConfig, build_backbone
from detkit.config import Strict
from detkit.detectors.base import Detector, Normalize
from detkit.errors import DetkitError
from detkit.necks.fpn import FPN
from detkit.ops import kernels
from detkit.ops.assign import match_objects, sample
from detkit.ops.boxes import DeltaWeights, clip, decode_deltas, encode_deltas
from detkit.ops.losses import pictures_per_process
from detkit.ops.roi import Pooling, roi_features
from detkit.structures import Batch, Candidates, Target

_THINNEST = 1e-2  # pixels: boxes that clipping leaves thinner are no results


class FPNConfig(Strict):
    """A feature pyramid: its channels, and whether batch norm follows its convolutions (the paper has none)."""

    channels: PositiveInt = 256
    norm: bool = False


class RoIHeadConfig(Strict):
    """What is made of a region.

    pooling: how its features are taken. convolutions: 3×3 ones with batch norm before the fully connected layers, 256
    wide (the paper has none). widths: of the fully connected layers; with the paper's VGG-16 they are 4096. dropout:
    behind each of them in training. delta_weights: factors of the box deltas x, y, w, h, which bring them to about unit
    variance (section 2.3). truncate: the singular values that each fully connected layer has, or none for all (section
    3.1); `detkit export --truncate` makes such a network of a trained one.
    """

    pooling: Pooling = Pooling()
    convolutions: int = Field(0, ge=0)
    widths: list[PositiveInt] = Field([1024, 1024], min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10, 10, 5, 5)
    truncate: list[PositiveInt] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_rank_per_layer(self) -> RoIHeadConfig:
        if self.truncate and len(self.truncate) != len(self.widths):
            raise ValueError(f"truncate needs a number for each of the {len(self.widths)} layers, got {self.truncate}")
        return self


class RoILossWeights(Strict):
    """Factors of the terms of the loss."""

    cls: NonNegativeFloat = 1
    loc: NonNegativeFloat = 1


class RoILoss(Strict):
    """Which regions are learned from, and how (section 2.3).

    samples: regions of each picture, of which at most the share `foreground` overlaps an object by `foreground_iou` or
    more; the background is what overlaps objects by `background_iou`, from the lower to below the upper. beta: where
    the smooth L1 loss turns from a parabola into a line. weights: factors of the terms.
    """

    samples: PositiveInt = 64
    foreground: float = Field(0.25, ge=0, le=1)
    foreground_iou: float = Field(0.5, ge=0, le=1)
    background_iou: tuple[float, float] = (0.1, 0.5)
    beta: PositiveFloat = 1
    weights: RoILossWeights = RoILossWeights()

    @model_validator(mode="after")
    def _thresholds_rise(self) -> RoILoss:
        low, high = self.background_iou
        if not 0 <= low <= high <= self.foreground_iou:
            raise ValueError(
                f"background_iou {[low, high]} must rise and end at or below foreground_iou {self.foreground_iou}"
            )
        return self


class FastRCNNConfig(Strict):
    """Backbone, the strides of its maps that are pooled from (several with a pyramid), head and loss."""

    name: Literal["fast_rcnn"] = "fast_rcnn"
    backbone: BackboneConfig
    strides: list[PositiveInt] = Field([16], min_length=1)
    fpn: FPNConfig | None = None
    head: RoIHeadConfig = RoIHeadConfig()
    loss: RoILoss = RoILoss()


class RoIOutputs(NamedTuple):
    """What is said of each proposal: boxes [B, P, 4], logits [B, P, C + 1], deltas [B, P, C, 4].

    valid [B, P] bool: which proposals are no padding. limits [B, 2]: the height and width to which results are clipped.
    """

    boxes: Tensor
    valid: Tensor
    logits: Tensor
    deltas: Tensor
    limits: Tensor


class Regions(NamedTuple):
    """Regions to learn from: picture [R], boxes [R, 4], labels [R] with C for the background, and truth [R, 4].

    truth: the object's box; of the background the region itself.
    """

    picture: Tensor
    boxes: Tensor
    labels: Tensor
    truth: Tensor


class RoIHead(nn.Module):
    """Pooling, fully connected layers, class scores and a box for each class."""

    def __init__(self, config: RoIHeadConfig, channels: int, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.strides = list(strides)
        self.convolutions = nn.Sequential()
        for _ in range(config.convolutions):
            conv = nn.Conv2d(channels, 256, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.convolutions.append(nn.Sequential(conv, nn.BatchNorm2d(256), nn.ReLU(inplace=True)))
            channels = 256
        self.layers = nn.ModuleList()
        width = channels * config.pooling.size**2
        for width_out, rank in zip_longest(config.widths, config.truncate):
            layer = nn.Sequential(*_factors(width, width_out, rank)) if rank else nn.Linear(width, width_out)
            self.layers.append(layer)
            width = width_out
        self.score = _linear(width, num_classes + 1, 0.01)
        self.delta = _linear(width, num_classes * 4, 0.001)

    def forward(self, maps: Sequence[Tensor], picture: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps finest first, and regions picture [R], boxes [R, 4] → logits [R, C + 1] and deltas [R, C, 4]."""
        x = roi_features(maps, self.strides, picture, boxes, self.config.pooling)
        x = self.convolutions(x).flatten(1)
        for layer in self.layers:
            x = F.dropout(layer(x).relu(), self.config.dropout, self.training)
        return self.score(x), self.delta(x).unflatten(1, (-1, 4))

    def outputs(self, maps: Sequence[Tensor], boxes: Tensor, valid: Tensor, limits: Tensor) -> RoIOutputs:
        """Maps and a table of proposals, boxes [B, P, 4] of which valid [B, P] hold → what is said of each."""
        pictures, proposals = boxes.shape[:2]
        picture = torch.arange(pictures, device=boxes.device).repeat_interleave(proposals)
        logits, deltas = self(maps, picture, boxes.flatten(0, 1))
        shape = pictures, proposals
        return RoIOutputs(boxes, valid, logits.unflatten(0, shape), deltas.unflatten(0, shape), limits)

    def losses(
        self, maps: Sequence[Tensor], proposals: Candidates, targets: Sequence[Target], loss: RoILoss
    ) -> dict[str, Tensor]:
        """The multi-task loss of regions drawn from the proposals and the objects themselves."""
        regions = sample_regions(proposals, targets, loss, self.delta.out_features // 4)
        logits, deltas = self(maps, regions.picture, regions.boxes)
        return multi_task_loss(logits, deltas, regions, len(targets), self.config.delta_weights, loss)


def truncated(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Return two linear layers that do about what one does: W ≈ U Σ Vᵀ of the `rank` largest singular values.

    The first has the weights Σ Vᵀ and no biases, the second U and the biases: rank · (in + out) products in place of
    in · out. No approximation is nearer to W in the sum of squares. Section 3.1.
    """
    first, second = _factors(layer.in_features, layer.out_features, rank)
    rank = first.out_features
    u, s, v = torch.linalg.svd(layer.weight.detach().float(), full_matrices=False)
    first.weight.data, second.weight.data = s[:rank, None] * v[:rank], u[:, :rank].contiguous()
    second.bias.data = layer.bias.detach().clone()
    return nn.Sequential(first, second)


def _factors(width: int, width_out: int, rank: int) -> tuple[nn.Linear, nn.Linear]:
    rank = min(rank, width, width_out)
    return nn.Linear(width, rank, bias=False), nn.Linear(rank, width_out)


@torch.no_grad()
def sample_regions(proposals: Candidates, targets: Sequence[Target], loss: RoILoss, num_classes: int) -> Regions:
    """Draw regions of every picture to learn from (section 2.3, mini-batch sampling).

    The objects' own boxes are proposals too, as in the released code: few others reach an IoU of 0.5 at first.
    """
    columns: list[tuple[Tensor, ...]] = []
    for i, (count, target) in enumerate(zip(proposals.count.tolist(), targets, strict=True)):
        boxes = torch.cat([target.boxes[~(target.crowd | target.difficult)], proposals.boxes[i, :count]])
        low, high = loss.background_iou
        matched = match_objects(boxes, target, loss.foreground_iou, high, lowest=low)
        objects, background = sample(matched, loss.samples, loss.foreground)
        rows, number = torch.cat([objects, background]), matched[objects]
        labels = torch.cat([target.labels[number], torch.full_like(background, num_classes)])
        truth = torch.cat([target.boxes[number], boxes[background]])
        columns.append((torch.full_like(rows, i), boxes[rows], labels, truth))
    return Regions(*map(torch.cat, zip(*columns, strict=True)))


def multi_task_loss(
    logits: Tensor, deltas: Tensor, regions: Regions, pictures: int, delta_weights: DeltaWeights, loss: RoILoss
) -> dict[str, Tensor]:
    """L(p, u, tᵘ, v) = L_cls(p, u) + λ [u is no background] L_loc(tᵘ, v), eq. 1 to 3, averaged over regions.

    logits [R, C + 1], deltas [R, C, 4]. A mini-batch has `samples` regions a picture; where a picture has fewer, the
    others count as without error.
    """
    logits = logits.float()
    objects = (regions.labels < logits.shape[1] - 1).nonzero()[:, 0]
    labels = regions.labels[objects]
    wanted = encode_deltas(regions.truth[objects], regions.boxes[objects], delta_weights)
    cls = F.cross_entropy(logits, regions.labels, reduction="sum")
    loc = F.smooth_l1_loss(deltas[objects, labels].float(), wanted, reduction="sum", beta=loss.beta)
    total = pictures_per_process(pictures, logits.device) * loss.samples
    return {"cls": loss.weights.cls * cls / total, "loc": loss.weights.loc * loc / total}


def region_candidates(raw: RoIOutputs, threshold: float, delta_weights: DeltaWeights) -> Candidates:
    """What is said of proposals → a box for each class whose probability is above the threshold, clipped.

    Candidates of a picture are ordered by proposal and class.
    """
    if kernels.serve(raw.logits) and not (raw.logits.requires_grad or raw.deltas.requires_grad):
        from detkit.ops.kernels import decode  # needs Triton

        return decode.region_candidates(
            raw.logits, raw.deltas, raw.boxes, raw.valid, raw.limits, threshold, delta_weights, _THINNEST
        )
    scores = raw.logits.float().softmax(-1)[..., :-1]
    picture, row, label = ((scores > threshold) & raw.valid[..., None]).nonzero().unbind(1)
    boxes = decode_deltas(raw.deltas[picture, row, label].float(), raw.boxes[picture, row], delta_weights)
    boxes = clip(boxes, *raw.limits[picture].unbind(1))
    keep = ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= _THINNEST).nonzero()[:, 0]
    picture, row, label = picture[keep], row[keep], label[keep]
    return Candidates.from_flat(picture, boxes[keep], scores[picture, row, label], label, len(raw.boxes))


def given_proposals(batch: Batch, name: str) -> Candidates:
    """Return the proposals of a batch; raise DetkitError if it was made without."""
    if batch.proposals is None:
        raise DetkitError(
            f"{name} finds objects in boxes from outside, and got none: pass Batch.proposals, or set `proposals` in "
            "the config"
        )
    return batch.proposals


def canvas_limits(images: Tensor) -> Tensor:
    """Height and width of a batch's canvas for every picture: [B, 2] float."""
    height, width = images.shape[-2:]
    return images.new_tensor([[height, width]], dtype=torch.float32).expand(len(images), 2)


def _linear(width_in: int, width_out: int, std: float) -> nn.Linear:
    """A layer that starts as the paper has it: normal weights, no bias."""
    layer = nn.Linear(width_in, width_out)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


class FastRCNN(Detector):
    """Backbone, pyramid where there is one, and the head on the proposals of `Batch.proposals`."""

    Config = FastRCNNConfig

    def __init__(self, config: FastRCNNConfig, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        self.loss = config.loss
        self.backbone = build_backbone(config.backbone, config.strides, size_hw)
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        self.neck = build_neck(self.backbone.channels, config.fpn, config.strides)
        channels = config.fpn.channels if config.fpn else self.backbone.channels[0]
        self.head = RoIHead(config.head, channels, num_classes, config.strides)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pictures, the boxes of their proposals, and which of these are no padding."""
        proposals = given_proposals(batch, "Fast R-CNN")
        return batch.images, proposals.boxes, proposals.valid

    def forward(self, images: Tensor, boxes: Tensor, valid: Tensor) -> RoIOutputs:  # type: ignore[override]
        """Pictures [B, 3, H, W] and proposals, boxes [B, P, 4] of which valid [B, P] hold → what is said of each."""
        maps = self.neck(self.backbone(self.normalize(images)))
        return self.head.outputs(maps, boxes, valid, canvas_limits(images))

    def decode(self, raw: RoIOutputs, threshold: float) -> Candidates:
        """What is said of the proposals → boxes whose class probability is above the threshold."""
        return region_candidates(raw, threshold, self.head.config.delta_weights)

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The multi-task loss of section 2.3: `cls` and `loc`."""
        maps = self.neck(self.backbone(self.normalize(batch.images)))
        return self.head.losses(maps, given_proposals(batch, "Fast R-CNN"), targets, self.loss)


def build_neck(channels: Sequence[int], fpn: FPNConfig | None, strides: Sequence[int]) -> nn.Module:
    """Build the pyramid on a backbone's maps; without one, maps of several strides must be as wide as each other."""
    if any(coarse not in (fine, 2 * fine) for fine, coarse in pairwise(strides)):
        raise DetkitError(f"detector.strides: must come finest first, each twice the one before, got {list(strides)}")
    if fpn is not None:
        return FPN(channels, fpn.channels, fpn.norm)
    if len(set(channels)) > 1:
        raise DetkitError(
            f"detector.fpn: maps of {', '.join(map(str, channels))} channels cannot share one head; set fpn: {{}}, or "
            "one stride"
        )
    return nn.Identity()
