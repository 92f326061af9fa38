"""What differs between the things that are trained: what a batch teaches, and how good the network has become.

All else is the same for a detector and a classifier: see detkit.train.module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, distributed

from detkit.classify.classifier import Classifier
from detkit.classify.losses import Mixing, classifier_losses
from detkit.data.loader import EvaluationBatch
from detkit.data.show import MOST
from detkit.detectors.base import Detector
from detkit.detectors.yolov3 import YOLOv3
from detkit.evaluate.classify import METRICS as CLASSIFICATION
from detkit.evaluate.classify import ClassifierEvaluator
from detkit.evaluate.coco import CocoEvaluator
from detkit.evaluate.records import DetectionTable
from detkit.ops.nms import Selection
from detkit.structures import Batch, Detections, Target
from detkit.train.config import TrainClassifier

COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
METRICS = (*COCO, *CLASSIFICATION)
"""The numbers of an evaluation of any kind."""

HEADLINES = ("AP", "AP50", "top1", "top5")
"""The numbers that are shown."""

Network = Detector | Classifier

_FEW = 3  # boxes that are shown beyond as many as there are objects, or where none is sure


def headlines(row: Mapping[str, float | None]) -> list[str]:
    """Return the numbers that are shown of an epoch, as `AP 0.123`, or `AP none` where there was no object to find."""
    shown = [name for name in HEADLINES if name in row]
    return [f"{name} {'none' if (value := row[name]) is None else format(value, '.3f')}" for name in shown]


class Task(ABC):
    """What a batch teaches a network, and how good it is.

    An evaluation is `begin`, `update` for each batch, `scores`. examples: of the last evaluation the first pictures, by
    the index of their sample, and what was found in them. legend: what pictures of them show.
    """

    legend: str
    examples: list[tuple[int, Detections]]

    @abstractmethod
    def losses(self, network: Any, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """Return the loss terms of a batch, weighted."""

    @abstractmethod
    def begin(self) -> None:
        """Begin an evaluation."""

    @abstractmethod
    def update(self, network: Any, batch: EvaluationBatch) -> None:
        """Evaluate the network on a batch."""

    @abstractmethod
    def scores(self, processes: int) -> dict[str, float | None]:
        """Return the numbers of the evaluation over the pictures of all processes; every process gets them."""


class Detection(Task):
    """Finding objects.

    selection, evaluator: for evaluation, which makes a fresh evaluator each time; image_ids: those of the evaluated
    pictures by their index. teacher: gives the raw maps of a model to learn from. threshold: of scores in the examples.
    """

    def __init__(
        self,
        selection: Selection,
        evaluator: Callable[[], CocoEvaluator],
        image_ids: list[int | str],
        teacher: Callable[[Tensor], list[Tensor]] | None = None,
        threshold: float = 0,
    ) -> None:
        self._selection = selection
        self._new_evaluator = evaluator
        self._image_ids = image_ids
        self._teacher = teacher
        self._threshold = threshold
        self.legend = (
            f"dashed: the truth; solid: found with a score above {threshold:g} (at most {_FEW} more than there are "
            f"objects), else the {_FEW} surest"
        )

    def losses(self, network: Detector, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """Return the detector's loss terms; from a teacher it learns more."""
        if self._teacher is None:
            return network.losses(batch, targets)
        return cast("YOLOv3", network).losses(batch, targets, self._teacher(batch.images))

    def begin(self) -> None:
        """Begin an evaluation."""
        self._evaluator = self._new_evaluator()
        self.examples = []

    def update(self, network: Detector, batch: EvaluationBatch) -> None:
        """Detect in a batch of pictures."""
        pictures, targets, placements, indices = batch
        found = network.detect(pictures, self._selection)
        for number, target, detections, placement in zip(indices, targets, found, placements, strict=True):
            placed = placement.restore(detections)
            self._evaluator.update(self._image_ids[number], placed)
            if len(self.examples) < MOST:
                sure = placed[placed.scores > self._threshold]
                shown = sure[: len(target.boxes) + _FEW] if len(sure) else placed[:_FEW]
                self.examples.append((number, shown))

    def scores(self, processes: int) -> dict[str, float | None]:
        """Return COCO's numbers."""
        if processes > 1:
            tables: list[DetectionTable] = [self._evaluator.detections] * processes
            distributed.all_gather_object(tables, self._evaluator.detections)
            self._evaluator = self._new_evaluator()
            self._evaluator.extend(DetectionTable.join(tables))
        return self._evaluator.compute().summary


class Classification(Task):
    """Naming what is in a picture.

    classes: their names. teacher: gives the scores [B, C] of a model to learn from, as `train.distillation` asks.
    """

    legend = "dashed: the truth; solid: the surest class"

    def __init__(
        self, classes: tuple[str, ...], train: TrainClassifier, teacher: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._classes = classes
        self._mixing = Mixing(len(classes), train.mixup, train.cutmix, train.label_smoothing)
        self._distillation = train.distillation
        self._teacher = teacher

    def losses(self, network: Classifier, batch: Batch, targets: list[Target]) -> dict[str, Tensor]:
        """Return the cross-entropy of mixed pictures, and what a teacher says to them."""
        images, truth = self._mixing(batch.images, torch.cat([target.labels for target in targets]))
        heads, auxiliary = network.with_auxiliary(images)
        if self._teacher is None or self._distillation is None:
            return classifier_losses(heads, truth, auxiliary=auxiliary)
        temperature = self._distillation.temperature if self._distillation.kind == "soft" else None
        teacher = self._teacher(images)
        return classifier_losses(heads, truth, teacher, self._distillation.weight, temperature, auxiliary)

    def begin(self) -> None:
        """Begin an evaluation."""
        self._evaluator = ClassifierEvaluator(self._classes)
        self.examples = []

    @torch.no_grad()
    def update(self, network: Classifier, batch: EvaluationBatch) -> None:
        """Classify a batch of pictures; an example shows the best class over the whole picture."""
        pictures, targets, placements, indices = batch
        scores = network(pictures.images).float()
        self._evaluator.update(scores, torch.cat([target.labels for target in targets]))
        best, labels = scores.softmax(1).cpu().max(1)
        for row, (number, placement) in enumerate(zip(indices, placements, strict=True)):
            if len(self.examples) < MOST:
                height, width = placement.picture
                whole = torch.tensor([[0.0, 0.0, width, height]])
                found = Detections(whole, best[row : row + 1], labels[row : row + 1], placement.picture)
                self.examples.append((number, found))

    def scores(self, processes: int) -> dict[str, float | None]:
        """Return accuracies, loss and calibration."""
        if processes > 1:
            gathered: list[Any] = [None] * processes
            distributed.all_gather_object(gathered, self._evaluator.parts)
            self._evaluator.parts = [part for parts in gathered for part in parts]
        return self._evaluator.compute().summary
