import math

import pytest
import torch
from torch import nn

from detkit.backbones import BackboneConfig
from detkit.detectors.faster_rcnn import (
    Anchors,
    FasterRCNN,
    FasterRCNNConfig,
    FasterRCNNLoss,
    Grid,
    ProposalLayer,
    Said,
)
from detkit.ops.nms import Selection
from detkit.structures import Batch, Candidates, Target

CLASSES = 3
SIZE = 64, 96


def tiny(pyramid: bool = True, loss=None, rpn=None, widths=(32,), **options) -> FasterRCNN:
    torch.manual_seed(0)
    form = (
        {"strides": [8, 16], "fpn": {"channels": 16}, "pooled_level": True, "anchors": {"sizes": [[12], [24], [48]]}}
        if pyramid
        else {"strides": [16], "anchors": {"sizes": [[16, 32]]}}
    )
    config = FasterRCNNConfig(
        backbone=BackboneConfig(name="timm/test_resnet"),
        head={"widths": list(widths), "pooling": {"size": 3, "method": "align"}},
        rpn={"inference": {"before": 100, "after": 30}, "training": {"before": 200, "after": 60}, **(rpn or {})},
        loss=FasterRCNNLoss(**{"roi": {"background_iou": (0, 0.5)}, **(loss or {})}),
        **form | options,
    )
    return FasterRCNN(config, CLASSES, SIZE).eval()


def target(*rows: tuple[float, ...], crowd: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows, dtype=torch.float).view(-1, 5)
    flags = [torch.tensor([i in which for i in range(len(rows))], dtype=torch.bool) for which in (crowd, ())]
    return Target(table[:, :4], table[:, 4].long(), *flags)


TARGETS = [target((4, 6, 40, 50, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 60, 1), (0, 0, 20, 20, 1), crowd=(1,))]


def batch() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(2, 3, *SIZE), torch.tensor([[64, 96], [50, 80]]))


def overlap(a, b) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


def test_anchor_shapes_by_hand() -> None:
    first, second = Anchors(sizes=[[32], [128]], ratios=[0.5, 1, 2]).shapes()
    assert first.tolist() == [[46, 22], [32, 32], [22, 46]]  # 32·√2 = 45.3 and 22.6, halves rounded
    assert second.tolist() == [[182, 90], [128, 128], [90, 182]]
    (several,) = Anchors(sizes=[[16, 32]], ratios=[1, 4]).shapes()
    assert several.tolist() == [[16, 16], [32, 32], [8, 32], [16, 64]]
    with pytest.raises(ValueError, match="as many sizes"):
        Anchors(sizes=[[16, 32], [64]])


def test_anchors_lie_at_the_corners_of_the_cells() -> None:
    model = tiny(pyramid=False)
    (grid,) = model.grids(torch.zeros(1, 3, *SIZE), [torch.zeros(1, 1, 4, 6)])
    shapes = model.config.anchors.shapes()[0].tolist()
    expected = [
        [16 * x - w / 2, 16 * y - h / 2, 16 * x + w / 2, 16 * y + h / 2]
        for y in range(4) for x in range(6) for w, h in shapes
    ]  # fmt: skip
    assert grid.anchors().tolist() == expected


def test_the_rpn_orders_its_outputs_as_the_anchors() -> None:
    model = tiny(pyramid=False)
    rpn = model.rpn
    for p in rpn.parameters():
        nn.init.zeros_(p)
    x = torch.zeros(1, rpn.objectness.in_channels, 4, 6)
    x[0, 0, 1, 2] = 1  # the cell of row 1 and column 2
    rpn.convolutions[0][0].weight.data[0, 0, 1, 1] = 1
    rpn.objectness.weight.data[3, 0] = 5
    rpn.delta.weight.data[3 * 4 + 1, 0] = 7  # anchor 3, y
    (said,) = rpn([x])
    logits, deltas = said.logits_by_cell(), said.deltas_by_cell()
    row = (1 * 6 + 2) * 6 + 3
    assert logits.nonzero().tolist() == [[0, row]]
    assert deltas.nonzero().tolist() == [[0, row, 1]]
    assert deltas[0, row, 1] == 7


@pytest.mark.parametrize("cross_boundary", [False, True])
def test_rpn_targets_by_hand(cross_boundary) -> None:
    model = tiny(pyramid=False, loss={"rpn": {"samples": 100, "cross_boundary": cross_boundary}})
    anchors = torch.tensor(
        [
            [10.0, 10, 30, 30],  # the object itself
            [10, 10, 30, 26],  # IoU .8
            [10, 10, 30, 22],  # IoU .6: neither
            [10, 10, 30, 15],  # IoU .25: nothing
            [40, 40, 60, 60],  # IoU .16 with the small object, which no other touches
            [-5, 10, 15, 30],  # leaves the picture; IoU 1/7
            [70, 40, 90, 60],  # in the crowd
            [81, 0, 91, 10],  # leaves the picture of 80, not its canvas
        ]
    )
    truth = target((10, 10, 30, 30, 0), (46, 46, 54, 54, 1), (60, 30, 96, 64, 2), crowd=(2,))
    objects, others, rows = model.assign(anchors, truth, torch.tensor([64.0, 80]))
    assert objects.tolist() == [0, 1, 4]
    assert rows.tolist() == [0, 0, 1]
    assert others.tolist() == ([3, 5, 7] if cross_boundary else [3])


def literal_rpn_losses(model: FasterRCNN, said, anchors, objects, others, rows, truth, samples: int):
    logits = torch.cat([x.logits_by_cell()[0] for x in said]).tolist()
    deltas = torch.cat([x.deltas_by_cell()[0] for x in said]).tolist()
    cls = reg = 0.0
    for i in objects:
        cls += math.log(1 + math.exp(-logits[i]))
    for i in others:
        cls += math.log(1 + math.exp(logits[i]))
    for i, row in zip(objects, rows, strict=True):
        box, wanted = anchors[i], truth.boxes[row].tolist()
        w, h = box[2] - box[0], box[3] - box[1]
        t = [(wanted[k] + wanted[k + 2] - box[k] - box[k + 2]) / 2 / side for k, side in ((0, w), (1, h))]
        t += [math.log((wanted[k + 2] - wanted[k]) / side) for k, side in ((0, w), (1, h))]
        for a, b in zip(deltas[i], t, strict=True):
            error = abs(a - b)
            reg += error**2 / 2 if error < 1 else error - 0.5
    return cls / samples, reg / samples


def test_rpn_losses_are_the_papers() -> None:
    # As many samples as anchors, so that nothing depends on the draw: half of them may have an object.
    samples = 10_000
    weights = {"cls": 2, "reg": 3}
    model = tiny(loss={"learn": "rpn", "rpn": {"samples": samples, "cross_boundary": True, "weights": weights}})
    pictures, truth = Batch(batch().images[:1], batch().sizes[:1]), TARGETS[0]
    found = model.losses(pictures, [truth])
    assert set(found) == {"rpn_cls", "rpn_reg"}
    with torch.no_grad():
        _, levels = model._maps(pictures.images)
        said, grids = model.rpn(levels), model.grids(pictures.images, levels)
    anchors = torch.cat([grid.anchors() for grid in grids])
    objects, others, rows = (x.tolist() for x in model.assign(anchors, truth, torch.tensor(SIZE)))
    assert len(objects) >= 2
    cls, reg = literal_rpn_losses(model, said, anchors.tolist(), objects, others, rows, truth, samples)
    assert found["rpn_cls"].item() == pytest.approx(2 * cls, rel=1e-4)
    assert found["rpn_reg"].item() == pytest.approx(3 * reg, rel=1e-4)


def test_proposals_by_hand() -> None:
    model = tiny(rpn={"score": 0.2})
    square = torch.tensor([[20.0, 20]])
    grids = [Grid(square, 1, 3, (20, 20)), Grid(square, 1, 1, (60, 60))]  # centres 0, 20 and 40; 0
    # Centres 10, 12 and 70, of which the last is twice as wide and clipped at 80.
    across = torch.tensor([[0.5, 0.5, 0, 0], [-0.4, 0.5, 0, 0], [1.5, 2.5, math.log(2), 0]]).T.reshape(1, 4, 1, 3)
    said = [
        Said(torch.tensor([[[[1.0, 2, 0]]]]), across),
        Said(torch.tensor([[[[0.5]]]]), torch.tensor([0.5, 0.5, 0, 0]).view(1, 4, 1, 1)),
    ]

    def proposals(before: int, after: int, width: float = 80) -> Candidates:
        return model.propose(said, grids, torch.tensor([[64.0, width]]), ProposalLayer(before=before, after=after))

    found = proposals(3, 9)
    # The first overlaps the second by more than .7; the same box on another level stays.
    torch.testing.assert_close(
        found.boxes[0], torch.tensor([[2.0, 0, 22, 20], [0, 0, 20, 20], [50, 40, 80, 60]]), rtol=0, atol=1e-5
    )
    assert found.labels[0].tolist() == [0, 1, 0]
    torch.testing.assert_close(found.scores[0], torch.tensor([2.0, 0.5, 0]).sigmoid())
    assert found.count.tolist() == [3]
    assert found.boxes[0, :2].equal(proposals(1, 9).boxes[0])
    assert found.boxes[0, :1].equal(proposals(3, 1).boxes[0])
    assert proposals(3, 9, width=0.0005).count.tolist() == [0]


@pytest.mark.parametrize("pyramid", [True, False])
def test_every_parameter_learns(pyramid) -> None:
    model = tiny(pyramid, loss={"rpn": {"cross_boundary": True}}).train()
    for p in model.parameters():
        if not p.any():  # a branch that starts as nothing teaches nothing in the first step
            nn.init.ones_(p)
    # Objects of all levels: RoIs of the second map are wider than 56 pixels at these strides only by their area.
    truth = [target((4, 6, 16, 18, 0), (2, 2, 94, 62, 2)), target((10, 10, 70, 60, 1), (20, 20, 34, 30, 0))]
    losses = model.losses(batch(), truth)
    assert list(losses) == ["rpn_cls", "rpn_reg", "cls", "loc"]
    sum(losses.values()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_pictures_without_objects_teach_that_there_are_none() -> None:
    model = tiny(loss={"rpn": {"cross_boundary": True}})
    losses = model.losses(batch(), [target()] * 2)
    assert losses["rpn_cls"] > 0
    assert losses["cls"] > 0
    assert losses["rpn_reg"] == losses["loc"] == 0
    crowded = model.losses(batch(), [target((0, 0, 96, 64, 0), crowd=(0,))] * 2)
    assert all(torch.isfinite(value) for value in crowded.values())


def test_without_proposals_there_are_no_detections_and_finite_losses() -> None:
    model = tiny(rpn={"score": 0.99})
    assert [len(found) for found in model.detect(batch(), Selection(score=0))] == [0, 0]
    for truth in (TARGETS, [target()] * 2):
        assert all(torch.isfinite(value) for value in model.losses(batch(), truth).values())


def test_steps_of_alternating_training_learn_one_part() -> None:
    joint = tiny()
    terms = joint.losses(batch(), TARGETS)
    rpn = tiny(loss={"learn": "rpn"})
    assert set(rpn.losses(batch(), TARGETS)) == {"rpn_cls", "rpn_reg"}
    assert not any(p.requires_grad for p in rpn.head.parameters())
    head = tiny(loss={"learn": "head"})
    assert set(head.losses(batch(), TARGETS)) == {"cls", "loc"}
    assert not any(p.requires_grad for p in head.rpn.parameters())
    # Proposals from another network take the place of the own ones.
    none = Candidates(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0).long(), torch.zeros(2).long())
    given = Batch(batch().images, batch().sizes, none)
    assert head.losses(given, [target()] * 2)["cls"] == 0
    assert joint.losses(given, [target()] * 2)["cls"] > 0
    assert rpn.state_dict().keys() == head.state_dict().keys() == joint.state_dict().keys()
    assert terms["cls"] > 0


def test_sampling_follows_the_seed() -> None:
    model = tiny(
        loss={"rpn": {"samples": 16, "cross_boundary": True}, "roi": {"samples": 8, "background_iou": (0, 0.5)}}
    )
    runs = []
    for seed in (5, 5, 6):
        pictures = batch()
        torch.manual_seed(seed)
        runs.append([value.item() for value in model.losses(pictures, TARGETS).values()])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("clip", ["input", "picture"])
def test_detections_end_at_the_edge(clip) -> None:
    model = tiny(clip=clip)
    nn.init.normal_(model.rpn.delta.weight, std=10)  # proposals all over the place
    found = model.detect(batch(), Selection(score=0.05, max_detections=50))
    for detections, (height, width) in zip(found, batch().sizes.tolist(), strict=True):
        assert len(detections) > 0
        limit = (width, height) if clip == "picture" else (96, 64)
        assert (detections.boxes[:, 2:].amax(0) <= torch.tensor(limit)).all()
        assert detections.boxes.min() >= 0
    wide = found[1].boxes[:, 2].max()
    assert (wide <= 80) == (clip == "picture")


def test_a_list_of_sizes_for_each_level_is_asked_for() -> None:
    with pytest.raises(ValueError, match="each of the 3 levels"):
        tiny(anchors={"sizes": [[12], [24]]})


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart() -> None:
    model = tiny(pyramid=False, loss={"rpn": {"cross_boundary": True}}, widths=(64, 64)).train()
    truth = [target((4, 6, 40, 50, 0), (50, 20, 90, 60, 2)), target((10, 10, 70, 48, 1))]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 150)
    pictures = batch()
    for _ in range(150):
        optimizer.zero_grad()
        sum(model.losses(pictures, truth).values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    for found, expected in zip(model.detect(pictures, Selection(score=0.5, iou=0.3)), truth, strict=True):
        assert sorted(found.labels.tolist()) == sorted(expected.labels.tolist())
        for box, label in zip(expected.boxes.tolist(), expected.labels.tolist(), strict=True):
            assert max(overlap(box, other) for other in found.boxes[found.labels == label].tolist()) > 0.75
