"""Boxes that know nothing of the picture but its size: sliding windows and grids."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

from detkit.errors import DetkitError
from detkit.regions import GridConfig, Proposals, WindowsConfig

_MOST = 10_000_000  # boxes of a picture: 200 MB


def windows(size_hw: tuple[int, int], config: WindowsConfig) -> Proposals:
    """Return sliding windows over a picture of (height, width), shuffled by the seed, all with score 1.

    Raises DetkitError for more than ten million.
    """
    height, width = size_hw
    shapes = set()
    for scale, ratio in product(config.scales, config.aspect_ratios):
        w, h = (max(1, round(scale * math.sqrt(ratio))), max(1, round(scale / math.sqrt(ratio))))
        shapes.add((min(w, width), min(h, height)))
    steps = [(_starts(width, w, config.stride), _starts(height, h, config.stride), w, h) for w, h in sorted(shapes)]
    total = sum(len(x) * len(y) for x, y, _, _ in steps)
    _require_few("windows", total, size_hw, f"raise stride ({config.stride}) or pass fewer scales")
    boxes = np.concatenate([_boxes(*step) for step in steps])
    np.random.default_rng(config.seed).shuffle(boxes)
    return Proposals(boxes, np.ones(len(boxes), np.float32))


def grid(size_hw: tuple[int, int], config: GridConfig) -> Proposals:
    """Return the parts of a picture of (height, width), coarse first; the score is 1 / n for n × n parts.

    Raises DetkitError for more than ten million.
    """
    height, width = size_hw
    counts = {n: 1 + round((n - 1) / (1 - config.overlap)) for n in sorted(set(config.divisions))}
    total = sum(count**2 for count in counts.values())
    _require_few("grid", total, size_hw, f"lower divisions ({max(counts)}) or overlap ({config.overlap})")
    boxes, scores = [], []
    for n, count in counts.items():
        w, h = width / n, height / n
        boxes.append(_boxes(np.linspace(0, width - w, count), np.linspace(0, height - h, count), w, h))
        scores.append(np.full(len(boxes[-1]), 1 / n, np.float32))
    return Proposals(np.concatenate(boxes), np.concatenate(scores))


def _require_few(method: str, total: int, size_hw: tuple[int, int], remedy: str) -> None:
    if total > _MOST:
        height, width = size_hw
        raise DetkitError(f"{method}: {total} on a picture {width} wide and {height} high, more than {_MOST}; {remedy}")


def _starts(side: int, window: int, stride: int) -> NDArray[np.float64]:
    """Every stride-th position of a window in a side, and the last one."""
    return np.append(np.arange(0.0, side - window, stride), side - window)


def _boxes(x: NDArray[np.float64], y: NDArray[np.float64], w: float, h: float) -> NDArray[np.float32]:
    top, left = (place.ravel() for place in np.meshgrid(y, x, indexing="ij"))
    return np.stack([left, top, left + w, top + h], 1).astype(np.float32)
