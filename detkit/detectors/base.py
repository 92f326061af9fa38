"""What every detector is: four verbs, and nothing that changes what one of them returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detkit.config import Strict
from detkit.ops.nms import Selection, select, warn_of_cap
from detkit.structures import Batch, Candidates, Detections, Target


class Detector(nn.Module, ABC):
    """A network that finds objects; a subclass holds one paper from top to bottom.

    Config: its typed configuration, whose `name` is its key in `detkit.detectors.DETECTORS`.
    """

    Config: ClassVar[type[Strict]]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Pictures [B, 3, H, W] RGB 0 … 1 → raw head outputs, tensors only: what is compiled and exported."""

    @abstractmethod
    def decode(self, raw: Any, threshold: float) -> Candidates:
        """Raw head outputs → boxes in pixels of the network's input with scores above the threshold."""

    @abstractmethod
    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """What is wrong on a batch, by the paper's terms: already weighted, to be summed; in evaluation mode too."""

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `forward` reads of a batch: its pictures, and for some detectors more."""
        return (batch.images,)

    def candidates(self, raw: Any, selection: Selection) -> Candidates:
        """What selection chooses from: what `decode` gives, or more of the labels that are asked for."""
        return self.decode(raw, selection.score)

    @torch.no_grad()
    def detect(self, batch: Batch, selection: Selection) -> list[Detections]:
        """Find objects: forward, decode, select; boxes are pixels of the network's input, clipped to it."""
        candidates = self.candidates(self(*self.inputs(batch)), selection)
        height, width = batch.images.shape[-2:]
        # Filled on the device: to copy two numbers there would mean to wait.
        canvas = torch.stack([torch.full_like(candidates.count, side) for side in (height, width)], 1)
        detections = select(candidates, selection, canvas).detections([(height, width)] * len(batch))
        warn_of_cap(candidates, selection)
        return detections


class Normalize(nn.Module):
    """RGB 0 … 1 to what a backbone was made for: (x − mean) / std, [B, 3, H, W] → the same."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self._needed = tuple(mean) != (0.0, 0.0, 0.0) or tuple(std) != (1.0, 1.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation of each channel."""
        return (images - self.mean) / self.std if self._needed else images
