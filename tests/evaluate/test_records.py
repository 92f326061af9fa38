import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.errors import DetkitError
from detkit.evaluate.coco import CocoEvaluator
from detkit.evaluate.records import GroundTruth, read_results, to_results
from detkit.structures import Detections

TRUTH = GroundTruth.from_coco(
    {
        "images": [{"id": 9}, {"id": 4}],
        "annotations": [{"image_id": 9, "category_id": 8, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 8, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
)
GOOD: dict[str, Any] = {"image_id": 4, "category_id": 3, "bbox": [1, 2, 3.5, 0], "score": 0.5}


def test_ground_truth_from_coco():
    assert TRUTH.image_ids == (4, 9)
    assert (TRUTH.classes, TRUTH.category_ids) == (("dog", "cat"), (3, 8))
    assert (TRUTH.pictures.tolist(), TRUTH.labels.tolist(), TRUTH.areas.tolist()) == ([1], [1], [12])
    assert not TRUTH.crowd.any()
    assert not TRUTH.difficult.any()


def test_numbers_and_texts_as_image_ids():
    images = [{"id": image_id} for image_id in ("b", 10, "9", 9)]
    truth = GroundTruth.from_coco({"images": images, "annotations": [], "categories": []})
    assert truth.image_ids == (9, 10, "9", "b")


def test_results_read_back_as_written(tmp_path: Path):
    evaluator = CocoEvaluator(TRUTH)
    boxes = torch.rand(5, 4).cumsum(1) * 100 / 3
    evaluator.update(9, Detections(boxes, torch.rand(5), torch.tensor([1, 0, 0, 1, 1]), (200, 200)))
    file = tmp_path / "results.json"
    file.write_text(json.dumps(to_results(evaluator.detections, TRUTH)))
    again = read_results(file, TRUTH)
    for column in ("pictures", "labels", "boxes_xywh", "scores"):
        np.testing.assert_array_equal(getattr(again, column), getattr(evaluator.detections, column))
    first = json.loads(file.read_text())[0]
    assert (first["image_id"], first["category_id"]) == (9, 8)
    assert torch.tensor(first["bbox"][:2]).equal(boxes[0, :2])


def test_a_byte_order_mark(tmp_path: Path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert len(read_results(file, TRUTH)) == 1


def test_an_empty_list_is_no_error(tmp_path: Path):
    file = tmp_path / "results.json"
    file.write_text("[]")
    assert len(read_results(file, TRUTH)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "entry 1: image_id 5 is none of the data set's 2 pictures"),
        ({"image_id": "4"}, "entry 1: image_id '4' is none"),
        ({"image_id": [4]}, r"entry 1: image_id \[4\] is none"),
        ({"category_id": 1}, r"entry 1: category_id 1 is none of the data set's 2 categories \(3, 8\)"),
        ({"category_id": None}, "entry 1: category_id None"),
        ({"bbox": [1, 2, 3]}, r"entry 1: bbox must be four finite numbers .*, got \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "entry 1: bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3, float("inf")]}, "entry 1: bbox must be four finite numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "entry 1: bbox must be four finite numbers"),
        ({"bbox": [10, 20, -5, 5]}, r"entry 1: bbox is \[x, y, width, height\].*got \[10, 20, -5, 5\]"),
        ({"bbox": [1, 2, 3, 10**400]}, "entry 1: bbox must be four finite numbers"),
        ({"score": -(10**400)}, "entry 1: score must be a finite number, got -10{58}…0{10}$"),
        ({"score": float("nan")}, "entry 1: score must be a finite number, got nan"),
        ({"score": "high"}, "entry 1: score must be a finite number, got 'high'"),
        ({"score": True}, "entry 1: score must be a finite number, got True"),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, Any], message: str, tmp_path: Path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps([GOOD, GOOD | change]))
    with pytest.raises(DetkitError, match=f"^{re.escape(str(file))}, {message}"):
        read_results(file, TRUTH)


@pytest.mark.parametrize("field", list(GOOD))
def test_a_missing_field_is_named(field: str, tmp_path: Path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps([{key: value for key, value in GOOD.items() if key != field}]))
    with pytest.raises(DetkitError, match=f"entry 0: the field '{field}' is missing"):
        read_results(file, TRUTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"annotations": []}', "expected a list of detections at the top, got an object"),
        (b"[1]", "entry 0: expected an object with image_id, category_id, bbox and score, got 1"),
        (b'[{"image_id": 4,\n "categ', "line 2, column 2: is not valid JSON"),
        (b"", "line 1, column 1: is not valid JSON"),
        (b"\xff\xd8\xff\xe0", "is not a text file"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"7" * 5000 + b"]", "holds a number of too many digits"),
    ],
)
def test_a_file_that_is_no_result_list(content: bytes, message: str, tmp_path: Path):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(DetkitError, match=message):
        read_results(file, TRUTH)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DetkitError, match=r"none\.json: cannot be read: No such file"):
        read_results(tmp_path / "none.json", TRUTH)
