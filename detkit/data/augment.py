"""Random changes of pictures and their objects for training: flip, zoom, aspect, colour, mosaic, canvas size.

The defaults are those of YOLOv3's released code (Darknet, `load_data_detection` in data.c): the picture's shape is
jittered, it is scaled to a quarter to twice the size that fits the canvas, laid down at random, and its colours are
distorted. Mosaic is YOLOv4's (Bochkovskiy et al. 2020, arXiv 2004.10934), multi-scale batches are YOLOv2's (Redmon and
Farhadi 2016, arXiv 1612.08242). Albumentations does the pixels and the boxes.

Everything random about a sample follows from (seed, epoch, index); no global state is read or written.

Shapes: M objects of a picture, P its proposals, K = M + P rows. Boxes are xyxy pixels.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from detkit.config import Strict
from detkit.data.sample import Dataset, Sample
from detkit.preprocess import Preprocess
from detkit.structures import Target

Size = tuple[int, int]
Probability = Annotated[float, Field(ge=0, le=1)]

# Preprocess' resizing, or what OpenCV has that is next to it; the two that work on floats are linear.
_INTERPOLATION = {
    "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST,
    "pillow_linear": cv2.INTER_AREA, "pillow_cubic": cv2.INTER_CUBIC,
}  # fmt: skip
_SAMPLES = 1  # keeps a sample's random numbers apart from the loader's
_CUT = 0.2  # a mosaic's cut keeps this share of the canvas from its border (Darknet's mosaic does)
_MIN_SIDE = 1  # pixels


class MultiScale(Strict):
    """Another canvas every few batches: the side is drawn from low, low + step … high.

    The side is the longer one of a canvas that is not square, and the shorter edge for `shortest_edge`; the other side
    keeps its proportion.
    """

    low: PositiveInt = 320
    high: PositiveInt = 608
    step: PositiveInt = 32
    every: PositiveInt = 10

    @model_validator(mode="after")
    def _steps_reach_high(self) -> MultiScale:
        if self.high < self.low or (self.high - self.low) % self.step:
            raise ValueError(f"high {self.high} must be low {self.low} plus a number of steps of {self.step}")
        return self


class Augment(Strict):
    """How training pictures vary.

    flip: probability of a horizontal flip. jitter: each side is stretched by 1 ± jitter before the picture is fitted
    into the canvas. scale: range of the zoom from there, 1 fits; what is larger is cropped at random, what is smaller
    laid down at random. hue: the most it turns, as part of the circle. saturation, exposure: the most they are
    multiplied or divided by. mosaic: probability that a canvas is cut into four at a random point and filled with
    pieces of four pictures. min_visibility: an object of which a smaller share is left is dropped, unless it is a crowd
    or difficult: those are to be ignored however little is seen. Objects left thinner than a pixel are dropped always.
    """

    flip: Probability = 0.5
    jitter: float = Field(0.3, ge=0, lt=1)
    scale: tuple[float, float] = (0.25, 2)
    hue: float = Field(0.1, ge=0, le=0.5)
    saturation: float = Field(1.5, ge=1)
    exposure: float = Field(1.5, ge=1)
    mosaic: Probability = 0
    min_visibility: Probability = 0.1
    multi_scale: MultiScale | None = None

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be two positive numbers, the smaller first")
        return self


class Augmented(NamedTuple):
    """A picture [H, W, 3] RGB with its objects and its proposals [P, 4] in its pixels; None where there are none."""

    picture: NDArray[np.uint8]
    target: Target
    proposals: Tensor | None


class Augmenter:
    """Draws training samples; made once for a data set's loader, and sent to its workers."""

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        albumentations = _albumentations()
        self._augment = augment
        self._preprocess = preprocess
        self._zooms = augment.jitter > 0 or augment.scale != (1, 1)
        self._flip = [albumentations.HorizontalFlip(augment.flip)] if augment.flip else []
        color = albumentations.ColorJitter(
            brightness=(1 / augment.exposure, augment.exposure),
            contrast=(1, 1),
            saturation=(1 / augment.saturation, augment.saturation),
            hue=(-augment.hue, augment.hue),
            p=1,
        )
        self._color = [color] if augment.hue or max(augment.saturation, augment.exposure) > 1 else []

    def __call__(
        self,
        dataset: Dataset,
        index: int,
        *,
        epoch: int,
        seed: int,
        size_hw: Size,
        proposals: Sequence[NDArray[np.float32]] | None = None,
    ) -> Augmented:
        """Draw the sample that follows from (seed, epoch, index).

        size_hw: `Preprocess.size` of the batch. Where zoom or mosaic acts, the picture fills the canvas, so that
        preprocessing leaves it alone; else it keeps its size. proposals: [P, 4] of each picture of the data set; they
        go through the same changes and fall by the same rules as objects.
        """
        rng = np.random.default_rng([_SAMPLES, seed, epoch, index])
        preprocess = self._preprocess.model_copy(update={"size": size_hw})

        def view(i: int, window: Size | None) -> tuple[NDArray[np.uint8], _Rows]:
            rows = _Rows.of(dataset.samples[i], None if proposals is None else proposals[i])
            return self._view(dataset.samples[i].read(), rows, window, preprocess, rng)

        sample = dataset.samples[index]
        fits = preprocess.place(sample.height, sample.width)
        canvas = fits.resized if preprocess.mode == "shortest_edge" else size_hw
        if not (self._augment.mosaic and rng.random() < self._augment.mosaic):
            picture, rows = view(index, canvas if self._zooms else None)
            return rows.augmented(picture, proposals is not None)

        picture = np.empty((*canvas, 3), np.uint8)
        others = rng.integers(len(dataset), size=3).tolist()
        cut_y, cut_x = (round(side * rng.uniform(_CUT, 1 - _CUT)) for side in canvas)
        spans = [
            (top, left, bottom, right)
            for top, bottom in ((0, cut_y), (cut_y, canvas[0]))
            for left, right in ((0, cut_x), (cut_x, canvas[1]))
        ]
        parts = []
        for i, (top, left, bottom, right) in zip([index, *others], spans, strict=True):
            picture[top:bottom, left:right], rows = view(i, (bottom - top, right - left))
            parts.append(rows._replace(boxes=rows.boxes + np.array([left, top, left, top], np.float32)))
        return _Rows.join(parts).augmented(picture, proposals is not None)

    def _view(
        self,
        picture: NDArray[np.uint8],
        rows: _Rows,
        window: Size | None,
        preprocess: Preprocess,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], _Rows]:
        """Flip, zoom to a random piece of the size of the window (None: no zoom), colour, and pad."""
        albumentations = _albumentations()
        height, width = picture.shape[:2]
        resized = height, width
        moving, pad = list(self._flip), []
        if window is not None:
            resized = h, w = self._resized(height, width, preprocess, rng)
            interpolation = _INTERPOLATION.get(preprocess.interpolation, cv2.INTER_LINEAR)
            moving.append(albumentations.Resize(h, w, interpolation=interpolation))
            moving.append(albumentations.RandomCrop(min(h, window[0]), min(w, window[1])))
            # After the colours: the margin has the same grey in training and afterwards. Darknet distorts it too.
            fill = np.round(np.multiply(preprocess.fill, 255)).tolist()
            pad.append(albumentations.PadIfNeeded(*window, position="random", fill=fill))
        if not moving and not self._color:
            return picture, rows
        box_rules = albumentations.BboxParams(
            "pascal_voc", min_width=_MIN_SIDE, min_height=_MIN_SIDE, clip=True, filter_invalid_bboxes=True
        )
        pipeline = albumentations.Compose([*moving, *self._color, *pad], bbox_params=box_rules if moving else None)
        # set_random_seed would start every transform at the same number: flipped pictures would all be bright.
        pipeline.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        if not moving:
            return pipeline(image=picture)["image"], rows
        numbered = np.column_stack([rows.boxes, np.arange(len(rows.boxes))])
        changed = pipeline(image=picture, bboxes=numbered)
        table = changed["bboxes"].reshape(-1, 5)  # [0, 4] when none is left
        kept = table[:, 4].astype(np.int64)
        before = rows.take(kept)
        whole = _area(before.boxes) * (resized[0] / height) * (resized[1] / width)
        stays = _area(table[:, :4]) >= self._augment.min_visibility * whole
        stays |= before.crowd | before.difficult
        return changed["image"], before._replace(boxes=table[:, :4].astype(np.float32)).take(stays)

    def _resized(self, height: int, width: int, preprocess: Preprocess, rng: np.random.Generator) -> Size:
        """Draw the (height, width) to which a picture is resized, of which the window then shows a piece."""
        h, w = preprocess.place(height, width).resized
        if not self._zooms:
            return h, w
        jitter_h, jitter_w = rng.uniform(1 - self._augment.jitter, 1 + self._augment.jitter, 2)
        room_h, room_w = (h, w) if preprocess.mode == "shortest_edge" else preprocess.size
        fit = min(room_h / (h * jitter_h), room_w / (w * jitter_w)) * rng.uniform(*self._augment.scale)
        return max(1, round(h * jitter_h * fit)), max(1, round(w * jitter_w * fit))


class _Rows(NamedTuple):
    """The objects of a picture, then its proposals: boxes [K, 4], and for each row what it is."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    somewhere: NDArray[np.bool_]
    proposal: NDArray[np.bool_]

    @staticmethod
    def of(sample: Sample, proposals: NDArray[np.float32] | None) -> _Rows:
        somewhere = np.full(len(sample.labels), sample.somewhere)
        columns = sample.boxes, sample.labels, sample.crowd, sample.difficult, somewhere
        objects = _Rows(*columns, np.zeros(len(sample.labels), bool))
        if proposals is None:
            return objects
        count = len(proposals)
        no = np.zeros(count, bool)
        return _Rows.join([objects, _Rows(proposals, np.zeros(count, np.int64), no, no, no, ~no)])

    @staticmethod
    def join(parts: Sequence[_Rows]) -> _Rows:
        return _Rows(*map(np.concatenate, zip(*parts, strict=True)))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> _Rows:
        return _Rows(*(column[rows] for column in self))  # type: ignore[arg-type]

    def augmented(self, picture: NDArray[np.uint8], with_proposals: bool) -> Augmented:
        *objects, _ = self.take(~self.proposal)
        proposals = torch.from_numpy(self.boxes[self.proposal]) if with_proposals else None
        return Augmented(picture, Target(*map(torch.from_numpy, objects)), proposals)


def _area(boxes: NDArray[Any]) -> NDArray[Any]:
    area: NDArray[Any] = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return area


def _albumentations() -> ModuleType:
    """Import what takes seconds, which reading a configuration must not, without its look for newer versions."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    module: ModuleType = albumentations
    return module
