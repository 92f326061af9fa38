"""What holds for every detector that learns.

A row of TREES is a model of each that is small enough to learn two pictures by heart in seconds. The names and shapes
of its tensors are kept in `state_dicts/`: a change there means that old checkpoints no longer load.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from detkit.config import shipped_configs
from detkit.detectors import DETECTORS
from detkit.detectors.base import Detector
from detkit.inference import compile_forward, fold_batch_norm
from detkit.model import ModelConfig, build_detector, read_config
from detkit.ops.boxes import pairwise_iou
from detkit.ops.nms import Selection
from detkit.structures import Batch, Candidates, Target

SIZE = (96, 128)
CLASSES = ["bird", "cat", "dog"]
TREES: dict[str, dict[str, Any]] = {
    "fast_rcnn": {
        "backbone": {"name": "darknet_tiny"},
        "head": {"pooling": {"size": 4}, "widths": [64]},
    },
    "faster_rcnn": {
        "backbone": {"name": "darknet_tiny"},
        "strides": [8, 16],
        "fpn": {"channels": 32},
        "anchors": {"sizes": [[16], [64]]},
        "rpn": {"training": {"before": 200, "after": 50}, "inference": {"before": 200, "after": 50}},
        "head": {"pooling": {"size": 4}, "widths": [64]},
    },
    "rcnn": {"backbone": {"name": "darknet_tiny"}, "stride": 16, "crop": 32, "context": 4, "batch": 16},
    "sliding_window": {
        "backbone": {"name": "darknet_tiny"},
        "stride": 8,
        "crop": 32,
        "search": "dense",
        "windows": {"scales": [13.4, 25, 47, 75], "aspect_ratios": [0.86, 1.25], "stride": 8},
        "loss": {"negatives": 64},
    },
    "yolo9000": {
        "backbone": {"name": "darknet_tiny"},
        "anchors": [[10, 14], [23, 27], [81, 82]],
        "neck": {"depth": 1, "width": 32, "passthrough": False},
        "tree": {"bird": None, "cat": None, "dog": None},
    },
    "yolov1": {
        "backbone": {"name": "darknet_tiny"},
        "side": 4,
        "convolutions": [{"channels": 32}],
        "hidden": [64],
        "dropout": 0,
    },
    "yolov2": {
        "backbone": {"name": "darknet_tiny"},
        "anchors": [[10, 14], [23, 27], [81, 82]],
        "neck": {"depth": 2, "width": 32, "squeeze": 8},
    },
    "yolov3": {
        "backbone": {"name": "darknet_tiny"},
        "levels": [
            {"stride": 16, "anchors": [[10, 14], [23, 27]], "width": 16, "depth": 0},
            {"stride": 32, "anchors": [[60, 40], [81, 82], [30, 90]], "width": 16, "depth": 1},
        ],
    },
}
TARGETS = [
    [(10, 10, 22, 25, 0), (30, 20, 110, 90, 1)],
    [(60, 10, 84, 36, 2), (5, 40, 60, 80, 1)],
]


def build(name: str) -> Detector:
    torch.manual_seed(0)
    tree = {"classes": CLASSES, "detector": {"name": name, **TREES[name]}, "preprocess": {"size": SIZE}}
    return build_detector(ModelConfig.model_validate(tree))


def targets(rows: list[list[tuple[int, ...]]]) -> list[Target]:
    """Rows of x1, y1, x2, y2, label for each picture."""
    tables = [torch.tensor(picture, dtype=torch.float32).view(-1, 5) for picture in rows]
    return [Target(table[:, :4], table[:, 4].long(), *torch.zeros(2, len(table), dtype=torch.bool)) for table in tables]


def batch() -> Batch:
    """Two pictures, and proposals for the detectors that need them: the objects not quite right, and any boxes."""
    random = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, *SIZE, generator=random)
    objects = torch.tensor([row[:4] for picture in TARGETS for row in picture]).float()
    corners = torch.rand(40, 2, 2, generator=random) * torch.tensor([SIZE[1] - 8, SIZE[0] - 8])
    other = torch.cat([corners.amin(1), corners.amax(1) + 8], 1)
    boxes = torch.cat([objects + torch.rand(4, 4, generator=random) * 4 - 2, other])
    picture, order = torch.cat([torch.tensor([0, 0, 1, 1]), torch.arange(40) % 2]).sort(stable=True)
    proposals = Candidates.from_flat(picture, boxes[order], torch.ones(44), torch.zeros(44, dtype=torch.int64), 2)
    return Batch(images, torch.tensor([SIZE, SIZE]), proposals)


def alone(pictures: Batch, b: int) -> Batch:
    """One picture of a batch."""
    assert pictures.proposals is not None
    columns = (getattr(pictures.proposals, name)[b : b + 1] for name in ("boxes", "scores", "labels", "count"))
    return Batch(pictures.images[b : b + 1], pictures.sizes[b : b + 1], Candidates(*columns))


def unsettle(model: Detector) -> None:
    """Give batch norms statistics that one which is wrongly exported or folded would not give."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[operator, union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]


def total(model: Detector, rows: list[list[tuple[int, ...]]]) -> torch.Tensor:
    return torch.stack(list(model.losses(batch(), targets(rows)).values())).sum()


def test_every_detector_is_here() -> None:
    assert TREES.keys() == DETECTORS.keys() - {"darknet"}  # which only detects


@pytest.mark.parametrize("name", TREES)
def test_every_parameter_learns(name: str) -> None:
    model = build(name).train()
    total(model, TARGETS).backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


# The other configs of YOLOv2 and YOLOv3 have the networks of these.
NETWORKS = re.compile("yolov1_|yolov2_(?!.*_coco|.*_raccoon)|yolov3_.*_coco")


@pytest.mark.parametrize("name", list(filter(NETWORKS.match, shipped_configs())))
def test_every_parameter_of_the_shipped_networks_learns(name: str) -> None:
    side = 224 if "swin" in name else 64
    settings = [f"preprocess.size=[{side}, {side}]", *(["classes=[a, b, c]"] if "yolov1" in name else [])]
    model = build_detector(read_config(name, settings)).train()
    for p in model.parameters():
        if not p.any():  # a residual branch that starts as nothing teaches nothing in the first step
            nn.init.ones_(p)
    pictures = Batch(torch.rand(2, 3, side, side), torch.tensor([[side, side]] * 2))
    rows = [[(3, 3, 20, 16, 0), (3, 3, 60, 60, 0), (10, 10, 40, 30, 0), (1, 1, 12, 14, 0)]] * 2
    torch.stack(list(model.losses(pictures, targets(rows)).values())).sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@pytest.mark.parametrize("name", TREES)
def test_losses_are_finite_numbers_by_name_in_evaluation_too(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        for rows in (TARGETS, [[], []], [TARGETS[0], []]):
            losses = model.losses(batch(), targets(rows))
            assert all(term.ndim == 0 and torch.isfinite(term) and term >= 0 for term in losses.values())
        before = [p.clone() for p in model.state_dict().values()]
        model.losses(batch(), targets(TARGETS))
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", TREES)
def test_pictures_without_objects_teach_too(name: str) -> None:
    model = build(name).train()
    total(model, [[], []]).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in gradients)
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", TREES)
def test_decoding_gives_what_is_above_the_threshold(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        low, high = (model.decode(model(*model.inputs(batch())), threshold) for threshold in (0.0, 0.3))
    assert isinstance(low, Candidates)
    for b in range(2):
        n, few = low.count[b], high.count[b]
        assert few == (low.scores[b, :n] > 0.3).sum()
        assert (high.scores[b, :few] > 0.3).all()
        assert low.labels[b, :n].min() >= 0
        assert low.labels[b, :n].max() < len(CLASSES)


@pytest.mark.parametrize("name", TREES)
def test_detections_lie_in_the_input_and_above_the_score(name: str) -> None:
    for found in build(name).eval().detect(batch(), Selection(score=0.01, max_detections=50)):
        assert len(found) > 0
        assert found.scores.min() > 0.01
        assert found.boxes.min() >= 0
        assert (found.boxes.amax(0) <= torch.tensor([SIZE[1], SIZE[0]] * 2)).all()


@pytest.mark.parametrize("name", TREES)
def test_a_picture_does_not_depend_on_its_neighbours(name: str) -> None:
    model = build(name).eval()
    both = batch()
    selection = Selection(score=0.05)
    together = model.detect(both, selection)
    for b in range(2):
        (found,) = model.detect(alone(both, b), selection)
        torch.testing.assert_close(found.boxes, together[b].boxes, atol=1e-3, rtol=1e-4)
        assert found.labels.tolist() == together[b].labels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TREES.keys() - {"sliding_window"}))  # whose boxes lie on a grid: see its tests
def test_two_pictures_are_learned_by_heart(name: str) -> None:
    model = build(name).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 200)
    first = total(model, TARGETS).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = total(model, TARGETS)
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss.item() < first / 20
    for found, truth in zip(model.detect(batch(), Selection(score=0.5)), targets(TARGETS), strict=True):
        assert sorted(found.labels.tolist()) == sorted(truth.labels.tolist())
        for box, label in zip(truth.boxes, truth.labels, strict=True):
            assert pairwise_iou(box[None], found.boxes[found.labels == label]).max() > 0.8


@pytest.mark.parametrize("name", TREES)
def test_the_names_and_shapes_of_the_tensors_stay(name: str) -> None:
    kept = json.loads((Path(__file__).parent / "state_dicts" / f"{name}.json").read_text())
    assert {key: list(value.shape) for key, value in build(name).state_dict().items()} == kept


@pytest.mark.parametrize("name", TREES)
@torch.no_grad()
def test_folding_batch_norm_changes_no_result(name: str) -> None:
    model = build(name).eval()
    unsettle(model)
    before = model.decode(model(*model.inputs(batch())), 0.0)
    fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    after = model.decode(model(*model.inputs(batch())), 0.0)
    for column in ("count", "boxes", "scores", "labels"):
        torch.testing.assert_close(getattr(after, column), getattr(before, column), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(TREES.keys() - {"rcnn"}))  # how many crops it looks at is what the data says
def test_forward_is_the_same_after_export(name: str) -> None:
    model = build(name).eval()
    unsettle(model)
    exported = torch.export.export(model, model.inputs(batch())).module()
    with torch.no_grad():  # compared decoded, because an exported network may leave padding where another need not
        found, expected = (model.decode(network(*model.inputs(batch())), 0.0) for network in (exported, model))
    for name in ("count", "boxes", "scores", "labels"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", TREES)
def test_every_detector_is_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, and differentiated by PyTorch's compiler, but without its code in C++."""
    seen = Mock(side_effect=torch._dynamo.lookup_backend("aot_eager"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=seen))
    model, pictures = build(name), batch()
    with torch.no_grad():
        expected = model(*model.inputs(pictures))
        compile_forward(model, one_size=True)
        found = model(*model.inputs(pictures))
    assert seen.called
    for x, y in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(x, y)
