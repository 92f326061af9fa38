import torch

from detkit.ops.anchors import anchor_boxes, cell_corners, cells_reached, shape_iou
from detkit.ops.assign import IGNORED, NOTHING, match


def test_cells_run_row_by_row() -> None:
    assert cell_corners(2, 3).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_anchor_boxes_by_hand() -> None:
    boxes = anchor_boxes(torch.tensor([[4.0, 2.0], [8.0, 8.0]]), 1, 2, 16)
    assert boxes.tolist() == [[6, 7, 10, 9], [4, 4, 12, 12], [22, 7, 26, 9], [20, 4, 28, 12]]
    corner = anchor_boxes(torch.tensor([[4.0, 2.0]]), 1, 2, 16, centre=0)
    assert corner.tolist() == [[-2, -1, 2, 1], [14, -1, 18, 1]]


def test_shape_iou_by_hand() -> None:
    iou = shape_iou(torch.tensor([[10.0, 10.0]]), torch.tensor([[10.0, 5.0], [20.0, 20.0], [5.0, 20.0]]))
    assert torch.allclose(iou, torch.tensor([[0.5, 0.25, 1 / 3]]))


def test_match_by_two_thresholds() -> None:
    iou = torch.tensor([[0.8, 0.4, 0.1, 0.5], [0.2, 0.6, 0.0, 0.5]])
    assert match(iou, 0.5, 0.3).tolist() == [0, 1, NOTHING, 0]
    assert match(iou, 0.7, 0.3).tolist() == [0, IGNORED, NOTHING, IGNORED]


def test_match_keeps_the_best_of_an_object_below_the_threshold() -> None:
    iou = torch.tensor([[0.2, 0.2, 0.1], [0.0, 0.0, 0.0]])
    assert match(iou, 0.7, 0.3, keep_best=True).tolist() == [0, 0, NOTHING]
    assert match(iou, 0.7, 0.3).tolist() == [NOTHING] * 3


def test_match_without_objects_or_boxes() -> None:
    assert match(torch.zeros(0, 3), 0.5, 0.5, keep_best=True).tolist() == [NOTHING] * 3
    assert match(torch.zeros(2, 0), 0.5, 0.5, keep_best=True).tolist() == []


def test_cells_are_reached_by_boxes_that_enter_them() -> None:
    boxes = torch.tensor([[0.0, 0, 32, 32], [31, 40, 65, 41], [64, 32, 96, 64]])
    reached = cells_reached(boxes, 2, 3, 32)
    assert reached.tolist() == [
        [[True, False, False], [False, False, False]],
        [[False, False, False], [True, True, True]],
        [[False, False, False], [False, False, True]],
    ]
    assert cells_reached(boxes[:0], 2, 3, 32).shape == (0, 2, 3)
