from itertools import pairwise

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from detkit.data.names import CLASS_LISTS
from detkit.evaluate.plots import plot_confusion, plot_curves, plot_reliability, to_png


def names(count: int) -> list[str]:
    return list(CLASS_LISTS["coco"])[:count]


def curves(count: int) -> dict[str, np.ndarray]:
    reach = np.random.default_rng(0).random(count)
    return {name: np.clip(1 - np.linspace(0, 1, 101) / r, 0, 1) for name, r in zip(names(count), reach, strict=True)}


def pixels(figure: Figure) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(to_png(figure), np.uint8), cv2.IMREAD_COLOR).reshape(-1, 3)


@pytest.mark.parametrize(("count", "entries"), [(1, 1), (3, 4), (20, 21), (80, 26)])
def test_curves_name_the_classes_by_rank(count: int, entries: int):
    table = curves(count)
    scores = {name: float(values.mean()) for name, values in table.items()}
    figure = plot_curves(table, scores, "title")
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == entries
    best = max(scores, key=scores.__getitem__)
    assert f"{scores[best]:.3f}  {best}" == labels[0 if count == 1 else 1]
    if count > 1:
        assert labels[0] == f"{np.mean(list(scores.values())):.3f}  mean of {count} classes"
        worst = min(scores, key=scores.__getitem__)
        assert labels[-1] == f"{scores[worst]:.3f}  {worst}"
    if count == 80:
        assert labels[13] == "… 56 more …"
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    assert len(drawn) == count + (count > 1)
    assert len(np.unique(pixels(figure), axis=0)) > 10


@pytest.mark.parametrize("count", [2, 6, 10, 12])
def test_coinciding_curves_are_all_seen(count: int):
    figure = plot_curves(dict.fromkeys(names(count), np.ones(101)), dict.fromkeys(names(count), 1.0), "title")
    axes = figure.axes[0]
    axes.get_legend().remove()
    axes.set_title("", loc="left")
    axes.tick_params(labelcolor="white")
    axes.set(xlabel="", ylabel="")
    seen = {tuple(color) for color in pixels(figure).tolist()}
    for line in axes.lines:
        assert tuple(round(255 * value) for value in to_rgb(line.get_color())[::-1]) in seen


def test_curves_end_where_they_fall_to_zero():
    precision = np.r_[np.ones(51), np.zeros(50)]
    for table in ({"a": precision}, {"a": precision, "b": np.ones(101), "none": np.zeros(101)}):
        axes = plot_curves(table, {name: float(values.mean()) for name, values in table.items()}, "title").axes[0]
        for line in axes.lines:
            recall, height = line.get_data()
            assert all(recall[height == 0] == recall[height > 0].max(initial=0)), "a dash on the axis"
            assert np.isfinite(height).all()


def test_no_curve_is_too_bright_to_be_seen():
    table = curves(80)
    for line in plot_curves(table, dict.fromkeys(table, 0.0), "title").axes[0].lines:
        assert np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114)) < 0.7


def test_curves_without_classes():
    (axes,) = plot_curves({}, {}, "title").axes
    assert [text.get_text() for text in axes.texts] == ["no objects to find"]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_confusion_shows_counts_and_shares(count: int):
    matrix = np.random.default_rng(0).integers(0, 3, (count + 1, count + 1)) * 7
    matrix[0] = 0
    matrix[0, 0] = 2345
    matrix[-1, -1] = 0
    axes = plot_confusion(matrix, names(count), "title").axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown[(0, 0)] == "2.3k"
    assert len(shown) == np.count_nonzero(matrix)
    np.testing.assert_allclose(
        axes.images[0].get_array().sum(1), matrix.any(1), err_msg="each row that counts anything adds up to 1"
    )
    assert axes.get_xticklabels()[-1].get_text() == "background"
    assert axes.get_yticklabels()[0].get_text() == f"{names(1)[0]}  (2,345)"


@pytest.mark.slow
def test_confusion_of_many_classes_fits():
    matrix = np.random.default_rng(0).integers(0, 2, (81, 81))
    figure = plot_confusion(matrix, names(80), "title")
    pixels(figure)  # lays out
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes)), "names overlap"
    assert min(box.height for box in boxes) > figure.bbox.height / 81 / 2, "names are too small to be read"


def test_confusion_leaves_out_classes_that_do_not_occur():
    matrix = np.zeros((5, 5), np.int64)
    matrix[1, 4], matrix[4, 2] = 3, 2  # one class is never found, of one there are no objects
    axes = plot_confusion(matrix, ["a", "b", "c", "d"], "title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "c", "background"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b  (3)", "c  (0)", "background  (2)"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(2, 0): "3", (1, 2): "2"}
    assert axes.get_title("left") == "title\n2 of 4 classes left out: no objects, no detections"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac$", "猫", "a\nb", ""])
def test_any_class_name_can_be_drawn(name: str):
    assert to_png(plot_curves({name: np.linspace(1, 0, 101)}, {name: 0.5}, "title"))[:4] == b"\x89PNG"
    assert to_png(plot_confusion(np.ones((2, 2), np.int64), [name], "title"))[:4] == b"\x89PNG"


def test_the_gaps_of_reliability_have_the_colours_of_the_legend() -> None:
    pictures, confidence = np.array([0, 4, 4, 0]), np.array([0, 0.4, 0.6, 0])
    for accuracy in ([0, 0.2, 0.9, 0], [0, 0.2, 0.3, 0]):  # in the second none is too low
        axes = plot_reliability(pictures, confidence, np.array(accuracy), 0.2).axes[0]
        swatches = {patch.get_label(): patch.get_facecolor() for patch in axes.get_legend().get_patches()}
        told = [
            "too sure" if sure > right else "not sure enough" for sure, right in zip(confidence, accuracy, strict=True)
        ][1:3]
        gaps = {bar.get_y() + bar.get_height(): bar.get_facecolor() for bar in axes.patches if bar.get_y() > 0}
        assert gaps == {0.4: swatches[told[0]], 0.6: swatches[told[1]]}
        assert swatches.keys() == {"too sure", "not sure enough"}
        assert len(set(swatches.values())) == 2
