import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.data.coco import read_coco
from detkit.data.dataset import load_dataset
from detkit.errors import DetkitError

TREE: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "b.png", "height": 40, "width": 60},
        {"id": 4, "file_name": "a.png", "height": 20, "width": 20},
    ],
    "annotations": [
        {"id": 11, "image_id": 4, "category_id": 90, "bbox": [1.25, 2, 3.5, 4], "iscrowd": 0, "area": 5.5},
        {"id": 12, "image_id": 30, "category_id": 7, "bbox": [10, 10, 20, 20], "iscrowd": 1, "area": 400},
        {"id": 13, "image_id": 4, "category_id": 7, "bbox": [0, 0, 20, 20]},
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 7, "name": "ant"}],
}


def write(folder: Path, tree: Any = TREE, name: str = "instances_val.json") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return file


def test_reads_boxes_gaps_and_crowds(tmp_path):
    data = read_coco(write(tmp_path))
    assert data.classes == ("ant", "zebra")
    assert data.category_ids == (7, 90)
    b, a = data.samples
    assert (b.id, b.height, b.width) == (30, 40, 60)
    assert b.boxes.tolist() == [[10, 10, 30, 30]]
    assert b.crowd.tolist() == [True]
    assert a.boxes.tolist() == [[1.25, 2, 4.75, 6], [0, 0, 20, 20]]
    assert a.labels.tolist() == [1, 0]
    assert a.crowd.tolist() == [False, False]
    assert data.notes == [
        f"{tmp_path}/instances_val.json: 2 of 2 pictures not found, the first is {tmp_path}/images/val/b.png"
    ]


def test_ground_truth_is_the_file_with_what_evaluation_needs(tmp_path):
    truth = read_coco(write(tmp_path)).ground_truth()
    expected = copy.deepcopy(TREE)
    expected["annotations"][2] |= {"iscrowd": 0, "area": 400}
    assert truth == expected


@pytest.mark.parametrize("folder", ["images/val", "val", "images", "annotations", "."])
def test_finds_the_pictures(tmp_path, folder):
    file = write(tmp_path, name="annotations/instances_val.json")
    for row in TREE["images"]:
        path = tmp_path / folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (row["width"], row["height"])).save(path)
    for data in (load_dataset(tmp_path), load_dataset(file)):
        assert data.split == "val"
        assert data.notes == []
        assert [sample.read().shape for sample in data.samples] == [(40, 60, 3), (20, 20, 3)]
    path.unlink()
    assert read_coco(file).notes == [f"{file}: 1 of 2 pictures not found, the first is {path}"]


def test_boxes_mended_are_noted_by_annotation(tmp_path):
    tree = copy.deepcopy(TREE)
    tree["annotations"][0]["bbox"] = [5, 5, 0, 3]
    tree["annotations"][1]["bbox"] = [50, 30, 20, 20]
    data = read_coco(write(tmp_path, tree))
    assert data.notes[:2] == [
        f"1 box clipped to the picture: {tmp_path}/instances_val.json: annotation 12, 'bbox'",
        f"1 box of zero width or height left out: {tmp_path}/instances_val.json: annotation 11, 'bbox'",
    ]
    assert data.samples[0].boxes.tolist() == [[50, 30, 60, 40]]
    assert data.ground_truth()["annotations"][0]["bbox"] == [5, 5, 0, 3]


def test_no_annotations(tmp_path):
    data = read_coco(write(tmp_path, TREE | {"annotations": []}))
    assert [len(sample.labels) for sample in data.samples] == [0, 0]


DELETED = object()


@pytest.mark.parametrize(
    ("table", "row", "key", "value", "message"),
    [
        ("annotations", 1, "bbox", DELETED, r"annotations\[1\] \(id 12\): the key 'bbox' is missing"),
        ("annotations", 1, "image_id", DELETED, r"annotations\[1\] \(id 12\): the key 'image_id' is missing"),
        ("annotations", 1, "category_id", DELETED, r"annotations\[1\] \(id 12\): the key 'category_id' is missing"),
        ("annotations", 1, "id", DELETED, r"annotations\[1\]: the key 'id' is missing"),
        ("images", 1, "width", DELETED, r"images\[1\] \(id 4\): the key 'width' is missing"),
        ("images", 1, "file_name", DELETED, r"images\[1\] \(id 4\): the key 'file_name' is missing"),
        ("categories", 0, "name", DELETED, r"categories\[0\] \(id 90\): the key 'name' is missing"),
        ("annotations", 0, "bbox", [1, 2, 3], r"annotation 11, 'bbox': expected four numbers .*got \[1, 2, 3\]"),
        ("annotations", 0, "bbox", [1, 2, 3, "4"], r"annotation 11, 'bbox': expected four numbers"),
        ("annotations", 0, "bbox", [1, 2, 3, None], r"annotation 11, 'bbox': expected four numbers"),
        ("annotations", 0, "bbox", "1 2 3 4", r"annotations\[0\] \(id 11\), 'bbox': expected a list, got '1 2 3 4'"),
        ("annotations", 0, "bbox", [1, 2, float("nan"), 4], r"annotation 11, 'bbox': .*not finite"),
        ("annotations", 0, "bbox", [1, 2, -3, 4], r"annotation 11, 'bbox': .*inverted"),
        ("annotations", 0, "bbox", [20, 2, 3, 4], r"annotation 11, 'bbox': .*wholly outside .*20 wide, 20 high"),
        ("annotations", 0, "image_id", 5, r"annotation 11, 'image_id': 5 is not the id of any entry in 'images'"),
        ("annotations", 0, "category_id", 8, r"annotation 11, 'category_id': 8 is not the id of .* 'categories'"),
        ("annotations", 0, "iscrowd", 2, r"annotation 11, 'iscrowd': expected 0 or 1, got 2"),
        ("annotations", 0, "iscrowd", None, r"annotation 11, 'iscrowd': expected 0 or 1, got None"),
        ("annotations", 0, "difficult", "no", r"annotation 11, 'difficult': expected 0 or 1, got 'no'"),
        ("annotations", 0, "area", "abc", r"annotation 11, 'area': expected a finite number from 0 on, got 'abc'"),
        ("annotations", 0, "area", None, r"annotation 11, 'area': .*got None"),
        ("annotations", 0, "area", True, r"annotation 11, 'area': .*got True"),
        ("annotations", 0, "area", -1, r"annotation 11, 'area': .*got -1"),
        ("annotations", 0, "area", float("nan"), r"annotation 11, 'area': .*got nan"),
        ("annotations", 0, "area", float("inf"), r"annotation 11, 'area': .*got inf"),
        ("annotations", 0, "area", 10**400, r"annotation 11, 'area': .*got 10{59}…0{10}$"),
        ("annotations", 0, "id", 12, r"the annotation id 12 stands twice"),
        ("images", 0, "id", 4, r"the image id 4 stands twice"),
        ("images", 0, "id", 4.5, r"images\[0\], 'id': expected a whole number or a text, got 4.5"),
        ("annotations", 0, "bbox", [1, 2, 10**400, 4], r"annotation 11, 'bbox': one of the numbers is too large"),
        ("images", 0, "height", 10**400, r"image 30 is 60 wide"),
        ("images", 0, "height", 0, r"image 30 is 60 wide and 0 high"),
        ("images", 0, "height", "40", r"images\[0\] \(id 30\), 'height': expected a whole number, got '40'"),
        ("categories", 0, "id", 7, r"the category id 7 stands twice"),
        ("categories", 0, "name", "ant", r"the category name 'ant' stands twice"),
    ],
)
def test_bad_entries(tmp_path, table, row, key, value, message):
    tree = copy.deepcopy(TREE)
    if value is DELETED:
        del tree[table][row][key]
    else:
        tree[table][row][key] = value
    with pytest.raises(DetkitError, match=rf"instances_val\.json: {message}"):
        read_coco(write(tmp_path, tree))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [\n', r", line 2, column 1: is not valid JSON"),
        ("", r", line 1, column 1: is not valid JSON"),
        ("<annotation/>", r"is not valid JSON"),
        ("[" * 100_000, r"nested too deeply"),
        ("7" * 5000, r"a number of too many digits"),
        ([{"image_id": 1, "score": 0.5}], r"got a list \(a list is what detections are saved as\)"),
        ({"shapes": [], "version": 1}, r"the key 'images' .* is missing \(its keys: shapes, version\)"),
        (TREE | {"categories": {"1": "a"}}, r"'categories' must be a list of mappings"),
        (TREE | {"annotations": [3]}, r"'annotations' must be a list of mappings"),
    ],
)
def test_json_of_another_kind(tmp_path, content, message):
    with pytest.raises(DetkitError, match=message):
        read_coco(write(tmp_path, content))


def test_a_byte_order_mark(tmp_path):
    assert len(read_coco(write(tmp_path, "\ufeff" + json.dumps(TREE)))) == 2


def test_difficult_objects(tmp_path):
    tree = copy.deepcopy(TREE)
    tree["annotations"][2]["difficult"] = 1
    assert read_coco(write(tmp_path, tree)).samples[1].difficult.tolist() == [False, True]


def test_binary_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(DetkitError, match=r"a\.json: is not a text file"):
        read_coco(file)
    with pytest.raises(DetkitError, match=r"b\.json: cannot be read: No such file"):
        read_coco(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("split", "pictures", "objects", "crowds"), [("val2017", 100, 865, 11), ("train2017", 294, 2519, 25)]
)
def test_real_coco(shared, split, pictures, objects, crowds):
    data = load_dataset(shared / "coco_subset", split)
    assert (len(data), len(data.classes), data.category_ids[-1]) == (pictures, 80, 90)
    assert sum(len(sample.labels) for sample in data.samples) == objects
    assert sum(int(sample.crowd.sum()) for sample in data.samples) == crowds
    assert data.notes == []
    for sample in data.samples[:5]:
        assert sample.read().shape == (sample.height, sample.width, 3)
    file = shared / f"coco_subset/annotations/instances_{split}.json"
    tree = json.loads(file.read_bytes())
    assert data.ground_truth() == tree
    annotation = next(a for a in tree["annotations"] if a["image_id"] == data.samples[0].id)
    x, y, w, h = annotation["bbox"]
    np.testing.assert_array_equal(data.samples[0].boxes[0], np.float32([x, y, x + w, y + h]))


def test_annotations_without_pictures(shared):
    data = load_dataset(shared / "map_cases/cocoapi_val2014_100/instances_val2014_100.json")
    assert len(data) == 100
    assert "100 of 100 pictures not found" in data.notes[0]
