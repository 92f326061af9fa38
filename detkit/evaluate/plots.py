"""Pictures of results: precision over recall, the confusion matrix, and the reliability of a classifier's confidence.

They are drawn through matplotlib's objects, without its global state, so that they can be drawn anywhere.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.typing import ColorType

from detkit.evaluate.records import Floats, Ints

INK, MUTED, GRID = "#222222", "#6b6b6b", "#e4e4e4"
_BLUE, _RED, _GREEN = "#3b78b5", "#c0504d", "#4f9d69"
_FEW, _LISTED = 10, 24
_LEGIBLE = 200  # classes; more are drawn without names and numbers
_DASH = 8.0  # points


def plot_curves(curves: Mapping[str, Floats], scores: Mapping[str, float], title: str) -> Figure:
    """Draw precision [101] over the recalls 0, .01 … 1 of each class, and their mean.

    scores: the AP that stands beside each class. Ten classes or fewer get colours of their own; more are coloured by
    their AP; beyond 24 only the best and the worst are named.
    """
    figure, axes = canvas(6.5, 5.5, title)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(color=GRID, linewidth=0.8)
    if not curves:
        axes.text(0.5, 0.5, "no objects to find", ha="center", color=MUTED)
        return figure
    few, half = len(curves) <= _FEW, _LISTED // 2
    ranked = sorted(curves, key=lambda name: -scores[name])
    drawn = [(f"{scores[name]:.3f}  {_short(name)}", curves[name]) for name in ranked]
    styles: list[tuple[ColorType, float]]
    if few:
        styles = [(colormaps["tab10"](rank), 2.0) for rank in range(len(ranked))]
    else:  # without viridis' yellow, which hardly shows on white
        styles = [(colormaps["viridis"](0.75 * (1 - scores[name])), 1.1) for name in ranked]
    if len(curves) > 1:
        mean = np.mean([scores[name] for name in curves])
        drawn.insert(0, (f"{mean:.3f}  mean of {len(curves)} classes", np.mean(list(curves.values()), axis=0)))
        styles.insert(0, (INK, 3.0))
    shapes = [tuple(np.round(precision, 2)) for _, precision in drawn]
    handles, labels = [], [label for label, _ in drawn]
    for index, ((_, precision), (color, width)) in enumerate(zip(drawn, styles, strict=True)):
        handles.append(Line2D([], [], color=color, linewidth=width))
        others, before = shapes.count(shapes[index]) - 1, shapes[:index].count(shapes[index])
        dash = _DASH / width  # matplotlib counts in line widths
        style: str | tuple[float, tuple[float, float]] = "-"
        if others and few:  # curves that coincide take turns, so that each of them is seen
            style = (-before * dash, (dash, others * dash))
        elif others and color == INK:
            style = (0, (dash, dash))
        recall, precision = _until_zero(precision)
        axes.step(recall, precision, color=color, linewidth=width, linestyle=style, zorder=3 if color == INK else 2)
        if len(curves) == 1:
            axes.fill_between(recall, precision, step="pre", color=color, alpha=0.12, linewidth=0)
    if len(curves) > _LISTED:
        labels[half + 1 : -half] = [f"… {len(curves) - _LISTED} more …"]
        handles[half + 1 : -half] = [Line2D([], [], alpha=0)]
    axes.legend(
        handles, labels, title="AP and class", loc="upper left", bbox_to_anchor=(1.02, 1.01), borderaxespad=0,
        frameon=False, fontsize=9 if len(labels) <= 12 else 7.8, title_fontsize=9, alignment="left", labelcolor=INK,
    )  # fmt: skip
    return figure


def plot_confusion(matrix: Ints, classes: Sequence[str], title: str, *, background: bool = True) -> Figure:
    """Draw a confusion matrix [C + 1, C + 1] of counts; a cell's colour is its share of the true class' objects.

    The background's row, detections of nothing, is coloured by the share of all such detections. Classes with neither
    objects nor detections are left out, and counted in the title. background: without it, as for whole pictures, the
    matrix is [C, C].
    """
    count = len(classes)
    kept = np.logical_or(matrix[:count].any(1), matrix[:, :count].any(0))
    names = [_short(name) for name, keep in zip(classes, kept, strict=True) if keep]
    if background:
        kept, names = np.append(kept, True), [*names, "background"]
    thing, found = ("objects", "detections") if background else ("pictures", "predictions")
    if not kept.all():
        title += f"\n{(~kept).sum()} of {len(classes)} classes left out: no {thing}, no {found}"
    matrix = matrix[np.ix_(kept, kept)]
    totals = matrix.sum(1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    count = len(names)
    legible = count <= _LEGIBLE
    cell = max(0.18, 0.62 - 0.012 * count) if legible else 0.18 * _LEGIBLE / count  # inches
    side = max(3.4, cell * count)
    figure, axes = canvas(side, side, title)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.6, 0, 1))  # brings out the rare
    font = min(10.0, cell * 50)  # names nearly fill their rows: many are to be read without zooming
    small = float(np.clip(cell * 20, 4.5, 9))
    axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=font)
    axes.set_yticks(range(count), [f"{name}  ({n:,})" for name, n in zip(names, totals, strict=True)], fontsize=font)
    if not legible:
        axes.set(xticks=[], yticks=[])
    axes.set(xlabel="Detected as" if background else "Predicted as", ylabel=f"True class (number of {thing})")
    if legible:
        axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="white" if count <= 30 else GRID, linewidth=1 if count <= 30 else 0.3)
    axes.tick_params(which="both", length=0)
    for line in (axes.axhline, axes.axvline) if background else ():
        line(count - 1.5, color=MUTED, linewidth=1)
    for row, column in zip(*np.nonzero(matrix), strict=True) if legible else ():
        axes.text(
            column, row, _compact(matrix[row, column]), ha="center", va="center", fontsize=small,
            color="white" if shares[row, column] > 0.45 else INK,
        )  # fmt: skip
    height = min(side, 4) / side
    scale = figure.add_axes((1 + 0.25 / side, (1 - height) / 2, 0.18 / side, height))
    bar = figure.colorbar(image, cax=scale)
    bar.set_label("Share of the row", color=MUTED, fontsize=max(font, 7))
    bar.ax.tick_params(labelsize=max(font, 7), color=MUTED, labelcolor=MUTED)
    bar.outline.set_visible(False)
    return figure


def plot_reliability(pictures: Ints, confidence: Floats, accuracy: Floats, error: float | None) -> Figure:
    """Draw how often a classifier is right over how sure it is, and below how many pictures have that confidence.

    pictures, confidence, accuracy [M]: of bins of equal width from 0 to 1, as `Calibration` has them. error: the
    expected calibration error. A gap's colour says whether the confidence is too high or too low there.
    """
    edges = np.linspace(0, 1, len(pictures) + 1)[:-1]
    some, width = pictures > 0, 1 / len(pictures)
    bins: Any = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    title = "Reliability" if error is None else f"Reliability: expected calibration error {error:.3f}"
    figure, axes = canvas(5.5, 4.6, title)
    axes.bar(edges[some], accuracy[some], color=_BLUE, **bins)
    for color, where in ((_RED, some & (confidence > accuracy)), (_GREEN, some & (confidence < accuracy))):
        axes.bar(edges[where], (confidence - accuracy)[where], bottom=accuracy[where], color=color, **bins)
    axes.plot((0, 1), (0, 1), color=MUTED, linestyle=(0, (4, 4)), linewidth=1, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), ylabel="Share that is right", xticklabels=[])
    axes.grid(color=GRID, linewidth=0.8)
    handles = [Patch(color=_RED, label="too sure"), Patch(color=_GREEN, label="not sure enough")]
    axes.legend(handles=handles, title="mean confidence", frameon=False, loc="upper left", fontsize=9, labelcolor=INK)
    below = figure.add_axes((0, -0.3, 1, 0.24))
    below.bar(edges, pictures, color=MUTED, **bins)
    below.set(xlim=(0, 1), xlabel="Confidence", ylabel="Pictures")
    below.spines[:].set_visible(False)
    below.tick_params(color=GRID, labelcolor=MUTED)
    below.grid(color=GRID, linewidth=0.8, axis="y")
    below.set_axisbelow(True)
    return figure


def canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Make axes of this size in inches; what stands around them is cut to fit when the figure is saved (`to_png`)."""
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(color=GRID, labelcolor=MUTED)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_axisbelow(True)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's content."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called "$"
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # on characters that the font lacks
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.2)
    return buffer.getvalue()


def _until_zero(precision: Floats) -> tuple[Floats, Floats]:
    """Return the recalls and precisions of a curve that ends where it falls to zero."""
    recall = np.linspace(0, 1, len(precision))
    end = int((np.append(precision, 0) == 0).argmax())
    if end in (0, len(precision)):
        return recall[:end], precision[:end]
    return np.append(recall[:end], recall[end - 1]), np.append(precision[:end], 0)


def _compact(count: int) -> str:
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
