"""A classifier is trained by the same code: from folders and from crops, resumed, as a teacher, as a backbone."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.classify.model import load_classifier, read_classifier
from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError
from detkit.evaluate.classify import evaluate_classifier
from detkit.train.config import ClassifierTrainConfig, read_any_train_config, read_train_config
from detkit.train.module import parameter_groups
from detkit.train.run import Job, Trained, _load_data, resume, train
from detkit.weights.checkpoint import read_header, read_tensors

CONFIG = """\
# timm's smallest network as a classifier, for tests.
classifier: {backbone: {name: timm/test_resnet}}
preprocess: {mode: stretch, size: [64, 64], interpolation: area}
augment: {area: [0.5, 1]}
train:
  epochs: 2
  batch_size: 16
  workers: 0
  optimizer: {name: adamw, lr: 0.003}
  label_smoothing: 0.1
  mixup: 0.2
  cutmix: 1
  ema: 0.9
"""


@pytest.fixture(scope="module")
def classifier_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny_classifier.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def trained(classifier_config: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    result = train(classifier_config, Job(data, device="cpu"), out=tmp_path_factory.mktemp("runs") / "crops")
    assert result is not None
    return result


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures of two colours, in folders."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("val", 6)):
        for color, channel in (("blue", 0), ("red", 2)):
            (tmp_path / "colors" / split / color).mkdir(parents=True)
            for i in range(number):
                picture = rng.integers(0, 60, (64, 64, 3), np.uint8)
                picture[..., channel] += 160
                cv2.imwrite(str(tmp_path / "colors" / split / color / f"{i}.png"), picture)
    return tmp_path / "colors"


def test_a_class_with_nothing_to_learn_from_is_named(classifier_config: Path, folders: Path) -> None:
    (folders / "val" / "red").rename(folders / "val" / "purple")
    said: list[str] = []
    _load_data(Job(str(folders)), read_any_train_config(classifier_config), said.append)
    assert [line for line in said if "nothing to learn" in line] == [
        "classes with nothing to learn from, 1 of 3: 'purple'"
    ]


def test_the_run_folder_is_as_a_detectors(trained: Trained) -> None:
    folder = trained.folder
    assert {path.name for path in folder.iterdir()} == {
        "best.safetensors", "config.yaml", "curves.png", "first_batches.png", "last.safetensors", "metrics.csv",
        "resume.pt", "tensorboard", "validation_predictions.png",
    }  # fmt: skip
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "step", "lr", "classes", "top1", "top5", "val_loss", "ece"]
    assert trained.best is not None
    assert trained.best["top1"] == max(float(row["top1"]) for row in rows)
    header = read_header(folder / "last.safetensors")
    assert set(header.config) == {"classes", "classifier", "preprocess", "crops"}
    assert isinstance(read_any_train_config(folder / "config.yaml"), ClassifierTrainConfig)


def test_the_score_is_what_evaluating_the_checkpoint_gives(trained: Trained, data: str) -> None:
    model = load_classifier(trained.folder / "last.safetensors", device="cpu")
    found = evaluate_classifier(model, load_dataset(data, "val")).summary
    assert found == pytest.approx({name: trained.last[name] for name in found}, rel=1e-4)


@pytest.mark.slow
def test_stopped_and_resumed_is_as_if_never_stopped(
    trained: Trained, classifier_config: Path, data: str, tmp_path: Path
) -> None:
    half = ["train.epochs=1", "train.schedule={name: step, milestones: [9]}"]
    whole = ["train.epochs=2", half[1]]
    train(classifier_config, Job(data, device="cpu"), settings=half, out=tmp_path / "stopped")
    resumed = resume(tmp_path / "stopped", settings=["train.epochs=2"])
    straight = train(classifier_config, Job(data, device="cpu"), settings=whole, out=tmp_path / "straight")
    assert resumed is not None and straight is not None  # noqa: PT018
    assert resumed.last == straight.last
    ends = [read_tensors(run.folder / "last.safetensors") for run in (resumed, straight)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_folders_of_pictures_are_learned(classifier_config: Path, folders: Path, tmp_path: Path) -> None:
    settings = ["train.epochs=3", "train.mixup=0", "train.cutmix=0", "train.batch_size=8", "train.ema=null"]
    result = train(classifier_config, Job(str(folders), device="cpu"), settings=settings, out=tmp_path / "run")
    assert result is not None
    assert read_header(result.folder / "best.safetensors").classes == ("blue", "red")
    assert result.best is not None
    assert result.best["top1"] == 1


def test_a_table_of_pictures_is_learned_with_repetitions_and_judged_by_centres(
    classifier_config: Path, folders: Path, tmp_path: Path
) -> None:
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name},{path.parts[-3]}" for path in folders.rglob("*.png")]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *sorted(lines)]))
    settings = ["train.epochs=3", "train.mixup=0", "train.cutmix=0", "train.batch_size=8", "train.ema=null"]
    settings += ["augment.repeats=2", "preprocess={mode: center_crop, size: [64, 64], interpolation: pillow_cubic}"]
    job = Job(str(tmp_path / "table.csv"), device="cpu")
    result = train(classifier_config, job, settings=settings, out=tmp_path / "run")
    assert result is not None
    assert result.best is not None
    assert result.best["top1"] == 1
    assert load_classifier(result.folder / "best.safetensors", device="cpu").config.preprocess.mode == "center_crop"


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_classifier_teaches_another(
    trained: Trained, classifier_config: Path, data: str, tmp_path: Path, kind: str
) -> None:
    teacher = trained.folder / "best.safetensors"
    settings = [f"train.distillation={{model: {teacher}, kind: {kind}, weight: 0.9}}", "train.epochs=1"]
    result = train(classifier_config, Job(data, device="cpu"), settings=settings, out=tmp_path / "run")
    assert result is not None
    assert result.last["distillation"] is not None
    assert not any("teacher" in name for name in read_tensors(result.folder / "last.safetensors"))
    other = [*settings, "classes=[cat, square]"]
    with pytest.raises(DetkitError, match=r"train\.distillation\.model: .* does not know the class 'cat'"):
        train(classifier_config, Job("sample:shapes?pictures=24&size=96"), settings=other, out=tmp_path / "other")


def test_its_backbone_is_where_a_detector_starts(trained: Trained, config: Path, data: str, tmp_path: Path) -> None:
    best = trained.folder / "best.safetensors"
    settings = [f"detector.backbone.weights={best}", "train.freeze=backbone", "train.epochs=1"]
    detector = train(config, Job(data, device="cpu"), settings=settings, out=tmp_path / "run")
    assert detector is not None
    there, here = read_tensors(detector.folder / "last.safetensors"), read_tensors(best)
    shared = [name for name in there if name.startswith("backbone.")]
    assert len(shared) > 50
    assert all(torch.equal(there[name], here[name]) for name in shared)


def test_the_learning_rate_falls_from_stage_to_stage(trained: Trained, classifier_config: Path) -> None:
    options = read_any_train_config(classifier_config, ["classes=[a, b]", "train.layer_decay=0.5"])
    _, network = read_classifier(trained.folder / "last.safetensors")
    groups = parameter_groups(network, options.train)
    factor = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    of_name = {name: factor[id(p)] for name, p in network.named_parameters()}
    stages = [{v for n, v in of_name.items() if f".layer{i}." in n} for i in (1, 2, 3, 4)]
    assert stages == [{0.5**4}, {0.5**3}, {0.5**2}, {0.5}]
    assert {value for name, value in of_name.items() if ".conv1.0." in name} == {0.5**4}  # the stem
    assert of_name["head.weight"] == 1


def test_each_kind_of_config_is_for_its_own(trained: Trained, classifier_config: Path) -> None:
    from detkit.model import load

    with pytest.raises(DetkitError, match="is a classifier, which finds no objects; `detkit classify` uses it"):
        read_train_config(classifier_config)
    with pytest.raises(DetkitError, match="is a classifier, which finds no objects"):
        load(trained.folder / "best.safetensors", device="cpu")
    with pytest.raises(DetkitError, match=r"train: unknown key 'mixupp'; did you mean 'mixup'"):
        read_any_train_config(classifier_config, ["train.mixupp=1"])
