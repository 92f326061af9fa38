import math

import pytest
import torch

from detkit.ops.roi import Pooling, pyramid_level, roi_features


def literal_max_pooling(x: torch.Tensor, box: list[float], stride: int, size: int) -> torch.Tensor:
    """Section 2.1 of Fast R-CNN with the rounding of its code, cell by cell: [C, H, W] → [C, S, S]."""
    height, width = x.shape[1:]
    x1, y1, x2, y2 = (math.floor(v / stride + 0.5) for v in box)
    result = torch.zeros(len(x), size, size)
    for row in range(size):
        for column in range(size):
            edges = []
            for low, high, number, limit in ((y1, y2, row, height), (x1, x2, column, width)):
                part = max(high - low + 1, 1) / size
                begin, end = low + math.floor(number * part), low + math.ceil((number + 1) * part)
                edges.append((min(max(begin, 0), limit), min(max(end, 0), limit)))
            (top, bottom), (left, right) = edges
            if top < bottom and left < right:
                result[:, row, column] = x[:, top:bottom, left:right].amax((1, 2))
    return result


def literal_align(x: torch.Tensor, box: list[float], stride: int, size: int, sampling: int, half: float):
    """Section 3 of Mask R-CNN, sample by sample: [C, H, W] → [C, S, S]."""
    height, width = x.shape[1:]
    x1, y1, x2, y2 = (v / stride - half for v in box)
    result = torch.zeros(len(x), size, size)
    for row in range(size):
        for column in range(size):
            for i in range(sampling):
                for j in range(sampling):
                    v = y1 + (y2 - y1) * (row + (i + 0.5) / sampling) / size
                    u = x1 + (x2 - x1) * (column + (j + 0.5) / sampling) / size
                    v, u = min(max(v, 0), height - 1), min(max(u, 0), width - 1)
                    top, left = min(int(v), height - 2), min(int(u), width - 2)
                    a, b = v - top, u - left
                    upper = (1 - b) * x[:, top, left] + b * x[:, top, left + 1]
                    lower = (1 - b) * x[:, top + 1, left] + b * x[:, top + 1, left + 1]
                    result[:, row, column] += ((1 - a) * upper + a * lower) / sampling**2
    return result


BOXES = torch.tensor([[0.0, 0, 64, 48], [10, 7, 33, 29], [20, 20, 21, 22], [3.9, 12.1, 60.2, 40]])
PICTURE = torch.tensor([0, 1, 1, 0])


def test_max_pooling_is_the_papers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 16)
    found = roi_features([x], [4], PICTURE, BOXES, Pooling(size=3))
    expected = [literal_max_pooling(x[b], box, 4, 3) for b, box in zip(PICTURE, BOXES.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("half_pixel", [True, False])
def test_align_is_the_papers(half_pixel) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 16)
    boxes = BOXES[[0, 1, 3]]  # without half_pixel a region has at least one cell
    picture = PICTURE[[0, 1, 3]]
    found = roi_features([x], [4], picture, boxes, Pooling(method="align", size=3, half_pixel=half_pixel))
    half = 0.5 if half_pixel else 0
    expected = [literal_align(x[b], box, 4, 3, 2, half) for b, box in zip(picture, boxes.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_pyramid_levels_by_hand() -> None:
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert pyramid_level(boxes, [4, 8, 16, 32]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pyramid_level(boxes, [8, 16]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pyramid_level(torch.zeros(1, 4), [4, 8]).tolist() == [0]


def test_each_region_is_pooled_from_its_map() -> None:
    maps = [torch.full((1, 2, 256 // s, 256 // s), float(s), requires_grad=True) for s in (4, 8, 16)]
    boxes = torch.tensor([[0.0, 0, 250, 250], [10, 10, 30, 30], [5, 5, 150, 150], [0, 0, 20, 20]])
    for method in ("max", "align"):
        found = roi_features(maps, [4, 8, 16], torch.zeros(4, dtype=torch.long), boxes, Pooling(method=method))
        assert found.shape == (4, 2, 7, 7)
        torch.testing.assert_close(found, torch.tensor([16.0, 4, 8, 4]).view(4, 1, 1, 1).expand(4, 2, 7, 7))
    found.sum().backward()
    assert all(x.grad.sum() > 0 for x in maps)


@pytest.mark.parametrize("method", ["max", "align"])
def test_no_regions_have_no_features(method) -> None:
    maps = [torch.rand(1, 2, 16, 16, requires_grad=True), torch.rand(1, 2, 8, 8, requires_grad=True)]
    none = torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)
    for levels in (1, 2):
        assert roi_features(maps[:levels], [4, 8][:levels], *none, Pooling(method=method)).shape == (0, 2, 7, 7)
