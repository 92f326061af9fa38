from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detkit
from detkit.config import find_config, override
from detkit.data.names import class_names
from detkit.errors import DetkitError
from detkit.model import DEFAULT, ModelConfig, build_detector, load
from detkit.weights.checkpoint import Header, read_tensors, save_checkpoint

TREE: dict[str, Any] = {
    "classes": ["cat", "dog"],
    "detector": {
        "name": "yolov3",
        "backbone": {"name": "darknet_tiny"},
        "levels": [
            {"stride": 16, "anchors": [[10, 14]], "width": 8, "depth": 0},
            {"stride": 32, "anchors": [[60, 60]], "width": 8, "depth": 1},
        ],
    },
    "preprocess": {"size": [64, 96]},
    "selection": {"score": 0.1},
}


def write(path: Path, settings: tuple[str, ...] = (), header: dict[str, Any] | None = None) -> Path:
    """A checkpoint of the tree with settings; `header` is what it says of itself instead."""
    tree = override(TREE, settings)
    torch.manual_seed(0)
    detector = build_detector(ModelConfig.model_validate(tree))
    save_checkpoint(path, detector.state_dict(), Header(header or tree, tuple((header or tree)["classes"]), {}))
    return path


def config_file(path: Path, tree: dict[str, Any] = TREE) -> str:
    path.write_text(ModelConfig.model_validate(tree).model_dump_json())  # JSON is YAML
    return str(path)


def picture(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_checkpoint_detects_in_the_pictures_pixels(tmp_path: Path) -> None:
    model = detkit.load(write(tmp_path / "m.safetensors"), device="cpu")
    assert (model.classes, model.name, model.selection.score) == (("cat", "dog"), "m", 0.1)
    found = model(picture())
    assert len(found) > 0
    assert found.size == (50, 70)
    assert (found.boxes.amax(0) <= torch.tensor([70, 50, 70, 50])).all()
    assert found.boxes.min() >= 0
    alone = model.predict([picture(), picture(20, 90)])
    torch.testing.assert_close(alone[0].boxes, found.boxes, atol=1e-3, rtol=1e-4)


def test_pictures_by_path_and_by_name(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.safetensors"), device="cpu")
    assert model("sample:astronaut").size == (512, 512)
    with pytest.raises(DetkitError, match=r"none\.jpg"):
        model(tmp_path / "none.jpg")


@pytest.mark.parametrize("change", [picture()[..., ::-1], picture()[:, ::-1], picture(64, 96)[..., ::-1]])
@pytest.mark.parametrize("interpolation", ["linear", "darknet"])
def test_views_of_pictures_are_pictures(tmp_path: Path, change: np.ndarray, interpolation: str) -> None:
    path = write(tmp_path / "m.safetensors", (f"preprocess.interpolation={interpolation}",))
    model = load(path, device="cpu")
    frozen = change.copy()
    frozen.flags.writeable = False
    assert torch.equal(model(change).boxes, model(frozen).boxes)


@pytest.mark.parametrize(
    "wrong",
    [picture()[..., 0], picture().astype(np.float32) / 255, np.zeros((0, 5, 3), np.uint8), picture()[..., :2], None],
)
def test_what_is_no_picture_is_named(tmp_path: Path, wrong: Any) -> None:
    model = load(write(tmp_path / "m.safetensors"), device="cpu")
    with pytest.raises(DetkitError, match=r"a picture must be .*\[height, width, 3\]"):
        model(wrong)


def test_lower_precision_finds_nearly_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors")
    full, low = (load(path, device="cpu", precision=p)(picture()) for p in ("fp32", "bf16"))
    assert low.scores.dtype == torch.float32
    torch.testing.assert_close(low.scores[:5], full.scores[:5], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("setting", "key"),
    [("classes=[cat, cow]", "classes"), ("detector.levels.0.anchors=[[9, 9]]", "levels")],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, setting: str, key: str) -> None:
    other = write(tmp_path / "other.safetensors", (setting,))
    with pytest.raises(DetkitError, match=f"checkpoint of another model, whose '{key}' is not that of"):
        load(config_file(tmp_path / "c.yaml"), other)
    same = write(tmp_path / "same.safetensors", ("detector.loss.ignore_iou=0.7",))
    assert load(config_file(tmp_path / "c.yaml"), same, device="cpu").name == "c"


def test_a_checkpoint_needs_no_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors")
    with pytest.raises(DetkitError, match="a checkpoint holds its weights"):
        load(path, path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (TREE | {"classes": ["a", "b", "c"]}, "is not of this model: heads.0.weight has shape"),
        (TREE | {"detector": TREE["detector"] | {"name": "yolov4"}}, "unknown detector 'yolov4'"),
        (override(TREE, ["detector.levels.0.width=1000000000"]), "cannot be built with these sizes"),
    ],
)
def test_a_header_that_lies_is_one_sentence(tmp_path: Path, header: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "m.safetensors", header=header)
    with pytest.raises(DetkitError, match=message) as error:
        load(path, device="cpu")
    assert "\n" not in str(error.value)


def test_what_is_loaded_from_a_file_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Darknet's body has nothing to download, so that to ask for it is an error: if loading asked, it would raise.
    tree = override(TREE, ["detector.backbone.pretrained=true"])
    with pytest.raises(DetkitError, match="no weights to download"):
        build_detector(ModelConfig.model_validate(tree))
    path = write(tmp_path / "m.safetensors", header=tree)
    assert load(path, device="cpu").classes == ("cat", "dog")
    assert load(config_file(tmp_path / "c.yaml", tree), path, device="cpu").classes == ("cat", "dog")


def test_resize_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", ("preprocess={mode: shortest_edge, size: [64, 96]}",))
    assert load(path, resize="stretch", device="cpu").preprocess.mode == "stretch"
    odd = write(tmp_path / "odd.safetensors", ("preprocess={mode: shortest_edge, size: [64, 96], divisor: 64}",))
    with pytest.raises(DetkitError, match=r"--resize letterbox: size .* must be multiples of the divisor 64"):
        load(odd, resize="letterbox", device="cpu")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x", "cpu:7x"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(DetkitError, match=f"--device {device}: "):
        load(write(tmp_path / "m.safetensors"), device=device)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors")
    tensors = read_tensors(path)
    tensors["heads.0.bias"][3] = float("nan")
    save_checkpoint(path, tensors, Header(TREE, tuple(TREE["classes"]), {}))
    with pytest.raises(DetkitError, match=r"m\.safetensors: .* not finite, first in heads.0.bias"):
        load(path, device="cpu")


def test_no_pictures_no_detections(tmp_path: Path) -> None:
    assert load(write(tmp_path / "m.safetensors"), device="cpu").predict([]) == []


def test_an_unknown_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="precision 'fp8': expected fp32, bf16, fp16"):
        load(write(tmp_path / "m.safetensors"), precision="fp8")  # type: ignore[arg-type]


def test_weights_in_place_of_a_model_say_what_to_do() -> None:
    with pytest.raises(DetkitError, match=r"x\.pt: weights do not say .* --weights"):
        load("x.pt")


def test_weights_beside_a_config_are_its_own(tmp_path: Path) -> None:
    config = config_file(tmp_path / "net.yaml")
    with pytest.raises(DetkitError, match="is a config without weights"):
        load(config)
    write(tmp_path / "net.safetensors")
    found, expected = (load(name, device="cpu")(picture()) for name in (config, tmp_path / "net.safetensors"))
    assert len(found) > 0
    torch.testing.assert_close(found.boxes, expected.boxes)


def test_the_default_model_is_small_and_knows_coco() -> None:
    model = load(device="cpu")
    assert model.name == DEFAULT
    assert model.classes == class_names("coco")
    assert find_config(DEFAULT).with_suffix(".safetensors").stat().st_size < 8e6
