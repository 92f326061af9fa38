"""YOLO9000: Better, Faster, Stronger (Redmon and Farhadi, 2016, arXiv 1612.08242), section 4: YOLO9000.

YOLOv2 whose classes form a tree, and which learns from pictures with boxes and from pictures with a label alone: where
to look from the former, what there is from both. As its paper has it, everything but the classes is YOLOv2's.

Shapes: as YOLOv2; C counts all nodes of the tree, whose scores have a softmax over each set of siblings. The root,
Pr(physical object), is the objectness: Pr(label) = objectness · product of the conditional probabilities on its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from detkit.detectors.yolov2 import STRIDE, YOLOv2, YOLOv2Config, YOLOv2Loss, YOLOv2LossWeights
from detkit.errors import DetkitError
from detkit.ops.anchors import cells_reached
from detkit.ops.losses import Objects, labelled
from detkit.ops.nms import Selection
from detkit.ops.word_tree import WordTree
from detkit.ops.yolo import tree_candidates
from detkit.structures import Candidates, Target
from detkit.weights.word_tree import Tree, flat_tree, parent_labels, read_tree


def _tree(value: Any) -> Tree:
    try:
        tree = read_tree(Path(value)) if isinstance(value, str) else flat_tree(value)
        WordTree(parent_labels(tree))
    except DetkitError as error:
        raise ValueError(str(error)) from None
    return tree


class YOLO9000LossWeights(YOLOv2LossWeights):
    """Factors of the terms of the loss; `label_` are those of pictures with a label alone."""

    label_object: NonNegativeFloat = 5
    label_classes: NonNegativeFloat = 1


class YOLO9000Loss(YOLOv2Loss):
    """YOLOv2's loss; label_iou: how well a box is assumed to fit an object of which only the label is known."""

    label_iou: float = Field(0.3, ge=0, le=1)
    weights: YOLO9000LossWeights = YOLO9000LossWeights()


class YOLO9000Config(YOLOv2Config):
    """YOLOv2's configuration and the tree of the classes.

    tree: nested names, the path of a YAML file with such, or of Darknet's `.tree` (with its `.names` beside it).
    tree_threshold: a detection is named by the deepest node whose probability, given an object, is above it.
    """

    name: Literal["yolo9000"] = "yolo9000"  # type: ignore[assignment]
    tree: Annotated[Tree, BeforeValidator(_tree)]
    tree_threshold: float = Field(0.5, ge=0, lt=1)
    loss: YOLO9000Loss = YOLO9000Loss()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all nodes, in the order of their labels."""
        return tuple(self.tree)


class YOLO9000(YOLOv2):
    """YOLOv2 over a word tree."""

    Config = YOLO9000Config
    loss: YOLO9000Loss

    def __init__(self, config: YOLO9000Config, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(config, num_classes, size_hw)
        if num_classes != len(config.tree):
            raise DetkitError(f"detector.tree: the tree has {len(config.tree)} names, the model {num_classes} classes")
        self.tree = WordTree(parent_labels(config.tree))
        self.tree_threshold = config.tree_threshold

    def decode(self, raw: Tensor, threshold: float) -> Candidates:
        """Raw map → one row for each box whose score is above the threshold, named by a walk down the tree."""
        return self._candidates(raw, threshold)

    def candidates(self, raw: Tensor, selection: Selection) -> Candidates:
        """Where labels are asked for, a row for each box and each of them by its own probability; else as `decode`."""
        return self._candidates(raw, selection.score, selection.labels)

    def _candidates(self, raw: Tensor, threshold: float, labels: Sequence[int] = ()) -> Candidates:
        size_hw = raw.shape[2] * STRIDE, raw.shape[3] * STRIDE
        return tree_candidates(raw, self.anchors, size_hw, threshold, self.tree, self.tree_threshold, labels)

    def _terms(self, grid: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """YOLOv2's terms, to which pictures with a label alone are crowds, and what those teach.

        Each of their labels teaches the prediction that gives it the highest probability: the classes on its path, and
        an objectness of at least `label_iou` ("Joint classification and detection").
        """
        objects = labelled(targets)
        found = grid[self._most_probable(grid.detach(), objects).unbind()]
        missing = (self.loss.label_iou - found[:, 4].sigmoid()).clamp(min=0)
        return super()._terms(grid, targets) | {
            "label_object": missing.square().sum() / 2,
            "label_classes": self._class_errors(found[:, 5:], objects.labels).sum(),
        }

    def _class_errors(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of every softmax from the top down to the label; below the label nothing is learned."""
        return -self.tree.log_probability_of_each(self.tree.log_conditional(scores), labels)

    @torch.no_grad()
    def _most_probable(self, grid: Tensor, objects: Objects) -> Tensor:
        """The (picture, row, column, anchor) [4, M] that give each label the highest probability in its box."""
        _, height, width, anchors, _ = grid.shape
        reached = cells_reached(objects.boxes, height, width, STRIDE)
        best = []
        for picture, inside, label in zip(objects.picture, reached, objects.labels, strict=True):
            there = grid[picture]
            log_conditional = self.tree.log_conditional(there[..., 5:])
            score = logsigmoid(there[..., 4]) + self.tree.log_probability(log_conditional, label[None])[..., 0]
            best.append(score.masked_fill(~inside[..., None], -torch.inf).argmax())
        index = torch.stack(best) if best else objects.labels
        cell = index // anchors
        return torch.stack([objects.picture, cell // width, cell % width, index % anchors])
