import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkit.data.dataset import Dataset, load_dataset
from detkit.errors import DetkitError
from detkit.evaluate import run
from detkit.evaluate.coco import CocoResult
from detkit.evaluate.run import evaluate_model, evaluate_results, results_folder
from detkit.evaluate.voc import VocResult
from detkit.ops.nms import Selection
from detkit.structures import Detections


@dataclass
class Oracle:
    """A model that knows the pictures of a data set by their pixels and finds every object, best first.

    extra: as many detections of its last class come first in every picture.
    """

    data: Dataset
    classes: tuple[str, ...]
    extra: int = 0
    name: str = "oracle"

    def __post_init__(self):
        self.selection = Selection()
        self.proposals = None
        self.fill_batches = False
        self.known = {sample.read().tobytes(): sample for sample in self.data.samples}
        self.batches: list[int] = []
        self.selections: list[Selection] = []

    def prepare(self, pictures: list[np.ndarray], proposals: None) -> list[np.ndarray]:
        return pictures

    def detect(self, pictures: list[np.ndarray], selection: Selection) -> list[Detections]:
        self.batches.append(len(pictures))
        self.selections.append(selection)
        return [self._find(self.known[picture.tobytes()], selection) for picture in pictures]

    def _find(self, sample: Any, selection: Selection) -> Detections:
        labels = [self.classes.index(self.data.classes[label]) for label in sample.labels]
        boxes = torch.cat([torch.tensor([[0.0, 0, 9, 9]]).repeat(self.extra, 1), torch.tensor(sample.boxes)])
        labels = torch.tensor([len(self.classes) - 1] * self.extra + labels, dtype=torch.long)
        scores = torch.linspace(1, 0.5, len(labels))
        found = Detections(boxes, scores, labels, (sample.height, sample.width))
        if selection.labels:
            found = found[torch.isin(labels, torch.tensor(selection.labels))]
        return found[: selection.max_detections]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("sample:shapes?pictures=7&size=96", "train")


def test_an_oracle_is_perfect(data: Dataset):
    oracle, done, said = Oracle(data, data.classes), [], []
    evaluation = evaluate_model(oracle, data, batch_size=3, advance=done.append, say=said.append)
    assert pytest.approx(1) == evaluation.result.AP
    assert isinstance(evaluation.result, CocoResult)
    assert len(evaluation.detections) == sum(len(sample.labels) for sample in data.samples) > 0
    assert done == oracle.batches == [3, 3, 1]
    assert said == []
    assert {(selection.score, selection.max_detections) for selection in oracle.selections} == {(0.001, 100)}


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_voc_metrics(data: Dataset, metric: run.Metric):
    result = evaluate_model(Oracle(data, data.classes), data, metric=metric, match_iou=0.9).result
    assert isinstance(result, VocResult)
    assert (result.metric, result.iou, result.AP) == (metric, 0.9, 1)


def test_classes_are_matched_by_name_and_others_are_said(data: Dataset):
    oracle = Oracle(data, ("dog", *reversed(data.classes)))
    said: list[str] = []
    assert pytest.approx(1) == evaluate_model(oracle, data, say=said.append).result.AP
    assert said == ["1 of 7 classes of the model are not in the data: dog"]


def test_classes_unknown_to_the_data_take_no_places(data: Dataset):
    oracle = Oracle(data, (*data.classes, "dog"), extra=150)
    most = max(len(sample.labels) for sample in data.samples)
    evaluation = evaluate_model(oracle, data, selection=Selection(max_detections=most))
    assert pytest.approx(1) == evaluation.result.AP
    cut = evaluate_model(oracle, data, selection=Selection(max_detections=1))
    assert len(cut.detections) == sum(len(sample.labels) > 0 for sample in data.samples)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO file of two pictures whose categories and images are not in the order of their ids."""
    rng = np.random.default_rng(0)
    tree = {
        "images": [{"id": "b", "file_name": "b.png"}, {"id": 10, "file_name": "ten.png"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 30, 40]},
            {"id": 2, "image_id": "b", "category_id": 3, "bbox": [10, 2, 20, 9]},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    for image in tree["images"]:
        image |= {"height": 50, "width": 60}
        cv2.imwrite(str(tmp_path / image["file_name"]), rng.integers(0, 255, (50, 60, 3), np.uint8))
    file = tmp_path / "data.json"
    file.write_text(json.dumps(tree))
    return file


@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_ids_in_any_order(coco: Path, tmp_path: Path, metric: run.Metric):
    data = load_dataset(coco)
    evaluation = evaluate_model(Oracle(data, ("dog", "cat")), data, metric=metric)
    assert pytest.approx(1) == evaluation.result.AP
    evaluation.save(tmp_path / "out")
    again = evaluate_results(tmp_path / "out" / "detections.json", data, metric=metric)
    assert again.result.to_json() == evaluation.result.to_json()


def test_a_file_that_changes_under_way(coco: Path):
    data = load_dataset(coco)
    oracle = Oracle(data, data.classes)
    coco.write_text(coco.read_text().replace('"cat"', '"bird"'))
    with pytest.raises(DetkitError, match=r"data\.json: its categories are not those read before"):
        evaluate_model(oracle, data)


def test_no_common_class(data: Dataset):
    class Blind(Oracle):
        def predict(self, pictures, selection, proposals=None):
            raise AssertionError("nothing is to be detected")

    with pytest.raises(DetkitError, match=r"none of its classes \(circle, cross, .*\) is known to the model oracle"):
        evaluate_model(Blind(data, ("dog", "cat")), data)


def test_missing_pictures_are_known_before_the_work(coco: Path):
    class Idle(Oracle):
        def predict(self, pictures, selection, proposals=None):
            raise AssertionError("nothing is to be detected")

    data = load_dataset(coco)
    oracle = Idle(data, data.classes)
    (coco.parent / "ten.png").unlink()
    with pytest.raises(DetkitError, match=r"data\.json: 1 of 2 pictures not found, the first is .*ten\.png; restore"):
        evaluate_model(oracle, data, batch_size=1)


def test_a_picture_that_cannot_be_read_is_named(data: Dataset, tmp_path: Path):
    truncated = tmp_path / "half.png"
    picture = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))[1].tobytes()
    truncated.write_bytes(picture[: len(picture) // 2])
    bad = replace(data.samples[3], path=truncated, draw=None)
    broken = replace(data, samples=[*data.samples[:3], bad, *data.samples[4:]])
    with pytest.raises(DetkitError, match=r"half\.png"):
        evaluate_model(Oracle(data, data.classes), broken, batch_size=2)


@pytest.mark.parametrize(("side", "most"), [(96, 16), (8000, 6)])
def test_pictures_are_read_ahead_but_not_all_at_once(data: Dataset, side: int, most: int):
    class Slow(Oracle):
        def prepare(self, pictures: list[np.ndarray], proposals: None) -> list[np.ndarray]:
            nonlocal seen
            seen += len(pictures)
            time.sleep(0.05)
            waiting.append(len(read) - seen)
            return pictures

        def detect(self, pictures: list[np.ndarray], selection: Selection) -> list[Detections]:
            nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), (96, 96))
            return [nothing] * len(pictures)

    def draw() -> np.ndarray:
        read.append(1)
        return np.broadcast_to(np.zeros(3, np.uint8), (side, side, 3))  # large pictures that take no memory

    read: list[int] = []
    waiting: list[int] = []
    seen = 0
    blind = Slow(data, data.classes)
    evaluate_model(blind, replace(data, samples=[replace(data.samples[0], draw=draw)] * 60), batch_size=8)
    assert seen == len(read) == 60
    assert 2 <= max(waiting) <= most


def test_too_large_pictures(coco: Path):
    data = load_dataset(coco)
    oracle = Oracle(data, data.classes)
    with pytest.raises(DetkitError, match=r"b\.png: the picture is 60 wide .* the limit of 2999 pixels"):
        evaluate_model(oracle, data, max_pixels=2999)
    assert pytest.approx(1) == evaluate_model(oracle, data, max_pixels=3000).result.AP


def test_saved_files(data: Dataset, tmp_path: Path):
    evaluation = evaluate_model(Oracle(data, data.classes), data)
    evaluation.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion_matrix.png", "detections.json", "metrics.json", "pr_curves.png"
    ]  # fmt: skip
    assert json.loads((tmp_path / "metrics.json").read_text()) == evaluation.result.to_json()
    for name in ("confusion_matrix.png", "pr_curves.png"):
        assert min(cv2.imread(str(tmp_path / name)).shape[:2]) > 400
    again = evaluate_results(tmp_path / "detections.json", data)
    assert again.result.to_json() == evaluation.result.to_json()


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for number in ("1", "2"):
        with results_folder(None) as folder:
            assert folder == Path("runs", "eval", number)


def test_a_failure_leaves_nothing(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    evaluation = evaluate_model(Oracle(data, data.classes), data)
    write = run.write_atomically

    def full(path: Path, content: bytes | str) -> None:
        if path.suffix == ".png":
            raise DetkitError(f"{path}: cannot be written: No space left on device")
        write(path, content)

    monkeypatch.setattr(run, "write_atomically", full)
    for out in (None, Path("mine")):
        with pytest.raises(DetkitError, match="No space left"), results_folder(out) as folder:
            evaluation.save(folder)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "out"), [("keep", "keep"), ("deep", "deep/a/b"), ("runs/eval", None)])
def test_a_failure_leaves_the_folders_that_were_there(
    before: str, out: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path(before).mkdir(parents=True)
    for error in (DetkitError, KeyboardInterrupt):
        with pytest.raises(error), results_folder(Path(out) if out else None):
            raise error("the work failed")
        assert Path(before).is_dir()
        assert list(Path(before).iterdir()) == []


def test_folders_on_the_way_to_one_that_cannot_be_made_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = Path.mkdir

    def full(path: Path, **options: Any) -> None:
        make(path.parent, **options)
        raise OSError(28, "No space left on device")

    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DetkitError, match="No space left"), results_folder(tmp_path / "mine" / "new" / "last"):
        raise AssertionError("the work must not begin")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine"]


def test_results_go_to_an_empty_folder_or_nowhere(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for out, message in ((tmp_path, "is not empty"), (tmp_path / "notes.txt" / "out", r"out: cannot be written")):
        with pytest.raises(DetkitError, match=message), results_folder(out):
            raise AssertionError("the work must not begin")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
