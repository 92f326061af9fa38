"""Selective Search for Object Recognition (Uijlings, van de Sande, Gevers and Smeulders, IJCV 104, 2013).

A picture is segmented, and the segments are grouped by likeness until one is left; every region on the way gives its
box. Groupings in several colour spaces, by several measures of likeness, from finer and coarser segments complement
each other (table 5):

| mode | colour spaces | similarities | k | groupings |
|---|---|---|---|---|
| single | HSV | C+T+S+F | 100 | 1 |
| fast | HSV, Lab | C+T+S+F, T+S+F | 50, 100 | 8 |
| quality | HSV, Lab, rgI, H, I | C+T+S+F, T+S+F, F, S | 50, 100, 150, 300 | 80 |

C colour, T texture, S size (small regions first), F fill (regions that fit into each other first).

Shapes: H × W the picture, C channels of a colour space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detkit.regions import Mode, Proposals, SelectiveSearchConfig
from detkit.regions.grouping import color_bins, describe, group, texture_bins
from detkit.regions.segmentation import segment, sort_edges

Picture = NDArray[np.uint8]


def _hsv(picture: Picture) -> Picture:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL), np.uint8)


def _lab(picture: Picture) -> Picture:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB), np.uint8)


def _intensity(picture: Picture) -> Picture:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]


def _rg_intensity(picture: Picture) -> Picture:
    total = np.maximum(picture.sum(2, dtype=np.float32, keepdims=True), 1)
    return np.concatenate([(255 * (picture[..., :2] / total)).round().astype(np.uint8), _intensity(picture)], 2)


def _hue(picture: Picture) -> Picture:
    return np.ascontiguousarray(_hsv(picture)[..., :1])


COLOR_SPACES: dict[str, Callable[[Picture], Picture]] = {
    "HSV": _hsv,
    "Lab": _lab,
    "rgI": _rg_intensity,
    "H": _hue,
    "I": _intensity,
}
"""From RGB to the channels of each colour space, [H, W, 3] → [H, W, C], every channel stretched to 0 … 255."""


class _Strategies(NamedTuple):
    spaces: tuple[str, ...]
    similarities: tuple[str, ...]  # letters of C, T, S and F
    scales: tuple[int, ...]


STRATEGIES: dict[Mode, _Strategies] = {
    "single": _Strategies(("HSV",), ("CTSF",), (100,)),
    "fast": _Strategies(("HSV", "Lab"), ("CTSF", "TSF"), (50, 100)),
    "quality": _Strategies(("HSV", "Lab", "rgI", "H", "I"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)),
}


def selective_search(picture: Picture, config: SelectiveSearchConfig) -> Proposals:
    """Return the boxes of all regions of a picture [H, W, 3] RGB, duplicates removed, those of large regions early.

    The region at position i of its hierarchy, counted from the top, comes at i times a random number of 0 … 1
    (section 3.3); the score is 1 / (1 + that).
    """
    height, width = picture.shape[:2]
    scaled = _shrink(picture, config.longest_side)
    random = np.random.default_rng(config.seed)
    found, places = [], []
    for boxes in _hierarchies(scaled, STRATEGIES[config.mode]):
        found.append(boxes)
        places.append(random.random(len(boxes)) * np.arange(len(boxes), 0, -1))  # the last union is the top
    boxes, place = np.concatenate(found), np.concatenate(places)
    scaled_height, scaled_width = scaled.shape[:2]
    smallest = np.minimum(config.min_side, (scaled_width, scaled_height))
    kept = (boxes[:, 2:] - boxes[:, :2] >= smallest).all(1)
    boxes, place = boxes[kept], place[kept]
    order = np.argsort(place, kind="stable")
    boxes, place = boxes[order], place[order]
    first = _first_of_each(boxes, scaled_width + 1, scaled_height + 1)
    zoom = np.array([width / scaled_width, height / scaled_height] * 2)
    return Proposals((boxes[first] * zoom).astype(np.float32), (1 / (1 + place[first])).astype(np.float32))


def _hierarchies(picture: Picture, strategies: _Strategies) -> Iterator[NDArray[np.int64]]:
    """The boxes of all regions, segments first, of one grouping after the other."""
    for space in strategies.spaces:
        channels = COLOR_SPACES[space](picture)
        edges = sort_edges(channels)
        colors, textures = color_bins(channels), texture_bins(channels)
        for k in strategies.scales:
            labels, count = segment(edges, k, min_size=k)  # the authors' program takes k for both
            segments = describe(labels, count, colors, textures)
            for letters in strategies.similarities:
                color, texture, size, fill = (letter in letters for letter in "CTSF")
                yield group(segments, color=color, texture=texture, size=size, fill=fill).boxes


def _shrink(picture: Picture, longest_side: int | None) -> Picture:
    height, width = picture.shape[:2]
    factor = 1 if longest_side is None else longest_side / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _first_of_each(boxes: NDArray[np.int64], columns: int, rows: int) -> NDArray[np.int64]:
    """The rows of boxes [P, 4] that did not stand before, in order."""
    key = boxes[:, 0]
    for side, limit in ((1, rows), (2, columns), (3, rows)):
        key = key * limit + boxes[:, side]
    _, first = np.unique(key, return_index=True)
    return np.sort(first)
