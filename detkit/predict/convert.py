"""Detections as other tools know them: JSON, COCO result lists, pandas, supervision.

The last two are optional packages, imported when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from detkit.errors import DetkitError
from detkit.structures import Detections


def to_json(detections: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return one mapping per object: `box` xyxy in pixels, `score`, `label` (the name), `label_id` (the index).

    Boxes are rounded to hundredths of a pixel, scores to four digits.
    """
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {
            "box": [round(side, 2) for side in box],
            "score": round(score, 4),
            "label": classes[label],
            "label_id": label,
        }
        for box, score, label in rows
    ]


def to_coco(detections: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return COCO results of one picture: `bbox` is (x, y, width, height), unrounded.

    category_ids [C]: the data set's category id of each label.
    """
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in rows
    ]


def to_pandas(detections: Detections, classes: Sequence[str]) -> Any:
    """Return a pandas.DataFrame: x1, y1, x2, y2, score, label, label_id; raises DetkitError without pandas."""
    frame = _optional("pandas").DataFrame(detections.boxes.numpy(force=True), columns=["x1", "y1", "x2", "y2"])
    frame["score"] = detections.scores.numpy(force=True)
    frame["label_id"] = detections.labels.numpy(force=True)
    frame.insert(5, "label", [classes[label] for label in detections.labels.tolist()])
    return frame


def to_supervision(detections: Detections, classes: Sequence[str]) -> Any:
    """Return supervision.Detections with `class_name` in their data; raises DetkitError without supervision."""
    import numpy as np

    return _optional("supervision").Detections(
        xyxy=detections.boxes.numpy(force=True),
        confidence=detections.scores.numpy(force=True),
        class_id=detections.labels.numpy(force=True),
        data={"class_name": np.array([classes[label] for label in detections.labels.tolist()], dtype=np.str_)},
    )


def _optional(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise DetkitError(f"{package} is not installed; run `pip install {package}`") from None
