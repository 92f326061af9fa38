import pytest
import torch
import torchvision.ops as tv

from detkit.ops import boxes as box_ops

A = torch.tensor([[0.0, 0, 10, 10]])
B = torch.tensor([[5.0, 5, 15, 15]])


def random_boxes(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=generator) * 100
    return torch.cat([low, low + torch.rand(n, 2, generator=generator) * 60 + 0.1], 1)


def test_formats_by_hand() -> None:
    box = torch.tensor([[10.0, 20, 30, 60]])
    assert box_ops.xyxy_to_cxcywh(box).tolist() == [[20, 40, 20, 40]]
    assert box_ops.xyxy_to_xywh(box).tolist() == [[10, 20, 20, 40]]


@pytest.mark.parametrize(
    ("there", "back"),
    [(box_ops.xyxy_to_cxcywh, box_ops.cxcywh_to_xyxy), (box_ops.xyxy_to_xywh, box_ops.xywh_to_xyxy)],
)
def test_formats_round_trip(there, back) -> None:
    boxes = random_boxes(50)
    torch.testing.assert_close(back(there(boxes)), boxes)
    assert there(boxes[:0]).shape == (0, 4)


def test_overlaps_by_hand() -> None:
    # 25 in common of 175; hull 15 × 15; centres (5, 5) apart; the same aspect.
    assert box_ops.intersection(A, B).item() == 25
    assert box_ops.overlap(A, B).item() == pytest.approx(25 / 175)
    assert box_ops.overlap(A, B, "giou").item() == pytest.approx(25 / 175 - 50 / 225)
    assert box_ops.overlap(A, B, "diou").item() == pytest.approx(25 / 175 - 50 / 450)
    assert box_ops.overlap(A, B, "ciou").item() == pytest.approx(25 / 175 - 50 / 450)
    tall = torch.tensor([[0.0, 0, 5, 20]])
    iou, v = 50 / 150, 4 / torch.pi**2 * (torch.pi / 4 - torch.atan(torch.tensor(0.25)).item()) ** 2
    expected = iou - (2.5**2 + 5**2) / (10**2 + 20**2) - v * v / (1 - iou + v)
    assert box_ops.overlap(A, tall, "ciou").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("iou", tv.box_iou),
        ("giou", tv.generalized_box_iou),
        ("diou", tv.distance_box_iou),
        ("ciou", tv.complete_box_iou),
    ],
)
def test_overlaps_equal_torchvision(kind, reference) -> None:
    a, b = random_boxes(40, 1), random_boxes(30, 2)
    torch.testing.assert_close(box_ops.overlap(a[:, None], b, kind), reference(a, b), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_overlap_of_points_is_finite_and_has_a_gradient(kind) -> None:
    a = torch.zeros(1, 4, requires_grad=True)
    value = box_ops.overlap(a, torch.zeros(1, 4), kind)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_overlap_of_boxes_apart_pulls_them_together(kind) -> None:
    a = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    box_ops.overlap(a, torch.tensor([[30.0, 0, 40, 10]]), kind).sum().backward()
    assert a.grad[0, 2] > 0


def test_pairwise_iou_of_batches() -> None:
    a, b = random_boxes(6).view(2, 3, 4), random_boxes(8, 1).view(2, 4, 4)
    result = box_ops.pairwise_iou(a, b)
    assert result.shape == (2, 3, 4)
    torch.testing.assert_close(result[1], tv.box_iou(a[1], b[1]))


def test_clip_to_one_size_and_to_a_size_each() -> None:
    boxes = torch.tensor([[-5.0, -5, 20, 30], [1, 2, 3, 4]])
    assert box_ops.clip(boxes, 10, 15).tolist() == [[0, 0, 15, 10], [1, 2, 3, 4]]
    assert box_ops.clip(boxes, torch.tensor([10, 3]), torch.tensor([15, 2])).tolist() == [[0, 0, 15, 10], [1, 2, 2, 3]]


def test_deltas_by_hand() -> None:
    anchor, box = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[15.0, 20, 55, 40]])
    deltas = box_ops.encode_deltas(box, anchor, (10, 10, 5, 5))
    expected = torch.tensor([[10 * 15 / 20, 10 * -10 / 40, 5 * torch.tensor(2.0).log(), 5 * torch.tensor(0.5).log()]])
    torch.testing.assert_close(deltas, expected)
    torch.testing.assert_close(box_ops.decode_deltas(deltas, anchor, (10, 10, 5, 5)), box)


def test_deltas_round_trip_and_stay_finite() -> None:
    anchors, boxes = random_boxes(50, 1), random_boxes(50, 2)
    torch.testing.assert_close(box_ops.decode_deltas(box_ops.encode_deltas(boxes, anchors), anchors), boxes)
    huge = box_ops.decode_deltas(torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, 16, 32]]))
    torch.testing.assert_close(huge, torch.tensor([[8.0 - 500, 16 - 1000, 8 + 500, 16 + 1000]]))
