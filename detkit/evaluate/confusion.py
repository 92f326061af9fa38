"""Which class is taken for which.

Shapes: C classes; index C is the background.
"""

from __future__ import annotations

import numpy as np
import torch

from detkit.evaluate.records import DetectionTable, Floats, GroundTruth, Ints
from detkit.ops import boxes as box_ops


def confusion_matrix(truth: GroundTruth, detections: DetectionTable, score: float = 0.25, iou: float = 0.5) -> Ints:
    """Count [C + 1, C + 1] objects by their true class (rows) and the class they were detected as (columns).

    Detections of at least `score`, best first, each take the object of whatever class that they overlap most of those
    still free, if by `iou` or more. An object that none takes was missed: it counts in the background's column. A
    detection that takes none counts in the background's row, unless half of it or more lies in a crowd. Difficult
    objects, and detections that take one, do not count.
    """
    background = len(truth.classes)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    found = detections[detections.scores >= score]
    found = found[np.argsort(-found.scores, kind="stable")]
    objects_of = _rows_by_picture(truth.pictures, len(truth.image_ids))
    found_of = _rows_by_picture(found.pictures, len(truth.image_ids))
    for here, seen in zip(objects_of, found_of, strict=True):
        crowds, here = here[truth.crowd[here]], here[~truth.crowd[here]]
        taken = _take(_corners(found.boxes_xywh[seen]), _corners(truth.boxes_xywh[here]), iou)
        in_crowd = _inside(_corners(found.boxes_xywh[seen]), _corners(truth.boxes_xywh[crowds])) >= 0.5
        for detection, choice, excused in zip(seen, taken, in_crowd, strict=True):
            if choice < 0:
                matrix[background, found.labels[detection]] += not excused
            elif not truth.difficult[here[choice]]:
                matrix[truth.labels[here[choice]], found.labels[detection]] += 1
        missed = np.delete(here, taken[taken >= 0])
        np.add.at(matrix[:, background], truth.labels[missed[~truth.difficult[missed]]], 1)
    return matrix


def _take(detections: torch.Tensor, objects: torch.Tensor, iou: float) -> Ints:
    """Return for each detection [N, 4], best first, the free object [M, 4] that it overlaps most, or -1."""
    overlaps = box_ops.pairwise_iou(detections, objects).numpy()
    taken = np.full(len(detections), -1)
    if not overlaps.size:
        return taken
    for row, overlap in enumerate(overlaps):
        choice = overlap.argmax()
        if overlap[choice] >= iou:
            taken[row] = choice
            overlaps[:, choice] = -1
    return taken


def _inside(boxes: torch.Tensor, crowds: torch.Tensor) -> Floats:
    """Return the largest share of each box [N, 4] that one of the crowds [M, 4] covers."""
    if not len(crowds):
        return np.zeros(len(boxes))
    common = box_ops.intersection(boxes[:, None], crowds)
    share: Floats = (common / box_ops.area(boxes)[:, None].clamp(min=1e-9)).amax(1).numpy()
    return share


def _corners(boxes_xywh: Floats) -> torch.Tensor:
    return box_ops.xywh_to_xyxy(torch.from_numpy(boxes_xywh))


def _rows_by_picture(pictures: Ints, count: int) -> list[Ints]:
    order = np.argsort(pictures, kind="stable")
    return np.split(order, np.searchsorted(pictures[order], np.arange(1, count)))
