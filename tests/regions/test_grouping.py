import numpy as np
import pytest

from detkit.regions.grouping import Segments, color_bins, describe, group, texture_bins
from detkit.regions.segmentation import segment, sort_edges

ALL = {"color": True, "texture": True, "size": True, "fill": True}
NONE = dict.fromkeys(ALL, False)


def three(
    colors: list[list[float]], sizes: list[int], boxes: list[list[int]], textures: list[list[float]] | None = None
) -> Segments:
    """Three segments in a row, of which the first and the last do not touch; by default texture is all alike."""
    histograms = np.zeros((3, 25 + 80), np.float32)
    histograms[:, :2] = colors
    histograms[:, 25:27] = textures or [1, 0]
    pairs = np.array([[0, 1], [1, 2]])
    return Segments(np.array(sizes), np.array(boxes), histograms, pairs)


BOXES = [[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]]


def test_similarity_by_hand() -> None:
    """0 and 1 share 0.4 of colour and 0.8 of texture, 1 and 2 0.7 and 0.3; 400 and 800 of 900 pixels."""
    textures = [[1, 0], [0.8, 0.2], [0.1, 0.9]]
    segments = three([[1, 0], [0.4, 0.6], [0.1, 0.9]], [100, 300, 500], BOXES, textures)
    by_color = group(segments, **NONE | {"color": True})
    assert by_color.parts.tolist() == [[1, 2], [0, 3]]
    assert by_color.boxes.tolist() == [*BOXES, [10, 0, 30, 10], [0, 0, 30, 10]]
    for alike in ({"texture": True}, {"color": True, "texture": True}):  # 0.8 > 0.3, and 0.4 + 0.8 > 0.7 + 0.3
        assert group(segments, **NONE | alike).parts.tolist() == [[0, 1], [2, 3]]
    by_size = group(segments, **NONE | {"size": True})  # 1 − 400 / 900 > 1 − 800 / 900
    assert by_size.parts.tolist() == [[0, 1], [2, 3]]
    # 0.4 + 1 − 4 / 9 = 0.956 beats 0.7 + 1 − 8 / 9 = 0.811
    assert group(segments, **NONE | {"color": True, "size": True}).parts[0].tolist() == [0, 1]


def test_fill_prefers_what_fits() -> None:
    """The box around 0 and 1 has 600 pixels of which 400 are theirs; that around 1 and 2 is full."""
    segments = three([[1, 0]] * 3, [200, 200, 100], [[0, 0, 20, 10], [10, 0, 30, 20], [10, 20, 15, 40]])
    area = 500
    first = 1 - (30 * 20 - 400) / area
    second = 1 - (20 * 40 - 300) / area
    assert first > second
    assert group(segments, **NONE | {"fill": True}).parts[0].tolist() == [0, 1]
    fitting = segments._replace(boxes=np.array([[0, 0, 20, 10], [10, 0, 30, 20], [10, 20, 15, 21]]))
    assert 1 - (20 * 21 - 300) / area > first
    assert group(fitting, **NONE | {"fill": True}).parts[0].tolist() == [1, 2]


def test_a_union_looks_as_its_parts_by_size() -> None:
    """With sizes of 3 : 1 the union of 0 and 1 is [.375, .125, .5], which shares .475 with 2 and .225 with 3."""
    histograms = np.zeros((4, 105), np.float32)
    histograms[:, :3] = [[0.5, 0, 0.5], [0, 0.5, 0.5], [0.4, 0.1, 0], [0.1, 0.4, 0]]
    pairs = np.array([[0, 1], [0, 2], [1, 3]])
    boxes = np.array([[i, 0, i + 1, 1] for i in range(4)])
    for sizes, nearer in (([300, 100, 5, 5], 2), ([100, 300, 5, 5], 3)):
        found = group(Segments(np.array(sizes), boxes, histograms, pairs), **NONE | {"color": True})
        assert found.parts[:2].tolist() == [[0, 1], [nearer, 4]]


@pytest.mark.parametrize("measure", [ALL, NONE | {"fill": True}, NONE | {"size": True}, ALL | {"color": False}])
def test_grouping_ends_in_one_region(measure: dict[str, bool]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    labels, count = segment(sort_edges(picture), 20, 20)
    segments = describe(labels, count, color_bins(picture), texture_bins(picture))
    found = group(segments, **measure)
    assert found.boxes.shape == (2 * count - 1, 4)
    assert found.boxes[-1].tolist() == [0, 0, 60, 40]
    assert sorted(found.parts.ravel().tolist()) == list(range(2 * count - 2)), "every region but the last joins once"
    for union, parts in enumerate(found.parts, count):
        low, high = found.boxes[parts, :2].min(0), found.boxes[parts, 2:].max(0)
        assert found.boxes[union].tolist() == [*low, *high]


def test_segments_are_measured() -> None:
    picture = np.zeros((8, 10, 3), np.uint8)
    picture[:, 4:] = (255, 130, 0)
    labels = np.zeros((8, 10), np.int32)
    labels[:, 4:] = 1
    segments = describe(labels, 2, color_bins(picture), texture_bins(picture))
    assert segments.sizes.tolist() == [32, 48]
    assert segments.boxes.tolist() == [[0, 0, 4, 8], [4, 0, 10, 8]]
    assert segments.pairs.tolist() == [[0, 1]]
    colors, textures = segments.histograms[:, :75], segments.histograms[:, 75:]
    np.testing.assert_allclose(colors.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(textures.sum(1), 1, rtol=1e-5)
    assert np.flatnonzero(colors[1]).tolist() == [24, 25 + 12, 50]  # 255, 130 and 0 of 256 in 25 bins
    per_direction = textures.reshape(2, 3, 8, 10)
    np.testing.assert_allclose(per_direction.sum(3), 1 / 24, rtol=1e-5)
    right, left, down, up = (per_direction[:, 0, direction] for direction in range(4))
    assert right[:, 1:].sum() > 0, "red grows to the right"
    for nothing in (left, down, up):
        assert nothing[:, 1:].sum() == 0
    assert per_direction[:, 2, :, 1:].sum() == 0, "blue is the same everywhere"


def test_texture_of_a_step_is_the_bell_at_its_distance() -> None:
    picture = np.zeros((9, 21, 1), np.uint8)
    picture[:, 11:] = 255
    bins = texture_bins(picture)[4, :, 0]
    bell = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    slope = np.arange(-4, 5) * bell / bell.sum()
    step = np.array([slope[max(0, 4 + 11 - x) :].sum() if 4 + 11 - x < 9 else 0 for x in range(21)])
    expected = np.minimum((step * np.sqrt(2 * np.pi) * 10).astype(int), 9)
    strong = expected > 0
    assert 3 <= strong.sum() <= 6
    assert bins[strong, 0].tolist() == expected[strong].tolist()
    assert (bins[~strong, 0] % 10 == 0).all()
    assert (bins[:, 1] % 10 == 0).all(), "nothing changes downwards"
    assert texture_bins(255 - picture)[4, 10, 0, 0] == 10 + bins[10, 0]
    diagonal = np.minimum((step[10] * np.sqrt(np.pi) * 10).astype(int), 9)
    assert bins[10, 2] == diagonal
    assert bins[10, 3] == 10 + diagonal
