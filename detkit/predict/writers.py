"""Results written to a folder: annotated pictures and videos, JSON lines, crops.

    <folder>/dog.jpg                    annotated: PNG for a PNG, else JPEG; a video for a video
    <folder>/detections.jsonl           one line per picture or frame
    <folder>/crops/<label>/dog-1.jpg    one picture per object, numbered best first
    <folder>/dog-windows.gif            the search of a sliding-window detector

Sources of the same name give `dog`, `dog-2`, …; a video's crops are `clip-000017-1` for its frame 17. A name that
would become too long for a disk is cut. Every file is whole or not there; after Ctrl-C `detections.jsonl` holds the
lines written so far.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from detkit.draw import draw, pixel_corners
from detkit.errors import DetkitError, nearest
from detkit.files import aside, explained
from detkit.predict.convert import to_json
from detkit.predict.runs import require_free, run_folder
from detkit.predict.sources import Frame, Source
from detkit.structures import Detections

KINDS = ("image", "json", "crops")
# MPEG-4 comes with every build of FFmpeg; Motion JPEG with OpenCV itself, and takes a side of one pixel.
_CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))
_LONGEST = 220  # bytes of a stem: disks take names of 255, and numbers and a suffix follow


def json_line(frame: Frame, detections: Detections, classes: Sequence[str]) -> str:
    """Return one picture as a line of JSON: source, frame (of a video, from 0), width, height, detections.

    The source is the path that leads to the file from where the user stands: `dog.jpg`, `pics/dog.jpg` of a folder.
    """
    height, width = detections.size
    number = {} if frame.index is None else {"frame": frame.index}
    found = to_json(detections, classes)
    record = {"source": frame.source.name, **number, "width": width, "height": height, "detections": found}
    return json.dumps(record)


class Writer:
    """Writes results as they come, inside a `with` block.

    save: which of `KINDS`. out: a new or empty folder; None takes the next free `runs/detect/<n>`. The folder is made
    when the first result arrives; `folder` is None before. It goes again if the block fails and nothing is in it.
    Raises DetkitError when something cannot be written.
    """

    kind = "detect"
    lines = "detections.jsonl"

    def __init__(self, save: Collection[str], out: Path | None, classes: Sequence[str]) -> None:
        for kind in save:
            if kind not in KINDS:
                raise DetkitError(f"--save {kind}: expected some of {', '.join(KINDS)}{nearest(kind, KINDS)}")
        if out is not None:
            require_free(out)
        self.folder: Path | None = None
        self._save, self._out, self._classes = save, out, classes
        self._source: Source | None = None
        self._stem = ""
        self._taken: set[str] = set()
        self._open = ExitStack()
        self._video = ExitStack()  # of the current source
        self._append: Callable[[NDArray[np.uint8]], None] | None = None
        self._lines: TextIO | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.__exit__(kind, error, at)

    def annotate(self, frame: Frame, detections: Detections) -> NDArray[np.uint8]:
        """Return the picture with what was found drawn on it."""
        return draw(frame.picture, detections, self._classes)

    def line(self, frame: Frame, detections: Detections) -> str:
        """Return what was found as a line of JSON."""
        return json_line(frame, detections, self._classes)

    def write(self, frame: Frame, detections: Detections, search: bytes | None = None) -> None:
        """Write everything that is to be saved of one picture; search: a GIF of how it was looked at."""
        if not self._save and search is None:
            return
        folder = self._make_folder()
        if frame.source is not self._source:
            self._begin(frame.source)
        if "image" in self._save:
            annotated = self.annotate(frame, detections)
            if frame.source.fps is None:
                suffix = ".png" if Path(frame.source.name).suffix.lower() == ".png" else ".jpg"
                _write_picture(folder / f"{self._stem}{suffix}", annotated)
            else:
                if self._append is None:
                    video = _video_file(folder, self._stem, frame.source.fps, detections.size)
                    self._append = self._video.enter_context(video)
                self._append(annotated)
        if search is not None:
            path = folder / f"{self._stem}-windows.gif"
            with aside(path) as part, explained(path):
                part.write_bytes(search)
        if "crops" in self._save:
            self._write_crops(folder / "crops", frame, detections)
        if "json" in self._save:
            if self._lines is None:
                self._lines = self._open.enter_context(_lines_file(folder / self.lines))
            with explained(folder / self.lines):
                self._lines.write(self.line(frame, detections) + "\n")

    def _make_folder(self) -> Path:
        if self.folder is None:
            self.folder = self._open.enter_context(run_folder(self.kind, self._out))
            self._open.enter_context(self._video)
        return self.folder

    def _begin(self, source: Source) -> None:
        self._video.close()
        self._append = None
        self._source = source
        stem = _shorten(source.stem)
        self._stem, number = stem, 1
        while self._stem.casefold() in self._taken:  # a disk may not tell cases apart
            number += 1
            self._stem = f"{stem}-{number}"
        self._taken.add(self._stem.casefold())

    def _write_crops(self, folder: Path, frame: Frame, detections: Detections) -> None:
        stem = self._stem if frame.index is None else f"{self._stem}-{frame.index:06d}"
        corners = pixel_corners(detections).tolist()
        for number, (label, (x1, y1, x2, y2)) in enumerate(zip(detections.labels.tolist(), corners, strict=True), 1):
            path = folder / _file_name(self._classes[label]) / f"{stem}-{number}.jpg"
            _write_picture(path, frame.picture[y1 : y2 + 1, x1 : x2 + 1])


def _file_name(label: str) -> str:
    return _shorten(re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", label).strip(". ")) or "_"


def _shorten(stem: str) -> str:
    while len(os.fsencode(stem)) > _LONGEST:
        stem = stem[:-1]
    return stem


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    if path.suffix == ".jpg" and max(picture.shape) > 65_500:  # the most that libjpeg writes
        path = path.with_suffix(".png")
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    _, encoded = cv2.imencode(path.suffix, picture[..., ::-1], options)
    with aside(path) as part, explained(path):
        part.write_bytes(encoded.tobytes())


@contextmanager
def _lines_file(path: Path) -> Iterator[TextIO]:
    """Give a file to write whole lines to; unlike other files it is kept when Ctrl-C ends the block."""
    interrupt: KeyboardInterrupt | None = None
    with aside(path) as part:
        with explained(path):
            file = part.open("w", encoding="utf-8")
        try:
            yield file
        except KeyboardInterrupt as error:
            interrupt = error
        finally:
            with explained(path):
                file.close()
    if interrupt is not None:
        raise interrupt


@contextmanager
def _video_file(
    folder: Path, stem: str, fps: float, size_hw: tuple[int, int]
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Give a function that appends an RGB frame; at the end the file is read back, as OpenCV reports no failure."""
    for code, suffix in _CODECS:
        path = folder / f"{stem}{suffix}"
        with aside(path) as part:
            writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*code), fps, size_hw[::-1])
            if not writer.isOpened():
                part.unlink()
                continue
            count = 0

            def append(picture: NDArray[np.uint8]) -> None:
                nonlocal count
                writer.write(picture[..., ::-1])  # noqa: B023 (the loop ends with this writer)
                count += 1

            try:
                yield append
            finally:
                writer.release()
            if _frames_in(part) != count:
                raise DetkitError(f"{path}: cannot be written whole; is the disk full?")
            return
    raise DetkitError(f"{folder / stem}: OpenCV can write neither an MP4 nor an AVI video here")


def _frames_in(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.read()[0] else 0
    capture.release()
    return frames
