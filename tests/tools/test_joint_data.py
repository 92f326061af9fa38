"""Joint data made of real pictures: what is boxed, what is only classified, and that a detector learns from it."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from detkit.data.augment import Augment
from detkit.data.dataset import load_dataset
from detkit.data.loader import training_loader
from detkit.data.relabel import relabel
from detkit.model import build_detector, read_config

SCRIPT = Path(__file__).parents[2] / "tools" / "joint_data.py"


@pytest.fixture(scope="module")
def joint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joint")
    command = [sys.executable, SCRIPT, shared / "coco_subset", out, "--never-boxed", "giraffe", "zebra"]
    subprocess.run(command, check=True)
    return out


def test_boxes_name_groups_and_crops_name_classes(joint: Path, shared: Path) -> None:
    whole = load_dataset(shared / "coco_subset", "train2017")
    hidden = {whole.classes.index("giraffe"), whole.classes.index("zebra")}
    with_hidden = [s.id for s in whole.samples if hidden & set(s.labels.tolist())]
    assert len(with_hidden) == 10
    boxed = load_dataset(joint / "boxes.yaml", "train")
    assert {"animal", "vehicle", "person"} <= set(boxed.classes)
    assert len(boxed.classes) == 12
    assert len(boxed) == len(whole) - len(with_hidden)
    assert not {s.id for s in boxed.samples} & set(with_hidden)
    unseen = load_dataset(joint / "boxes.yaml", "unseen")
    assert len({s.id for s in unseen.samples} & set(with_hidden)) == 5
    animal = boxed.classes.index("animal")
    assert all(animal in sample.labels for sample in unseen.samples)
    crops = load_dataset(joint / "crops")
    assert {"giraffe", "zebra", "dog", "bus"} <= set(crops.classes)
    sources = {s.path.stem.split("_")[0] for s in crops.samples}
    assert not sources & {str(s.id) for s in unseen.samples}
    assert sources & {str(i) for i in with_hidden}
    assert not {"animal", "person"} & set(crops.classes)
    train = load_dataset(joint / "joint.yaml", "train")
    assert len(train) == len(boxed) + len(crops)
    assert [s.somewhere for s in train.samples] == [False] * len(boxed) + [True] * len(crops)
    assert json.loads((joint / "classes.json").read_text())["categories"][0]["name"] == "person"


def test_another_set_is_cropped_and_unseen(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "joint"
    also = [shared / "raccoon", "trainval", "test"]
    subprocess.run([sys.executable, SCRIPT, shared / "coco_subset", out, "--also", *also, "--most", "7"], check=True)
    crops = load_dataset(out / "crops")
    numbers = Counter(crops.classes[label] for sample in crops.samples for label in sample.labels.tolist())
    assert numbers["raccoon"] == numbers["dog"] == 7
    assert max(numbers.values()) == 7
    unseen, test = load_dataset(out / "joint.yaml", "unseen"), load_dataset(shared / "raccoon", "test")
    assert {unseen.classes[label] for sample in unseen.samples for label in sample.labels.tolist()} == {"animal"}
    assert [s.boxes.tolist() for s in unseen.samples] == [s.boxes.tolist() for s in test.samples]
    assert not {s.path for s in load_dataset(out / "boxes.yaml", "train").samples} & {s.path for s in test.samples}


def test_every_kind_of_picture_teaches(joint: Path) -> None:
    config = read_config("yolo9000_fasternet_coco", ["preprocess.size=[64, 64]"])
    data = relabel(load_dataset(joint / "joint.yaml", "train"), tuple(config.classes), lambda line: None)
    loader = training_loader(data, config.preprocess, Augment(), batch_size=16, seed=0)
    batch, targets = next(iter(loader))
    assert {bool(target.somewhere.any()) for target in targets} == {True, False}
    torch.manual_seed(0)
    terms = build_detector(config).train().losses(batch, targets)
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["label_classes"] > 0
    assert terms["classes"] > 0


def test_a_class_that_the_tree_lacks_is_named(shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, shared / "coco_subset", tmp_path / "out", "--never-boxed", "unicorn"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "--never-boxed: the tree of yolo9000_fasternet_coco has no class 'unicorn'" in result.stderr
    assert not (tmp_path / "out").exists()
