"""The numbers of a classifier, worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.errors import DetkitError
from detkit.evaluate.classify import ClassifierEvaluator, calibrate
from detkit.evaluate.plots import plot_confusion, plot_reliability

NAMES = ("a", "b", "c", "d", "e", "f", "g")


def evaluator(*rows: tuple[list[float], int], names=NAMES) -> ClassifierEvaluator:
    found = ClassifierEvaluator(names)
    for scores, label in rows:
        found.update(torch.tensor([scores]), torch.tensor([label]))
    return found


def test_best_and_five_best() -> None:
    falling = [6.0, 5, 4, 3, 2, 1, 0]
    result = evaluator((falling, 0), (falling, 0), (falling, 4), (falling, 5)).compute()
    assert result.summary["top1"] == 0.5
    assert result.summary["top5"] == 0.75
    assert [(s.pictures, s.top1, s.top5) for s in result.per_class.values()] == [
        (2, 1, 1), (0, None, None), (0, None, None), (0, None, None), (1, 0, 1), (1, 0, 0), (0, None, None)
    ]  # fmt: skip
    assert result.confusion[[0, 4, 5], 0].tolist() == [2, 1, 1]
    assert result.confusion.sum() == 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    found = ClassifierEvaluator(["a", "b"])
    with pytest.raises(DetkitError, match="the classifier's scores are not finite"):
        found.update(torch.tensor([[0.0, 1], [0, value]]), torch.tensor([0, 1]))
    assert found.compute().summary["top1"] is None


def test_of_equal_scores_the_first_class_wins() -> None:
    # A network that says the same of every class knows nothing: it is right once in seven, not always.
    rows = [([0.0] * 7, label) for label in range(7)]
    summary = evaluator(*rows).compute().summary
    assert summary["top1"] == pytest.approx(1 / 7)
    assert summary["top5"] == pytest.approx(5 / 7)
    assert summary["val_loss"] == pytest.approx(math.log(7))


def test_loss_and_calibration_by_hand() -> None:
    # Odds 3 : 1 for the first class: confidence 3/4. Right twice and wrong once: accuracy 2/3, all in one bin.
    odds = [math.log(3), 0.0]
    summary = evaluator((odds, 0), (odds, 0), (odds, 1), names=("a", "b")).compute().summary
    assert summary["val_loss"] == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)
    assert summary["ece"] == pytest.approx(3 / 4 - 2 / 3)


def test_reliability_bin_by_bin() -> None:
    odds = [math.log(3), 0.0]
    sure = [math.log(99), 0.0]
    result = evaluator((odds, 0), (odds, 0), (odds, 1), (sure, 0), names=("a", "b")).compute()
    assert result.to_json()["calibration"] == [
        {"pictures": 3, "confidence": pytest.approx(0.75), "accuracy": pytest.approx(2 / 3)},
        {"pictures": 1, "confidence": pytest.approx(0.99), "accuracy": 1},
    ]
    assert result.summary["ece"] == pytest.approx((3 * (0.75 - 2 / 3) + 0.01) / 4)


def test_calibration_has_fifteen_bins_that_are_closed_above() -> None:
    confidence, correct = np.array([1 / 15, 0.5 / 15, 0.95]), np.array([False, True, True])
    # The first two share a bin: |1.5/15 − 1| of the three; the third is .05 from certain.
    assert calibrate(confidence, correct).error == pytest.approx(((1 - 0.1) + 0.05) / 3)
    apart = np.array([1 / 15, 1.01 / 15])
    assert calibrate(apart, np.array([False, True])).error == pytest.approx((1 / 15 + 1 - 1.01 / 15) / 2)


def test_without_pictures_nothing_is_said() -> None:
    assert set(evaluator().compute().summary.values()) == {None}


def test_what_is_saved(tmp_path: Path) -> None:
    result = evaluator(([2.0, 1, 0, 0, 0, 0, 0], 1)).compute()
    result.save(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["classes"]["b"] == {
        "pictures": 1, "top1": 0, "top5": 1
    }  # fmt: skip
    for name in ("confusion_matrix.png", "reliability.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_reliability_diagram_shows_accuracy_and_gaps() -> None:
    pictures, confidence, accuracy = np.array([0, 2, 3, 1]), np.array([0, 0.4, 0.7, 0.9]), np.array([0, 0.5, 0.25, 0.9])
    figure = plot_reliability(pictures, confidence, accuracy, 0.175)
    axes, below = figure.axes
    assert "0.175" in axes.get_title(loc="left")
    bars = [[(bar.get_x(), bar.get_y(), bar.get_height()) for bar in group] for group in axes.containers]
    assert bars == [
        [(0.25, 0, 0.5), (0.5, 0, 0.25), (0.75, 0, 0.9)],  # how often it is right
        [(0.5, 0.25, pytest.approx(0.45))],  # too sure
        [(0.25, 0.5, pytest.approx(-0.1))],  # not sure enough
    ]
    assert [bar.get_height() for bar in below.containers[0]] == [0, 2, 3, 1]


def test_a_thousand_classes_fit_a_picture() -> None:
    matrix = np.eye(1000, dtype=np.int64)
    figure = plot_confusion(matrix, [f"class {i}" for i in range(1000)], "Confusion", background=False)
    assert max(figure.get_size_inches()) * figure.dpi < 10_000
    assert not figure.axes[0].texts
    few = plot_confusion(matrix[:3, :3], ["a", "b", "c"], "Confusion", background=False)
    assert [label.get_text() for label in few.axes[0].get_xticklabels()] == ["a", "b", "c"]
