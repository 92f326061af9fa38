"""Pictures with a label but no box: one folder for each class.

The usual layout of classification data: `<class>/*.jpg`, or `<split>/<class>/*.jpg`. The label of a picture is one
object `somewhere` in it (see `Sample`): classifiers learn it, YOLO9000 learns it beside boxes, and to all other
detectors it is a crowd that fills the picture. Pictures are turned by their EXIF tag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detkit.data.picture import SUFFIXES, picture_size
from detkit.data.sample import Dataset, Objects, Picture, count, make_samples
from detkit.errors import DetkitError


def class_folders(root: Path) -> list[Path]:
    """Return the folders in root that hold pictures themselves, sorted by name."""
    return sorted(folder for folder in _folders(root) if any(map(_is_picture, folder.iterdir())))


def folder_splits(root: Path) -> dict[str, Path]:
    """Return the folders in root that hold class folders, by name; none where root holds class folders itself."""
    if class_folders(root):
        return {}
    return {folder.name: folder for folder in sorted(_folders(root)) if class_folders(folder)}


def read_folders(
    root: Path, splits: Mapping[str, Path], split: str | None = None, names: Mapping[str, str] | None = None
) -> Dataset:
    """Read the pictures of a split's class folders, or without splits of those in root itself.

    names: class names by folder (as of ImageNet's, which are ids), whose order is that of the labels; folders of one
    name are one class. Without them the folders' names, sorted, over all splits. Other files are counted in the notes.
    Errors: no pictures, a class folder that `names` does not know, a picture that cannot be read.
    """
    source = splits[split] if split is not None else root
    if names is None:
        folders = {folder.name for part in splits.values() or [root] for folder in class_folders(part)}
        names = {name: name for name in sorted(folders)}
    classes = tuple(dict.fromkeys(names.values()))
    paths: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for folder in class_folders(source):
        if folder.name not in names:
            raise DetkitError(f"{folder}: has no name in 'names' of the description; add it or move the folder away")
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        found = [path for path in files if _is_picture(path)]
        others += [path for path in files if not _is_picture(path)]
        paths += found
        labels += [classes.index(names[folder.name])] * len(found)
    if not paths:
        raise DetkitError(f"{source}: there are no pictures; expected <class>/*.jpg")
    ids = [path.relative_to(source).with_suffix("").as_posix() for path in paths]
    notes = []
    if others:
        notes.append(f"{count(len(others), 'file')} without the suffix of a picture left out, the first is {others[0]}")
    return label_pictures(source, split, classes, ids, paths, labels, notes)


def label_pictures(
    source: Path,
    split: str | None,
    classes: tuple[str, ...],
    ids: Sequence[str],
    paths: Sequence[Path],
    labels: Sequence[int],
    notes: Sequence[str] = (),
) -> Dataset:
    """Make the data set of pictures that have one label each; raises DetkitError when one cannot be read."""
    sizes = np.array([picture_size(path) for path in paths])
    pictures = [Picture(id_, path, *size) for id_, path, size in zip(ids, paths, sizes.tolist(), strict=True)]
    objects = Objects(
        picture=np.arange(len(paths)),
        boxes=np.pad(sizes[:, ::-1], ((0, 0), (2, 0))).astype(np.float64),
        labels=np.array(labels, np.int64),
        crowd=np.ones(len(paths), bool),
        difficult=np.zeros(len(paths), bool),
    )
    samples, mended = make_samples(pictures, objects, lambda row: str(paths[row]), oriented=True)
    samples = [replace(sample, somewhere=True) for sample in samples]
    return Dataset(source, split, classes, samples, tuple(range(1, len(classes) + 1)), [*mended, *notes])


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
