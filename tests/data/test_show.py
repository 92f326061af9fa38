import numpy as np
import torch

from detkit.data.show import batch_tiles, prediction_tile, sheet
from detkit.draw import class_color
from detkit.structures import Batch, Detections, Target


def target(boxes, labels=None, crowd=()):
    count = len(boxes)
    flags = torch.tensor(crowd or [False] * count, dtype=torch.bool)
    labels = torch.tensor(labels or [0] * count, dtype=torch.int64)
    return Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, flags, ~flags & False)


def test_boxes_are_drawn_where_they_are() -> None:
    batch = Batch(torch.full((1, 3, 208, 208), 0.5), torch.tensor([[208, 208]]))
    plain, drawn, dashed = (
        sheet(batch_tiles(batch, [target(boxes, None, crowd)], ["a"])).astype(int)
        for boxes, crowd in (([], ()), ([[20, 50, 80, 100]], ()), ([[20, 50, 80, 100]], [True]))
    )
    assert plain.shape == (428, 428, 3)
    changed = (drawn != plain).any(-1)
    ys, xs = np.nonzero(changed[106:])  # below the name's tag, which stands above the box
    assert (xs.min(), xs.max()) == (6 + 40 - 1, 6 + 160)  # twice the size, a border of 6, a dark edge of 1
    assert ys.max() + 106 == 6 + 200
    assert not changed[110:200, 50:160].any()
    left_edge = (dashed[110:190, 46] - drawn[110:190, 46]).any(-1)
    assert 0.3 < left_edge.mean() < 0.7


def test_pictures_of_any_size_fit_on_the_sheet() -> None:
    for count, shape in ((1, (428, 428, 3)), (5, (850, 1272, 3)), (16, (1694, 1694, 3))):
        batch = Batch(torch.rand(count, 3, 64, 64), torch.full((count, 2), 64))
        targets = [target([[0, 0, 64, 64], [60, 60, 64, 64], [3, 3, 3.2, 3.2]], [0, 1, 2])] * count
        tiles = batch_tiles(batch, targets, ["a", "b", "long name " * 9])
        assert sheet(tiles).shape == shape
        assert shape[0] < sheet(tiles, "a line above").shape[0] < shape[0] + 30
    wide, square = (
        batch_tiles(Batch(torch.full((1, 3, height, 128), shade), torch.tensor([[height, 128]])), [target([])], [])
        for height, shade in ((32, 1.0), (128, 0.5))
    )
    tall = wide[0].rotate(90, expand=True)
    assert sheet([tall]).shape == (428, 104 + 12, 3)
    assert sheet([tall, tall]).shape == (428, 2 * 104 + 18, 3)
    legend = "a line that is wider than what it stands above"
    narrow, ample = (sheet(tiles, legend)[:20].max(-1) for tiles in ([tall], square))
    assert np.array_equal(narrow, ample[:, : narrow.shape[1]]), "on a narrow sheet nothing of it is cut off"
    assert (ample > 30).sum() == (narrow > 30).sum() > 100
    laid = sheet([*wide, *square])
    white = np.argwhere((laid == 255).all(-1))
    assert (white.min(0).tolist(), white.max(0).tolist()) == ([6 + 156, 6], [6 + 156 + 103, 6 + 415])  # in the middle


def test_what_is_found_is_plain_and_what_is_true_dashed_over_it() -> None:
    picture, classes = np.full((208, 208, 3), 90, np.uint8), ("cat", "dog")
    found = Detections(torch.tensor([[40.0, 40, 100, 120]]), torch.tensor([0.9]), torch.tensor([1]), (208, 208))
    truth = target([[40, 40, 100, 120], [150, 20, 200, 60]], [0, 0])
    tile = np.asarray(prediction_tile(picture, truth, ("dog", "cat"), found, classes))
    dog, white = class_color("dog"), (255, 255, 255)
    for column, rows in ((80, slice(100, 200)), (300, slice(60, 100))):  # left edges, at twice the size
        line = tile[rows, column]
        assert {tuple(pixel) for pixel in line.tolist()} == {dog, white}, "one colour of both: it is the same class"
        assert 0.3 < (line == white).all(-1).mean() < 0.7
    assert (tile[120 - 24 : 119, 302:330] == 255).all(-1).mean() > 0.2, "the name of the truth stands at its foot"
    alone = np.asarray(prediction_tile(picture, target([]), classes, found, classes))
    assert {tuple(pixel) for pixel in alone[100:200, 80].tolist()} == {dog}
