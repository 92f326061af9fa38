import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detkit.backbones import BackboneConfig
from detkit.detectors.fast_rcnn import FastRCNN, FastRCNNConfig, RoIHeadConfig, RoILoss, sample_regions, truncated
from detkit.errors import DetkitError
from detkit.ops.nms import Selection
from detkit.structures import Batch, Candidates, Target

CLASSES = 3
SIZE = 64, 96


def tiny(strides=(16,), fpn=None, loss=None, **head) -> FastRCNN:
    torch.manual_seed(0)
    config = FastRCNNConfig(
        backbone=BackboneConfig(name="timm/test_resnet"),
        strides=list(strides),
        fpn=fpn,
        head=RoIHeadConfig(**{"widths": [32, 24], "pooling": {"size": 3}, **head}),
        loss=RoILoss(**(loss or {})),
    )
    return FastRCNN(config, CLASSES, SIZE).eval()


def target(*rows: tuple[float, ...], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows, dtype=torch.float).view(-1, 5)
    flags = [torch.tensor([i in which for i in range(len(rows))], dtype=torch.bool) for which in (crowd, difficult)]
    return Target(table[:, :4], table[:, 4].long(), *flags)


def table(*pictures: list[tuple[float, ...]]) -> Candidates:
    """Proposals of each picture."""
    counts = torch.tensor([len(boxes) for boxes in pictures])
    picture = torch.arange(len(pictures)).repeat_interleave(counts)
    boxes = torch.tensor([box for boxes in pictures for box in boxes], dtype=torch.float).view(-1, 4)
    return Candidates.from_flat(picture, boxes, torch.ones(len(boxes)), torch.zeros_like(picture), len(pictures))


TARGETS = [target((4, 6, 40, 50, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 60, 1), (0, 0, 96, 64, 1), crowd=(1,))]
PROPOSALS = table(
    [(3, 5, 38, 52), (52, 18, 88, 62), (0, 0, 20, 20), (30, 30, 60, 60), (70, 0, 96, 20)],
    [(12, 8, 66, 58), (10, 30, 70, 60), (60, 40, 96, 64)],
)


def batch(proposals: Candidates | None = PROPOSALS) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(2, 3, *SIZE), torch.tensor([SIZE] * 2), proposals)


def overlap(a, b) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


@pytest.mark.parametrize(("beta", "weights"), [(1.0, (1, 1)), (1 / 9, (0.5, 3))])
def test_losses_are_the_papers(beta, weights) -> None:
    model = tiny(loss={"samples": 8, "beta": beta, "weights": {"cls": weights[0], "loc": weights[1]}})
    found = model.losses(batch(), TARGETS)
    torch.manual_seed(1)
    torch.rand(2, 3, *SIZE)  # as in batch(), so that the same regions are drawn
    regions = sample_regions(PROPOSALS, TARGETS, model.loss, CLASSES)
    with torch.no_grad():
        maps = model.backbone(model.normalize(batch().images))
        logits, deltas = model.head(maps, regions.picture, regions.boxes)
    cls = loc = 0.0
    rows = zip(*(column.tolist() for column in regions[1:]), strict=True)
    for i, (box, label, truth) in enumerate(rows):
        cls -= math.log(math.exp(logits[i, label]) / sum(math.exp(v) for v in logits[i]))
        if label == CLASSES:
            continue
        w, h = box[2] - box[0], box[3] - box[1]
        tw, th = truth[2] - truth[0], truth[3] - truth[1]
        x, y = ((truth[k] + truth[k + 2] - box[k] - box[k + 2]) / 2 for k in (0, 1))
        wanted = (10 * x / w, 10 * y / h, 5 * math.log(tw / w), 5 * math.log(th / h))
        for t, v in zip(deltas[i, label].tolist(), wanted, strict=True):
            error = abs(t - v)
            loc += error**2 / (2 * beta) if error < beta else error - beta / 2
    assert found["cls"].item() == pytest.approx(weights[0] * cls / 16, rel=1e-4)
    assert found["loc"].item() == pytest.approx(weights[1] * loc / 16, rel=1e-4)


def test_regions_are_drawn_as_in_the_paper() -> None:
    loss = RoILoss(samples=8)
    torch.manual_seed(0)
    for _ in range(20):
        regions = sample_regions(PROPOSALS, TARGETS, loss, CLASSES)
        for picture, truth in enumerate(TARGETS):
            mine = regions.picture == picture
            objects = mine & (regions.labels < CLASSES)
            assert 1 <= objects.sum() <= 2
            for box, label, wanted in zip(*(column[mine].tolist() for column in regions[1:]), strict=True):
                best = max(overlap(box, other) for other in truth.boxes[~truth.crowd].tolist())
                if label == CLASSES:
                    assert 0.1 <= best < 0.5
                    assert wanted == box
                else:
                    assert overlap(box, wanted) == best >= 0.5
    # All of the second picture lies in a crowd, so none of it is background.
    assert (regions.labels[regions.picture == 1] == 1).all()


def test_detections_by_hand() -> None:
    model = tiny()
    boxes = torch.tensor([[[10.0, 10, 30, 50], [40, 8, 60, 24], [0, 0, 5, 5]]])
    logits = torch.tensor([[[0.0, math.log(3), -9, math.log(2)], [9, 0, 0, 0], [0, 0, 9, 0]]])
    deltas = torch.zeros(1, 3, CLASSES, 4)
    deltas[0, 0, 1] = torch.tensor([10 * 0.5, -10 * 0.25, 5 * math.log(2), 5 * math.log(0.5)])
    deltas[0, 1, 0] = torch.tensor([10.0, 0, 5 * math.log(4), 0])
    valid = torch.tensor([[True, True, False]])
    raw = model(torch.zeros(1, 3, *SIZE), boxes, valid)._replace(logits=logits, deltas=deltas)
    found = model.decode(raw, 0.4).detections([SIZE])[0]
    assert found.labels.tolist() == [1, 0]
    expected = [[10, 10, 50, 30], [30, 8, 96, 24]]  # the second is clipped
    torch.testing.assert_close(found.boxes, torch.tensor(expected, dtype=torch.float))
    assert found.scores[0].item() == pytest.approx(3 / (1 + 3 + 2 + math.exp(-9)))


def test_padding_and_order_of_pictures_change_nothing() -> None:
    model = tiny()
    together = model.detect(batch(), Selection(score=0.05, max_detections=20))
    for i, found in enumerate(together):
        count = PROPOSALS.count[i]
        own = table(PROPOSALS.boxes[i, :count].tolist())
        one = Batch(batch().images[i : i + 1], torch.tensor([SIZE]), own)
        alone = model.detect(one, Selection(score=0.05, max_detections=20))[0]
        assert len(found) > 0
        torch.testing.assert_close(found.boxes, alone.boxes)
        torch.testing.assert_close(found.scores, alone.scores)


@pytest.mark.parametrize("convolutions", [0, 1])
def test_without_proposals_there_are_no_detections_and_finite_losses(convolutions) -> None:
    model = tiny(convolutions=convolutions)
    for proposals in (table([], []), table([], [(3, 4, 30, 40)])):
        found = model.detect(batch(proposals), Selection(score=0))
        assert len(found[0]) == 0
        assert (len(found[1]) > 0) == bool(proposals.count[1])
        for truth in (TARGETS, [target()] * 2):
            losses = model.losses(batch(proposals), truth)
            assert all(torch.isfinite(value) for value in losses.values())
    nothing = model.losses(batch(table([], [])), [target()] * 2)
    sum(nothing.values()).backward()
    assert {name: value.item() for name, value in nothing.items()} == {"cls": 0, "loc": 0}


def test_proposals_that_were_forgotten_are_named() -> None:
    with pytest.raises(DetkitError, match=r"got none: pass Batch\.proposals"):
        tiny().detect(batch(None), Selection())


def test_pictures_without_objects_teach_the_background_only() -> None:
    losses = tiny().losses(batch(), [target()] * 2)
    assert losses["cls"] > 0
    assert losses["loc"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convolutions": 2, "widths": [16], "dropout": 0.1},
        {"strides": (4, 8, 16), "fpn": {"channels": 16}, "pooling": {"size": 2, "method": "align"}},
    ],
)
def test_every_parameter_learns(options) -> None:
    model = tiny(**options).train()
    for p in model.parameters():
        if not p.any():  # a branch that starts as nothing teaches nothing in the first step
            nn.init.ones_(p)
    truth = [target((4, 6, 12, 14, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 60, 1), (0, 2, 96, 64, 1))]
    sum(model.losses(batch(), truth).values()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    if "fpn" in options:  # no region is large enough for the third level
        assert {name for name in dead if "neck" not in name and "layer" not in name} == set()
    else:
        assert not dead


def test_truncation_keeps_the_largest_singular_values() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 12)
    values = torch.linalg.svdvals(layer.weight)
    for rank in (3, 12, 50):
        first, second = truncated(layer, rank)
        assert first.bias is None
        assert first.out_features == min(rank, 12)
        error = torch.linalg.matrix_norm(second.weight @ first.weight - layer.weight)
        assert error.item() == pytest.approx(values[rank:].square().sum().sqrt().item(), abs=1e-5)
        x = torch.randn(5, 20)
        expected = F.linear(x, second.weight @ first.weight, layer.bias)
        torch.testing.assert_close(second(first(x)), expected)


def test_a_truncated_head_has_fewer_parameters() -> None:
    model, whole = tiny(truncate=[8, 6]), tiny()
    assert [layer[0].out_features for layer in model.head.layers] == [8, 6]
    assert sum(p.numel() for p in model.head.parameters()) < sum(p.numel() for p in whole.head.parameters())
    with pytest.raises(ValueError, match="a number for each of the 2 layers"):
        RoIHeadConfig(widths=[4, 4], truncate=[2])


def test_forward_is_the_same_after_export() -> None:
    model = tiny()
    inputs = model.inputs(batch())
    exported = torch.export.export(model, inputs).module()
    for found, expected in zip(exported(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (16, 8)}, "finest first, each twice the one before"),
        ({"strides": (8, 16)}, "cannot share one head"),
        ({"loss": {"background_iou": (0.5, 0.1)}}, "background_iou"),
    ],
)
def test_configs_that_cannot_be_are_named(options, message) -> None:
    with pytest.raises((DetkitError, ValueError), match=message):
        tiny(**options)


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = tiny(widths=[64, 64]).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of the statistics, so that few steps are enough
    truth = [target((4, 6, 40, 50, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 60, 1))]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = sum(model.losses(batch(), truth).values())
        loss.backward()
        optimizer.step()
    model.eval()
    for found, expected in zip(model.detect(batch(), Selection(score=0.5, iou=0.3)), truth, strict=True):
        assert sorted(found.labels.tolist()) == sorted(expected.labels.tolist())
        for box, label in zip(expected.boxes.tolist(), expected.labels.tolist(), strict=True):
            assert max(overlap(box, other) for other in found.boxes[found.labels == label].tolist()) > 0.75
