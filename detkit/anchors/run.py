"""Find anchors for a data set, or judge those of a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from detkit.anchors.config import Scale, Setup
from detkit.data.sample import Dataset
from detkit.errors import DetkitError
from detkit.ops.kmeans import AnchorFit, Floats, assign_scales, count_distinct, find_anchors, measure_anchors
from detkit.preprocess import Preprocess

# A judgement, not a measurement: an average IoU that is higher by this is worth training with new anchors.
WORTHWHILE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The shapes of a data set's objects as the network sees them, [N, 2] (width, height) in pixels of its input.

    pictures: how many they are of. left_out: objects that are not learned (crowds, difficult ones), and so not counted.
    """

    shapes: Floats
    pictures: int
    left_out: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """Anchors on their scales, finest first, and how well they fit; `fit` has them scale by scale."""

    scales: list[Scale]
    fit: AnchorFit

    @property
    def shares(self) -> list[Floats]:
        """The share of the objects that each anchor fits best, scale by scale."""
        return np.split(self.fit.shares, np.cumsum([len(scale.anchors) for scale in self.scales])[:-1])

    def to_json(self) -> dict[str, Any]:
        """Return the anchors by area, how well they fit, and the scales with theirs, for `--json`."""
        order = np.lexsort((self.fit.anchors[:, 0], self.fit.anchors.prod(1)))
        return {
            "anchors": self.fit.anchors[order].tolist(),
            "average_iou": self.fit.average_iou,
            "best_possible_recall": self.fit.best_possible_recall,
            "shares": self.fit.shares[order].tolist(),
            "scales": [
                {"stride": scale.stride, "anchors": scale.anchors.tolist(), "share": float(shares.sum())}
                for scale, shares in zip(self.scales, self.shares, strict=True)
            ],
        }


def network_boxes(data: Dataset, preprocess: Preprocess) -> Boxes:
    """Bring the objects of a data set to the size that they have in the network's input; nothing is read but the boxes.

    Raises DetkitError if there are none to learn.
    """

    @cache
    def scale(height: int, width: int) -> tuple[float, float]:
        resized = preprocess.place(height, width).resized
        return resized[1] / width, resized[0] / height

    samples = [sample for sample in data.samples if len(sample.boxes)]
    if samples:
        boxes = np.concatenate([sample.boxes for sample in samples])
        scales = np.array([scale(sample.height, sample.width) for sample in samples], np.float32)
        learned = np.concatenate([~(sample.crowd | sample.difficult) & (not sample.somewhere) for sample in samples])
        shapes = (boxes[:, 2:] - boxes[:, :2]) * scales.repeat([len(sample.boxes) for sample in samples], axis=0)
    if not samples or not learned.any():
        what = f"{data.source}, {data.split}" if data.split else str(data.source)
        raise DetkitError(
            f"{what}: has no objects to learn, so there is nothing to fit anchors to; name another --split"
        )
    return Boxes(shapes[learned], len(data), int((~learned).sum()))


def find(
    boxes: Boxes,
    k: int,
    strides: Sequence[int],
    *,
    every: bool = False,
    seed: int = 0,
    advance: Callable[[float], None] = lambda share: None,
) -> Anchors:
    """Find k anchors and assign them to the scales of these strides, `every` one of which may have to have one.

    advance: called with the share of the work done since the last call. Scales that stay empty are left out.
    """
    if every and k < len(strides):
        assign_scales(np.ones((k, 2)), strides, every=True)  # says so before the work
    fit = find_anchors(boxes.shapes, k, seed=seed, advance=advance)
    parts = assign_scales(fit.anchors, strides, every=every)
    return Anchors([Scale(stride, part) for stride, part in zip(strides, parts, strict=True) if len(part)], fit)


def judge(boxes: Boxes, scales: Sequence[Scale]) -> Anchors:
    """Return how well given anchors fit."""
    return Anchors(list(scales), measure_anchors(boxes.shapes, np.concatenate([scale.anchors for scale in scales])))


def misfits(anchors: Anchors) -> list[int]:
    """Return the strides of the scales whose size no anchor has, and that have one only because each needs one."""
    strides = [scale.stride for scale in anchors.scales]
    parts = assign_scales(anchors.fit.anchors, strides)
    return [stride for stride, part in zip(strides, parts, strict=True) if not len(part)]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What `detkit anchors` found.

    source: the data and its split, for people. found: anchors by k-means, more than one for a range of k. old: those of
    the config `name`, if there is one. judged: the old ones are what was asked for, not the new ones.
    """

    source: str
    preprocess: Preprocess
    boxes: Boxes
    found: list[Anchors]
    old: Anchors | None
    name: str | None
    judged: bool

    @property
    def shown(self) -> Anchors:
        """The anchors that were asked for."""
        return self.old if self.judged and self.old is not None else self.found[0]

    @property
    def gain(self) -> float | None:
        """By how much new anchors raise the average IoU, if there are old ones."""
        return None if self.old is None else self.found[0].fit.average_iou - self.old.fit.average_iou

    @property
    def worthwhile(self) -> bool:
        """Whether that is worth a change."""
        return self.gain is not None and self.gain >= WORTHWHILE

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        about: dict[str, Any] = {"data": self.source, "size": list(self.preprocess.size)}
        about |= {"objects": len(self.boxes.shapes), "left_out": self.boxes.left_out}
        if len(self.found) > 1:
            return about | {"curve": [{"k": len(one.fit.anchors)} | one.to_json() for one in self.found]}
        about |= self.shown.to_json()
        if self.old is not None:
            other = {"new": self.found[0]} if self.judged else {"config": self.old}
            about |= {"gain": self.gain, "worthwhile": self.worthwhile}
            about |= {key: anchors.to_json() for key, anchors in other.items()}
        return about


def run(
    data: Dataset,
    setup: Setup,
    counts: Sequence[int] = (),
    *,
    judged: bool = False,
    seed: int = 0,
    advance: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Find anchors for a data set and a setup, and compare them with those of its config, if it has one.

    counts: how many to find, by default as many as the config has, or 9; of several numbers each gets anchors of its
    own. advance: called with the share of the work done since the last call.
    """
    boxes = network_boxes(data, setup.preprocess)
    counts = counts or [setup.count]
    if judged:  # boxes of fewer shapes than the config has anchors are no reason not to judge these
        counts = [min(setup.count, count_distinct(boxes.shapes))]
    every = bool(setup.scales) and len(counts) == 1 and not (judged and counts[0] < len(setup.strides))
    found = [
        find(boxes, k, setup.strides, every=every, seed=seed, advance=lambda share: advance(share / len(counts)))
        for k in counts
    ]
    source = f"{data.source}, {data.split}" if data.split else str(data.source)
    old = judge(boxes, setup.scales) if setup.scales else None
    return Outcome(source, setup.preprocess, boxes, found, old, setup.name, judged)
