"""Objects as pictures of their own: what a classifier learns of a data set with boxes.

Each object that is neither a crowd nor difficult becomes a sample whose picture is the object's box, widened by a
margin, and whose one label is `somewhere` in it (see `Sample`). R-CNN (Girshick et al., 2013, arXiv 1311.2524),
appendix A, for the context around a box.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from detkit.config import Strict
from detkit.data.sample import Dataset, Sample, count


class Crops(Strict):
    """What of a picture with boxes is one sample.

    margin: share of the object's width and height that is added on each side, as far as the picture goes. min_side:
    objects with a shorter side than so many pixels are left out.
    """

    margin: float = Field(0.1, ge=0, le=2)
    min_side: NonNegativeFloat = 8


def crop_objects(dataset: Dataset, crops: Crops) -> Dataset:
    """Make a sample of each object; samples whose label is their picture's stay as they are.

    The id of an object is its picture's and its number there, from 0. What is left out is counted in the notes.
    """
    samples: list[Sample] = []
    ignored = small = 0
    for sample in dataset.samples:
        if sample.somewhere:
            samples.append(sample)
            continue
        for number, (box, label) in enumerate(zip(sample.boxes, sample.labels, strict=True)):
            if sample.crowd[number] or sample.difficult[number]:
                ignored += 1
            elif (box[2:] - box[:2]).min() < crops.min_side:
                small += 1
            else:
                samples.append(_crop(sample, number, box, int(label), crops.margin))
    notes = list(dataset.notes)
    if ignored:
        notes.append(f"{count(ignored, 'crowd')} and difficult objects left out: they are no picture of one object")
    if small:
        notes.append(f"{count(small, 'object')} left out, having a side below {crops.min_side:g} pixels")
    return replace(dataset, samples=samples, notes=notes, annotation_file=None)


def _crop(sample: Sample, number: int, box: NDArray[np.float32], label: int, margin: float) -> Sample:
    left, top, right, bottom = map(float, box)
    add_x, add_y = margin * (right - left), margin * (bottom - top)
    x1, y1 = max(0, math.floor(left - add_x)), max(0, math.floor(top - add_y))
    x2, y2 = min(sample.width, math.ceil(right + add_x)), min(sample.height, math.ceil(bottom + add_y))
    return replace(
        sample,
        id=f"{sample.id}/{number}",
        height=y2 - y1,
        width=x2 - x1,
        boxes=np.array([[0, 0, x2 - x1, y2 - y1]], np.float32),
        labels=np.array([label]),
        crowd=np.ones(1, bool),
        difficult=np.zeros(1, bool),
        draw=partial(_read, sample, (x1, y1, x2, y2)),
        somewhere=True,
    )


def _read(sample: Sample, corners: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = corners
    return np.ascontiguousarray(sample.read()[y1:y2, x1:x2])
