"""Hierarchical grouping of segments (Uijlings et al., IJCV 104, 2013, algorithm 1 and section 3.2), compiled by Numba.

The two most similar neighbours become one region, until one region is left. What a region looks like is told by
histograms that follow from those of its two parts.

Shapes: H × W the picture, C channels, R segments, A pairs of neighbours, F bins of all histograms of a region.
"""

from __future__ import annotations

import heapq
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detkit.ops.kernels.compiled import compiled

COLORS, SHADES, ORIENTATIONS = 25, 10, 8
"""Bins of a channel's colours; bins of a derivative's strength; directions of derivatives (section 3.2)."""

_STRONGEST = 255 / np.sqrt(2 * np.pi)  # the derivative at an edge from black to white; the paper tells no range of bins


class Segments(NamedTuple):
    """The segments of a picture and what they look like.

    sizes [R] pixels; boxes [R, 4] int64 xyxy; histograms [R, F] float32: C · 25 bins of colour, then C · 8 · 10 bins
    of texture, each of the two with sum 1; pairs [A, 2] int64 of neighbours, each once.
    """

    sizes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    histograms: NDArray[np.float32]
    pairs: NDArray[np.int64]


class Grouping(NamedTuple):
    """The regions of a hierarchy: the R segments, then R − 1 unions, of which the last is the picture.

    boxes [2R − 1, 4] int64 xyxy; parts [R − 1, 2] int64: the two regions that each union was made of.
    """

    boxes: NDArray[np.int64]
    parts: NDArray[np.int64]


def color_bins(channels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bin of 25 that each value of 0 … 255 falls into."""
    return (np.arange(256) * COLORS // 256).astype(np.uint8)[channels]


def texture_bins(channels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bins of Gaussian derivatives (σ = 1) along four directions 45° apart, [H, W, C] → [H, W, C, 4].

    A positive derivative has a bin of 0 … 9, a negative one of 10 … 19.
    """
    taps = np.arange(-4, 5, dtype=np.float32)
    bell = np.exp(-taps * taps / 2)
    bell /= bell.sum()
    slope = taps * bell
    picture = channels.astype(np.float32)
    across, down = (
        cv2.sepFilter2D(picture, -1, x, y, borderType=cv2.BORDER_REPLICATE).reshape(channels.shape)
        for x, y in ((slope, bell), (bell, slope))
    )
    bins: NDArray[np.uint8] = _texture(across, down)
    return bins


def describe(labels: NDArray[np.int32], count: int, colors: NDArray[np.uint8], textures: NDArray[np.uint8]) -> Segments:
    """Measure the segments of a picture.

    labels [H, W] 0 … count − 1. colors [H, W, C]: bins of the pixel's channels. textures [H, W, C, 4]: bins of four
    derivatives, 0 … 9 where positive and 10 … 19 where negative; together they are those in eight directions.
    """
    sizes, boxes, histograms = _measure(labels, count, colors, textures)
    return Segments(sizes, boxes, histograms, _neighbours(labels, count))


def group(segments: Segments, *, color: bool, texture: bool, size: bool, fill: bool) -> Grouping:
    """Join the most similar neighbours until one region is left (algorithm 1).

    The similarity is the sum of those that are switched on (eq. 6).
    """
    bins = segments.histograms.shape[1] * COLORS // (COLORS + ORIENTATIONS * SHADES)
    wanted = slice(0 if color else bins, None if texture else bins)
    histograms = np.ascontiguousarray(segments.histograms[:, wanted])
    return Grouping(*_group(segments.sizes, segments.boxes, histograms, segments.pairs, size, fill))


@compiled
def _texture(across: Any, down: Any) -> Any:
    height, width, channels = across.shape
    bins = np.empty((height, width, channels, ORIENTATIONS // 2), np.uint8)
    scale: Any = np.float32(SHADES / _STRONGEST)
    diagonal = np.float32(np.sqrt(0.5))
    for y in range(height):
        for x in range(width):
            for channel in range(channels):
                right, low = across[y, x, channel] * scale, down[y, x, channel] * scale
                slopes = (right, low, (right + low) * diagonal, (low - right) * diagonal)
                for direction in range(ORIENTATIONS // 2):
                    shade = min(int(abs(slopes[direction])), SHADES - 1)
                    bins[y, x, channel, direction] = shade if slopes[direction] > 0 else SHADES + shade
    return bins


@compiled
def _measure(labels: Any, count: int, colors: Any, textures: Any) -> Any:
    height, width, channels = colors.shape
    sizes = np.zeros(count, np.int64)
    boxes = np.empty((count, 4), np.int64)
    boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3] = width, height, 0, 0
    color = np.zeros((count, channels, COLORS), np.int32)
    texture = np.zeros((count, channels, ORIENTATIONS // 2, 2 * SHADES), np.int32)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            sizes[label] += 1
            boxes[label, 0], boxes[label, 1] = min(boxes[label, 0], x), min(boxes[label, 1], y)
            boxes[label, 2], boxes[label, 3] = max(boxes[label, 2], x + 1), max(boxes[label, 3], y + 1)
            for channel in range(channels):
                color[label, channel, colors[y, x, channel]] += 1
                for direction in range(ORIENTATIONS // 2):
                    texture[label, channel, direction, textures[y, x, channel, direction]] += 1
    histograms = np.empty((count, channels * (COLORS + ORIENTATIONS * SHADES)), np.float32)
    for label in range(count):
        at = 0
        for channel in range(channels):
            for shade in range(COLORS):
                histograms[label, at] = color[label, channel, shade] / (sizes[label] * channels)
                at += 1
        for channel in range(channels):
            for direction in range(ORIENTATIONS // 2):
                # Where one direction's derivative is positive, that of its opposite counts as zero.
                for opposite in range(2):
                    begin = opposite * SHADES
                    strong = 0
                    for shade in range(1, SHADES):
                        pixels = texture[label, channel, direction, begin + shade]
                        strong += pixels
                        histograms[label, at + shade] = pixels / (sizes[label] * channels * ORIENTATIONS)
                    histograms[label, at] = (sizes[label] - strong) / (sizes[label] * channels * ORIENTATIONS)
                    at += SHADES
    return sizes, boxes, histograms


@compiled
def _neighbours(labels: Any, count: int) -> Any:
    """The pairs of segments that have pixels side by side, sorted, the lower number first, [A, 2]."""
    height, width = labels.shape
    last = np.full(count, -1, np.int64)  # drops most repetitions before the sort
    keys = []
    for y in range(height):
        for x in range(width):
            a = labels[y, x]
            for down in range(2):
                if (y + 1 == height) if down else (x + 1 == width):
                    continue
                b = labels[y + down, x + 1 - down]
                low, high = min(a, b), max(a, b)
                if low != high and last[low] != high:
                    last[low] = high
                    keys.append(np.int64(low) * count + high)
    pairs = np.empty((len(keys), 2), np.int64)
    found = 0
    before = np.int64(-1)
    for key in sorted(keys):
        if key != before:
            pairs[found, 0], pairs[found, 1] = key // count, key % count
            found += 1
            before = key
    return pairs[:found]


@partial(compiled, fastmath=True)  # lets the sum be taken by vector instructions
def _common(a: Any, b: Any) -> Any:
    """The intersection of two histograms (eq. 1 and 3)."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] if a[i] < b[i] else b[i]
    return total


@compiled
def _similarity(a: int, b: int, sizes: Any, boxes: Any, histograms: Any, area: int, size: bool, fill: bool) -> float:
    total = float(_common(histograms[a], histograms[b]))
    both = sizes[a] + sizes[b]
    if size:
        total += 1 - both / area  # eq. 4
    if fill:
        w = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        h = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += 1 - (w * h - both) / area  # eq. 5
    return total


@compiled
def _group(
    segment_sizes: Any, segment_boxes: Any, segment_histograms: Any, pairs: Any, use_size: bool, use_fill: bool
) -> Any:
    count = len(segment_sizes)
    total = 2 * count - 1
    sizes, boxes = np.empty(total, np.int64), np.empty((total, 4), np.int64)
    histograms = np.empty((total, segment_histograms.shape[1]), np.float32)
    sizes[:count], boxes[:count], histograms[:count] = segment_sizes, segment_boxes, segment_histograms
    area = segment_sizes.sum()
    alive = np.zeros(total, np.bool_)
    alive[:count] = True
    seen = np.full(total, -1, np.int64)  # the last union that a region was found to touch
    # The neighbours of a region are a chain of links: the region that a link leads to, and the link that follows.
    first = np.full(total, -1, np.int64)
    target, following = [np.int64(-1)], [np.int64(-1)]
    queue = [(0.0, np.int64(-1), np.int64(-1))]
    queue.pop()
    parts = np.empty((count - 1, 2), np.int64)

    for pair in range(len(pairs)):
        a, b = pairs[pair, 0], pairs[pair, 1]
        for one, other in ((a, b), (b, a)):
            target.append(other)
            following.append(first[one])
            first[one] = len(target) - 1
        queue.append((-_similarity(a, b, sizes, boxes, histograms, area, use_size, use_fill), a, b))
    heapq.heapify(queue)
    new = count
    while new < total:
        _, a, b = heapq.heappop(queue)
        if not (alive[a] and alive[b]):
            continue
        alive[a] = alive[b] = False
        alive[new] = True
        parts[new - count, 0], parts[new - count, 1] = a, b
        sizes[new] = sizes[a] + sizes[b]
        for side in range(2):
            boxes[new, side] = min(boxes[a, side], boxes[b, side])
            boxes[new, side + 2] = max(boxes[a, side + 2], boxes[b, side + 2])
        share_a, share_b = np.float32(sizes[a] / sizes[new]), np.float32(sizes[b] / sizes[new])
        one, other, union = histograms[a], histograms[b], histograms[new]
        for i in range(len(union)):
            union[i] = share_a * one[i] + share_b * other[i]  # eq. 2
        for part in (a, b):
            link = first[part]
            while link >= 0:
                near = target[link]
                link = following[link]
                if not alive[near] or seen[near] == new:
                    continue
                seen[near] = new
                target.append(near)
                following.append(first[new])
                first[new] = len(target) - 1
                target.append(np.int64(new))
                following.append(first[near])
                first[near] = len(target) - 1
                similarity = _similarity(near, new, sizes, boxes, histograms, area, use_size, use_fill)
                heapq.heappush(queue, (-similarity, near, np.int64(new)))
        new += 1
    return boxes, parts
