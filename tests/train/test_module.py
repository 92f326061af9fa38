from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.errors import DetkitError
from detkit.model import build_detector
from detkit.preprocess import Placement
from detkit.structures import Detections
from detkit.train.config import SGD, Train, TrainConfig, read_train_config
from detkit.train.module import frozen_modules, parameter_groups, to_picture


@pytest.fixture(scope="module")
def options(config: Path) -> TrainConfig:
    return read_train_config(config, ["classes=[cat, dog]"])


def test_weight_decay_and_rate_by_parameter(options: TrainConfig) -> None:
    detector = build_detector(options)
    train = Train(optimizer=SGD(name="sgd", weight_decay=0.1), backbone_lr_factor=0.5)
    groups = parameter_groups(detector, train)
    kind = {
        id(parameter): (group["lr_factor"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }
    assert len(kind) == sum(len(group["params"]) for group in groups) == len(list(detector.parameters()))
    for name, module in detector.named_modules():
        factor = 0.5 if name.startswith("backbone.") else 1
        for parameter_name, parameter in module.named_parameters(recurse=False):
            decays = isinstance(module, nn.Conv2d) and parameter_name == "weight"
            assert kind[id(parameter)] == (factor, 0.1 if decays else 0), f"{name}.{parameter_name}"


def test_what_does_not_learn(options: TrainConfig) -> None:
    detector = build_detector(options)
    assert frozen_modules(detector, Train()) == []
    assert frozen_modules(detector, Train(freeze="backbone")) == [detector.backbone]
    assert frozen_modules(detector, Train(freeze="all_but_head")) == [detector.backbone, detector.neck]
    norms = frozen_modules(detector, Train(frozen_batch_norm=True))
    assert norms
    assert norms == [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]


def test_stages_are_frozen_from_the_picture_on(options: TrainConfig) -> None:
    detector = build_detector(options)
    stages = list(detector.backbone.model.children())
    detector.backbone.parts = lambda: stages
    assert frozen_modules(detector, Train(freeze=2)) == stages[:2]
    with pytest.raises(DetkitError, match=f"train.freeze: TimmBackbone has {len(stages)} stages to freeze, got 99"):
        frozen_modules(detector, Train(freeze=99))


def test_detections_go_back_to_the_picture_and_the_margin_is_left_out() -> None:
    boxes = torch.tensor([[10.0, 30.0, 50.0, 60.0], [0.0, 0.0, 100.0, 20.0]])  # the second is in the margin above
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), (100, 100))
    placed = to_picture(found, Placement((100, 200), (50, 100), (25, 0)))
    assert placed.boxes.tolist() == [[20.0, 10.0, 100.0, 70.0]]
    assert (placed.labels.tolist(), placed.size) == ([1], (100, 200))
