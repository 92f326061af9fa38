"""Draw what detectors believe of one picture: all their boxes, and those that selection leaves.

    python tools/figure_beliefs.py PICTURE|sample:NAME OUT.png MODEL [MODEL ...]

Every box above a score of 0.02 is drawn, the surer the darker; beside them the boxes that the model reports.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from detkit.data.picture import read_picture, sample_picture
from detkit.model import load

_LOWEST = 0.02
_COLORS = ("#0067a5", "#c8102e", "#2e8540", "#b35900", "#6a3d9a")


def main() -> None:
    """Draw one row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+")
    arguments = parser.parse_args()
    named = arguments.picture.removeprefix("sample:")
    picture = sample_picture(named) if named != arguments.picture else read_picture(Path(named))
    height, width = picture.shape[:2]
    rows = len(arguments.models)
    figure = Figure(figsize=(8, 4 * rows * height / width), dpi=110, layout="constrained")
    for name, (before, after) in zip(arguments.models, figure.subplots(rows, 2, squeeze=False), strict=True):
        model = load(name, device="cpu")
        batch, (placement,) = model.preprocess([picture])
        with torch.inference_mode():
            believed = model.detector.decode(model.detector(batch.images), _LOWEST)
        boxes, found = placement.to_picture(believed.boxes[0]), model(picture)
        title = f"{type(model.detector).__name__}: {len(boxes)} boxes"
        _show(before, picture, title, boxes, believed.scores[0], believed.labels[0], model.classes, named=False)
        title = f"{len(found)} left above {model.selection.score:g}"
        _show(after, picture, title, found.boxes, found.scores, found.labels, model.classes, named=True)
    figure.savefig(arguments.out)


def _show(
    axes: Axes,
    picture: object,
    title: str,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    named: bool,
) -> None:
    axes.imshow(picture)  # type: ignore[arg-type]
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_axis_off()
    for row in scores.argsort().tolist():
        x1, y1, x2, y2 = boxes[row].tolist()
        score, label = scores[row].item(), int(labels[row])
        color = _COLORS[label % len(_COLORS)]
        opacity = 1 if named else 0.15 + 0.85 * min(score, 1)  # YOLOv1's are no probabilities
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, alpha=opacity, linewidth=1.2))
        if named:
            axes.text(
                x1, y1, f" {classes[label]} {score:.2f} ", color="white", backgroundcolor=color, fontsize=7, va="top"
            )


if __name__ == "__main__":
    main()
