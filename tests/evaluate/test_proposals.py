import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.data.sample import Dataset, Sample
from detkit.evaluate.proposals import PUBLISHED, Coverage, cover
from detkit.regions import Proposals


def sample(name: str, boxes: list[list[float]], labels: list[int], difficult: list[bool] | None = None) -> Sample:
    flags = np.array(difficult or [False] * len(labels), bool)
    table = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(name, Path(name), 100, 100, table, np.array(labels, np.int64), np.zeros(len(labels), bool), flags)


def proposals(*boxes: list[float]) -> Proposals:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    return Proposals(table, np.linspace(1, 0.5, len(table), dtype=np.float32))


def data(*samples: Sample) -> Dataset:
    return Dataset(Path("set"), None, ("cat", "dog", "cow"), list(samples), (1, 2, 3), [])


def test_coverage_by_hand() -> None:
    """IoU of the cats: .6 by the second box, and 0 in a picture without proposals; of the dog: .4, then .75."""
    dataset = data(
        sample("a", [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 1, 1]], [0, 1, 2], [False, False, True]),
        sample("b", [[0, 0, 10, 10]], [0]),
    )
    found = [proposals([50, 50, 54, 60], [0, 0, 6, 10], [50, 50, 57.5, 60]), proposals()]
    coverage = cover(dataset, found)
    assert (coverage.pictures, coverage.objects) == (2, 3)
    assert coverage.limits == [1, 2, 3]
    assert coverage.boxes == [0.5, 1, 1.5]
    assert coverage.recall50 == pytest.approx([0, 1 / 3, 2 / 3])
    assert coverage.recall70 == pytest.approx([0, 0, 1 / 3])
    assert coverage.mabo == pytest.approx([(0 + 0.4) / 2, (0.3 + 0.4) / 2, (0.3 + 0.75) / 2])
    assert coverage.abo == pytest.approx({"cat": 0.3, "dog": 0.75})


def test_without_objects_there_is_no_recall(tmp_path: Path) -> None:
    coverage = cover(data(sample("a", [], [])), [proposals([0, 0, 1, 1])])
    assert (coverage.objects, coverage.recall50, coverage.mabo, coverage.abo) == (0, [None], [None], {})
    coverage.save(tmp_path, "none")
    assert json.loads((tmp_path / "coverage.json").read_text())["recall70"] == [None]


def test_the_report_is_saved(tmp_path: Path) -> None:
    coverage = Coverage(3, 5, [1, 2, 5], [1, 2, 4.5], [0.2, 0.4, 0.8], [0, 0.2, 0.4], [0.3, 0.4, 0.6], {"cat": 0.6})
    coverage.save(tmp_path, "title")
    report = json.loads((tmp_path / "coverage.json").read_text())
    assert report["recall50"] == [0.2, 0.4, 0.8]
    assert report["abo"] == {"cat": 0.6}
    assert report["published_voc07"]["fast"] == {"boxes": 2134, "mabo": 0.804, "recall": None}
    assert PUBLISHED["quality"] == (10108, 0.879, 0.99)
    picture = cv2.imread(str(tmp_path / "coverage.png"))
    assert picture.shape[0] > 500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, "curves are drawn"
