"""Data sets by one name: the usual layouts of COCO, VOC, YOLO and class folders, a YAML description, or generated ones.

| `data` | recognised by | splits |
|---|---|---|
| a COCO folder | `annotations/instances_<split>.json`, pictures in `images/<split>/`, `<split>/` or `images/` | files |
| a COCO file | `.json`, pictures in the folders above or beside it | none |
| a VOC folder | `Annotations/*.xml`, pictures in `JPEGImages/` | `ImageSets/Main/<split>.txt`, or none |
| a YOLO folder or file | `data.yaml` with `names` | its keys `train`, `val`, `test` |
| class folders | `<class>/*.jpg` or `<split>/<class>/*.jpg`: labels without boxes | folders, or none |
| a table | `.csv` with the columns path, label, and split if it likes: labels without boxes | its column, or none |
| a description | a YAML file with the key `format`, or a folder with such a `data.yaml` | its `splits` |
| `sample:shapes` | the name; `sample:shapes?seed=3&pictures=200&size=320` | train, val, test |

A description names the parts of a set that lie elsewhere, or joins several sets; paths are relative to `path`, and
`path` to the YAML file::

    format: coco
    path: .
    splits:
      train: {annotations: train.json, images: pictures}
      val: {annotations: val.json, images: pictures}

    format: voc
    path: ../blood
    images: pictures         # JPEGImages
    annotations: xml         # Annotations
    splits:                  # ImageSets/Main/*.txt
      train: lists/train.txt
    classes: [WBC, RBC]      # or `voc`; default: all names found, sorted, or VOC's 20 if all are among them

    format: folder
    path: imagenet
    splits: {train: train, val: val}                    # default: the folders that hold class folders
    names: {n02085620: chihuahua, n02086240: shih-tzu}  # default: the folders' names

    format: join             # classes of the same name are one; `repeat`: how often an epoch takes each picture
    splits:
      train: [{data: coco, split: train2017, repeat: 4}, {data: imagenet, split: train}]
      val: [{data: coco, split: val2017}]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from detkit.config import Strict, read_yaml, validate
from detkit.data.coco import coco_splits, read_coco
from detkit.data.folder import class_folders, folder_splits, read_folders
from detkit.data.names import match_classes
from detkit.data.sample import Dataset as Dataset
from detkit.data.sample import Sample as Sample
from detkit.data.shapes import load_shapes, parse_shapes
from detkit.data.table import read_rows, read_table
from detkit.data.voc import read_voc, voc_splits
from detkit.data.yolo import YoloFile, read_yolo
from detkit.errors import DetkitError, nearest


class CocoFiles(Strict):
    """One split of a described COCO set: its annotation file and the folder of its pictures."""

    annotations: str
    images: str


class CocoDescription(Strict):
    """A COCO set whose parts lie elsewhere than usual."""

    format: Literal["coco"]
    path: str = "."
    splits: dict[str, CocoFiles]


class VocDescription(Strict):
    """A PASCAL VOC set whose parts lie elsewhere than usual, or whose classes have an order."""

    format: Literal["voc"]
    path: str = "."
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    splits: dict[str, str] | None = None
    classes: str | list[str] | None = None


class FolderDescription(Strict):
    """Class folders that lie elsewhere, or whose names are not those of the classes."""

    format: Literal["folder"]
    path: str = "."
    splits: dict[str, str] | None = None
    names: dict[str, str] | None = None


class JoinPart(Strict):
    """One of the sets that are joined: what `--data` takes, and how often an epoch takes each of its pictures."""

    data: str
    split: str | None = None
    repeat: PositiveInt = 1


class JoinDescription(Strict):
    """Several sets as one, each split with its own parts."""

    format: Literal["join"]
    path: str = "."
    splits: dict[str, list[JoinPart]] = Field(min_length=1)


class Wanted(Enum):
    """Which split is meant where none is named, if there are several: the one that fits the first pattern that fits."""

    LEARNED = (r"train\d*", r"trainval\d*")
    EVALUATED = (r"val(id|idation)?\d*", r"test\d*")


def load_dataset(data: str | Path, split: str | Wanted | None = None) -> Dataset:
    """Read a split of a data set: a folder, a file or `sample:shapes`.

    Without a split's name the only one is taken, else that for training or, by default, for evaluation; `train+extra`
    is two splits as one. Errors: a layout that is none of those above, a split that does not exist, and whatever the
    reader of the format finds.
    """
    split = Wanted.EVALUATED if split is None else split
    if isinstance(split, str) and "+" in split:
        return _join([load_dataset(data, part) for part in split.split("+")], split)
    if str(data).startswith("sample:"):
        shapes = parse_shapes(str(data))
        return load_shapes(shapes, choose_split(shapes.splits, split, str(data)))
    path = Path(data)
    if not path.exists():
        raise DetkitError(f"{path}: no such file or folder; --data takes a COCO, VOC or YOLO data set or sample:shapes")
    if path.is_dir():
        return _load_folder(path, split)
    if path.suffix == ".json":
        if isinstance(split, str):
            raise DetkitError(f"{path}: is one annotation file, which has no splits; leave out the split {split!r}")
        return read_coco(path)
    if path.suffix in (".yaml", ".yml"):
        return _load_yaml(path, split)
    if path.suffix == ".csv":
        rows = read_rows(path)
        splits = list(dict.fromkeys(row.split for row in rows if row.split is not None))
        return read_table(path, rows, _choose(splits, split, str(path)))
    raise DetkitError(
        f"{path}: expected a folder, a COCO .json, a .csv of paths and labels, or a .yaml that describes a data set"
    )


def _join(parts: Sequence[Dataset], split: str) -> Dataset:
    first = parts[0]
    samples = [sample for part in parts for sample in part.samples]
    if any(part.classes != first.classes for part in parts):
        raise DetkitError(f"{first.source}: the splits of {split!r} have different classes and cannot be one")
    counts = Counter(sample.id for sample in samples)
    if len(counts) < len(samples):
        twice = counts.most_common(1)[0][0]
        raise DetkitError(f"{first.source}: the picture {twice!r} is in more than one split of {split!r}")
    return Dataset(
        first.source,
        split,
        first.classes,
        samples,
        first.category_ids,
        [f"{part.split}: {note}" for part in parts for note in part.notes],
    )


def _choose(splits: Iterable[str], wanted: str | Wanted, source: str) -> str | None:
    """Return the split that is wanted, None where the pictures are all there is."""
    splits = list(splits)
    if not splits and isinstance(wanted, Wanted):
        return None
    return choose_split(splits, wanted, source)


def choose_split(splits: Iterable[str], wanted: str | Wanted, source: str) -> str:
    """Return the wanted split if it exists; without a name the only one, else the one for that use."""
    splits = list(splits)
    known = f"there {'is' if len(splits) == 1 else 'are'} {', '.join(splits) or 'none'}"
    if isinstance(wanted, str):
        if wanted not in splits:
            raise DetkitError(f"{source}: there is no split {wanted!r}{nearest(wanted, splits)} ({known})")
        return wanted
    if len(splits) == 1:
        return splits[0]
    for pattern in wanted.value:
        fitting = [split for split in splits if re.fullmatch(pattern, split)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    raise DetkitError(f"{source}: name a split ({known})")


def _load_folder(root: Path, split: str | Wanted) -> Dataset:
    description = next((root / name for name in ("data.yaml", "data.yml") if (root / name).is_file()), None)
    if description is not None:
        return _load_yaml(description, split)
    if coco := coco_splits(root):
        split = choose_split(coco, split, str(root))
        return read_coco(coco[split], split=split)
    if (root / "Annotations").is_dir():
        return _load_voc(root, voc_splits(root), split, VocDescription(format="voc"))
    if folder_splits(root) or class_folders(root):
        return _load_class_folders(root, FolderDescription(format="folder"), split)
    raise DetkitError(
        f"{root}: is no data set; expected annotations/instances_<split>.json (COCO), Annotations/*.xml (VOC), "
        "data.yaml (YOLO, or a description) or <class>/*.jpg (labels without boxes)"
    )


def _load_yaml(file: Path, split: str | Wanted) -> Dataset:
    tree = read_yaml(file)
    kind = tree.get("format")
    if kind is None:
        if "names" not in tree:
            raise DetkitError(
                f"{file}: describes no data set: expected 'format' (coco, voc, folder, join), or 'names' as YOLO has"
            )
        content = validate(YoloFile, tree, str(file))
        return read_yolo(file, content, choose_split(content.splits, split, str(file)))
    if kind == "coco":
        coco = validate(CocoDescription, tree, str(file))
        root, split = file.parent / coco.path, choose_split(coco.splits, split, str(file))
        return read_coco(root / coco.splits[split].annotations, root / coco.splits[split].images, split)
    if kind == "voc":
        voc = validate(VocDescription, tree, str(file))
        root = file.parent / voc.path
        listed = voc_splits(root) if voc.splits is None else {key: root / name for key, name in voc.splits.items()}
        return _load_voc(root, listed, split, voc)
    if kind == "folder":
        return _load_class_folders(file, validate(FolderDescription, tree, str(file)), split)
    if kind == "join":
        join = validate(JoinDescription, tree, str(file))
        return _load_join(file, join, choose_split(join.splits, split, str(file)))
    raise DetkitError(f"{file}: format: expected coco, voc, folder or join, got {kind!r}")


def _load_class_folders(source: Path, description: FolderDescription, split: str | Wanted) -> Dataset:
    root = source if source.is_dir() else source.parent / description.path
    named = {name: root / folder for name, folder in (description.splits or {}).items()}
    for folder in (root, *named.values()):
        if not folder.is_dir():
            raise DetkitError(f"{source}: there is no folder {folder}; correct 'path' or 'splits'")
    splits = named or folder_splits(root)
    return read_folders(root, splits, _choose(splits, split, str(source)), description.names)


def _load_join(file: Path, join: JoinDescription, split: str) -> Dataset:
    """Read the parts of a split; classes are those of the first part, then what each further one adds."""
    parts = []
    for entry in join.splits[split]:
        named = entry.data if entry.data.startswith("sample:") else str(file.parent / join.path / entry.data)
        if Path(named).resolve() == file.resolve():
            raise DetkitError(f"{file}: splits.{split} joins the file itself; name other sets")
        parts.append(load_dataset(named, entry.split))
    if not parts:
        raise DetkitError(f"{file}: splits.{split} joins nothing; name at least one set")
    if len(parts) == 1 and join.splits[split][0].repeat == 1:
        return parts[0]
    classes: list[str] = []
    samples: list[Sample] = []
    for number, (part, entry) in enumerate(zip(parts, join.splits[split], strict=True)):
        found = match_classes(classes, part.classes).to_model
        classes += [name for name, label in zip(part.classes, found, strict=True) if label is None]
        to_joint = np.array(match_classes(classes, part.classes).to_model)
        # Ids of different sets may be alike.
        own = [replace(s, id=f"{number}/{s.id}", labels=to_joint[s.labels]) for s in part.samples]
        samples += own * entry.repeat
    notes = [f"{part.source}: {note}" for part in parts for note in part.notes]
    return Dataset(file, split, tuple(classes), samples, tuple(range(1, len(classes) + 1)), notes)


def _load_voc(root: Path, splits: dict[str, Path], split: str | Wanted, description: VocDescription) -> Dataset:
    chosen = _choose(splits, split, str(root))
    return read_voc(
        root,
        splits[chosen] if chosen is not None else None,
        chosen,
        images=description.images,
        annotations=description.annotations,
        classes=description.classes,
    )
