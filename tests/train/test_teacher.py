from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import normalize

from detkit.data.names import CLASS_LISTS
from detkit.errors import DetkitError
from detkit.model import build_detector, load
from detkit.train.config import ClassifierTrainConfig, TrainConfig
from detkit.train.module import Training
from detkit.train.task import Detection
from detkit.train.teacher import load_classifier_teacher, load_teacher
from detkit.weights.checkpoint import Header, save_checkpoint

LEVELS = [
    {"stride": 16, "anchors": [[12, 18], [37, 49], [52, 132]], "width": 16, "depth": 0},
    {"stride": 32, "anchors": [[115, 73], [119, 199], [242, 238]], "width": 16, "depth": 1},
]


def config(teacher: Path, classes=("cat", "dog"), levels=LEVELS) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "classes": list(classes),
            "detector": {"name": "yolov3", "backbone": {"name": "darknet_tiny"}, "levels": levels},
            "preprocess": {"size": [64, 96]},
            "train": {"teacher": {"model": str(teacher)}},
        }
    )


def save_teacher(path: Path, classes=("cat", "dog"), levels=LEVELS) -> Path:
    of_teacher = config(path, classes, levels)
    torch.manual_seed(7)
    detector = build_detector(of_teacher)
    tree = of_teacher.model_dump(mode="json", include={"classes", "detector", "preprocess", "selection"})
    save_checkpoint(path, detector.state_dict(), Header(tree, tuple(classes), {}))
    return path


def test_without_a_teacher_there_are_no_maps(tmp_path: Path) -> None:
    alone = config(tmp_path).model_copy(update={"train": config(tmp_path).train.model_copy(update={"teacher": None})})
    assert load_teacher(alone, build_detector(alone)) is None


def test_maps_are_the_teachers_with_classes_in_the_students_order(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher.safetensors", ("dog", "cat"))
    options = config(teacher)
    maps = load_teacher(options, build_detector(options))
    pictures = torch.rand(2, 3, 64, 96)
    raw = load(teacher, device="cpu").detector(pictures)
    for found, own in zip(maps(pictures), raw, strict=True):
        assert not found.requires_grad
        own = own.view(2, 3, 7, *own.shape[2:])
        torch.testing.assert_close(found.view_as(own), own[:, :, [0, 1, 2, 3, 4, 6, 5]])


def test_a_darknet_network_teaches_finest_level_first(shared: Path) -> None:
    cfg = shared / "weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg"
    options = config(cfg, CLASS_LISTS["coco"])
    found = load_teacher(options, build_detector(options))(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape) for x in found] == [(1, 255, 4, 6), (1, 255, 2, 3)]


@pytest.mark.parametrize(
    ("classes", "levels", "message"),
    [
        (("cat", "cow"), LEVELS, "other classes than the student"),
        (("cat", "dog", "cow"), LEVELS, "other classes than the student"),
        (("cat", "dog"), [LEVELS[0] | {"anchors": [[1, 1]] * 3}, LEVELS[1]], "other levels or anchors"),
        (("cat", "dog"), LEVELS[1:], "other levels or anchors"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(tmp_path: Path, classes, levels, message) -> None:
    options = config(save_teacher(tmp_path / "teacher.safetensors", classes, levels))
    with pytest.raises(DetkitError, match=message):
        load_teacher(options, build_detector(options))


def test_the_teachers_weights_are_no_part_of_the_run(tmp_path: Path) -> None:
    options = config(save_teacher(tmp_path / "teacher.safetensors"))
    detector = build_detector(options)
    task = Detection(options.selection, lambda: None, [], load_teacher(options, detector))
    training = Training(detector, options.train, task)
    names = {name.split(".")[0] for name in training.state_dict()}
    assert names == {"detector", "average"}


def classifier_config(size: int = 64, **distillation: str) -> ClassifierTrainConfig:
    return ClassifierTrainConfig.model_validate(
        {
            "classes": ["cat", "dog"],
            "classifier": {"backbone": {"name": "timm/test_resnet"}},
            "preprocess": {"mode": "stretch", "size": [size, size]},
            "train": {"distillation": distillation},
        }
    )


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_any_classifier_of_timms_is_a_teacher(tmp_path: Path, suffix: str) -> None:
    network = timm.create_model("test_resnet", num_classes=2).eval()
    file = tmp_path / f"teacher.{suffix}"
    if suffix == "pth":
        torch.save({"model": network.state_dict()}, file)
    else:
        save_file(network.state_dict(), file)
    scores = load_classifier_teacher(classifier_config(model="timm/test_resnet", weights=str(file)))
    assert scores is not None
    pictures = torch.rand(2, 3, 64, 64)
    own = network.pretrained_cfg
    with torch.no_grad():
        expected = network(normalize(pictures, list(own["mean"]), list(own["std"])))
    given = scores(pictures)
    torch.testing.assert_close(given, expected)
    assert not given.requires_grad


@pytest.mark.parametrize(
    ("model", "classes", "size", "message"),
    [
        ("timm/test_resnt", 2, 64, r"distillation\.model: timm has no model 'test_resnt'; did you mean 'test_resnet"),
        ("timm/test_resnet", 5, 64, "tells 5 classes apart, the student 2"),
        (
            "timm/deit_tiny_patch16_224",
            2,
            64,
            r"distillation\.model: timm/deit_tiny_patch16_224 takes no pictures of 64×64 \(Input height",
        ),
        ("timm/test_resnet", None, 64, r"distillation\.weights: timm/test_resnet needs a file that holds its weights"),
    ],
)
def test_a_teacher_of_timms_that_does_not_fit_is_refused(
    tmp_path: Path, model: str, classes: int | None, size: int, message: str
) -> None:
    given = {"model": model}
    if classes is not None:
        name = "test_resnet" if "resnt" in model else model.removeprefix("timm/")
        torch.save(timm.create_model(name, num_classes=classes).state_dict(), tmp_path / "teacher.pth")
        given["weights"] = str(tmp_path / "teacher.pth")
    with pytest.raises(DetkitError, match=message):
        load_classifier_teacher(classifier_config(size, **given))
