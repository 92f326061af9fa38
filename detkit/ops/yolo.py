"""Decoding of YOLO's grid maps into candidates.

Shapes: B pictures, C classes, A anchors a cell, h × w cells on an input of H × W pixels, K rows above a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops import kernels
from detkit.ops.word_tree import WordTree
from detkit.structures import Candidates


def cells(raw: Tensor, anchors: int) -> Tensor:
    """View a map [B, A·(5 + C), h, w] as [B, h, w, A, 5 + C], whatever its memory format."""
    b, channels, h, w = raw.shape
    return raw.view(b, anchors, channels // anchors, h, w).permute(0, 3, 4, 1, 2)


def yolo_boxes(t: Tensor, cell: Tensor, anchor: Tensor, stride: Tensor, scale_xy: float = 1.0) -> Tensor:
    """Box offsets to xyxy pixels: centre = (cell + sigmoid(t_xy)) · stride, size = anchor · exp(t_wh).

    t [..., 4] raw x, y, w, h; cell [..., 2] column and row; anchor [..., 2] width and height in pixels; stride [2]
    pixels per cell (x, y); all broadcast. `scale_xy` stretches the sigmoid around its middle, so that a centre can lie
    on a cell's border (YOLOv4, arXiv 2004.10934, section 3.4). YOLOv3, section 2.1.
    """
    offset = t[..., :2].sigmoid() * scale_xy - (scale_xy - 1) / 2
    centre = (cell + offset) * stride
    half = anchor * t[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def yolo_candidates(
    maps: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size_hw: tuple[int, int],
    threshold: float,
    scale_xy: Sequence[float] | None = None,
    *,
    softmax: bool = False,
) -> Candidates:
    """Raw maps of YOLOv3 or YOLOv2 to boxes in input pixels, a row per box and class with a score above the threshold.

    maps: [B, A·(5 + C), h, w] per level, before the sigmoid; anchors: [A, 2] width and height in pixels per level;
    scale_xy: per level, 1 by default. Score = logistic objectness · class probability, which is logistic in YOLOv3 and
    a softmax over the classes in YOLOv2. Candidates of a picture are ordered by level, row, column, anchor, class.
    """
    if kernels.serve(maps[0]) and not any(raw.requires_grad for raw in maps):
        from detkit.ops.kernels import decode  # needs Triton

        return decode.yolo_candidates(maps, anchors, size_hw, threshold, scale_xy, softmax)
    found = []
    for i, (raw, sizes) in enumerate(zip(maps, anchors, strict=True)):
        scale = scale_xy[i] if scale_xy is not None else 1.0
        picture, boxes, objectness, classes = _sure_boxes(raw, sizes, size_hw, threshold, scale)
        scores = objectness[:, None] * (classes.softmax(1) if softmax else classes.sigmoid())
        box, label = (scores > threshold).nonzero().unbind(1)
        found.append((picture[box], boxes[box], scores[box, label], label))
    picture, boxes, scores, labels = (torch.cat(column) for column in zip(*found, strict=True))
    if len(maps[0]) > 1:
        picture, order = picture.sort(stable=True)
        boxes, scores, labels = boxes[order], scores[order], labels[order]
    return Candidates.from_flat(picture, boxes, scores, labels, len(maps[0]))


def tree_candidates(
    raw: Tensor,
    anchors: Tensor,
    size_hw: tuple[int, int],
    threshold: float,
    tree: WordTree,
    tree_threshold: float,
    labels: Sequence[int] = (),
) -> Candidates:
    """Raw map of YOLO9000 to boxes in input pixels, a row per box with a score above the threshold.

    raw and anchors: as one level of `yolo_candidates`. A box is named by a walk down the tree, which takes the more
    probable child at every split until the probability falls to `tree_threshold`; score = objectness · probability of
    the node where it ends ("Detection with YOLO9000"). Where labels are asked for, there is a row per box and each of
    them by its own probability instead: so a terrier counts as a dog where dogs are wanted, as the paper evaluates on
    COCO's classes.
    """
    picture, boxes, objectness, classes = _sure_boxes(raw, anchors, size_hw, threshold)
    log_conditional = tree.log_conditional(classes)
    if labels:
        wanted = torch.tensor(labels, device=raw.device)
        scores = objectness[:, None] * tree.log_probability(log_conditional, wanted).exp()
        box, label = (scores > threshold).nonzero().unbind(1)
        return Candidates.from_flat(picture[box], boxes[box], scores[box, label], wanted[label], len(raw))
    label, log_probability = tree.walk(log_conditional, tree_threshold)
    scores = objectness * log_probability.exp()  # Darknet's score is the objectness alone, whatever the walk ends at
    box = (scores > threshold).nonzero()[:, 0]
    return Candidates.from_flat(picture[box], boxes[box], scores[box], label[box], len(raw))


def _sure_boxes(
    raw: Tensor, anchors: Tensor, size_hw: tuple[int, int], threshold: float, scale_xy: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions of a map with an objectness above the threshold: picture [K], box [K, 4], objectness [K], classes.

    The class scores [K, C] are raw.
    """
    grid = cells(raw, len(anchors))
    objectness = grid[..., 4].float().sigmoid()  # most cells end here, so their classes are never read
    picture, row, column, anchor = (objectness > threshold).nonzero().unbind(1)
    values = grid[picture, row, column, anchor].float()
    stride = values.new_tensor([size_hw[1] / grid.shape[2], size_hw[0] / grid.shape[1]])
    boxes = yolo_boxes(values[:, :4], torch.stack([column, row], 1), anchors[anchor], stride, scale_xy)
    return picture, boxes, objectness[picture, row, column, anchor], values[:, 5:]


def yolov1_parts(raw: Tensor, side: int, boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    """View YOLOv1's vector [B, S·S·(C + 5·N)] as class scores, confidences and box offsets; S = side, N = boxes.

    Darknet's order: all class scores [B, S, S, C], all confidences [B, S, S, N], all boxes [B, S, S, N, 4]
    (detection_layer.c; the paper writes the same numbers cell by cell).
    """
    count = side * side * boxes
    classes, confidence, offsets = raw.split([raw.shape[1] - 5 * count, count, 4 * count], 1)
    grid = len(raw), side, side
    return classes.reshape(*grid, -1), confidence.reshape(*grid, boxes), offsets.reshape(*grid, boxes, 4)


def yolov1_boxes(t: Tensor, cell: Tensor, side: int, size_hw: tuple[int, int], *, squared: bool = True) -> Tensor:
    """Box offsets of YOLOv1 to xyxy pixels: centre = (cell + t_xy) / S, size = t_wh² (or t_wh), of the whole input.

    t [..., 4] raw x, y, w, h; cell [..., 2] column and row; both broadcast. `squared`: w and h are square roots.
    YOLOv1 (arXiv 1506.02640), sections 2 and 2.2.
    """
    extent = t.new_tensor([size_hw[1], size_hw[0]])
    centre = (cell + t[..., :2]) * extent / side
    half = (t[..., 2:].square() if squared else t[..., 2:]) * extent / 2
    return torch.cat([centre - half, centre + half], -1)


def yolov1_candidates(
    raw: Tensor, side: int, boxes: int, size_hw: tuple[int, int], threshold: float, *, squared: bool = True
) -> Candidates:
    """The vector of YOLOv1 to boxes in input pixels, one row per box and class with a score above the threshold.

    raw [B, S·S·(C + 5·N)] as `yolov1_parts` reads it, boxes as `yolov1_boxes`. Score = confidence · class score.
    Candidates of a picture are ordered by row, column, box, class. YOLOv1 (arXiv 1506.02640), section 2.
    """
    classes, confidence, offsets = yolov1_parts(raw.float(), side, boxes)
    scores = confidence[..., None] * classes[..., None, :]  # of two numbers below 0 above it, as in Darknet
    picture, row, column, box, label = (scores > threshold).nonzero().unbind(1)
    t, cell = offsets[picture, row, column, box], torch.stack([column, row], 1)
    xyxy = yolov1_boxes(t, cell, side, size_hw, squared=squared)
    return Candidates.from_flat(picture, xyxy, scores[picture, row, column, box, label], label, len(raw))
