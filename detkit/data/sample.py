"""What the readers of every format make: samples, and the data set that holds them.

Shapes: M objects of a picture, N objects of all pictures of a data set.
Boxes are checked here, at the border: what is impossible is an error that names its place, what can be mended is
mended, counted and named in `Dataset.notes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detkit.data.picture import MAX_PIXELS, read_picture
from detkit.errors import DetkitError
from detkit.structures import Target

_ROUNDING = 0.01  # pixels by which a box may leave its picture unmentioned: COCO rounds to two decimals


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture of a data set and what is true of it.

    id: COCO's image id, else the file's stem. height, width in pixels as the annotation records them. boxes [M, 4]
    xyxy pixels, labels [M], crowd [M], difficult [M]; the arrays are read-only. oriented: the annotation is of the
    picture as its EXIF tag turns it. draw makes the picture of a generated data set, whose path is only a name.
    somewhere: the labels are the picture's own, of objects that are somewhere in it; they count as crowds.
    """

    id: int | str
    path: Path
    height: int
    width: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    oriented: bool = False
    draw: Callable[[], NDArray[np.uint8]] | None = None
    somewhere: bool = False

    def target(self) -> Target:
        """Return the objects as tensors of their own memory."""
        somewhere = np.full(len(self.labels), self.somewhere)
        columns = self.boxes, self.labels, self.crowd, self.difficult, somewhere
        return Target(*map(torch.tensor, columns))

    def read(self, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Return the picture [height, width, 3] in RGB; another size than the annotation's is an error.

        A file with more than max_pixels is one too.
        The picture is taken as stored, and turned by its EXIF tag only where that gives the recorded size.
        """
        if self.draw is not None:
            return self.draw()
        size = self.height, self.width
        picture = read_picture(self.path, apply_orientation=self.oriented, max_pixels=max_pixels)
        if picture.shape[:2] == size[::-1] != size:
            picture = read_picture(self.path, apply_orientation=not self.oriented, max_pixels=max_pixels)
        if picture.shape[:2] != size:
            height, width = picture.shape[:2]
            raise DetkitError(
                f"{self.path}: the picture is {width} wide and {height} high, but its annotation says {self.width} "
                f"wide and {self.height} high; correct the annotation or restore the original picture"
            )
        return picture


@dataclass(frozen=True)
class Dataset:
    """The pictures of one split.

    source: the file or folder, for messages. category_ids: the id of each class in result files (COCO's own, which
    have gaps; else 1 … C). notes: what was left out or mended, counted and named, for people to read.
    annotation_file: the COCO file that `ground_truth()` hands out.
    """

    source: Path
    split: str | None
    classes: tuple[str, ...]
    samples: list[Sample]
    category_ids: tuple[int, ...]
    notes: list[str]
    annotation_file: Path | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def ground_truth(self) -> dict[str, Any]:
        """Return a fresh COCO dictionary (`images`, `annotations`, `categories`) to evaluate against.

        Of a COCO set it is the file's own content, boxes of zero size included; only an absent `iscrowd` or `area`,
        which COCO's evaluation needs, is filled in. Of other sets it is made from the samples: image ids are
        `Sample.id`, bbox is xywh as written in the annotation, area = w · h, and difficult objects carry
        `"difficult": 1` with `iscrowd` 0. Only VOC's metric heeds that: pycocotools overwrites `ignore` by `iscrowd`.
        """
        if self.annotation_file is not None:
            truth: dict[str, Any] = json.loads(self.annotation_file.read_bytes())
            for annotation in truth["annotations"]:
                annotation.setdefault("iscrowd", 0)
                if "area" not in annotation:
                    annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            return truth
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for sample in self.samples:
            images.append(
                {"id": sample.id, "file_name": sample.path.name, "height": sample.height, "width": sample.width}
            )
            rows = zip(
                sample.boxes.tolist(),
                sample.labels.tolist(),
                sample.crowd.tolist(),
                sample.difficult.tolist(),
                strict=True,
            )
            for (x1, y1, x2, y2), label, crowd, difficult in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes an object with id 0 for no object
                        "image_id": sample.id,
                        "category_id": self.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(crowd),
                        "difficult": int(difficult),
                    }
                )
        categories = [{"id": i, "name": name} for i, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


class Picture(NamedTuple):
    """What a data set records of a picture beside its objects."""

    id: int | str
    path: Path
    height: int
    width: int


class Objects(NamedTuple):
    """The objects of all pictures as one table: picture [N] index, boxes [N, 4] xyxy, labels, crowd, difficult [N]."""

    picture: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]


def make_samples(
    pictures: Sequence[Picture], objects: Objects, describe: Callable[[int], str], *, oriented: bool = False
) -> tuple[list[Sample], list[str]]:
    """Check the boxes, share them out to their pictures, and say in notes what was left out or clipped.

    describe(row) names file, place and field of an object. Errors: a box that is not finite, inverted, or wholly
    outside its picture. Boxes of zero width or height are left out; boxes partly outside are clipped.
    """
    sizes = np.array([(picture.width, picture.height) for picture in pictures], np.float64).reshape(-1, 2)
    limit = sizes[objects.picture]
    low, high = objects.boxes[:, :2], objects.boxes[:, 2:]
    flat = (low == high).any(1)
    for wrong, problem in (
        (~np.isfinite(objects.boxes).all(1), "has a coordinate that is not finite"),
        ((high < low).any(1), "is inverted: its right or lower edge comes first"),
        (~flat & ((low >= limit) | (high <= 0)).any(1), "lies wholly outside the picture"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            width, height = limit[row]
            box = ", ".join(f"{value:.6g}" for value in objects.boxes[row])
            raise DetkitError(
                f"{describe(row)}: the box with corners [{box}] {problem} ({width:.0f} wide, {height:.0f} high); "
                "correct or delete it"
            )
    notes = []
    leaves = ~flat & ((low < -_ROUNDING) | (high > limit + _ROUNDING)).any(1)
    if leaves.any():
        notes.append(f"{count(leaves.sum(), 'box')} clipped to the picture: {first(leaves, describe)}")
    boxes = np.clip(objects.boxes, 0, np.tile(limit, 2)).astype(np.float32)
    empty = np.any(boxes[:, :2] >= boxes[:, 2:], axis=1)
    if empty.any():
        notes.append(f"{count(empty.sum(), 'box')} of zero width or height left out: {first(empty, describe)}")

    rows = np.flatnonzero(~empty)
    rows = rows[np.argsort(objects.picture[rows], kind="stable")]
    columns = boxes[rows], objects.labels[rows], objects.crowd[rows], objects.difficult[rows]
    for column in columns:
        column.flags.writeable = False
    boxes, labels, crowd, difficult = columns
    ends = np.searchsorted(objects.picture[rows], np.arange(len(pictures) + 1)).tolist()
    samples = [
        Sample(*picture, boxes[a:b], labels[a:b], crowd[a:b], difficult[a:b], oriented)
        for picture, (a, b) in zip(pictures, pairwise(ends), strict=True)
    ]
    return samples, notes


def count(number: int, noun: str) -> str:
    """Return "1 box", "2 boxes"."""
    plural = "es" if noun.endswith("x") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def first(mask: NDArray[np.bool_], describe: Callable[[int], str]) -> str:
    """Name the first few rows of a mask."""
    rows = np.flatnonzero(mask).tolist()
    return "; ".join(describe(row) for row in rows[:5]) + (f"; and {len(rows) - 5} more" if len(rows) > 5 else "")
