import itertools
import time

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.ops import kmeans
from detkit.ops.kmeans import assign_scales, find_anchors, measure_anchors


@pytest.fixture(autouse=True)
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_MOST_STARTS", 16)


def some_shapes(count: int, seed: int = 0) -> np.ndarray:
    """Boxes of three kinds, wide, high and small, of every size."""
    random = np.random.default_rng(seed)
    kinds = np.array([(120, 60), (50, 130), (20, 22)])[random.integers(3, size=count)]
    return kinds * np.exp(random.normal(0, 0.35, (count, 2)))


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of all pairs, [M, 2] and [N, 2] → [M, N]."""
    inter = np.minimum(a[:, None], b).prod(-1)
    return inter / (a.prod(-1)[:, None] + b.prod(-1) - inter)


def test_measures_by_hand() -> None:
    shapes = np.array([[10.0, 10], [10, 5], [20, 20], [4, 4]])
    fit = measure_anchors(shapes, np.array([[10.0, 10], [20, 20]]))
    assert fit.average_iou == pytest.approx((1 + 0.5 + 1 + 0.16) / 4)
    assert fit.best_possible_recall == 0.75  # an IoU of just 0.5 counts
    assert fit.shares.tolist() == [0.75, 0.25]


def test_of_equal_anchors_the_first_has_the_box() -> None:
    anchors = np.array([[5.0, 10], [10, 5]])
    assert measure_anchors(np.array([[8.0, 8]]), anchors).shares.tolist() == [1, 0]


def test_measures_are_of_all_boxes_in_parts() -> None:
    shapes = some_shapes(70_000).astype(np.float32)  # more than are looked at together
    anchors = np.array([[20.0, 22], [50, 130], [120, 60]])
    best = overlap(shapes.astype(float), anchors)
    fit = measure_anchors(shapes, anchors)
    assert fit.average_iou == pytest.approx(best.max(1).mean(), abs=1e-6)
    assert fit.best_possible_recall == pytest.approx((best.max(1) >= 0.5).mean(), abs=1e-4)
    assert fit.shares == pytest.approx(np.bincount(best.argmax(1)) / len(shapes), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_as_good_as_every_partition(seed: int) -> None:
    shapes = some_shapes(7, seed)
    sides = [np.unique(np.r_[shapes[:, side], np.geomspace(shapes.min(), shapes.max(), 60)]) for side in (0, 1)]
    grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    table = overlap(shapes, grid)
    best = 0.0
    for labels in itertools.product((False, True), repeat=6):
        first = np.array([True, *labels])
        best = max(best, (table[first].sum(0).max() + table[~first].sum(0).max()) / 7)
    assert find_anchors(shapes, 2).average_iou > best - 1e-4


def test_every_shape_an_anchor() -> None:
    shapes = np.array([[30.0, 40], [10, 20], [100, 90], [12.5, 8]])
    fit = find_anchors(np.repeat(shapes, 3, axis=0), 4)
    assert fit.anchors.tolist() == [[12.5, 8], [10, 20], [30, 40], [100, 90]]
    assert fit.average_iou == fit.best_possible_recall == 1
    assert fit.shares.tolist() == [0.25] * 4


def test_weights_are_repetitions() -> None:
    shapes, weights = some_shapes(60), np.arange(60) % 4
    repeated, weighted = find_anchors(np.repeat(shapes, weights, axis=0), 3), find_anchors(shapes, 3, weights=weights)
    assert weighted.anchors.tolist() == repeated.anchors.tolist()
    assert weighted.average_iou == pytest.approx(repeated.average_iou)
    assert weighted.shares == pytest.approx(repeated.shares)
    assert weighted.anchors.tolist() != find_anchors(shapes, 3).anchors.tolist()


def test_the_seed_decides() -> None:
    shapes = some_shapes(400)
    fits = [find_anchors(shapes, 9, seed=seed) for seed in (1, 1, 2)]
    assert fits[0].anchors.tolist() == fits[1].anchors.tolist()
    assert fits[0].anchors.tolist() != fits[2].anchors.tolist()
    assert fits[0].average_iou == pytest.approx(fits[2].average_iou, abs=0.003)


def test_the_order_of_boxes_does_not_matter() -> None:
    shapes = some_shapes(200)
    assert find_anchors(shapes, 5).anchors.tolist() == find_anchors(shapes[::-1], 5).anchors.tolist()


def test_more_anchors_overlap_more_and_are_sorted_by_area() -> None:
    shapes = some_shapes(200)
    fits = [find_anchors(shapes, k) for k in range(1, 6)]
    assert np.all(np.diff([fit.average_iou for fit in fits]) > 0)
    for fit in fits:
        area = fit.anchors.prod(1)
        assert np.all(np.diff(area) > 0)
        assert fit.shares.sum() == pytest.approx(1)
        assert np.vectorize(lambda side: float(f"{side:.4g}"))(fit.anchors).tolist() == fit.anchors.tolist()


def test_counting_in_cells_costs_next_to_nothing() -> None:
    shapes = some_shapes(40_000)
    fit = find_anchors(shapes, 6)
    again = find_anchors(shapes[:16_000], 6)  # not counted in cells
    assert fit.average_iou > measure_anchors(shapes, again.anchors).average_iou - 0.001


def test_few_shapes_of_many_boxes() -> None:
    shapes = np.array([[30.0, 40], [10, 20]])[np.arange(50_000) % 2]
    assert find_anchors(shapes, 2).anchors.tolist() == [[10, 20], [30, 40]]


@pytest.mark.slow
def test_time_and_memory_grow_with_the_boxes_at_most() -> None:
    few, many = some_shapes(200_000).astype(np.float32), some_shapes(2_000_000).astype(np.float32)
    times = []
    for shapes in (few, many):
        begin = time.process_time()
        find_anchors(shapes, 9)
        times.append(time.process_time() - begin)
    assert times[1] < 10 * times[0]


def test_progress_adds_up() -> None:
    shares: list[float] = []
    find_anchors(some_shapes(50), 2, advance=shares.append)
    assert len(shares) > 2
    assert sum(shares) == pytest.approx(1)


def test_too_few_shapes() -> None:
    with pytest.raises(DetkitError, match="k = 3: the boxes have only 2 different shapes"):
        find_anchors(np.array([[3.0, 4], [5, 6], [3, 4]]), 3)
    with pytest.raises(DetkitError, match="no boxes"):
        find_anchors(np.zeros((0, 2)), 1)
    with pytest.raises(DetkitError, match="no boxes"):
        measure_anchors(np.zeros((0, 2)), np.ones((1, 2)))


def test_released_anchors_come_to_their_scales() -> None:
    anchors = [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]]
    assert [len(part) for part in assign_scales(np.array(anchors, float), (8, 16, 32))] == [3, 3, 3]


@pytest.mark.parametrize(
    ("sizes", "free", "filled"),
    [
        ([10, 12, 14, 20], [4, 0, 0], [2, 1, 1]),
        ([200, 250, 300], [0, 0, 3], [1, 1, 1]),
        ([10, 60, 100, 120, 150], [1, 1, 3], [1, 1, 3]),
        ([10, 12, 200, 300], [2, 0, 2], [2, 1, 1]),
    ],
)
def test_scales_by_stride(sizes: list[float], free: list[int], filled: list[int]) -> None:
    anchors = np.array([[side * 2, side / 2] for side in sizes])
    for every, counts in ((False, free), (True, filled)):
        parts = assign_scales(anchors, (8, 16, 32), every=every)
        assert [len(part) for part in parts] == counts
        assert np.concatenate(parts).tolist() == anchors.tolist()


def test_fewer_anchors_than_scales() -> None:
    with pytest.raises(DetkitError, match="k = 1: each of the 2 scales"):
        assign_scales(np.array([[10.0, 10]]), (16, 32), every=True)
    assert [len(part) for part in assign_scales(np.array([[10.0, 10]]), (16, 32))] == [1, 0]
