"""PASCAL VOC's annotations: one XML file for each picture.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010. VOC counts pixels from 1 and includes
the last one; boxes keep xmin, ymin, xmax, ymax as written, as published results do. VOC's metric adds the inclusive
pixel itself; an object with xmin = xmax has no width here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detkit.data.names import CLASS_LISTS, class_names
from detkit.data.picture import SUFFIXES
from detkit.data.sample import Dataset, Objects, Picture, count, make_samples
from detkit.errors import DetkitError, nearest


def voc_splits(root: Path) -> dict[str, Path]:
    """Return the lists in `ImageSets/Main` by split, without those of single VOC classes (`cat_train`)."""
    files = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    return {file.stem: file for file in files if file.stem.rpartition("_")[0] not in CLASS_LISTS["voc"]}


def read_voc(
    root: Path,
    listing: Path | None,
    split: str | None = None,
    *,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    classes: str | Sequence[str] | None = None,
) -> Dataset:
    """Read the pictures that a list names, one stem a line; without a list, all that have an annotation.

    images, annotations: folders inside root. classes: the names in the order of their labels; by default all names
    in the annotations of any split, sorted, or VOC's 20 in their order if all are among them. Absent pictures are
    counted in the notes. Errors name the file, the object and the field.
    """
    files = {file.stem: file for file in sorted((root / annotations).glob("*.xml"))}
    if not files:
        raise DetkitError(f"{root / annotations}: there are no annotations (*.xml)")
    stems = list(files) if listing is None else _read_list(listing, files)
    records = {stem: _read_xml(files[stem]) for stem in stems}
    if classes is None:
        found = {o.name for file in files for o in (records.get(file) or _read_xml(files[file])).objects}
        voc = CLASS_LISTS["voc"]
        names = voc if found <= set(voc) else tuple(sorted(found))
    else:
        names = class_names(classes)
    label_of = {name: label for label, name in enumerate(names)}

    folder = root / images
    by_stem = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES}
    pictures, missing = [], []
    for stem, record in records.items():
        if stem not in by_stem:
            missing.append(stem)
        path = by_stem.get(stem, folder / f"{stem}.jpg")
        pictures.append(Picture(stem, path, record.height, record.width))
    rows = [(i, stem, number) for i, stem in enumerate(stems) for number in range(len(records[stem].objects))]

    def describe(row: int) -> str:
        _, stem, number = rows[row]
        return f"{files[stem]}: object {number + 1} ({records[stem].objects[number].name}): bndbox"

    everything = [records[stem].objects[number] for _, stem, number in rows]
    for (_, stem, number), thing in zip(rows, everything, strict=True):
        if thing.name not in label_of:
            raise DetkitError(
                f"{files[stem]}: object {number + 1}: name: {thing.name!r} is not among the classes"
                f"{nearest(thing.name, names)}"
            )
    objects = Objects(
        picture=np.array([i for i, _, _ in rows], np.int64),
        boxes=np.array([thing.box for thing in everything], np.float64).reshape(-1, 4),
        labels=np.array([label_of[thing.name] for thing in everything], np.int64),
        crowd=np.zeros(len(rows), bool),
        difficult=np.array([thing.difficult for thing in everything], bool),
    )
    samples, notes = make_samples(pictures, objects, describe)
    if missing:
        notes.append(f"{folder}: {len(missing)} of {count(len(stems), 'picture')} not found, the first is {missing[0]}")
    return Dataset(root, split, names, samples, tuple(range(1, len(names) + 1)), notes)


class _Object(NamedTuple):
    name: str
    box: tuple[float, ...]
    difficult: bool


class _Record(NamedTuple):
    height: int
    width: int
    objects: list[_Object]


def _read_list(listing: Path, files: dict[str, Path]) -> list[str]:
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DetkitError(f"{listing}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DetkitError(f"{listing}: is not a text file") from None
    stems: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        stem = line.strip()
        if not stem:
            continue
        if stem in stems:
            raise DetkitError(f"{listing}, line {number}: {stem!r} stands in line {stems[stem]} already; delete one")
        if stem not in files:
            raise DetkitError(f"{listing}, line {number}: there is no annotation {stem}.xml{nearest(stem, files)}")
        stems[stem] = number
    return list(stems)


def _read_xml(file: Path) -> _Record:
    try:
        content = file.read_bytes()
        if b"<!ENTITY" in content:
            raise DetkitError(f"{file}: declares XML entities, which no annotation needs; they are not expanded")
        root = ElementTree.fromstring(content)
    except OSError as error:
        raise DetkitError(f"{file}: cannot be read: {error.strerror}") from None
    except ElementTree.ParseError as error:
        raise DetkitError(f"{file}: is not valid XML: {error}") from None
    except (LookupError, ValueError) as error:  # what the XML reader makes of encodings that it does not know
        raise DetkitError(f"{file}: its encoding cannot be read ({error}); save it as UTF-8") from None
    if root.tag != "annotation":
        raise DetkitError(f"{file}: expected <annotation> at the top of a VOC file, got <{root.tag}>")
    height, width = (_number(root, f"size/{side}", str(file)) for side in ("height", "width"))
    for side, value in (("height", height), ("width", width)):
        if value < 1 or not value.is_integer():
            raise DetkitError(f"{file}: size/{side}: expected a positive whole number, got {value:g}")
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DetkitError(f"{file}: object {number}: <name> is missing or empty")
        where = f"{file}: object {number} ({name})"
        box = tuple(_number(element, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
        flag = element.findtext("difficult", "").strip()  # absent or empty: no
        difficult = flag != "" and _number(element, "difficult", where) != 0
        objects.append(_Object(name, box, difficult))
    return _Record(int(height), int(width), objects)


def _number(element: ElementTree.Element, path: str, where: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise DetkitError(f"{where}: <{path}> is missing")
    try:
        return float(text)
    except ValueError:
        raise DetkitError(f"{where}: {path}: expected a number, got {text.strip()!r}") from None
