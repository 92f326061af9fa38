"""Propose boxes in all that a user names: sources in, lines of JSON and drawn pictures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray

from detkit.data.picture import MAX_PIXELS
from detkit.draw import pixel_corners
from detkit.errors import DetkitError, nearest
from detkit.predict.sources import Failure, Frame, find_sources, read_frames
from detkit.predict.writers import Writer
from detkit.regions import ProposalConfig, Proposals, propose
from detkit.structures import Detections

KINDS = ("image", "json")
_AHEAD = 4


@dataclass(slots=True)
class Proposed:
    """How it went: sources found, pictures and frames done, those that failed, and the folder of the results."""

    sources: int
    pictures: int
    failures: list[Failure]
    folder: Path | None


def proposals_line(frame: Frame, proposals: Proposals) -> str:
    """Return one picture as a line of JSON: source, frame (of a video), width, height, proposals with box and score.

    Boxes are rounded to hundredths of a pixel, scores to six digits.
    """
    height, width = frame.picture.shape[:2]
    number = {} if frame.index is None else {"frame": frame.index}
    found = [
        {"box": [round(side, 2) for side in box], "score": float(f"{score:.6g}")}
        for box, score in zip(proposals.boxes.tolist(), proposals.scores.tolist(), strict=True)
    ]
    return json.dumps({"source": frame.source.name, **number, "width": width, "height": height, "proposals": found})


def draw_proposals(picture: NDArray[np.uint8], proposals: Proposals) -> NDArray[np.uint8]:
    """Return a copy of an RGB picture [H, W, 3] with the outlines of boxes, from yellow for the best to blue."""
    canvas = picture.copy()
    height, width = picture.shape[:2]
    corners = pixel_corners(_as_detections(proposals, (height, width))).tolist()
    colors = (255 * colormaps["plasma"](np.linspace(0.95, 0.05, len(corners)))).round().astype(int)[:, :3].tolist()
    line = max(1, round((height * width) ** 0.5 / 400))
    for (x1, y1, x2, y2), color in reversed(list(zip(corners, colors, strict=True))):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, line)
    return canvas


def propose_sources(
    names: Sequence[str],
    config: ProposalConfig,
    on_result: Callable[[Frame, Proposals], None] = lambda frame, proposals: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    *,
    save: Collection[str] = ("image",),
    out: Path | None = None,
    drawn: int = 100,
    max_pixels: int = MAX_PIXELS,
) -> Proposed:
    """Propose boxes in pictures, folders, globs, videos, `-` and `sample:NAME`, and save what was asked for.

    save: `image` (pictures and videos with the best `drawn` boxes), `json` (proposals.jsonl). out: a new or empty
    folder; None takes the next free `runs/propose/<n>`. Raises DetkitError when a name finds nothing, the only picture
    cannot be read, a file of proposals lacks a picture, or a result cannot be written.
    """
    for kind in save:
        if kind not in KINDS:
            raise DetkitError(f"--save {kind}: expected some of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    sources = find_sources(names)
    alone = len(names) == len(sources) == 1 and Path(names[0]) == Path(sources[0].name)
    summary = Proposed(len(sources), 0, [], None)
    with _Writer(save, out, drawn) as writer, closing(read_frames(sources, max_pixels, _AHEAD)) as frames:
        for frame in frames:
            if isinstance(frame, Failure):
                if alone and not summary.pictures:
                    raise frame.error
                summary.failures.append(frame)
                on_failure(frame)
                continue
            proposals = propose(frame.picture, config, frame.source.name)
            height, width = frame.picture.shape[:2]
            writer.write(frame, _as_detections(proposals, (height, width)))
            summary.pictures += 1
            summary.folder = writer.folder
            on_result(frame, proposals)
    return summary


class _Writer(Writer):
    """Writes proposals, which have neither classes nor tags."""

    kind = "propose"
    lines = "proposals.jsonl"

    def __init__(self, save: Collection[str], out: Path | None, drawn: int) -> None:
        super().__init__(save, out, ())
        self._drawn = drawn

    def annotate(self, frame: Frame, detections: Detections) -> NDArray[np.uint8]:
        return draw_proposals(frame.picture, _as_proposals(detections)[: self._drawn])

    def line(self, frame: Frame, detections: Detections) -> str:
        return proposals_line(frame, _as_proposals(detections))


def _as_detections(proposals: Proposals, size_hw: tuple[int, int]) -> Detections:
    boxes, scores = torch.from_numpy(proposals.boxes), torch.from_numpy(proposals.scores)
    return Detections(boxes, scores, torch.zeros(len(scores), dtype=torch.int64), size_hw)


def _as_proposals(detections: Detections) -> Proposals:
    return Proposals(detections.boxes.numpy(), detections.scores.numpy())
