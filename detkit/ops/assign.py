"""Which box is to learn which object."""

from torch import Tensor

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
