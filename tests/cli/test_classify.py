"""`detkit classify`, and `detkit eval` of a classifier."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit import cli
from detkit.classify.model import ClassifierConfig, build_classifier
from detkit.config import validate
from detkit.weights.checkpoint import Header, save_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A classifier that finds every picture red, green, blue in the odds 4 : 2 : 1."""
    tree = {
        "classes": ["red", "green", "blue"],
        "classifier": {"backbone": {"name": "timm/test_resnet"}},
        "preprocess": {"mode": "stretch", "size": [64, 64]},
    }
    network = build_classifier(validate(ClassifierConfig, tree, "tree"))
    tensors = network.state_dict()
    tensors["head.weight"] *= 0
    tensors["head.bias"] = torch.tensor([4.0, 2, 1]).log()
    save_checkpoint(tmp_path / "three.safetensors", tensors, Header(tree, ("red", "green", "blue"), {}))
    return tmp_path / "three.safetensors"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit` in a folder with pictures in folders by class: code, stdout, stderr."""
    for name in ("red/1", "red/2", "green/1", "violet/1"):
        (tmp_path / "colors" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "colors" / f"{name}.png")
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit_.value.code or 0), out, err

    return go


def test_a_line_of_json_for_each_picture(run: Run, checkpoint: Path) -> None:
    code, out, _ = run("classify", "colors/red", "--model", str(checkpoint), "--top", "2", "--json", "--device", "cpu")
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert first == {
        "source": "colors/red/1.png",
        "width": 40,
        "height": 30,
        "classes": [
            {"label": "red", "label_id": 0, "score": pytest.approx(4 / 7, abs=1e-4)},
            {"label": "green", "label_id": 1, "score": pytest.approx(2 / 7, abs=1e-4)},
        ],
    }
    assert second["source"] == "colors/red/2.png"


def test_a_broken_picture_among_others_is_named(run: Run, checkpoint: Path) -> None:
    Path("colors/red/3.png").write_bytes(b"no picture")
    code, out, err = run("classify", "colors/red", "--model", str(checkpoint), "--device", "cpu")
    assert code == 1
    assert out.splitlines()[0] == "colors/red/1.png: red 0.571, green 0.286, blue 0.143"
    assert len(out.splitlines()) == 2
    assert "colors/red/3.png" in err
    assert "1 of 3 sources could not be read" in err


def test_eval_measures_what_it_knows_and_names_the_rest(run: Run, checkpoint: Path) -> None:
    options = ["--task", "classify", "--data", "colors", "--device", "cpu", "--out", "found", "--json"]
    code, out, err = run("eval", "--model", str(checkpoint), *options)
    assert code == 0
    result = json.loads(out)
    assert (result["top1"], result["top5"]) == (pytest.approx(2 / 3), 1)
    assert result["val_loss"] == pytest.approx(np.log([7 / 4, 7 / 4, 7 / 2]).mean(), rel=1e-5)
    assert result["classes"]["green"] == {"pictures": 1, "top1": 0, "top5": 1}
    assert "1 of 3 classes of the data are unknown to the model: violet" in err
    assert "1 picture whose label is unknown to the model left out" in err
    files = {"metrics.json", "confusion_matrix.png", "reliability.png"}
    assert {path.name for path in Path("found").iterdir()} == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "--data", "colors", "--iou", "0.5"), "--iou is for a detector; three.safetensors is a classifier"),
        (("eval", "--data", "colors", "--metric", "voc"), "--metric is for a detector"),
        (("eval", "--data", "colors", "--task", "detect"), "--task detect: three.safetensors is a classifier"),
        (("detect", "colors/red"), "is a classifier, which finds no objects; `detkit classify` uses it"),
        (("classify", "colors/none.png"), "no such file or folder"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, checkpoint: Path, arguments, message) -> None:
    code, out, err = run(*arguments, "--model", checkpoint.name)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("train", "yolov3_tiny_coco"), ("eval", "--model", "yolov3_tiny_coco"), ("eval",)]
)
def test_a_detector_does_not_classify(run: Run, arguments) -> None:
    code, out, err = run(*arguments, "--task", "classify", "--data", "sample:shapes")
    assert (code, out) == (2, "")
    assert "is a detector; name a classifier, as `detkit models --filter classify_` lists them" in err
