"""Selection by greedy NMS on the CPU, compiled by Numba.

Only what is above the threshold is sorted, by the bits of its score. Kept boxes of one label lie in flat arrays, so
that a candidate is compared with a block of them by vector instructions and leaves at the first block that suppresses
it.
"""

from typing import Any

import numpy as np

from detkit.ops.kernels.compiled import compiled

_BLOCK = 64


@compiled
def _entering(scores: Any, labels: Any, wanted: Any, score: Any) -> Any:
    """Give the rows above a score, of one of the wanted labels if there are any."""
    rows = np.empty(len(scores), np.int32)
    count = 0
    for row in range(len(scores)):
        if scores[row] > score:
            enters = len(wanted) == 0
            for label in wanted:
                enters |= labels[row] == label
            rows[count] = row
            count += enters
    return rows[:count]


@compiled
def _by_score(scores: Any, rows: Any) -> Any:
    """Sort rows by falling score, equal ones as they come, by a radix sort."""
    bits = scores.view(np.uint32)  # of numbers above 0 they are ordered as the numbers
    spare = np.empty_like(rows)
    for shift in (0, 8, 16, 24):
        begin = np.zeros(257, np.int64)
        for row in rows:
            begin[256 - ((bits[row] >> shift) & 255)] += 1
        begin = np.cumsum(begin)
        for row in rows:
            digit = 255 - ((bits[row] >> shift) & 255)
            spare[begin[digit]] = row
            begin[digit] += 1
        rows, spare = spare, rows
    return rows


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
def _nms_of_picture(boxes: Any, labels: Any, rows: Any, iou: Any, limit: int, index: Any) -> int:
    """Write which of `rows`, that come by falling score, survive to `index`, at most `limit`; return their number."""
    n = len(rows)
    if n == 0:
        return 0
    # Counting sort by label keeps the order by score inside each label and gives each its own part of `kept`.
    lowest = highest = labels[rows[0]]
    for row in rows:
        lowest, highest = min(lowest, labels[row]), max(highest, labels[row])
    begin = np.zeros(highest - lowest + 2, np.int64)
    for row in rows:
        begin[labels[row] - lowest + 1] += 1
    begin = np.cumsum(begin)
    fill = begin.copy()
    by_label = np.empty(n, np.int64)
    for rank in range(n):
        label = labels[rows[rank]] - lowest
        by_label[fill[label]] = rank
        fill[label] += 1
    kept = np.empty((5, n), np.float32)
    survives = np.zeros(n, np.bool_)
    for part in range(len(begin) - 1):
        first, count = begin[part], 0
        for position in range(first, begin[part + 1]):
            if count == limit:  # the best `limit` of all labels hold at most `limit` of this one
                break
            rank = by_label[position]
            box = boxes[rows[rank]]
            x1, y1, x2, y2 = box[0], box[1], box[2], box[3]
            area = (x2 - x1) * (y2 - y1)
            if not _suppressed(kept, first, count, x1, y1, x2, y2, area, iou):
                end = first + count
                kept[0, end], kept[1, end], kept[2, end], kept[3, end], kept[4, end] = x1, y1, x2, y2, area
                survives[rank] = True
                count += 1
    taken = 0
    for rank in range(n):
        if survives[rank]:
            index[taken] = rows[rank]
            taken += 1
            if taken == limit:
                break
    return taken


@compiled
def select(
    boxes: Any, scores: Any, labels: Any, counts: Any, wanted: Any,
    score: float, iou: float, cap: int, limit: int, class_agnostic: bool,
) -> Any:  # fmt: skip
    """Select from a batch as `detkit.ops.nms` describes it.

    boxes [B, N, 4] and scores [B, N] float32, labels [B, N], counts [B] rows that hold and wanted labels int64. Returns
    index [B, limit] int64 of the rows that are left, by falling score, zero beyond their number [B] int64.
    """
    index = np.zeros((len(boxes), limit), np.int64)
    taken = np.zeros(len(boxes), np.int64)
    for b in range(len(boxes)):
        rows = _by_score(scores[b], _entering(scores[b, : counts[b]], labels[b], wanted, np.float32(score)))[:cap]
        groups = np.zeros_like(labels[b]) if class_agnostic else labels[b]
        taken[b] = _nms_of_picture(boxes[b], groups, rows, np.float32(iou), limit, index[b])
    return index, taken
