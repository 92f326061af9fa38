"""Detections drawn onto a picture: boxes with a tag that says what was found and how surely.

Sizes follow the picture, colours follow the class's name, and tags keep off each other where there is room.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detkit.structures import Detections

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont

_PALETTE = bytes.fromhex(
    "f0323c ff7a1a ffb800 f5e000 a6e000 2fb344 00a88f 00d0e0 36a9ff "
    "2563ff 7a5cff b04bff e03be0 ff4fa3 ff9ab8 5ff0b0 b9a4ff c2105a"
)
_SEED = 422409  # keeps COCO classes that are seen together or taken for each other apart


def class_color(name: str) -> Color:
    """Return the RGB colour of a class, the same in every run and for every model that knows the name."""
    start = 3 * (zlib.crc32(name.encode(), _SEED) % (len(_PALETTE) // 3))
    red, green, blue = _PALETTE[start : start + 3]
    return red, green, blue


def draw(picture: NDArray[np.uint8], detections: Detections, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return a copy of an RGB picture [H, W, 3] with the detections drawn on it.

    Low scores are drawn first, all boxes before all tags. A tag stays inside the picture; where better ones would hide
    much of it, the box has none.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas, "RGBA")
    height, width = picture.shape[:2]
    # Side of a square of the picture's area, but a long thin picture has little room.
    scale = min((height * width) ** 0.5, 2 * min(height, width))
    line = max(1, round(scale / 230))
    best_first = detections[detections.scores.argsort(descending=True, stable=True)]
    names = [classes[label] for label in best_first.labels.tolist()]
    boxes = pixel_corners(best_first)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    typical = float(np.median(sides.prod(1) ** 0.5)) if len(boxes) else scale
    text_size = max(9, round(min(scale / 42, max(scale / 60, typical / 4))))  # small boxes get small tags
    texts = [
        _fit(name, f" {score:.0%}", text_size, max(side, 0.4 * width), width)
        for name, score, side in zip(names, best_first.scores.tolist(), sides[:, 0].tolist(), strict=True)
    ]
    places = _place([size for _, _, size in texts], boxes, (height, width))

    for box, name in reversed(list(zip(boxes.tolist(), names, strict=True))):
        _draw_box(pen, box, class_color(name), line)
    for place, name, (text, font, (w, h)) in reversed(list(zip(places, names, texts, strict=True))):
        if place is None:
            continue
        left, top = place
        color = class_color(name)
        pen.rectangle((left, top, left + w - 1, top + h - 1), fill=color)
        ascent, descent = font.getmetrics()
        baseline = top + (h - ascent - descent) // 2 + ascent
        pen.text((left + _padding(font), baseline), text, fill=text_color(color), font=font, anchor="ls")
    return np.asarray(canvas)


def pixel_corners(detections: Detections) -> NDArray[np.int64]:
    """Return the first and last pixel (x1, y1, x2, y2) of each box, rounded, at least one pixel, inside, [N, 4]."""
    height, width = detections.size
    low, high = detections.boxes[:, :2].round(), detections.boxes[:, 2:].round() - 1
    corners = torch.cat([low, high.maximum(low)], 1).numpy(force=True)
    return corners.clip(0, [width - 1, height - 1] * 2).astype(np.int64)


def _draw_box(pen: ImageDraw.ImageDraw, box: list[int], color: Color, line: int) -> None:
    """Draw the outline inside the box between two thin dark edges, so that it is seen on any ground."""
    x1, y1, x2, y2 = box
    edge = max(1, line // 3)
    pen.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=(0, 0, 0, 90), width=edge)
    if min(x2 - x1, y2 - y1) > 4 * line:
        inner = line + edge - 1
        pen.rectangle((x1 + inner, y1 + inner, x2 - inner, y2 - inner), outline=(0, 0, 0, 90), width=edge)
    pen.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _fit(name: str, score: str, size: int, room: float, most: int) -> tuple[str, Font, tuple[int, int]]:
    """Return a tag's text, font and (width, height): with the score within `room`, the name within `most`, else cut."""
    font = _font(_font_file(name), size)
    padding = _padding(font)
    cut = [name[:length].rstrip() + "…" for length in range(len(name) - 1, 0, -1)]
    for text, limit in [(name + score, min(room, most)), *((text, most) for text in [name, *cut, ""])]:
        width = round(font.getlength(text)) + 2 * padding
        if width <= limit:
            break
    return text, font, (min(width, most), sum(font.getmetrics()) + padding // 2)


def _padding(font: Font) -> int:
    return max(2, round(font.size / 4))


def _place(
    sizes: Sequence[tuple[int, int]], boxes: NDArray[np.int64], size_hw: tuple[int, int]
) -> list[tuple[int, int] | None]:
    """Choose each tag's top left corner: the place about its box that hides the least.

    Tags are placed best first and stay put. A place costs the share of itself that lies on placed tags, some of the
    share of each box that it hides, and a little for being unusual or pushed from its box by the picture's border.
    None where placed tags would cover more than a third of it.
    """
    height, width = size_hw
    areas = np.concatenate([boxes[:, :2], boxes[:, 2:] + 1], 1).astype(np.float64)
    box_sizes = (areas[:, 2:] - areas[:, :2]).prod(1)
    tags = np.zeros((0, 4))
    chosen: list[tuple[int, int] | None] = []
    for (w, h), (x1, y1, x2, y2) in zip(sizes, boxes.tolist(), strict=True):
        places = np.array(
            [
                (x1, y1 - h),  # above
                (x1, y1),  # inside, at the top
                (x1, y2 + 1),  # below
                (x2 - w + 1, y1 - h),
                (x2 - w + 1, y1),
                (x2 - w + 1, y2 + 1),
                (x1, y2 - h + 1),  # inside, at the bottom
                (x2 - w + 1, y2 - h + 1),
                (x2 + 1, y1),  # beside
                (x1 - w, y1),
            ]
        )
        outside = (places < 0).any(1) | (places > (width - w, height - h)).any(1)
        places = places.clip(0, (max(0, width - w), max(0, height - h)))
        spots = np.concatenate([places, places + np.array((w, h))], 1)
        covered = _shared_area(spots, tags).sum(1) / (w * h)
        cost = covered + 0.3 * (_shared_area(spots, areas) / box_sizes).sum(1)
        cost += 0.5 * outside + 0.02 * np.arange(len(places))
        best = cost.argmin()
        if covered[best] > 1 / 3:
            chosen.append(None)
            continue
        tags = np.concatenate([tags, spots[best : best + 1]])
        chosen.append((int(places[best, 0]), int(places[best, 1])))
    return chosen


def _shared_area(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    area: NDArray[np.float64] = (high - low).clip(0).prod(2)
    return area


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast (WCAG 2, relative luminance)."""
    channels = np.array(background) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


@cache
def _font(file: str, size: int) -> Font:
    return ImageFont.truetype(file, size)


@cache
def _font_file(text: str) -> str:
    """A font that has the text's characters: DejaVu Sans, else one of the system's, else DejaVu Sans all the same."""
    default = next(_font_files())
    wanted = {ord(character) for character in text if not character.isspace()}
    return next((file for file in _font_files() if wanted <= _characters(file)), default)


def _font_files() -> Iterator[str]:
    import matplotlib

    yield str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    from matplotlib.font_manager import findSystemFonts

    yield from sorted(findSystemFonts())


@cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
