"""Pictures as tiles on one sheet to look at: what a network learns from, and what it finds over what is true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detkit.draw import Color, class_color, draw, text_color
from detkit.structures import Batch, Detections, Target

Box = list[int]  # the first and last pixel: x1, y1, x2, y2

MOST = 16  # pictures on a sheet
_TILE = 416  # pixels of a tile's longer side
_GAP = 6
_GROUND = (24, 24, 27)
_WHITE = (255, 255, 255)
_LINE = 2


def batch_tiles(batch: Batch, targets: Sequence[Target], classes: Sequence[str]) -> list[Image.Image]:
    """Draw each picture of a batch with its boxes and class names, for `sheet`.

    Boxes that are to be ignored (crowd, difficult) are dashed. A name stands where no larger box's name stands.
    """
    tiles = []
    for image, target in zip(batch.images, targets, strict=True):
        tile, scale = _tile((image * 255).round().byte().permute(1, 2, 0).numpy(force=True))
        objects = _objects(target.to("cpu"), scale, classes)
        pen = ImageDraw.Draw(tile, "RGBA")
        for corners, name, ignored in objects:
            _outline(pen, corners, class_color(name), dashed=ignored)
        _name(pen, objects, tile.size)
        tiles.append(tile)
    return tiles


def prediction_tile(
    picture: NDArray[np.uint8], truth: Target, truth_classes: Sequence[str], found: Detections, classes: Sequence[str]
) -> Image.Image:
    """Draw what was found in a picture [H, W, 3], and over it what is true: its boxes are dashed white.

    Both have their classes' colours; the names of the truth stand in white at the foot of its boxes.
    """
    tile, scale = _tile(picture)
    placed = Detections(found.boxes * scale, found.scores, found.labels, (tile.height, tile.width))
    tile = Image.fromarray(draw(np.asarray(tile), placed, classes))
    objects = _objects(truth, scale, truth_classes)
    pen = ImageDraw.Draw(tile, "RGBA")
    for corners, name, _ in objects:
        _outline(pen, corners, class_color(name), dashed=False)
        _outline(pen, corners, _WHITE, dashed=True)
    _name(pen, objects, tile.size, foot=True)
    return tile


def sheet(tiles: Sequence[Image.Image], legend: str = "") -> NDArray[np.uint8]:
    """Lay tiles out in rows on one sheet [H, W, 3] RGB, each in the middle of its cell, below a line of text."""
    width, height = (max(sides) for sides in zip(*(tile.size for tile in tiles), strict=True))
    columns = min(len(tiles), math.ceil(math.sqrt(len(tiles) * height / width)))
    rows = math.ceil(len(tiles) / columns)
    top = _GAP + (sum(_font().getmetrics()) + _GAP if legend else 0)
    across = _GAP + max(columns * (width + _GAP), math.ceil(_font().getlength(legend)) + _GAP)
    sheet = Image.new("RGB", (across, top + rows * (height + _GAP)), _GROUND)
    ImageDraw.Draw(sheet).text((_GAP, _GAP), legend, fill=_WHITE, font=_font())
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        left, above = (width - tile.width) // 2, (height - tile.height) // 2
        sheet.paste(tile, (_GAP + column * (width + _GAP) + left, top + row * (height + _GAP) + above))
    return np.array(sheet)


def _tile(pixels: NDArray[np.uint8]) -> tuple[Image.Image, float]:
    """Bring a picture to a tile's size; return by what its sides were multiplied."""
    height, width = pixels.shape[:2]
    scale = _TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), scale


def _objects(target: Target, scale: float, classes: Sequence[str]) -> list[tuple[Box, str, bool]]:
    """Return each object's corners on a tile, its class's name and whether it is to be ignored, large ones first."""
    boxes = (target.boxes * scale).numpy().round().astype(int)
    boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, boxes[:, :2])  # the last pixel inside
    names = [classes[label] for label in target.labels.tolist()]
    objects = list(zip(boxes.tolist(), names, (target.crowd | target.difficult).tolist(), strict=True))
    return sorted(objects, key=lambda found: -(found[0][2] - found[0][0]) * (found[0][3] - found[0][1]))


def _name(
    pen: ImageDraw.ImageDraw, objects: Sequence[tuple[Box, str, bool]], size: tuple[int, int], *, foot: bool = False
) -> None:
    tags: list[Box] = []
    for corners, name, _ in objects:
        tag = _tag_place(corners, name, size, foot=foot)
        if corners[2] - corners[0] > (tag[2] - tag[0]) / 2 and not any(_touch(tag, other) for other in tags):
            tags.append(tag)
            _tag(pen, tag, name, _WHITE if foot else class_color(name))


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


def _tag_place(corners: Box, name: str, size: tuple[int, int], *, foot: bool) -> Box:
    """Above the box, or inside at its top where the tile ends; or inside at its foot."""
    x1, y1, _, y2 = corners
    w, h = round(_font().getlength(name)) + 6, sum(_font().getmetrics())
    left, top = max(0, min(x1, size[0] - w)), y1 - h if y1 >= h else y1
    if foot:
        top = max(0, min(y2 + 1, size[1]) - h)
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
