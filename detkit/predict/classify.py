"""Name what is in all the pictures that a user names: sources in, the best classes of each out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from detkit.classify.model import ClassifierModel
from detkit.data.picture import MAX_PIXELS
from detkit.predict.sources import Failure, Frame, find_sources, read_frames


@dataclass(frozen=True, slots=True)
class Named:
    """The best classes of a picture, best first: labels [K], and their probabilities [K]."""

    frame: Frame
    labels: list[int]
    scores: list[float]


@dataclass(slots=True)
class Summary:
    """How it went: sources found, pictures and frames done, and what failed."""

    sources: int
    pictures: int = 0
    failures: list[Failure] = field(default_factory=list)


def classify(
    model: ClassifierModel,
    names: Sequence[str],
    on_result: Callable[[Named | Failure], None] = lambda result: None,
    *,
    top: int = 5,
    batch_size: int = 8,
    max_pixels: int = MAX_PIXELS,
) -> Summary:
    """Classify pictures, folders, globs, videos, `-` and `sample:NAME`, and sum it up.

    on_result is called for every picture and frame in order, and with what could not be read. top: classes of each.
    Raises DetkitError when a name finds nothing, or the only picture cannot be read.
    """
    sources = find_sources(names)
    alone = len(names) == len(sources) == 1 and Path(names[0]) == Path(sources[0].name)  # no folder, no glob
    summary = Summary(len(sources))
    with closing(read_frames(sources, max_pixels, ahead=batch_size)) as frames:
        while items := list(islice(frames, batch_size)):
            scores = iter(model.predict([item.picture for item in items if isinstance(item, Frame)]).softmax(1))
            for item in items:
                if isinstance(item, Frame):
                    summary.pictures += 1
                    on_result(_best(item, next(scores), top))
                elif alone and not summary.pictures:
                    raise item.error
                else:
                    summary.failures.append(item)
                    on_result(item)
    return summary


def classes_line(named: Named, classes: Sequence[str]) -> str:
    """Return one picture as a line of JSON: source, frame (of a video, from 0), width, height, classes best first."""
    height, width = named.frame.picture.shape[:2]
    number = {} if named.frame.index is None else {"frame": named.frame.index}
    found: list[dict[str, Any]] = [
        {"label": classes[label], "label_id": label, "score": round(score, 4)}
        for label, score in zip(named.labels, named.scores, strict=True)
    ]
    record = {"source": named.frame.source.name, **number, "width": width, "height": height, "classes": found}
    return json.dumps(record)


def _best(frame: Frame, scores: Tensor, top: int) -> Named:
    best, labels = scores.topk(min(top, len(scores)))
    return Named(frame, labels.tolist(), best.tolist())
