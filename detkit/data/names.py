"""Class names: the lists that everyone uses, and how the names of a model and of a data set find each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from detkit.errors import DetkitError, nearest

_VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)

CLASS_LISTS: dict[str, tuple[str, ...]] = {"coco": tuple(_COCO.split(", ")), "voc": tuple(_VOC.split())}
"""The 80 classes of COCO in the order of their ids, and the 20 of PASCAL VOC in theirs."""

ALIASES: tuple[tuple[str, ...], ...] = (
    ("airplane", "aeroplane"),
    ("couch", "sofa"),
    ("dining table", "diningtable"),
    ("motorcycle", "motorbike"),
    ("potted plant", "pottedplant"),
    ("tv", "tvmonitor"),
)
"""Spellings of one class: COCO's first, then that of PASCAL VOC and of Darknet's `coco.names`."""


class ClassMatch(NamedTuple):
    """to_model: for each label of the data, the model's label or None; lines: what to tell the user."""

    to_model: tuple[int | None, ...]
    lines: list[str]


def match_classes(model_classes: Sequence[str], data_classes: Sequence[str]) -> ClassMatch:
    """Find the model's label for each label of a data set: by exact name, then by the alias table.

    An alias is used only for a model's class that no name matches exactly. Each alias used and each class left
    without a partner, on either side, is named in `lines`.
    """
    model_labels = {name: label for label, name in enumerate(model_classes)}
    to_model = [model_labels.get(name) for name in data_classes]
    aliases = []
    for label, name in enumerate(data_classes):
        if to_model[label] is not None:
            continue
        for other in (spelling for group in ALIASES if name in group for spelling in group):
            if other in model_labels and model_labels[other] not in to_model:
                to_model[label] = model_labels[other]
                aliases.append(f"{name} = {other}")
    unknown = [name for name, label in zip(data_classes, to_model, strict=True) if label is None]
    unused = [name for label, name in enumerate(model_classes) if label not in to_model]
    lines = [
        f"{title}: {', '.join(names)}"
        for title, names in (
            ("classes matched by another spelling (data = model)", aliases),
            (f"{len(unknown)} of {len(data_classes)} classes of the data are unknown to the model", unknown),
            (f"{len(unused)} of {len(model_classes)} classes of the model are not in the data", unused),
        )
        if names
    ]
    return ClassMatch(tuple(to_model), lines)


def shorten(names: Sequence[str]) -> str:
    """Return the first five names in quotes, and whether there are more."""
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


def class_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of a list by its name (`coco`, `voc`) or of the list itself, which must not repeat a name."""
    if isinstance(value, str):
        if value not in CLASS_LISTS:
            raise DetkitError(
                f"no list of class names is called {value!r}{nearest(value, CLASS_LISTS)} "
                f"(there are {', '.join(CLASS_LISTS)}; or give the names themselves as a list)"
            )
        return CLASS_LISTS[value]
    if not value:
        raise DetkitError("the list of class names is empty; name at least one class")
    repeated, times = Counter(value).most_common(1)[0]
    if times > 1:
        raise DetkitError(f"the class name {repeated!r} stands twice in the list; give each class its own name")
    return tuple(value)
