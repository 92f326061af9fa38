import numpy as np
import pytest
from scipy.ndimage import label

from detkit.data.picture import sample_picture
from detkit.regions.segmentation import segment, sort_edges


def blocks(*colors: int, side: int = 12) -> np.ndarray:
    """Squares of grey side by side."""
    row = np.repeat(np.array(colors, np.uint8), side)
    return np.broadcast_to(row[None, :, None], (side, len(row), 3)).copy()


def test_edges_are_those_to_eight_neighbours_lightest_first() -> None:
    height, width = 5, 7
    edges = sort_edges(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    straight = height * (width - 1) + (height - 1) * width
    assert len(edges.codes) == straight + 2 * (height - 1) * (width - 1)
    assert len(np.unique(edges.codes)) == len(edges.codes)
    assert (np.diff(edges.weights.astype(int)) >= 0).all()


def test_a_weight_is_the_distance_of_the_colours() -> None:
    picture = np.zeros((1, 40, 3), np.uint8)
    picture[:, 20:] = (30, 40, 0)  # √(30² + 40²) = 50 levels
    edges = sort_edges(picture)
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.8**2))
    assert edges.weights[-1] / 128 == pytest.approx(50 * kernel[3] / kernel.sum(), rel=0.01)
    assert edges.codes[-1] == 4 * 19
    assert (edges.weights == 0).sum() > 30


def test_segments_cover_the_picture_and_are_connected() -> None:
    picture = sample_picture("chelsea")[:200, :240]
    labels, count = segment(sort_edges(picture), 100, 50)
    assert labels.shape == (200, 240)
    assert np.array_equal(np.unique(labels), np.arange(count))
    assert 10 < count < 400
    assert np.bincount(labels.ravel()).min() >= 50
    for number in range(count):
        assert label(labels == number, np.ones((3, 3)))[1] == 1
    firsts = [int(np.flatnonzero(labels.ravel() == number)[0]) for number in range(count)]
    assert firsts == sorted(firsts)


def test_blocks_are_told_apart_as_k_allows() -> None:
    picture = blocks(0, 60, 200)
    labels, count = segment(sort_edges(picture), 20, 1)
    assert count >= 3  # the blurred edge may stand alone
    assert len({labels[6, x] for x in (2, 18, 33)}) == 3
    _, one = segment(sort_edges(picture), 1e6, 1)
    assert one == 1


def test_small_segments_join_the_more_similar_neighbour() -> None:
    picture = blocks(0, 100, 140)
    labels, count = segment(sort_edges(picture), 5, 144)
    assert count == 2
    assert labels[6, 2] != labels[6, 18] == labels[6, 33]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_odd_shapes(size_hw: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    for picture in (noise, np.full_like(noise, 7), noise[..., :1]):
        labels, count = segment(sort_edges(picture), 50, 20)
        assert labels.shape == size_hw
        assert labels.max() + 1 == count
