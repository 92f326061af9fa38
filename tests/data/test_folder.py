"""Class folders, their descriptions, and their labels on the way to the detectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from detkit.data.augment import Augment, Augmenter
from detkit.data.dataset import load_dataset
from detkit.data.loader import evaluation_loader, training_loader
from detkit.errors import DetkitError
from detkit.ops.losses import learnable
from detkit.preprocess import Preprocess
from detkit.structures import Target


def write(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for name in ("train/dog/a.jpg", "train/dog/b.png", "train/cat/a.jpg", "val/cat/c.jpg", "val/eel/d.jpg"):
        write(tmp_path / "animals" / name)
    return tmp_path / "animals"


def describe(file: Path, **tree: object) -> Path:
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def test_a_folder_is_a_class_over_all_splits(animals: Path) -> None:
    train, val = (load_dataset(animals, split) for split in ("train", None))
    assert (train.split, val.split) == ("train", "val")
    assert train.classes == val.classes == ("cat", "dog", "eel")
    assert [(s.id, s.labels.tolist()) for s in train.samples] == [("cat/a", [0]), ("dog/a", [1]), ("dog/b", [1])]
    assert [(s.id, s.labels.tolist()) for s in val.samples] == [("cat/c", [0]), ("eel/d", [2])]
    assert train.samples[0].boxes.tolist() == [[0, 0, 40, 30]]
    assert (train.samples[0].height, train.samples[0].width) == (30, 40)
    target = train.samples[0].target()
    assert target.crowd.tolist() == target.somewhere.tolist() == [True]
    assert [a["iscrowd"] for a in train.ground_truth()["annotations"]] == [1, 1, 1]


def test_without_splits_the_folders_are_classes(animals: Path) -> None:
    write(animals / "train" / "dog" / "notes.gif").rename(animals / "train" / "dog" / "notes.txt")
    data = load_dataset(animals / "train")
    assert (data.split, data.classes, len(data)) == (None, ("cat", "dog"), 3)
    assert len(data.notes) == 1
    assert "1 file without the suffix of a picture left out" in data.notes[0]
    with pytest.raises(DetkitError, match="there is no split 'val'"):
        load_dataset(animals / "train", "val")


def test_turned_pictures_have_the_size_they_are_seen_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "cat" / "a.jpg", exif=exif)
    (sample,) = load_dataset(tmp_path).samples
    assert sample.boxes.tolist() == [[0, 0, 30, 40]]
    assert sample.read().shape == (40, 30, 3)


def test_names_order_the_classes_and_join_folders(animals: Path) -> None:
    names = {"eel": "fish", "dog": "pet", "cat": "pet"}
    file = describe(animals.parent / "a.yaml", format="folder", path="animals", names=names)
    data = load_dataset(file, "train")
    assert data.classes == ("fish", "pet")
    assert [s.labels.tolist() for s in data.samples] == [[1], [1], [1]]
    file = describe(animals.parent / "b.yaml", format="folder", path="animals", splits={"all": "val"})
    assert [s.id for s in load_dataset(file).samples] == ["cat/c", "eel/d"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"names": {"cat": "cat"}}, r"train.dog: has no name in 'names'"),
        ({"splits": {"train": "nowhere"}}, r"a\.yaml: there is no folder .*nowhere"),
        ({"splits": {"train": "train/dog"}}, r"dog: there are no pictures; expected <class>/\*\.jpg"),
        ({"path": "nowhere", "splits": None}, r"a\.yaml: there is no folder .*nowhere"),
        ({"names": ["cat"]}, "a.yaml: names: "),
    ],
)
def test_what_is_wrong_with_a_description_is_named(animals: Path, tree: dict[str, object], message: str) -> None:
    file = describe(animals.parent / "a.yaml", **({"format": "folder", "path": "animals"} | tree))
    with pytest.raises(DetkitError, match=message):
        load_dataset(file, None if tree.get("path") else "train")


def test_a_damaged_picture_is_named(animals: Path) -> None:
    (animals / "val" / "eel" / "d.jpg").write_bytes(b"")
    with pytest.raises(DetkitError, match=r"d\.jpg"):
        load_dataset(animals, "val")


def test_sets_with_boxes_and_with_labels_are_joined(animals: Path) -> None:
    parts = [{"data": "sample:shapes?pictures=4&size=64", "split": "train", "repeat": 2}, {"data": "animals/train"}]
    shapes = {"data": "sample:shapes?pictures=4&size=64", "split": "val"}
    file = describe(animals.parent / "join.yaml", format="join", splits={"train": parts, "val": [shapes]})
    train = load_dataset(file, "train")
    assert train.classes == ("circle", "cross", "ring", "square", "star", "triangle", "cat", "dog")
    assert [s.somewhere for s in train.samples] == [False] * 8 + [True] * 3
    assert [s.labels.tolist() for s in train.samples[8:]] == [[6], [7], [7]]
    assert len({s.id for s in train.samples}) == 4 + 3
    assert load_dataset(file, "val").classes == train.classes[:6]  # one set stays as it is
    describe(file, format="join", splits={"train": [{"data": "join.yaml", "split": "train"}]})
    with pytest.raises(DetkitError, match=r"join\.yaml: splits\.train joins the file itself"):
        load_dataset(file, "train")
    describe(file, format="join", splits={"train": []})
    with pytest.raises(DetkitError, match=r"splits\.train joins nothing"):
        load_dataset(file, "train")


@pytest.mark.parametrize("mosaic", [0, 1])
def test_labels_go_through_augmentation_and_batches(animals: Path, mosaic: float) -> None:
    data = load_dataset(animals, "train")
    augment = Augment(mosaic=mosaic, scale=(0.5, 2), min_visibility=1)
    loader = training_loader(data, Preprocess(size=(64, 64)), augment, batch_size=3, seed=0)
    ((batch, targets),) = loader
    for image, target in zip(batch.images, targets, strict=True):
        assert len(target) == (4 if mosaic else 1)  # never dropped, however little is in view
        assert target.somewhere.all()
        assert target.crowd.all()
        seen = torch.zeros(64, 64, dtype=torch.bool)  # the boxes are the parts of the canvas that pictures fill
        for x1, y1, x2, y2 in target.boxes.round().int().tolist():
            seen[y1:y2, x1:x2] = True
        margin = (image - 0.5).abs().amax(0) < 0.02
        assert (seen == ~margin).float().mean() > 0.95
    ((_, targets, *_),) = evaluation_loader(data, Preprocess(size=(64, 64)), batch_size=3)
    torch.testing.assert_close(targets[0].boxes, torch.tensor([[0.0, 8, 64, 56]]))
    assert len(learnable(targets).labels) == 0


def test_pictures_with_boxes_have_nothing_somewhere() -> None:
    data = load_dataset("sample:shapes?pictures=1&size=64", "train")
    drawn = Augmenter(Augment(), Preprocess(size=(64, 64)))(data, 0, epoch=0, seed=0, size_hw=(64, 64))
    assert drawn.target.somewhere.tolist() == [False] * len(drawn.target)
    flags = torch.tensor([True])
    target = Target(torch.zeros(1, 4), torch.zeros(1), flags, flags)
    assert target.somewhere.tolist() == [False]
    assert Target(torch.zeros(1, 4), torch.zeros(1), flags, flags, flags).to("cpu").somewhere.tolist() == [True]
    assert np.asarray(data.samples[0].target().somewhere).dtype == bool
