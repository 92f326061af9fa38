"""Anchors on the terminal: as a table, and as configs and .cfg files take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from detkit.anchors.config import STRIDE, Scale, yaml_anchors
from detkit.anchors.run import Anchors, Outcome, misfits
from detkit.data.sample import count
from detkit.ops.kmeans import RECALL_IOU, AnchorFit, Floats


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print what was found, and for a config whether new anchors would help."""
    boxes, (height, width) = outcome.boxes, outcome.preprocess.size
    left_out = f", without {count(boxes.left_out, 'crowd or difficult object')}" if boxes.left_out else ""
    console.print(
        f"{outcome.source}: {count(len(boxes.shapes), 'object')} in {count(boxes.pictures, 'picture')}{left_out}; "
        f"{outcome.preprocess.mode} to {width} × {height}"
    )
    if len(outcome.found) > 1:
        print_curve([anchors.fit for anchors in outcome.found], console)
        return
    print_anchors(outcome.shown, console)
    new = outcome.found[0]
    if not outcome.judged:
        console.print()
        for stride in misfits(new):
            console.print(f"no anchor has the size of stride {stride}; it has some only because each scale needs one")
        console.print(*forms(new.scales, alone=outcome.old is None), sep="\n\n")
    if outcome.old is not None:
        old_iou, new_iou = outcome.old.fit.average_iou, new.fit.average_iou
        change = f"average IoU {old_iou:.4f} with the anchors of {outcome.name}, {new_iou:.4f} with new ones"
        if not outcome.judged:
            console.print(f"\n{change}")
        elif outcome.worthwhile:
            console.print(
                f"\nnew anchors would help: {change}; --kmeans finds them, and with --write FILE puts them into a .yaml"
            )
        else:
            console.print(f"\nnew anchors would hardly help: {change}")


def print_anchors(anchors: Anchors, console: Console) -> None:
    """Print a line for each anchor, scale by scale, and how well they fit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stride", "of the objects", "width × height", "of the objects"):
        table.add_column(name, justify="right")
    for scale, shares in zip(anchors.scales, anchors.shares, strict=True):
        for row, (anchor, share) in enumerate(zip(scale.anchors, shares, strict=True)):
            first = (str(scale.stride), f"{shares.sum():.1%}") if row == 0 else ("", "")
            table.add_row(*first, f"{anchor[0]:.4g} × {anchor[1]:.4g}", f"{share:.1%}")
    console.print(table)
    print_fit(anchors.fit, console)


def print_fit(fit: AnchorFit, console: Console) -> None:
    """Print the numbers over all objects."""
    table = Table.grid(padding=(0, 2))
    table.add_row("average IoU", f"{fit.average_iou:.4f}", "of the objects with the anchor that fits best")
    recall = f"of the objects overlap an anchor by {RECALL_IOU} or more"
    table.add_row("best possible recall", f"{fit.best_possible_recall:.4f}", recall)
    console.print(table)


def print_curve(fits: Sequence[AnchorFit], console: Console) -> None:
    """Print a line for each number of anchors."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("k", "average IoU", "best possible recall"):
        table.add_column(name, justify="right")
    for fit in fits:
        table.add_row(str(len(fit.anchors)), f"{fit.average_iou:.4f}", f"{fit.best_possible_recall:.4f}")
    console.print(table)


def forms(scales: Sequence[Scale], *, alone: bool) -> list[str]:
    """Write anchors as a config and as a .cfg take them; those that are for no config also for YOLOv2's only scale."""
    if not alone:
        return [config_lines(scales), cfg_lines(scales) if len(scales) > 1 else region_lines(scales[0])]
    only = Scale(STRIDE, np.concatenate([scale.anchors for scale in scales]))
    yolov2 = f"# for YOLOv2, whose only scale has stride {STRIDE}\n{config_lines([only])}"
    return [levels_lines(scales), cfg_lines(scales), yolov2, region_lines(only)]


def config_lines(scales: Sequence[Scale]) -> str:
    """Write anchors as a config has them, under `detector`: `levels`, or `anchors` of the only scale of YOLOv2."""
    return levels_lines(scales) if len(scales) > 1 else f"anchors: {yaml_anchors(scales[0].anchors)}"


def levels_lines(scales: Sequence[Scale]) -> str:
    """Write anchors as the `levels` of YOLOv3, of which there may be one."""
    lines = (f"  - {{stride: {scale.stride}, anchors: {yaml_anchors(scale.anchors)}}}" for scale in scales)
    return "\n".join(("levels:", *lines))


def cfg_lines(scales: Sequence[Scale]) -> str:
    """Write anchors as a .cfg has them: in every [yolo] section, in pixels, with the mask of its scale.

    With the filters of the convolution before each, which follow from the number of its anchors.
    """
    anchors = np.concatenate([scale.anchors for scale in scales])
    lines = ["# in every [yolo] section", f"num={len(anchors)}", f"anchors = {_numbers(anchors)}"]
    start = 0
    for scale in scales:
        end = start + len(scale.anchors)
        number = len(scale.anchors)
        lines += [
            f"# in that of stride {scale.stride}, behind a [convolutional] with filters = {number} x (5 + classes)",
            f"mask = {','.join(map(str, range(start, end)))}",
        ]
        start = end
    return "\n".join(lines)


def region_lines(scale: Scale) -> str:
    """Write the anchors of an only scale as the [region] section of a .cfg has them, in cells."""
    number, sides = len(scale.anchors), _numbers(scale.anchors / scale.stride)
    where = f"# in [region], in cells of {scale.stride} pixels, with filters = {number} x (5 + classes) before it"
    return f"{where}\nnum={number}\nanchors = {sides}"


def _numbers(anchors: Floats) -> str:
    return ", ".join(f"{width:.4g},{height:.4g}" for width, height in anchors)
