import math
import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones import BackboneConfig
from detkit.backbones.layers import ConvUnit, Local
from detkit.detectors.yolov1 import YOLOv1, YOLOv1Config, YOLOv1Convolution, YOLOv1Loss
from detkit.errors import DetkitError
from detkit.inference import fold_batch_norm
from detkit.model import build_detector, read_config
from detkit.ops.nms import Selection
from detkit.ops.yolo import yolov1_candidates
from detkit.structures import Batch, Target
from detkit.train.config import Train
from detkit.train.module import frozen_modules
from detkit.train.run import _start_from
from detkit.weights.darknet import darknet_tensors

CLASSES, SIDE, BOXES = 3, 4, 2
HEIGHT, WIDTH = 96, 128  # cells of 24 × 32


def tiny(backbone: str = "darknet_tiny", local: int | None = None, **loss) -> YOLOv1:
    torch.manual_seed(0)
    config = YOLOv1Config(
        backbone=BackboneConfig(name=backbone),
        side=SIDE,
        boxes=BOXES,
        convolutions=[YOLOv1Convolution(channels=32, kernel=1), YOLOv1Convolution(channels=16)],
        local=local,
        hidden=[32],
        loss=YOLOv1Loss(**loss),
    )
    return YOLOv1(config, CLASSES, (HEIGHT, WIDTH)).eval()


def target(*rows: tuple[float, ...], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    flags = [torch.tensor([i in which for i in range(len(rows))], dtype=torch.bool) for which in (crowd, difficult)]
    return Target(table[:, :4], table[:, 4].long(), *flags)


def batch(pictures: int = 2) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(pictures, 3, HEIGHT, WIDTH), torch.tensor([[HEIGHT, WIDTH]] * pictures))


TARGETS = [
    target((10, 10, 22, 25, 0), (30, 20, 110, 90, 1), (60, 30, 94, 60, 2), (100, 2, 127, 20, 2)),
    target(
        (0, 0, 128, 96, 1), (50, 50, 60, 64, 0), (5, 5, 40, 60, 2), (90, 10, 120, 60, 1), crowd=(0,), difficult=(1,)
    ),
]


def shares(box) -> tuple[float, float, float, float]:
    """Centre and size as shares of the picture."""
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT


def iou(a, b) -> float:
    """Of centre and size."""
    w, h = (max(0.0, min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2))
            for i in (0, 1))  # fmt: skip
    union = a[2] * a[3] + b[2] * b[3] - w * h
    return w * h / union if union > 0 else 0.0


def number(cell: int, *, label: int | None = None, box: int = 0, field: str = "c") -> int:
    """Where detection_layer.c has a number: all classes, all confidences, all boxes."""
    cells = SIDE * SIDE
    if label is not None:
        return cell * CLASSES + label
    if field == "c":
        return cells * CLASSES + cell * BOXES + box
    return cells * (CLASSES + BOXES) + (cell * BOXES + box) * 4 + "xywh".index(field)


def literal_losses(raw: torch.Tensor, targets, coord: float = 5, noobj: float = 0.5) -> dict[str, float]:
    """Equation 3, one cell, one box, one class at a time."""
    terms = dict.fromkeys(("xy", "sqrt_wh", "object", "no_object", "classes"), 0.0)
    for v, t in zip(raw.tolist(), targets, strict=True):
        objects, aside = {}, set()
        for box, label, crowd, difficult in zip(
            t.boxes.tolist(), t.labels.tolist(), t.crowd.tolist(), t.difficult.tolist(), strict=True
        ):
            x, y, w, h = shares(box)
            i = min(int(y * SIDE), SIDE - 1) * SIDE + min(int(x * SIDE), SIDE - 1)
            if crowd or difficult:
                aside.add(i)
            else:
                objects[i] = (x, y, w, h, label)  # the last counts
        for i in range(SIDE * SIDE):
            row, column = divmod(i, SIDE)
            predicted = []
            for j in range(BOXES):
                x, y, w, h = (v[number(i, box=j, field=f)] for f in "xywh")
                predicted.append(((column + x) / SIDE, (row + y) / SIDE, w * w, h * h))
            responsible = None
            if i in objects:
                *truth, label = objects[i]
                overlaps = [iou(p, truth) for p in predicted]
                errors = [math.dist(p, truth) for p in predicted]
                by_iou = max(overlaps) > 0
                responsible = overlaps.index(max(overlaps)) if by_iou else errors.index(min(errors))
                x, y, w, h = (v[number(i, box=responsible, field=f)] for f in "xywh")
                terms["xy"] += coord * ((x - (truth[0] * SIDE - column)) ** 2 + (y - (truth[1] * SIDE - row)) ** 2)
                terms["sqrt_wh"] += coord * ((w - math.sqrt(truth[2])) ** 2 + (h - math.sqrt(truth[3])) ** 2)
                terms["object"] += (v[number(i, box=responsible)] - overlaps[responsible]) ** 2
                for c in range(CLASSES):
                    terms["classes"] += (v[number(i, label=c)] - (c == label)) ** 2
            for j in range(BOXES):
                if j != responsible and i not in aside:
                    terms["no_object"] += noobj * v[number(i, box=j)] ** 2
    return {name: value / len(targets) for name, value in terms.items()}


def believing(model: YOLOv1, raw: torch.Tensor) -> YOLOv1:
    """The model with an output of ours."""
    model.forward = lambda images: raw
    return model


def drawn(pictures: int) -> torch.Tensor:
    """A random output whose boxes are of the size of objects."""
    torch.manual_seed(2)
    return torch.rand(pictures, SIDE * SIDE * (CLASSES + 5 * BOXES))


def test_losses_are_the_papers() -> None:
    raw = drawn(2)
    found = believing(tiny(), raw).losses(batch(), TARGETS)
    assert list(found) == ["xy", "sqrt_wh", "object", "no_object", "classes"]
    assert {name: value.item() for name, value in found.items()} == pytest.approx(literal_losses(raw, TARGETS))
    fresh = tiny()
    expected = literal_losses(fresh(batch().images), TARGETS)
    assert {name: value.item() for name, value in fresh.losses(batch(), TARGETS).items()} == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize(
    "objects",
    [
        target(),
        target((54, 32, 74, 64, 0)),  # its centre, (64, 48), is on a corner of four cells: of the lower right one
        target((96, 72, 128, 96, 0), (118, 90, 138, 102, 1)),  # the second one's centre on the picture's far corner
        target((10, 10, 22, 25, 0), (10, 10, 22, 25, 2), (10.5, 10, 22, 25, 1)),  # more objects than a cell has boxes
        target((10, 10, 22, 25, 0), (40, 40, 52, 55, 1), crowd=(0,), difficult=(1,)),
        target((10, 10, 22, 25, 0), (0, 10, 22, 25, 1), difficult=(1,)),  # both in one cell: the first is learned
    ],
)
def test_losses_in_odd_cases_are_the_papers(objects) -> None:
    raw = drawn(2)
    found = believing(tiny(), raw).losses(batch(), [objects, TARGETS[0]])
    expected = literal_losses(raw, [objects, TARGETS[0]])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_pictures_with_nothing_to_learn_teach_that_there_is_nothing() -> None:
    raw = drawn(2)
    found = believing(tiny(), raw).losses(batch(), [target(), target((10, 10, 22, 25, 0), crowd=(0,))])
    confidences = raw[:, SIDE * SIDE * CLASSES : SIDE * SIDE * (CLASSES + BOXES)].square()
    confidences[1, :BOXES] = 0  # the crowd's cell, the first, is told nothing
    assert found.pop("no_object").item() == pytest.approx(0.5 * confidences.sum().item() / 2)
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(found, 0)


def test_losses_are_means_over_pictures_and_weighted() -> None:
    one = tiny().losses(batch(1), TARGETS[:1])
    twice = tiny().losses(Batch(batch(1).images.repeat(2, 1, 1, 1), batch(2).sizes), TARGETS[:1] * 2)
    weighted = tiny(lambda_coord=2.5, lambda_noobj=1).losses(batch(1), TARGETS[:1])
    factors = {"xy": 0.5, "sqrt_wh": 0.5, "no_object": 2}
    for name, value in one.items():
        torch.testing.assert_close(twice[name], value)
        torch.testing.assert_close(weighted[name], value * factors.get(name, 1))


def test_losses_of_several_processes_are_shared_by_their_mean_number_of_pictures(monkeypatch) -> None:
    alone = tiny().losses(batch(1), TARGETS[:1])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(2))  # the other one has two
    for name, value in tiny().losses(batch(1), TARGETS[:1]).items():
        torch.testing.assert_close(value, alone[name] / 1.5)


def test_the_box_that_overlaps_most_is_responsible_and_else_the_nearest() -> None:
    cell = SIDE + 1  # row 1, column 1: x from 32 to 64, y from 24 to 48
    truth = target((40, 30, 56, 42, 2))  # 16 × 12 around (48, 36), the cell's middle
    raw = torch.zeros(1, SIDE * SIDE * (CLASSES + 5 * BOXES), requires_grad=True)

    def learner(*boxes: tuple[float, float, float, float]) -> tuple[int, dict[str, float]]:
        with torch.no_grad():
            for j, box in enumerate(boxes):
                for field, value in zip("xywh", box, strict=True):
                    raw[0, number(cell, box=j, field=field)] = value
        found = believing(tiny(), raw).losses(batch(1), [truth])
        (gradient,) = torch.autograd.grad(found["xy"] + found["sqrt_wh"], raw)
        moved = [any(gradient[0, number(cell, box=j, field=f)] != 0 for f in "xywh") for j in range(BOXES)]
        assert sum(moved) == 1
        return moved.index(True), {name: value.item() for name, value in found.items()}

    small, half = 0.1, math.sqrt(1 / 8)  # 1.28 × .96 and 16 × 12 pixels
    which, terms = learner((0.5, 0.5, half, half / 2), (0.5, 0.5, small, small))
    assert which == 0  # a quarter of the object's area, all of it inside: IoU ¼
    assert terms["object"] == pytest.approx((0 - 1 / 4) ** 2)
    assert terms["sqrt_wh"] == pytest.approx(5 * (half / 2) ** 2)
    assert learner((0.5, 0.5, small, small), (0.75, 0.5, half, half))[0] == 1
    # Neither overlaps: the nearest counts, though a box in the middle of the picture's width is far off in size.
    which, terms = learner((2.5, 2.5, half, half), (1.5, 1.5, half, half))
    assert which == 1
    assert terms["object"] == 0  # its confidence, 0, is what it overlaps
    assert terms["xy"] == pytest.approx(5 * 2)
    assert learner((1.5, 1.5, half, half), (1.5, 1.5, 0.9, half))[0] == 0
    # Distances are shares of the picture: 1.25 cells of 32 pixels are nearer than 1.5 cells of 24.
    assert learner((0.5, 2.0, half, half), (1.75, 0.5, half, half))[0] == 1


def test_losses_of_perfect_predictions_vanish_and_decode_to_the_objects() -> None:
    truth = target((24, 24, 104, 70, 1), (0, 0, 16, 20, 2), (110, 80, 128, 96, 0))
    raw = torch.zeros(1, SIDE * SIDE * (CLASSES + 5 * BOXES))
    for box, label in zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True):
        x, y, w, h = shares(box)
        column, row = int(x * SIDE), int(y * SIDE)
        cell = row * SIDE + column
        raw[0, number(cell, label=label)] = 1
        raw[0, number(cell, box=1)] = 1
        for field, value in zip("xywh", (x * SIDE - column, y * SIDE - row, w**0.5, h**0.5), strict=True):
            raw[0, number(cell, box=1, field=field)] = value
    model = believing(tiny(), raw)
    assert sum(model.losses(batch(1), [truth]).values()).item() < 1e-10
    (found,) = model.detect(batch(1), Selection(score=0.5))
    order = found.labels.argsort()
    torch.testing.assert_close(found.boxes[order], truth.boxes[truth.labels.argsort()], atol=1e-4, rtol=0)
    assert found.labels[order].tolist() == [0, 1, 2]
    torch.testing.assert_close(found.scores, torch.ones(3), atol=1e-6, rtol=0)


def test_decoding_by_hand() -> None:
    model = tiny()
    raw = torch.zeros(2, SIDE * SIDE * (CLASSES + 5 * BOXES))
    cell = 3 * SIDE + 2
    raw[1, number(cell, label=0)] = 0.9
    raw[1, number(cell, label=2)] = 0.5
    raw[1, number(cell, box=0)] = 0.2
    raw[1, number(cell, box=1)] = 0.8
    for field, value in zip("xywh", (0.25, 0.5, 0.5, -0.4), strict=True):
        raw[1, number(cell, box=1, field=field)] = value
    nothing, found = model.decode(raw, 0.3).detections([(HEIGHT, WIDTH)] * 2)
    assert len(nothing) == 0
    x, y, w, h = 2.25 * 32, 3.5 * 24, 0.25 * 128, 0.16 * 96
    torch.testing.assert_close(found.boxes, torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]] * 2))
    torch.testing.assert_close(found.scores, torch.tensor([0.72, 0.4]))
    assert found.labels.tolist() == [0, 2]


def test_two_numbers_below_zero_make_a_score_as_in_darknet() -> None:
    raw = torch.tensor([[-0.9, 0.5, -1.0, 0.5, 0.5, 0.5, 0.5]])  # two classes, a confidence and a box
    found = yolov1_candidates(raw, 1, 1, (32, 32), 0.2)
    assert found.labels.tolist() == [[0]]
    assert found.scores[0].tolist() == pytest.approx([0.9])


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart_through_local_layers_too() -> None:
    model = tiny("timm/test_resnet", local=8).train()
    truth = [
        target((10, 10, 22, 25, 0), (30, 20, 110, 90, 1)),
        target((60, 10, 84, 36, 2), (5, 40, 60, 80, 1)),
    ]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 200)
    model.head.dropout.eval()  # who learns by heart needs all of it
    for _ in range(200):
        optimizer.zero_grad()
        loss = sum(model.losses(batch(), truth).values())
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.05
    for found, expected in zip(model.detect(batch(), Selection(score=0.5)), truth, strict=True):
        assert sorted(found.labels.tolist()) == sorted(expected.labels.tolist())
        for box, label in zip(expected.boxes.tolist(), expected.labels.tolist(), strict=True):
            assert max(iou(shares(box), shares(o)) for o in found.boxes[found.labels == label].tolist()) > 0.85


def test_the_sizes_are_the_papers() -> None:
    def counts(name: str) -> tuple[int, int, int]:
        """Convolutions; parameters as the paper counts them, without batch norm; numbers of a .weights file."""
        with torch.device("meta"):
            model = build_detector(read_config(name))
        units = [m for m in model.modules() if isinstance(m, ConvUnit)]
        channels = sum(m.norm.num_features for m in units)  # scale and shift in place of a bias; mean and variance
        parameters = sum(p.numel() for p in model.parameters())
        return len(units), parameters - channels, parameters + 2 * channels

    convolutions, parameters, _ = counts("yolov1_extraction_voc")
    assert convolutions == 24
    fully_connected = (7 * 7 * 1024 + 1) * 4096 + (4096 + 1) * 7 * 7 * 30
    kernels = 3 * 64 * 49 + 64 * 192 * 9 + 192 * 128 + 128 * 256 * 9 + 256 * 256 + 256 * 512 * 9
    kernels += 4 * (512 * 256 + 256 * 512 * 9) + 512 * 512 + 512 * 1024 * 9 + 2 * (1024 * 512 + 512 * 1024 * 9)
    kernels += 4 * 1024 * 1024 * 9
    biases = 64 + 192 + 128 + 256 + 256 + 512 + 4 * (256 + 512) + 512 + 1024 + 2 * (512 + 1024) + 4 * 1024
    assert parameters == fully_connected + kernels + biases == 271_703_550
    assert counts("yolov1_local_voc") == (24, 197_288_691, 197_328_243)  # yolov1.weights: 789,312,988 bytes, 16 of head
    assert counts("yolov1_fast_voc")[:2] == (9, 45_089_374)
    assert counts("yolov1_tiny_voc")[0] == 8


@pytest.mark.parametrize(("name", "giga"), [("extraction", 40.57), ("fast", 4.84), ("local", 40.42), ("tiny", 3.22)])
def test_the_output_for_voc_and_what_it_costs(name, giga) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_detector(read_config(f"yolov1_{name}_voc"))
        raw = model(torch.zeros(1, 3, 448, 448))
    assert raw.shape == (1, 7 * 7 * (35 if name == "local" else 30))
    assert counter.get_total_flops() / 1e9 == pytest.approx(giga, abs=0.01)  # as the configs' headers say


def test_the_layers_follow_the_released_files() -> None:
    kinds = {ConvUnit: "c", Local: "l", nn.Linear: "f"}
    for name, expected in {"local": "c" * 24 + "lf", "extraction": "c" * 24 + "ff", "tiny": "c" * 8 + "f"}.items():
        with torch.device("meta"):
            model = build_detector(read_config(f"yolov1_{name}_voc"))
        found = list(model.darknet_layers())
        assert "".join(kinds[type(layer)] for layer in found) == expected
        assert {id(p) for layer in found for p in layer.parameters()} == {id(p) for p in model.parameters()}


def test_the_layers_of_a_file_are_in_the_order_in_which_they_run() -> None:
    model, ran = tiny(local=8), []
    layers = list(model.darknet_layers())
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
    model(batch(1).images)
    assert ran == layers


def test_a_network_of_others_takes_no_darknet_weights() -> None:
    with pytest.raises(DetkitError, match="is not Darknet's"):
        list(tiny("timm/test_resnet").darknet_layers())


def test_the_first_twenty_layers_can_be_frozen() -> None:
    with torch.device("meta"):
        model = build_detector(read_config("yolov1_extraction_voc"))
    (frozen,) = frozen_modules(model, Train(freeze="backbone"))
    assert sum(isinstance(m, ConvUnit) for m in frozen.modules()) == 20
    frozen = frozen_modules(model, Train(freeze="all_but_head"))
    assert sum(isinstance(m, ConvUnit) for part in frozen for m in part.modules()) == 24


def test_training_starts_from_a_file_of_the_first_layers(tmp_path) -> None:
    model, said = tiny(), []
    backbone = list(model.backbone.darknet_layers())
    tensors = [tensor for layer in backbone for tensor in darknet_tensors(layer)]
    numbers = [np.full(tensor.numel(), i + 1, "<f4") for i, tensor in enumerate(tensors)]
    path = tmp_path / "body.conv.weights"
    path.write_bytes(struct.pack("<4i", 0, 1, 0, 7) + np.concatenate(numbers).tobytes())
    neck = {name: tensor.clone() for name, tensor in model.neck.state_dict().items()}
    _start_from(model, path, said.append)
    assert all((tensor == i + 1).all() for i, tensor in enumerate(tensors))
    assert all(torch.equal(tensor, neck[name]) for name, tensor in model.neck.state_dict().items())
    assert said == [f"{path}: the first 7 of 11 layers taken over; the others are new"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DetkitError, match="is too short by"):
        _start_from(model, path, said.append)


def test_names_of_the_weights_stay() -> None:
    names = [name for name in tiny(local=8).state_dict() if not name.startswith("backbone.")]
    unit = ["conv.weight", *(f"norm.{x}" for x in ("weight", "bias", "running_mean", "running_var"))]
    unit.append("norm.num_batches_tracked")
    assert names == [
        "normalize.mean", "normalize.std", *(f"neck.{i}.{name}" for i in (0, 1) for name in unit),
        "head.local.weight", "head.local.bias", "head.hidden_0.weight", "head.hidden_0.bias",
        "head.output.weight", "head.output.bias",
    ]  # fmt: skip


def test_folding_batch_norm_before_local_layers_changes_no_result() -> None:
    model = tiny(local=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    before = model(batch().images)
    fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(batch().images), before, atol=1e-4, rtol=1e-4)
    last = model.to(memory_format=torch.channels_last)(batch().images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, before, atol=1e-4, rtol=1e-4)


def test_forward_through_local_layers_is_the_same_after_export() -> None:
    model = tiny(local=8)
    exported = torch.export.export(model, (batch().images,)).module()
    torch.testing.assert_close(exported(batch().images), model(batch().images))


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(DetkitError, match="only pictures of the size they were built for, 96×128, got 128×96"):
        tiny()(torch.zeros(1, 3, 128, 96))
    with pytest.raises(DetkitError, match=r"preprocess.size: \[96, 100\] must be multiples of detector.stride 32"):
        YOLOv1(YOLOv1Config(backbone=BackboneConfig(name="darknet_tiny")), 3, (96, 100))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("convolutions", [{"channels": 8, "kernel": 2}], "1 or 3"),
        ("dropout", 1, "less than 1"),
        ("side", 0, "greater than 0"),
        ("anchors", [], "unknown key 'anchors'"),
        ("loss", {"lambda_coor": 1}, "did you mean 'lambda_coord'"),
    ],
)
def test_mistakes_in_the_config_are_named(key, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOv1Config.model_validate({"backbone": {"name": "extraction"}, key: value})
