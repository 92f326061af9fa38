"""Makes data for YOLO9000 of a COCO set: boxes that name only the group of an object, and crops that name its class.

    python tools/joint_data.py coco_subset/ joint/ --train train2017+extra --also raccoon/ trainval test --most 60
    detkit train yolo9000_fasternet_coco --data joint/joint.yaml
    detkit eval --model runs/train/1/best.safetensors --data joint/joint.yaml --split unseen

Groups are those of a config's tree: a horse has boxes as an animal, and crops as a horse. Classes that are never boxed
have crops alone: those of `--also`, which come from another data set, and those of `--never-boxed`: every other picture
with one of these gives crops, and the rest is unseen. The folder then holds

  joint.yaml   `train` joins boxes and crops, `val` has boxes of groups, `classes` those of val by class; `unseen` has
               never-boxed classes and boxes of groups, to see whether those are found under their parents
  boxes.yaml   what has boxes
  crops/       <class>/<picture>_<object>.jpg, with a quarter of its longer side around the object
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
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
    parser.add_argument(
        "--also",
        nargs=3,
        metavar=("DATA", "TRAIN", "TEST"),
        help="a set whose objects have crops (TRAIN) or are unseen (TEST)",
    )
    parser.add_argument("--most", type=int, metavar="N", help="crops of a class, from pictures spread over the set")
    parser.add_argument("--config", default="yolo9000_fasternet_coco", help="whose tree says what belongs to what")
    given = parser.parse_args(arguments)
    try:
        if given.out.exists() and any(given.out.iterdir()):
            raise DetkitError(f"{given.out}: holds files already; name a new folder")
        tree = read_config(given.config).detector.model_dump()["tree"]
        train, val = (load_dataset(given.coco, split) for split in (given.train, given.val))
        also = [load_dataset(given.also[0], split) for split in given.also[1:]] if given.also else []
        names = [
            (given.coco, train.classes),
            ("--never-boxed", given.never_boxed),
            *((d.source, d.classes) for d in also),
        ]
        for source, classes in names:
            for name in classes:
                if name not in (tree if source != "--never-boxed" else set(tree) & set(train.classes)):
                    raise DetkitError(f"{source}: the tree of {given.config} has no class {name!r}")
        counts = make_joint_data(train, val, tree, given.out, given.never_boxed, also, given.most)
    except DetkitError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{what}: {number}" for what, number in counts.items()))


def make_joint_data(
    train: Dataset,
    val: Dataset,
    tree: dict[str, str | None],
    out: Path,
    never_boxed: Sequence[str] = (),
    also: Sequence[Dataset] = (),
    most: int | None = None,
) -> Counter[str]:
    """Write the folder, and return how many pictures each split has and how many crops there are.

    also: none, or a set to crop and one that is unseen. most: crops of a class.
    """
    hidden = {train.classes.index(name) for name in never_boxed}
    seen = [s for s in train.samples if hidden.isdisjoint(s.labels.tolist())]
    with_hidden = [s for s in train.samples if not hidden.isdisjoint(s.labels.tolist())]
    unseen = with_hidden[1::2] + [s for s in val.samples if not hidden.isdisjoint(s.labels.tolist())]
    cropped = replace(train, samples=seen + with_hidden[::2])
    sets = {
        "train": _by_group(replace(train, samples=seen), tree),
        "val": _by_group(val, tree),
        "classes": val,
        "unseen": _by_group(replace(train, samples=unseen), tree),
    }
    if also:
        sets["also"] = _by_group(also[1], tree)
    sets = {name: data for name, data in sets.items() if len(data)}
    counts: Counter[str] = Counter()
    for name, data in sets.items():
        truth = replace(data, annotation_file=None).ground_truth()
        for image, sample in zip(truth["images"], data.samples, strict=True):
            image["file_name"] = str(sample.path.resolve())
        write_atomically(out / f"{name}.json", json.dumps(truth))
        counts[name] = len(data)
    for name, objects in _to_crop([cropped, *also[:1]], tree).items():
        spread = np.linspace(0, len(objects) - 1, min(len(objects), most or len(objects))).astype(int)
        for sample, number in [objects[i] for i in spread]:
            _, jpeg = cv2.imencode(".jpg", _crop(sample.read(), sample.boxes[number])[..., ::-1])
            file = out / "crops" / name / f"{sample.id}_{number}.jpg"
            if file.exists():
                raise DetkitError(f"{file}: both data sets have an object of this name")
            write_atomically(file, jpeg.tobytes())
            counts["crops"] += 1
    files = {name: {"annotations": f"{name}.json", "images": "."} for name in sets}
    _write_yaml(out / "boxes.yaml", {"format": "coco", "splits": files})
    boxes = {name: {"data": "boxes.yaml", "split": name} for name in sets}
    never_boxed_pictures = [boxes[name] for name in ("unseen", "also") if name in boxes]
    splits = {"train": [boxes["train"], {"data": "crops"}], "val": [boxes["val"]], "classes": [boxes["classes"]]}
    _write_yaml(
        out / "joint.yaml",
        {"format": "join", "splits": splits | ({"unseen": never_boxed_pictures} if never_boxed_pictures else {})},
    )
    return counts


def _by_group(data: Dataset, tree: dict[str, str | None]) -> Dataset:
    """Name every object by its class' parent, or by its class where that has none."""
    groups = [tree[name] or name for name in data.classes]
    classes = tuple(dict.fromkeys(groups))
    to_group = np.array([classes.index(group) for group in groups])
    samples = [replace(sample, labels=to_group[sample.labels]) for sample in data.samples]
    return replace(data, classes=classes, samples=samples, category_ids=tuple(range(1, len(classes) + 1)))


def _to_crop(sets: Sequence[Dataset], tree: dict[str, str | None]) -> dict[str, list[tuple[Sample, int]]]:
    """The objects, by class, that are large enough and whose class says more than its group."""
    objects: dict[str, list[tuple[Sample, int]]] = {}
    for data in sets:
        for sample in data.samples:
            sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).min(1)
            for number in np.flatnonzero((sides >= _SMALLEST) & ~sample.crowd):
                name = data.classes[sample.labels[number]]
                if tree[name] is not None:
                    objects.setdefault(name, []).append((sample, int(number)))
    return objects


def _crop(picture: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.uint8]:
    margin = _MARGIN * (box[2:] - box[:2]).max()
    left, top = np.maximum(box[:2] - margin, 0).astype(int)
    right, bottom = np.ceil(box[2:] + margin).astype(int)
    return picture[top:bottom, left:right]


def _write_yaml(path: Path, tree: dict[str, object]) -> None:
    write_atomically(path, yaml.safe_dump(tree, sort_keys=False))


if __name__ == "__main__":
    main()
