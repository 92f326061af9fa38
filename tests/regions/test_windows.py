import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.regions import GridConfig, WindowsConfig, propose


def picture(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_windows_by_hand() -> None:
    config = WindowsConfig(scales=(4,), aspect_ratios=(1,), stride=3)
    found = propose(picture(5, 8), config)
    boxes = sorted(map(tuple, found.boxes.tolist()))
    assert boxes == [(x, y, x + 4, y + 4) for x in (0, 3, 4) for y in (0, 1)]
    assert found.scores.tolist() == [1] * 6


def test_the_aspect_ratio_is_width_by_height_at_the_same_area() -> None:
    found = propose(picture(100, 100), WindowsConfig(scales=(32,), aspect_ratios=(0.25, 4), stride=100))
    sides = {tuple(side) for side in (found.boxes[:, 2:] - found.boxes[:, :2]).tolist()}
    assert sides == {(16, 64), (64, 16)}


def test_windows_larger_than_the_picture_are_cut_and_stand_once() -> None:
    assert propose(picture(10, 20), WindowsConfig()).boxes.tolist() == [[0, 0, 20, 10]]
    assert propose(picture(1, 1), WindowsConfig(stride=1)).boxes.tolist() == [[0, 0, 1, 1]]


def test_the_first_windows_are_a_sample_and_the_seed_chooses_it() -> None:
    config = WindowsConfig(stride=4)
    every = propose(picture(200, 300), config).boxes
    assert len(np.unique(every, axis=0)) == len(every)
    some = propose(picture(200, 300), config.model_copy(update={"max_proposals": 200})).boxes
    np.testing.assert_array_equal(some, every[:200])
    assert abs(some[:, 0].mean() - every[:, 0].mean()) < 20
    other = propose(picture(200, 300), config.model_copy(update={"seed": 1})).boxes
    assert not np.array_equal(other, every)
    np.testing.assert_array_equal(np.unique(other, axis=0), np.unique(every, axis=0))


def test_too_many_windows() -> None:
    with pytest.raises(DetkitError, match=r"more than 10000000; raise stride \(1\)"):
        propose(picture(4000, 4000), WindowsConfig(stride=1))


def test_too_fine_a_grid() -> None:
    grids = GridConfig(divisions=(2, 200_000), overlap=0)
    with pytest.raises(DetkitError, match=r"grid: 40000000004 on a picture 20 wide .* lower divisions \(200000\)"):
        propose(picture(10, 20), grids)


def test_a_grid_by_hand() -> None:
    found = propose(picture(10, 20), GridConfig(divisions=(2, 1), overlap=0))
    assert found.boxes.tolist() == [
        [0, 0, 20, 10],
        [0, 0, 10, 5],
        [10, 0, 20, 5],
        [0, 5, 10, 10],
        [10, 5, 20, 10],
    ]
    assert found.scores.tolist() == [1, 0.5, 0.5, 0.5, 0.5]
    halves = propose(picture(10, 20), GridConfig(divisions=(2,), overlap=0.5)).boxes
    assert sorted({x for x, *_ in halves.tolist()}) == [0, 5, 10]
    assert len(halves) == 9
    assert len(propose(picture(10, 20), GridConfig(max_proposals=7))) == 7
