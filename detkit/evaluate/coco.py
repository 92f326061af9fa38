"""COCO's detection metrics: AP over IoU .50:.05:.95 and its relatives, the twelve numbers of pycocotools.

Two programs can match detections to objects: hotcoco (in Rust, the default) and pycocotools (the reference). They get
the same input and give the same numbers. Pictures, classes and objects are numbered anew for them, from 1: ids may then
be strings, and pycocotools takes an object whose id is 0 for one that nothing matched. COCO's metric ignores crowd
objects; it knows nothing of VOC's difficult ones, and counts them.

Shapes: T = 10 IoU thresholds, R = 101 recalls, C classes, A = 4 areas (all, small, medium, large), L = 3 limits of
detections per picture and class (1, 10, 100).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from detkit.evaluate.records import NUMBERS, Bools, DetectionTable, Evaluator, Floats, GroundTruth, Ints

Program = Literal["hotcoco", "pycocotools"]


@dataclass(frozen=True, slots=True)
class CocoClass:
    """AP (IoU .50:.95) and AP50 of one class, None where it has no objects; objects: how many are to be found."""

    objects: int
    AP: float | None
    AP50: float | None


@dataclass(frozen=True, slots=True, eq=False)
class CocoResult:
    """COCO's twelve numbers, None where there is nothing to average (pycocotools writes −1).

    AP, AP50, AP75 at IoU .50:.95, .50, .75; APs, APm, APl for objects of up to 32², up to 96², and more pixels; AR1,
    AR10, AR100 with that many detections per picture and class; ARs, ARm, ARl by area. per_class by name.
    curves: of each class that has objects, the precision [101] at IoU .50 for the recalls 0, .01 … 1.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    per_class: dict[str, CocoClass]
    curves: dict[str, Floats]

    curve_iou: ClassVar[float] = 0.5

    @property
    def summary(self) -> dict[str, float | None]:
        """The twelve numbers by name, in pycocotools' order."""
        return {name: getattr(self, name) for name in NUMBERS}

    def curve_score(self, name: str) -> float:
        """The AP that belongs to a class' curve: AP50, the mean of its values."""
        return float(self.curves[name].mean())

    def to_json(self) -> dict[str, Any]:
        """Return the metric's name, the twelve numbers, and AP and AP50 of each class."""
        per_class = {name: {"AP": scores.AP, "AP50": scores.AP50} for name, scores in self.per_class.items()}
        return {"metric": "coco", **self.summary, "per_class": per_class}


class CocoEvaluator(Evaluator[CocoResult]):
    """COCO's metrics; program: which library matches detections to objects."""

    def __init__(
        self, truth: GroundTruth, to_data: Sequence[int | None] | None = None, program: Program = "hotcoco"
    ) -> None:
        super().__init__(truth, to_data)
        self.program = program

    def compute(self) -> CocoResult:
        """Compute the metrics over all pictures of the data set, those without detections included."""
        match = _match_with_hotcoco if self.program == "hotcoco" else _match_with_pycocotools
        precision, recall = match(self.truth, self.detections)
        every = precision[..., 0, 2]  # [T, R, C] of all areas, with 100 detections
        objects = self.truth.count_per_class(~self.truth.crowd)
        classes = list(enumerate(zip(self.truth.classes, objects, strict=True)))
        return CocoResult(
            AP=_mean(every),
            AP50=_mean(every[0]),
            AP75=_mean(every[5]),
            APs=_mean(precision[..., 1, 2]),
            APm=_mean(precision[..., 2, 2]),
            APl=_mean(precision[..., 3, 2]),
            AR1=_mean(recall[..., 0, 0]),
            AR10=_mean(recall[..., 0, 1]),
            AR100=_mean(recall[..., 0, 2]),
            ARs=_mean(recall[..., 1, 2]),
            ARm=_mean(recall[..., 2, 2]),
            ARl=_mean(recall[..., 3, 2]),
            per_class={
                name: CocoClass(count, _mean(every[..., label]), _mean(every[0, :, label]))
                for label, (name, count) in classes
            },
            curves={name: every[0, :, label] for label, (name, count) in classes if count},
        )


def _mean(values: Floats) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _match_with_hotcoco(truth: GroundTruth, found: DetectionTable) -> tuple[Floats, Floats]:
    """Return precision [T, R, C, A, L] and recall [T, C, A, L]; −1 where there are no objects."""
    import hotcoco

    objects = hotcoco.COCO.from_arrays(
        *_images_and_categories(truth),
        truth.pictures + 1,
        truth.labels + 1,
        truth.boxes_xywh,
        area=truth.areas,
        iscrowd=truth.crowd,
    )
    rows = np.column_stack([found.pictures + 1, found.boxes_xywh, found.scores, found.labels + 1])
    evaluation = hotcoco.COCOeval(objects, objects.load_res(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    tables: Any = evaluation.eval
    return tables["precision"], tables["recall"]


def _match_with_pycocotools(truth: GroundTruth, found: DetectionTable) -> tuple[Floats, Floats]:
    """Do the same with the reference program."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, categories = _images_and_categories(truth)
    areas = found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        objects, detections = COCO(), COCO()
        for table, annotations in (
            (objects, _annotations(truth, truth.areas, truth.crowd)),
            (detections, _annotations(found, areas, np.zeros(len(found), np.bool_), found.scores)),
        ):
            table.dataset = {"images": images, "categories": categories, "annotations": annotations}
            table.createIndex()
        evaluation = COCOeval(objects, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _images_and_categories(truth: GroundTruth) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images = [{"id": number} for number in range(1, len(truth.image_ids) + 1)]
    # Not their names, which may be empty: hotcoco would write about it to stderr.
    return images, [{"id": number, "name": str(number)} for number in range(1, len(truth.classes) + 1)]


def _annotations(
    table: GroundTruth | DetectionTable, areas: Floats, crowd: Bools, scores: Floats | None = None
) -> list[dict[str, Any]]:
    columns: dict[str, Ints | Floats] = {
        "id": np.arange(1, len(areas) + 1),
        "image_id": table.pictures + 1,
        "category_id": table.labels + 1,
        "bbox": table.boxes_xywh,
        "area": areas,
        "iscrowd": crowd.astype(np.int64),
    }
    if scores is not None:
        columns["score"] = scores
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
