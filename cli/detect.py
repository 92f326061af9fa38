"""`detkit detect`: find objects in pictures and videos."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Batch, Compile, CudaGraphs, Device, Iou, MaxPixels, Model, Precision, Resize, Weights

if TYPE_CHECKING:
    from detkit.predict.predictor import Result
    from detkit.predict.sources import Failure


def detect_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A picture, folder, glob in quotes ('pics/**/*.jpg'), video, - (a picture on standard input) or "
            "sample:NAME. A folder is not searched deeper than its own files.",
            show_default=False,
        ),
    ],
    model: Model = None,
    weights: Weights = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Report what scores above this.", show_default="the model's")
    ] = None,
    iou: Iou = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="Report at most so many objects of a picture.", show_default="the model's")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Report only these classes, separated by commas.", metavar="NAME,…")
    ] = None,
    agnostic: Annotated[
        bool, typer.Option("--agnostic", help="Boxes of different classes suppress each other.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    compiled: Compile = False,
    cuda_graphs: CudaGraphs = False,
    batch: Batch = 8,
    resize: Resize = None,
    max_pixels: MaxPixels = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,…",
            help="What to save, separated by commas: image (annotated pictures and videos), json (detections.jsonl), "
            "crops (a picture of each object).",
            show_default="image; with --json nothing, unless --out is given",
        ),
    ] = None,
    show_windows: Annotated[
        bool,
        typer.Option(
            "--show-windows", help="Save a GIF of each picture's search too; of models that slide windows alone."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new or empty folder for the results.", show_default="runs/detect/<n>, the next free number"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per picture and nothing else.")] = False,
) -> None:
    """Find objects in pictures and videos.

    Exits with 0 when all is done, 1 when some pictures could not be read (the others are done), 2 when nothing could.
    """
    # What OpenCV and FFmpeg say about a bad video is said by our own error.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import sys
    import warnings

    from detkit.config import validate
    from detkit.data.picture import MAX_PIXELS
    from detkit.model import load
    from detkit.ops.nms import Selection
    from detkit.predict.predictor import describe, detect
    from detkit.predict.sources import Failure
    from detkit.predict.writers import json_line

    detector = load(
        model,
        weights,
        device=device,
        precision=precision,
        resize=resize,
        compiled=compiled,
        cuda_graphs=cuda_graphs,
    )
    given = {"score": score, "iou": iou, "max_detections": max_detections, "class_agnostic": agnostic or None}
    changes = {key: value for key, value in given.items() if value is not None}
    selection = validate(Selection, detector.selection.model_dump() | changes, "selection")

    def show(result: "Result | Failure") -> None:
        if isinstance(result, Failure):
            print(f"error: {result.error}", file=sys.stderr)
        elif json:
            print(json_line(result.frame, result.detections, detector.classes), flush=True)
        elif result.frame.index is None:
            height, width = result.detections.size
            print(
                f"{result.frame.source.name} {width}×{height}: {describe(result.detections, detector.classes)}",
                flush=True,
            )

    if save is None:
        save = "" if json and out is None else "image"
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        summary = detect(
            detector,
            sources,
            show,
            selection=selection,
            classes=_split(classes),
            batch_size=batch,
            max_pixels=max_pixels or MAX_PIXELS,
            save=_split(save),
            out=out,
            show_windows=show_windows,
            progress=not (json and sys.stdout.isatty()),  # a bar would break the lines
        )
    messages = sys.stderr if json else sys.stdout
    if not json:
        for video in summary.videos:
            height, width = video.size
            seen = ", ".join(f"{name} in {count}" for name, count in video.seen.most_common()) or "no objects"
            print(f"{video.source.name} {width}×{height}, {video.frames} frames: {seen}")
    if summary.folder is not None:
        print(f"saved to {summary.folder}", file=messages)
    if summary.failures:
        print(f"{len(summary.failures)} of {summary.sources} sources could not be read", file=sys.stderr)
        raise typer.Exit(1 if summary.pictures else 2)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
