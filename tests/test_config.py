from pathlib import Path

import pytest
import torch

from detkit.classify.model import ClassifierConfig, build_classifier, is_classifier, read_classifier_config
from detkit.config import find_config, override, read_yaml, shipped_configs, validate
from detkit.errors import DetkitError
from detkit.model import ModelConfig, build_detector, read_config

NAME = "yolov3_tiny_coco"


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_builds(name) -> None:
    config: ModelConfig | ClassifierConfig
    if is_classifier(name):
        config = read_classifier_config(name, ["classes=coco"])
        with torch.device("meta"):
            network = build_classifier(config)
    else:
        config = read_config(name)
        with torch.device("meta"):
            network = build_detector(config)
    assert sum(p.numel() for p in network.parameters()) > 60_000  # the least is LeNet-5
    assert validate(type(config), config.model_dump(mode="json"), name) == config
    folder = find_config(name).parent.name
    assert name.startswith(folder + "_")
    assert find_config(name).read_text().startswith("#")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["detector.levls=1"], "detector: unknown key 'levls'; did you mean 'levels'?"),
        (["preprocess.sise=[32, 32]"], "preprocess: unknown key 'sise'; did you mean 'size'?"),
        (["selection.score=high"], "selection.score: input should be a valid number"),
        (["selection.score=2"], "selection.score: input should be less than or equal to 1, got 2"),
        (["detector=5"], "detector: expected a mapping of keys to values, got 5"),
        (["detector={}"], "detector: the key 'name' is missing"),
        (["detector={name: yolov3}"], "detector: the key 'backbone' is missing"),
        (["classes=5"], "classes: expected the name of a list (coco, voc) or a list of class names"),
        (["classes=cocoo"], "classes: no list of class names is called 'cocoo'; did you mean 'coco'"),
        (["classes=[a, a]"], "classes: the class name 'a' stands twice"),
        (["selection.sigma=.inf"], "selection.sigma: input should be a finite number"),
        (["detector.loss.weights.clases=2"], "detector.loss.weights: unknown key 'clases'; did you mean 'classes'?"),
        (["detector.name=yolo3"], "did you mean 'yolov3'"),
        (["detector.levels.0.anchors=[]"], "detector.levels.0.anchors: list should have at least 1 item"),
        (["detector.levels.0.depth=2"], "depth of stride 16 must be odd or 0, got 2"),
        (["detector.levels.7.depth=2"], "expected an index below 2 in place of '7'"),
        (["selection"], "--set selection: expected key.subkey=value"),
        (["selection.score.x=1"], "selection.score is a value and has no keys"),
        (["selection=[1"], "is not valid YAML"),
        (["preprocess.mode=center_crop"], "preprocess.mode: center_crop cuts objects off, it is for classifiers"),
        (["preprocess.size=[400, 416]"], "size [400, 416] must be multiples of the divisor 32"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(settings, message) -> None:
    with pytest.raises(DetkitError) as error:
        read_config(NAME, settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_leave_the_tree_alone() -> None:
    tree = {"a": {"b": 1}, "c": [{"d": 2}]}
    assert override(tree, ["a.b=2", "c.0.d=[1, x]", "e.f=true"]) == {
        "a": {"b": 2}, "c": [{"d": [1, "x"]}], "e": {"f": True}
    }  # fmt: skip
    assert tree == {"a": {"b": 1}, "c": [{"d": 2}]}


def test_an_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(DetkitError, match=r"`detkit train` lists.*; did you mean 'yolov3_tiny_coco'") as told:
        find_config("yolov3_tiny_coc")
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "line 1: is not valid YAML"),
        (b"- 1\n", "expected a mapping"),
        (b"a: 1\nb: 2\na: 3\n", "line 3: .* the key 'a' stands twice"),
        (b"a: 2001-99-99", "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"", "expected a mapping"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content, message) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(DetkitError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
