"""Pictures of anchors: among the boxes that they are for, and how the fit grows with their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from detkit.anchors.run import Anchors, Boxes, Outcome
from detkit.data.sample import count
from detkit.evaluate.plots import GRID, INK, MUTED, canvas
from detkit.ops.kmeans import AnchorFit

_BINS = 80
_COLORS = ("#d1495b", "#edae49", "#30638e", "#3d9970", "#8e5ea2", "#00798c")


def plot_outcome(outcome: Outcome) -> Figure:
    """Draw the anchors among the boxes, or for a range of k the curve."""
    height, width = outcome.preprocess.size
    title = f"{outcome.source}: {count(len(outcome.boxes.shapes), 'object')} at {width} × {height}"
    if len(outcome.found) > 1:
        return plot_average_iou([anchors.fit for anchors in outcome.found], title)
    return plot_anchors(outcome.boxes, outcome.shown, f"{title}\naverage IoU {outcome.shown.fit.average_iou:.3f}")


def plot_anchors(boxes: Boxes, anchors: Anchors, title: str) -> Figure:
    """Draw how many boxes have each width and height, in grey, and the anchors with their scales' colours."""
    figure, axes = canvas(6, 6, title)
    low, high = float(boxes.shapes.min()), float(boxes.shapes.max())
    low, high = min(low, float(anchors.fit.anchors.min())) / 1.2, max(high, float(anchors.fit.anchors.max())) * 1.2
    edges = np.geomspace(low, high, _BINS + 1)
    counts = np.histogram2d(boxes.shapes[:, 1], boxes.shapes[:, 0], edges)[0]
    axes.pcolormesh(edges, edges, np.ma.masked_equal(counts, 0), cmap="Greys", norm=LogNorm(0.5, max(counts.max(), 1)))
    for index, (scale, shares) in enumerate(zip(anchors.scales, anchors.shares, strict=True)):
        label = f"stride {scale.stride}: {shares.sum():.0%} of the objects"
        color = _COLORS[index % len(_COLORS)]
        axes.scatter(scale.anchors[:, 0], scale.anchors[:, 1], 70, color, edgecolor="white", zorder=3, label=label)
    axes.set(xlabel="Width in pixels of the network's input", ylabel="Height", xscale="log", yscale="log")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def plot_average_iou(fits: Sequence[AnchorFit], title: str) -> Figure:
    """Draw the average IoU over the number of anchors (YOLOv2, figure 2)."""
    figure, axes = canvas(6.5, 4.5, title)
    numbers, values = [len(fit.anchors) for fit in fits], [fit.average_iou for fit in fits]
    axes.plot(numbers, values, color=_COLORS[2], linewidth=2, marker="o", markersize=6)
    for number, value in zip(numbers, values, strict=True):
        if len(numbers) <= 20:
            axes.annotate(
                f".{round(1000 * value):03d}" if value < 0.9995 else "1", (number, value), (6, -12), ha="left",
                textcoords="offset points", fontsize=8, color=MUTED,
            )  # fmt: skip
    axes.set(
        xlabel="Number of anchors k", ylabel="Average IoU", ylim=(min(values) - 0.05, min(1.05, max(values) + 0.05))
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    axes.grid(color=GRID, linewidth=0.8)
    return figure
