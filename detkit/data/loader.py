"""Batches of a data set: for training in random order and augmented, for evaluation in order and as they are.

What a batch holds follows from (seed, epoch, step) alone: the main process decides on pictures and canvas size, and a
sample's random numbers follow from (seed, epoch, index). So the number of workers changes nothing, and the batches
that W processes draw at a step are the batch of one process with W times the batch size, cut into W shares. (Only the
padding of pictures of different sizes, `shortest_edge`, is each share's own.)

No picture is left out or drawn twice. An epoch of N pictures takes the smallest number of steps that keeps to the
batch size, and the pictures are dealt out evenly: the steps of an epoch, and the shares of a step, differ by one
picture at most, so there is no small last batch and every process takes every step. The one exception: with batches of
one picture in several processes, N not being a multiple of W, some shares have two, so that none has none.

Repeated augmentation (Hoffer et al., 2019, arXiv 1901.09335) keeps the length of an epoch and takes one picture in R, R
times each. Within a step all pictures come once before one comes again: what mixes neighbours then mixes two pictures,
and W shares have as many different ones as there can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from detkit.data.augment import Augment, Augmenter, MultiScale, Size
from detkit.data.augment_labelled import ClassifierAugment, ClassifierAugmenter
from detkit.data.sample import Dataset, count
from detkit.errors import DetkitError
from detkit.preprocess import Placement, Preprocess, place_proposals
from detkit.structures import Batch, Target

TrainingBatch = tuple[Batch, list[Target]]
EvaluationBatch = tuple[Batch, list[Target], list[Placement], list[int]]
Item = TypeVar("Item", TrainingBatch, EvaluationBatch)

_ORDER, _SIZES = 2, 3  # keep these random numbers apart from each other and from the samples'


class Step(NamedTuple):
    """What one process reads at one step."""

    epoch: int
    indices: tuple[int, ...]
    size_hw: Size


class Loader(DataLoader[Item]):
    """A torch DataLoader over the steps of an epoch; a picture that cannot be read raises its DetkitError."""

    def __init__(self, read: Callable[[Step], Item], steps: _Steps, workers: int) -> None:
        super().__init__(
            _Batches(read),
            sampler=steps,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_take_one_core,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or every iteration would advance the global one
        )
        self.steps = steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.steps.set_epoch(epoch)

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]  # DataLoader promises its private iterator class
        with _single_threaded_opencv():
            items = super().__iter__()
        for item in items:
            if isinstance(item, DetkitError):  # raised in a worker, it would come as the text of a traceback
                raise item
            yield item


def training_loader(
    dataset: Dataset,
    preprocess: Preprocess,
    augment: Augment | ClassifierAugment,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    proposals: Sequence[NDArray[np.float32]] | None = None,
) -> Loader[TrainingBatch]:
    """Return batches with their targets in canvas pixels, one epoch for each iteration; `set_epoch` chooses which.

    batch_size: pictures for each process. proposals: [P, 4] xyxy pixels of each picture, in the order of the samples;
    they are handed on, as far as they are still in view, in `Batch.proposals` with score 1 and label 0. Errors: a
    data set with fewer pictures than processes; canvas sizes that are no multiples of the divisor; while iterating, a
    picture that cannot be read. Under Lightning, set `use_distributed_sampler=False`.
    """
    augmenter: Augmenter | ClassifierAugmenter
    if isinstance(augment, Augment):
        augmenter, repeats = Augmenter(augment, preprocess), 1
    else:
        augmenter, repeats = ClassifierAugmenter(augment, preprocess), augment.repeats
    steps = _Steps(dataset, preprocess, batch_size, rank, world_size, seed, augment.multi_scale, repeats)
    return Loader(_ReadTraining(dataset, preprocess, augmenter, seed, proposals), steps, workers)


def evaluation_loader(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    proposals: Sequence[NDArray[np.float32]] | None = None,
) -> Loader[EvaluationBatch]:
    """Return batches of the pictures in order, with targets in canvas pixels, placements and indices of the samples.

    proposals, errors: as `training_loader`.
    """
    return Loader(
        _ReadEvaluation(dataset, preprocess, proposals),
        _Steps(dataset, preprocess, batch_size, rank, world_size),
        workers,
    )


class _Steps(Sampler[Step]):
    """The steps of an epoch; without a seed the pictures keep their order.

    Of N pictures, i + r N is the repetition r of picture i.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int | None = None,
        multi_scale: MultiScale | None = None,
        repeats: int = 1,
    ) -> None:
        self.repeats = repeats
        self.pictures = len(dataset)
        if self.pictures < world_size:
            raise DetkitError(
                f"{dataset.source}: {count(self.pictures, 'picture')} cannot be shared by {world_size} processes; "
                "use fewer devices or more pictures"
            )
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.every = multi_scale.every if multi_scale else 1
        self.sizes = _sizes(preprocess, multi_scale) if multi_scale else [preprocess.size]
        self.length = min(math.ceil(self.pictures / (batch_size * world_size)), self.pictures // world_size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Step]:
        order = np.arange(self.pictures)
        if self.seed is not None:
            order = np.random.default_rng([_ORDER, self.seed, self.epoch]).permutation(order)
        order = (order[:, None] + self.pictures * np.arange(self.repeats)).ravel()[: self.pictures]
        for number, pictures in enumerate(np.array_split(order, self.length)):
            pictures = pictures[np.argsort(pictures // self.pictures, kind="stable")]
            share = np.array_split(pictures, self.world_size)[self.rank]
            yield Step(self.epoch, tuple(share.tolist()), self._size(self.epoch * self.length + number))

    def _size(self, step: int) -> Size:
        if len(self.sizes) == 1:
            return self.sizes[0]
        rng = np.random.default_rng([_SIZES, self.seed or 0, step // self.every])
        return self.sizes[rng.integers(len(self.sizes))]


def _sizes(preprocess: Preprocess, scale: MultiScale) -> list[Size]:
    """The canvas sizes to choose from: one side as `MultiScale` says, the other in proportion."""
    divisor = preprocess.divisor
    if scale.low % divisor or scale.step % divisor:
        raise DetkitError(
            f"augment.multi_scale: low {scale.low} and step {scale.step} must be multiples of the divisor {divisor} "
            "of preprocess"
        )
    sides = range(scale.low, scale.high + 1, scale.step)
    height, width = preprocess.size
    if preprocess.mode == "shortest_edge":
        return [(side, round(width * side / height)) for side in sides]
    longer = max(height, width)
    return [
        (
            max(1, round(height * side / longer / divisor)) * divisor,
            max(1, round(width * side / longer / divisor)) * divisor,
        )
        for side in sides
    ]


class _Batches(TorchDataset[Any]):
    """Reads the batch of a step; a mistake of the user's is returned, for the main process to raise."""

    def __init__(self, read: Callable[[Step], Any]) -> None:
        self.read = read

    def __getitem__(self, step: Step) -> Any:
        try:
            return self.read(step)
        except DetkitError as error:
            return error


@dataclass(frozen=True, eq=False)
class _ReadTraining:
    dataset: Dataset
    preprocess: Preprocess
    augmenter: Augmenter | ClassifierAugmenter
    seed: int
    proposals: Sequence[NDArray[np.float32]] | None

    def __call__(self, step: Step) -> TrainingBatch:
        draw = partial(self.augmenter, self.dataset, epoch=step.epoch, seed=self.seed, size_hw=step.size_hw)
        samples = [draw(i, proposals=self.proposals) for i in step.indices]
        preprocess = self.preprocess.of_canvases(step.size_hw)
        batch, placements = preprocess([sample.picture for sample in samples])
        targets = [_place(sample.target, place) for sample, place in zip(samples, placements, strict=True)]
        if self.proposals is not None:
            boxes = [sample.proposals for sample in samples if sample.proposals is not None]
            batch = Batch(batch.images, batch.sizes, place_proposals(boxes, placements))
        return batch, targets


@dataclass(frozen=True, eq=False)
class _ReadEvaluation:
    dataset: Dataset
    preprocess: Preprocess
    proposals: Sequence[NDArray[np.float32]] | None

    def __call__(self, step: Step) -> EvaluationBatch:
        samples = [self.dataset.samples[i] for i in step.indices]
        batch, placements = self.preprocess([sample.read() for sample in samples])
        if self.proposals is not None:
            boxes = [torch.from_numpy(self.proposals[i]) for i in step.indices]
            batch = Batch(batch.images, batch.sizes, place_proposals(boxes, placements))
        targets = [_place(sample.target(), place) for sample, place in zip(samples, placements, strict=True)]
        return batch, targets, placements, list(step.indices)


def _place(target: Target, placement: Placement) -> Target:
    return replace(target, boxes=placement.to_canvas(target.boxes))


def _as_it_is(item: Item) -> Item:
    return item


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Fork without OpenCV's threads: its pool does not survive that, and to resize it in a worker waits for ever."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _take_one_core(worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
