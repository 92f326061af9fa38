"""A result as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from detkit.evaluate.coco import CocoResult
from detkit.evaluate.voc import VocResult


def class_table(result: CocoResult | VocResult) -> Table:
    """Return a row for each class that has objects, and a last line that names those without."""
    columns = ("AP", "AP50") if isinstance(result, CocoResult) else ("AP",)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.add_column("class")
    for name in ("objects", *columns):
        table.add_column(name, justify="right")
    for name, scores in result.per_class.items():
        if scores.objects:
            values = [_number(getattr(scores, column)) for column in columns]
            table.add_row(name, str(scores.objects), *values)
    absent = [name for name, scores in result.per_class.items() if not scores.objects]
    if absent:
        table.caption = f"{len(absent)} without objects: {', '.join(absent)}"
    return table


def summary_table(result: CocoResult | VocResult) -> Table:
    """Return the metric's numbers over all classes; a dash where there is nothing to average."""
    table = Table.grid(padding=(0, 2))
    for key, meaning in _meanings(result).items():
        table.add_row(key, _number(result.summary[key]), meaning)
    return table


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
