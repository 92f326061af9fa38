import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from detkit.backbones import BackboneConfig
from detkit.config import shipped_configs
from detkit.data.dataset import load_dataset
from detkit.data.relabel import relabel
from detkit.detectors.yolo9000 import YOLO9000, YOLO9000Config, YOLO9000Loss
from detkit.detectors.yolov2 import YOLOv2, YOLOv2Config, YOLOv2Neck
from detkit.errors import DetkitError
from detkit.model import ModelConfig, build_detector, read_config
from detkit.ops.boxes import pairwise_iou
from detkit.ops.losses import learnable
from detkit.ops.nms import Selection
from detkit.structures import Batch, Target
from detkit.train.run import Job, train

HEIGHT, WIDTH = 96, 128
ANCHORS = [(12.0, 17.0), (34.0, 26.0), (70.0, 81.0)]
TREE = {"animal": {"dog": ["terrier", "poodle"], "cat": None}, "vehicle": ["car"]}
NAMES = ["animal", "vehicle", "dog", "cat", "car", "terrier", "poodle"]
PARENT = [None, None, 0, 0, 1, 2, 2]
SIBLINGS = [[0, 1], [0, 1], [2, 3], [2, 3], [4], [5, 6], [5, 6]]
FIELDS = 5 + len(NAMES)


def tiny(**loss) -> YOLO9000:
    torch.manual_seed(0)
    config = YOLO9000Config(
        backbone=BackboneConfig(name="darknet_tiny"),
        anchors=ANCHORS,
        neck=YOLOv2Neck(depth=2, width=16, squeeze=4),
        tree=TREE,
        loss=YOLO9000Loss(**loss),
    )
    return YOLO9000(config, len(NAMES), (HEIGHT, WIDTH)).eval()


def target(*rows: tuple[float, ...], somewhere: bool = False) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows).view(-1, 5)
    no = torch.zeros(len(rows), dtype=torch.bool)
    flags = [~no, no, ~no] if somewhere else [no, no, no]
    return Target(table[:, :4], table[:, 4].long(), *flags)


def batch(pictures: int = 2) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(pictures, 3, HEIGHT, WIDTH), torch.tensor([[HEIGHT, WIDTH]] * pictures))


BOXED = target((10, 10, 22, 25, 5), (30, 20, 110, 90, 2), (64, 32, 96, 64, 4), (3, 60, 30, 90, 0))
LABELLED = target((0, 8, 128, 88, 6), somewhere=True)


def conditional(v: list[float], label: int) -> float:
    """Pr(label | parent) of one prediction's numbers, by the softmax over its siblings."""
    return math.exp(v[5 + label]) / sum(math.exp(v[5 + other]) for other in SIBLINGS[label])


def path(label: int | None) -> list[int]:
    return [] if label is None else [label, *path(PARENT[label])]


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def predictions(raw: torch.Tensor) -> dict[tuple[int, int, int], list[float]]:
    """The numbers of each (row, column, anchor) of one picture's map."""
    grid = raw.view(len(ANCHORS), FIELDS, *raw.shape[1:])
    rows, columns = raw.shape[1:]
    return {
        (i, j, k): grid[k, :, i, j].tolist() for i in range(rows) for j in range(columns) for k in range(len(ANCHORS))
    }


def as_numbers(losses) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


def literal_label_terms(raw: torch.Tensor, box, label: int) -> dict[str, float]:
    """Section 4, "Joint classification and detection", prediction by prediction."""
    best, most = None, -1.0
    for (i, j, _), v in predictions(raw).items():
        if j * 32 < box[2] and j * 32 + 32 > box[0] and i * 32 < box[3] and i * 32 + 32 > box[1]:
            probability = sigmoid(v[4]) * math.prod(conditional(v, node) for node in path(label))
            if probability > most:
                best, most = v, probability
    missing = max(0.0, 0.3 - sigmoid(best[4]))
    classes = -sum(math.log(conditional(best, node)) for node in path(label))
    return {"label_object": 5 * missing**2 / 2, "label_classes": classes}


def test_a_label_teaches_its_path_where_it_is_most_probable() -> None:
    model = tiny()
    with torch.no_grad():
        model.head.bias.view(3, FIELDS)[:, 4] = -3  # unsure, so that the assumed IoU asks for more
    raw = model(batch(1).images).detach()[0]
    found = as_numbers(model.losses(batch(1), [LABELLED]))
    expected = literal_label_terms(raw, LABELLED.boxes[0].tolist(), 6)
    assert expected["label_object"] > 0
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    rest = {name: value for name, value in found.items() if name not in expected}
    assert rest == dict.fromkeys(("coords", "object", "no_object", "classes", "prior"), 0)


@pytest.mark.parametrize("box", [(0, 0, 32, 32), (96, 64, 128, 96), (40, 70, 41, 71)])
def test_a_label_is_looked_for_in_its_part_of_the_canvas(box) -> None:
    model = tiny()
    raw = model(batch(1).images).detach()[0]
    found = as_numbers(model.losses(batch(1), [target((*box, 3), somewhere=True)]))
    expected = literal_label_terms(raw, box, 3)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["no_object"] > 0  # beyond its part there is nothing


def test_who_is_sure_enough_learns_classes_only() -> None:
    model = tiny()
    raw = torch.zeros(1, 3 * FIELDS, 3, 4, requires_grad=True)
    with torch.no_grad():
        raw.view(3, FIELDS, 3, 4)[1, 4, 2, 3] = 1
    model.forward = lambda images: raw
    sum(model.losses(batch(1), [LABELLED]).values()).backward()
    gradient = raw.grad.view(3, FIELDS, 3, 4)
    own = torch.zeros(FIELDS)
    own[5:] = torch.tensor([0.5 - 1, 0.5, 0.5 - 1, 0.5, 0, 0.5, 0.5 - 1])  # a poodle is a dog is an animal
    torch.testing.assert_close(gradient[1, :, 2, 3], own)
    assert gradient.abs().sum() == own.abs().sum()


def test_boxes_teach_as_in_yolov2_but_for_the_classes() -> None:
    model, plain = tiny(), YOLOv2Config(
        backbone=BackboneConfig(name="darknet_tiny"), anchors=ANCHORS, neck=YOLOv2Neck(depth=2, width=16, squeeze=4)
    )  # fmt: skip
    yolov2 = YOLOv2(plain, len(NAMES), (HEIGHT, WIDTH)).eval()
    yolov2.load_state_dict(model.state_dict())
    found, same = (as_numbers(m.losses(batch(), [BOXED, target()])) for m in (model, yolov2))
    assert {name: found[name] for name in same if name != "classes"} == {
        n: x for n, x in same.items() if n != "classes"
    }
    assert found["label_object"] == found["label_classes"] == 0
    objects, place = model._assign(learnable([BOXED]), 3, 4)
    grid = predictions(model(batch().images)[0])
    expected = 0.0
    for label, (_, row, column, anchor) in zip(objects.labels.tolist(), place.T.tolist(), strict=True):
        expected -= sum(math.log(conditional(grid[row, column, anchor], node)) for node in path(label))
    assert found["classes"] == pytest.approx(expected / 2, rel=1e-4)


def test_terms_are_means_over_all_pictures() -> None:
    model = tiny()
    apart = [as_numbers(model.losses(Batch(batch().images[i : i + 1], batch().sizes[:1]), [t]))
             for i, t in enumerate((BOXED, LABELLED))]  # fmt: skip
    together = as_numbers(model.losses(batch(), [BOXED, LABELLED]))
    assert together == pytest.approx({name: (apart[0][name] + apart[1][name]) / 2 for name in together}, rel=1e-4)


def test_detecting_walks_down_the_tree() -> None:
    model = tiny()
    raw = torch.full((1, 3 * FIELDS, 3, 4), -9.0)
    one, two = (raw.view(3, FIELDS, 3, 4)[k, :, 1, 2] for k in (0, 2))
    one[:] = torch.tensor([0, 0, 0, 0, 2, 3, 0, 2, 0, 0, 3, 0])  # a terrier
    two[:] = torch.tensor([0, 0, 0, 0, 2, 3, 0, 2, 0, 0, 0.1, 0])  # a dog, but which?
    found = model.decode(raw, 0.1).detections([(HEIGHT, WIDTH)])[0]
    assert [NAMES[label] for label in found.labels] == ["terrier", "dog"]
    dog = sigmoid(2) * sigmoid(3) * sigmoid(2)
    assert found.scores.tolist() == pytest.approx([dog * sigmoid(3), dog], rel=1e-5)
    x, y = 2.5 * 32, 1.5 * 32
    assert found.boxes[0].tolist() == pytest.approx([x - 6, y - 8.5, x + 6, y + 8.5])
    assert len(model.decode(raw, 0.72).detections([(HEIGHT, WIDTH)])[0]) == 1
    model.tree_threshold = 0
    assert [NAMES[x] for x in model.decode(raw, 0.1).labels[0]] == ["terrier", "terrier"]
    model.forward = lambda images: raw
    # Where animals and cats are asked for, both boxes are animals, and cats to some degree.
    asked = model.detect(batch(1), Selection(score=0.001, iou=1, labels=(0, 3)))[0]
    assert sorted(asked.labels.tolist()) == [0, 0, 3, 3]
    animal, cat = sigmoid(2) * sigmoid(3), sigmoid(2) * sigmoid(3) * sigmoid(-2)
    assert asked.scores.tolist() == pytest.approx([animal] * 2 + [cat] * 2, rel=1e-5)
    assert model.detect(batch(1), Selection(score=0.1))[0].labels.tolist() == [5, 5]


def test_what_finds_nothing_finds_nothing() -> None:
    model = tiny()
    raw = torch.full((2, 3 * FIELDS, 3, 4), -9.0)
    assert model.decode(raw, 0.5).count.tolist() == [0, 0]
    assert model.candidates(raw, Selection(labels=(1,))).count.tolist() == [0, 0]


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("yolo9000_")])
def test_every_parameter_learns(name) -> None:
    model = build_detector(read_config(name, ["preprocess.size=[64, 64]"])).train()
    for p in model.parameters():
        if not p.any():  # a residual branch that starts as nothing teaches nothing in the first step
            nn.init.ones_(p)
    pictures = Batch(torch.rand(3, 3, 64, 64), torch.tensor([[64, 64]] * 3))
    boxes = target((3, 3, 20, 16, 0), (3, 3, 60, 60, 1), (10, 10, 40, 30, 2), (1, 1, 12, 14, 3))
    label = target((0, 0, 64, 64, model.num_classes - 1), somewhere=True)
    sum(model.losses(pictures, [boxes, boxes, label]).values()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_forward_is_the_same_after_export() -> None:
    model = tiny()
    exported = torch.export.export(model, (batch().images,)).module()
    torch.testing.assert_close(exported(batch().images), model(batch().images))


# ----------------------------------------------------------------------------------------------------------------------
# Configuration


def tree_of_config(**detector) -> dict:
    anchors = [list(anchor) for anchor in ANCHORS]
    detector = {"name": "yolo9000", "backbone": {"name": "darknet_tiny"}, "anchors": anchors, "tree": TREE} | detector
    return {"classes": [], "detector": detector, "preprocess": {"size": [96, 96]}}


def test_the_tree_names_the_classes_and_survives_a_checkpoint() -> None:
    config = ModelConfig.model_validate(tree_of_config())
    assert config.classes == NAMES
    again = ModelConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)))
    assert again == config
    assert list(again.detector.tree) == NAMES
    assert build_detector(again).tree.group.tolist() == build_detector(config).tree.group.tolist()
    with pytest.raises(ValueError, match="the detector names its classes itself"):
        ModelConfig.model_validate(tree_of_config() | {"classes": ["dog"]})


def test_darknets_files_make_the_tree(tmp_path: Path) -> None:
    file = tmp_path / "9k.tree"
    file.write_text("n1 -1\nn2 -1\nn3 0\nn4 0\n")
    file.with_suffix(".names").write_text("animal\nvehicle\ndog\ncat\n")
    config = ModelConfig.model_validate(tree_of_config(tree=str(file)))
    assert config.classes == ["animal", "vehicle", "dog", "cat"]
    # The released yolo9000.cfg: no layer between Darknet-19 and its head of 28269 channels.
    wordnet = tree_of_config(neck={"depth": 0, "passthrough": False}, backbone={"name": "darknet19"})
    names = ["physical object", *(f"n{i}" for i in range(9417))]
    wordnet["detector"] |= {"tree": {names[0]: names[1:]}, "anchors": [[24.9, 36.5], [96.2, 138], [295.3, 311.7]]}
    with torch.device("meta"):
        model = build_detector(ModelConfig.model_validate(wordnet))
    layers = list(model.darknet_layers())
    assert (len(layers), layers[-1].out_channels) == (19, 28_269)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ({"tree": {"animal": ["dog", "dog"]}}, "'dog' stands twice"),
        ({"tree": {"a": "b", "b": "a"}}, "label 0 is below itself"),
        ({"tree": "none.tree"}, r"none\.tree: cannot be read"),
        ({"tree_threshold": 1}, "less than 1"),
    ],
)
def test_trees_that_cannot_be_are_named(detector, message) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(tree_of_config(**detector))


# ----------------------------------------------------------------------------------------------------------------------
# Joint training

SHAPES = {"round": ["circle", "ring"], "edged": ["cross", "square", "star", "triangle"]}
CONFIG = """\
# YOLO9000 on timm's smallest network, for tests.
classes: []
detector:
  name: yolo9000
  backbone: {name: timm/test_resnet}
  anchors: [[16, 16], [36, 36], [64, 64]]
  neck: {depth: 2, width: 64}
  tree: {round: [circle, ring], edged: [cross, square, star, triangle]}
preprocess: {mode: letterbox, size: [96, 96]}
augment: {scale: [0.8, 1.2], mosaic: 0.3}
train:
  epochs: 1
  batch_size: 8
  workers: 0
"""


def joint_data(folder: Path) -> Path:
    """Shapes with boxes, and crops of rings that have a label only."""
    for sample in load_dataset("sample:shapes?pictures=12&size=96", "test").samples:
        for i in np.flatnonzero(sample.labels == 2):
            x1, y1, x2, y2 = sample.boxes[i].astype(int).tolist()
            (folder / "crops" / "ring").mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.read()[y1:y2, x1:x2]).save(folder / "crops" / "ring" / f"{sample.id}_{i}.png")
    shapes = {"data": "sample:shapes?pictures=12&size=96"}
    splits = {"train": [shapes | {"split": "train"}, {"data": "crops"}], "val": [shapes | {"split": "val"}]}
    (folder / "joint.yaml").write_text(yaml.safe_dump({"format": "join", "splits": splits}))
    return folder / "joint.yaml"


def test_the_ordinary_trainer_learns_from_both_kinds_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    result = train(tmp_path / "tiny.yaml", Job(str(joint_data(tmp_path)), device="cpu"), out=tmp_path / "run")
    assert result is not None
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert float(row["label_classes"]) > 0
    assert float(row["coords"]) > 0
    assert row["AP"]  # of the six classes with boxes, whose parents the data do not know


def test_pictures_whose_label_the_tree_lacks_are_left_out(tmp_path: Path) -> None:
    file = joint_data(tmp_path)
    (tmp_path / "crops" / "ring").rename(tmp_path / "crops" / "pebble")
    data, lines = load_dataset(file, "train"), []
    left = relabel(data, ("round", "edged", "circle", "cross", "square", "star", "triangle"), lines.append)
    assert len(left) == 12
    assert lines[-1] == f"{len(data) - 12} pictures whose label is unknown to the model left out"


def test_wrong_classes_are_refused() -> None:
    config = YOLO9000Config(backbone=BackboneConfig(name="darknet_tiny"), anchors=ANCHORS, tree=TREE)
    with pytest.raises(DetkitError, match="the tree has 7 names, the model 3 classes"):
        YOLO9000(config, 3, (96, 96))


# One thing on a noisy ground. Boxes say only `round` or `edged`, and there is none of a ring; labels say what it is.
THINGS = ["round", "edged", "disc", "ring", "square", "cross"]
FAMILY = {2: 0, 3: 0, 4: 1, 5: 1}


def paint(rng: np.random.Generator, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture [3, 64, 64] and the box [1, 4] of what is in it."""
    pixels = rng.integers(60, 110, (64, 64, 3)).astype(np.uint8)
    r = int(rng.integers(9, 15))
    x, y = rng.integers(r + 1, 63 - r, 2).tolist()
    color = rng.integers(150, 255, 3).tolist()
    if label == 2:
        cv2.circle(pixels, (x, y), r, color, -1)
    elif label == 3:
        cv2.circle(pixels, (x, y), r - 3, color, 6)
    elif label == 4:
        cv2.rectangle(pixels, (x - r, y - r), (x + r, y + r), color, -1)
    else:
        cv2.line(pixels, (x - r + 2, y), (x + r - 2, y), color, 5)
        cv2.line(pixels, (x, y - r + 2), (x, y + r - 2), color, 5)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255, torch.tensor([[x - r, y - r, x + r + 1.0, y + r + 1]])


def mixed_batch(rng: np.random.Generator) -> tuple[Batch, list[Target]]:
    pictures, targets = [], []
    for label in rng.choice([2, 4, 5], 10).tolist():
        pixels, box = paint(rng, label)
        pictures.append(pixels)
        targets.append(target((*box[0].tolist(), FAMILY[label])))
    for label in rng.choice([2, 3, 4, 5], 6).tolist():
        pictures.append(paint(rng, label)[0])
        targets.append(target((0, 0, 64, 64, label), somewhere=True))
    return Batch(torch.stack(pictures), torch.full((16, 2), 64)), targets


@pytest.mark.slow
def test_a_class_that_never_had_a_box_is_detected_under_its_parent() -> None:
    torch.manual_seed(0)
    config = YOLO9000Config(
        backbone=BackboneConfig(name="timm/test_resnet"),
        anchors=[(18, 18), (24, 24), (29, 29)],
        neck=YOLOv2Neck(depth=2, width=64, squeeze=32),
        tree={"round": ["disc", "ring"], "edged": ["square", "cross"]},
    )
    model = YOLO9000(config, len(THINGS), (64, 64)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 500)
    rng = np.random.default_rng(0)
    for _ in range(500):
        optimizer.zero_grad()
        sum(model.losses(*mixed_batch(rng)).values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    others = np.random.default_rng(1)
    rings = [paint(others, THINGS.index("ring")) for _ in range(40)]
    pictures = Batch(torch.stack([pixels for pixels, _ in rings]), torch.full((40, 2), 64))
    found = model.detect(pictures, Selection(score=0.25))
    names = [
        [THINGS[label] for label in detections.labels[pairwise_iou(box, detections.boxes)[0] > 0.5]]
        for detections, (_, box) in zip(found, rings, strict=True)
    ]
    assert sum(bool({"round", "disc", "ring"} & set(each)) for each in names) >= 20
    assert sum("ring" in each for each in names) >= 8
    asked = model.detect(pictures, Selection(score=0.25, labels=(THINGS.index("round"),)))
    boxes = [pairwise_iou(box, one.boxes)[0] > 0.5 for one, (_, box) in zip(asked, rings, strict=True)]
    assert sum(bool(hit.any()) for hit in boxes) >= 20
