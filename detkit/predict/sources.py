"""From what a user names to a stream of pictures: files, folders, globs, videos, standard input, samples.

A folder gives the pictures and videos directly in it, a glob those that it matches (`**` reaches into subfolders), both
in natural order (`2.jpg` before `10.jpg`). What has another suffix is left out with a warning; hidden files are passed
over. A file that is named itself is read whatever its suffix. A name like `sample:chelsea` or `-` is not looked for on
the disk; `./-` is.
"""

from __future__ import annotations

import glob
import re
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, repeat
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detkit.data.ahead import read_ahead
from detkit.data.picture import SUFFIXES, read_picture, sample_picture
from detkit.errors import DetkitError

_VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"})
_READERS = 4


@dataclass(frozen=True, slots=True)
class Source:
    """One picture or video: the name that it goes by, and for a video its frames per second."""

    name: str
    fps: float | None = None
    frames: int = 1

    @property
    def is_video(self) -> bool:
        """Whether it has more pictures than one."""
        return self.fps is not None

    @property
    def stem(self) -> str:
        """What files made from it are called."""
        return "stdin" if self.name == "-" else Path(self.name.removeprefix("sample:")).stem


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture [H, W, 3] RGB that was read; index: its number in a video, from 0."""

    source: Source
    picture: NDArray[np.uint8]
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A source that could not be read, or not to its end."""

    source: Source
    error: DetkitError


def find_sources(names: Sequence[str]) -> list[Source]:
    """Return the pictures and videos that the names stand for, in order; raises DetkitError when a name finds none."""
    return [source for name in names for source in _expand(name)]


def read_frames(sources: Sequence[Source], max_pixels: int, ahead: int) -> Generator[Frame | Failure, None, None]:
    """Read pictures in threads, at most `ahead` before they are asked for, in the order of the sources.

    Of large pictures fewer are read ahead: see `read_ahead`.
    """
    results: Generator[Frame | Failure]
    for is_video, group in groupby(sources, key=lambda source: source.is_video):
        if is_video:
            for source in group:
                following = partial(next, _video_frames(source, max_pixels), None)
                results = read_ahead(repeat(following), _pixels, workers=1, ahead=ahead)
                yield from results
        else:
            jobs = (partial(read_still, source, max_pixels) for source in group)
            results = read_ahead(jobs, _pixels, workers=_READERS, ahead=ahead)
            yield from results


def _expand(name: str) -> list[Source]:
    if name == "-" or name.startswith("sample:"):
        return [Source(name)]
    path = Path(name)
    if path.is_dir():
        return _choose(name, list(path.iterdir()))
    if path.exists():
        return [_source(path)]
    if glob.has_magic(name):
        found = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 (absolute patterns)
        if not found:
            raise DetkitError(f"{name}: matches no file")
        return _choose(name, found)
    raise DetkitError(f"{name}: no such file or folder")


def _choose(name: str, found: list[Path]) -> list[Source]:
    """Keep the pictures and videos of a folder or glob, in natural order, and say what is left out."""
    files = sorted((path for path in found if path.is_file() and not path.name.startswith(".")), key=_natural)
    chosen = [path for path in files if path.suffix.lower() in SUFFIXES | _VIDEOS]
    others = [path.name for path in files if path.suffix.lower() not in SUFFIXES | _VIDEOS]
    if not chosen:
        deeper = any(path.is_dir() for path in found)
        remedy = f"; pass '{name.rstrip('/')}/**' to search its subfolders" if deeper and "**" not in name else ""
        raise DetkitError(f"{name}: holds no picture or video among its {len(files)} files{remedy}")
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        warnings.warn(f"{name}: {len(others)} left out, being neither picture nor video: {named}", stacklevel=2)
    return [_source(path) for path in chosen]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", str(path))
    return [(1, int(part), "") if part.isdigit() and part.isascii() else (0, 0, part) for part in parts]


def _source(path: Path) -> Source:
    if path.suffix.lower() not in _VIDEOS:
        return Source(str(path))
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return Source(str(path), fps if 0 < fps <= 1000 else 25.0, max(0, int(frames)))


def read_still(source: Source, max_pixels: int) -> Frame | Failure:
    """Read the picture of a source that is no video."""
    try:
        if source.name.startswith("sample:"):
            picture = sample_picture(source.name.removeprefix("sample:"))
        elif source.name == "-":
            if sys.stdin is None:
                raise DetkitError("-: standard input is closed; give a file's name or pipe a picture in")
            picture = read_picture(sys.stdin.buffer, max_pixels=max_pixels, name="standard input")
        else:
            path = Path(source.name)
            content = path.read_bytes() if path.is_fifo() else path  # of a pipe, as decoders seek
            picture = read_picture(content, max_pixels=max_pixels, name=source.name)
        return Frame(source, picture)
    except DetkitError as error:
        return Failure(source, error)
    except OSError as error:
        return Failure(source, DetkitError(f"{source.name}: cannot be read: {error.strerror or error}"))


def _video_frames(source: Source, max_pixels: int) -> Iterator[Frame | Failure]:
    capture = cv2.VideoCapture(source.name)
    try:
        count = 0
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            too_large = f"{source.name}: is {width} wide and {height} high, more than {max_pixels} pixels"
            yield Failure(source, DetkitError(f"{too_large}; raise max_pixels (--max-pixels of detect)"))
            return
        while True:
            arrived, picture = capture.read()
            if not arrived:
                break
            yield Frame(source, np.ascontiguousarray(picture[..., ::-1]), count)
            count += 1
    finally:
        capture.release()
    if not count:
        yield Failure(source, DetkitError(f"{source.name}: is not a video that OpenCV can read"))
    elif count < 0.98 * source.frames - 1:  # containers may be a frame off
        yield Failure(
            source, DetkitError(f"{source.name}: ends after frame {count} of {source.frames}, so it is truncated")
        )


def _pixels(item: Frame | Failure) -> int:
    return item.picture.shape[0] * item.picture.shape[1] if isinstance(item, Frame) else 0
