"""A result on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detkit.evaluate.classify import ClassifierResult
from detkit.evaluate.coco import CocoResult
from detkit.evaluate.voc import VocResult


def print_result(result: CocoResult | VocResult, console: Console) -> None:
    """Print a line for each class that has objects, the names of those without, and the numbers over all classes."""
    columns = ("AP", "AP50") if isinstance(result, CocoResult) else ("AP",)
    classes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    classes.add_column("class")
    for name in ("objects", *columns):
        classes.add_column(name, justify="right")
    for name, scores in result.per_class.items():
        if scores.objects:
            classes.add_row(
                escape(name), str(scores.objects), *(_number(getattr(scores, column)) for column in columns)
            )
    console.print(classes)
    absent = [name for name, scores in result.per_class.items() if not scores.objects]
    if absent:
        console.print(f"classes without objects: {escape(', '.join(absent))}\n")
    summary = Table.grid(padding=(0, 2))
    for key, meaning in _meanings(result).items():
        summary.add_row(key, _number(result.summary[key]), meaning)
    console.print(summary)


def print_classifier_result(result: ClassifierResult, console: Console) -> None:
    """Print a line for each class that has pictures, the names of those without, and the numbers over all pictures."""
    classes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    classes.add_column("class")
    for name in ("pictures", "top-1", "top-5"):
        classes.add_column(name, justify="right")
    for name, scores in result.per_class.items():
        if scores.pictures:
            classes.add_row(escape(name), str(scores.pictures), _number(scores.top1), _number(scores.top5))
    console.print(classes)
    absent = [name for name, scores in result.per_class.items() if not scores.pictures]
    if absent:
        console.print(f"classes without pictures: {escape(', '.join(absent))}\n")
    meanings = {
        "top1": "pictures whose class scores best",
        "top5": "pictures whose class is among the best five",
        "val_loss": "mean cross-entropy",
        "ece": "expected calibration error, 15 bins",
    }
    summary = Table.grid(padding=(0, 2))
    for key, meaning in meanings.items():
        summary.add_row(key, _number(result.summary[key]), meaning)
    console.print(summary)


def _meanings(result: CocoResult | VocResult) -> dict[str, str]:
    if isinstance(result, VocResult):
        kind = "precision at eleven recalls" if result.metric == "voc07" else "area under the whole curve"
        return {"AP": f"IoU {result.iou:.2f}, mean of the classes' {kind}"}
    sizes = {"s": "up to 32² pixels", "m": "32² to 96² pixels", "l": "over 96² pixels"}
    return (
        {"AP": "IoU .50:.95", "AP50": "IoU .50", "AP75": "IoU .75"}
        | {f"AP{key}": f"objects {size}" for key, size in sizes.items()}
        | {f"AR{count}": f"{count} detection{'s' * (count > 1)} a picture and class" for count in (1, 10, 100)}
        | {f"AR{key}": f"objects {size}" for key, size in sizes.items()}
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
