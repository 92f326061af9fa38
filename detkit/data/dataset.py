"""Data sets by one name: COCO, PASCAL VOC and YOLO in their usual layouts, described by a YAML file, or generated.

| `data` | recognised by | splits |
|---|---|---|
| a COCO folder | `annotations/instances_<split>.json`, pictures in `images/<split>/`, `<split>/` or `images/` | the files |
| a COCO file | `.json`, pictures in the folders above or beside it | none |
| a VOC folder | `Annotations/*.xml`, pictures in `JPEGImages/` | `ImageSets/Main/<split>.txt`, or none |
| a YOLO folder or file | `data.yaml` with `names` | its keys `train`, `val`, `test` |
| a description | a YAML file with the key `format`, or a folder with such a `data.yaml` | its `splits` |
| `sample:shapes` | the name; `sample:shapes?seed=3&pictures=200&size=320` | train, val, test |

A description names the parts of a COCO or VOC set that lie elsewhere; paths are relative to `path`, and `path` to the
YAML file::

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
"""

from __future__ import annotations

from pathlib import Path

from detkit.data.sample import Dataset as Dataset
from detkit.data.sample import Sample as Sample


def load_dataset(data: str | Path, split: str | None = None) -> Dataset:
    """Read a split of a data set.

    Without a split, the only one is taken, else the validation split, else the test split.
    """
    raise NotImplementedError
