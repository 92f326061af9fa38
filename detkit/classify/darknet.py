"""A Darknet .cfg without boxes: a classifier, run for its scores before the softmax.

Shapes: B pictures of H × W, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones.base import WholeNetwork
from detkit.detectors.darknet import Darknet, DarknetConfig, GroupSoftmax, darknet_names, darknet_preprocess
from detkit.errors import DetkitError
from detkit.weights.darknet import read_cfg

HEADS = ("yolo", "region", "detection")


class DarknetScores(WholeNetwork):
    """The network of a .cfg up to its [softmax], which whoever reads the scores takes.

    Raises DetkitError where it has another number of scores than there are classes, or several groups of them.
    """

    def __init__(self, config: DarknetConfig, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__()
        if (found := count_scores(config, size_hw)) != num_classes:
            raise DetkitError(f"classes: {config.file} has {found} scores, but there are {num_classes} classes")
        self.network = Darknet(config, num_classes, size_hw)
        for i, (section, layer) in enumerate(zip(self.network.sections, self.network.layers, strict=True)):
            if isinstance(layer, GroupSoftmax):
                if layer.groups > 1 or list(self.network.layers[i:].parameters()):
                    raise section.error("a classifier has one softmax over all of its classes, at its end")
                self.network.layers[i] = nn.Identity()

    @property
    def cfg(self) -> str:
        """The text of the .cfg."""
        return self.network.cfg

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → scores [B, 1, C]."""
        maps: list[Tensor] = self.network(images)
        return maps[0].flatten(1)[:, None]

    def darknet_layers(self) -> Iterator[nn.Module]:
        """The layers with weights, in the order of the .weights file."""
        return self.network.darknet_layers()


def count_scores(config: DarknetConfig, size_hw: tuple[int, int]) -> int:
    """Return how many numbers the last layer of a .cfg gives for a picture of size (height, width)."""
    with torch.device("meta"):
        (scores,) = Darknet(config, 1, size_hw).eval()(torch.empty(1, 3, *size_hw))
    return math.prod(scores.shape)


def is_darknet_classifier(path: Path) -> bool:
    """Whether a .cfg has no layer that speaks of boxes."""
    return not any(section.kind in HEADS for section in read_cfg(path))


def darknet_classifier_config(path: Path) -> dict[str, Any]:
    """Return the configuration tree of a classifier: what a .cfg and the .names beside it say."""
    sections = read_cfg(path)
    if any(section.kind in HEADS for section in sections):
        raise DetkitError(f"{path}: is a detector; `detkit detect` finds objects with it")
    config = DarknetConfig(cfg=path.read_bytes().decode(), file=path.name)
    preprocess = darknet_preprocess(sections)
    return {
        "classes": names_or_numbers(path, count_scores(config, preprocess.size)),
        "classifier": config.model_dump(),
        "preprocess": preprocess.model_dump(),
    }


def names_or_numbers(path: Path, count: int) -> list[str]:
    """Return the class names of the .names beside a .cfg or its weights, or else numbers, with a warning."""
    names = darknet_names(path, count)
    beside = path.with_suffix(".names")
    if names == [str(i) for i in range(count)] and not beside.exists():
        warnings.warn(
            f"{path}: has no {beside.name} beside it, so its classes are called 0 to {count - 1}", stacklevel=2
        )
    return names
