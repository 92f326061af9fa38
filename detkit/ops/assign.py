"""Which box is to learn which object, and which of them a step learns from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.boxes import area, intersection, pairwise_iou
from detkit.structures import Target

NOTHING = -1  # learns that there is no object
IGNORED = -2  # learns nothing


def match(iou: Tensor, positive: float, negative: float, *, keep_best: bool = False) -> Tensor:
    """Give every box the object it overlaps most, by two thresholds (Faster R-CNN, section 3.1.2).

    iou [M, N] of M objects and N boxes. Returns [N] int64: the object's index where the best IoU is `positive` or more,
    NOTHING where it is below `negative`, IGNORED between. keep_best: the boxes that overlap an object most of all get
    it below the threshold too, ties included, unless no box touches it. Without objects all boxes are NOTHING.
    """
    if iou.numel() == 0:
        return iou.new_full((iou.shape[1],), NOTHING).long()
    best, index = iou.max(0)
    result = index.masked_fill(best < positive, IGNORED).masked_fill(best < negative, NOTHING)
    if keep_best:
        top = iou.max(1, keepdim=True).values
        is_top = ((iou == top) & (top > 0)).any(0)
        result = result.where(~is_top, index)
    return result


@torch.no_grad()
def overlaps_objects(boxes: Tensor, targets: Sequence[Target], threshold: float) -> Tensor:
    """Whether predicted boxes [B, N, 4] overlap an object, or lie in a crowd, by more than the threshold: [B, N] bool.

    Of an object the IoU counts, of a crowd the share of the box that lies in it. Such boxes are not told that they see
    nothing (YOLOv2 and YOLOv3).
    """
    found = []
    for predicted, target in zip(boxes, targets, strict=True):
        over = pairwise_iou(predicted, target.boxes)
        inside = intersection(predicted[:, None], target.boxes) / area(predicted).clamp(min=1e-9)[:, None]
        found.append((torch.where(target.crowd, inside, over) > threshold).any(1))
    return torch.stack(found)


def match_objects(
    boxes: Tensor, target: Target, positive: float, negative: float, *, lowest: float = 0, keep_best: bool = False
) -> Tensor:
    """Give every box [N, 4] the row of the object of a picture that it is to learn, as `match` does: [N] int64.

    Crowds and difficult objects are not learned; a box that would learn that there is nothing is IGNORED if it overlaps
    a difficult object by `negative` or more, or if as much of it lies in a crowd. lowest: so is one that overlaps no
    object by that much, where there are objects (Fast R-CNN, section 2.3: a heuristic for hard examples).
    """
    learned = ~(target.crowd | target.difficult)
    rows = learned.nonzero()[:, 0]
    iou = pairwise_iou(target.boxes[rows], boxes)
    result = match(iou, positive, negative, keep_best=keep_best)
    if len(rows):
        easy = (result == NOTHING) & (iou.max(0).values < lowest)
        result = torch.where(result >= 0, rows[result.clamp(min=0)], result).masked_fill(easy, IGNORED)
    if len(rows) < len(target):
        others, crowd = target.boxes[~learned], target.crowd[~learned, None]
        inside = intersection(others[:, None], boxes) / area(boxes).clamp(min=1e-9)
        covered = torch.where(crowd, inside, pairwise_iou(others, boxes)) >= negative
        result = result.masked_fill((result == NOTHING) & covered.any(0), IGNORED)
    return result


def sample(matched: Tensor, size: int, positives: float) -> tuple[Tensor, Tensor]:
    """Draw at most `size` boxes to learn from: indices of boxes with an object, at most that share, and of others.

    matched [N]: an object's row or NOTHING; others are never drawn. Where there are fewer boxes with an object, more of
    the others are taken (Faster R-CNN, section 3.1.3). Drawn by torch's seeded generator of the boxes' device.
    """
    with_object = _draw(matched >= 0, int(size * positives))
    return with_object, _draw(matched == NOTHING, size - len(with_object))


def _draw(mask: Tensor, most: int) -> Tensor:
    rows = mask.nonzero()[:, 0]
    return rows[torch.randperm(len(rows), device=rows.device)[:most]].sort().values
