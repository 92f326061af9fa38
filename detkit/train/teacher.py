"""A teacher: another network whose outputs of the training pictures are learned beside their objects or labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from detkit.classify.model import load_classifier
from detkit.data.names import class_names, match_classes
from detkit.detectors.base import Detector, Normalize
from detkit.detectors.darknet import Darknet, GridHead
from detkit.detectors.yolov3 import YOLOv3
from detkit.errors import DetkitError, nearest
from detkit.model import load
from detkit.train.config import ClassifierTrainConfig, Distillation, TrainConfig
from detkit.weights.checkpoint import load_state, read_tensors


def load_teacher(config: TrainConfig, student: Detector) -> Callable[[Tensor], list[Tensor]] | None:
    """Return what gives a teacher's raw maps of pictures [B, 3, H, W], in the student's order, if there is a teacher.

    Raises DetkitError when student or teacher is not of YOLOv3's kind, or their levels, anchors or classes differ.
    """
    if config.train.teacher is None:
        return None
    name = config.train.teacher.model
    with _named("train.teacher.model"):
        model = load(name, config.train.teacher.weights, device="cpu")
    teacher = model.detector
    if not isinstance(student, YOLOv3):
        raise DetkitError(f"train.teacher: {config.detector.name} cannot learn from one, only yolov3 can")  # type: ignore[attr-defined]
    if isinstance(teacher, YOLOv3):
        anchors = teacher.anchors
    elif isinstance(teacher, Darknet) and all(
        isinstance(head, GridHead) and not head.softmax for head in teacher.heads
    ):
        anchors = [head.anchors for head in teacher.heads if isinstance(head, GridHead)]
    else:
        raise DetkitError(f"train.teacher.model: {name} is not of YOLOv3's kind, whose maps a student could learn")

    labels = match_classes(model.classes, class_names(config.classes)).to_model
    if None in labels or len(labels) != len(model.classes):
        raise DetkitError(f"train.teacher.model: {name} has other classes than the student")
    nothing = torch.zeros(1, 3, *config.preprocess.size)
    with torch.no_grad():
        cells = [x.shape[-2:] for x in teacher(nothing)]
        own_cells = [x.shape[-2:] for x in student(nothing)]
    finest_first = sorted(range(len(cells)), key=lambda i: -cells[i].numel())
    anchors, cells = [anchors[i] for i in finest_first], [cells[i] for i in finest_first]
    if cells != own_cells or any(not torch.equal(a, b) for a, b in zip(anchors, student.anchors, strict=True)):
        raise DetkitError(
            f"train.teacher.model: {name} has other levels or anchors than the student: it needs "
            + ", ".join(f"{tuple(c)} cells with anchors {a.tolist()}" for c, a in zip(cells, anchors, strict=True))
        )
    fields = torch.tensor([*range(5), *(5 + label for label in labels if label is not None)])

    @torch.no_grad()
    def maps(pictures: Tensor) -> list[Tensor]:
        teacher.to(pictures.device)
        raw = teacher(pictures)
        found = []
        for i in finest_first:
            by_anchor = raw[i].unflatten(1, (-1, len(fields)))
            found.append(by_anchor.index_select(2, fields.to(pictures.device)).flatten(1, 2))
        return found

    return maps


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except DetkitError as error:
        raise DetkitError(f"{key}: {error}") from None


def load_classifier_teacher(config: ClassifierTrainConfig) -> Callable[[Tensor], Tensor] | None:
    """Return what gives a teacher's scores [B, C] of pictures, in the order of the student's classes, if there is one.

    It sees the pictures as the student does, and normalises them for itself. Raises DetkitError when it lacks one of
    the student's classes, or takes no pictures of their size.
    """
    distillation = config.train.distillation
    if distillation is None:
        return None
    classes = class_names(config.classes)
    teacher: nn.Module
    if distillation.model.startswith("timm/"):
        teacher, order = _timm_teacher(distillation, len(classes)), torch.arange(len(classes))
    else:
        with _named("train.distillation.model"):
            model = load_classifier(distillation.model, distillation.weights, device="cpu")
        found = match_classes(model.classes, classes).to_model
        teacher, order = model.network, torch.tensor([label for label in found if label is not None])
        if len(order) < len(classes):
            missing = classes[found.index(None)]
            raise DetkitError(f"train.distillation.model: {distillation.model} does not know the class {missing!r}")
    height, width = config.preprocess.size
    try:
        with torch.no_grad():
            teacher(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError) as error:
        raise DetkitError(
            f"train.distillation.model: {distillation.model} takes no pictures of {height}×{width} "
            f"({str(error).splitlines()[0]}); set preprocess.size or take another teacher"
        ) from None

    @torch.no_grad()
    def scores(pictures: Tensor) -> Tensor:
        teacher.to(pictures.device)
        given: Tensor = teacher(pictures)
        return given.index_select(1, order.to(pictures.device))

    return scores


def _timm_teacher(distillation: Distillation, classes: int) -> nn.Module:
    """Build a classifier of timm's with the weights of a file: pictures [B, 3, H, W] RGB 0 … 1 → scores [B, C]."""
    name = distillation.model.removeprefix("timm/")
    if not timm.is_model(name):
        raise DetkitError(f"train.distillation.model: timm has no model {name!r}{nearest(name, timm.list_models())}")
    if distillation.weights is None:
        raise DetkitError(f"train.distillation.weights: timm/{name} needs a file that holds its weights")
    network: Any = timm.create_model(name, num_classes=classes)
    tensors = read_tensors(Path(distillation.weights))
    config = network.pretrained_cfg
    heads = [config["classifier"]] if isinstance(config["classifier"], str) else config["classifier"]
    known = {len(tensors[key]) for head in heads if (key := f"{head}.weight") in tensors}
    if known - {classes}:
        raise DetkitError(
            f"train.distillation.weights: {distillation.weights} tells {max(known)} classes apart, the student "
            f"{classes}; a teacher of timm's has the student's classes, in their order"
        )
    load_state(network, tensors, distillation.weights)
    return nn.Sequential(Normalize(config["mean"], config["std"]), network).eval()
