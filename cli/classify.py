"""`detkit classify`: name what is in pictures and videos."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Batch, Device, MaxPixels, Precision, Weights

if TYPE_CHECKING:
    from detkit.predict.classify import Named
    from detkit.predict.sources import Failure


def classify_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A picture, folder, glob in quotes ('pics/**/*.jpg'), video, - (a picture on standard input) or "
            "sample:NAME. A folder is not searched deeper than its own files.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(help="A classifier's checkpoint (.safetensors), Darknet .cfg, or config (then with --weights)."),
    ],
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Name so many classes of each picture, best first.")] = 5,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch: Batch = 8,
    max_pixels: MaxPixels = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per picture and nothing else.")] = False,
) -> None:
    """Name what is in pictures and videos, with a classifier.

    Exits with 0 when all is done, 1 when some pictures could not be read (the others are done), 2 when nothing could.
    """
    # What OpenCV and FFmpeg say about a bad video is said by our own error.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import sys
    import warnings

    from detkit.classify.model import load_classifier
    from detkit.data.picture import MAX_PIXELS
    from detkit.predict.classify import classes_line, classify
    from detkit.predict.sources import Failure

    def show(result: "Named | Failure") -> None:
        if isinstance(result, Failure):
            print(f"error: {result.error}", file=sys.stderr)
        elif json:
            print(classes_line(result, classifier.classes), flush=True)
        else:
            frame = "" if result.frame.index is None else f", frame {result.frame.index}"
            pairs = zip(result.labels, result.scores, strict=True)
            found = ", ".join(f"{classifier.classes[label]} {score:.3f}" for label, score in pairs)
            print(f"{result.frame.source.name}{frame}: {found}", flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        classifier = load_classifier(model, weights, device=device, precision=precision)
        summary = classify(classifier, sources, show, top=top, batch_size=batch, max_pixels=max_pixels or MAX_PIXELS)
    if summary.failures:
        print(f"{len(summary.failures)} of {summary.sources} sources could not be read", file=sys.stderr)
        raise typer.Exit(1 if summary.pictures else 2)
