import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from detkit.errors import DetkitError
from detkit.model import build_detector
from detkit.structures import Detections, Target
from detkit.train.callbacks import plot_history
from detkit.train.config import SGD, RMSprop, Train, TrainConfig, read_train_config
from detkit.train.module import Training, frozen_modules, parameter_groups
from detkit.train.task import Detection


@pytest.fixture(scope="module")
def options(config: Path) -> TrainConfig:
    return read_train_config(config, ["classes=[cat, dog]"])


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_curves_stand_over_whole_epochs(epochs: int) -> None:
    figure = plot_history([{"epoch": i + 1, "step": i + 1, "lr": 0.1, "xy": 1.0, "AP": 0.5} for i in range(epochs)])
    for axes in figure.axes:
        left, right = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert ticks == list(range(1, epochs + 1))


@pytest.mark.filterwarnings("error")
def test_losses_that_are_zero_are_drawn() -> None:
    row = {"epoch": 1, "step": 1, "lr": 0.1, "classes": 0.0, "top1": 1.0}
    plot_history([row]).canvas.draw()


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
    frozen = {id(p) for module in frozen_modules(detector, Train(freeze=2)) for p in module.parameters()}
    stages = detector.backbone.stages_from_picture()
    assert frozen == {id(p) for stage in stages[:2] for p in stage.parameters()}
    with pytest.raises(DetkitError, match=f"train.freeze: TimmBackbone has {len(stages)} stages to freeze, got 99"):
        frozen_modules(detector, Train(freeze=99))


def test_the_best_epoch_is_the_first_of_equal_ones_that_have_a_score(options: TrainConfig) -> None:
    training = Training(build_detector(options), options.train, Detection(options.selection, lambda: None, []))
    assert training.best is None
    for score in (None, 0.0, 0.2, None, 0.2, 0.1):
        training.history.append({"epoch": len(training.history) + 1, "AP": score})
    training.history.append({"epoch": 7})
    assert training.best is training.history[2]
    assert training.scores == [0.0, 0.2, 0.2, 0.1]


def test_of_what_is_found_little_more_is_shown_than_is_true(options: TrainConfig) -> None:
    scores = torch.linspace(0.9, 0.1, 9)
    found = [
        Detections(torch.rand(9, 4), scores * share, torch.zeros(9, dtype=torch.int64), (64, 64)) for share in (1, 0.1)
    ]
    network = SimpleNamespace(detect=lambda pictures, selection: found)
    flags = torch.zeros(2, dtype=torch.bool)
    target = Target(torch.rand(2, 4), torch.zeros(2, dtype=torch.int64), flags, flags)
    placement = SimpleNamespace(restore=lambda detections: detections)
    evaluator = SimpleNamespace(update=lambda *_: None)
    for threshold, shown in ((0.55, [4, 3]), (0.25, [5, 3]), (0.01, [5, 5])):
        task = Detection(options.selection, lambda: evaluator, [0, 1], threshold=threshold)
        task.begin()
        task.update(network, (None, [target] * 2, [placement] * 2, [0, 1]))
        assert [len(example) for _, example in task.examples] == shown
        assert f"above {threshold:g}" in task.legend


def test_rmsprop_has_its_epsilon_inside_the_root(options: TrainConfig) -> None:
    train = Train(optimizer=RMSprop(name="rmsprop", lr=0.1, decay=0.9, momentum=0.5, eps=0.01, weight_decay=0))
    training = Training(build_detector(options), train, cast("Any", None))
    optimizer = training.configure_optimizers()
    parameter = next(training.detector.parameters())
    before = parameter.detach().clone()
    for _ in range(2):
        for other in training.detector.parameters():
            other.grad = torch.full_like(other, 2)
        optimizer.step()
    squares = 0.9 + 0.1 * 4, 0.81 + 0.19 * 4  # they begin at 1
    steps = [0.1 * 2 / math.sqrt(square + 0.01) for square in squares]
    torch.testing.assert_close(before - parameter, torch.full_like(before, 1.5 * steps[0] + steps[1]))
