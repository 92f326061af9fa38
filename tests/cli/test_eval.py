import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detkit.model
from detkit import cli
from detkit.ops.nms import Selection
from detkit.structures import Detections

Run = Callable[..., tuple[int, str, str]]
TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit eval` in an empty folder: code, stdout, stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def detkit(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return detkit


@pytest.fixture
def published(shared: Path) -> list[str | Path]:
    folder = shared / "map_cases" / "cocoapi_val2014_100"
    results = folder / "instances_val2014_fakebbox100_results.json"
    return ["--detections", results, "--data", folder / "instances_val2014_100.json"]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A COCO file with one object, and a detection that finds it."""
    file = tmp_path / "tiny.json"
    file.write_text(
        json.dumps(
            {
                "images": [{"id": 3, "file_name": "a.jpg", "height": 50, "width": 60}],
                "annotations": [
                    {"id": 1, "image_id": 3, "category_id": 5, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}
                ],
                "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
            }
        )
    )
    return file, {"image_id": 3, "category_id": 5, "bbox": [1, 2, 30, 40], "score": 0.9}


@pytest.mark.slow
@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_published_answers(run: Run, published: list[str | Path], evaluator: str):
    code, out, _ = run(*published, "--json", "--evaluator", evaluator)
    assert code == 0
    tree = json.loads(out)
    answers = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    assert [tree[name] for name in TWELVE] == pytest.approx(answers, abs=5e-4)
    assert len(tree["per_class"]) == 80
    assert tree["per_class"]["horse"] == {"AP": None, "AP50": None}
    assert tree["per_class"]["teddy bear"]["AP50"] == pytest.approx(1)


def test_json_is_one_object_and_nothing_else(run: Run, tiny: tuple[Path, dict[str, Any]], tmp_path: Path):
    data, found = tiny
    results = tmp_path / "results.json"
    results.write_text(json.dumps([found]))
    code, out, _ = run("--detections", results, "--data", data, "--json")
    assert code == 0
    assert out.count("\n") == 1
    tree = json.loads(out)
    assert list(tree) == ["metric", *TWELVE, "per_class"]
    expected = {"AP": 1, "AP50": 1, "AP75": 1, "APs": None, "APm": 1, "APl": None}
    expected |= {"AR1": 1, "AR10": 1, "AR100": 1, "ARs": None, "ARm": 1, "ARl": None}
    assert {name: tree[name] for name in TWELVE} == pytest.approx(expected)
    assert tree["per_class"] == {"cat": pytest.approx({"AP": 1, "AP50": 1}), "dog": {"AP": None, "AP50": None}}
    assert json.loads(Path("runs/eval/1/metrics.json").read_text()) == tree


def test_table(run: Run, tiny: tuple[Path, dict[str, Any]], tmp_path: Path):
    data, found = tiny
    results = tmp_path / "results.json"
    results.write_text(json.dumps([found]))
    code, out, _ = run("--detections", results, "--data", data, "--out", "here")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["cat", "1", "1.000", "1.000"] in lines
    assert "classes without objects: dog" in out
    assert ["AP", "1.000", "IoU", ".50:.95"] in lines
    assert lines[-1] == ["detections:", "1,", "pictures:", "1;", "saved", "to", "here"]
    assert {path.name for path in Path("here").iterdir()} == {
        "metrics.json", "detections.json", "pr_curves.png", "confusion_matrix.png"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_voc_of_a_voc_folder(run: Run, shared: Path, tmp_path: Path, metric: str):
    folder = shared / "voc2012_sample100"
    classes = (folder / "voc.names").read_text().split()
    results = [
        {"image_id": file.stem, "category_id": int(label) + 1, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for file in sorted((folder / "dets" / "abs_xyx2y2").glob("*.txt"))
        for label, score, x1, y1, x2, y2 in (map(float, line.split()) for line in file.read_text().splitlines())
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    arguments = ["--detections", file, "--data", folder, "--metric", metric, "--json"]
    code, out, _ = run(*arguments)
    assert code == 0
    tree = json.loads(out)
    assert list(tree) == ["metric", "iou", *TWELVE, "per_class"]
    assert (tree["metric"], tree["iou"]) == (metric, 0.5)
    assert set(tree["per_class"]) == set(classes)
    values = [scores["AP"] for scores in tree["per_class"].values() if scores["AP"] is not None]
    assert tree["AP"] == pytest.approx(sum(values) / len(values))
    assert 0.2 < tree["AP"] < 1
    stricter = json.loads(run(*arguments, "--match-iou", "0.75")[1])
    assert (stricter["iou"], stricter["AP"] < tree["AP"]) == (0.75, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, "results.json, entry 0: bbox must be four finite numbers"),
        ({"bbox": [9, 9, -3, 4]}, "cannot be negative"),
        ({"image_id": 7}, "image_id 7 is none of the data set's 1 pictures"),
        ({"category_id": 1}, "category_id 1 is none of the data set's 2 categories (5, 9)"),
        ({"score": None}, "score must be a finite number, got None"),
    ],
)
def test_bad_detections(
    run: Run, tiny: tuple[Path, dict[str, Any]], tmp_path: Path, change: dict[str, Any], message: str
):
    data, found = tiny
    results = tmp_path / "results.json"
    results.write_text(json.dumps([found | change]))
    error = one_sentence(*run("--detections", results, "--data", data))
    assert message in error
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "sample:shapes", "--model", "a.cfg", "--detections", "b.json"], "--model is for a model"),
        (["--data", "sample:shapes", "--detections", "b.json", "--score", "0.3"], "--score is for a model"),
        (["--data", "sample:shapes", "--detections", "b.json", "--iou", "0.3"], "--iou is for a model"),
        (["--data", "sample:shapes", "--detections", "b.json", "--max-pixels", "9"], "--max-pixels is for a model"),
        (["--data", "sample:shapes", "--detections", "b.json", "--compile"], "--compile is for a model"),
        (["--data", "sample:shapes", "--detections", "b.json", "--match-iou", "0.3"], "--match-iou belongs to"),
        (["--data", "sample:shapes", "--detections", "b.json"], "b.json: cannot be read: No such file"),
        (["--data", "nowhere", "--detections", "b.json"], "nowhere: no such file or folder"),
        (["--data", "sample:shapes", "--split", "vall", "--model", "yolov3_tiny_coco"], "did you mean 'val'"),
        (["--data", "sample:shapes", "--model", "yolov3_darknet53_coc"], "did you mean 'yolov3_darknet53_coco'"),
    ],
)
def test_bad_arguments(run: Run, arguments: list[str], message: str):
    assert message in one_sentence(*run(*arguments))
    assert list(Path.cwd().iterdir()) == []


def one_sentence(code: int, out: str, err: str) -> str:
    assert code == 2
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in err
    return last


def test_too_large_pictures(run: Run, tiny: tuple[Path, dict[str, Any]], tmp_path: Path, nothing_found: None):
    data, _ = tiny
    Image.new("RGB", (60, 50)).save(tmp_path / "a.jpg")
    arguments = ["--model", "yolov3_tiny_coco", "--data", data]
    error = one_sentence(*run(*arguments, "--max-pixels", "2999"))
    assert "a.jpg: the picture is 60 wide and 50 high, more than the limit of 2999 pixels" in error
    assert "--max-pixels of detect and eval" in error
    assert list(Path.cwd().iterdir()) == []
    assert run(*arguments, "--max-pixels", "3000")[0] == 0


@pytest.fixture
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a model that finds nothing in place of any that is loaded."""

    class Blind:
        name, classes, selection, proposals = "blind", ("cat", "dog"), Selection(), None
        fill_batches = False

        def prepare(self, pictures: list[np.ndarray], proposals: None = None) -> list[np.ndarray]:
            return pictures

        def detect(self, pictures: list[np.ndarray], selection: Selection) -> list[Detections]:
            nothing = torch.zeros(0)
            return [Detections(nothing.reshape(0, 4), nothing, nothing.long(), (50, 60))] * len(pictures)

    monkeypatch.setattr(detkit.model, "load", lambda *_, **__: Blind())


def test_results_do_not_overwrite(run: Run, tiny: tuple[Path, dict[str, Any]], tmp_path: Path):
    data, found = tiny
    results = tmp_path / "results.json"
    results.write_text(json.dumps([found]))
    assert run("--detections", results, "--data", data, "--out", "here")[0] == 0
    before = Path("here/metrics.json").stat().st_mtime_ns
    assert "here: is not empty" in one_sentence(*run("--detections", results, "--data", data, "--out", "here"))
    assert Path("here/metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_released_model_on_coco(run: Run, shared: Path):
    cfg = shared / "weights" / "yolo-fastest-1.1" / "yolo-fastest-1.1.cfg"
    arguments = ["--model", cfg, "--data", shared / "coco_subset", "--split", "val2017", "--device", "cpu", "--json"]
    code, out, err = run(*arguments, "--resize", "stretch")
    assert code == 0
    tree = json.loads(out)
    assert tree["per_class"]["person"]["AP50"] == pytest.approx(0.46, abs=0.02)
    assert "classes matched by another spelling (data = model): motorcycle = motorbike, airplane = aeroplane" in err
    again = json.loads(run("--detections", "runs/eval/1/detections.json", *arguments[2:6], "--json")[1])
    assert again == tree
