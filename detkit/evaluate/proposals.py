"""How well proposals cover the objects of a data set: recall and mean average best overlap against their number.

The best overlap of an object is the highest IoU that a proposal has with it; ABO is its mean over the objects of a
class (Uijlings et al., IJCV 104, 2013, section 5, eq. 7), MABO the mean of ABO over classes. Objects that are crowds
or marked difficult are not counted.

Shapes: N objects, K limits on the number of proposals of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from detkit.data.sample import Dataset
from detkit.evaluate.plots import GRID, INK, MUTED, canvas, to_png
from detkit.evaluate.records import Floats
from detkit.files import write_atomically
from detkit.ops.boxes import pairwise_iou
from detkit.regions import Proposals


class Published(NamedTuple):
    """A result of the paper's on VOC 2007 test: boxes per picture, MABO, and recall at IoU .5 where it is told."""

    boxes: int
    mabo: float
    recall: float | None


PUBLISHED = {"fast": Published(2134, 0.804, None), "quality": Published(10108, 0.879, 0.99)}
"""What the paper reports of selective search's modes on VOC 2007 test."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well the first proposals of each picture cover the objects.

    limits [K]: the most proposals of a picture that are looked at, the last of them all. boxes [K]: how many these are
    on average. recall50, recall70 [K]: share of objects with a best overlap of .5 or .7 and more; mabo [K]. abo: of
    each class that has objects, with all proposals. Recalls and MABO are none where there is no object.
    """

    pictures: int
    objects: int
    limits: list[int]
    boxes: list[float]
    recall50: list[float | None]
    recall70: list[float | None]
    mabo: list[float | None]
    abo: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a mapping: the curves by name, ABO by class, and the paper's numbers beside."""
        curves = {
            "boxes": self.boxes, "recall50": self.recall50, "recall70": self.recall70, "mabo": self.mabo,
        }  # fmt: skip
        return {
            "pictures": self.pictures,
            "objects": self.objects,
            "limits": self.limits,
            **curves,
            "abo": self.abo,
            "published_voc07": {mode: result._asdict() for mode, result in PUBLISHED.items()},
        }

    def save(self, folder: Path, title: str) -> None:
        """Write coverage.json and coverage.png."""
        write_atomically(folder / "coverage.json", json.dumps(self.to_json(), indent=2) + "\n")
        write_atomically(folder / "coverage.png", to_png(plot_coverage(self, title)))


def cover(dataset: Dataset, proposals: Sequence[Proposals]) -> Coverage:
    """Compare the proposals of each picture with its objects."""
    counts = np.array([len(found) for found in proposals])
    limits = _limits(int(counts.max(initial=0)))
    overlaps: list[Floats] = [np.zeros((0, len(limits)))]
    labels: list[int] = []
    for sample, found in zip(dataset.samples, proposals, strict=True):
        counted = ~(sample.crowd | sample.difficult)
        if not counted.any():
            continue
        labels.extend(sample.labels[counted].tolist())
        if not len(found):
            overlaps.append(np.zeros((int(counted.sum()), len(limits))))
            continue
        iou = pairwise_iou(torch.tensor(sample.boxes[counted]), torch.from_numpy(found.boxes))
        best_so_far = iou.cummax(1).values.numpy()
        overlaps.append(best_so_far[:, np.minimum(limits, len(found)) - 1].astype(np.float64))
    best, classes = np.concatenate(overlaps), np.array(labels, np.int64)
    present = np.unique(classes)
    abo = np.array([best[classes == label].mean(0) for label in present]).reshape(-1, len(limits))
    return Coverage(
        pictures=len(dataset),
        objects=len(best),
        limits=limits,
        boxes=[float(np.minimum(counts, limit).mean()) for limit in limits] if len(counts) else [0.0] * len(limits),
        recall50=_means(best >= 0.5),
        recall70=_means(best >= 0.7),
        mabo=_means(abo),
        abo={dataset.classes[label]: float(value) for label, value in zip(present, abo[:, -1], strict=True)},
    )


def plot_coverage(coverage: Coverage, title: str) -> Figure:
    """Draw recall and MABO over the number of boxes, with the paper's MABO as marks."""
    figure, axes = canvas(6.5, 5, title)
    axes.set(xlabel="Boxes per picture", ylabel="Share of objects, mean best overlap", xscale="log", ylim=(0, 1.01))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(which="minor", length=0)
    axes.grid(color=GRID, linewidth=0.8)
    if not coverage.objects:
        axes.text(0.5, 0.5, "no objects to find", ha="center", color=MUTED, transform=axes.transAxes)
        return figure
    curves = {"recall at IoU .5": coverage.recall50, "recall at IoU .7": coverage.recall70, "MABO": coverage.mabo}
    for index, (name, values) in enumerate(curves.items()):
        label = f"{values[-1]:.3f}  {name}"
        color, shares = colormaps["tab10"](index), np.array(values, np.float64)
        axes.plot(coverage.boxes, shares, color=color, linewidth=2, marker="o", ms=4, label=label)
    for marker, (mode, paper) in zip("*D", PUBLISHED.items(), strict=True):
        label = f"{paper.mabo:.3f}  MABO of {mode} in the paper, on VOC 2007"
        axes.plot(paper.boxes, paper.mabo, color=INK, linestyle="", marker=marker, ms=9, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.01), borderaxespad=0, frameon=False, fontsize=9)
    return figure


def print_coverage(coverage: Coverage, console: Console) -> None:
    """Print a line for each number of boxes, and what the paper reports."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("first", "boxes", "recall .5", "recall .7", "MABO"):
        table.add_column(column, justify="right")
    rows = zip(coverage.boxes, coverage.recall50, coverage.recall70, coverage.mabo, strict=True)
    for limit, (boxes, *shares) in zip(coverage.limits, rows, strict=True):
        table.add_row(str(limit), f"{boxes:.0f}", *("–" if share is None else f"{share:.3f}" for share in shares))
    console.print(table)
    console.print("selective search in its paper, on VOC 2007 test:")
    for mode, paper in PUBLISHED.items():
        recall = "" if paper.recall is None else f", recall .5 {paper.recall:.2f}"
        console.print(f"  {mode}: {paper.boxes} boxes, MABO {paper.mabo:.3f}{recall}")


def _limits(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … below the most proposals that a picture has, and these."""
    steps = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    return [step for step in steps if step < most] + [max(1, most)]


def _means(table: Any) -> list[float | None]:
    return [float(value) for value in table.mean(0)] if len(table) else [None] * table.shape[1]
