"""Makes data for YOLO9000 of a COCO set: boxes that name only the group of an object, and crops that name its class.

    python tools/joint_data.py ../shared/data/coco_subset joint/ --train train2017+extra --never-boxed giraffe zebra
    detkit train yolo9000_small_coco --data joint/joint.yaml
    detkit eval --model runs/train/1/best.safetensors --data joint/boxes.yaml --split unseen

Groups are those of a config's tree: a horse has boxes as an animal, and crops as a horse. Pictures with a class that is
never boxed are not learned from; of its objects there are only the crops. The folder then holds

  joint.yaml   what to train with: `train` joins boxes and crops, `val` has boxes of groups
  boxes.yaml   splits `train`, `val` (groups), `classes` (the pictures of val by class), and `unseen`: all pictures with
               a never-boxed class, with boxes of groups, to see whether it is found under its parent
  crops/       <class>/<picture>_<object>.jpg, with a quarter of its longer side around the object
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from detkit.data.dataset import Dataset, Sample, load_dataset
from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.model import read_config

_MARGIN = 0.25  # of the longer side
_SMALLEST = 32  # pixels of an object's shorter side, below which a crop shows little


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", help="a COCO folder or description")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--train", default="train2017", help="split to learn from; a+b is two")
    parser.add_argument("--val", default="val2017", help="split to evaluate on")
    parser.add_argument("--never-boxed", nargs="*", default=[], metavar="CLASS", help="classes with crops alone")
    parser.add_argument("--config", default="yolo9000_small_coco", help="whose tree says what belongs to what")
    given = parser.parse_args(arguments)
    try:
        tree = read_config(given.config).detector.model_dump()["tree"]
        train, val = (load_dataset(given.coco, split) for split in (given.train, given.val))
        for name in [*train.classes, *given.never_boxed]:
            if name not in tree:
                raise DetkitError(f"{given.config}: its tree has no class {name!r}")
        counts = make_joint_data(train, val, tree, given.never_boxed, given.out)
    except DetkitError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{what}: {number}" for what, number in counts.items()))


def make_joint_data(
    train: Dataset, val: Dataset, tree: dict[str, str | None], never_boxed: Sequence[str], out: Path
) -> Counter[str]:
    """Write the folder, and return how many pictures each split has and how many crops there are."""
    hidden = {train.classes.index(name) for name in never_boxed}
    seen = [sample for sample in train.samples if hidden.isdisjoint(sample.labels.tolist())]
    with_hidden = [s for s in (*train.samples, *val.samples) if not hidden.isdisjoint(s.labels.tolist())]
    splits = {
        "train": _by_group(replace(train, samples=seen), tree),
        "val": _by_group(val, tree),
        "classes": val,
        "unseen": _by_group(replace(train, samples=with_hidden), tree),
    }
    counts: Counter[str] = Counter()
    for name, data in splits.items():
        truth = replace(data, annotation_file=None).ground_truth()
        for image, sample in zip(truth["images"], data.samples, strict=True):
            image["file_name"] = str(sample.path.resolve())
        write_atomically(out / f"{name}.json", json.dumps(truth))
        counts[name] = len(data)
    for sample in train.samples:
        for name, number, pixels in _crops(sample, train.classes, tree):
            _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1])
            write_atomically(out / "crops" / name / f"{sample.id}_{number}.jpg", jpeg.tobytes())
            counts["crops"] += 1
    files = {name: {"annotations": f"{name}.json", "images": "."} for name in splits}
    _write_yaml(out / "boxes.yaml", {"format": "coco", "splits": files})
    boxes = {name: {"data": "boxes.yaml", "split": name} for name in splits}
    joined = {"train": [boxes["train"], {"data": "crops"}]} | {
        name: [boxes[name]] for name in splits if name != "train"
    }
    _write_yaml(out / "joint.yaml", {"format": "join", "splits": joined})
    return counts


def _by_group(data: Dataset, tree: dict[str, str | None]) -> Dataset:
    """Name every object by its class' parent, or by its class where that has none."""
    groups = [tree[name] or name for name in data.classes]
    classes = tuple(dict.fromkeys(groups))
    to_group = np.array([classes.index(group) for group in groups])
    samples = [replace(sample, labels=to_group[sample.labels]) for sample in data.samples]
    return replace(data, classes=classes, samples=samples, category_ids=tuple(range(1, len(classes) + 1)))


def _crops(
    sample: Sample, classes: Sequence[str], tree: dict[str, str | None]
) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """Yield class, number and pixels of the objects that are large enough and whose class says more than its group."""
    picture = None
    for number, (box, label) in enumerate(zip(sample.boxes, sample.labels.tolist(), strict=True)):
        size = box[2:] - box[:2]
        if tree[classes[label]] is None or sample.crowd[number] or size.min() < _SMALLEST:
            continue
        picture = sample.read() if picture is None else picture
        margin = _MARGIN * size.max()
        left, top = np.maximum(box[:2] - margin, 0).astype(int)
        right, bottom = np.ceil(box[2:] + margin).astype(int)
        yield classes[label], number, picture[top:bottom, left:right]


def _write_yaml(path: Path, tree: dict[str, object]) -> None:
    write_atomically(path, yaml.safe_dump(tree, sort_keys=False))


if __name__ == "__main__":
    main()
