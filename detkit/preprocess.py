"""From a picture of any size to the network's input, and its boxes back.

Shapes: H0 × W0 the picture, h × w the picture resized, H × W the canvas that the network sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F

from detkit.config import Strict
from detkit.errors import DetkitError
from detkit.ops.boxes import area, clip
from detkit.structures import Batch, Candidates, Detections

Channel = Annotated[float, Field(ge=0, le=1)]

_PILLOW = {"pillow_linear": Image.Resampling.BILINEAR, "pillow_cubic": Image.Resampling.BICUBIC}
_LONGEST = 64  # times the shorter side
_CV2 = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies on the canvas: sizes are (height, width), offset is (top, left), all in pixels.

    The offset is negative where the picture reaches beyond the canvas.
    """

    picture: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[float, float] = (0, 0)

    def to_canvas(self, boxes: Tensor) -> Tensor:
        """Map xyxy boxes [..., 4] from the picture to the canvas."""
        return boxes * self._scale(boxes) + self._shift(boxes)

    def to_picture(self, boxes: Tensor) -> Tensor:
        """Map xyxy boxes [..., 4] from the canvas back to the picture, unclipped."""
        return (boxes - self._shift(boxes)) / self._scale(boxes)

    def restore(self, found: Detections) -> Detections:
        """Map detections from the canvas to the picture, clipped to it; what lies in the margin is dropped."""
        boxes = clip(self.to_picture(found.boxes), *self.picture)
        placed = Detections(boxes, found.scores, found.labels, self.picture)
        return placed[(area(boxes) > 0).nonzero()[:, 0]]

    def _scale(self, like: Tensor) -> Tensor:
        y, x = (new / old for new, old in zip(self.resized, self.picture, strict=True))
        return like.new_tensor([x, y, x, y])

    def _shift(self, like: Tensor) -> Tensor:
        y, x = self.offset
        return like.new_tensor([x, y, x, y])


class Preprocess(Strict):
    """How a picture becomes the network's input; stored with every model.

    mode: `stretch` to size; `letterbox` fits into size with its shape kept and centres it; `shortest_edge` scales the
      shorter side to size[0] unless the longer would pass size[1], and places it at the top left; `center_crop`, for
      classifiers, scales with the shape kept until size is the share `crop` of the shorter side, and takes the centre.
    size: (height, width) of the canvas; for `shortest_edge` (shorter, longest) side.
    interpolation: `linear`, `area`, `cubic`, `nearest` resize 8-bit pixels with OpenCV; `pillow_linear` and
      `pillow_cubic` with Pillow, antialiased; `float_linear` resizes floats with half-pixel centres as torchvision
      does; `darknet` resizes floats with aligned corners, rounds sizes down and shifts boxes by the unrounded half
      margin as Darknet does.
    crop: of a `center_crop`: .875, 224 of 256 pixels, is what most classifiers are measured with.
    fill: value of the margin, 0 … 1: a grey, or red, green and blue.
    minimal: a letterbox is padded only to the next multiple of divisor instead of to the whole size.
    divisor: the canvas' sides are multiples of it.
    """

    mode: Literal["stretch", "letterbox", "shortest_edge", "center_crop"] = "letterbox"
    size: tuple[PositiveInt, PositiveInt] = (416, 416)
    interpolation: Literal[
        "linear", "area", "cubic", "nearest", "pillow_linear", "pillow_cubic", "float_linear", "darknet"
    ] = "linear"
    crop: float = Field(0.875, gt=0, le=1)
    fill: Channel | tuple[Channel, Channel, Channel] = 0.5
    minimal: bool = False
    divisor: PositiveInt = 32

    @model_validator(mode="after")
    def _size_fits_divisor(self) -> Preprocess:
        if self.mode != "shortest_edge" and any(side % self.divisor for side in self.size):
            raise ValueError(f"size {list(self.size)} must be multiples of the divisor {self.divisor}")
        return self

    def place(self, height: int, width: int) -> Placement:
        """Return where a picture of this size comes to lie."""
        if self.mode == "stretch":
            return Placement((height, width), self.size)
        if self.mode == "shortest_edge":
            scale = min(self.size[0] / min(height, width), self.size[1] / max(height, width))
            return Placement((height, width), (max(1, int(height * scale)), max(1, int(width * scale))))
        net_h, net_w = self.size
        if self.mode == "center_crop":  # sizes as timm and torchvision round them
            least_h, least_w = (math.floor(side / self.crop) for side in self.size)
            if least_h * width >= least_w * height:
                resized = least_h, least_h * width // height
            else:
                resized = least_w * height // width, least_w
            return Placement(
                (height, width), resized, (-round((resized[0] - net_h) / 2), -round((resized[1] - net_w) / 2))
            )
        if self.interpolation == "darknet":  # image.c, letterbox_image: integer division
            if net_w * height < net_h * width:
                resized = max(1, height * net_w // width), net_w
            else:
                resized = net_h, max(1, width * net_h // height)
            return Placement((height, width), resized, ((net_h - resized[0]) / 2, (net_w - resized[1]) / 2))
        scale = min(net_h / height, net_w / width)
        resized = max(1, round(height * scale)), max(1, round(width * scale))
        canvas = tuple(map(self._round_up, resized)) if self.minimal else self.size
        return Placement((height, width), resized, ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2))

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> tuple[Batch, list[Placement]]:
        """Resize and pad RGB pictures [H0, W0, 3] into one batch, in channels-last memory."""
        for picture in pictures:
            _check_pixels(picture)
        placements = [self.place(*picture.shape[:2]) for picture in pictures]
        height, width = (max(side) for side in zip(*map(self._canvas, placements), strict=True))
        canvas = torch.tensor(self.fill).mul(255).expand(len(pictures), height, width, 3).contiguous()
        for row, picture, placement in zip(canvas, pictures, placements, strict=True):
            (top, left), (h, w) = map(int, placement.offset), placement.resized
            if self.mode == "center_crop":
                row[:] = self._centre(picture)
            else:
                row[top : top + h, left : left + w] = self._resize(picture, placement.resized)
        images = canvas.div_(255).permute(0, 3, 1, 2)
        sizes = torch.tensor([placement.resized for placement in placements])
        return Batch(images, sizes.minimum(torch.tensor([height, width]))), placements

    def of_canvases(self, size: tuple[int, int]) -> Preprocess:
        """Return what takes pictures that were made for the network's input of this size, as training makes them."""
        return self.model_copy(update={"size": size} | ({"mode": "stretch"} if self.mode == "center_crop" else {}))

    def _canvas(self, placement: Placement) -> tuple[int, int]:
        if self.mode in ("stretch", "center_crop") or (self.mode == "letterbox" and not self.minimal):
            return self.size
        h, w = placement.resized
        return self._round_up(h), self._round_up(w)

    def _round_up(self, side: int) -> int:
        return math.ceil(side / self.divisor) * self.divisor

    def _centre(self, picture: NDArray[np.uint8]) -> Tensor:
        """The centre of the resized picture; of a very long one most is left away before, which memory may not hold."""
        most = _LONGEST * min(picture.shape[:2])
        y, x = (max(0, side - most) // 2 for side in picture.shape[:2])  # as much on both sides, so the centre stays
        picture = picture[y : picture.shape[0] - y, x : picture.shape[1] - x]
        placement = self.place(*picture.shape[:2])
        top, left = (-int(side) for side in placement.offset)
        return self._resize(picture, placement.resized)[top : top + self.size[0], left : left + self.size[1]]

    def _resize(self, picture: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
        picture = np.require(picture, requirements=["C", "W"])  # PyTorch takes no reversed and no read-only arrays
        if picture.shape[:2] == size:
            return torch.from_numpy(picture)
        if self.interpolation in _CV2:
            resized: NDArray[Any] = cv2.resize(picture, size[::-1], interpolation=_CV2[self.interpolation])
            return torch.from_numpy(resized)
        if self.interpolation in _PILLOW:
            return torch.from_numpy(np.array(Image.fromarray(picture).resize(size[::-1], _PILLOW[self.interpolation])))
        planes = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, size, mode="bilinear", align_corners=self.interpolation == "darknet")
        return planes[0].permute(1, 2, 0)


def place_proposals(boxes: Sequence[Tensor], placements: Sequence[Placement]) -> Candidates:
    """Gather boxes [P, 4] of each picture, in its own pixels, in one table on the canvas, with score 1 and label 0."""
    counts = torch.tensor([len(rows) for rows in boxes])
    picture = torch.arange(len(boxes)).repeat_interleave(counts)
    placed = torch.cat([place.to_canvas(rows) for rows, place in zip(boxes, placements, strict=True)])
    return Candidates.from_flat(picture, placed, torch.ones(len(placed)), torch.zeros_like(picture), len(boxes))


def _check_pixels(picture: object) -> None:
    if not isinstance(picture, np.ndarray):
        raise DetkitError(f"a picture must be an array of pixels [height, width, 3], got {type(picture).__name__}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DetkitError(
            f"a picture must be RGB pixels [height, width, 3] in uint8, got {list(picture.shape)} in {picture.dtype}"
        )
