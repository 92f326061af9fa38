import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluate.coco import CocoEvaluator, CocoResult, Program
from detkit.evaluate.records import GroundTruth, read_results
from detkit.structures import Detections

PROGRAMS: tuple[Program, ...] = ("hotcoco", "pycocotools")
Dict = dict[str, Any]


def reference(truth: Dict, results: list[Dict]) -> np.ndarray:
    """pycocotools as its own demonstration uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = json.loads(json.dumps(truth))
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def evaluate(truth: Dict, results: Path, program: Program = "hotcoco") -> CocoResult:
    objects = GroundTruth.from_coco(truth)
    evaluator = CocoEvaluator(objects, program=program)
    evaluator.extend(read_results(results, objects))
    return evaluator.compute()


def twelve(result: CocoResult) -> list[float]:
    return [-1 if value is None else value for value in result.summary.values()]


def problem(
    rng: np.random.Generator, pictures: int, classes: int, per_object: int, *, crowd: float = 0, ties: bool = False
) -> tuple[Dict, list[Dict]]:
    """Objects and noisy detections of them: ids with gaps and out of order, empty pictures, two classes never seen."""
    image_ids = rng.permutation(np.cumsum(rng.integers(1, 50, pictures))).tolist()
    category_ids = np.cumsum(rng.integers(1, 5, classes + 2)).tolist()
    annotations: list[Dict] = []
    results: list[Dict] = []
    for image_id in image_ids:
        for _ in range(rng.integers(0, 8) if rng.random() > 0.2 else 0):
            box = np.array([*rng.random(2) * [500, 380], *np.exp(rng.random(2) * 4 + 1)])
            if rng.random() < 0.5:
                box = box.round()  # overlaps that lie exactly on a threshold
            category_id = int(rng.choice(category_ids[:-2]))
            area = float(rng.choice([32.0**2, 96.0**2])) if rng.random() < 0.1 else float(box[2] * box[3] * 0.7)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "bbox": box.tolist(),
                 "area": area, "iscrowd": int(rng.random() < crowd)}
            )  # fmt: skip
            for _ in range(rng.integers(0, per_object + 1)):
                noisy = (box * (1 + rng.normal(size=4) * 0.15 * rng.random())).round(int(rng.integers(0, 4)))
                results.append(
                    {"image_id": int(rng.choice(image_ids)) if rng.random() < 0.1 else image_id,
                     "category_id": int(rng.choice(category_ids[:-1])) if rng.random() < 0.2 else category_id,
                     "bbox": noisy.tolist(), "score": round(rng.random(), 1 if ties else 6)}
                )  # fmt: skip
    truth = {
        "images": [{"id": image_id, "height": 480, "width": 640} for image_id in image_ids],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in category_ids],
    }
    return truth, [results[i] for i in rng.permutation(len(results))]


@pytest.mark.parametrize("program", PROGRAMS)
def test_published_answers_of_pycocotools_authors(shared: Path, program: Program):
    folder = shared / "map_cases" / "cocoapi_val2014_100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = folder / "instances_val2014_fakebbox100_results.json"
    numbers = twelve(evaluate(truth, results, program))
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    assert numbers == pytest.approx(published, abs=5e-4)
    np.testing.assert_allclose(numbers, reference(truth, json.loads(results.read_text())), rtol=0, atol=1e-9)


@pytest.mark.parametrize("program", PROGRAMS)
def test_published_answers_of_a_small_case(shared: Path, program: Program):
    folder = shared / "map_cases" / "faster_coco_eval_small"
    truth = json.loads((folder / "gt_dataset.json").read_text())
    result = evaluate(truth, folder / "dt_dataset.json", program)
    assert pytest.approx([0.694719] * 3, abs=1e-6) == [result.AP, result.AP50, result.AP75]
    results = json.loads((folder / "dt_dataset.json").read_text())
    np.testing.assert_allclose(twelve(result), reference(truth, results), rtol=0, atol=1e-9)


@pytest.mark.parametrize("program", PROGRAMS)
def test_same_numbers_as_pycocotools_on_one_class(shared: Path, tmp_path: Path, program: Program):
    truth, results = padilla(shared)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    np.testing.assert_allclose(
        twelve(evaluate(truth, file, program)), reference(truth, results), rtol=0, atol=1e-9
    )  # fmt: skip


def padilla(shared: Path) -> tuple[Dict, list[Dict]]:
    folder = shared / "map_cases" / "padilla_sample2"
    files = sorted((folder / "groundtruths").glob("*.txt"))
    annotations: list[Dict] = []
    results: list[Dict] = []
    for image_id, file in enumerate(files, 1):
        for line in file.read_text().splitlines():
            box = [float(word) for word in line.split()[1:]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
        for line in (folder / "detections" / file.name).read_text().splitlines():
            score, *box = (float(word) for word in line.split()[1:])
            results.append({"image_id": image_id, "category_id": 1, "bbox": box, "score": score})
    images = [{"id": image_id} for image_id in range(1, len(files) + 1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}, results


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("crowd", [0, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_same_numbers_as_pycocotools_on_random_problems(seed: int, crowd: float, ties: bool, tmp_path: Path):
    truth, results = problem(np.random.default_rng(seed), 12, 3, 1 + 3 * seed, crowd=crowd, ties=ties)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    expected = reference(truth, results)
    assert len(set(expected)) > 6
    for program in PROGRAMS:
        np.testing.assert_allclose(twelve(evaluate(truth, file, program)), expected, rtol=0, atol=1e-9)


def test_both_programs_give_the_same_curves_and_classes(tmp_path: Path):
    truth, results = problem(np.random.default_rng(1), 30, 4, 5, crowd=0.1)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    fast, slow = (evaluate(truth, file, program) for program in PROGRAMS)
    assert fast.per_class == slow.per_class
    assert list(fast.per_class) == [category["name"] for category in truth["categories"]]
    assert fast.curves.keys() == slow.curves.keys() == {name for name, c in fast.per_class.items() if c.objects}
    for name, curve in fast.curves.items():
        assert curve.shape == (101,)
        np.testing.assert_array_equal(curve, slow.curves[name])
        assert pytest.approx(curve.mean()) == fast.per_class[name].AP50


@pytest.mark.parametrize("program", PROGRAMS)
def test_hand_computed(program: Program):
    # Class a: one object found with IoU .72, one missed. Class b: no objects. Class c: an object, never detected.
    truth = {
        "images": [{"id": "left"}, {"id": "right"}],
        "annotations": [
            {"id": 0, "image_id": "left", "category_id": 7, "bbox": [10, 10, 50, 50]},
            {"id": 1, "image_id": "right", "category_id": 7, "bbox": [10, 10, 50, 50]},
            {"id": 2, "image_id": "right", "category_id": 2, "bbox": [10, 10, 200, 200]},
        ],
        "categories": [{"id": 7, "name": "a"}, {"id": 4, "name": "b"}, {"id": 2, "name": "c"}],
    }
    evaluator = CocoEvaluator(GroundTruth.from_coco(truth), to_data=[None, 2], program=program)
    boxes = torch.tensor([[10.0, 10, 60, 46], [0, 0, 9, 9]])
    evaluator.update("left", Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), (100, 100)))
    result = evaluator.compute()
    half = 51 / 101  # recalls 0 … .5 of 0, .01 … 1 are reached
    # IoU .72 passes .50, .55, .60, .65, .70.
    assert pytest.approx(half * 5 / 10) == result.per_class["a"].AP
    assert pytest.approx(half) == result.per_class["a"].AP50
    assert result.per_class["a"].objects == 2
    assert (result.per_class["b"].objects, result.per_class["b"].AP, result.per_class["b"].AP50) == (0, None, None)
    assert (result.per_class["c"].objects, result.per_class["c"].AP) == (1, 0)
    assert pytest.approx(half / 2) == result.AP50
    assert result.AP75 == 0
    assert result.APs is None
    assert result.APm == pytest.approx(half / 2)
    assert result.APl == 0
    assert pytest.approx((0.5 * 5 / 10 + 0) / 2) == result.AR1


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_detected_and_nothing_there(program: Program):
    truth: Dict = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    assert twelve(CocoEvaluator(GroundTruth.from_coco(truth), program=program).compute()) == [-1] * 12
    truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40]}]
    result = CocoEvaluator(GroundTruth.from_coco(truth), program=program).compute()
    assert twelve(result) == [0, 0, 0, -1, 0, -1, 0, 0, 0, -1, 0, -1]


def test_json_has_the_agreed_keys():
    truth: Dict = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    tree = CocoEvaluator(GroundTruth.from_coco(truth)).compute().to_json()
    assert list(tree) == [
        "metric", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "per_class",
    ]  # fmt: skip
    assert tree["metric"] == "coco"
    assert tree["per_class"] == {"a": {"AP": None, "AP50": None}}
    assert json.loads(json.dumps(tree)) == tree


@pytest.mark.slow
def test_ten_times_faster_than_pycocotools_with_the_same_numbers():
    from detkit.evaluate.records import DetectionTable

    pictures, classes, per_picture = 5000, 80, 100
    rng = np.random.default_rng(0)
    count = pictures * 7
    boxes = np.column_stack([rng.random((count, 2)) * [500, 380], np.exp(rng.random((count, 2)) * 4 + 1)])
    labels = rng.integers(0, classes, count)
    truth = GroundTruth(
        tuple(range(pictures)), tuple(map(str, range(classes))), tuple(range(classes)), np.arange(count) // 7, labels,
        boxes, boxes[:, 2:].prod(1) * 0.7, rng.random(count) < 0.01, np.zeros(count, np.bool_),
    )  # fmt: skip
    owner = np.arange(pictures).repeat(per_picture) * 7 + rng.integers(0, 7, pictures * per_picture)
    noisy = boxes[owner] * (1 + rng.normal(size=(len(owner), 4)) * 0.1)
    noise = rng.integers(0, classes, len(owner))
    table = DetectionTable(
        owner // 7, np.where(rng.random(len(owner)) < 0.7, labels[owner], noise), np.abs(noisy), rng.random(len(owner))
    )
    numbers, seconds = {}, {}
    for program in PROGRAMS:
        evaluator = CocoEvaluator(truth, program=program)
        evaluator.extend(table)
        begin = time.perf_counter()
        numbers[program] = twelve(evaluator.compute())
        seconds[program] = time.perf_counter() - begin
    print(f"{pictures} pictures × {per_picture} detections: {seconds}")
    np.testing.assert_allclose(numbers["hotcoco"], numbers["pycocotools"], rtol=0, atol=1e-9)
    assert seconds["pycocotools"] > 10 * seconds["hotcoco"], seconds


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_class_without_a_name_is_like_any_other(program: Program, capfd: pytest.CaptureFixture[str]):
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": ""}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    assert CocoEvaluator(GroundTruth.from_coco(truth), program=program).compute().AP == 0
    assert capfd.readouterr() == ("", "")
