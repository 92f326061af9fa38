"""Pictures of results: precision over recall, and the confusion matrix.

They are drawn through matplotlib's objects, without its global state, so that they can be drawn anywhere.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text

from detkit.evaluate.records import Floats, Ints

_INK, _MUTED, _GRID = "#222222", "#6b6b6b", "#e4e4e4"
_FEW, _LISTED = 10, 24


def plot_curves(curves: Mapping[str, Floats], scores: Mapping[str, float], title: str) -> Figure:
    """Draw precision [101] over the recalls 0, .01 … 1 of each class, and their mean.

    scores: the AP that stands beside each class. Ten classes or fewer get colours of their own; more are coloured by
    their AP; beyond 24 only the best and the worst are named.
    """
    figure, axes = _canvas(6.5, 5.5, title)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(color=_GRID, linewidth=0.8)
    if not curves:
        axes.text(0.5, 0.5, "no objects to find", ha="center", color=_MUTED)
        return figure
    recall = np.linspace(0, 1, 101)
    few, half = len(curves) <= _FEW, _LISTED // 2
    lines, labels = [], []
    for rank, name in enumerate(sorted(curves, key=lambda name: -scores[name])):
        precision = _until_zero(curves[name])
        color = colormaps["tab10"](rank) if few else colormaps["viridis_r"](scores[name])
        (line,) = axes.step(recall, precision, color=color, linewidth=2 if few else 1.1, alpha=1 if few else 0.75)
        lines.append(line)
        labels.append(f"{scores[name]:.3f}  {_short(name)}")
        if len(curves) == 1:
            axes.fill_between(recall, precision, step="pre", color=color, alpha=0.12, linewidth=0)
    if len(lines) > _LISTED:
        gap = f"… {len(lines) - _LISTED} more …"
        lines = [*lines[:half], *axes.plot([], [], alpha=0), *lines[-half:]]
        labels = [*labels[:half], gap, *labels[-half:]]
    if len(curves) > 1:
        mean = np.mean([scores[name] for name in curves])
        middle = _until_zero(np.mean(list(curves.values()), axis=0))
        lines = [*axes.step(recall, middle, color=_INK, linewidth=3), *lines]
        labels = [f"{mean:.3f}  mean of {len(curves)} classes", *labels]
    axes.legend(
        lines, labels, title="AP and class", loc="upper left", bbox_to_anchor=(1.02, 1.01), borderaxespad=0,
        frameon=False, fontsize=9 if len(labels) <= 12 else 7.8, title_fontsize=9, alignment="left", labelcolor=_INK,
    )  # fmt: skip
    return figure


def plot_confusion(matrix: Ints, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix [C + 1, C + 1] of counts; a cell's colour is its share of the true class' objects.

    The background's row, detections of nothing, is coloured by the share of all such detections.
    """
    names = [*(_short(name) for name in classes), "background"]
    totals = matrix.sum(1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    count = len(names)
    cell = max(0.2, 0.62 - 0.012 * count)  # inches
    side = max(3.4, cell * count)
    figure, axes = _canvas(side, side, title)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.6, 0, 1))  # brings out the rare
    font = float(np.clip(cell * 20, 5.5, 10))
    axes.set_xticks(range(count), names, rotation=90 if count > 4 else 0, fontsize=font)
    axes.set_yticks(range(count), [f"{name}  ({n:,})" for name, n in zip(names, totals, strict=True)], fontsize=font)
    axes.set(xlabel="Detected as", ylabel="True class (number of objects)")
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="white" if count <= 30 else _GRID, linewidth=1 if count <= 30 else 0.3)
    axes.tick_params(which="both", length=0)
    for line in (axes.axhline, axes.axvline):
        line(count - 1.5, color=_MUTED, linewidth=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        axes.text(
            column, row, _compact(matrix[row, column]), ha="center", va="center", fontsize=font * 0.9,
            color="white" if shares[row, column] > 0.45 else _INK,
        )  # fmt: skip
    height = min(side, 4) / side
    scale = figure.add_axes((1 + 0.25 / side, (1 - height) / 2, 0.18 / side, height))
    bar = figure.colorbar(image, cax=scale)
    bar.set_label("Share of the row", color=_MUTED, fontsize=max(font, 7))
    bar.ax.tick_params(labelsize=max(font, 7), color=_MUTED, labelcolor=_MUTED)
    bar.outline.set_visible(False)
    return figure


def _canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Make axes of this size in inches; what stands around them is cut to fit when the figure is saved (`to_png`)."""
    figure = Figure(figsize=(width, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold", pad=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(color=_GRID, labelcolor=_MUTED)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
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


def _until_zero(precision: Floats) -> Floats:
    """End a curve where it first reaches zero instead of drawing it along the axis."""
    return np.where(np.append(0, (precision == 0).cumsum()[:-1]) > 0, np.nan, precision)


def _compact(count: int) -> str:
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
