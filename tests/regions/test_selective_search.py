import numpy as np
import pytest
from pydantic import TypeAdapter

from detkit.data.picture import sample_picture
from detkit.regions import ProposalConfig, SelectiveSearchConfig, propose
from detkit.regions.selective_search import COLOR_SPACES, STRATEGIES


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return sample_picture("chelsea")[::2, ::2].copy()


def test_modes_are_the_papers() -> None:
    """Table 5 and section 5.3: colour spaces, similarities, k."""
    assert {mode: tuple(ways) for mode, ways in STRATEGIES.items()} == {
        "single": (("HSV",), ("CTSF",), (100,)),
        "fast": (("HSV", "Lab"), ("CTSF", "TSF"), (50, 100)),
        "quality": (("HSV", "Lab", "rgI", "H", "I"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)),
    }


def test_boxes_are_whole_distinct_and_best_first(picture) -> None:
    found = propose(picture, SelectiveSearchConfig(min_side=10))
    height, width = picture.shape[:2]
    assert len(found) > 100
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert len(np.unique(found.boxes, axis=0)) == len(found)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height] * 2).all()
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).min() == 10
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() > 0
    assert found.scores.max() <= 1
    assert (found.boxes == [0, 0, width, height]).all(1)[:10].any(), "the whole picture, the top of eight hierarchies"
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
    half = len(areas) // 2
    assert np.median(areas[:half]) > 2 * np.median(areas[half:]), "large regions come early"


def test_a_seed_gives_its_order_of_the_same_boxes(picture) -> None:
    first, again, other = (propose(picture, SelectiveSearchConfig(seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not np.array_equal(first.boxes, other.boxes)
    assert set(map(tuple, first.boxes.tolist())) == set(map(tuple, other.boxes.tolist()))


def test_better_modes_find_what_the_lesser_find(picture) -> None:
    single, fast, quality = (
        set(map(tuple, propose(picture, SelectiveSearchConfig(mode=mode)).boxes.tolist()))
        for mode in ("single", "fast", "quality")
    )
    assert single < fast < quality


def test_the_first_are_kept(picture) -> None:
    some, every = (propose(picture, SelectiveSearchConfig(max_proposals=most)) for most in (50, None))
    np.testing.assert_array_equal(some.boxes, every.boxes[:50])


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 4000), (4000, 1), (2, 3), (19, 600)])
def test_odd_shapes(mode, size_hw) -> None:
    height, width = size_hw
    for longest_side in (500, None):
        config = SelectiveSearchConfig(mode=mode, longest_side=longest_side)
        for fill in (None, 0, 255):
            picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
            if fill is not None:
                picture[:] = fill
            found = propose(picture, config)
            assert (found.boxes == [0, 0, width, height]).all(1).any()
            assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
            if fill is not None:
                assert len(found) == 1


def test_a_grey_picture_has_objects_too(picture) -> None:
    grey = np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    assert len(propose(grey, SelectiveSearchConfig())) > 50


def test_large_pictures_are_scaled_down(picture) -> None:
    large = picture.repeat(4, 0).repeat(4, 1)
    config = SelectiveSearchConfig(longest_side=max(picture.shape), min_side=10)
    found, small = propose(large, config), propose(picture, config)  # which are the same pixels when scaled
    assert len(small) > 100
    np.testing.assert_array_equal(found.boxes, 4 * small.boxes)
    np.testing.assert_array_equal(found.scores, small.scores)


def test_a_square_on_a_ground_is_found() -> None:
    picture = np.full((100, 120, 3), (30, 120, 60), np.uint8)
    picture[30:70, 50:100] = (200, 40, 40)
    noise = np.random.default_rng(0).integers(-3, 4, picture.shape)
    boxes = propose((picture + noise).astype(np.uint8), SelectiveSearchConfig(mode="single")).boxes
    assert (abs(boxes - [50, 30, 100, 70]) <= 2).all(1).any()


@pytest.mark.parametrize("space", COLOR_SPACES)
def test_colour_spaces_use_the_range(space) -> None:
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 18, 3).astype(np.uint8)
    channels = COLOR_SPACES[space](cube)
    assert channels.dtype == np.uint8
    assert channels.shape[:2] == cube.shape[:2]
    assert (channels.reshape(-1, channels.shape[2]).max(0) > 200).all()
    assert (channels.reshape(-1, channels.shape[2]).min(0) < 45).all()


def test_rg_are_the_same_in_light_and_shadow() -> None:
    shades = np.array([[[100, 60, 40], [200, 120, 80]]], np.uint8)
    rgi = COLOR_SPACES["rgI"](shades)[0]
    assert rgi[0, :2].tolist() == rgi[1, :2].tolist() == [128, 76]
    assert rgi[0, 2] < rgi[1, 2]


def test_the_method_chooses_the_config() -> None:
    config = TypeAdapter(ProposalConfig).validate_python({"method": "selective-search", "mode": "quality"})
    assert config == SelectiveSearchConfig(mode="quality")
