"""How good a classifier is: top-1 and top-5 accuracy, loss, calibration, and which class is taken for which.

Reliability and expected calibration error are those of On Calibration of Modern Neural Networks (Guo et al., 2017,
arXiv 1706.04599), section 2 and eq. 3, with 15 bins of equal width.
Shapes: N pictures, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from detkit.classify.classifier import require_finite_scores
from detkit.classify.model import ClassifierModel
from detkit.data.ahead import read_ahead
from detkit.data.crops import crop_objects
from detkit.data.picture import MAX_PIXELS
from detkit.data.relabel import relabel
from detkit.data.sample import Dataset, count
from detkit.errors import DetkitError
from detkit.evaluate.plots import plot_confusion, plot_reliability, to_png
from detkit.evaluate.records import Floats, Ints
from detkit.files import write_atomically

METRICS = ("top1", "top5", "val_loss", "ece")
FILES = ("metrics.json", "confusion_matrix.png", "reliability.png")

_BINS = 15
_READERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class ClassScores:
    """Of one class: how many pictures it has, the share of them that is classified rightly, and as one of five."""

    pictures: int
    top1: float | None
    top5: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a classifier's confidence is worth, in the bins (m/15, (m+1)/15] of its confidence.

    pictures [15]: how many the bin has. confidence, accuracy [15]: their mean confidence, and the share that is
    classified rightly; 0 without pictures.
    """

    pictures: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The mean distance of confidence and accuracy over the pictures (eq. 3)."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float((gaps * self.pictures).sum() / self.pictures.sum())

    def to_json(self) -> list[dict[str, float]]:
        """Return the bins that have pictures."""
        names = ("pictures", "confidence", "accuracy")
        columns = (getattr(self, name)[self.pictures > 0].tolist() for name in names)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierResult:
    """What an evaluation gives.

    summary: top1, top5 (the share of pictures whose class is the best, or among the five best scores), val_loss (mean
    cross-entropy) and ece (expected calibration error); None without pictures. per_class: by name. confusion [C, C]
    counts pictures by true class (rows) and predicted class. calibration: ece, bin by bin.
    """

    summary: dict[str, float | None]
    per_class: dict[str, ClassScores]
    confusion: Ints
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints and metrics.json holds."""
        names = ("pictures", "top1", "top5")
        classes = {name: {key: getattr(scores, key) for key in names} for name, scores in self.per_class.items()}
        calibration = self.calibration.to_json()
        return {"metric": "classification", **self.summary, "classes": classes, "calibration": calibration}

    def save(self, folder: Path) -> None:
        """Write metrics.json, confusion_matrix.png and reliability.png."""
        confusion = plot_confusion(self.confusion, list(self.per_class), "Confusion of classes", background=False)
        bins = self.calibration
        reliability = plot_reliability(bins.pictures, bins.confidence, bins.accuracy, self.summary["ece"])
        text = json.dumps(self.to_json(), indent=2) + "\n"
        contents: tuple[str | bytes, ...] = (text, to_png(confusion), to_png(reliability))
        for name, content in zip(FILES, contents, strict=True):
            write_atomically(folder / name, content)


class ClassifierEvaluator:
    """Gathers scores batch by batch; `parts` are what several processes exchange."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.parts: list[Floats] = []
        self._classes = tuple(classes)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take scores before the softmax [B, C] and the true labels [B]; DetkitError where scores are not finite."""
        scores, labels = require_finite_scores(scores).double().cpu(), labels.cpu()
        own = scores.gather(1, labels[:, None])
        # Of equal scores the class with the lower number comes first, as argmax has it.
        before = (scores > own) | ((scores == own) & (torch.arange(scores.shape[1]) < labels[:, None]))
        confidence, predicted = scores.softmax(1).max(1)
        loss = F.cross_entropy(scores, labels, reduction="none")
        columns = [labels, predicted, before.sum(1), confidence, loss]
        self.parts.append(torch.stack([column.double() for column in columns], 1).numpy())

    def compute(self) -> ClassifierResult:
        """Return the result over all pictures so far."""
        count = len(self._classes)
        table = np.concatenate([np.zeros((0, 5)), *self.parts])
        labels, predicted, rank = table[:, :3].astype(np.int64).T
        confidence, loss = table[:, 3:].T
        calibration = calibrate(confidence, rank == 0)
        summary: dict[str, float | None] = dict.fromkeys(METRICS)
        if len(table):
            summary = {
                "top1": float((rank == 0).mean()),
                "top5": float((rank < 5).mean()),
                "val_loss": float(loss.mean()),
                "ece": calibration.error,
            }
        per_class = {}
        for label, name in enumerate(self._classes):
            ranks = rank[labels == label]
            shares = (float((ranks < k).mean()) if len(ranks) else None for k in (1, 5))
            per_class[name] = ClassScores(len(ranks), *shares)
        confusion = np.zeros((count, count), np.int64)
        np.add.at(confusion, (labels, predicted), 1)
        return ClassifierResult(summary, per_class, confusion, calibration)


def calibrate(confidence: Floats, correct: NDArray[np.bool_]) -> Calibration:
    """Sort the pictures into bins by their confidence [N], and say how often each bin is correct [N]."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    pictures = np.bincount(bins, minlength=_BINS)
    means = (np.bincount(bins, values, _BINS) / np.maximum(pictures, 1) for values in (confidence, correct))
    return Calibration(pictures, *means)


def evaluate_classifier(
    model: ClassifierModel,
    data: Dataset,
    *,
    batch_size: int = 8,
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda pictures, total: None,
) -> ClassifierResult:
    """Classify every picture of a data set, or every object where it has boxes, and compare.

    say: called with each line about classes that differ and pictures left out. advance: called with the number of
    pictures done, and of all. Raises DetkitError when pictures are missing, before any is read, when one cannot be
    read, or when the model shares no class with the data.
    """
    missing = [sample.path for sample in data.samples if sample.draw is None and not sample.path.is_file()]
    if missing:  # known before the work of hours
        raise DetkitError(
            f"{data.source}: {len(missing)} of {count(len(data), 'picture')} not found, the first is {missing[0]}; "
            "restore them, or leave them out of the data"
        )
    known = len(data.notes)
    data = relabel(crop_objects(data, model.config.crops), model.classes, say)
    for note in data.notes[known:]:
        say(note)
    evaluator = ClassifierEvaluator(model.classes)
    readers = (partial(sample.read, max_pixels=max_pixels) for sample in data.samples)
    labels = iter(data.samples)
    pictures = read_ahead(readers, lambda picture: picture.size // 3, workers=_READERS, ahead=2 * batch_size)
    with closing(pictures):
        while batch := list(islice(pictures, batch_size)):
            truth = torch.tensor([int(sample.labels[0]) for sample in islice(labels, len(batch))])
            evaluator.update(model.predict(batch), truth)
            advance(len(batch), len(data))
    return evaluator.compute()
