import pytest
import torch
from torch import nn

from detkit.backbones import BackboneConfig
from detkit.detectors.fast_rcnn import RoILoss
from detkit.detectors.rcnn import RCNN, RCNNConfig, warp
from detkit.errors import DetkitError
from detkit.ops.nms import Selection
from detkit.structures import Batch, Candidates, Target

CLASSES = 3
SIZE = 64, 96


def tiny(**options) -> RCNN:
    torch.manual_seed(0)
    backbone = BackboneConfig(name="timm/test_resnet")
    return RCNN(RCNNConfig(backbone=backbone, **{"crop": 32, "context": 4, **options}), CLASSES, SIZE).eval()


def target(*rows: tuple[float, ...]) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows, dtype=torch.float).view(-1, 5)
    return Target(table[:, :4], table[:, 4].long(), *torch.zeros(2, len(rows), dtype=torch.bool))


def table(*pictures: list[tuple[float, ...]]) -> Candidates:
    """Proposals of each picture."""
    counts = torch.tensor([len(boxes) for boxes in pictures])
    picture = torch.arange(len(pictures)).repeat_interleave(counts)
    boxes = torch.tensor([box for boxes in pictures for box in boxes], dtype=torch.float).view(-1, 4)
    return Candidates.from_flat(picture, boxes, torch.ones(len(boxes)), torch.zeros_like(picture), len(pictures))


PROPOSALS = table(
    [(3, 5, 38, 52), (52, 18, 88, 62), (0, 0, 20, 20), (30, 30, 60, 60), (70, 0, 96, 20)],
    [(12, 8, 66, 58), (10, 30, 70, 60), (60, 40, 96, 64)],
)
TARGETS = [target((4, 6, 40, 50, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 60, 1))]


def batch(proposals: Candidates | None = PROPOSALS) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(2, 3, *SIZE), torch.tensor([SIZE] * 2), proposals)


def literal_warp(image: torch.Tensor, box: tuple[float, ...], size: int, context: int) -> torch.Tensor:
    """One pixel of the crop at a time: [3, H, W] → [3, size, size]."""
    x1, y1, x2, y2 = box
    inner = size - 2 * context
    crop = torch.zeros(3, size, size)
    for row in range(size):
        for column in range(size):
            # The box lies between `context` and size − context of the crop.
            x = x1 + (column + 0.5 - context) / inner * (x2 - x1) - 0.5
            y = y1 + (row + 0.5 - context) / inner * (y2 - y1) - 0.5
            left, top = int(x // 1), int(y // 1)
            for v, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
                for u, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
                    if 0 <= v < image.shape[1] and 0 <= u < image.shape[2]:
                        crop[:, row, column] += wy * wx * image[:, v, u]
    return crop


def test_crops_show_the_box_and_its_context() -> None:
    images = batch().images
    boxes = torch.tensor([[10.0, 12, 40, 30], [0, 0, 96, 64], [80, 50, 95, 63], [20, 5, 23, 60]])
    picture = torch.tensor([1, 0, 1, 0])
    found = warp(images, picture, boxes, 12, 2)
    expected = [literal_warp(images[b], box, 12, 2) for b, box in zip(picture, boxes.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    # A box of the crop's inner size is copied pixel by pixel, with as many around it.
    same = warp(images, picture[:1], torch.tensor([[20.0, 30, 28, 38]]), 12, 2)
    torch.testing.assert_close(same[0], images[1, :, 28:40, 18:30])


def test_the_order_and_size_of_batches_change_nothing() -> None:
    model = tiny()
    whole = model(*model.inputs(batch()))
    model.config = model.config.model_copy(update={"batch": 3})
    parts = model(*model.inputs(batch()))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    alone = Batch(batch().images[1:], batch().sizes[1:], table(PROPOSALS.boxes[1, :3].tolist()))
    raw = model(*model.inputs(alone))
    torch.testing.assert_close(raw.logits[0], whole.logits[1, :3])
    torch.testing.assert_close(raw.deltas[0], whole.deltas[1, :3])
    assert whole.logits[0].abs().amin(0).min() > 0
    found = model.detect(batch(), Selection(score=0.1))
    assert all(len(detections) > 0 for detections in found)


def test_what_a_crop_shows_decides() -> None:
    model = tiny()
    pictures = batch()
    changed = pictures.images.clone()
    changed[0, :, :20, 70:] = 0  # the fifth proposal, and within the context of no other but the second
    first, second = (model(x, *model.inputs(pictures)[1:]) for x in (pictures.images, changed))
    same = (first.logits == second.logits).all(-1)[0]
    assert same.tolist() == [True, False, True, True, False] or same.tolist() == [True, True, True, True, False]


def test_without_proposals_there_are_no_detections_and_finite_losses() -> None:
    model = tiny()
    none = batch(table([], []))
    assert [len(found) for found in model.detect(none, Selection(score=0))] == [0, 0]
    for truth in (TARGETS, [target()] * 2):
        losses = model.losses(none, truth)
        assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    with pytest.raises(DetkitError, match="R-CNN finds objects in boxes from outside"):
        model.detect(batch(None), Selection())


def test_every_parameter_learns() -> None:
    model = tiny().train()
    for p in model.parameters():
        if not p.any():
            nn.init.ones_(p)
    truth = [target((4, 6, 40, 50, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 60, 1))]
    losses = model.losses(batch(), truth)
    assert list(losses) == ["cls", "loc"]
    sum(losses.values()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@pytest.mark.parametrize(
    ("options", "message"), [({"crop": 40}, "multiple of 32"), ({"context": 16}, "leaves nothing between")]
)
def test_crops_that_cannot_be_are_named(options, message) -> None:
    with pytest.raises((DetkitError, ValueError), match=message):
        tiny(**options)


def test_samples_are_the_papers() -> None:
    loss = RCNNConfig(backbone=BackboneConfig(name="timm/test_resnet")).loss
    assert (2 * loss.samples, 2 * loss.samples * loss.foreground) == (128, 32)
    assert loss == RoILoss(background_iou=(0, 0.5))
    assert loss.foreground_iou == 0.5


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart() -> None:
    model = tiny().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 80)
    pictures = batch()
    for _ in range(80):
        optimizer.zero_grad()
        sum(model.losses(pictures, TARGETS).values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    for found, expected in zip(model.detect(pictures, Selection(score=0.5, iou=0.3)), TARGETS, strict=True):
        assert sorted(found.labels.tolist()) == sorted(expected.labels.tolist())
        for box, label in zip(expected.boxes, expected.labels, strict=True):
            assert (found.boxes[found.labels == label] - box).abs().amax(-1).min() < 6
