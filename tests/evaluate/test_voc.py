import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.evaluate.records import NUMBERS, DetectionTable, GroundTruth
from detkit.evaluate.voc import Convention, VocClass, VocEvaluator, VocResult, average_precision
from detkit.structures import Detections

CONVENTIONS: tuple[Convention, ...] = ("voc07", "voc")
Box = tuple[float, float, float, float]


def ground_truth(rows: list[dict[str, Any]], images: list[str], classes: list[str]) -> GroundTruth:
    """COCO's dictionary from rows with image, label and corners."""
    annotations = [
        {"id": number, "image_id": row["image"], "category_id": row["label"] + 1, "difficult": row.get("difficult", 0),
         "iscrowd": row.get("crowd", 0), "bbox": xywh(row["box"])}
        for number, row in enumerate(rows, 1)
    ]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return GroundTruth.from_coco(
        {"images": [{"id": image} for image in images], "annotations": annotations, "categories": categories}
    )


def xywh(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def detect(rows: list[dict[str, Any]], truth: GroundTruth) -> DetectionTable:
    return DetectionTable(
        np.array([truth.image_ids.index(row["image"]) for row in rows], np.int64),
        np.array([row["label"] for row in rows], np.int64),
        np.array([xywh(row["box"]) for row in rows], np.float64).reshape(-1, 4),
        np.array([row["score"] for row in rows]),
    )


def evaluate(
    truth: GroundTruth, rows: list[dict[str, Any]], convention: Convention = "voc", iou: float = 0.5
) -> VocResult:
    evaluator = VocEvaluator(truth, convention=convention, iou=iou)
    evaluator.extend(detect(rows, truth))
    return evaluator.compute()


@pytest.mark.parametrize(
    ("convention", "iou", "published"),
    [
        ("voc07", 0.1, 0.33333), ("voc07", 0.3, 0.26840), ("voc07", 0.5, 0.03030), ("voc07", 0.75, 0),
        ("voc", 0.1, 0.33720), ("voc", 0.3, 0.24569), ("voc", 0.5, 0.02222), ("voc", 0.75, 0),
    ],
)  # fmt: skip
def test_published_answers(shared: Path, convention: Convention, iou: float, published: float):
    folder = shared / "map_cases" / "padilla_sample2"
    files = sorted((folder / "groundtruths").glob("*.txt"))
    objects, found = [], []
    for file in files:
        for line in file.read_text().splitlines():
            x, y, w, h = map(float, line.split()[1:])
            objects.append({"image": file.stem, "label": 0, "box": (x, y, x + w, y + h)})
        for line in (folder / "detections" / file.name).read_text().splitlines():
            score, x, y, w, h = map(float, line.split()[1:])
            found.append({"image": file.stem, "label": 0, "box": (x, y, x + w, y + h), "score": score})
    assert (len(files), len(objects), len(found)) == (7, 15, 24)
    result = evaluate(ground_truth(objects, [file.stem for file in files], ["object"]), found, convention, iou)
    assert (result.metric, result.iou) == (convention, iou)
    assert pytest.approx(published, abs=5e-6) == result.AP == result.per_class["object"].AP


def devkit_ap(objects: list[dict[str, Any]], found: list[dict[str, Any]], convention: str, min_overlap: float) -> float:
    """Read VOCevaldet.m (and VOCap.m) line by line, for one class."""
    detected = [False] * len(objects)
    positives = sum(not row["difficult"] for row in objects)
    found = sorted(found, key=lambda row: -row["score"])
    tp, fp = np.zeros(len(found)), np.zeros(len(found))
    for d, row in enumerate(found):
        best, best_overlap = -1, -np.inf
        for j, other in enumerate(objects):
            if other["image"] != row["image"]:
                continue
            a, b = row["box"], other["box"]
            width = min(a[2], b[2]) - max(a[0], b[0]) + 1
            height = min(a[3], b[3]) - max(a[1], b[1]) + 1
            if width > 0 and height > 0:
                union = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - width * height
                if width * height / union > best_overlap:
                    best, best_overlap = j, width * height / union
        if best_overlap >= min_overlap:
            if not objects[best]["difficult"]:
                if not detected[best]:
                    tp[d] = 1
                    detected[best] = True
                else:
                    fp[d] = 1
        else:
            fp[d] = 1
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall = tp / positives
    with np.errstate(invalid="ignore"):
        precision = tp / (fp + tp)
    if convention == "voc07":
        ap = 0.0
        for t in np.arange(0, 1.1, 0.1):
            reached = precision[recall >= t]
            p = np.nanmax(reached) if reached.size else 0
            ap += p / 11
        return ap
    mrec = [0, *recall, 1]
    mpre = [0, *np.nan_to_num(precision), 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


@pytest.fixture(scope="module")
def voc_sample(shared: Path) -> tuple[list[dict[str, Any]], list[str], list[str], dict[str, list[dict[str, Any]]]]:
    folder = shared / "voc2012_sample100"
    classes = (folder / "voc.names").read_text().split()
    objects, sizes = [], {}
    for file in sorted((folder / "Annotations").glob("*.xml")):
        root = ET.parse(file).getroot()
        sizes[file.stem] = int(root.findtext("size/width")), int(root.findtext("size/height"))
        for node in root.iter("object"):
            box = tuple(float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            difficult = int(node.findtext("difficult", "0"))
            label = classes.index(node.findtext("name"))
            objects.append({"image": file.stem, "label": label, "box": box, "difficult": difficult})
    sets: dict[str, list[dict[str, Any]]] = {"abs_xyx2y2": [], "rel_xywh": []}
    for kind, rows in sets.items():
        for file in sorted((folder / "dets" / kind).glob("*.txt")):
            for line in file.read_text().splitlines():
                label, score, *box = map(float, line.split())
                if kind == "rel_xywh":
                    (x, y, w, h), (width, height) = box, sizes[file.stem]
                    box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
                rows.append({"image": file.stem, "label": int(label), "box": tuple(box), "score": score})
    return objects, sorted(sizes), classes, sets


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_same_as_a_literal_reading_of_the_devkit(voc_sample, convention: Convention, iou: float):
    objects, images, classes, sets = voc_sample
    assert (len(images), len(objects), sum(row["difficult"] for row in objects)) == (100, 273, 38)
    truth = ground_truth(objects, images, classes)
    found = sets["abs_xyx2y2"]
    result = evaluate(truth, found, convention, iou)
    values = []
    for label, name in enumerate(classes):
        here = [row for row in objects if row["label"] == label]
        assert result.per_class[name].objects == sum(not row["difficult"] for row in here)
        if not result.per_class[name].objects:
            assert result.per_class[name].AP is None
            continue
        values.append(devkit_ap(here, [row for row in found if row["label"] == label], convention, iou))
        assert pytest.approx(values[-1], abs=1e-12) == result.per_class[name].AP, name
    assert pytest.approx(np.mean(values), abs=1e-12) == result.AP
    assert 0 < result.AP < 1
    other = evaluate(truth, sets["rel_xywh"], convention, iou)  # the same boxes, rounded to a millionth of the sides
    assert pytest.approx(result.AP, abs=1e-12) == other.AP


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("seed", range(10))
def test_same_as_the_devkit_on_random_problems(seed: int, convention: Convention):
    rng = np.random.default_rng(seed)
    images = [f"p{i}" for i in range(6)]

    def box() -> Box:
        x, y = rng.integers(0, 30, 2)
        w, h = rng.integers(3, 25, 2)
        return float(x), float(y), float(x + w), float(y + h)

    objects = [
        {"image": images[rng.integers(5)], "label": 0, "box": box(), "difficult": int(rng.random() < 0.3)}
        for _ in range(14)
    ]
    found = [{"image": images[rng.integers(6)], "label": 0, "box": box(), "score": rng.random()} for _ in range(60)]
    for row in objects * 2:
        shifted = tuple(side + rng.integers(-2, 3) for side in row["box"])
        found.append({"image": row["image"], "label": 0, "box": shifted, "score": round(rng.random(), 1)})
    result = evaluate(ground_truth(objects, images, ["a"]), found, convention)
    assert pytest.approx(devkit_ap(objects, found, convention, 0.5), abs=1e-12) == result.AP


def test_hand_computed():
    # Four objects of class a: one found twice, one found late, one missed, one difficult and found.
    objects = [
        {"image": "p", "label": 0, "box": (0, 0, 9, 9)},
        {"image": "p", "label": 0, "box": (20, 0, 29, 9)},
        {"image": "p", "label": 0, "box": (40, 0, 49, 9)},
        {"image": "p", "label": 0, "box": (60, 0, 69, 9), "difficult": 1},
    ]
    found = [
        {"image": "p", "label": 0, "box": (60, 0, 69, 9), "score": 0.95},  # difficult: does not count
        {"image": "p", "label": 0, "box": (0, 0, 9, 9), "score": 0.9},  # right: 1/1
        {"image": "p", "label": 0, "box": (0, 0, 9, 8), "score": 0.8},  # second of its object: 1/2
        {"image": "p", "label": 0, "box": (20, 0, 29, 4), "score": 0.7},  # overlap exactly .5 in whole pixels: 2/3
    ]
    truth = ground_truth(objects, ["p", "empty"], ["a", "b"])
    result = evaluate(truth, found)
    assert pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3) == result.AP
    assert pytest.approx((4 * 1 + 3 * 2 / 3) / 11) == evaluate(truth, found, "voc07").AP
    assert pytest.approx(1 / 3) == evaluate(truth, found, iou=0.51).AP
    assert result.per_class["a"].objects == 3
    assert (result.per_class["b"].objects, result.per_class["b"].AP) == (0, None)
    assert list(result.curves) == ["a"]
    np.testing.assert_allclose(result.curves["a"][[0, 33, 34, 66, 67, 100]], [1, 1, 2 / 3, 2 / 3, 0, 0])


def test_the_object_overlapped_most_decides():
    # The second detection overlaps the taken object more than the free one, so it is wrong, not a second chance.
    objects = [{"image": "p", "label": 0, "box": (0, 0, 9, 9)}, {"image": "p", "label": 0, "box": (0, 0, 9, 14)}]
    found = [
        {"image": "p", "label": 0, "box": (0, 0, 9, 9), "score": 0.9},
        {"image": "p", "label": 0, "box": (0, 0, 9, 10), "score": 0.8},
    ]
    assert pytest.approx(0.5) == evaluate(ground_truth(objects, ["p"], ["a"]), found).AP


def test_update_takes_a_models_detections():
    truth = ground_truth([{"image": "p", "label": 1, "box": (0, 0, 9, 9)}], ["p", "q"], ["a", "b"])
    evaluator = VocEvaluator(truth, to_data=[None, None, 1])
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]])
    evaluator.update("p", Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([0, 2]), (20, 20)))
    assert len(evaluator.detections) == 1
    assert evaluator.compute().AP == 1


@pytest.mark.parametrize(("iou", "same"), [(0.5, {"AP", "AP50"}), (0.75, {"AP", "AP75"}), (0.6, {"AP"})])
def test_json_has_the_keys_of_every_metric(iou: float, same: set[str]):
    result = VocResult("voc", iou, 0.25, {"a": VocClass(3, 0.25), "b": VocClass(0, None)}, {})
    tree = result.to_json()
    assert list(tree) == ["metric", "iou", *NUMBERS, "per_class"]
    assert {name: tree[name] for name in NUMBERS} == {name: 0.25 if name in same else None for name in NUMBERS}
    assert tree["per_class"] == {
        "a": {"AP": 0.25, "AP50": 0.25 if iou == 0.5 else None}, "b": {"AP": None, "AP50": None}
    }  # fmt: skip


def test_nothing_detected_and_nothing_there():
    truth = ground_truth([{"image": "p", "label": 0, "box": (0, 0, 9, 9)}], ["p"], ["a", "b"])
    assert evaluate(truth, []).AP == 0
    assert evaluate(truth, [], "voc07").AP == 0
    assert evaluate(ground_truth([], ["p"], ["a"]), []).AP is None


def test_crowds_count_as_difficult():
    truth = ground_truth([{"image": "p", "label": 0, "box": (0, 0, 9, 9), "crowd": 1}], ["p"], ["a"])
    assert evaluate(truth, [{"image": "p", "label": 0, "box": (0, 0, 9, 9), "score": 0.9}]).AP is None


def test_average_precision_by_both_conventions():
    recall, precision = np.array([0.5, 0.5, 1]), np.array([1, 0.5, 2 / 3])
    assert average_precision(recall, precision, "voc") == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(recall, precision, "voc07") == pytest.approx((6 + 5 * 2 / 3) / 11)
