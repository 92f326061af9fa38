"""Sliding windows: a classifier that looks everywhere, at every size.

The search is that of Neural Network-Based Face Detection (Rowley, Baluja and Kanade, 1998, IEEE TPAMI 20(1)) and of
Viola and Jones (2004, IJCV 57(2)): windows of some sizes and shapes move over the picture by a share of their own side,
each is brought to the size of the classifier's input, and what the classifier does not call background is a candidate.
Unlike theirs the classifier is any network of detkit.classify. Nothing moves a box: it is the window.

`search: crops` cuts out each window and classifies it. `search: dense` does what neighbours share only once: for each
size of window the picture is scaled so that windows have the input's size, and the classifier runs over it as a
convolutional network (OverFeat, Sermanet et al., 2013, arXiv 1312.6229, section 3.5); windows that lie closer than the
cells of its last map come from shifted runs. Both look at the same windows of the same pixels. Their scores are equal
where no cell of a window sees beyond it: for a backbone without padding always, and for any where a window is all of
the scaled picture. Elsewhere, at a window's edges, crops show zeros and a dense search what is really there.

Shapes: B pictures of H × W, N windows of each, crops of S × S pixels, C classes. The background is class C, the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from detkit.backbones import build_backbone
from detkit.backbones.base import Backbone, WholeNetwork
from detkit.backbones.whole import build_whole
from detkit.classify.classifier import Classifier
from detkit.config import Strict
from detkit.detectors.base import Detector
from detkit.errors import DetkitError
from detkit.ops.assign import NOTHING, match_objects
from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.losses import learnable, pictures_per_process
from detkit.regions import WindowsConfig
from detkit.regions.windows import windows
from detkit.structures import Batch, Candidates, Target

_NOT_LEARNED = -100  # the label that cross-entropy passes over
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# What lets one place of a picture change all others: averages over all of it, attention, norms over places.
_MIXES = "mean sum var_mean amax _adaptive_avg_pool2d bmm baddbmm _softmax native_group_norm linalg_vector_norm roll"
_MIXES_TOO = ("_scaled_dot_product", "_native_multi_head_attention", "_fft")


class Windows(Strict):
    """Where to look.

    scales: side of the square of the window's area, in pixels of the network's picture. aspect_ratios: width / height.
    stride: pixels of the crop by which windows lie apart, from one up: a window twice as large moves twice as far
    (Viola and Jones, section 5). They lie about the middle, and the outer ones may reach over the picture's edge.
    """

    scales: tuple[PositiveFloat, ...] = Field((64, 90, 128, 181), min_length=1)
    aspect_ratios: tuple[PositiveFloat, ...] = Field((0.7, 1, 1.4), min_length=1)
    stride: PositiveInt = 16


class WindowLoss(Strict):
    """What a step learns from.

    positives: windows for each object: the object's box, its centre and its sides' logarithms moved by up to ± jitter
    of a side; in a dense search such windows of the search as overlap it by `foreground_iou`, and the best one.
    negatives: background windows of each picture, which overlap no object by `background_iou`: those that the network
    as it is finds most like an object, of `pool` windows that are drawn, or of all if that is null. A dense search
    scores all in any case. The best window of an object, of those drawn or of all, is never background.
    """

    positives: PositiveInt = 8
    jitter: float = Field(0.12, ge=0, lt=0.5)
    foreground_iou: float = Field(0.6, gt=0, le=1)
    background_iou: float = Field(0.4, gt=0, le=1)
    negatives: PositiveInt = 24
    pool: PositiveInt | None = 96

    @model_validator(mode="after")
    def _thresholds_rise(self) -> WindowLoss:
        if self.background_iou > self.foreground_iou:
            raise ValueError(
                f"background_iou {self.background_iou} must not be above {self.foreground_iou}, that of objects"
            )
        if self.pool is not None and self.pool < self.negatives:
            raise ValueError(f"pool {self.pool} holds fewer than the {self.negatives} negatives that are taken from it")
        return self


class SlidingWindowConfig(Classifier.Config):
    """The classifier, with the keys of detkit.classify, the windows and the loss.

    stride is that of the classifier's last map; crop: S, a multiple of it. grey: windows are seen without colour, as by
    Rowley and by Viola and Jones. search: weights learned with one are not for the other where the body pads. batch:
    crops that go through the network at once outside training.
    """

    name: Literal["sliding_window"] = "sliding_window"
    crop: PositiveInt = 64
    grey: bool = False
    windows: Windows = Windows()
    search: Literal["crops", "dense"] = "crops"
    batch: PositiveInt = 256
    loss: WindowLoss = WindowLoss()

    @model_validator(mode="after")
    def _crop_is_whole_cells(self) -> SlidingWindowConfig:
        step, stride = self.windows.stride, self.stride
        if self.crop % stride:
            raise ValueError(f"crop: {self.crop} must be a multiple of {stride}, the stride of the classifier's map")
        if self.search == "dense" and step % stride and stride % step:
            raise ValueError(
                f"windows.stride: a dense search needs a divisor or multiple of {stride}, the stride of the "
                f"classifier's map, got {step}"
            )
        return self


class Level(NamedTuple):
    """Windows of one size over a picture: their sides and where the first begins, (x, y) pixels; columns and rows."""

    sides: tuple[float, float]
    start: tuple[float, float]
    counts: tuple[int, int]


class WindowScores(NamedTuple):
    """What is said of each window: boxes [N, 4], the same in every picture, and logits [B, N, C + 1]."""

    boxes: Tensor
    logits: Tensor


class SlidingWindow(Detector):
    """A classifier, and where it looks."""

    Config = SlidingWindowConfig

    def __init__(self, config: SlidingWindowConfig, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        self.config = config
        size = config.crop, config.crop
        backbone: Backbone | WholeNetwork
        if config.pool == "own":
            backbone = build_whole(config.backbone, num_classes + 1, size, config.dropout)
        else:
            backbone = build_backbone(config.backbone, [config.stride], size)
        self.classifier = Classifier(
            backbone,
            num_classes + 1,
            pool=config.pool,
            norm=config.norm,
            dropout=config.dropout,
            activation=config.activation,
        )
        if config.search == "dense":
            _require_local(self.classifier, config)

    @property
    def backbone(self) -> Backbone | WholeNetwork:
        """The classifier's body."""
        return self.classifier.backbone

    def levels(self, height: int, width: int) -> list[Level]:
        """Return the sizes of windows and how they lie over a picture, in the order of the config."""
        config, found = self.config.windows, []
        for scale, ratio in product(config.scales, config.aspect_ratios):
            sides = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            steps = [side * config.stride / self.config.crop for side in sides]
            # As many as reach both edges; a window that is larger than the picture has it in its middle.
            more = [max(0, math.ceil((whole - side) / step - 1e-6))
                    for whole, side, step in zip((width, height), sides, steps, strict=True)]  # fmt: skip
            start = [(whole - side - n * step) / 2
                     for whole, side, step, n in zip((width, height), sides, steps, more, strict=True)]  # fmt: skip
            found.append(Level(sides, (start[0], start[1]), (more[0] + 1, more[1] + 1)))
        return found

    def forward(self, images: Tensor) -> WindowScores:
        """Pictures [B, 3, H, W] RGB 0 … 1 → what the classifier says of every window, row by row, size by size."""
        levels = self.levels(*images.shape[-2:])
        images = self._seen(images)
        look = self._slide if self.config.search == "dense" else self._look_at_each
        logits = torch.cat([look(images, level) for level in levels], 1)
        return WindowScores(torch.cat([self._boxes(level, images) for level in levels]), logits.float())

    def decode(self, raw: WindowScores, threshold: float) -> Candidates:
        """What is said of the windows → windows that show a class with a probability above the threshold."""
        scores = raw.logits.softmax(-1)[..., :-1]
        picture, row, label = (scores > threshold).nonzero().unbind(1)
        return Candidates.from_flat(picture, raw.boxes[row], scores[picture, row, label], label, len(scores))

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Cross-entropy of windows on objects and of hard windows on the background: `cls`.

        A sum over windows, divided by pictures × (positives + negatives), the windows of pictures with one object each.

        Hard-negative mining, or bootstrapping (Sung and Poggio, 1998, IEEE TPAMI 20(1), section 2.4; Rowley, section 2;
        Dalal and Triggs, 2005, CVPR, section 4): search pictures with the network that has been learned so far, take
        the background that it is wrong about, learn on. There a round trains anew and searches all pictures; here
        every step is a round for its own pictures, since the network learns step by step (online hard example mining,
        Shrivastava et al., 2016, arXiv 1604.03540). Nothing is kept between rounds: what is still hard is found again.
        """
        images = self._seen(batch.images)
        learn = self._learn_dense if self.config.search == "dense" else self._learn_crops
        logits, labels = learn((batch.images.shape[-2], batch.images.shape[-1]), images, targets)
        total = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=_NOT_LEARNED)
        each = self.config.loss.positives + self.config.loss.negatives  # of a picture with one object
        return {"cls": total / (pictures_per_process(len(targets), total.device) * each)}

    def _seen(self, images: Tensor) -> Tensor:
        """Pictures as the classifier sees them: [B, 3, H, W], grey if it is to be."""
        if not self.config.grey:
            return images
        return (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True).expand_as(images)

    def _boxes(self, level: Level, like: Tensor) -> Tensor:
        """The windows of a level, row by row: [rows · columns, 4] pixels of the picture."""
        crop, stride = self.config.crop, self.config.windows.stride
        scaled = [crop + (n - 1) * stride for n in level.counts]
        boxes = windows((scaled[1], scaled[0]), WindowsConfig(scales=(crop,), aspect_ratios=(1,), stride=stride)).boxes
        boxes = boxes[np.lexsort((boxes[:, 0], boxes[:, 1]))].astype(np.float64)
        found = torch.tensor(boxes * (np.tile(level.sides, 2) / crop) + np.tile(level.start, 2), dtype=torch.float32)
        return found.to(like.device)

    def _samples(self, level: Level) -> int:
        """How many pixels a side are averaged for one of the crop's, so that large windows are not aliased."""
        return max(1, math.ceil(max(level.sides) / self.config.crop - 1e-6))

    def _cut(self, images: Tensor, picture: Tensor, boxes: Tensor, size_hw: tuple[int, int], samples: int) -> Tensor:
        """Resize parts of pictures, picture [R] and boxes [R, 4], to one size: [R, 3, *size_hw].

        What lies outside a picture is the mean, which normalises to 0. samples: a side for each pixel, or -1 for as
        many as a box asks for.
        """
        mean = self.classifier.normalize.mean
        rows = torch.cat([picture[:, None].to(boxes.dtype), boxes], 1)
        parts: Tensor = roi_align((images - mean).float(), rows, size_hw, 1.0, samples, aligned=True)
        return parts + mean

    def _classify(self, images: Tensor, picture: Tensor, boxes: Tensor, samples: int = -1) -> Tensor:
        """The classifier's word on windows, each cut out of its picture: [R, C + 1]."""
        size = self.config.crop, self.config.crop
        scores: Tensor = self.classifier(self._cut(images, picture, boxes, size, samples))
        return scores

    def _look_at_each(self, images: Tensor, level: Level) -> Tensor:
        """Search one level crop by crop: [B, rows · columns, C + 1]."""
        boxes = self._boxes(level, images)
        count = len(images) * len(boxes)
        rows = torch.arange(count, device=boxes.device).split(self.config.batch)
        parts = [
            self._classify(images, part // len(boxes), boxes[part % len(boxes)], self._samples(level)) for part in rows
        ]
        scores: Tensor = torch.cat(parts).unflatten(0, (len(images), len(boxes)))
        return scores

    def _slide(self, images: Tensor, level: Level) -> Tensor:
        """Search one level with the classifier as a convolutional network: [B, rows · columns, C + 1]."""
        crop, step, stride = self.config.crop, self.config.windows.stride, self.config.stride
        columns, rows = level.counts
        height, width = (crop + (n - 1) * step for n in (rows, columns))
        (x, y), (w, h) = level.start, level.sides
        part = images.new_tensor([[x, y, x + width * w / crop, y + height * h / crop]], dtype=torch.float32)
        every = torch.arange(len(images), device=images.device)
        scaled = self._cut(images, every, part.expand(len(images), 4), (height, width), self._samples(level))
        hop, skip = max(1, stride // step), max(1, step // stride)  # one of them is 1
        scores = images.new_zeros(len(images), self.num_classes + 1, rows, columns, dtype=torch.float32)
        for top, left in product(range(min(hop, rows)), range(min(hop, columns))):
            # Whole cells of the map, from the first window of this shifted run to its last.
            cells_y, cells_x = ((n - 1 - first) // hop * skip for n, first in ((rows, top), (columns, left)))
            bottom, right = top * step + crop + cells_y * stride, left * step + crop + cells_x * stride
            found = slide(self.classifier, scaled[..., top * step : bottom, left * step : right], crop // stride)
            scores[..., top::hop, left::hop] = found[..., ::skip, ::skip].float()
        return scores.flatten(2).transpose(1, 2)

    def _learn_crops(
        self, size_hw: tuple[int, int], images: Tensor, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Windows on objects, and the hardest of drawn ones on the background: logits and labels."""
        loss, objects = self.config.loss, learnable(targets)
        levels = [self._boxes(level, images) for level in self.levels(*size_hw)]
        boxes = torch.cat(levels)
        if loss.pool is None:
            drawn = boxes.expand(len(images), -1, -1)
        else:  # of each size as many, however many of the small ones there are
            chance = torch.cat([boxes.new_full((len(level),), 1 / len(level)) for level in levels])
            drawn = boxes[chance.expand(len(images), -1).multinomial(min(loss.pool, len(boxes)))]
        background = torch.stack([self._matched(b, t) == NOTHING for b, t in zip(drawn, targets, strict=True)])
        rows = self._hardest(self._background_loss(images, drawn), background)
        negative = drawn.gather(1, rows[..., None].expand(-1, -1, 4)).flatten(0, 1)
        none = torch.full_like(rows, self.num_classes).masked_fill(~background.gather(1, rows), _NOT_LEARNED)
        picture = torch.arange(len(images), device=boxes.device).repeat_interleave(rows.shape[1])
        positive = _jittered(objects.boxes.repeat_interleave(loss.positives, 0), loss.jitter)
        logits = self._classify(
            images,
            torch.cat([objects.picture.repeat_interleave(loss.positives), picture]),
            torch.cat([positive, negative]),
        )
        return logits, torch.cat([objects.labels.repeat_interleave(loss.positives), none.flatten()])

    def _learn_dense(
        self, size_hw: tuple[int, int], images: Tensor, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Windows of the search on objects, and the hardest of all on the background: logits and labels."""
        loss, levels = self.config.loss, self.levels(*size_hw)
        boxes = torch.cat([self._boxes(level, images) for level in levels])
        logits = torch.cat([self._slide(images, level) for level in levels], 1)
        labels = torch.full(logits.shape[:2], _NOT_LEARNED, device=boxes.device)
        for row, target in zip(labels, targets, strict=True):
            matched = self._matched(boxes, target)
            for number in matched[matched >= 0].unique().tolist():
                windows_on = (matched == number).nonzero()[:, 0]
                some = torch.randperm(len(windows_on), device=boxes.device)[: loss.positives]
                row[windows_on[some]] = target.labels[number]
            row.masked_fill_(matched == NOTHING, self.num_classes)
        background = labels == self.num_classes
        hard = torch.zeros_like(background).scatter(1, self._hardest(_loss_as_background(logits), background), True)
        return logits.flatten(0, 1), labels.masked_fill(background & ~hard, _NOT_LEARNED).flatten()

    def _matched(self, boxes: Tensor, target: Target) -> Tensor:
        """The object that each window [N, 4] is on, or NOTHING, or IGNORED: [N]."""
        loss = self.config.loss
        return match_objects(boxes, target, loss.foreground_iou, loss.background_iou, keep_best=True)

    @torch.no_grad()
    def _background_loss(self, images: Tensor, boxes: Tensor) -> Tensor:
        """How wrong it would be, to the network as it is, to call windows [B, P, 4] background: [B, P]."""
        picture = torch.arange(len(images), device=boxes.device).repeat_interleave(boxes.shape[1])
        with _as_in_detection(self.classifier):
            parts = zip(picture.split(self.config.batch), boxes.flatten(0, 1).split(self.config.batch), strict=True)
            logits = torch.cat([self._classify(images, b, rows) for b, rows in parts])
        return _loss_as_background(logits).view(boxes.shape[:2])

    def _hardest(self, wrong: Tensor, background: Tensor) -> Tensor:
        """Rows of the greatest loss among the windows [B, P] that are background: [B, K].

        Where a picture has fewer of them, others follow.
        """
        count = min(self.config.loss.negatives, wrong.shape[1])
        return wrong.masked_fill(~background, -torch.inf).topk(count).indices


def slide(classifier: Classifier, images: Tensor, cells: int) -> Tensor:
    """Pictures [B, 3, H, W] → scores of every window of cells × cells of the last map, [B, C + 1, rows, columns].

    The average over a picture becomes an average pooling, and the linear layer is applied at each place: a 1×1
    convolution (OverFeat, section 3.5).
    """
    features = classifier.backbone(classifier.normalize(images))[-1]
    if classifier.pool == "scores":
        return F.avg_pool2d(classifier.activation(classifier.head(classifier.dropout(features))), cells, 1)
    means = F.avg_pool2d(features, cells, 1).movedim(1, -1)
    scores: Tensor = classifier.head(classifier.dropout(classifier.norm(means)))
    return scores.movedim(-1, 1)


def _loss_as_background(logits: Tensor) -> Tensor:
    return -logits.detach().float().log_softmax(-1)[..., -1]


def _jittered(boxes: Tensor, jitter: float) -> Tensor:
    """Boxes [M, 4] with their centres, and their sides' logarithms, moved by up to ± jitter of a side."""
    moved = xyxy_to_cxcywh(boxes)
    shift, growth = (torch.empty_like(moved[:, :2]).uniform_(-jitter, jitter) for _ in range(2))
    return cxcywh_to_xyxy(torch.cat([moved[:, :2] + shift * moved[:, 2:], moved[:, 2:] * growth.exp()], 1))


@contextmanager
def _as_in_detection(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while; some of its modules may be so already, and stay."""
    learning = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True


class _Operations(TorchDispatchMode):
    """Notes the names of all operations that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def _require_local(classifier: Classifier, config: SlidingWindowConfig) -> None:
    """Raise DetkitError if a part of the last map depends on more than the part of the picture about it.

    Only then does a window of a large picture look as it does alone. Found out by running the backbone on a picture
    that is larger than a crop.
    """
    remedy = f"take search: crops, or a convolutional network for {config.backbone.name}"
    if config.pool in ("token", "own"):
        raise DetkitError(f"detector.search: dense needs pool features or scores, got {config.pool}; {remedy}")
    side = config.crop + config.stride
    with _as_in_detection(classifier), _Operations() as seen:
        try:
            shape = tuple(classifier.backbone(torch.zeros(1, 3, side, side))[-1].shape[2:])
        except DetkitError as error:
            raise DetkitError(f"detector.search: dense needs pictures of any size, but {error}; {remedy}") from None
    mixing = sorted(n for n in seen.names if n in _MIXES.split() or n.startswith(_MIXES_TOO))
    if mixing or shape != (side // config.stride,) * 2:
        why = f"it computes {mixing[0].strip('_')} over the picture" if mixing else "its map has another size"
        raise DetkitError(
            f"detector.search: dense needs a backbone whose cells see only their surroundings, and this one does not "
            f"({why}); {remedy}"
        )
