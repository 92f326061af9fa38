"""COCO's annotation files: one JSON with `images`, `annotations` and `categories`.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014 (arXiv 1405.0312). Labels follow the category ids in
ascending order; the ids may have gaps. The columns are checked as wholes: a file of 100,000 pictures is not walked
object by object unless something in it is wrong.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.data.sample import Dataset, Objects, Picture, count, make_samples
from detkit.errors import DetkitError

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "a flag", list: "a list"}


def coco_splits(root: Path) -> dict[str, Path]:
    """Return the annotation files of a COCO folder by split: `annotations/instances_<split>.json`."""
    files = sorted((root / "annotations").glob("instances_*.json"))
    return {file.stem.removeprefix("instances_"): file for file in files}


def read_coco(file: Path, images: Path | None = None, split: str | None = None) -> Dataset:
    """Read a COCO annotation file.

    images: the folder of the pictures; without it they are looked for where COCO has them and beside the file. Absent
    pictures are counted in the notes, since evaluation does without. Errors name the file, the entry and its key.
    """
    split = split or (file.stem.removeprefix("instances_") if file.stem.startswith("instances_") else None)
    tree = read_json(file)
    if not isinstance(tree, dict):
        hint = " (a list is what detections are saved as)" if isinstance(tree, list) else ""
        raise DetkitError(
            f"{file}: expected COCO annotations with the keys images, annotations, categories, "
            f"got a {type(tree).__name__}{hint}"
        )
    image_rows, annotations, category_rows = (
        _table(tree, key, file) for key in ("images", "annotations", "categories")
    )

    category_ids = _column(category_rows, "id", {int}, file, "categories")
    names = dict(zip(category_ids, _column(category_rows, "name", {str}, file, "categories"), strict=True))
    _unique(category_ids, file, "category id")
    _unique(list(names.values()), file, "category name")
    ordered = sorted(names)
    label_of = {category: label for label, category in enumerate(ordered)}

    image_ids = _column(image_rows, "id", {int, str}, file, "images")
    _unique(image_ids, file, "image id")
    file_names = _column(image_rows, "file_name", {str}, file, "images")
    sizes = [_column(image_rows, key, {int}, file, "images") for key in ("height", "width")]
    for image_id, height, width in zip(image_ids, *sizes, strict=True):
        if not (0 < height < 2**31 and 0 < width < 2**31):
            raise DetkitError(f"{file}: image {image_id} is {width} wide and {height} high; correct its size")
    folder = images or _find_images(file, split, file_names)
    paths = [folder / name for name in file_names]
    pictures = list(map(Picture, image_ids, paths, *sizes))

    def describe(row: int) -> str:
        return f"{file}: annotation {annotations[row]['id']}, 'bbox'"

    annotation_ids = _column(annotations, "id", {int, str}, file, "annotations")
    _unique(annotation_ids, file, "annotation id")
    crowd, difficult = (_flags(annotations, key, file) for key in ("iscrowd", "difficult"))
    _check_areas(annotations, file)
    picture_of = {image_id: index for index, image_id in enumerate(image_ids)}
    objects = Objects(
        picture=_look_up(annotations, "image_id", picture_of, file),
        boxes=_corners(annotations, file, describe),
        labels=_look_up(annotations, "category_id", label_of, file),
        crowd=crowd,
        difficult=difficult,
    )
    samples, notes = make_samples(pictures, objects, describe)
    missing = _missing(paths)
    if missing:
        notes.append(f"{file}: {len(missing)} of {count(len(paths), 'picture')} not found, the first is {missing[0]}")
    return Dataset(file, split, tuple(names[i] for i in ordered), samples, tuple(ordered), notes, annotation_file=file)


def read_json(file: Path) -> Any:
    """Return what a JSON file holds; errors name the file and, where the syntax is wrong, line and column."""
    collecting = gc.isenabled()
    gc.disable()  # Millions of new objects, none of them garbage: the collector would take 40 % of the time.
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DetkitError(f"{file}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise DetkitError(
            f"{file}, line {error.lineno}, column {error.colno}: is not valid JSON: {error.msg}"
        ) from None
    except UnicodeDecodeError:
        raise DetkitError(f"{file}: is not a text file, so it cannot be JSON") from None
    except RecursionError:
        raise DetkitError(f"{file}: its lists and mappings are nested too deeply") from None
    except ValueError:  # Python reads no whole numbers of thousands of digits
        raise DetkitError(f"{file}: holds a number of too many digits") from None
    finally:
        if collecting:
            gc.enable()


def short(value: object) -> str:
    """Return a value as a message shows it: what a file holds may be of any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-10:]}"


def _table(tree: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    if key not in tree:
        keys = ", ".join(list(tree)[:8]) or "none"
        raise DetkitError(f"{file}: the key {key!r} of a COCO annotation file is missing (its keys: {keys})")
    rows = tree[key]
    if not isinstance(rows, list) or not set(map(type, rows)) <= {dict}:
        raise DetkitError(f"{file}: {key!r} must be a list of mappings")
    return rows


def _column(rows: list[dict[str, Any]], key: str, kinds: set[type], file: Path, table: str) -> list[Any]:
    """Return one key of all rows after a check that it is there and of the right kind."""
    column = [row.get(key) for row in rows]
    if not set(map(type, column)) <= kinds:
        index = next(i for i, value in enumerate(column) if type(value) not in kinds)
        row = rows[index]
        where = f"{file}: {table}[{index}]" + (f" (id {row['id']!r})" if "id" in row and key != "id" else "")
        if key not in row:
            raise DetkitError(f"{where}: the key {key!r} is missing")
        expected = " or ".join(_KINDS[kind] for kind in _KINDS if kind in kinds)
        raise DetkitError(f"{where}, {key!r}: expected {expected}, got {short(row[key])}")
    return column


def _flags(annotations: list[dict[str, Any]], key: str, file: Path) -> NDArray[np.bool_]:
    """Return a column of 0 and 1, 0 where the key is absent."""
    flags = [row.get(key, 0) for row in annotations]
    for row, value in zip(annotations, flags, strict=True):
        if value not in (0, 1):
            raise DetkitError(f"{file}: annotation {row['id']}, {key!r}: expected 0 or 1, got {short(value)}")
    return np.array(flags, bool)


def _check_areas(annotations: list[dict[str, Any]], file: Path) -> None:
    for row in annotations:
        area = row.get("area", 0)
        if type(area) not in (int, float) or not 0 <= area <= sys.float_info.max:
            raise DetkitError(
                f"{file}: annotation {row['id']}, 'area': expected a finite number from 0 on, got {short(area)}"
            )


def _unique(values: Sequence[Any], file: Path, what: str) -> None:
    if len(set(values)) < len(values):
        repeated, _ = Counter(values).most_common(1)[0]
        raise DetkitError(f"{file}: the {what} {repeated!r} stands twice; it must be unique")


def _look_up(rows: list[dict[str, Any]], key: str, index: dict[Any, int], file: Path) -> NDArray[np.int64]:
    column = _column(rows, key, {int, str}, file, "annotations")
    try:
        return np.array([index[value] for value in column], np.int64)
    except KeyError as error:
        table = "images" if key == "image_id" else "categories"
        row = column.index(error.args[0])
        raise DetkitError(
            f"{file}: annotation {rows[row]['id']}, {key!r}: {error.args[0]!r} is not the id of any entry in {table!r}"
        ) from None


def _corners(annotations: list[dict[str, Any]], file: Path, describe: Callable[[int], str]) -> NDArray[np.float64]:
    """Return the boxes, [x, y, width, height] in the file, as xyxy [N, 4]."""
    boxes = _column(annotations, "bbox", {list}, file, "annotations")
    if not set(map(len, boxes)) <= {4} or not set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        row = next(i for i, box in enumerate(boxes) if len(box) != 4 or not set(map(type, box)) <= {int, float})
        raise DetkitError(f"{describe(row)}: expected four numbers [x, y, width, height], got {short(boxes[row])}")
    try:
        corners = np.array(boxes, np.float64).reshape(-1, 4)
    except OverflowError:  # JSON's whole numbers have no end
        row = next(i for i, box in enumerate(boxes) if any(abs(value) >= 2**1023 for value in box))
        raise DetkitError(f"{describe(row)}: one of the numbers is too large") from None
    corners[:, 2:] += corners[:, :2]
    return corners


def _find_images(file: Path, split: str | None, names: Sequence[str]) -> Path:
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    folders = [root / "images", root, file.parent]
    if split is not None:
        folders = [root / "images" / split, root / split, *folders]
    for folder in folders:
        if any((folder / name).is_file() for name in names[:10]):
            return folder
    return folders[0]


def _missing(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that do not exist; each folder is listed once."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = {entry.name for entry in os.scandir(folder)} if Path(folder).is_dir() else set()
        if name not in listings[folder]:
            missing.append(path)
    return missing
