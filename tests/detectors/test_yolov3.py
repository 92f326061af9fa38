import math

import pytest
import torch
from torch import nn

from detkit.backbones import BackboneConfig
from detkit.backbones.layers import ConvUnit
from detkit.detectors.yolov3 import YOLOv3, YOLOv3Config, YOLOv3Level, YOLOv3Loss
from detkit.errors import DetkitError
from detkit.model import build_detector, read_config
from detkit.ops.nms import Selection
from detkit.structures import Batch, Target

CLASSES = 3


def tiny(**loss) -> YOLOv3:
    torch.manual_seed(0)
    config = YOLOv3Config(
        backbone=BackboneConfig(name="darknet_tiny"),
        levels=[
            YOLOv3Level(stride=16, anchors=[(10, 14), (23, 27)], width=16, depth=0),
            YOLOv3Level(stride=32, anchors=[(60, 40), (81, 82), (30, 90)], width=16, depth=1),
        ],
        loss=YOLOv3Loss(**loss),
    )
    return YOLOv3(config, CLASSES, (96, 128)).eval()


def target(*rows: tuple[float, ...], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows).view(-1, 5)
    flags = [torch.tensor([i in which for i in range(len(rows))], dtype=torch.bool) for which in (crowd, difficult)]
    return Target(table[:, :4], table[:, 4].long(), *flags)


def batch(pictures: int = 2) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(pictures, 3, 96, 128), torch.tensor([[96, 128]] * pictures))


TARGETS = [
    target((10, 10, 22, 25, 0), (30, 20, 110, 90, 1), (31, 21, 109, 91, 2), (64, 32, 96, 64, 2)),
    target((0, 0, 128, 96, 1), (50, 50, 60, 64, 0), (5, 5, 40, 60, 2), crowd=(0,), difficult=(1,)),
]


def iou(a, b) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if union > 0 else 0.0


def literal_losses(model: YOLOv3, raw, targets, ignore_iou: float, size=(96, 128)) -> dict[str, float]:
    """Section 2 of the paper, one cell, one anchor, one object at a time."""
    height, width = size
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    bce = lambda v, y: -y * math.log(sigmoid(v)) - (1 - y) * math.log(1 - sigmoid(v))  # noqa: E731
    every_anchor = [(i, k, *a) for i, x in enumerate(model.anchors) for k, a in enumerate(x.tolist())]
    terms = dict.fromkeys(("xy", "wh", "object", "no_object", "classes"), 0.0)
    for b, t in enumerate(targets):
        objects = list(zip(t.boxes.tolist(), t.labels.tolist(), t.crowd.tolist(), t.difficult.tolist(), strict=True))
        learned = {}
        for box, label, crowd, difficult in objects:
            if crowd or difficult:
                continue
            w, h = box[2] - box[0], box[3] - box[1]
            shape = lambda a: min(w, a[2]) * min(h, a[3]) / (w * h + a[2] * a[3] - min(w, a[2]) * min(h, a[3]))  # noqa: B023, E731
            i, k, aw, ah = max(every_anchor, key=shape)
            s = model.strides[i]
            cx, cy = (box[0] + box[2]) / 2 / s, (box[1] + box[3]) / 2 / s
            column, row = min(int(cx), width // s - 1), min(int(cy), height // s - 1)
            learned[i, k, row, column] = (cx - column, cy - row, math.log(w / aw), math.log(h / ah), label, w * h)
        for i, s in enumerate(model.strides):
            for k, (aw, ah) in enumerate(model.anchors[i].tolist()):
                for row in range(height // s):
                    for column in range(width // s):
                        size_one = 5 + CLASSES
                        v = raw[i][b, k * size_one : (k + 1) * size_one, row, column].tolist()
                        if (i, k, row, column) in learned:
                            tx, ty, tw, th, label, pixels = learned[i, k, row, column]
                            scale = 2 - pixels / (width * height)
                            for u, y in ((v[0], tx), (v[1], ty)):
                                least = sum(-p * math.log(p) for p in (y, 1 - y) if p > 0)
                                terms["xy"] += scale * (bce(u, y) - least)
                            terms["wh"] += scale * ((v[2] - tw) ** 2 + (v[3] - th) ** 2) / 2
                            terms["object"] += bce(v[4], 1)
                            terms["classes"] += sum(bce(v[5 + c], float(c == label)) for c in range(CLASSES))
                            continue
                        x, y = (column + sigmoid(v[0])) * s, (row + sigmoid(v[1])) * s
                        w, h = aw * math.exp(v[2]), ah * math.exp(v[3])
                        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                        if not any(
                            (iou(box, o) if not crowd else covered(box, o)) > ignore_iou for o, _, crowd, _ in objects
                        ):
                            terms["no_object"] += bce(v[4], 0)
    return {name: value / len(targets) for name, value in terms.items()}


def covered(a, b) -> float:
    w, h = max(0.0, min(a[2], b[2]) - max(a[0], b[0])), max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]))


@pytest.mark.parametrize("ignore_iou", [0.5, 0.7, 0.2])
def test_losses_are_the_papers(ignore_iou) -> None:
    model = tiny(ignore_iou=ignore_iou)
    found = model.losses(batch(), TARGETS)
    expected = literal_losses(model, model(batch().images), TARGETS, ignore_iou)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "objects",
    [
        target(),
        target((16, 16, 48, 48, 0)),  # its centre on a border of cells at both strides
        target((96, 64, 128, 96, 0), (118, 86, 138, 106, 1)),  # the second one's centre on the picture's corner
        target((10, 10, 22, 25, 0), (10, 10, 22, 25, 2), (10.5, 10, 22, 25, 1)),  # more objects than anchors
        target((10, 10, 22, 25, 0), (40, 40, 52, 55, 1), crowd=(0, 1)),
    ],
)
def test_losses_in_odd_cases_are_the_papers(objects) -> None:
    model = tiny()
    found = model.losses(batch(), [objects, TARGETS[0]])
    expected = literal_losses(model, model(batch().images), [objects, TARGETS[0]], 0.5)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_losses_are_means_over_pictures_and_weighted() -> None:
    one = tiny().losses(batch(1), TARGETS[:1])
    twice = tiny().losses(Batch(batch(1).images.repeat(2, 1, 1, 1), torch.tensor([[96, 128]] * 2)), TARGETS[:1] * 2)
    weighted = tiny(weights={"no_object": 0.5}).losses(batch(1), TARGETS[:1])
    for name, value in one.items():
        torch.testing.assert_close(twice[name], value)
        torch.testing.assert_close(weighted[name], value * (0.5 if name == "no_object" else 1))


@pytest.mark.parametrize(("box", "overlap"), [("giou", 0.25), ("ciou", 0.25)])
def test_options_beyond_the_paper(box, overlap) -> None:
    model = tiny(box=box, label_smoothing=0.1)
    raw = [torch.zeros(1, 2 * 8, 6, 8), torch.zeros(1, 3 * 8, 3, 4, requires_grad=True)]
    # The second anchor of cell (1, 1) predicts 81 × 82 around (48, 48).
    model.forward = lambda images: raw
    truth = target((48 - 40.5 / 2, 48 - 41 / 2, 48 + 40.5 / 2, 48 + 41 / 2, 1))  # a quarter of it, the same shape
    model.anchors[1].copy_(torch.tensor([[1.0, 1], [81, 82], [1, 1]]))
    model.anchors[0].fill_(1)
    found = model.losses(batch(1), [truth])
    assert set(found) == {"box", "object", "no_object", "classes"}
    assert found["box"].item() == pytest.approx((2 - 40.5 * 41 / (96 * 128)) * (1 - overlap), rel=1e-5)
    assert found["classes"].item() == pytest.approx(3 * math.log(2), rel=1e-5)
    gradient = torch.autograd.grad(found["classes"], raw[1])[0].view(1, 3, 8, 3, 4)
    torch.testing.assert_close(gradient[0, 1, 5:, 1, 1], torch.tensor([0.5 - 0.05, 0.5 - 0.95, 0.5 - 0.05]))


def test_imitation_vanishes_at_the_teacher_and_grows_away_from_it() -> None:
    model = tiny(weights={"imitation": 2})
    raw = [x.detach() for x in model(batch().images)]
    same = model.losses(batch(), TARGETS, teacher=raw)
    assert same["imitation"].item() == pytest.approx(0, abs=1e-3)
    plain = model.losses(batch(), TARGETS)
    assert {name: same[name].item() for name in plain} == {name: x.item() for name, x in plain.items()}
    # One anchor of one cell of one picture: by hand.
    teacher = [x.clone() for x in raw]
    cell = teacher[0].view(2, 2, 8, 6, 8)[1, 0, :, 3, 2]
    own = cell.clone()
    cell.copy_(torch.tensor([1.0, -1, 0.5, 0.25, 3, 2, -2, 0]))
    truth = cell.sigmoid()
    far = -(truth * own.sigmoid().log() + (1 - truth) * (1 - own.sigmoid()).log())
    far += truth * truth.log() + (1 - truth) * (1 - truth).log()
    expected = far[4] + truth[4] * (far[[0, 1, 5, 6, 7]].sum() + (own[2:4] - cell[2:4]).square().sum() / 2)
    found = model.losses(batch(), TARGETS, teacher=teacher)["imitation"]
    torch.testing.assert_close(found, 2 * expected / 2, atol=1e-3, rtol=1e-3)


def test_losses_of_perfect_predictions_vanish() -> None:
    model = tiny()
    truth = target((24.0, 24, 104, 104, 1))  # anchor 81 × 82 of stride 32, cell (2, 2), offset 0
    raw = [torch.zeros(1, 2 * 8, 6, 8), torch.zeros(1, 3 * 8, 3, 4)]
    for x in raw:
        x.view(1, -1, 8, *x.shape[2:])[:, :, 4] = -20
    own = raw[1].view(1, 3, 8, 3, 4)[0, 1, :, 2, 2]
    own[:2] = -20
    own[2], own[3] = math.log(80 / 81), math.log(80 / 82)
    own[4], own[5:] = 20, torch.tensor([-20.0, 20, -20])
    model.forward = lambda images: raw
    found = model.losses(batch(1), [truth])
    assert sum(found.values()).item() < 1e-5
    decoded = model.decode(raw, 0.5).detections([(96, 128)])[0]
    torch.testing.assert_close(decoded.boxes, truth.boxes)
    assert decoded.labels.tolist() == [1]


def test_decoding_by_hand() -> None:
    model = tiny()
    raw = [torch.full((1, 2 * 8, 6, 8), -9.0), torch.full((1, 3 * 8, 3, 4), -9.0)]
    raw[0].view(1, 2, 8, 6, 8)[0, 1, :, 4, 5] = torch.tensor([0, math.log(3), math.log(2), 0, 2, 1, -9, 0])
    found = model.decode(raw, 0.3).detections([(96, 128)])[0]
    x, y, w, h = (5 + 0.5) * 16, (4 + 0.75) * 16, 23 * 2, 27
    box = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(found.boxes, box.expand(2, 4))
    objectness = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(found.scores, objectness * torch.tensor([1.0, 0.0]).sigmoid())
    assert found.labels.tolist() == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov3_resnet50_coco", "yolov3_swin_t_coco"])
def test_backbones_of_timm_learn_by_heart_too(name) -> None:
    torch.manual_seed(0)
    model = build_detector(read_config(name, ["preprocess.size=[96, 128]", "classes=[bird, cat, dog]"])).train()
    truth = [
        target((10, 10, 22, 25, 0), (30, 20, 110, 90, 1)),
        target((60, 10, 84, 36, 2), (5, 40, 60, 80, 1)),
    ]
    pictures = batch()  # once, for it seeds, and would drop the same paths of Swin in every step
    steps, losses = 90, []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model.losses(pictures, truth).values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    for found, expected in zip(model.eval().detect(pictures, Selection(score=0.5)), truth, strict=True):
        assert sorted(found.labels.tolist()) == sorted(expected.labels.tolist())
        for box, label in zip(expected.boxes.tolist(), expected.labels.tolist(), strict=True):
            assert max(iou(box, other) for other in found.boxes[found.labels == label].tolist()) > 0.7


def test_the_layers_follow_the_released_files() -> None:
    counts = {"yolov3_tiny_coco": (13, 8_858_734), "yolov3_darknet53_coco": (75, 62_001_757)}
    for name, (layers, parameters) in counts.items():
        with torch.device("meta"):
            model = build_detector(read_config(name))
        found = list(model.darknet_layers())
        assert len(found) == layers
        assert len({id(layer) for layer in found}) == layers
        stored = sum(4 * m.norm.num_features + m.conv.weight.numel() for m in found if isinstance(m, ConvUnit))
        stored += sum(m.weight.numel() + m.bias.numel() for m in found if isinstance(m, nn.Conv2d))
        assert stored == parameters
        heads = [i for i, layer in enumerate(found) if isinstance(layer, nn.Conv2d)]
        assert heads == ([9, 12] if "tiny" in name else [58, 66, 74])


def test_a_network_of_others_takes_no_darknet_weights() -> None:
    config = tiny_config_with_backbone("timm/resnet18")
    with pytest.raises(DetkitError, match="is not Darknet's"):
        list(YOLOv3(config, 2, (64, 64)).darknet_layers())


def tiny_config_with_backbone(name: str) -> YOLOv3Config:
    level = YOLOv3Level(stride=32, anchors=[(10, 10)], width=8, depth=1)
    return YOLOv3Config(backbone=BackboneConfig(name=name), levels=[level])


def test_spatial_pyramid_pooling_is_where_the_release_has_it() -> None:
    with torch.device("meta"):
        plain, spp = (build_detector(read_config(f"yolov3_{name}_coco")) for name in ("darknet53", "spp"))
    extra = sum(p.numel() for p in spp.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 4 * 512 * 512 + 2 * 512


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([{"stride": 32}, {"stride": 16}], "finest first"),
        ([{"stride": 16, "spp": True, "depth": 1}], "spp at stride 16 needs a depth of 3"),
        ([{"stride": 16}, {"stride": 32, "depth": 0}], "only the finest level may have depth 0"),
    ],
)
def test_levels_that_cannot_be_are_named(levels, message) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOv3Config(
            backbone=BackboneConfig(name="darknet53"),
            levels=[{"anchors": [(1, 1)], "width": 8, **level} for level in levels],
        )
