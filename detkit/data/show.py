"""A training batch as one picture to look at: what the network is shown, with the boxes it is to learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detkit.draw import Color, class_color, text_color
from detkit.structures import Batch, Target

Box = list[int]  # the first and last pixel: x1, y1, x2, y2

_MOST = 16  # pictures on a sheet
_TILE = 416  # pixels of a tile's longer side
_GAP = 6
_GROUND = (24, 24, 27)
_LINE = 2


def batch_mosaic(batch: Batch, targets: Sequence[Target], classes: Sequence[str]) -> NDArray[np.uint8]:
    """Draw the first 16 pictures of a batch on one sheet [H, W, 3] RGB, with boxes and class names.

    Boxes that are to be ignored (crowd, difficult) are dashed. A name stands where no larger box's name stands.
    """
    tiles = [
        _tile((image * 255).round().byte().permute(1, 2, 0).numpy(force=True), target.to("cpu"), classes)
        for image, target in zip(batch.images[:_MOST], targets[:_MOST], strict=True)
    ]
    width, height = tiles[0].size
    columns = math.ceil(math.sqrt(len(tiles) * height / width))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _GROUND)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        sheet.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return np.array(sheet)


def _tile(pixels: NDArray[np.uint8], target: Target, classes: Sequence[str]) -> Image.Image:
    height, width = pixels.shape[:2]
    scale = _TILE / max(height, width)
    tile = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(tile, "RGBA")
    boxes = (target.boxes * scale).numpy().round().astype(int)
    boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, boxes[:, :2])  # the last pixel inside
    large_first = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable").tolist()
    ignored = (target.crowd | target.difficult).tolist()
    labels, corners = target.labels.tolist(), boxes.tolist()
    for i in large_first:
        _outline(pen, corners[i], class_color(classes[labels[i]]), dashed=ignored[i])
    tags: list[Box] = []
    for i in large_first:
        tag = _tag_place(corners[i], classes[labels[i]], tile.size)
        if corners[i][2] - corners[i][0] > (tag[2] - tag[0]) / 2 and not any(_touch(tag, other) for other in tags):
            tags.append(tag)
            _tag(pen, tag, classes[labels[i]], class_color(classes[labels[i]]))
    return tile


def _outline(pen: ImageDraw.ImageDraw, corners: Box, color: Color, *, dashed: bool) -> None:
    x1, y1, x2, y2 = corners
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0, 110))  # to be seen on any ground
    if not dashed:
        pen.rectangle((x1, y1, x2, y2), outline=color, width=_LINE)
        return
    dash = 5
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, max(y1, y2 - _LINE + 1)):
            pen.rectangle((x, y, min(x + dash - 1, x2), min(y + _LINE - 1, y2)), fill=color)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, max(x1, x2 - _LINE + 1)):
            pen.rectangle((x, y, min(x + _LINE - 1, x2), min(y + dash - 1, y2)), fill=color)


def _tag_place(corners: Box, name: str, size: tuple[int, int]) -> Box:
    """Above the box, or inside at its top where the tile ends."""
    x1, y1, _, _ = corners
    w, h = round(_font().getlength(name)) + 6, sum(_font().getmetrics())
    left, top = max(0, min(x1, size[0] - w)), y1 - h if y1 >= h else y1
    return [left, top, left + w - 1, top + h - 1]


def _touch(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _tag(pen: ImageDraw.ImageDraw, place: Box, name: str, color: Color) -> None:
    pen.rectangle(tuple(place), fill=color)
    pen.text((place[0] + 3, place[1]), name, fill=text_color(color), font=_font())


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)
