"""YOLO's annotations: one text file for each picture, one object a line: `label cx cy w h` in fractions of the picture.

The format of Darknet (Redmon) with the `data.yaml` that later tools put beside it. The label file of
`…/images/a.jpg` is `…/labels/a.txt`; without a folder `images` it lies beside the picture. A line with more than four
coordinates is a polygon, of which the bounding box is taken. Sizes come from the pictures' headers, and pictures are
turned by their EXIF tag, as the tools that write this format do.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from detkit.data.picture import SUFFIXES, picture_size
from detkit.data.sample import Dataset, Objects, Picture, count, make_samples
from detkit.errors import DetkitError


class YoloFile(BaseModel):
    """What `data.yaml` says: names by label, and for each split a folder, a list of pictures, or several of them."""

    # The file belongs to other tools, whose keys are none of ours; numbers may be names (a set of digits).
    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)

    names: tuple[str, ...] = Field(min_length=1)
    path: str | None = None
    train: list[str] = []
    val: list[str] = []
    test: list[str] = []
    nc: int | None = None

    @field_validator("names", mode="before")
    @classmethod
    def _names_by_label(cls, names: object) -> object:
        if not isinstance(names, dict):
            return names
        if set(names) != set(range(len(names))):
            raise ValueError(f"expected the labels 0 to {len(names) - 1} as keys")
        return [names[label] for label in range(len(names))]

    @field_validator("train", "val", "test", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [] if value is None else [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_match_count(self) -> YoloFile:
        if self.nc is not None and self.nc != len(self.names):
            raise ValueError(f"nc is {self.nc}, but names has {len(self.names)}")
        if len(set(self.names)) < len(self.names):
            raise ValueError("a name stands twice in names")
        return self

    @property
    def splits(self) -> dict[str, list[str]]:
        """The entries of the splits that there are."""
        return {split: entries for split in ("train", "val", "test") if (entries := getattr(self, split))}


def read_yolo(file: Path, content: YoloFile, split: str) -> Dataset:
    """Read a split that `data.yaml` names.

    A picture with an empty label file has no objects; one without a label file has none either, and is counted in
    the notes. Errors name the file, the line and the value.
    """
    base = file.parent / (content.path or "")
    paths = [path for entry in content.splits[split] for path in _find_pictures(file, base, entry, split)]
    if len(set(paths)) < len(paths):
        repeated, _ = Counter(paths).most_common(1)[0]
        raise DetkitError(f"{file}: {repeated} stands twice in the split {split!r}; name it once")
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):  # the same names in several folders
        stems = [os.path.relpath(path.with_suffix(""), base) for path in paths]
    pictures = [Picture(stem, path, *picture_size(path)) for stem, path in zip(stems, paths, strict=True)]

    rows: list[tuple[int, Path, int]] = []
    labels, boxes, unlabelled, polygons = [], [], [], 0
    for index, picture in enumerate(pictures):
        label_file = _label_file(picture.path)
        if not label_file.is_file():
            unlabelled.append(picture.path)
            continue
        scale = np.array([picture.width, picture.height] * 2)
        for number, line in enumerate(_lines(label_file), 1):
            if line.strip():
                label, points = _parse(line, f"{label_file}, line {number}", content.names)
                polygons += len(points) != 4
                rows.append((index, label_file, number))
                labels.append(label)
                boxes.append(_corners(points) * scale)
    if len(unlabelled) == len(pictures):
        raise DetkitError(
            f"{file}: no picture of the split {split!r} has a label file; expected, for example, "
            f"{_label_file(pictures[0].path)}"
        )
    objects = Objects(
        picture=np.array([index for index, _, _ in rows], np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        crowd=np.zeros(len(rows), bool),
        difficult=np.zeros(len(rows), bool),
    )
    samples, notes = make_samples(pictures, objects, lambda row: f"{rows[row][1]}, line {rows[row][2]}", oriented=True)
    if unlabelled:
        notes.append(
            f"{count(len(unlabelled), 'picture')} without a label file taken as without objects, the first is "
            f"{unlabelled[0]}"
        )
    if polygons:
        notes.append(f"{count(polygons, 'polygon')} replaced by the bounding box")
    return Dataset(file, split, content.names, samples, tuple(range(1, len(content.names) + 1)), notes)


def _find_pictures(file: Path, base: Path, entry: str, split: str) -> list[Path]:
    # Exporters write paths of the machine they ran on, or `../train/images` for `train/images`.
    tried = [base / entry, file.parent / entry, file.parent / entry.removeprefix("../")]
    source = next((path for path in tried if path.exists()), None)
    if source is None:
        raise DetkitError(f"{file}, {split!r}: there is no folder or list {tried[0]}; correct it or the key 'path'")
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise DetkitError(f"{source}: the folder of the split {split!r} holds no pictures")
        return paths
    paths = []
    for number, line in enumerate(_lines(source), 1):
        if name := line.strip():
            path = next((path for path in (source.parent / name, base / name) if path.is_file()), None)
            if path is None:
                raise DetkitError(f"{source}, line {number}: there is no picture {name}")
            paths.append(path)
    if not paths:
        raise DetkitError(f"{source}: the list of the split {split!r} is empty")
    return paths


def _label_file(picture: Path) -> Path:
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DetkitError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DetkitError(f"{file}: is not a text file") from None


def _parse(line: str, where: str, names: tuple[str, ...]) -> tuple[int, list[float]]:
    """Return the label of a line and its coordinates: cx, cy, w, h, or three or more points of a polygon."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        raise DetkitError(f"{where}: expected numbers: label cx cy w h, got {line.strip()!r}") from None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise DetkitError(
            f"{where}: expected 5 numbers (label cx cy w h) or a label with three or more points, got {len(values)}"
        )
    if values[0] not in range(len(names)):
        raise DetkitError(
            f"{where}: the label {line.split()[0]} is not one of 0 to {len(names) - 1}, for which there are names"
        )
    return int(values[0]), values[1:]


def _corners(points: list[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if len(points) == 4:
        cx, cy, w, h = points
        return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    x, y = points[::2], points[1::2]
    return np.array([min(x), min(y), max(x), max(y)])
