"""Detect objects in all that a user names: sources in, results out, files written on the way."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detkit.data.picture import MAX_PIXELS
from detkit.errors import DetkitError, nearest
from detkit.model import Model
from detkit.ops.nms import Selection
from detkit.predict.engine import detect_ahead
from detkit.predict.sources import Failure, Frame, Source, find_sources, read_frames
from detkit.predict.windows import require_windows, search_animation
from detkit.predict.writers import Writer
from detkit.regions import Proposals
from detkit.structures import Detections


@dataclass(frozen=True, slots=True)
class Result:
    """What was found in one picture, with the picture."""

    frame: Frame
    detections: Detections


@dataclass(slots=True)
class VideoSummary:
    """What was found in a video: in how many of its frames each class was seen."""

    source: Source
    size: tuple[int, int]
    frames: int = 0
    seen: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Summary:
    """How it went: sources found, pictures and frames done, videos, what failed, and the folder of the results."""

    sources: int = 0
    pictures: int = 0
    videos: list[VideoSummary] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    folder: Path | None = None


def detect(
    model: Model,
    names: Sequence[str],
    on_result: Callable[[Result | Failure], None] = lambda result: None,
    *,
    selection: Selection | None = None,
    classes: Collection[str] = (),
    batch_size: int = 8,
    max_pixels: int = MAX_PIXELS,
    save: Collection[str] = ("image",),
    out: Path | None = None,
    show_windows: bool = False,
    progress: bool = False,
) -> Summary:
    """Find objects in pictures, folders, globs, videos, `-` and `sample:NAME`, save what was found, and sum it up.

    on_result is called for every picture and frame in order, and with what could not be read. classes: only these are
    reported; `max_detections` counts only them. save, out: as in `Writer`. show_windows: save the search of each
    picture as a GIF. progress: show a bar on stderr. Raises DetkitError when a name finds nothing, the only picture
    cannot be read, a result cannot be written, or there are no windows to show.
    """
    selection = (selection or model.selection).model_copy(update={"labels": _labels(model.classes, classes)})
    sources = find_sources(names)
    if show_windows:
        require_windows(model, sources)
    alone = len(names) == len(sources) == 1 and Path(names[0]) == Path(sources[0].name)  # no folder, no glob
    summary = Summary(len(sources))
    frames = read_frames(sources, max_pixels, ahead=batch_size)
    results = _predict(model, frames, batch_size, selection)
    with (
        Writer(save, out, model.classes) as writer,
        closing(frames),
        closing(results),  # first of the two, as its thread reads the frames
        _progress(sources, progress) as advance,
    ):
        for result in results:
            if isinstance(result, Failure):
                if alone and not summary.pictures:
                    raise result.error
                summary.failures.append(result)
            else:
                search = None
                if show_windows and result.frame.index is None:
                    search = search_animation(model, result.frame.picture, result.detections, selection)
                writer.write(result.frame, result.detections, search)
                summary.folder = writer.folder
                _count(summary, result, model.classes)
            on_result(result)
            advance()
    return summary


def describe(detections: Detections, classes: Sequence[str]) -> str:
    """Return what was found in words, `2 dog, 1 bicycle`, in the order of each class's best score."""
    counts = Counter(classes[label] for label in detections.labels.tolist())
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no objects"


def _predict(
    model: Model, frames: Iterable[Frame | Failure], batch_size: int, selection: Selection
) -> Generator[Result | Failure]:
    """Run the model on batches of the frames; failures keep their place."""
    with closing(detect_ahead(model, _batches(model, frames, batch_size), selection)) as found:
        for items, detections in found:
            rows = iter(detections)
            for item in items:
                yield Result(item, next(rows)) if isinstance(item, Frame) else item


def _batches(
    model: Model, frames: Iterable[Frame | Failure], batch_size: int
) -> Iterator[tuple[list[Frame | Failure], list[NDArray[np.uint8]], list[Proposals]]]:
    """Yield the frames of each batch with their pictures, and the proposals of a model that needs some."""
    frames = iter(frames)
    while items := list(islice(frames, batch_size)):
        whole = [item for item in items if isinstance(item, Frame)]
        proposals = [boxes for item in whole if (boxes := model.propose(item.picture, item.source.name)) is not None]
        yield items, [item.picture for item in whole], proposals


def _labels(known: Sequence[str], wanted: Collection[str]) -> tuple[int, ...]:
    for name in wanted:
        if name not in known:
            raise DetkitError(f"--classes {name}: is no class of the model{nearest(name, known)}")
    return tuple(label for label, name in enumerate(known) if name in wanted)


def _count(summary: Summary, result: Result, classes: Sequence[str]) -> None:
    summary.pictures += 1
    if result.frame.index is not None:
        if result.frame.index == 0:
            summary.videos.append(VideoSummary(result.frame.source, result.detections.size))
        video = summary.videos[-1]
        video.frames += 1
        video.seen.update({classes[label] for label in result.detections.labels.tolist()})


@contextmanager
def _progress(sources: Sequence[Source], wanted: bool) -> Iterator[Callable[[], None]]:
    """Give a function that counts a picture; the bar appears on a terminal when a second has passed."""
    console = Console(stderr=True)
    total = sum(source.frames for source in sources) if all(source.frames for source in sources) else None
    columns = TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # Lines printed to a terminal go above the bar; to a file or pipe they go as they are.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task("", total=total)
    begin = time.monotonic()

    def advance() -> None:
        bar.advance(task)
        if wanted and console.is_terminal and not bar.live.is_started and time.monotonic() - begin > 1:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
