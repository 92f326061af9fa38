"""Changes of pictures that have a label: from what they follow, and what each does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detkit.config import validate
from detkit.data.augment_labelled import ClassifierAugment, ClassifierAugmenter
from detkit.data.crops import Crops, crop_objects
from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError
from detkit.preprocess import Preprocess

STILL = {"area": (1, 1), "aspect": 1, "flip": 0}


@pytest.fixture(scope="module")
def dataset():
    return crop_objects(load_dataset("sample:shapes?pictures=6&size=96", "train"), Crops())


def drawn(dataset, *, epoch=0, index=0, seed=0, size=(48, 64), **options):
    augmenter = ClassifierAugmenter(ClassifierAugment(**options), Preprocess(mode="stretch", size=(32, 64), fill=0.2))
    return augmenter(dataset, index, epoch=epoch, seed=seed, size_hw=size)


EVERYTHING = {"rotate": 20, "hue": 0.1, "saturation": 1.5, "exposure": 1.5, "rand_augment": {}, "erase": 0.5}


def test_everything_follows_from_seed_epoch_and_index(dataset) -> None:
    before = torch.get_rng_state()
    first = drawn(dataset, **EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = drawn(dataset, **EVERYTHING)
    assert first.picture.shape == (48, 64, 3)
    assert first.picture.dtype == np.uint8
    assert np.array_equal(first.picture, again.picture)
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not np.array_equal(first.picture, drawn(dataset, **EVERYTHING, **other).picture)


def test_the_label_stays_and_is_of_the_whole_picture(dataset) -> None:
    target = drawn(dataset, index=3).target
    assert target.labels.tolist() == dataset.samples[3].labels.tolist()
    assert target.boxes.tolist() == [[0, 0, 64, 48]]
    assert target.somewhere.all()


def test_each_change_does_what_it_says(dataset) -> None:
    row = np.tile(np.arange(0, 256, 4, np.uint8), (48, 1))
    picture = np.dstack([row] * 3)
    sample = replace(dataset.samples[0], draw=picture.copy, height=48, width=64)
    one = replace(dataset, samples=[sample])
    assert np.array_equal(drawn(one, **STILL).picture, picture)
    assert np.array_equal(drawn(one, **STILL | {"flip": 1}).picture, picture[:, ::-1])
    noisy = drawn(one, **STILL, erase=1).picture
    rows, columns = (np.flatnonzero((noisy != picture).any((1 - axis, 2))) for axis in (0, 1))
    noise = noisy[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert 0.02 <= noise[..., 0].size / noisy[..., 0].size <= 0.33
    assert (noise != picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).mean() > 0.95  # nothing is left
    assert noise.mean() == pytest.approx(127.5, abs=10)
    assert np.abs(np.diff(noise.astype(int), axis=2)).mean() > 50  # a value of its own for each channel
    strong, weak = ({"layers": 2, "magnitude": magnitude} for magnitude in (30, 1))
    changes = [
        np.mean(
            [np.abs(drawn(one, **STILL, rand_augment=rand, epoch=e).picture - picture.astype(int)) for e in range(9)]
        )
        for rand in (strong, weak)
    ]
    assert changes[0] > 1.5 * changes[1] > 0
    piece = drawn(one, **STILL | {"area": (0.25, 0.25)}).picture[0, :, 0].astype(int)
    assert piece[-1] - piece[0] == pytest.approx(4 * 32, abs=6)  # half of the width
    factors = [drawn(one, **STILL, exposure=2, epoch=epoch).picture.mean() / picture.mean() for epoch in range(20)]
    assert 0.5 <= min(factors) < 0.8
    assert 1.2 < max(factors) <= 2


def test_a_repetition_is_changed_in_another_way(dataset) -> None:
    first, second = (drawn(dataset, index=2 + repeat * len(dataset), **EVERYTHING) for repeat in (0, 1))
    assert not np.array_equal(first.picture, second.picture)
    assert torch.equal(first.target.labels, second.target.labels)
    still = [drawn(dataset, index=2 + repeat * len(dataset), **STILL).picture for repeat in (0, 1)]
    assert np.array_equal(*still)


def test_the_interpolation_is_that_of_evaluation(dataset) -> None:
    row = np.tile(np.array([0, 255], np.uint8), (64, 32))
    one = replace(dataset, samples=[replace(dataset.samples[0], draw=np.dstack([row] * 3).copy, height=64, width=64)])
    spread = {}
    for name in ("linear", "area", "pillow_linear", "pillow_cubic"):
        preprocess = Preprocess(mode="stretch", size=(32, 32), interpolation=name)
        augmenter = ClassifierAugmenter(ClassifierAugment(**STILL), preprocess)
        picture = augmenter(one, 0, epoch=0, seed=0, size_hw=(24, 24)).picture
        spread[name] = float(picture.std())
    assert spread["linear"] > 2 * spread["area"]  # stripes finer than the input's pixels become grey
    assert spread["area"] == spread["pillow_linear"] != spread["pillow_cubic"]


def test_a_range_the_wrong_way_round_is_named() -> None:
    with pytest.raises(DetkitError, match=r"area \[1.0, 0.5\] must be two shares"):
        validate(ClassifierAugment, {"area": [1, 0.5]}, "c.yaml")


def test_a_piece_of_the_scaled_picture(dataset) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))  # what a pixel shows is its column
    sample = replace(dataset.samples[0], draw=np.dstack([ramp] * 3).copy, height=100, width=200)
    one = replace(dataset, samples=[sample])
    options = {"flip": 0, "scale": (1, 2)}
    steps, lefts = set(), set()
    for epoch in range(12):
        picture = drawn(one, epoch=epoch, size=(50, 50), **options).picture
        assert picture.shape == (50, 50, 3)
        columns = picture[25, :, 0].astype(int)
        steps.add(round((columns[45] - columns[5]) / 40, 1))  # columns of the picture to one of the piece
        lefts.add(columns[0])
    assert min(steps) >= 1  # its 100 rows become 50 to 100
    assert max(steps) <= 2
    assert len(steps) > 3
    assert len(lefts) > 6
    with pytest.raises(DetkitError, match=r"scale \[0.5, 1.0\] must be two numbers from 1 on"):
        validate(ClassifierAugment, {"scale": [0.5, 1]}, "c.yaml")


def test_auto_augment_changes_the_picture(dataset) -> None:
    plain = drawn(dataset, **STILL).picture
    pictures = [drawn(dataset, **STILL, auto_augment=True, epoch=epoch).picture for epoch in range(6)]
    assert sum(not np.array_equal(picture, plain) for picture in pictures) > 3
