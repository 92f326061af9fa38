"""PASCAL VOC's average precision (Everingham et al., IJCV 2010), as the development kit's VOCevaldet.m computes it.

Boxes are of whole pixels, both ends included: width = x2 − x1 + 1. A detection is judged by the object of its class
that it overlaps most. If that overlap reaches the threshold, the first detection (best score first) of the object is
right and every further one is wrong; below the threshold it is wrong. If the object is difficult, the detection does
not count, and difficult objects need not be found. Crowd objects (of COCO data) are taken for difficult.

`voc07` averages the precision at the recalls 0, .1 … 1; `voc` (from 2010 on) is the area under the whole curve. In both
the precision at a recall is the best one at that recall or any higher.

Shapes: N detections of a class in all pictures, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from detkit.evaluate.records import NUMBERS, Bools, DetectionTable, Evaluator, Floats, GroundTruth, Ints

Convention = Literal["voc07", "voc"]

# In floating point these lie a hair above .3, .6 and .7, so that a recall of exactly 3/10 does not reach .3. All
# programs that published numbers do it like this, so the numbers compare.
_ELEVEN_RECALLS = np.arange(0, 1.1, 0.1)


@dataclass(frozen=True, slots=True)
class VocClass:
    """AP of one class, None where it has no objects; objects: how many are to be found."""

    objects: int
    AP: float | None


@dataclass(frozen=True, slots=True, eq=False)
class VocResult:
    """VOC's AP at one IoU threshold: the mean over the classes that have objects, None when none has.

    curves: of each class that has objects, the precision [101] for the recalls 0, .01 … 1.
    """

    metric: Convention
    iou: float
    AP: float | None
    per_class: dict[str, VocClass]
    curves: dict[str, Floats]

    @property
    def summary(self) -> dict[str, float | None]:
        """The one number by name."""
        return {"AP": self.AP}

    @property
    def curve_iou(self) -> float:
        """The IoU threshold of the curves."""
        return self.iou

    def curve_score(self, name: str) -> float:
        """The AP that belongs to a class' curve, in this metric's convention."""
        return self.per_class[name].AP or 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the metric's name, the IoU threshold, AP, and AP of each class, under the keys of COCO's metric.

        AP50 and AP75 are AP where that is the threshold; numbers that VOC's metric does not have are None.
        """
        at_iou = {0.5: "AP50", 0.75: "AP75"}.get(self.iou, "AP")
        numbers = dict.fromkeys(NUMBERS) | {"AP": self.AP, at_iou: self.AP}
        per_class = {
            name: {"AP": scores.AP, "AP50": scores.AP if at_iou == "AP50" else None}
            for name, scores in self.per_class.items()
        }
        return {"metric": self.metric, "iou": self.iou, **numbers, "per_class": per_class}


class VocEvaluator(Evaluator[VocResult]):
    """VOC's metric; iou: overlap from which a detection finds an object."""

    def __init__(
        self,
        truth: GroundTruth,
        to_data: Sequence[int | None] | None = None,
        convention: Convention = "voc",
        iou: float = 0.5,
    ) -> None:
        super().__init__(truth, to_data)
        self.convention: Convention = convention
        self.iou = iou

    def compute(self) -> VocResult:
        """Compute the metric over all pictures of the data set, those without detections included."""
        counted = ~(self.truth.crowd | self.truth.difficult)
        detections = self.detections
        per_class, curves = {}, {}
        for label, count in enumerate(self.truth.count_per_class(counted)):
            name = self.truth.classes[label]
            if not count:
                per_class[name] = VocClass(0, None)
                continue
            right = judge(self.truth, detections, label, self.iou)
            hits = np.cumsum(right)
            recall, precision = hits / count, hits / np.arange(1, len(hits) + 1)
            per_class[name] = VocClass(count, average_precision(recall, precision, self.convention))
            curves[name] = interpolate(recall, precision, np.linspace(0, 1, 101))
        values = [scores.AP for scores in per_class.values() if scores.AP is not None]
        mean = float(np.mean(values)) if values else None
        return VocResult(self.convention, self.iou, mean, per_class, curves)


def average_precision(recall: Floats, precision: Floats, convention: Convention) -> float:
    """Average precision [N] over recall [N], both after each detection, best first."""
    if convention == "voc07":
        return float(interpolate(recall, precision, _ELEVEN_RECALLS).mean())
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best).sum())


def interpolate(recall: Floats, precision: Floats, at: Floats) -> Floats:
    """The best precision at each of the recalls `at` or any higher recall, 0 beyond the highest."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return best[np.searchsorted(recall, at)]


def judge(truth: GroundTruth, detections: DetectionTable, label: int, iou: float) -> Bools:
    """[N] whether each detection of a class is right, best first, equal scores in their order.

    Detections of difficult objects are left out.
    """
    objects = np.flatnonzero(truth.labels == label)
    objects = objects[np.argsort(truth.pictures[objects], kind="stable")]
    found = detections[detections.labels == label]
    found = found[np.argsort(-found.scores, kind="stable")]

    best = np.full(len(found), -1)  # the object that a detection overlaps most, if that is enough
    rows_by_picture = np.argsort(found.pictures, kind="stable")
    for rows in _runs(found.pictures, rows_by_picture):
        picture = found.pictures[rows[0]]
        start, end = np.searchsorted(truth.pictures[objects], [picture, picture + 1])
        if start < end:
            here = objects[start:end]
            overlaps = _inclusive_iou(found.boxes_xywh[rows], truth.boxes_xywh[here])
            nearest = overlaps.argmax(1)
            best[rows] = np.where(overlaps[np.arange(len(rows)), nearest] >= iou, here[nearest], -1)

    first = np.zeros(len(found), np.bool_)
    first[np.unique(best, return_index=True)[1]] = True
    ignored = np.append(truth.crowd | truth.difficult, False)[best]  # -1, no object, picks the last
    right: Bools = ((best >= 0) & first)[~ignored]
    return right


def _runs(keys: Ints, order: Ints) -> list[Ints]:
    """Split an order that sorts keys into the runs of equal ones."""
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else []


def _inclusive_iou(a_xywh: Floats, b_xywh: Floats) -> Floats:
    """IoU of all pairs, [N, 4] and [M, 4] → [N, M], in whole pixels with both ends included."""
    a_low, b_low = a_xywh[:, None, :2], b_xywh[None, :, :2]
    a_high, b_high = a_low + a_xywh[:, None, 2:], b_low + b_xywh[None, :, 2:]
    common = np.maximum(np.minimum(a_high, b_high) - np.maximum(a_low, b_low) + 1, 0).prod(-1)
    areas = (a_high - a_low + 1).prod(-1) + (b_high - b_low + 1).prod(-1)
    iou: Floats = common / (areas - common)
    return iou
