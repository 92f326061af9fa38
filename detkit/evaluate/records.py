"""What metrics compare: the objects of a data set, and the detections made in it, as columns.

Shapes: P pictures, C classes, M objects, N detections. Boxes are xywh (COCO's order) in float64, exactly as they were
recorded: turning them to corners and back would round, and an overlap that lies on a threshold would change sides.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from detkit.data.coco import read_json, short
from detkit.errors import DetkitError
from detkit.structures import Detections

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ImageId = int | str

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The names of COCO's twelve numbers in pycocotools' order: the keys of every metric's JSON."""


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """The objects of a data set.

    image_ids [P] in rising order, numbers before texts; classes [C] and category_ids [C] in the order of the labels,
    which is the rising order of the ids, as in every Dataset; pictures [M] index into image_ids, labels [M],
    boxes_xywh [M, 4], areas [M] (COCO's, of the mask), crowd [M], difficult [M].
    """

    image_ids: tuple[ImageId, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: Ints
    labels: Ints
    boxes_xywh: Floats
    areas: Floats
    crowd: Bools
    difficult: Bools

    @staticmethod
    def from_coco(ground_truth: Mapping[str, Any]) -> GroundTruth:
        """Take a valid ground truth in COCO's format; `area`, `iscrowd` and `difficult` may be absent."""
        rows = ground_truth["annotations"]
        categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
        image_ids = [image["id"] for image in ground_truth["images"]]
        image_ids.sort(key=lambda image_id: (isinstance(image_id, str), image_id))
        picture = {image_id: index for index, image_id in enumerate(image_ids)}
        label = {category["id"]: index for index, category in enumerate(categories)}
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        return GroundTruth(
            tuple(image_ids),
            tuple(category["name"] for category in categories),
            tuple(label),
            np.array([picture[row["image_id"]] for row in rows], np.int64),
            np.array([label[row["category_id"]] for row in rows], np.int64),
            boxes,
            np.array([row.get("area", w * h) for row, (_, _, w, h) in zip(rows, boxes, strict=True)], np.float64),
            np.array([row.get("iscrowd", 0) for row in rows], np.bool_),
            np.array([row.get("difficult", 0) for row in rows], np.bool_),
        )

    def count_per_class(self, objects: Bools) -> list[int]:
        """[C] how many of the marked objects [M] each class has."""
        counts: list[int] = np.bincount(self.labels[objects], minlength=len(self.classes)).tolist()
        return counts


@dataclass(frozen=True, slots=True, eq=False)
class DetectionTable:
    """Detections in a data set: pictures [N] index into its image_ids, labels [N], boxes_xywh [N, 4], scores [N]."""

    pictures: Ints
    labels: Ints
    boxes_xywh: Floats
    scores: Floats

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Bools | Ints) -> DetectionTable:
        return DetectionTable(self.pictures[rows], self.labels[rows], self.boxes_xywh[rows], self.scores[rows])

    @staticmethod
    def join(tables: Sequence[DetectionTable]) -> DetectionTable:
        """Return the rows of all tables, in order."""
        tables = [_EMPTY, *tables]
        return DetectionTable(
            *(np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(DetectionTable))
        )


_EMPTY = DetectionTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))

Result = TypeVar("Result")


class Evaluator(ABC, Generic[Result]):
    """Collects detections, then computes a metric over all pictures of a data set.

    truth: the data set's objects. to_data [C_model]: the data set's label for each of the model's, None for a class
    that the data set does not have: such detections are left out. By default the labels are the same.
    """

    def __init__(self, truth: GroundTruth, to_data: Sequence[int | None] | None = None) -> None:
        self.truth = truth
        labels = range(len(truth.classes)) if to_data is None else to_data
        self._to_data = np.array([-1 if label is None else label for label in labels], np.int64)
        self._picture = {image_id: index for index, image_id in enumerate(truth.image_ids)}
        self._tables: list[DetectionTable] = []

    def update(self, image_id: ImageId, detections: Detections) -> None:
        """Add what was found in one picture; a picture without detections may be left out."""
        labels = self._to_data[detections.labels.numpy(force=True)]
        boxes = detections.boxes.numpy(force=True).astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        pictures = np.full(len(labels), self._picture[image_id], np.int64)
        table = DetectionTable(pictures, labels, boxes, detections.scores.numpy(force=True).astype(np.float64))
        self.extend(table[labels >= 0])

    def extend(self, table: DetectionTable) -> None:
        """Add detections in many pictures."""
        self._tables.append(table)

    @property
    def detections(self) -> DetectionTable:
        """All detections so far."""
        return DetectionTable.join(self._tables)

    @abstractmethod
    def compute(self) -> Result:
        """Compute the metric over all pictures of the data set, those without detections included."""


def read_results(path: Path, truth: GroundTruth) -> DetectionTable:
    """Read a COCO result list: [{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, …].

    Raises DetkitError with the file, the entry's number (the first is 0) and the field on anything that is off, also
    when an image or category is none of the data set's.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DetkitError(f"{path}: expected a list of detections at the top, got {_kind(entries)}")
    picture = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    label = {category_id: index for index, category_id in enumerate(truth.category_ids)}
    for number, entry in enumerate(entries):
        problem = _problem(entry, picture, label)
        if problem:
            raise DetkitError(f"{path}, entry {number}: {problem}")
    return DetectionTable(
        np.array([picture[entry["image_id"]] for entry in entries], np.int64),
        np.array([label[entry["category_id"]] for entry in entries], np.int64),
        np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        np.array([entry["score"] for entry in entries], np.float64),
    )


def to_results(table: DetectionTable, truth: GroundTruth) -> list[dict[str, Any]]:
    """Return detections as a COCO result list, with the data set's image and category ids."""
    columns = table.pictures.tolist(), table.labels.tolist(), table.boxes_xywh.tolist(), table.scores.tolist()
    return [
        {"image_id": truth.image_ids[picture], "category_id": truth.category_ids[label], "bbox": box, "score": score}
        for picture, label, box, score in zip(*columns, strict=True)
    ]


def _problem(entry: Any, pictures: Mapping[ImageId, int], labels: Mapping[int, int]) -> str | None:
    """Say what is wrong with an entry of a COCO result list, or return None."""
    if not isinstance(entry, dict):
        return f"expected an object with image_id, category_id, bbox and score, got {_kind(entry)}"
    for field in ("image_id", "category_id", "bbox", "score"):
        if field not in entry:
            return f"the field {field!r} is missing"
    image, category, box, score = entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]
    if type(image) not in (int, str) or image not in pictures:
        return (
            f"image_id {short(image)} is none of the data set's {len(pictures)} pictures; "
            "pass the data and split that the detections were made for"
        )
    if type(category) is not int or category not in labels:
        return f"category_id {short(category)} is none of the data set's {len(labels)} categories ({_some(labels)})"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox must be four finite numbers [x, y, width, height], got {short(box)}"
    if box[2] < 0 or box[3] < 0:
        return f"bbox is [x, y, width, height], so the last two cannot be negative, got {short(box)}"
    if not _is_finite(score):
        return f"score must be a finite number, got {short(score)}"
    return None


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # whole numbers have no end


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), short(value))


def _some(values: Mapping[int, int]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", shown[-1]])
