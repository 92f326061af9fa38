import numpy as np
import torch

from detkit.data.show import batch_mosaic
from detkit.structures import Batch, Target


def target(boxes, labels=None, crowd=()):
    count = len(boxes)
    flags = torch.tensor(crowd or [False] * count, dtype=torch.bool)
    labels = torch.tensor(labels or [0] * count, dtype=torch.int64)
    return Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, flags, ~flags & False)


def test_boxes_are_drawn_where_they_are() -> None:
    batch = Batch(torch.full((1, 3, 208, 208), 0.5), torch.tensor([[208, 208]]))
    plain, drawn, dashed = (
        batch_mosaic(batch, [target(boxes, None, crowd)], ["a"]).astype(int)
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


def test_a_batch_of_any_size_fits_on_the_sheet() -> None:
    for count, shape in ((1, (428, 428, 3)), (5, (850, 1272, 3)), (20, (1694, 1694, 3))):
        batch = Batch(torch.rand(count, 3, 64, 64), torch.full((count, 2), 64))
        targets = [target([[0, 0, 64, 64], [60, 60, 64, 64], [3, 3, 3.2, 3.2]], [0, 1, 2])] * count
        assert batch_mosaic(batch, targets, ["a", "b", "long name " * 9]).shape == shape
