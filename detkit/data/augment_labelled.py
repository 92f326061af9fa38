"""Random changes of pictures that have a label and no boxes, by torchvision.

The defaults are those of Inception's training (Szegedy et al., 2014, arXiv 1409.4842, section 6), which most recipes
share: a piece of 8 to 100 % of the picture, with sides of 3 : 4 to 4 : 3, resized to the network's input, and a flip.
AutoAugment is Cubuk et al., 2018, arXiv 1805.09501; RandAugment Cubuk et al., 2019, arXiv 1909.13719; random erasing
Zhong et al., 2017, arXiv 1708.04896; repeated augmentation Hoffer et al., 2019, arXiv 1901.09335, and Berman et al.,
2019, arXiv 1902.05509.

Everything random about a sample follows from (seed, epoch, index), where the repetitions of picture i of N have the
indices i, N + i, 2 N + i, …; the global random numbers stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from torchvision.transforms import InterpolationMode, v2

from detkit.config import Strict
from detkit.data.augment import Augmented, MultiScale, Probability, Size
from detkit.data.sample import Dataset
from detkit.preprocess import Preprocess
from detkit.structures import Target

_SAMPLES = 4  # keeps a sample's random numbers apart from the loader's


class RandAugment(Strict):
    """So many changes of a picture one after the other, drawn of fourteen, each as strong as `magnitude` of 0 … 30."""

    layers: PositiveInt = 2
    magnitude: int = Field(9, ge=0, le=30)


class ClassifierAugment(Strict):
    """How the pictures that a classifier learns vary.

    area: share of the picture that the piece shown has, drawn from this range. aspect: the piece's width by its height,
    relative to the input's, at most this or its inverse. scale: in place of both, the range of the picture's shorter
    side, relative to the input's longer one, of which a piece of the input's size is cut (VGG, arXiv 1409.1556, section
    3.1). flip: probability of a horizontal flip. rotate: the most it is turned either way, in degrees. hue: the most it
    turns, as part of the circle. saturation, exposure: the most they are multiplied or divided by. auto_augment: two
    further changes, of the pairs found on ImageNet. rand_augment: changes drawn evenly, or none. erase: probability
    that a rectangle of 2 to 33 % of the picture is filled with noise. multi_scale: other inputs every few batches, or
    none. repeats: how often each picture stands in its batch, every time changed in another way; an epoch keeps its
    length, and so sees one picture in `repeats`.
    """

    area: tuple[float, float] = (0.08, 1)
    aspect: float = Field(4 / 3, ge=1)
    scale: tuple[float, float] | None = None
    flip: Probability = 0.5
    rotate: float = Field(0, ge=0, le=180)
    hue: float = Field(0, ge=0, le=0.5)
    saturation: float = Field(1, ge=1)
    exposure: float = Field(1, ge=1)
    auto_augment: bool = False
    rand_augment: RandAugment | None = None
    erase: Probability = 0
    multi_scale: MultiScale | None = None
    repeats: PositiveInt = 1

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> ClassifierAugment:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area {list(self.area)} must be two shares above 0 and up to 1, the smaller first")
        if self.scale is not None and not 1 <= self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be two numbers from 1 on, the smaller first")
        return self


class _Erasing(v2.RandomErasing):  # type: ignore[misc]  # torchvision's transforms have no types
    """Random erasing with a value from 0 to 255 for each pixel and channel, which the paper found best (RE-R)."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the rectangle and its noise."""
        params: dict[str, Any] = super().make_params(flat_inputs)
        if params["v"] is not None:
            params["v"] = torch.randint(256, (3, params["h"], params["w"]), dtype=torch.uint8)
        return params


class ClassifierAugmenter:
    """Draws training samples, as `detkit.data.augment.Augmenter` does for pictures with boxes."""

    def __init__(self, augment: ClassifierAugment, preprocess: Preprocess) -> None:
        self._augment = augment
        # As pictures are resized outside of training.
        self._antialias = preprocess.interpolation in ("area", "pillow_linear", "pillow_cubic")
        cubic = preprocess.interpolation in ("cubic", "pillow_cubic")
        self._interpolation = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
        self._fill = [round(255 * value) for value in np.broadcast_to(preprocess.fill, 3).tolist()]

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
        """Draw the sample that follows from (seed, epoch, index); its picture has the size of the input."""
        sample = dataset.samples[index % len(dataset)]
        picture = torch.from_numpy(np.ascontiguousarray(sample.read())).permute(2, 0, 1)
        numbers = np.random.SeedSequence([_SAMPLES, seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(numbers[0]) >> 1)
            picture = self._pipeline(size_hw)(picture)
        height, width = size_hw
        whole = torch.tensor([[0.0, 0.0, width, height]])
        flags = (torch.full((1,), value) for value in (True, False, True))  # a crowd, not difficult, somewhere
        target = Target(whole, torch.from_numpy(sample.labels[:1].copy()), *flags)
        return Augmented(picture.permute(1, 2, 0).contiguous().numpy(), target, None)

    def _pipeline(self, size_hw: Size) -> v2.Transform:
        options = self._augment
        shape = size_hw[1] / size_hw[0]
        ratio = shape / options.aspect, shape * options.aspect
        changes: list[Any]
        if options.scale is None:
            changes = [v2.RandomResizedCrop(list(size_hw), options.area, ratio, self._interpolation, self._antialias)]
        else:
            least, most = (round(max(size_hw) * scale) for scale in options.scale)
            sides = list(range(least, most + 1))
            resize = v2.RandomShortestSize(sides, interpolation=self._interpolation, antialias=self._antialias)
            changes = [resize, v2.RandomCrop(list(size_hw))]
        if options.flip:
            changes.append(v2.RandomHorizontalFlip(options.flip))
        if options.rotate:
            changes.append(v2.RandomRotation(options.rotate, InterpolationMode.BILINEAR, fill=self._fill))
        if options.hue or max(options.saturation, options.exposure) > 1:
            brightness, saturation = ((1 / most, most) for most in (options.exposure, options.saturation))
            changes.append(v2.ColorJitter(brightness, None, saturation, options.hue))
        if options.auto_augment:
            changes.append(v2.AutoAugment(fill=self._fill))
        if (rand := options.rand_augment) is not None:
            changes.append(v2.RandAugment(rand.layers, rand.magnitude, fill=self._fill))
        if options.erase:
            changes.append(_Erasing(options.erase))
        return v2.Compose(changes)
