"""Objects become pictures: which of them, and with how much around them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from detkit.data.crops import Crops, crop_objects
from detkit.data.sample import Dataset, Objects, Picture, make_samples


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """One picture, 60 wide and 40 high, whose red value is the column and green the row."""
    rows, columns = np.mgrid[:40, :60].astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([np.zeros_like(rows), rows, columns]))
    objects = Objects(
        picture=np.zeros(5, np.int64),
        boxes=np.array([[10, 10, 30, 20], [50, 0, 60, 40], [0, 0, 60, 40], [5, 5, 25, 25], [3, 3, 23, 8]], float),
        labels=np.array([2, 0, 1, 1, 1]),
        crowd=np.array([False, False, True, False, False]),
        difficult=np.array([False, False, False, True, False]),
    )
    samples, notes = make_samples([Picture("a", tmp_path / "a.png", 40, 60)], objects, str)
    return Dataset(tmp_path, "train", ("x", "y", "z"), samples, (1, 2, 3), notes)


def test_an_object_is_a_picture_with_a_margin_that_ends_at_the_pictures_edge(dataset) -> None:
    cropped = crop_objects(dataset, Crops(margin=0.25, min_side=8))
    assert [(sample.id, sample.labels.tolist(), sample.somewhere) for sample in cropped.samples] == [
        ("a/0", [2], True),
        ("a/1", [0], True),
    ]
    first, second = (sample.read() for sample in cropped.samples)
    # 20 × 10 pixels and a quarter of each on each side: columns 5 … 34, rows 7 (of 7.5) … 22.
    assert (first[0, 0].tolist(), first[-1, -1].tolist()) == ([5, 7, 0], [34, 22, 0])
    assert (second[0, 0].tolist(), second[-1, -1].tolist()) == ([47, 0, 0], [59, 39, 0])
    assert [(s.height, s.width) for s in cropped.samples] == [p.shape[:2] for p in (first, second)]
    assert cropped.samples[0].boxes.tolist() == [[0, 0, 30, 16]]


def test_what_is_left_out_is_counted(dataset) -> None:
    notes = crop_objects(dataset, Crops()).notes
    assert notes == [
        "2 crowds and difficult objects left out: they are no picture of one object",
        "1 object left out, having a side below 8 pixels",
    ]
    assert len(crop_objects(dataset, Crops(min_side=0)).samples) == 3


def test_pictures_with_a_label_of_their_own_stay(dataset) -> None:
    labelled = replace(dataset, samples=[replace(dataset.samples[0], somewhere=True)])
    assert crop_objects(labelled, Crops()).samples == labelled.samples
