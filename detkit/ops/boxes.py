"""Box formats, overlap measures and clipping.

Boxes are xyxy pixels [..., 4]; another format appears only in a function whose name says so.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Overlap = Literal["iou", "giou", "diou", "ciou"]
DeltaWeights = tuple[float, float, float, float]

LARGEST_LOG = math.log(1000 / 16)  # a decoded side is at most so many times its anchor's, so that exp stays finite


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners to centre and size, [..., 4] → [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to corners, [..., 4] → [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Corners to top-left corner and size (COCO's format), [..., 4] → [..., 4]."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Top-left corner and size (COCO's format) to corners, [..., 4] → [..., 4]."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def area(boxes: Tensor) -> Tensor:
    """Width × height of each box, [..., 4] → [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes: Tensor, height: Tensor | float, width: Tensor | float) -> Tensor:
    """Cut boxes [..., 4] to 0 … width and 0 … height; the limits broadcast against [...]."""
    height, width = torch.as_tensor(height, device=boxes.device), torch.as_tensor(width, device=boxes.device)
    limit = torch.stack(torch.broadcast_tensors(width, height, width, height), -1).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(limit)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area that boxes have in common; a [..., 4] and b [..., 4] broadcast against each other."""
    side = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    return side[..., 0] * side[..., 1]


def overlap(a: Tensor, b: Tensor, kind: Overlap = "iou", eps: float = 1e-9) -> Tensor:
    """IoU, GIoU (arXiv 1902.09630), DIoU or CIoU (arXiv 1911.08287) of boxes.

    a [..., 4] and b [..., 4] broadcast, so `overlap(a[:, None], b)` is the matrix of all pairs. Differentiable; the
    IoU of two boxes of zero area is 0. The trade-off weight of CIoU carries no gradient, as its paper has it.
    """
    inter = intersection(a, b)
    union = area(a) + area(b) - inter
    iou = inter / union.clamp(min=eps)
    if kind == "iou":
        return iou
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        enclosing = (hull[..., 0] * hull[..., 1]).clamp(min=eps)
        return iou - (enclosing - union) / enclosing
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    diou = iou - distance / hull.square().sum(-1).clamp(min=eps)
    if kind == "diou":
        return diou
    aspect_a, aspect_b = (torch.atan2(x[..., 2] - x[..., 0], (x[..., 3] - x[..., 1]).clamp(min=eps)) for x in (a, b))
    v = 4 / torch.pi**2 * (aspect_a - aspect_b).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=eps)
    return diou - alpha * v


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of all pairs, [..., M, 4] and [..., N, 4] → [..., M, N]."""
    return overlap(a[..., :, None, :], b[..., None, :, :])


def encode_deltas(boxes: Tensor, anchors: Tensor, weights: DeltaWeights = (1, 1, 1, 1)) -> Tensor:
    """How far boxes [..., 4] are from anchors [..., 4], scale-free: [..., 4] as tx, ty, tw, th.

    t_xy = (centre − anchor's centre) / anchor's size, t_wh = log(size / anchor's size), times the weights. R-CNN (arXiv
    1311.2524), appendix C, eq. 6 to 9; the weights bring the targets to unit variance (Fast R-CNN, section 2.3).
    """
    truth, anchor = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors)
    offset = (truth[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    scale = (truth[..., 2:] / anchor[..., 2:]).log()
    return torch.cat([offset, scale], -1) * offset.new_tensor(weights)


def decode_deltas(deltas: Tensor, anchors: Tensor, weights: DeltaWeights = (1, 1, 1, 1)) -> Tensor:
    """Boxes [..., 4] that lie at deltas [..., 4] from anchors [..., 4], which broadcast (R-CNN, eq. 1 to 4)."""
    t, anchor = deltas / deltas.new_tensor(weights), xyxy_to_cxcywh(anchors)
    centre = t[..., :2] * anchor[..., 2:] + anchor[..., :2]
    half = t[..., 2:].clamp(max=LARGEST_LOG).exp() * anchor[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)
