import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from detkit.data.dataset import Wanted, choose_split, load_dataset
from detkit.data.shapes import CLASSES, Shapes, write_shapes
from detkit.errors import DetkitError

SMALL = Shapes(pictures=2, size=64)


def describe(folder: Path, **tree: object) -> Path:
    file = folder / "set.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    ("splits", "wanted", "chosen"),
    [
        (["trainval"], Wanted.EVALUATED, "trainval"),
        (["train2017", "val2017"], Wanted.EVALUATED, "val2017"),
        (["train2017", "val2017"], Wanted.LEARNED, "train2017"),
        (["train", "valid", "test"], Wanted.EVALUATED, "valid"),
        (["trainval", "test"], Wanted.EVALUATED, "test"),
        (["trainval", "test"], Wanted.LEARNED, "trainval"),
        (["train", "val", "trainval", "test"], Wanted.LEARNED, "train"),
        (["train", "val"], "train", "train"),
    ],
)
def test_choose_split(splits, wanted, chosen):
    assert choose_split(splits, wanted, "x") == chosen


@pytest.mark.parametrize(
    ("splits", "wanted", "message"),
    [
        (["val2014", "val2017"], Wanted.EVALUATED, r"x: name a split \(there are val2014, val2017\)"),
        (["fold1", "fold2"], Wanted.LEARNED, r"x: name a split \(there are fold1, fold2\)"),
        (["train2017", "val2017"], "val", r"no split 'val'; did you mean 'val2017'.*\(there are train2017, val2017\)"),
        (["train"], "q", r"\(there is train\)"),
    ],
)
def test_choose_split_asks_when_it_cannot_know(splits, wanted, message):
    with pytest.raises(DetkitError, match=message):
        choose_split(splits, wanted, "x")


def test_pictures_without_splits_are_learned_and_evaluated_but_have_none_by_name(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / label / "1.png")
    for wanted in Wanted:
        data = load_dataset(tmp_path, wanted)
        assert (data.split, data.classes, len(data)) == (None, ("a", "b"), 2)
    with pytest.raises(DetkitError, match="there is no split 'train' \\(there are none\\)"):
        load_dataset(tmp_path, "train")


def test_described_coco(tmp_path):
    write_shapes(tmp_path / "set", "coco", SMALL)
    file = describe(
        tmp_path,
        format="coco",
        path="set",
        splits={"train": {"annotations": "annotations/instances_train.json", "images": "images/train"}},
    )
    data = load_dataset(file)
    assert (data.split, len(data), data.notes) == ("train", 2, [])
    assert data.samples[0].read().shape[2] == 3


def test_described_voc(tmp_path):
    write_shapes(tmp_path / "set", "voc", SMALL)
    (tmp_path / "set" / "JPEGImages").rename(tmp_path / "set" / "pictures")
    (tmp_path / "set" / "data.yaml").unlink()
    (tmp_path / "one.txt").write_text("train_000001\n")
    classes = [*reversed(CLASSES)]
    file = describe(
        tmp_path, format="voc", path="set", images="pictures", splits={"one": "../one.txt"}, classes=classes
    )
    data = load_dataset(file)
    assert (data.split, len(data), data.notes, data.classes) == ("one", 1, [], tuple(classes))
    assert load_dataset(describe(tmp_path, format="voc", path="set", images="pictures"), "val").split == "val"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"format": "kitti"}, r"set\.yaml: format: expected coco, voc, folder or join, got 'kitti'"),
        ({"format": "coco"}, r"set\.yaml: the key 'splits' is missing"),
        ({"format": "voc", "image": "x"}, r"set\.yaml: unknown key 'image'; did you mean 'images'"),
        ({"format": "coco", "splits": {"a": {"annotations": "a.json"}}}, r"set\.yaml: splits\.a.*images' is missing"),
        ({"format": "coco", "splits": {"a": {"annotations": "a.json", "images": "."}}}, r"a\.json: cannot be read"),
        ({"a": 1}, r"set\.yaml: describes no data set"),
    ],
)
def test_bad_descriptions(tmp_path, tree, message):
    with pytest.raises(DetkitError, match=message):
        load_dataset(describe(tmp_path, **tree))


def test_what_is_no_data_set(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    for data, split, message in (
        (tmp_path / "missing", None, r"missing: no such file or folder"),
        (tmp_path, None, r"is no data set; expected annotations/instances_<split>\.json"),
        (tmp_path / "a.txt", None, r"a\.txt: expected a folder, a COCO \.json, a \.csv .* or a \.yaml"),
        (tmp_path / "a.json", "val", r"a\.json: is one annotation file, which has no splits"),
        ("sample:astronaut", None, r"sample:astronaut: there is no such data set"),
    ):
        with pytest.raises(DetkitError, match=message):
            load_dataset(data, split)
    assert len(load_dataset(tmp_path / "a.json")) == 0


def test_two_splits_as_one(shared: Path) -> None:
    both = load_dataset(shared / "coco_subset", "train2017+val2017")
    parts = [load_dataset(shared / "coco_subset", split) for split in ("train2017", "val2017")]
    assert (len(both), both.split) == (394, "train2017+val2017")
    assert [sample.id for sample in both.samples] == [sample.id for part in parts for sample in part.samples]
    truth = both.ground_truth()
    assert len(truth["annotations"]) == sum(len(sample.boxes) for part in parts for sample in part.samples)
    with pytest.raises(DetkitError, match=r"the picture 139 is in more than one split of 'val2017\+val2017'"):
        load_dataset(shared / "coco_subset", "val2017+val2017")
    with pytest.raises(DetkitError, match="no split 'ekstra'; did you mean 'extra'"):
        load_dataset(shared / "coco_subset", "train2017+ekstra")
