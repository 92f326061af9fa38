"""Anchors from the boxes of a data set: k-means with the distance 1 − IoU.

YOLOv2 (Redmon and Farhadi, 2016, arXiv 1612.08242), section 2, "Dimension Clusters". IoU is that of boxes with a common
centre, so a box counts by its shape alone.

Shapes: N boxes or distinct shapes [N, 2] (width, height in pixels) with weights [N], how often each occurs; K anchors
[K, 2].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.errors import DetkitError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

RECALL_IOU = 0.5
_ROWS = 1 << 16  # of all boxes, looked at together: what fits a cache
_EXACT = 16_384  # distinct shapes that are told apart as they are; more are counted in cells
_COARSE = 4096  # shapes among which starts are tried
_CELL = 0.01  # relative width of the finest cells
_STARTS = 16  # among _COARSE shapes; fewer get more, as many as take the same time
_PATIENCE = 3  # times as many where there are no more than _COARSE shapes from the beginning, which is soon done
_MOST_STARTS = 192
_FINISHED = 2  # starts that are led to their end among all shapes
_ROUNDS = 30
# The size of an anchor, the root of its area, that fits a stride, in strides: so chosen that the nine anchors that
# YOLOv3 was released with come to the scales where its cfg has them, three at each of 8, 16 and 32.
_SIZE = 3.75


@dataclass(frozen=True, slots=True, eq=False)
class AnchorFit:
    """How well anchors [K, 2] fit boxes.

    average_iou: mean over all boxes of the IoU with the anchor that fits best. best_possible_recall: share of boxes
    that some anchor overlaps by at least `RECALL_IOU`. shares [K]: share of boxes that each anchor fits best.
    """

    anchors: Floats
    average_iou: float
    best_possible_recall: float
    shares: Floats


def find_anchors(
    shapes: Floats,
    k: int,
    *,
    seed: int = 0,
    weights: Floats | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> AnchorFit:
    """Find the k anchors that overlap boxes most, sorted by area and rounded to four digits, and how well they fit.

    shapes [N, 2] above zero; weights [N]: how often each occurs, by default once. advance: called with the share of
    the work done since the last call. The same seed gives the same anchors. More than 16,384 boxes are counted in cells
    of a hundredth or more of their width and height, whose mean stands for them, so that only counting and the final
    measurement, which is of all boxes as they are, take longer for more boxes. Raises DetkitError for fewer than k
    different shapes.

    After k-means, whose centres are medians, every anchor moves to where it overlaps its own boxes most.
    """
    if not len(shapes):
        raise DetkitError("there are no boxes to fit anchors to")
    fine = _count(shapes, weights, _EXACT)
    if len(fine[0]) < k:
        raise DetkitError(
            f"k = {k}: the boxes have only {len(fine[0])} different shapes; ask for at most that many anchors"
        )
    coarse = _count(*fine, max(_COARSE, 2 * k))
    order = np.argsort(coarse[0], axis=0, kind="stable")
    patience = _PATIENCE if len(fine[0]) <= _COARSE else 1
    count = min(_MOST_STARTS, max(1, patience * _STARTS * _COARSE // len(coarse[0])))
    starts: list[tuple[float, Floats]] = []
    for number in range(count):
        anchors = _spread(*coarse, k, np.random.default_rng([seed, k, number]))
        anchors = _climb(*coarse, _lloyd(*coarse, anchors, order), 0.05, 0.01)
        starts.append((_total(*coarse, anchors), anchors))
        advance(0.9 / count)
    starts.sort(key=lambda start: -start[0])
    ends = [_climb(*fine, anchors, 0.02, 2e-4) for _, anchors in starts[:_FINISHED]]
    best = measure_anchors(shapes, _rounded(max(ends, key=lambda anchors: _total(*fine, anchors))), weights=weights)
    advance(0.1)
    return best


def count_distinct(shapes: Floats) -> int:
    """Return how many different shapes there are, which is how many anchors can be found; see `find_anchors`."""
    return len(_count(shapes, None, _EXACT)[0])


def measure_anchors(shapes: Floats, anchors: Floats, *, weights: Floats | None = None) -> AnchorFit:
    """Return how well anchors [K, 2], in the order in which they are given, fit boxes of shapes [N, 2].

    Of two anchors that overlap a box equally the first has it. weights [N]: how often each shape occurs.
    """
    if not len(shapes):
        raise DetkitError("there are no boxes to fit anchors to")
    total, recalled, counts = 0.0, 0.0, np.zeros(len(anchors))
    for rows in _slices(len(shapes)):
        label, iou = _nearest(shapes[rows].copy(order="F"), anchors)
        weight = np.ones(len(iou)) if weights is None else weights[rows]
        total += float(iou @ weight)
        recalled += float(weight[iou >= RECALL_IOU].sum())
        counts += np.bincount(label, weight, len(anchors))
    objects = float(counts.sum())
    return AnchorFit(anchors, total / objects, recalled / objects, counts / objects)


def assign_scales(anchors: Floats, strides: Sequence[int], *, every: bool = False) -> list[Floats]:
    """Assign anchors [K, 2], sorted by area, to the scales whose strides suit their sizes: a list for each stride.

    strides: rising. An anchor goes where the root of its area is nearest, in ratio, to 3.75 strides. every: no scale
    may stay empty, as a detector that has it needs an anchor there; of the anchors at its ends a neighbour gives one.
    YOLOv3 (arXiv 1804.02767), section 2.3, divides the anchors evenly, whatever their sizes; where all objects are of
    one size that puts small objects on coarse maps. Raises DetkitError when every scale needs one and there are fewer.
    """
    if every and len(anchors) < len(strides):
        raise DetkitError(
            f"k = {len(anchors)}: each of the {len(strides)} scales (strides {', '.join(map(str, strides))}) needs an "
            "anchor; ask for more, or leave out scales"
        )
    size = np.log(anchors.prod(1)) / 2
    fitting = np.abs(size[:, None] - np.log(_SIZE * np.array(strides))).argmin(1)
    ends = np.bincount(fitting, minlength=len(strides)).cumsum()
    if every:
        number = np.arange(len(strides))
        ends = np.maximum.accumulate((ends - number).clip(1, len(anchors) - len(strides) + 1)) + number
    return np.split(anchors, ends[:-1])


def _count(shapes: Floats, weights: Floats | None, limit: int) -> tuple[Floats, Floats]:
    """Distinct shapes and their weights, or more than `limit` merged in ever larger cells; columns are contiguous."""
    if len(shapes) <= limit:
        distinct, place = np.unique(shapes, axis=0, return_inverse=True)
        return distinct.astype(np.float64, order="F"), np.bincount(place.ravel(), weights).astype(np.float64)
    cell = _CELL
    found = _cells(shapes, weights, cell)
    while len(found[0]) > limit:
        cell *= 1.5
        found = _cells(*found, cell)
    return found


def _cells(shapes: Floats, weights: Floats | None, cell: float) -> tuple[Floats, Floats]:
    """The mean shape and the weight of each cell of a logarithmic grid that holds any."""
    low, high = (np.floor(np.log(side(0)) / cell).astype(np.int64) for side in (shapes.min, shapes.max))
    extent = high - low + 1
    table = np.zeros((3, int(extent.prod())))
    for rows in _slices(len(shapes), 16 * _ROWS):
        part = shapes[rows].astype(np.float64)
        column, row = np.clip(np.floor(np.log(part) / cell).astype(np.int64) - low, 0, extent - 1).T
        weight = np.ones(len(part)) if weights is None else weights[rows]
        for sums, value in zip(table, (weight, weight * part[:, 0], weight * part[:, 1]), strict=True):
            sums += np.bincount(row * extent[0] + column, value, len(sums))
    table = table[:, table[0] > 0]
    return (table[1:] / table[0]).T, table[0]


def _spread(shapes: Floats, weights: Floats, k: int, random: np.random.Generator) -> Floats:
    """Choose k shapes to start from, each with a probability that grows with its distance from those chosen before.

    K-means++ (Arthur and Vassilvitskii, 2007), where the squared distance of a point is its cost: here 1 − IoU.
    """
    chosen = np.empty((k, 2))
    distance = np.ones(len(shapes))
    for index in range(k):
        ladder = (weights * distance).cumsum()
        chosen[index] = shapes[np.searchsorted(ladder, random.random() * ladder[-1], side="right")]
        distance = np.minimum(distance, 1 - _iou(shapes, chosen[index]))
    return chosen


def _lloyd(shapes: Floats, weights: Floats, anchors: Floats, order: Ints) -> Floats:
    """Give boxes to the anchor that overlaps them most and move it to their median, until nothing changes.

    order [N, 2]: the shapes' rows by width and by height. The paper leaves open what a centre is; a few large boxes
    move a median less than a mean. It may lower the average IoU a little, so the best anchors on the way are returned.
    """
    before, best, found = None, -1.0, anchors
    for _ in range(_ROUNDS):
        label, iou = _nearest(shapes, anchors)
        if iou @ weights > best:
            best, found = float(iou @ weights), anchors
        if before is not None and np.array_equal(label, before):
            break
        before = label
        sums = np.bincount(label, weights, len(anchors))
        middle = sums.cumsum() - sums / 2
        moved = anchors.copy()
        for side in (0, 1):
            rows = order[:, side]
            rows = rows[label[rows].argsort(kind="stable")]  # by anchor, and within by width or height
            place = weights[rows].cumsum().searchsorted(middle).clip(max=len(rows) - 1)
            moved[:, side] = np.where(sums > 0, shapes[rows[place], side], anchors[:, side])
        anchors = moved
    return found


def _climb(shapes: Floats, weights: Floats, anchors: Floats, step: float, least: float) -> Floats:
    """Change widths and heights as long as the average IoU rises, by ever smaller relative steps down to `least`.

    An anchor is judged by its own boxes, so all move at once; when boxes then change anchors the average only rises.
    """
    while step > least:
        label, iou = _nearest(shapes, anchors)
        own = np.bincount(label, weights * iou, len(anchors))
        moved = False
        for side in (0, 1):
            for factor in (1 + step, 1 / (1 + step)):
                trial = anchors.copy()
                trial[:, side] *= factor
                gained = np.bincount(label, weights * _iou(shapes, trial[label]), len(anchors))
                better = gained > own * (1 + 1e-9)  # more than rounding errors
                anchors = np.where(better[:, None], trial, anchors)
                own = np.where(better, gained, own)
                moved |= bool(better.any())
        if not moved:
            step /= 2
    return anchors


def _nearest(shapes: Floats, anchors: Floats) -> tuple[NDArray[np.int16], Floats]:
    """The anchor that overlaps each shape most, the first of equals, and its IoU."""
    label, best = np.zeros(len(shapes), np.int16), _iou(shapes, anchors[0])
    for index in range(1, len(anchors)):
        iou = _iou(shapes, anchors[index])
        label[iou > best] = index
        np.maximum(best, iou, out=best)
    return label, best


def _iou(shapes: Floats, anchors: Floats) -> Floats:
    """IoU of each shape [N, 2] with an anchor [2], or with one of its own [N, 2]."""
    (w, h), (anchor_w, anchor_h) = shapes.T, anchors.T
    inter = np.minimum(w, anchor_w) * np.minimum(h, anchor_h)
    iou: Floats = inter / (w * h + anchor_w * anchor_h - inter)
    return iou


def _total(shapes: Floats, weights: Floats, anchors: Floats) -> float:
    return float(_nearest(shapes, anchors)[1] @ weights)


def _rounded(anchors: Floats) -> Floats:
    """Four digits, by area, of equal areas the narrower first."""
    numbers = sorted(([float(f"{side:.4g}") for side in anchor] for anchor in anchors), key=lambda a: (a[0] * a[1], a))
    return np.array(numbers)


def _slices(length: int, rows: int = _ROWS) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, length, rows))
