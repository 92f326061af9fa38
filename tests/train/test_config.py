from pathlib import Path

import pytest
import yaml

from detkit.config import shipped_configs, validate
from detkit.errors import DetkitError
from detkit.model import ModelConfig
from detkit.train.config import model_tree, read_any_train_config, read_train_config


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_can_be_trained(name: str) -> None:
    config = read_any_train_config(name)
    assert validate(type(config), config.model_dump(mode="json"), name) == config


def test_a_config_without_classes_takes_those_of_the_data(config: Path) -> None:
    assert read_train_config(config).classes == []


def test_settings_reach_every_section(config: Path) -> None:
    settings = ["train.optimizer={name: adamw, lr: 1e-3}", "augment.flip=0", "train.freeze=all_but_head"]
    read = read_train_config(config, settings)
    assert (read.train.optimizer.name, read.augment.flip, read.train.freeze) == ("adamw", 0, "all_but_head")


def test_what_is_no_config_is_told_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match=r"best.safetensors: training begins .*--weights run/best.safetensors"):
        read_any_train_config("run/best.safetensors")
    with pytest.raises(DetkitError, match=r"yolov3.cfg: .*a .cfg is only detected with"):
        read_train_config("yolov3.cfg")
    with pytest.raises(DetkitError, match=r"is a folder; `detkit train --resume .*goes on"):
        read_any_train_config(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=3", r"tiny.yaml: train: unknown key 'epoch'; did you mean 'epochs'"),
        ("augment.flop=1", "tiny.yaml: augment: unknown key 'flop'; did you mean 'flip'"),
        ("train.epochs=0", "train.epochs: .*greater than 0, got 0"),
        ("train.optimizer.betas=[0.9, 0.99]", "train.optimizer.*: unknown key 'betas'"),
        ("train.optimizer={lr: 0.1}", "train.optimizer: expected the key 'name': sgd or adamw or rmsprop, got None"),
        (
            "train.schedule={name: linear}",
            "train.schedule: expected the key 'name': cosine or step or exponential or polynomial or plateau, "
            "got 'linear'",
        ),
        ("train.warmup={epochs: 1, pictures: 100}", "train.warmup: .*not both"),
        (
            "train.freeze=head",
            "train.freeze: .*valid integer.* or input should be 'backbone' or 'all_but_head', got 'head'",
        ),
        ("train.freeze=-1", r"yaml: train.freeze: input should be greater than or equal to 0 or .*, got -1"),
        ("train.freeze=true", r"train.freeze: expected a whole number or a text, got true, .* quote a text$"),
        ("train.epochs=yes", r"yaml: train.epochs: expected a whole number, got true$"),
        ("train.ema=false", r"yaml: train.ema: expected a number or null, got false$"),
        ("train.early_stop=true", r"train.early_stop: expected a whole number or null, got true$"),
        ("train.warmup=no", r"train.warmup: expected a mapping of keys to values, got false$"),
        ("train=5", r"yaml: train: expected a mapping of keys to values, got 5$"),
        ("train.optimizer.lr=fast", r"yaml: train.optimizer.lr: input should be a valid number"),
        ("train.schedule={name: step}", r"yaml: train.schedule: the key 'milestones' is missing$"),
    ],
)
def test_mistakes_are_named(config: Path, setting: str, message: str) -> None:
    with pytest.raises(DetkitError, match=message):
        read_train_config(config, [setting])


def test_a_checkpoint_holds_the_model_alone(config: Path) -> None:
    read = read_train_config(config, ["classes=[cat, dog]"])
    tree = model_tree(read)
    assert not {"augment", "train"} & set(tree)
    assert validate(ModelConfig, tree, "checkpoint").detector == read.detector
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree
