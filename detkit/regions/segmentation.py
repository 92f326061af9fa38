"""Efficient graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 59, 2004), compiled by Numba.

Pixels are joined along edges to their eight neighbours, the slightest difference of colour first, as long as the edge
is no heavier than what holds the two segments together. The order of the edges does not depend on the scale k, so
that segmentations at several scales share it.

Shapes: H × W the picture, C channels, E edges: below 4 · H · W.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detkit.ops.kernels.compiled import compiled

_SIGMA = 0.8  # of the blur before (section 5)
_LEVELS = 128  # steps of an edge's weight to a grey level; the heaviest edge has √3 · 255 levels, which fits 16 bits


class Edges(NamedTuple):
    """The edges of a picture of (height, width), lightest first.

    codes [E] int64: 4 · pixel + direction (right, down, down right, down left). weights [E] uint16: distance of the
    colours in 1/128 of a grey level.
    """

    codes: NDArray[np.int64]
    weights: NDArray[np.uint16]
    size_hw: tuple[int, int]


def sort_edges(picture: NDArray[np.uint8]) -> Edges:
    """Blur a picture [H, W, C] of up to three channels and sort the differences of neighbouring pixels."""
    height, width, channels = picture.shape
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), _SIGMA, borderType=cv2.BORDER_REPLICATE)
    # Weights in steps can be sorted by counting them, far finer than the 8 bits that the colours come in.
    codes, weights = _sort(np.ascontiguousarray(smooth).reshape(height, width, channels))
    return Edges(codes, weights, (height, width))


def segment(edges: Edges, k: float, min_size: int) -> tuple[NDArray[np.int32], int]:
    """Return the segment of each pixel [H, W], numbered from 0 in the order of their first pixels, and their number.

    k: the larger, the larger are segments (threshold function k / size). min_size: smaller segments are joined to a
    neighbour, the one behind the lightest edge, as the authors' program does after the algorithm.
    """
    labels, count = _segment(edges.codes, edges.weights, *edges.size_hw, k * _LEVELS, min_size)
    return labels.reshape(edges.size_hw), count


@compiled
def _sort(picture: Any) -> Any:
    height, width, channels = picture.shape
    weights = np.empty(4 * height * width, np.uint16)
    codes = np.empty(4 * height * width, np.int64)
    count = 0
    begin = np.zeros(1 << 16, np.int64)
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                other_y = y + (direction > 0)
                other_x = x + (direction == 0 or direction == 2) - (direction == 3)
                if other_y == height or other_x == width or other_x < 0:
                    continue
                square = np.float32(0)
                for channel in range(channels):
                    difference = picture[y, x, channel] - picture[other_y, other_x, channel]
                    square += difference * difference
                weight = np.uint16(np.sqrt(square) * np.float32(_LEVELS) + np.float32(0.5))
                codes[count] = 4 * (y * width + x) + direction
                weights[count] = weight
                begin[weight] += 1
                count += 1
    begin = np.cumsum(begin) - begin
    sorted_codes, sorted_weights = np.empty(count, np.int64), np.empty(count, np.uint16)
    for edge in range(count):
        place = begin[weights[edge]]
        sorted_codes[place], sorted_weights[place] = codes[edge], weights[edge]
        begin[weights[edge]] += 1
    return sorted_codes, sorted_weights


@compiled
def _root(parent: Any, pixel: int) -> int:
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel


@compiled
def _segment(codes: Any, weights: Any, height: int, width: int, k: float, min_size: int) -> Any:
    steps = np.array([1, width, width + 1, width - 1])
    pixels = height * width
    parent = np.arange(pixels).astype(np.int32)
    size = np.ones(pixels, np.int32)
    limit = np.full(pixels, k, np.float32)  # the heaviest edge that a segment is joined along: Int(C) + k / |C|, eq. 4
    apart = np.empty((len(codes), 2), np.int32)  # edges along which nothing was joined
    left = 0
    for edge in range(len(codes)):
        first = codes[edge] >> 2
        a, b = _root(parent, first), _root(parent, first + steps[codes[edge] & 3])
        if a == b:
            continue
        weight = np.float32(weights[edge])
        if weight <= limit[a] and weight <= limit[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            limit[a] = weight + k / size[a]
        else:
            apart[left, 0], apart[left, 1] = a, b
            left += 1
    for edge in range(left):
        a, b = _root(parent, apart[edge, 0]), _root(parent, apart[edge, 1])
        if a != b and (size[a] < min_size or size[b] < min_size):
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
    labels, number = np.empty(pixels, np.int32), np.full(pixels, -1, np.int32)
    count = 0
    for pixel in range(pixels):
        root = _root(parent, pixel)
        if number[root] < 0:
            number[root] = count
            count += 1
        labels[pixel] = number[root]
    return labels, count
