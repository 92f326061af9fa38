import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones import BackboneConfig
from detkit.backbones.layers import ConvUnit
from detkit.config import read_yaml, shipped_configs
from detkit.detectors.yolov2 import YOLOv2, YOLOv2Config, YOLOv2Loss, YOLOv2Neck
from detkit.errors import DetkitError
from detkit.model import build_detector, load_weights, read_config
from detkit.structures import Batch, Target
from detkit.weights.darknet import read_cfg

CLASSES = 3
HEIGHT, WIDTH = 96, 128
ANCHORS = [(12.0, 17.0), (34.0, 26.0), (70.0, 81.0)]


def tiny(neck: YOLOv2Neck | None = None, **loss) -> YOLOv2:
    torch.manual_seed(0)
    config = YOLOv2Config(
        backbone=BackboneConfig(name="darknet_tiny"),
        anchors=ANCHORS,
        neck=neck or YOLOv2Neck(depth=2, width=16, squeeze=4),
        loss=YOLOv2Loss(**loss),
    )
    return YOLOv2(config, CLASSES, (HEIGHT, WIDTH)).eval()


def target(*rows: tuple[float, ...], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows).view(-1, 5)
    flags = [torch.tensor([i in which for i in range(len(rows))], dtype=torch.bool) for which in (crowd, difficult)]
    return Target(table[:, :4], table[:, 4].long(), *flags)


def batch(pictures: int = 2) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(pictures, 3, HEIGHT, WIDTH), torch.tensor([[HEIGHT, WIDTH]] * pictures))


TARGETS = [
    target((10, 10, 22, 25, 0), (30, 20, 110, 90, 1), (31, 21, 109, 91, 2), (64, 32, 96, 64, 2)),
    target((0, 0, 128, 96, 1), (50, 50, 60, 64, 0), (5, 5, 40, 60, 2), crowd=(0,), difficult=(1,)),
]


def shared_area(a, b) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def size(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a, b) -> float:
    return shared_area(a, b) / (size(a) + size(b) - shared_area(a, b))


def literal_losses(model: YOLOv2, raw, targets, weigh_small: bool = False) -> dict[str, float]:
    """The paper's sections 2 and 3 and region_layer.c, one cell, one anchor, one object at a time."""
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    factors = {"coords": 1, "object": 5, "no_object": 1, "classes": 1, "prior": 0.01}
    terms = dict.fromkeys(factors, 0.0)
    for b, t in enumerate(targets):
        objects = list(zip(t.boxes.tolist(), t.labels.tolist(), t.crowd.tolist(), t.difficult.tolist(), strict=True))
        learned = {}
        for box, label, crowd, difficult in objects:
            if crowd or difficult:
                continue
            w, h = box[2] - box[0], box[3] - box[1]
            best = max(range(len(ANCHORS)), key=lambda k: iou((0, 0, w, h), (0, 0, *ANCHORS[k])))
            column = min(int((box[0] + box[2]) / 2 // 32), WIDTH // 32 - 1)
            row = min(int((box[1] + box[3]) / 2 // 32), HEIGHT // 32 - 1)
            learned[best, row, column] = box, label
        for k, (aw, ah) in enumerate(ANCHORS):
            for row in range(HEIGHT // 32):
                for column in range(WIDTH // 32):
                    v = raw[b, k * (5 + CLASSES) : (k + 1) * (5 + CLASSES), row, column].tolist()
                    bx, by = (column + sigmoid(v[0])) * 32, (row + sigmoid(v[1])) * 32
                    bw, bh = aw * math.exp(v[2]), ah * math.exp(v[3])
                    own = (bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2)
                    sure = sigmoid(v[4])
                    if (k, row, column) in learned:
                        box, label = learned[k, row, column]
                        tx, ty = (box[0] + box[2]) / 2 / 32 - column, (box[1] + box[3]) / 2 / 32 - row
                        tw, th = math.log((box[2] - box[0]) / aw), math.log((box[3] - box[1]) / ah)
                        errors = (sigmoid(v[0]) - tx, sigmoid(v[1]) - ty, v[2] - tw, v[3] - th)
                        weight = 2 - size(box) / (WIDTH * HEIGHT) if weigh_small else 1
                        terms["coords"] += weight * sum(e**2 for e in errors) / 2
                        terms["object"] += (sure - iou(own, box)) ** 2 / 2
                        terms["classes"] -= math.log(math.exp(v[5 + label]) / sum(map(math.exp, v[5:])))
                        continue
                    if not any(
                        (shared_area(own, box) / size(own) if crowd else iou(own, box)) > 0.6
                        for box, _, crowd, _ in objects
                    ):
                        terms["no_object"] += sure**2 / 2
                    errors = (sigmoid(v[0]) - 0.5, sigmoid(v[1]) - 0.5, v[2], v[3])
                    terms["prior"] += sum(e**2 for e in errors) / 2
    return {name: factors[name] * value / len(targets) for name, value in terms.items()}


def as_numbers(losses) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.parametrize("weigh_small", [False, True])
def test_losses_are_those_of_the_paper_and_the_region_layer(weigh_small) -> None:
    model = tiny(weigh_small=weigh_small)
    expected = literal_losses(model, model(batch().images), TARGETS, weigh_small)
    assert as_numbers(model.losses(batch(), TARGETS)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "objects",
    [
        target(),
        target((16, 16, 48, 48, 0)),  # its centre on a border of cells
        target((96, 64, 128, 96, 0), (118, 86, 138, 106, 1)),  # the second one's centre on the picture's corner
        target((10, 10, 22, 25, 0), (10, 10, 22, 25, 2), (10.5, 10, 22, 25, 1), (9, 9, 70, 80, 1), (1, 1, 30, 28, 0)),
        target((10, 10, 22, 25, 0), (40, 40, 52, 55, 1), crowd=(0, 1)),
    ],
)
def test_losses_in_odd_cases_are_literal_too(objects) -> None:
    model = tiny()
    expected = literal_losses(model, model(batch().images), [objects, TARGETS[0]])
    assert as_numbers(model.losses(batch(), [objects, TARGETS[0]])) == pytest.approx(expected, rel=1e-4)


def test_losses_are_means_over_pictures_and_weighted() -> None:
    one = tiny().losses(batch(1), TARGETS[:1])
    twice = tiny().losses(
        Batch(batch(1).images.repeat(2, 1, 1, 1), torch.tensor([[HEIGHT, WIDTH]] * 2)), TARGETS[:1] * 2
    )
    weighted = tiny(weights={"no_object": 0.5, "object": 10}).losses(batch(1), TARGETS[:1])
    for name, value in one.items():
        torch.testing.assert_close(twice[name], value)
        torch.testing.assert_close(weighted[name], value * {"no_object": 0.5, "object": 2}.get(name, 1))


def test_gradients_are_the_region_layers() -> None:
    # region_layer.c's delta: scale · (truth − output), times the logistic's slope for x, y and objectness.
    model = tiny()
    raw = torch.zeros(1, 3 * 8, 3, 4, requires_grad=True)
    model.forward = lambda images: raw
    sum(model.losses(batch(1), [target((32, 32, 66, 58, 1))]).values()).backward()  # anchor 34 × 26 of cell (1, 1)
    gradient = raw.grad.view(3, 8, 3, 4)
    fit = iou((48 - 17, 48 - 13, 48 + 17, 48 + 13), (32, 32, 66, 58))  # the predicted box is the anchor's
    own = torch.tensor([(0.5 - 17 / 32) / 4, (0.5 - 13 / 32) / 4, 0, 0, 5 * (0.5 - fit) / 4, 1 / 3, 1 / 3 - 1, 1 / 3])
    torch.testing.assert_close(gradient[1, :, 1, 1], own)
    torch.testing.assert_close(gradient[0, :, 2, 3], torch.tensor([0, 0, 0, 0, 0.5 / 4, 0, 0, 0]))


def test_without_rescore_the_objectness_to_learn_is_one() -> None:
    model = tiny(rescore=False)
    model.forward = lambda images: torch.zeros(1, 3 * 8, 3, 4)
    assert model.losses(batch(1), [target((32, 32, 66, 58, 1))])["object"].item() == pytest.approx(5 * 0.5**2 / 2)


def test_anchors_are_learned_from_the_first_pictures_only() -> None:
    model = tiny(prior_pictures=4)
    assert model.losses(batch(), TARGETS)["prior"] > 0
    assert model.seen == 0  # looking at losses is not learning
    model.train()
    terms = [as_numbers(model.losses(batch(n), TARGETS[:n])) for n in (1, 2, 2, 1)]
    assert model.seen == 6
    assert [term["prior"] > 0 for term in terms] == [True, True, True, False]  # after 0, 1, 3 and 5 pictures
    again = tiny(prior_pictures=4)
    again.load_state_dict(model.state_dict())
    assert again.losses(batch(), TARGETS)["prior"] == 0


@pytest.mark.slow
def test_pictures_are_counted_over_processes(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_yolov2 import TARGETS, batch, tiny\n"
        "rank = int(sys.argv[3])\n"
        "dist.init_process_group('gloo', init_method=f'file://{sys.argv[2]}', rank=rank, world_size=2)\n"
        "model, n = tiny().train(), 2 - rank\n"
        "model.losses(batch(n), TARGETS[:n])\n"
        "assert model.seen == 3, model.seen\n"
        "dist.destroy_process_group()\n"
    )
    arguments = [sys.executable, script, Path(__file__).parent, tmp_path / "store"]
    processes = [subprocess.Popen([*map(str, arguments), str(rank)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


def test_losses_of_perfect_predictions_vanish_and_decode_to_the_truth() -> None:
    model = tiny(prior_pictures=0)
    truth = target((24.0, 24, 104, 104, 1))  # anchor 70 × 81 in cell (2, 2), on its corner
    raw = torch.zeros(1, 3 * 8, 3, 4)
    raw.view(1, 3, 8, 3, 4)[:, :, 4] = -20
    own = raw.view(1, 3, 8, 3, 4)[0, 2, :, 2, 2]
    own[:2] = -20
    own[2], own[3] = math.log(80 / 70), math.log(80 / 81)
    own[4], own[5:] = 20, torch.tensor([-20.0, 20, -20])
    model.forward = lambda images: raw
    assert sum(model.losses(batch(1), [truth]).values()).item() < 1e-5
    decoded = model.decode(raw, 0.5).detections([(HEIGHT, WIDTH)])[0]
    torch.testing.assert_close(decoded.boxes, truth.boxes)
    assert decoded.labels.tolist() == [1]


def test_decoding_by_hand() -> None:
    model = tiny()
    raw = torch.full((1, 3 * 8, 3, 4), -9.0)
    raw.view(1, 3, 8, 3, 4)[0, 1, :, 2, 3] = torch.tensor([0, math.log(3), math.log(2), 0, 2, 1, -9, 0.5])
    found = model.decode(raw, 0.3).detections([(HEIGHT, WIDTH)])[0]
    x, y, w, h = (3 + 0.5) * 32, (2 + 0.75) * 32, 34 * 2, 26
    torch.testing.assert_close(found.boxes, torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).expand(2, 4))
    torch.testing.assert_close(
        found.scores, torch.tensor(2.0).sigmoid() * torch.tensor([1, -9, 0.5]).softmax(0)[[0, 2]]
    )
    assert found.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("name", "parameters", "giga", "layers"),
    [
        ("yolov2_darknet19_voc", 50_655_389, 29.36, 23),
        ("yolov2_darknet19_coco", 50_962_889, 62.94, 23),
        ("yolov2_tiny_voc", 15_861_773, 6.97, 9),
    ],
)
def test_the_networks_are_the_released_ones(name, parameters, giga, layers) -> None:
    config = read_config(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_detector(config)
        model(torch.zeros(1, 3, *config.preprocess.size))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 1e9 == pytest.approx(giga, abs=0.01)
    found = list(model.darknet_layers())
    assert len(found) == layers == len({id(layer) for layer in found})
    stored = sum(4 * m.norm.num_features + m.conv.weight.numel() for m in found if isinstance(m, ConvUnit))
    stored += sum(m.weight.numel() + m.bias.numel() for m in found if isinstance(m, nn.Conv2d))
    assert stored - sum(2 * m.norm.num_features for m in found if isinstance(m, ConvUnit)) == parameters


def test_weights_bring_their_count_of_pictures(tmp_path: Path) -> None:
    model = tiny()
    numbers = sum(sum(t.numel() for t in layer.state_dict().values()) for layer in model.darknet_layers())
    numbers -= sum(isinstance(m, ConvUnit) for m in model.modules())  # batch norm counts its batches
    path = tmp_path / "a.weights"
    path.write_bytes(torch.tensor([0, 1, 0, 12_345], dtype=torch.int32).numpy().tobytes() + b"\0" * 4 * numbers)
    load_weights(model, path)
    assert model.seen == 12_345


def test_a_network_of_others_takes_no_darknet_weights() -> None:
    config = YOLOv2Config(
        backbone=BackboneConfig(name="timm/test_resnet"), anchors=ANCHORS, neck=YOLOv2Neck(width=16, squeeze=None)
    )
    model = YOLOv2(config, 2, (64, 64))
    assert model(torch.rand(1, 3, 64, 96)).shape == (1, 3 * 7, 2, 3)
    with pytest.raises(DetkitError, match="is not Darknet's"):
        list(model.darknet_layers())


@pytest.mark.parametrize("neck", [YOLOv2Neck(depth=2, width=16, squeeze=None), YOLOv2Neck(depth=0, passthrough=False)])
def test_forward_is_the_same_after_export(neck) -> None:
    model = tiny(neck)
    exported = torch.export.export(model, (batch().images,)).module()
    torch.testing.assert_close(exported(batch().images), model(batch().images))


@pytest.mark.parametrize(
    ("neck", "message"), [({"depth": 0}, "needs a depth of 1 or more"), ({"squeeze": 6}, "multiple of 4")]
)
def test_necks_that_cannot_be_are_named(neck, message) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOv2Config(backbone=BackboneConfig(name="darknet19"), anchors=ANCHORS, neck=neck)


def test_sizes_are_multiples_of_the_stride() -> None:
    config = YOLOv2Config(backbone=BackboneConfig(name="darknet_tiny"), anchors=ANCHORS)
    with pytest.raises(DetkitError, match=r"preprocess\.size: \[96, 100\] must be multiples of 32"):
        YOLOv2(config, 2, (96, 100))


def test_the_small_one_is_trained_as_released(shared) -> None:
    net = read_cfg(shared / "darknet_reference" / "cfg" / "yolov2_tiny_voc_416x416.cfg")[0]
    epochs = [round(batches * 64 / 16_551) for batches in (net.integer("max_batches", 0), *net.integers("steps")[2:])]
    train = read_yaml(shipped_configs()["yolov2_tiny_voc"])["train"]
    assert [train["epochs"], *train["schedule"]["milestones"]] == epochs
