import json
import sys

import pytest
import torch

from detkit.errors import DetkitError
from detkit.predict.convert import to_coco, to_json, to_pandas, to_supervision
from detkit.structures import Detections

CLASSES = ("cat", "dog")


@pytest.fixture
def detections() -> Detections:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.123, 0.456, 5.0, 6.0]])
    return Detections(boxes, torch.tensor([0.97, 0.12344]), torch.tensor([1, 0]), (100, 200))


def test_to_json(detections: Detections) -> None:
    assert json.loads(json.dumps(to_json(detections, CLASSES))) == [
        {"box": [10, 20, 30, 60], "score": 0.97, "label": "dog", "label_id": 1},
        {"box": [0.12, 0.46, 5, 6], "score": 0.1234, "label": "cat", "label_id": 0},
    ]


def test_to_coco_maps_ids_and_keeps_digits(detections: Detections) -> None:
    first, second = to_coco(detections, image_id=7, category_ids=[17, 18])
    assert first == {"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 40], "score": pytest.approx(0.97)}
    assert second["category_id"] == 17
    assert second["score"] == detections.scores[1].item()


def test_nothing_found() -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (10, 10))
    assert to_json(none, CLASSES) == to_coco(none, 1, [1, 2]) == []


def test_to_pandas(detections: Detections) -> None:
    pytest.importorskip("pandas")
    table = to_pandas(detections, CLASSES)
    assert list(table.columns) == ["x1", "y1", "x2", "y2", "score", "label", "label_id"]
    assert list(table["label"]) == ["dog", "cat"]
    assert table["x2"][0] == 30


def test_to_supervision(detections: Detections) -> None:
    pytest.importorskip("supervision")
    result = to_supervision(detections, CLASSES)
    assert result.xyxy.tolist() == detections.boxes.tolist()
    assert result.class_id.tolist() == [1, 0]
    assert result.data["class_name"].tolist() == ["dog", "cat"]


@pytest.mark.parametrize(("convert", "package"), [(to_pandas, "pandas"), (to_supervision, "supervision")])
def test_a_missing_package_is_named(detections: Detections, convert, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DetkitError, match=f"pip install {package}"):
        convert(detections, CLASSES)
