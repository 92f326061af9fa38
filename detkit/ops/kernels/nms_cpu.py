"""Greedy NMS on the CPU, compiled by Numba.

Kept boxes of one label lie in flat arrays, so that a candidate is compared with a block of them by vector instructions
and leaves at the first block that suppresses it.
"""

from typing import Any

import numpy as np

from detkit.ops.kernels.compiled import compiled

_BLOCK = 64


@compiled
def _suppressed(kept: Any, first: int, count: int, x1: Any, y1: Any, x2: Any, y2: Any, area: Any, iou: Any) -> bool:
    """Whether one of kept[:, first : first + count] overlaps the box too much."""
    zero = np.float32(0)
    for start in range(first, first + count, _BLOCK):
        stop = min(start + _BLOCK, first + count)
        # Slices, so that the index of the inner loop begins at 0: only then does the compiler use vector instructions.
        left, top, right, bottom = kept[0, start:stop], kept[1, start:stop], kept[2, start:stop], kept[3, start:stop]
        areas = kept[4, start:stop]
        hits = 0
        for j in range(len(areas)):
            low_x, high_x = (left[j] if left[j] > x1 else x1), (right[j] if right[j] < x2 else x2)
            low_y, high_y = (top[j] if top[j] > y1 else y1), (bottom[j] if bottom[j] < y2 else y2)
            w, h = high_x - low_x, high_y - low_y
            w, h = (w if w > zero else zero), (h if h > zero else zero)
            inter = w * h
            hits += inter > iou * (areas[j] + area - inter)
        if hits:
            return True
    return False


@compiled
def _nms_of_picture(boxes: Any, labels: Any, iou: Any, limit: int, index: Any) -> int:
    """Write the rows that survive to `index`, at most `limit`, and return how many; rows come by falling score."""
    n = len(labels)
    if n == 0:
        return 0
    # Counting sort by label keeps the order by score inside each label and gives each its own part of `kept`.
    lowest = labels.min()
    begin = np.zeros(labels.max() - lowest + 2, np.int64)
    for label in labels:
        begin[label - lowest + 1] += 1
    begin = np.cumsum(begin)
    fill = begin.copy()
    by_label = np.empty(n, np.int64)
    for row in range(n):
        by_label[fill[labels[row] - lowest]] = row
        fill[labels[row] - lowest] += 1
    kept = np.empty((5, n), np.float32)
    survives = np.zeros(n, np.bool_)
    for part in range(len(begin) - 1):
        first, count = begin[part], 0
        for position in range(first, begin[part + 1]):
            if count == limit:  # the best `limit` of all labels hold at most `limit` of this one
                break
            row = by_label[position]
            x1, y1, x2, y2 = boxes[row, 0], boxes[row, 1], boxes[row, 2], boxes[row, 3]
            area = (x2 - x1) * (y2 - y1)
            if not _suppressed(kept, first, count, x1, y1, x2, y2, area, iou):
                end = first + count
                kept[0, end], kept[1, end], kept[2, end], kept[3, end], kept[4, end] = x1, y1, x2, y2, area
                survives[row] = True
                count += 1
    taken = 0
    for row in range(n):
        if survives[row]:
            index[taken] = row
            taken += 1
            if taken == limit:
                break
    return taken


@compiled
def greedy_nms(boxes: Any, labels: Any, counts: Any, iou: float, limit: int) -> Any:
    """Greedy NMS of a batch whose rows come by falling score.

    boxes [B, N, 4] float32, labels [B, N] int64, counts [B] int64 rows that hold. Returns index [B, limit] int64 of the
    rows that survive, in order, and their number [B] int64.
    """
    index = np.zeros((len(boxes), limit), np.int64)
    taken = np.zeros(len(boxes), np.int64)
    threshold = np.float32(iou)
    for b in range(len(boxes)):
        taken[b] = _nms_of_picture(boxes[b, : counts[b]], labels[b, : counts[b]], threshold, limit, index[b])
    return index, taken
