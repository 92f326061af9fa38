"""A real Model whose detector says which colour a picture has."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.detectors.base import Detector
from detkit.model import Model
from detkit.ops.nms import Selection
from detkit.preprocess import Preprocess
from detkit.structures import Batch, Candidates, Target


class Colors(Detector):
    """One candidate a channel, over the middle of the picture; its score is the channel's mean."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        self.canvas = torch.tensor([width, height, width, height])
        return images.mean((2, 3))

    def decode(self, raw: Tensor, threshold: float) -> Candidates:
        batch = len(raw)
        boxes = (self.canvas * torch.tensor([0.25, 0.25, 0.75, 0.75])).expand(batch, 3, 4)
        labels = torch.arange(3).expand(batch, 3)
        return Candidates(boxes, raw, labels, torch.full((batch,), 3))

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError("nothing to learn")


@pytest.fixture
def model() -> Model:
    """Sees `red`, `green` and `blue` wherever a channel's mean is above a quarter."""
    preprocess = Preprocess(mode="stretch", size=(32, 32))
    return Model(Colors(3), preprocess, Selection(), ("red", "green", "blue"), "colors", torch.device("cpu"), "fp32")


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Path]:
    """Write a picture of one RGB colour."""

    def write(name: str, color: tuple[int, int, int] = (255, 0, 0), size_hw: tuple[int, int] = (40, 60)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.full((*size_hw, 3), color[::-1], np.uint8)
        path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
        return path

    return write


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Write a video of one RGB colour per frame."""

    def write(name: str, colors: list[tuple[int, int, int]], fps: float = 12.5) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        code = "MJPG" if path.suffix == ".avi" else "mp4v"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, (64, 48))
        assert writer.isOpened()
        for color in colors:
            writer.write(np.full((48, 64, 3), color[::-1], np.uint8))
        writer.release()
        return path

    return write
